"""Flat indexes read and written without FAISS: a short header, then the vectors row by row.

The format, as ``faiss/impl/index_write.cpp`` (1.15) writes it, little-endian:

    fourcc         IxF2 (L2), IxFI (inner product), IxFl (any other metric), IBxF (bits)
    d              int32            (bits: followed by code_size, int32)
    ntotal         int64
    two dummies    int64 each, 1 << 20 (not for bits)
    is_trained     uint8
    metric         int32            (followed by metric_arg, float32, where it is above 1; not for bits)
    size           uint64           in 4-byte words (bits: in bytes)
    data           size × 4 bytes

``IxMp``, ``IxM2``, ``IBMp`` and ``IBM2`` put ids around another index: the same header up to ``metric``,
the inner index, then ``n`` (uint64) and n int64 ids.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vecferry.errors import CorruptDataError
from vecferry.model import Metric
from vecferry.model.vectors import Array

_FLAT = (b"IxF2", b"IxFI", b"IxFl")
_MAPPED = (b"IxMp", b"IxM2", b"IBMp", b"IBM2")
_BITS = b"IBxF"
_DUMMY = 1 << 20

FAISS_METRICS = {0: Metric.IP, 1: Metric.L2, 2: Metric.L1}


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """Where everything lies in a Flat index file.

    Attributes:
        dim: components (bits for a binary index).
        bits: whether the index is binary.
        metric: FAISS's number of the metric.
        count: vectors.
        start: the byte at which the vectors begin.
        ids: the byte at which the ids begin, if there are any.
    """

    dim: int
    bits: bool
    metric: int
    count: int
    start: int
    ids: int | None = None

    @property
    def width(self) -> int:
        """Bytes a vector."""
        return self.dim // 8 if self.bits else self.dim * 4


def parse_flat(path: Path) -> FlatLayout | None:
    """Where the vectors lie; ``None`` if the file is another kind of index.

    Raises:
        CorruptDataError: if it is a Flat index that is shorter than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            layout = _parse(file)
        except struct.error as error:
            raise CorruptDataError(f"{path} ends inside its header; restore it from a backup") from error
    if layout is None:
        return None
    end = (
        layout.start + layout.count * layout.width if layout.ids is None else layout.ids + 8 * layout.count
    )
    if size < end:
        raise CorruptDataError(
            f"{path} is truncated: {size:,} bytes where its header announces {end:,}; restore it"
        )
    return layout


def _parse(file: BinaryIO) -> FlatLayout | None:
    kind = file.read(4)
    if kind in _MAPPED:
        outer = _header(file, kind)
        inner = _parse(file)
        if inner is None or inner.ids is not None:
            return None
        file.seek(inner.start + inner.count * inner.width)
        (count,) = _take(file, "<Q")
        if count != outer[1] or count != inner.count:
            raise struct.error("ids")
        return FlatLayout(inner.dim, inner.bits, outer[2], inner.count, inner.start, file.tell())
    if kind not in _FLAT and kind != _BITS:
        return None
    dim, count, metric = _header(file, kind)
    bits = kind == _BITS
    (size,) = _take(file, "<Q")
    if dim < 0 or count < 0 or size * (1 if bits else 4) != count * (dim // 8 if bits else dim * 4):
        raise struct.error("size")
    return FlatLayout(dim, bits, metric, count, file.tell())


def _header(file: BinaryIO, kind: bytes) -> tuple[int, int, int]:
    """``(dim, count, metric)``; the file then stands behind the metric."""
    if kind.startswith(b"IB"):
        dim, _, count, _, metric = _take(file, "<iiqBi")
        return dim, count, metric
    dim, count, _, _, _, metric = _take(file, "<iqqqBi")
    if metric > 1:
        _take(file, "<f")
    return dim, count, metric


def _take(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def flat_header(dim: int, metric: Metric, count: int, *, bits: bool = False) -> bytes:
    """The header of a Flat index; the vectors follow it directly.

    Args:
        metric: ``ip``, ``l2``, ``l1``, or ``hamming`` with ``bits``.
    """
    if bits:
        return _BITS + struct.pack("<iiqBiQ", dim, dim // 8, count, 1, 1, count * (dim // 8))
    kinds = {Metric.IP: b"IxFI", Metric.L2: b"IxF2", Metric.L1: b"IxFl"}
    return kinds[metric] + _head(dim, metric, count) + struct.pack("<Q", count * dim)


def mapped_header(dim: int, metric: Metric, count: int) -> bytes:
    """What stands before the Flat index in an ``IndexIDMap2``; `id_block` stands behind."""
    return b"IxM2" + _head(dim, metric, count)


def _head(dim: int, metric: Metric, count: int) -> bytes:
    number = next(key for key, value in FAISS_METRICS.items() if value is metric)
    argument = struct.pack("<f", 0.0) if number > 1 else b""
    return struct.pack("<iqqqBi", dim, count, _DUMMY, _DUMMY, 1, number) + argument


def id_block(ids: Array) -> bytes:
    """The ids at the end of an ``IndexIDMap2``."""
    return struct.pack("<Q", len(ids)) + ids.astype("<i8").tobytes()


class FlatFile:
    """The vectors of a Flat index, read straight into fresh arrays. Threads may share one.

    Args:
        path: the index file.
        layout: from `parse_flat`.
    """

    def __init__(self, path: Path, layout: FlatLayout) -> None:
        self.layout = layout
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._width = layout.dim // 8 if layout.bits else layout.dim
        self._dtype = np.dtype(np.uint8 if layout.bits else "<f4")

    def __len__(self) -> int:
        return self.layout.count

    def read(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop``: float32 ``(n, dim)``, or packed uint8 ``(n, dim / 8)``."""
        rows = np.empty((stop - start, self._width), dtype=self._dtype)
        self._fill(rows, self.layout.start + start * self.layout.width)
        return rows

    def ids(self) -> Array | None:
        """The ids of all rows, int64; ``None`` where they are the row numbers."""
        if self.layout.ids is None:
            return None
        ids = np.empty(len(self), dtype="<i8")
        self._fill(ids, self.layout.ids)
        return ids

    def _fill(self, target: Array, position: int) -> None:
        view = memoryview(target.data).cast("B") if target.size else memoryview(b"")
        while view:
            done = os.preadv(self._file.fileno(), [view], position)
            if done == 0:
                raise CorruptDataError(f"{self._path} became shorter while it was read; read it again")
            view, position = view[done:], position + done

    def close(self) -> None:
        self._file.close()
