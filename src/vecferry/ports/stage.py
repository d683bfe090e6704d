"""What travels between the stages of a stream, and what a stage is.

    read ▸ transform ▸ dedupe ▸ embed ▸ write

One batch of the source is one `InFlightBatch` all the way, so that the source's cursor is committed exactly
when everything made from that batch has been acknowledged by the target. A stage may change, drop or
multiply its rows, and leaves with it what must be stored in the same transaction as the cursor.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

from vecferry.model import RecordBatch
from vecferry.ports.source import Cursor, Fields, Partition, Source

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
