"""Stages without state: check what comes, fit it to the target, apply the user's own function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from vecferry.errors import PlanError, SchemaMismatchError, VecferryError
from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    MultiColumn,
    RecordBatch,
    SparseColumn,
    VectorField,
    VectorRecord,
)
from vecferry.pipeline.stage import Parcel, Rejection

Transform: TypeAlias = Callable[[VectorRecord], VectorRecord | None] | Callable[[RecordBatch], RecordBatch]


class Check:
    """Reject records whose vectors hold NaN or infinities: no store can search them."""

    name = "check"
    ordered = False

    def apply(self, parcel: Parcel) -> Parcel:
        bad = parcel.batch.non_finite()
        return parcel.reject(bad, self.name, "a vector holds NaN or infinity") if bad else parcel

    def twin(self) -> Check:
        return self


class Apply:
    """The user's ``transform``: a function of a `VectorRecord`, or of a whole `RecordBatch`.

    It must give the same result for the same record at any time, since a resume and the verification
    call it again. Returning ``None`` drops the record. Raising rejects it; of a batch, it ends the job.

    Args:
        function: takes a record, or a batch if its parameter is annotated as `RecordBatch` or it has
            the attribute ``takes_batch = True``.
    """

    name = "transform"
    ordered = False

    def __init__(self, function: Transform) -> None:
        self.function: Callable[[Any], Any] = function
        hints = getattr(function, "__annotations__", {}).values()
        self._by_batch = getattr(function, "takes_batch", False) or any(
            hint in (RecordBatch, "RecordBatch", "vf.RecordBatch") for hint in list(hints)[:1]
        )

    def apply(self, parcel: Parcel) -> Parcel:
        if self._by_batch:
            result = self.function(parcel.batch)
            if not isinstance(result, RecordBatch):
                raise PlanError(f"transform returned {type(result).__name__}, not a RecordBatch")
            dropped = max(0, len(parcel.batch) - len(result))
            return parcel.carry(result, dropped=_add(parcel.dropped, self.name, dropped))
        kept: list[VectorRecord] = []
        failed: list[Rejection] = []
        for row, record in enumerate(parcel.batch.records()):
            try:
                new = self.function(record)
            except VecferryError:
                raise
            except Exception as error:  # noqa: BLE001 - the caller's own function, about this record
                reason = f"{type(error).__name__}: {error}"
                failed.append(Rejection(parcel.batch.take([row]), self.name, reason, error))
            else:
                kept += [] if new is None else [new]
        dropped = len(parcel.batch) - len(kept) - len(failed)
        return parcel.carry(
            _joined(kept),
            dropped=_add(parcel.dropped, self.name, dropped),
            rejections=(*parcel.rejections, *failed),
        )

    def twin(self) -> Apply:
        return self


def _joined(records: list[VectorRecord]) -> RecordBatch:
    if any(not isinstance(record, VectorRecord) for record in records):
        raise PlanError("transform must return a VectorRecord, or None to drop the record")
    try:
        return RecordBatch.from_records(records)
    except (TypeError, ValueError) as error:
        raise PlanError(f"transform returned records that make no batch: {error}") from error


class Fit:
    """Bring batches into the target's schema: rename fields, leave out others, round components.

    Records with a component beyond what the target's type holds are rejected.

    Args:
        schema: of the target.
        names: source field → target field; fields that are not named are left out.
        keep_text: false where the target has no place for text.
    """

    name = "fit"
    ordered = False

    def __init__(
        self, schema: CollectionSchema, names: Mapping[str, str], *, keep_text: bool = True
    ) -> None:
        self._fields = {field.name: field for field in schema.fields}
        self._names = dict(names)
        self._keep_text = keep_text

    def apply(self, parcel: Parcel) -> Parcel:
        for old, new in self._names.items():
            dtype = self._fields[new].dtype
            beyond = _beyond(parcel.batch.vectors.get(old), np.dtype(dtype.numpy))
            if beyond:
                reason = f"a component of vector {old!r} is beyond what {dtype} holds"
                parcel = parcel.reject(beyond, self.name, reason)
        batch = parcel.batch
        vectors = {
            new: _cast(batch.vectors[old], self._fields[new])
            for old, new in self._names.items()
            if old in batch.vectors
        }
        sparse: dict[str, SparseColumn] = {
            new: batch.sparse_vectors[old]
            for old, new in self._names.items()
            if old in batch.sparse_vectors
        }
        texts = batch.texts if self._keep_text else None
        return parcel.carry(batch.replace(vectors=vectors, sparse_vectors=sparse, texts=texts))

    def twin(self) -> Fit:
        return self


def _cast(column: DenseColumn | MultiColumn, field: VectorField) -> DenseColumn | MultiColumn:
    width = field.dtype.width(field.dim) if field.dim else None
    if width and column.values.shape[1] != width and len(column.values):
        raise SchemaMismatchError(
            f"a batch brings {column.values.shape[1]} components for field {field.name!r}, "
            f"which holds {width}"
        )
    wanted = np.dtype(field.dtype.numpy)
    if column.values.dtype == wanted:
        return column
    rounds = wanted.kind in "iu" and column.values.dtype.kind == "f"
    values = (np.rint(column.values) if rounds else column.values).astype(wanted)
    if isinstance(column, MultiColumn):
        return MultiColumn(values, column.offsets, column.mask)
    return DenseColumn(values, column.mask)


def _beyond(column: DenseColumn | MultiColumn | None, wanted: np.dtype[Any]) -> list[int]:
    """The rows with a component that ``wanted`` cannot hold; NaN and infinities are not looked at."""
    if column is None or np.can_cast(column.values.dtype, wanted):
        return []
    values = column.values
    if wanted.kind == "f":
        with np.errstate(over="ignore"):
            bad = np.isfinite(values) & ~np.isfinite(values.astype(wanted))
    else:
        limits = np.iinfo(wanted)
        bad = (np.rint(values) < limits.min) | (np.rint(values) > limits.max)
    lines = np.flatnonzero(bad.any(axis=1))
    if isinstance(column, MultiColumn):
        lines = np.unique(np.searchsorted(column.offsets, lines, side="right") - 1)
    rows: list[int] = lines.tolist()
    return rows


def _add(counts: dict[str, int], stage: str, n: int) -> dict[str, int]:
    return {**counts, stage: counts.get(stage, 0) + n} if n else counts
