"""Vectors inside FAISS objects, block by block: in one run, in inverted lists, numbered, transformed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vecferry.errors import CorruptDataError, MissingDependencyError
from vecferry.model.vectors import Array


class Vectors(Protocol):
    """The vectors of an index by position."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Array:
        """Float32 ``(n, dim)``, or packed uint8 for bits, owned by the caller."""
        ...

    def ids(self) -> Array | None:
        """The index's own numbers, int64 ``(n,)``; ``None`` where they are the positions."""
        ...

    def close(self) -> None: ...


def import_faiss() -> Any:
    """The vendor's module.

    Raises:
        MissingDependencyError: naming the extra.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError("this FAISS index", "faiss") from error
    return faiss


class Selected:
    """Some vectors of others, by position."""

    def __init__(self, inner: Vectors, positions: Array) -> None:
        self._inner, self._positions = inner, positions

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, start: int, stop: int) -> Array:
        wanted = self._positions[start:stop]
        if not len(wanted):
            return self._inner.read(0, 0)
        first, last = int(wanted[0]), int(wanted[-1])
        if last - first + 1 < 4 * len(wanted):
            rows = self._inner.read(first, last + 1)
            return rows if len(rows) == len(wanted) else np.ascontiguousarray(rows[wanted - first])
        return np.concatenate([self._inner.read(at, at + 1) for at in wanted.tolist()])

    def ids(self) -> Array | None:
        inner = self._inner.ids()
        return self._positions if inner is None else np.asarray(inner[self._positions])

    def close(self) -> None:
        self._inner.close()


class Codes:
    """Vectors in one run of codes."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.exact = type(index).__name__.startswith("IndexFlat")

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def read(self, start: int, stop: int) -> Array:
        out = np.empty((stop - start, self._index.d), dtype=np.float32)
        if stop - start == 1:
            self._index.reconstruct(start, out[0])
        elif stop > start:
            self._index.reconstruct_n(start, stop - start, out)
        return out

    def ids(self) -> Array | None:
        return None

    def close(self) -> None:
        self._index = None


class Bits:
    """The rows of an ``IndexBinaryFlat`` that FAISS holds."""

    def __init__(self, index: Any) -> None:
        faiss = import_faiss()
        self._rows = faiss.vector_to_array(index.xb).reshape(int(index.ntotal), int(index.code_size))

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, start: int, stop: int) -> Array:
        return np.array(self._rows[start:stop])

    def ids(self) -> Array | None:
        return None

    def close(self) -> None:
        self._rows = self._rows[:0]


class Numbered:
    """Vectors under ids of an IDMap."""

    def __init__(self, inner: Vectors, index: Any) -> None:
        self._inner = inner
        self._ids = np.asarray(import_faiss().vector_to_array(index.id_map), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._inner)

    def read(self, start: int, stop: int) -> Array:
        return self._inner.read(start, stop)

    def ids(self) -> Array | None:
        inner = self._inner.ids()
        if inner is None:
            return self._ids
        if not np.array_equal(np.sort(inner), np.arange(len(self._ids))):
            raise CorruptDataError(
                "the numbers of an IDMap belong to rows that the index around which it lies does not have; "
                "write the index anew from its vectors"
            )
        return np.asarray(self._ids[inner])

    def close(self) -> None:
        self._inner.close()


class Lists:
    """The inverted lists of an IVF, one after the other; positions run through all of them."""

    def __init__(self, index: Any, path: Path) -> None:
        faiss = import_faiss()
        self._index = index
        self._lists = index.invlists
        self._binary = isinstance(index, faiss.IndexBinaryIVF)
        self._raw = self._binary or type(index) is faiss.IndexIVFFlat
        sizes = [int(self._lists.list_size(i)) for i in range(int(index.nlist))]
        self._edges = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        if len(self) != int(index.ntotal):
            raise CorruptDataError(
                f"{path}: its lists hold {len(self)} of {index.ntotal} vectors; restore it"
            )

    def __len__(self) -> int:
        return int(self._edges[-1])

    def read(self, start: int, stop: int) -> Array:
        width = int(self._index.code_size) if self._binary else int(self._index.d)
        out = np.empty((stop - start, width), dtype=np.uint8 if self._binary else np.float32)
        at = start
        while at < stop:
            number = int(np.searchsorted(self._edges, at, side="right")) - 1
            end = min(stop, int(self._edges[number + 1]))
            self._read_list(number, at - int(self._edges[number]), out[at - start : end - start])
            at = end
        return out

    def _read_list(self, number: int, offset: int, out: Array) -> None:
        if not self._raw:
            for row in range(len(out)):
                self._index.reconstruct_from_offset(number, offset + row, _pointer(out[row]))
            return
        size, code = int(self._lists.list_size(number)), int(self._index.code_size)
        pointer = self._lists.get_codes(number)
        try:
            codes = import_faiss().rev_swig_ptr(pointer, size * code).reshape(size, code)
            chosen = codes[offset : offset + len(out)]
            out[:] = chosen if self._binary else np.ascontiguousarray(chosen).view(np.float32)
        finally:
            self._lists.release_codes(number, pointer)

    def ids(self) -> Array | None:
        faiss = import_faiss()
        ids = np.empty(len(self), dtype=np.int64)
        for number in range(int(self._index.nlist)):
            size = int(self._lists.list_size(number))
            if size:
                pointer = self._lists.get_ids(number)
                ids[self._edges[number] : self._edges[number + 1]] = faiss.rev_swig_ptr(pointer, size)
                self._lists.release_ids(number, pointer)
        return ids

    def close(self) -> None:
        self._index = self._lists = None


class PackedLists(Lists):
    """The lists of an IVF with PQ FastScan: 4-bit codes of several vectors interleaved in a block.

    Unpacked with the codec of the lists and decoded with the product quantizer.
    """

    def _read_list(self, number: int, offset: int, out: Array) -> None:
        faiss = import_faiss()
        packer = faiss.downcast_InvertedLists(self._lists).packer
        blocks = -(-int(self._lists.list_size(number)) // int(packer.nvec))
        size = int(packer.block_size)
        pointer = self._lists.get_codes(number)
        try:
            packed = faiss.rev_swig_ptr(pointer, blocks * size).reshape(blocks, size)
            codes = np.stack([packer.unpack_1(packed, offset + row) for row in range(len(out))])
        finally:
            self._lists.release_codes(number, pointer)
        quantizer = self._index.pq
        out[:] = quantizer.decode(np.ascontiguousarray(codes[:, : int(quantizer.code_size)]))
        if self._index.by_residual:
            centre = np.empty(out.shape[1], dtype=np.float32)
            self._index.quantizer.reconstruct(number, centre)
            out += centre


class Transformed:
    """Vectors that were transformed before they were stored; transformed back, last step first."""

    def __init__(self, inner: Vectors, chain: list[Any], owner: Any) -> None:
        self._inner = inner
        self._chain = chain
        self._owner = owner  # the steps live as long as the index does

    def __len__(self) -> int:
        return len(self._inner)

    def read(self, start: int, stop: int) -> Array:
        rows = self._inner.read(start, stop)
        for step in reversed(self._chain):
            rows = step.reverse_transform(rows)
        return rows

    def ids(self) -> Array | None:
        return self._inner.ids()

    def close(self) -> None:
        self._inner.close()
        self._chain, self._owner = [], None


def _pointer(array: Array) -> Any:
    return import_faiss().swig_ptr(array)
