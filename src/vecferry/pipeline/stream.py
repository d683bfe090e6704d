"""Run the stream of one job: read ▸ stages ▸ write, with a checkpoint behind the writes."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from vecferry.core.concurrency import prefetch
from vecferry.errors import FatalStoreError, JobStopped, RejectedRecord, VecferryError
from vecferry.pipeline.checkpoint import Counters, JobState, Progressing
from vecferry.pipeline.quarantine import Quarantine
from vecferry.pipeline.read import Reading, read_parcels
from vecferry.pipeline.stages import CommitHook, InFlightBatch, Rejection, Stage
from vecferry.pipeline.write import Writer
from vecferry.ports import Cursor, Rewindable, ShouldStop, Sink, Source, never_stop

COMMIT_EVERY = 1.0
"""Seconds between two commits of the cursor. What was acknowledged since is written again after a
crash, which changes nothing."""


@dataclass(frozen=True)
class Tolerance:
    """What to do with a record that cannot go on: stop, or put it aside up to a bound.

    ``limit`` is a number of records (int), a share of the records read so far (float below 1, judged
    once 1,000 were read), or ``None``.
    """

    quarantine: bool = False
    limit: int | float | None = None

    def check(self, counters: Counters) -> None:
        """Raises: FatalStoreError: when the bound is exceeded."""
        if self.limit is None or not counters.rejected:
            return
        allowed = self.limit
        if isinstance(allowed, float) and allowed < 1:
            allowed *= max(counters.read, 1000)
        if counters.rejected > allowed:
            raise FatalStoreError(
                f"{counters.rejected:,} records were rejected, more than max_rejected={self.limit} allows; "
                "see the quarantine file, then raise the bound or mend the source, and run again"
            )


@dataclass
class Checkpointer:
    """Remembers what was acknowledged and commits it with the cursors, now and then."""

    state: JobState
    sink: Sink
    quarantine: Quarantine
    counters: Counters
    tolerance: Tolerance
    _cursors: dict[str, Cursor] = field(default_factory=dict)
    _done: list[str] = field(default_factory=list)
    _effects: list[CommitHook] = field(default_factory=list)
    _last: float = field(default_factory=time.monotonic)
    _partial: bool = False

    def enter(self) -> None:
        """A inflight is about to be written: until it is acknowledged the target may hold a part of it."""
        self._partial = True

    def acknowledge(
        self, inflight: InFlightBatch, rejections: Sequence[Rejection], *, written: int = 0, size: int = 0
    ) -> None:
        """Everything of ``inflight`` is in the target, as ``written`` records, or among the rejections."""
        if rejections and not self.tolerance.quarantine:
            first = rejections[0]
            raise RejectedRecord(_reason(first), ids=first.batch.id_list) from first.cause
        self.counters.written += written
        self.counters.bytes += size
        for rejection in rejections:
            self.quarantine.add(rejection)
            self.counters.rejected += len(rejection.batch)
        self.counters.read += inflight.read
        self.counters.drop(inflight.dropped)
        self._cursors[inflight.partition.key] = inflight.cursor
        self._effects += inflight.commit_hooks
        if inflight.last:
            self._done.append(inflight.partition.key)
        self._partial = False
        self.tolerance.check(self.counters)

    def commit(self, *, force: bool = False) -> None:
        """Commit, if it is time. Marks and the quarantine are made durable before the cursor is.

        After a fault in the middle of a batch a log is not marked: its end would stand behind rows that
        the cursor does not, and the resume would write them twice.
        """
        if not force and time.monotonic() - self._last < COMMIT_EVERY:
            return
        if self._partial and isinstance(self.sink, Rewindable):
            return
        values = {"quarantine_length": self.quarantine.sync()}
        if isinstance(self.sink, Rewindable):
            values["mark"] = self.sink.mark()
        self.state.commit(
            self.counters, cursors=self._cursors, done=self._done, commit_hooks=self._effects, **values
        )
        self._cursors, self._done, self._effects = {}, [], []
        self._last = time.monotonic()


def _reason(rejection: Rejection) -> str:
    ids = rejection.batch.id_list
    shown = ", ".join(repr(id_) for id_ in ids[:3]) + (", …" if len(ids) > 3 else "")
    return (
        f"{rejection.stage} rejected {len(ids)} record(s) ({shown}): {rejection.reason}; "
        'mend them, or pass on_error="quarantine" to put them aside'
    )


@dataclass
class Clock:
    """Seconds that each stage was busy."""

    seconds: dict[str, float]

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def flow(
    source: Source,
    parts: Sequence[Progressing],
    reading: Reading,
    stages: Sequence[Stage],
    clock: Clock | None = None,
) -> Iterator[InFlightBatch]:
    """The inflights as they come out of the last stage; reading and waiting stages run ahead."""
    clock = clock or Clock({})
    stop = reading.should_stop
    inflights: Iterator[InFlightBatch] = prefetch(
        lambda: read_parcels(source, parts, reading), name="read", busy=clock.add, should_stop=stop
    )
    for stage in stages:
        step = _timed(stage, inflights, clock)
        if getattr(stage, "waits", False):
            inflights = prefetch(lambda step=step: step, name=stage.name, should_stop=stop)  # type: ignore[misc]
        else:
            inflights = step
    return inflights


def _timed(stage: Stage, inflights: Iterator[InFlightBatch], clock: Clock) -> Iterator[InFlightBatch]:
    for inflight in inflights:
        if not len(inflight.batch):
            yield inflight
            continue
        start = time.perf_counter()
        result = stage.apply(inflight)
        clock.add(stage.name, time.perf_counter() - start)
        yield result


def run_stream(
    inflights: Iterator[InFlightBatch],
    writer: Writer,
    checkpoint: Checkpointer,
    clock: Clock,
    *,
    should_stop: ShouldStop = never_stop,
) -> Iterator[Counters]:
    """Write every inflight; yields the counters after each, for progress.

    Raises:
        JobStopped: when ``should_stop`` turns true; everything acknowledged so far is committed.
    """
    try:
        for inflight in inflights:
            start = time.perf_counter()
            _write(inflight, writer, checkpoint)
            checkpoint.commit()
            clock.add("write", time.perf_counter() - start)
            yield checkpoint.counters
            if should_stop():
                raise JobStopped("stopped")
    except JobStopped as error:
        checkpoint.commit(force=True)
        if type(error) is not JobStopped:
            raise  # a budget names its own next move
        done = checkpoint.counters.written
        raise JobStopped(f"stopped after {done:,} records; run the same call again to go on") from None
    except VecferryError:
        # What was acknowledged before the fault need not be done again. The fault is the news, though.
        with suppress(VecferryError, OSError, sqlite3.Error):
            checkpoint.commit(force=True)
        raise
    checkpoint.commit(force=True)


def _write(inflight: InFlightBatch, writer: Writer, checkpoint: Checkpointer) -> None:
    written, bytes_ = writer.written, writer.bytes
    checkpoint.enter()
    rejections = [*inflight.rejections, *writer.write(inflight.batch)]
    checkpoint.acknowledge(
        inflight, rejections, written=writer.written - written, size=writer.bytes - bytes_
    )
