"""Columns of vectors: dense, sparse (CSR) and multi (flat + offsets), each with a validity mask.

A mask is a bool array of length n, true where the record has a vector, or ``None`` when all have.
Rows that are masked out hold zeros (dense) or are empty (sparse, multi); nothing reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """``indices`` (uint32, ascending, unique) and ``values`` (float32) of equal length."""

    indices: Array
    values: Array

    if TYPE_CHECKING:

        def __init__(self, indices: ArrayLike, values: ArrayLike) -> None: ...

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


class _Masked:
    """What all columns share: which rows have a vector."""

    __slots__ = ()
    mask: Mask | None

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def present(self) -> Mask:
        return np.ones(len(self), dtype=np.bool_) if self.mask is None else self.mask

    def _taken_mask(self, rows: Array) -> Mask | None:
        if self.mask is None or self.mask[rows].all():
            return None
        return self.mask[rows]

    def _check_mask(self) -> None:
        if self.mask is not None and self.mask.shape != (len(self),):
            raise ValueError(f"a mask of shape {self.mask.shape} on {len(self)} rows")


@dataclass(frozen=True, slots=True, eq=False)
class DenseColumn(_Masked):
    """``values``: C-contiguous ``(n, width)``; for bit fields packed uint8, ``width = ceil(dim/8)``."""

    values: Array
    mask: Mask | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ValueError(f"a dense column is (n, dim), not {self.values.shape}")
        object.__setattr__(self, "values", np.ascontiguousarray(self.values))
        self._check_mask()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes)

    def __getitem__(self, row: int) -> Array | None:
        return None if self.mask is not None and not self.mask[row] else self.values[row]

    def take(self, rows: Array) -> DenseColumn:
        return DenseColumn(self.values[rows], self._taken_mask(rows))

    def absent(self, rows: int) -> DenseColumn:
        """A column like this one of ``rows`` missing vectors."""
        empty = np.zeros((rows, self.values.shape[1]), self.values.dtype)
        return DenseColumn(empty, np.zeros(rows, np.bool_))

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


class RaggedColumn(_Masked):
    """Rows of different lengths: flat arrays, and where each row begins in them.

    Row i is ``flat[offsets[i]:offsets[i + 1]]`` of each of the `flats`.
    """

    __slots__ = ()

    @property
    def starts(self) -> Array:
        """int64 ``(n + 1)``."""
        raise NotImplementedError

    @property
    def flats(self) -> tuple[Array, ...]:
        raise NotImplementedError

    @classmethod
    def _of(cls, starts: Array, flats: Sequence[Array], mask: Mask | None) -> Self:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Array:
        """int64 ``(n,)``: the entries of each row."""
        lengths: Array = np.diff(self.starts)
        return lengths

    @property
    def nbytes(self) -> int:
        return int(self.starts.nbytes + sum(flat.nbytes for flat in self.flats))

    def take(self, rows: Array) -> Self:
        lengths = self.lengths[rows]
        where = _ranges(self.starts[:-1][rows], lengths)
        flats = [flat[where] for flat in self.flats]
        return self._of(_offsets_of(lengths), flats, self._taken_mask(rows))

    def absent(self, rows: int) -> Self:
        """A column like this one of ``rows`` missing vectors."""
        flats = [flat[:0] for flat in self.flats]
        return self._of(np.zeros(rows + 1, np.int64), flats, np.zeros(rows, np.bool_))

    @classmethod
    def concat(cls, columns: Sequence[Self]) -> Self:
        lengths = np.concatenate([column.lengths for column in columns])
        spans = [[flat[c.starts[0] : c.starts[-1]] for flat in c.flats] for c in columns]
        flats = [np.concatenate(parts) for parts in zip(*spans, strict=True)]
        return cls._of(_offsets_of(lengths), flats, _join_masks(columns))


@dataclass(frozen=True, slots=True, eq=False)
class SparseColumn(RaggedColumn):
    """CSR: ``indptr`` int64 ``(n + 1)``, ``indices`` uint32 and ``values`` float32 ``(nnz,)``."""

    indptr: Array
    indices: Array
    values: Array
    mask: Mask | None = None

    def __post_init__(self) -> None:
        self._check_mask()

    @property
    def starts(self) -> Array:
        return self.indptr

    @property
    def flats(self) -> tuple[Array, ...]:
        return self.indices, self.values

    @classmethod
    def _of(cls, starts: Array, flats: Sequence[Array], mask: Mask | None) -> SparseColumn:
        return cls(starts, flats[0], flats[1], mask)

    def __getitem__(self, row: int) -> SparseVector | None:
        if self.mask is not None and not self.mask[row]:
            return None
        span = slice(self.indptr[row], self.indptr[row + 1])
        return SparseVector(self.indices[span], self.values[span])

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
class MultiColumn(RaggedColumn):
    """A matrix a record: ``values`` ``(total, dim)``, ``offsets`` int64 ``(n + 1)``."""

    values: Array
    offsets: Array
    mask: Mask | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ValueError(f"a multi column is (total, dim), not {self.values.shape}")
        object.__setattr__(self, "values", np.ascontiguousarray(self.values))
        self._check_mask()

    @property
    def starts(self) -> Array:
        return self.offsets

    @property
    def flats(self) -> tuple[Array, ...]:
        return (self.values,)

    @classmethod
    def _of(cls, starts: Array, flats: Sequence[Array], mask: Mask | None) -> MultiColumn:
        return cls(flats[0], starts, mask)

    def __getitem__(self, row: int) -> Array | None:
        if self.mask is not None and not self.mask[row]:
            return None
        return self.values[self.offsets[row] : self.offsets[row + 1]]

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


QueryVector: TypeAlias = NDArray[Any] | Sequence[float] | Sequence[Sequence[float]] | SparseVector
"""What is searched with: ``(dim,)``, ``(m, dim)`` for a multi-vector, or a sparse vector."""


def _join_masks(columns: Sequence[_Masked]) -> Mask | None:
    if all(column.mask is None for column in columns):
        return None
    return np.concatenate([column.present for column in columns])


def _component_type(example: Array | None) -> Any:
    """float16, int8 and uint8 stay as they are; everything else becomes float32."""
    kept = (np.float16, np.int8, np.uint8)
    return example.dtype if example is not None and example.dtype in kept else np.float32


def non_finite_rows(column: Column) -> Iterator[int]:
    """Row numbers that hold a NaN or an infinity."""
    if column.values.dtype.kind != "f" or np.isfinite(column.values).all():
        return
    bad = np.flatnonzero(~np.isfinite(column.values).reshape(len(column.values), -1).all(axis=1))
    if isinstance(column, RaggedColumn):
        # The row that owns each line of the flat array: the last one that begins at or before it.
        bad = np.unique(np.searchsorted(column.starts, bad, side="right") - 1)
        bad = bad[(bad >= 0) & (bad < len(column))]
    yield from bad.tolist()
