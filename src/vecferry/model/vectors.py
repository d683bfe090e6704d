"""Columns of vectors: dense, sparse (CSR) and multi (flat + offsets), each with a validity mask.

A mask is a bool array of length n, true where the record has a vector, or ``None`` when all have.
Rows that are masked out hold zeros (dense) or are empty (sparse, multi); nothing reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """``indices`` (uint32, ascending, unique) and ``values`` (float32) of equal length."""

    indices: Array
    values: Array

    def __post_init__(self) -> None:
        indices = np.asarray(self.indices, dtype=np.uint32)
        values = np.asarray(self.values, dtype=np.float32)
        if indices.ndim != 1 or indices.shape != values.shape:
            raise ValueError("a sparse vector needs one value for each index")
        order = np.argsort(indices, kind="stable")
        indices, values = indices[order], values[order]
        if len(indices) > 1 and not np.all(indices[1:] > indices[:-1]):
            raise ValueError("a sparse vector names an index twice")
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return len(self.indices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseVector):
            return NotImplemented
        return np.array_equal(self.indices, other.indices) and np.array_equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]


def _take_mask(mask: Mask | None, rows: Array) -> Mask | None:
    if mask is None:
        return None
    taken = mask[rows]
    return None if taken.all() else taken


def _join_masks(columns: Sequence[Column]) -> Mask | None:
    if all(column.mask is None for column in columns):
        return None
    return np.concatenate([column.present for column in columns])


def _ranges(starts: Array, lengths: Array) -> Array:
    """The indices ``starts[i] … starts[i] + lengths[i]`` of every i, one after the other."""
    ends = np.cumsum(lengths)
    shift = np.repeat(starts - (ends - lengths), lengths)
    total = int(ends[-1]) if len(ends) else 0
    places: Array = np.arange(total, dtype=np.int64) + shift
    return places


def _offsets_of(lengths: Sequence[int] | Array) -> Array:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True, slots=True, eq=False)
class DenseColumn:
    """``values``: C-contiguous ``(n, width)``; for bit fields packed uint8, ``width = ceil(dim/8)``."""

    values: Array
    mask: Mask | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ValueError(f"a dense column is (n, dim), not {self.values.shape}")
        object.__setattr__(self, "values", np.ascontiguousarray(self.values))
        _check_mask(self.mask, len(self.values))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def present(self) -> Mask:
        return np.ones(len(self), dtype=np.bool_) if self.mask is None else self.mask

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes)

    def __getitem__(self, row: int) -> Array | None:
        return None if self.mask is not None and not self.mask[row] else self.values[row]

    def take(self, rows: Array) -> DenseColumn:
        return DenseColumn(self.values[rows], _take_mask(self.mask, rows))

    @classmethod
    def concat(cls, columns: Sequence[DenseColumn]) -> DenseColumn:
        return cls(np.concatenate([c.values for c in columns]), _join_masks(columns))

    @classmethod
    def from_rows(cls, rows: Sequence[Any], width: int | None = None, dtype: Any = None) -> DenseColumn:
        """From arrays or lists, ``None`` where a vector is missing.

        Raises:
            ValueError: naming the first row whose width differs.
        """
        first = next((np.asarray(row) for row in rows if row is not None), None)
        if first is not None and first.ndim != 1:
            raise ValueError(f"a dense vector is one-dimensional, not {first.shape}")
        width = width or (len(first) if first is not None else 0)
        dtype = dtype or _component_type(first)
        values = np.zeros((len(rows), width), dtype=dtype)
        mask = np.ones(len(rows), dtype=np.bool_)
        for i, row in enumerate(rows):
            if row is None:
                mask[i] = False
                continue
            if len(row) != width:
                raise ValueError(f"row {i} has {len(row)} components where {width} are due")
            values[i] = row
        return cls(values, None if mask.all() else mask)


@dataclass(frozen=True, slots=True, eq=False)
class SparseColumn:
    """CSR: ``indptr`` int64 ``(n + 1)``, ``indices`` uint32 and ``values`` float32 ``(nnz,)``."""

    indptr: Array
    indices: Array
    values: Array
    mask: Mask | None = None

    def __post_init__(self) -> None:
        _check_mask(self.mask, len(self))

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def present(self) -> Mask:
        return np.ones(len(self), dtype=np.bool_) if self.mask is None else self.mask

    @property
    def nbytes(self) -> int:
        return int(self.indptr.nbytes + self.indices.nbytes + self.values.nbytes)

    def __getitem__(self, row: int) -> SparseVector | None:
        if self.mask is not None and not self.mask[row]:
            return None
        span = slice(self.indptr[row], self.indptr[row + 1])
        return SparseVector(self.indices[span], self.values[span])

    def take(self, rows: Array) -> SparseColumn:
        lengths = (self.indptr[1:] - self.indptr[:-1])[rows]
        where = _ranges(self.indptr[:-1][rows], lengths)
        return SparseColumn(
            _offsets_of(lengths), self.indices[where], self.values[where], _take_mask(self.mask, rows)
        )

    @classmethod
    def concat(cls, columns: Sequence[SparseColumn]) -> SparseColumn:
        lengths = np.concatenate([c.indptr[1:] - c.indptr[:-1] for c in columns])
        indices = np.concatenate([c.indices[c.indptr[0] : c.indptr[-1]] for c in columns])
        values = np.concatenate([c.values[c.indptr[0] : c.indptr[-1]] for c in columns])
        return cls(_offsets_of(lengths), indices, values, _join_masks(columns))

    @classmethod
    def from_rows(cls, rows: Sequence[SparseVector | None]) -> SparseColumn:
        """From `SparseVector` objects, ``None`` where one is missing."""
        mask = np.array([row is not None for row in rows], dtype=np.bool_)
        full = [row for row in rows if row is not None]
        empty_i, empty_v = np.empty(0, np.uint32), np.empty(0, np.float32)
        return cls(
            _offsets_of([0 if row is None else len(row) for row in rows]),
            np.concatenate([empty_i, *(row.indices for row in full)]),
            np.concatenate([empty_v, *(row.values for row in full)]),
            None if mask.all() else mask,
        )


@dataclass(frozen=True, slots=True, eq=False)
class MultiColumn:
    """A matrix a record: ``values`` ``(total, dim)``, ``offsets`` int64 ``(n + 1)``."""

    values: Array
    offsets: Array
    mask: Mask | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ValueError(f"a multi column is (total, dim), not {self.values.shape}")
        object.__setattr__(self, "values", np.ascontiguousarray(self.values))
        _check_mask(self.mask, len(self))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def present(self) -> Mask:
        return np.ones(len(self), dtype=np.bool_) if self.mask is None else self.mask

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes + self.offsets.nbytes)

    def __getitem__(self, row: int) -> Array | None:
        if self.mask is not None and not self.mask[row]:
            return None
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows: Array) -> MultiColumn:
        lengths = (self.offsets[1:] - self.offsets[:-1])[rows]
        where = _ranges(self.offsets[:-1][rows], lengths)
        return MultiColumn(self.values[where], _offsets_of(lengths), _take_mask(self.mask, rows))

    @classmethod
    def concat(cls, columns: Sequence[MultiColumn]) -> MultiColumn:
        lengths = np.concatenate([c.offsets[1:] - c.offsets[:-1] for c in columns])
        values = np.concatenate([c.values[c.offsets[0] : c.offsets[-1]] for c in columns])
        return cls(values, _offsets_of(lengths), _join_masks(columns))

    @classmethod
    def from_rows(cls, rows: Sequence[Any], width: int | None = None, dtype: Any = None) -> MultiColumn:
        """From ``(m, dim)`` matrices, ``None`` where one is missing."""
        mask = np.array([row is not None for row in rows], dtype=np.bool_)
        full = [np.atleast_2d(np.asarray(row)) for row in rows if row is not None]
        width = width or (full[0].shape[1] if full else 0)
        dtype = dtype or _component_type(full[0] if full else None)
        lengths = np.zeros(len(rows), dtype=np.int64)
        lengths[mask] = [len(row) for row in full]
        empty = np.empty((0, width), dtype=dtype)
        values = np.concatenate([empty, *full]).astype(dtype, copy=False)
        return cls(values, _offsets_of(lengths), None if mask.all() else mask)


Column: TypeAlias = DenseColumn | SparseColumn | MultiColumn


def _check_mask(mask: Mask | None, rows: int) -> None:
    if mask is not None and mask.shape != (rows,):
        raise ValueError(f"a mask of shape {mask.shape} on {rows} rows")


def _component_type(example: Array | None) -> Any:
    """float16, int8 and uint8 stay as they are; everything else becomes float32."""
    kept = (np.float16, np.int8, np.uint8)
    return example.dtype if example is not None and example.dtype in kept else np.float32


def non_finite_rows(column: Column) -> Iterator[int]:
    """Row numbers that hold a NaN or an infinity."""
    if column.values.dtype.kind != "f" or np.isfinite(column.values).all():
        return
    if isinstance(column, DenseColumn):
        yield from np.flatnonzero(~np.isfinite(column.values).all(axis=1)).tolist()
        return
    for row in range(len(column)):
        value = column[row]
        numbers = value.values if isinstance(value, SparseVector) else value
        if numbers is not None and not np.isfinite(numbers).all():
            yield row
