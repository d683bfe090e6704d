"""What travels between the stages of a stream, and what a stage is.

    read ▸ transform ▸ dedupe ▸ embed ▸ write

One batch of the source is one `InFlightBatch` all the way, so that the source's cursor is committed exactly
when everything made from that batch has been acknowledged by the target. A stage may change, drop or
multiply its rows, and leaves with it what must be stored in the same transaction as the cursor.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable
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
from vecferry.ports import Cursor, Fields, Partition, Source

CommitHook: TypeAlias = Callable[[sqlite3.Connection], None]
"""Runs inside the transaction that commits the in-flight batch's cursor to the job file."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Records that did not go on: one or more rows, the stage that refused them, and why."""

    batch: RecordBatch
    stage: str
    reason: str
    cause: Exception | None = None


@dataclass(frozen=True, slots=True)
class InFlightBatch:
    """A batch on its way.

    Attributes:
        batch: the rows as they are now.
        partition: the part of the source they come from.
        cursor: where the source stands after this inflight.
        read: how many source records it accounts for.
        dropped: rows removed on purpose, by stage (``where``, ``transform``, ``dedupe``).
        added: rows made besides, by stage (a text that was split).
        rejections: rows refused so far.
        commit_hooks: to be run when the in-flight batch's cursor is committed.
        last: whether the partition ends here; such an in-flight batch is empty.
    """

    batch: RecordBatch
    partition: Partition
    cursor: Cursor
    read: int
    dropped: dict[str, int] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)
    rejections: tuple[Rejection, ...] = ()
    commit_hooks: tuple[CommitHook, ...] = ()
    last: bool = False

    def carry(self, batch: RecordBatch, **changes: Any) -> InFlightBatch:
        """The same in-flight batch with other rows."""
        return replace(self, batch=batch, **changes)

    def drop(self, stage: str, keep: list[int]) -> InFlightBatch:
        """Only the rows ``keep``; the others are counted as dropped by ``stage``."""
        gone = len(self.batch) - len(keep)
        if not gone:
            return self
        dropped = {**self.dropped, stage: self.dropped.get(stage, 0) + gone}
        return replace(self, batch=self.batch.take(keep), dropped=dropped)

    def reject(self, rows: list[int], stage: str, reason: str) -> InFlightBatch:
        """Without ``rows``, which are kept as rejections."""
        bad = set(rows)
        keep = [i for i in range(len(self.batch)) if i not in bad]
        rejection = Rejection(self.batch.take(sorted(bad)), stage, reason)
        return replace(self, batch=self.batch.take(keep), rejections=(*self.rejections, rejection))


@runtime_checkable
class Stage(Protocol):
    """One step of the stream. ``ordered`` stages see the batches in the order of the source.

    A stage that mostly waits for somebody else (a model, a server) also has ``waits = True`` and
    gets a thread of its own. One that may be called from several threads at once has ``parallel = True``.
    Empty batches are not shown to stages.
    """

    name: str
    ordered: bool

    def apply(self, inflight: InFlightBatch) -> InFlightBatch:
        """What goes on. Called from one thread at a time.

        Raises:
            RejectedRecord, RetryableError, FatalStoreError, JobStopped: as the ports do.
        """
        ...

    def replay_copy(self) -> Stage:
        """A stage that makes the same decisions from the beginning, for the verification's own pass."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A stage whose decisions depend on batches before: its state lives in the job file."""

    def restore(self, connection: sqlite3.Connection) -> None:
        """Make the tables if they are not there, and load what was committed."""
        ...


@runtime_checkable
class LooksAtTarget(Protocol):
    """A stage that also takes in what the target held before the job."""

    @property
    def against_target(self) -> bool:
        """Whether this configuration does."""
        ...

    def bind_target(self, target: Source) -> None:
        """Take it in, once in the life of a job; called after `Stateful.restore`, before the first pass."""
        ...


@runtime_checkable
class Prepass(Protocol):
    """A stage that must see the whole source once before the first inflight (keep the newest)."""

    @property
    def prepass_fields(self) -> Fields | None:
        """What the first pass reads; ``None`` if this configuration needs no first pass."""
        ...

    def prepass(self, inflights: Iterator[InFlightBatch]) -> None:
        """Look at everything, write nothing to the target."""
        ...


# -- stages without state ---------------------------------------------------------------------

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
        self._keep_text = keep_text
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
        texts = batch.texts if self._keep_text else None
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
