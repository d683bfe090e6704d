"""Run a job in this process: stream ─▶ finish ─▶ verify ─▶ publish, each step resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from vecferry.connecting import Collection
from vecferry.core.retry import RetryDetails
from vecferry.errors import JobStopped, NotFoundError, PlanError
from vecferry.model import CollectionSchema, RecordBatch, encode_id
from vecferry.pipeline.checkpoint import Counters, JobState, Progressing, describe_state
from vecferry.pipeline.publishing import new_tag
from vecferry.pipeline.quarantine import Quarantine, quarantined_ids
from vecferry.pipeline.read import Reading
from vecferry.pipeline.stages import (
    ConformToSchema,
    LooksAtTarget,
    Prepass,
    RejectNonFinite,
    Stage,
    Stateful,
    Transform,
)
from vecferry.pipeline.stream import Checkpointer, Clock, Tolerance, flow, run_stream
from vecferry.pipeline.write import Writer
from vecferry.ports import OnProgress, Progress, Publishable, Rewindable, ShouldStop, WriteMode

log = logging.getLogger("vecferry.job")

T = TypeVar("T")

MOST_PARTITIONS = 16
BATCHES_A_PARTITION = 8
"""A source is asked for about one partition in so many batches, and for no more than the most."""

VERIFY_SAVED_EVERY = 2.0
"""Seconds between two points from which a verification goes on."""


@dataclass
class Job:
    """One migration, ready to run.

    Attributes:
        settings: those that must not change between runs (see `Settings.identity`).
        stages: made anew for each run, in order.
        verify: compares what the stream should have written with a source; ``None`` switches it off.
    """

    source: Collection
    target: Collection
    schema: CollectionSchema
    mode: WriteMode
    settings: Mapping[str, Any]
    reading: Reading
    tolerance: Tolerance
    stages: Sequence[Stage]
    folder: Path
    total: int | None = None
    resume: bool = True
    publish: bool = True
    verify: Callable[..., Any] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What the report is made of."""

    counters: Counters
    verification: Any
    published: bool
    resumed: str | None
    seconds: float


