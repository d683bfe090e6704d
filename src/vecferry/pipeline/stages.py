"""Stages without state: reject what no store can search, apply the user's own function, conform to
the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np

from vecferry.errors import PlanError, VecferryError
from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    MultiColumn,
    RecordBatch,
    RecordId,
    SparseColumn,
    VectorField,
    VectorRecord,
)
from vecferry.ports import InFlightBatch, Rejection

TransformFunction: TypeAlias = (
    Callable[[VectorRecord], VectorRecord | None] | Callable[[RecordBatch], RecordBatch]
)


class RejectNonFinite:
    """Reject records whose vectors hold NaN or infinities: no store can search them."""

    name = "check"
    ordered = False
    parallel = True

    def apply(self, inflight: InFlightBatch) -> InFlightBatch:
        bad = inflight.batch.non_finite()
        return inflight.reject(bad, self.name, "a vector holds NaN or infinity") if bad else inflight

    def replay_copy(self) -> RejectNonFinite:
        return self


class Transform:
    """The user's ``transform``: a function of a `VectorRecord`, or of a whole `RecordBatch`.

    It must give the same result for the same record at any time, since a resume and the verification
    call it again. Returning ``None`` drops the record. Raising rejects it; of a batch, it ends the job.

    Args:
        function: takes a record, or a batch if its parameter is annotated as `RecordBatch` or it has
            the attribute ``takes_batch = True``.
    """

    name = "transform"
    ordered = False

    def __init__(self, function: TransformFunction) -> None:
        self.function: Callable[[Any], Any] = function
        hints = getattr(function, "__annotations__", {}).values()
        self._by_batch = getattr(function, "takes_batch", False) or any(
            hint in (RecordBatch, "RecordBatch", "vf.RecordBatch") for hint in list(hints)[:1]
        )

    def apply(self, inflight: InFlightBatch) -> InFlightBatch:
        if self._by_batch:
            result = self.function(inflight.batch)
            if not isinstance(result, RecordBatch):
                raise PlanError(f"transform returned {type(result).__name__}, not a RecordBatch")
            dropped = max(0, len(inflight.batch) - len(result))
            return inflight.carry(result, dropped=_add(inflight.dropped, self.name, dropped))
        kept: list[VectorRecord] = []
        failed: list[Rejection] = []
        for row, record in enumerate(inflight.batch.records()):
            try:
                new = self.function(record)
            except VecferryError:
                raise
            except Exception as error:  # noqa: BLE001 - the caller's own function, about this record
                reason = f"{type(error).__name__}: {error}"
                failed.append(Rejection(inflight.batch.take([row]), self.name, reason, error))
            else:
                kept += [] if new is None else [new]
        dropped = len(inflight.batch) - len(kept) - len(failed)
        return inflight.carry(
            _joined(kept),
            dropped=_add(inflight.dropped, self.name, dropped),
            rejections=(*inflight.rejections, *failed),
        )

    def replay_copy(self) -> Transform:
        return self


def _joined(records: list[VectorRecord]) -> RecordBatch:
    if any(not isinstance(record, VectorRecord) for record in records):
        raise PlanError("transform must return a VectorRecord, or None to drop the record")
    try:
        return RecordBatch.from_records(records)
    except (TypeError, ValueError) as error:
        raise PlanError(f"transform returned records that make no batch: {error}") from error


class ConformToSchema:
    """Bring batches into the target's schema: rename fields, leave out others, round components.

    Records with a component beyond what the target's type holds are rejected.

    Args:
        schema: of the target.
        names: source field → target field; fields that are not named are left out.
        keep_text: false where the target has no place for text.
        uuid_ids: whether the target's ids are UUIDs and nothing else.
    """

    name = "fit"
    ordered = False
    parallel = True

    def __init__(
        self,
        schema: CollectionSchema,
        names: Mapping[str, str],
        *,
        keep_text: bool = True,
        uuid_ids: bool = False,
    ) -> None:
        self._fields = {field.name: field for field in schema.fields}
        self._names = dict(names)
        self.keeps_text = keep_text
        self._uuids = uuid_ids

    def apply(self, inflight: InFlightBatch) -> InFlightBatch:
        for old, new in self._names.items():
            held = self._fields[new]
            column = inflight.batch.vectors.get(old)
            if column is not None and not _fits(column, held):
                reason = f"vector {old!r} has another width than field {new!r}, which holds {held.dim}"
                rows = np.flatnonzero(column.present).tolist()
                inflight = inflight.reject(rows, self.name, reason) if rows else inflight
                continue
            beyond = _beyond(column, np.dtype(held.dtype.numpy))
            if beyond:
                reason = f"a component of vector {old!r} is beyond what {held.dtype} holds"
                inflight = inflight.reject(beyond, self.name, reason)
        inflight = self._with_uuids(inflight) if self._uuids else inflight
        batch = inflight.batch
        vectors = {
            new: _cast(batch.vectors[old], self._fields[new])
            for old, new in self._names.items()
            if old in batch.vectors and _fits(batch.vectors[old], self._fields[new])
        }
        sparse: dict[str, SparseColumn] = {
            new: batch.sparse_vectors[old]
            for old, new in self._names.items()
            if old in batch.sparse_vectors
        }
        texts = batch.texts if self.keeps_text else None
        return inflight.carry(batch.replace(vectors=vectors, sparse_vectors=sparse, texts=texts))

    def _with_uuids(self, inflight: InFlightBatch) -> InFlightBatch:
        """Texts that spell a UUID become one, where the target's ids are UUIDs."""
        ids = [_as_uuid(id_) for id_ in inflight.batch.id_list]
        bad = [row for row, id_ in enumerate(ids) if id_ is None]
        if bad:
            reason = f"the id {inflight.batch.id_list[bad[0]]!r} is no UUID, which the target's ids are"
            inflight = inflight.reject(bad, self.name, reason)
        return inflight.carry(inflight.batch.replace(ids=[id_ for id_ in ids if id_ is not None]))

    def replay_copy(self) -> ConformToSchema:
        return self


def _as_uuid(id_: RecordId) -> UUID | None:
    if isinstance(id_, UUID):
        return id_
    try:
        found = UUID(id_) if isinstance(id_, str) else None
    except ValueError:
        return None
    return found if found is not None and str(found) == str(id_).lower() else None


def _fits(column: DenseColumn | MultiColumn, field: VectorField) -> bool:
    """Whether the column has the width of the field. A column without values has none."""
    width = field.dtype.width(field.dim) if field.dim else None
    return not width or not len(column.values) or column.values.shape[1] == width


def _cast(column: DenseColumn | MultiColumn, field: VectorField) -> DenseColumn | MultiColumn:
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
