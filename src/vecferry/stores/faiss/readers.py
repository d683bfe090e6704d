"""The vectors of an index file, block by block, whatever kind of index it is.

| index | vectors | exact |
|---|---|---|
| Flat, and IDMap(2) around it, also binary | the file itself (`vecferry.stores.faiss.flat`) | yes |
| HNSW, NSG | their storage | as the storage |
| IVF | its inverted lists, with the ids they hold | as the codec |
| SQ, PQ, LSH, residual and additive quantizers, FastScan | ``reconstruct_n`` | no |
| PCA and other transforms before an index | the inner vectors, transformed back | no |
| RFlat (refine) | the Flat index it refines with | yes |

FAISS aborts the process in ``IndexIDMap.reconstruct_n`` and returns uninitialised memory for an IVF with ids
of its own; neither is called here. Files are mapped (``IO_FLAG_MMAP_IFC``), so that the memory they take can
be given back at any time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vecferry.errors import CorruptDataError, MissingDependencyError, UnsupportedError
from vecferry.records import Metric
from vecferry.records.vectors import Array
from vecferry.stores.faiss.flat import FAISS_METRICS, FlatFile, parse_flat


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


class IndexFile:
    """An index file, open for reading.

    Attributes:
        kind: such as ``"Flat"`` or ``"IVF"``, for people.
        dim: components a vector.
        bits: whether it is a binary index.
        metric: as the index says.
        loss: what the index lost of the vectors, or ``None``.
        settings: index settings under their common names.
        in_order: whether positions follow the order in which vectors were added.
        index: the FAISS object, where FAISS had to read the file.
    """

    def __init__(self, path: Path, *, metric: Metric | None = None) -> None:
        self.path = path
        self.loss: str | None = None
        self.settings: dict[str, Any] = {}
        self.in_order = True
        self.index: Any = None
        layout = parse_flat(path)
        if layout is not None:
            self.kind, self.dim, self.bits = "Flat", layout.dim, layout.bits
            self.metric = metric or metric_of(layout.metric, path, bits=layout.bits)
            self.vectors: Vectors = FlatFile(path, layout)
            return
        self.index, self.bits = load_index(path)
        self.dim = int(self.index.d)
        self.metric = metric or metric_of(int(self.index.metric_type), path, bits=self.bits)
        probe = _Probe(path)
        self.vectors = probe.open(self.index)
        self.kind, self.loss, self.settings = " ▸ ".join(probe.kinds), probe.loss, probe.settings
        self.in_order = probe.in_order
        check_readable(self.vectors, path)

    def __len__(self) -> int:
        return len(self.vectors)

    def close(self) -> None:
        self.vectors.close()
        self.index = None


def metric_of(number: int, path: Path, *, bits: bool) -> Metric:
    """FAISS's metric as ours.

    Raises:
        UnsupportedError: for one that has no counterpart.
    """
    if bits:
        return Metric.HAMMING
    if number not in FAISS_METRICS:
        raise UnsupportedError(
            f"{path} uses FAISS's metric number {number}; read it with ?metric=l2, ip or cosine instead"
        )
    return FAISS_METRICS[number]


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


def load_index(path: Path) -> tuple[Any, bool]:
    """The index, mapped where FAISS can, and whether it is binary.

    Raises:
        CorruptDataError: if the file is not an index or is truncated.
    """
    faiss = import_faiss()
    with path.open("rb") as file:
        bits = file.read(2) == b"IB"
    if path.stat().st_size == 0:
        raise CorruptDataError(f"{path} is empty; restore it from a backup")
    try:
        if bits:
            return faiss.downcast_IndexBinary(faiss.read_index_binary(str(path))), True
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), False
    except RuntimeError as error:
        reason = str(error).rsplit(": ", 1)[-1][:200]
        raise CorruptDataError(
            f"{path} is not a FAISS index or is truncated ({reason}); restore it"
        ) from error


def check_readable(vectors: Vectors, path: Path) -> None:
    """Read one vector, where FAISS raises; a block read of such an index may abort the process."""
    if len(vectors) == 0:
        return
    try:
        vectors.read(0, 1)
    except RuntimeError as error:
        raise UnsupportedError(
            f"{path}: FAISS cannot give back the vectors of this index; migrate from the original vectors"
        ) from error


class _Probe:
    """Finds, layer by layer, where an index keeps its vectors, and what they lost."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._faiss = import_faiss()
        self.kinds: list[str] = []
        self.loss: str | None = None
        self.in_order = True
        self.settings: dict[str, Any] = {}

    def open(self, index: Any) -> Vectors:
        faiss = self._faiss
        binary = isinstance(index, faiss.IndexBinary)
        index = faiss.downcast_IndexBinary(index) if binary else faiss.downcast_index(index)
        self.kinds.append(type(index).__name__.removeprefix("Index"))
        if isinstance(index, faiss.IndexIDMap | faiss.IndexBinaryIDMap):
            return _Numbered(self.open(index.index), index)
        if binary:
            return self._open_binary(index)
        if isinstance(index, faiss.IndexPreTransform):
            return self._open_transformed(index)
        if isinstance(index, faiss.IndexRefine):
            self.kinds[-1] = "Refine"
            return self._open_refined(index)
        if isinstance(index, faiss.IndexHNSW | faiss.IndexNSG | faiss.IndexNNDescent):
            if isinstance(index, faiss.IndexHNSW):
                self._note_hnsw(index)
            return self.open(index.storage)
        if isinstance(index, faiss.IndexIVF):
            self.settings["ivf_lists"] = int(index.nlist)
            self._note_codec(index, exact=type(index) is faiss.IndexIVFFlat)
            self.in_order = False
            return _Lists(index, self._path)
        codec = faiss.IndexFlatCodes | faiss.IndexFastScan
        if isinstance(index, codec):
            self._note_codec(index, exact=isinstance(index, faiss.IndexFlat))
            return _Codes(index)
        raise UnsupportedError(
            f"{self._path}: {type(index).__name__} keeps no vectors that can be read; "
            "migrate from the original vectors"
        )

    def _open_refined(self, index: Any) -> Vectors:
        losses = self.loss
        inner = self.open(index.refine_index)
        self.kinds[-1:] = [f"R{self.kinds[-1]}"]
        self.loss = self.loss if not isinstance(inner, _Codes) or not inner.exact else losses
        base = self._faiss.downcast_index(index.base_index)
        own = _Probe(self._path)
        try:
            ids = own.open(base).ids()
        except UnsupportedError:
            ids = None
        self.settings |= own.settings
        if ids is None or np.array_equal(np.sort(ids), np.arange(len(inner))):
            return inner  # the refine index numbers its rows 0, 1, …, in the order they were added
        raise UnsupportedError(f"{self._path}: a refined index with numbers of its own cannot be read")

    def _open_transformed(self, index: Any) -> Vectors:
        chain = [self._faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        inner = self.open(index.index)
        names = ", ".join(type(step).__name__.removesuffix("Matrix") for step in chain)
        self.loss = f"vectors went through {names}: " + (self.loss or "they are transformed back inexactly")
        return _Transformed(inner, chain, index)

    def _open_binary(self, index: Any) -> Vectors:
        faiss = self._faiss
        if isinstance(index, faiss.IndexBinaryFlat):
            return _Bits(index)
        if isinstance(index, faiss.IndexBinaryHNSW):
            self._note_hnsw(index)
            return self.open(index.storage)
        if isinstance(index, faiss.IndexBinaryIVF):
            self.settings["ivf_lists"] = int(index.nlist)
            self.in_order = False
            return _Lists(index, self._path)
        raise UnsupportedError(f"{self._path}: {type(index).__name__} keeps no vectors that can be read")

    def _note_hnsw(self, index: Any) -> None:
        graph = index.hnsw
        self.settings["hnsw_m"] = int(graph.nb_neighbors(1))
        self.settings["hnsw_ef_construct"] = int(graph.efConstruction)
        self.settings["hnsw_ef_search"] = int(graph.efSearch)

    def _note_codec(self, index: Any, *, exact: bool) -> None:
        if not exact:
            name = type(index).__name__.removeprefix("Index")
            self.loss = f"the index ({name}) stores vectors inexactly, {int(index.code_size)} bytes each"


class _Codes:
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


class _Bits:
    """The rows of an ``IndexBinaryFlat`` that FAISS holds."""

    def __init__(self, index: Any) -> None:
        faiss = import_faiss()
        self._rows = faiss.vector_to_array(index.xb).reshape(int(index.ntotal), int(index.code_size))

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, start: int, stop: int) -> Array:
        return self._rows[start:stop].copy()

    def ids(self) -> Array | None:
        return None

    def close(self) -> None:
        self._rows = self._rows[:0]


class _Numbered:
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
        return self._ids if inner is None else self._ids[inner]

    def close(self) -> None:
        self._inner.close()


class _Lists:
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


class _Transformed:
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


__all__ = ["IndexFile", "Vectors", "import_faiss", "load_index", "metric_of"]