class LocalRun:
    """One run of a job in threads of this process."""

    def __init__(self, job: Job, state: JobState, on_progress: OnProgress, should_stop: ShouldStop) -> None:
        self.job, self.state = replace(job, reading=replace(job.reading, should_stop=should_stop)), state
        self._on_progress, self._should_stop = on_progress, should_stop
        self._start = time.monotonic()
        self.resumed = self._begin_or_resume()
        self.counters = state.counters
        self._tag = str(state.get("tag"))
        store = job.target.store
        self._staged = isinstance(store, Publishable) and store.stages(job.mode)
        self._sink: Any = None
        self._rows: int | None = None  # what `expected` brought when it was read to its end

    def run(self) -> Outcome:
        """All steps that are not done yet.

        Raises:
            JobStopped: when ``should_stop`` turned true; the next run goes on.
        """
        try:
            if self.state.stage == "stream":
                self._stream()
                self.state.advance("finish")
            if self.state.stage == "finish":
                self._tell("finish")
                self._patiently("finish", lambda: self._open_sink(WriteMode.RESUME).finish())
                self.state.advance("verify")
            verification = self._verify()
            published = self._publish(verification)
        except JobStopped as stopped:
            if type(stopped) is not JobStopped:
                raise  # a budget names its own next move
            raise JobStopped(f"{stopped} (vecferry jobs resume {self.state.folder.name})") from None
        finally:
            self._close_sink()
        return Outcome(self.counters, verification, published, self.resumed, time.monotonic() - self._start)

    # -- begin --------------------------------------------------------------------------------

    def _begin_or_resume(self) -> str | None:
        job, state = self.job, self.state
        if state.begun and job.resume:
            state.check_settings(job.settings)
            if state.stage == "failed":
                state.advance("verify")
            found = describe_state(
                {"counters": vars(state.counters), "total": state.get("total"), "stage": state.stage}
            )
            log.info("job %s goes on: %s", state.folder.name, found)
            return found
        if state.begun:
            self._discard(str(state.get("tag")))
        share = job.reading.batch_size * BATCHES_A_PARTITION
        want = max(1, min(MOST_PARTITIONS, (job.total or 0) // share))
        parts = self._patiently("partitions", lambda: job.source.store.partitions(want))
        fixed = {
            **job.fixed,
            "tag": new_tag(),
            "schema": job.schema.model_dump(mode="json"),
            "total": job.total,
            "counters": vars(Counters()),
        }
        (state.folder / "quarantine.jsonl").unlink(missing_ok=True)
        for left in state.folder.glob("verify.sqlite*"):
            left.unlink()
        state.begin(job.settings, fixed, parts)
        log.info("job %s begins: %s → %s", state.folder.name, job.source.url, job.target.url)
        return None

    def _discard(self, tag: str) -> None:
        store = self.job.target.store
        if isinstance(store, Publishable):
            store.discard(tag)

    # -- stream -------------------------------------------------------------------------------

    def _stream(self) -> None:
        job, state = self.job, self.state
        sink = self._prepare()
        clock = Clock(self.counters.seconds)
        quarantine = Quarantine(state.folder / "quarantine.jsonl", state.get("quarantine_length") or 0)
        checkpoint = Checkpointer(state, sink, quarantine, self.counters, job.tolerance)
        writer = Writer(sink, should_stop=self._should_stop)
        for place, stage in enumerate(job.stages):
            if isinstance(stage, Stateful):
                stage.restore(state.connection)
            if isinstance(stage, LooksAtTarget) and stage.against_target and job.target.store.exists():
                stage.bind_target(job.target.store)
            self._prepass(stage, job.stages[:place])
        inflights = flow(job.source.store, state.partitions(), job.reading, job.stages, clock)
        try:
            for _ in run_stream(inflights, writer, checkpoint, clock, should_stop=self._should_stop):
                self._tell("stream", self.counters.read, job.total)
        finally:
            inflights.close()  # type: ignore[attr-defined]
            quarantine.close()

    def _prepare(self) -> Any:
        """The sink, prepared, and rewound to the last committed mark."""
        sink = self._patiently("prepare", self._open_prepared)
        if isinstance(sink, Rewindable):
            sink.rewind(self.state.get("mark"))
        self.state.put(prepared="yes")
        return sink

    def _open_prepared(self) -> Any:
        """Prepare the sink for the first time, or go on with what was prepared.

        A run that died inside `prepare` may have left the collection behind. Where the sink is a shadow or
        a log of its own, it begins anew; elsewhere the collection that is there is this job's, since the
        plan has looked before.
        """
        prepared = self.state.get("prepared")
        if prepared == "yes":
            return self._open_sink(WriteMode.RESUME)
        store = self.job.target.store
        if prepared == "begun" and not self._staged and not isinstance(store, Rewindable):
            try:
                return self._open_sink(WriteMode.RESUME)
            except NotFoundError:
                pass
        self.state.put(prepared="begun")
        try:
            return self._open_sink(self.job.mode)
        except PlanError:
            self.state.put(prepared="no")  # it is somebody else's that is there
            raise

    def _open_sink(self, mode: WriteMode) -> Any:
        if self._sink is None:
            store = self.job.target.store
            sink = store.shadow(self._tag) if self._staged else store
            sink.prepare(self.job.schema, mode)
            self._sink = sink
        return self._sink

    def _close_sink(self) -> None:
        if self._sink is not None and self._staged:
            self._sink.close()
        self._sink = None

    def _prepass(self, stage: Stage, before: Sequence[Stage]) -> None:
        """Let a stage see the whole source as it will come to it: behind the user's transform."""
        if not isinstance(stage, Prepass) or stage.prepass_fields is None:
            return
        changing = [earlier.replay_copy() for earlier in before if isinstance(earlier, Transform)]
        fields = self.job.reading.fields if changing else stage.prepass_fields
        reading = replace(self.job.reading, fields=fields)
        stage.prepass(flow(self.job.source.store, self._all_parts(), reading, changing))

    # -- verify -------------------------------------------------------------------------------

    def expected(self) -> Iterator[RecordBatch]:
        """What the target should hold, derived from the source anew by twins of the stages."""
        stages = [stage.replay_copy() for stage in self.job.stages]
        for place, stage in enumerate(stages):
            self._prepass(stage, stages[:place])
        # The twins reject again what these stages rejected; another record of that id may have passed.
        again = (RejectNonFinite.name, Transform.name, ConformToSchema.name)
        quarantined = quarantined_ids(self.state.folder / "quarantine.jsonl", but_of=again)
        rejected = set(map(encode_id, quarantined))
        rows = 0
        for inflight in flow(self.job.source.store, self._all_parts(), self.job.reading, stages):
            if len(inflight.batch):
                batch = _without(inflight.batch, rejected)
                rows += len(batch)
                yield batch
        self._rows = rows

    def _all_parts(self) -> list[Progressing]:
        return [Progressing(part.partition) for part in self.state.partitions()]

    def _verify(self) -> Any:
        """Compare, going on where a run that was stopped or killed left off."""
        if self.job.verify is None or self.state.stage not in ("verify", "publish"):
            return None
        self._tell("verify", 0, self.counters.written)
        verification = self.job.verify(
            self.expected,
            self._view(),
            upserted=self.job.mode is WriteMode.UPSERT,
            on_progress=lambda done: self._tell("verify", done, self.counters.written),
            should_stop=self._should_stop,
            state=self.state.get("verifying"),
            on_state=lambda value: self.state.put(verifying=value),
            state_every=VERIFY_SAVED_EVERY,
            spool_path=self._spool_path,
        )
        if self._should_stop() and not verification.ok:
            raise JobStopped("stopped while verifying; run the same call again to go on")
        verification = self._count_collisions(verification)
        self.state.put(verified=bool(verification.ok), verifying=None)
        return verification

    def _count_collisions(self, proof: Any) -> Any:
        """The proof, less the records that a transform gave the id of another: one of each is there."""
        if not proof.ok or not any(isinstance(stage, Transform) for stage in self.job.stages):
            return proof  # the plan has looked at the ids of the source itself
        rows = sum(map(len, self.expected())) if self._rows is None else self._rows
        lost = rows - proof.expected_count
        if not lost:
            return proof
        note = (
            f"{lost:,} record(s) overwrote or gave way to another, since transform= gives both one id; "
            "let it give each its own, or pass dedupe='id' to keep the first of each"
        )
        found = {"missing_count": lost, "expected_count": rows, "notes": (*proof.notes, note)}
        return proof.model_copy(update={"ok": False, **found})

    @property
    def _spool_path(self) -> Path:
        return self.state.folder / "verify.sqlite"

    def _view(self) -> Any:
        """The target as the verification reads it: the shadow as long as it is not published."""
        store = self.job.target.store
        if self._staged and self._tag not in _published_tags(store):
            self._close_sink()
            self._sink = store.shadow(self._tag)
            return self._sink
        return store

    # -- publish ------------------------------------------------------------------------------

    def _publish(self, verification: Any) -> bool:
        if verification is not None and not verification.ok:
            self.state.advance("failed")
            return not self._staged
        self.state.advance("publish")
        if self._staged and not self.job.publish:
            return False
        self._close_sink()
        if self._staged:
            self._tell("publish")
            self._patiently("publish", lambda: self.job.target.store.publish(self._tag))
        self.state.advance("done")
        return True

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        """Call again after a passing fault. All that is called here is as good twice as once."""

        def tell(details: RetryDetails) -> None:
            log.warning("%s failed, again in %.1f s: %s", what, details.wait, details.error)

        policy = self.job.reading.retry
        return policy.call(call, should_stop=self._should_stop, on_retry=tell)

    def _tell(self, stage: str, done: int = 0, total: int | None = None) -> None:
        counters = self.counters
        seconds = time.monotonic() - self._start
        self._on_progress(
            Progress(stage, done, total, counters.written, counters.rejected, counters.bytes, seconds)
        )


def _published_tags(store: Any) -> set[str]:
    try:
        return {version.tag for version in store.versions() if version.live}
    except NotFoundError:
        return set()


def _without(batch: RecordBatch, encoded: set[str]) -> RecordBatch:
    if not encoded:
        return batch
    return batch.take([i for i, id_ in enumerate(batch.id_list) if encode_id(id_) not in encoded])
