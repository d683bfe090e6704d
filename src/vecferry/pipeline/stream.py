"""The stream of one job: read ▸ stages ▸ write, with a checkpoint behind the writes.

Reading runs ahead in a thread, and so does every stage that waits for somebody else. Where the source has
partitions and the sink takes several writers, as many lanes run side by side; each partition has its
cursor, so that what is written is the same for any number of lanes.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vecferry.core.concurrency import merged, prefetch
from vecferry.core.retry import Backoff, OnRetry, RetryDetails, RetryPolicy, reopened
from vecferry.errors import (
    FatalStoreError,
    JobStopped,
    RejectedRecord,
    RequestTooLargeError,
    RetryableError,
    TimedOutError,
    VecferryError,
)
from vecferry.model import CollectionSchema, RecordBatch, Where, encode_id
from vecferry.pipeline.job import Counters, JobFile, Progressing, add_counts
from vecferry.pipeline.quarantine import Quarantine
from vecferry.ports import (
    CommitHook,
    Cursor,
    Fields,
    InFlightBatch,
    Rejection,
    Rewindable,
    ShouldStop,
    Sink,
    Source,
    Stage,
    never_stop,
)

log = logging.getLogger("vecferry.job")

COMMIT_EVERY = 1.0
"""Seconds between two commits of the cursor. What was acknowledged since is written again after a
crash, which changes nothing."""

_BATCH_BYTES = 4 << 20
_SMALLEST, _LARGEST = 64, 8192
_GROW_AFTER = 16  # successful writes before a shrunken request may double again

Busy = Callable[[str, float], None]


def _untimed(_: str, __: float) -> None:
    """The clock of a stream whose stages nobody times."""


# -- read -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """How a source is read."""

    batch_size: int = 1024
    fields: Fields = Fields.ALL
    where: Where | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    should_stop: ShouldStop = never_stop


def batch_size_for(schema: CollectionSchema) -> int:
    """Rows that make about 4 MiB of vectors and text, between 64 and 8,192."""
    row = 512 + sum((f.dim or 256) * 4 for f in schema.fields)
    return max(_SMALLEST, min(_LARGEST, _BATCH_BYTES // row))


def read_batches(source: Source, parts: Sequence[Progressing], reading: Reading) -> Iterator[InFlightBatch]:
    """The batches of all unfinished partitions, in order; a broken scan is re-opened at its last good
    cursor.

    A partition ends with an empty batch whose cursor is that of its last one, so that its end can be
    committed.
    """
    for part in parts:
        if not part.done:
            yield from _read_partition(source, part, reading)


def _read_partition(source: Source, part: Progressing, reading: Reading) -> Iterator[InFlightBatch]:
    cursor = part.cursor
    backoff = reading.retry.backoff(should_stop=reading.should_stop, on_retry=partial(_tell, "reading"))

    def open_stream(after: Any, size: int) -> Iterator[InFlightBatch]:
        batches = source.scan(
            partition=part.partition,
            after=after,
            batch_size=size,
            fields=reading.fields,
            where=reading.where,
        )
        for batch in batches:
            yield InFlightBatch(batch, part.partition, batch.cursor, len(batch))

    for inflight in reopened(open_stream, cursor, reading.batch_size, backoff):
        cursor = inflight.cursor
        yield inflight
    yield InFlightBatch(RecordBatch(ids=[]), part.partition, cursor, 0, last=True)


def _tell(what: str, details: RetryDetails) -> None:
    log.warning("%s failed, again in %.1f s: %s", what, details.wait, details.error)


# -- stages -----------------------------------------------------------------------------------


def flow(
    source: Source,
    parts: Sequence[Progressing],
    reading: Reading,
    stages: Sequence[Stage],
    busy: Busy = _untimed,
) -> Iterator[InFlightBatch]:
    """The batches as they come out of the last stage; reading and waiting stages run ahead."""
    stop = reading.should_stop
    inflights: Iterator[InFlightBatch] = prefetch(
        lambda: read_batches(source, parts, reading), name="read", busy=busy, should_stop=stop
    )
    for stage in stages:
        step = _applied(stage, inflights, busy)
        if getattr(stage, "waits", False):
            inflights = prefetch(lambda step=step: step, name=stage.name, should_stop=stop)  # type: ignore[misc]
        else:
            inflights = step
    return inflights


def _applied(stage: Stage, inflights: Iterator[InFlightBatch], busy: Busy) -> Iterator[InFlightBatch]:
    for inflight in inflights:
        if not len(inflight.batch):
            yield inflight
            continue
        start = time.perf_counter()
        result = stage.apply(inflight)
        busy(stage.name, time.perf_counter() - start)
        yield _accounted(stage, inflight, result)


def _accounted(stage: Stage, before: InFlightBatch, after: InFlightBatch) -> InFlightBatch:
    """``after``, with the rows that the stage made besides; a row that is gone unsaid is a fault."""
    gone = sum(after.dropped.values()) - sum(before.dropped.values())
    refused = sum(len(r.batch) for r in after.rejections[len(before.rejections) :])
    more = len(after.batch) - (len(before.batch) - gone - refused)
    if more < 0:
        raise FatalStoreError(
            f"stage {stage.name} lost {-more:,} record(s) without a word; this is a fault of vecferry or "
            "of a "
            "stage from outside, please report it"
        )
    added = {**after.added, stage.name: after.added.get(stage.name, 0) + more} if more else after.added
    return after.carry(after.batch, added=added)


# -- write ------------------------------------------------------------------------------------


@dataclass
class Writer:
    """Writes batches: retries a passing fault, shrinks what is too large, singles out what is bad.

    After `write` every row is acknowledged, or among the rejections it returns.

    Args:
        sink: prepared.
        retry: bounds of the waits; they begin anew with every piece that is acknowledged.
        on_retry: told before each wait.
    """

    sink: Sink
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    should_stop: ShouldStop = never_stop
    on_retry: OnRetry = lambda _: None
    written: int = 0
    bytes: int = 0
    _limit: int | None = None
    _smooth: int = 0

    def write(self, batch: RecordBatch) -> list[Rejection]:
        """Write all rows, and return those the sink refuses, each with its own reason.

        Raises:
            RetryableError, FatalStoreError: when a bound of the retry is reached, or at once.
            JobStopped: if a wait was cut short.
        """
        rejections: list[Rejection] = []
        backoff = self.retry.backoff(should_stop=self.should_stop, on_retry=self._tell)
        queue = [batch]
        while queue:
            piece = queue.pop()
            if not len(piece):
                continue
            if self._limit and len(piece) > self._limit:
                queue += reversed(list(piece.split(self._limit)))
                continue
            queue += reversed(self._attempt(piece, rejections, backoff))
        return rejections

    def _attempt(
        self, piece: RecordBatch, rejections: list[Rejection], backoff: Backoff
    ) -> list[RecordBatch]:
        """Write one piece; return the pieces that remain to be written."""
        try:
            receipt = self.sink.write(piece)
        except RequestTooLargeError as error:
            backoff.reset()
            if len(piece) == 1:
                rejections.append(Rejection(piece, "write", f"too large by itself: {error}"))
                return []
            return self._halve(piece)
        except TimedOutError as error:
            backoff.wait(error)
            return self._halve(piece)
        except RetryableError as error:
            backoff.wait(error)
            return [piece]
        except RejectedRecord as error:
            backoff.reset()
            return self._single_out(piece, error, rejections)
        backoff.reset()
        self.written += receipt.written
        self.bytes += receipt.bytes or piece.nbytes
        reasons = {encode_id(id_): reason for id_, reason in receipt.refused}
        for row, id_ in enumerate(piece.ids.encoded() if reasons else ()):
            if id_ in reasons:
                rejections.append(Rejection(piece.take([row]), "write", reasons[id_]))
        self._grow()
        return []

    def _tell(self, details: RetryDetails) -> None:
        _tell("writing", details)
        self.on_retry(details)

    def _single_out(
        self, piece: RecordBatch, error: RejectedRecord, rejections: list[Rejection]
    ) -> list[RecordBatch]:
        """Split until the bad record stands alone, or at once where the sink names it."""
        named = {*map(repr, error.ids)}
        bad = [i for i, id_ in enumerate(piece.id_list) if repr(id_) in named]
        if not bad and len(piece) > 1:
            return list(piece.split((len(piece) + 1) // 2))
        bad = bad or [0]
        rejections.append(Rejection(piece.take(bad), "write", str(error)))
        rest = set(bad)
        return [piece.take([i for i in range(len(piece)) if i not in rest])]

    def _halve(self, piece: RecordBatch) -> list[RecordBatch]:
        self._limit, self._smooth = max(1, len(piece) // 2), 0
        log.info("writing at most %d records at a time", self._limit)
        return list(piece.split(self._limit))

    def _grow(self) -> None:
        self._smooth += 1
        if self._limit and self._smooth >= _GROW_AFTER:
            self._limit, self._smooth = self._limit * 2, 0


# -- checkpoint -------------------------------------------------------------------------------


@dataclass(frozen=True)
class RejectionPolicy:
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
    """Remembers what was acknowledged and commits it with the cursors, now and then. One for all lanes."""

    file: JobFile
    sink: Sink
    quarantine: Quarantine
    counters: Counters
    policy: RejectionPolicy
    _cursors: dict[str, Cursor] = field(default_factory=dict)
    _done: list[str] = field(default_factory=list)
    _hooks: list[CommitHook] = field(default_factory=list)
    _last: float = field(default_factory=time.monotonic)
    _partial: bool = False

    def enter(self) -> None:
        """A batch is about to be written: until it is acknowledged the target may hold a part of it."""
        self._partial = True

    def acknowledge(
        self, inflight: InFlightBatch, rejections: Sequence[Rejection], *, written: int = 0, size: int = 0
    ) -> None:
        """Everything of the batch is in the target, as ``written`` records, or among the rejections."""
        if rejections and not self.policy.quarantine:
            first = rejections[0]
            raise RejectedRecord(_reason(first), ids=first.batch.id_list) from first.cause
        counters = self.counters
        counters.written += written
        counters.bytes += size
        for rejection in rejections:
            self.quarantine.add(rejection)
            counters.rejected += len(rejection.batch)
        counters.read += inflight.read
        add_counts(counters.dropped, inflight.dropped)
        add_counts(counters.added, inflight.added)
        self._cursors[inflight.partition.key] = inflight.cursor
        self._hooks += inflight.commit_hooks
        if inflight.last:
            self._done.append(inflight.partition.key)
        self._partial = False
        self.policy.check(counters)

    def commit(self, *, force: bool = False) -> None:
        """Commit, if it is time. Marks and the quarantine are made durable before the cursor is.

        After a fault in the middle of a batch a log is not marked: its end would stand behind rows that
        the cursor does not, and the resume would write them twice.
        """
        if not force and time.monotonic() - self._last < COMMIT_EVERY:
            return
        if self._partial and isinstance(self.sink, Rewindable):
            return
        values: dict[str, Any] = {"quarantine_length": self.quarantine.sync()}
        if isinstance(self.sink, Rewindable):
            values["mark"] = self.sink.mark()
        self.file.commit(self.counters, cursors=self._cursors, done=self._done, hooks=self._hooks, **values)
        self._cursors, self._done, self._hooks = {}, [], []
        self._last = time.monotonic()


def _reason(rejection: Rejection) -> str:
    ids = rejection.batch.id_list
    shown = ", ".join(repr(id_) for id_ in ids[:3]) + (", …" if len(ids) > 3 else "")
    return (
        f"{rejection.stage} rejected {len(ids)} record(s) ({shown}): {rejection.reason}; "
        'mend them, or pass on_error="quarantine" to put them aside'
    )


# -- the whole --------------------------------------------------------------------------------


@dataclass
class Stream:
    """Everything that writes the records of one job.

    Attributes:
        writers: of the sink; one lane each. Several only where no stage needs the order of the source.
        busy: told the seconds that each step took.
    """

    source: Source
    reading: Reading
    stages: Sequence[Stage]
    writers: Sequence[Sink]
    checkpoint: Checkpointer
    busy: Busy

    def run(self, parts: Sequence[Progressing]) -> Iterator[Counters]:
        """Write every batch; yields the counters after each, for progress.

        Raises:
            JobStopped: when ``should_stop`` turns true; everything acknowledged so far is committed.
        """
        checkpoint = self.checkpoint
        try:
            yield from self._lanes(parts) if len(self.writers) > 1 else self._lane(self.writers[0], parts)
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

    def _lane(self, sink: Sink, parts: Sequence[Progressing]) -> Generator[Counters, None, None]:
        """One after the other, in this thread."""
        writer = Writer(sink, self.reading.retry, should_stop=self.reading.should_stop)
        inflights = flow(self.source, parts, self.reading, self.stages, self.busy)
        checkpoint = self.checkpoint
        try:
            for inflight in inflights:
                start = time.perf_counter()
                written, size = writer.written, writer.bytes
                checkpoint.enter()
                rejections = [*inflight.rejections, *writer.write(inflight.batch)]
                checkpoint.acknowledge(
                    inflight, rejections, written=writer.written - written, size=writer.bytes - size
                )
                checkpoint.commit()
                self.busy("write", time.perf_counter() - start)
                yield checkpoint.counters
                if self.reading.should_stop():
                    raise JobStopped("stopped")
        finally:
            inflights.close()  # type: ignore[attr-defined]

    def _lanes(self, parts: Sequence[Progressing]) -> Generator[Counters, None, None]:
        """Partitions side by side: each lane takes the next that nobody has begun. One thread counts."""
        free = deque(self.writers)
        lock = threading.Lock()
        stages = [_guarded(stage) for stage in self.stages]

        def lane(part: Progressing) -> Iterator[tuple[InFlightBatch, list[Rejection], int, int]]:
            with lock:
                sink = free.popleft()
            writer = Writer(sink, self.reading.retry, should_stop=self.reading.should_stop)
            try:
                for inflight in flow(self.source, [part], self.reading, stages, self.busy):
                    start = time.perf_counter()
                    written, size = writer.written, writer.bytes
                    rejections = [*inflight.rejections, *writer.write(inflight.batch)]
                    self.busy("write", time.perf_counter() - start)
                    yield inflight, rejections, writer.written - written, writer.bytes - size
            finally:
                with lock:
                    free.append(sink)

        lanes = [partial(lane, part) for part in parts if not part.done]
        done = merged(lanes, workers=len(self.writers), name="lane", should_stop=self.reading.should_stop)
        try:
            for inflight, rejections, written, size in done:
                self.checkpoint.acknowledge(inflight, rejections, written=written, size=size)
                self.checkpoint.commit()
                yield self.checkpoint.counters
                if self.reading.should_stop():
                    raise JobStopped("stopped")
        finally:
            done.close()


@dataclass
class _Guarded:
    """A stage that one lane at a time may call."""

    inner: Stage
    name: str
    ordered: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def apply(self, inflight: InFlightBatch) -> InFlightBatch:
        with self.lock:
            return self.inner.apply(inflight)

    def replay_copy(self) -> Stage:
        return self.inner.replay_copy()


def _guarded(stage: Stage) -> Stage:
    return stage if getattr(stage, "parallel", False) else _Guarded(stage, stage.name)


def lanes_for(stages: Sequence[Stage], parts: Sequence[Progressing], workers: int) -> int:
    """How many lanes may run: one, where a stage needs the order of the source, or commits with it."""
    if any(stage.ordered for stage in stages):
        return 1
    return max(1, min(workers, sum(not part.done for part in parts)))
