"""`Migration`: one call of `migrate`, immutable; and `Run`: one carrying out of it, from any state to an
end.

source ─▶ plan ─▶ stream ( read ▸ transform ▸ dedupe ▸ embed ▸ write ) ─▶ finish ─▶ verify ─▶ publish
"""

from __future__ import annotations

import csv
import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

from vecferry.connecting import Collection
from vecferry.core.durable import replacing, write_durably
from vecferry.core.home import home
from vecferry.core.retry import RetryDetails
from vecferry.errors import (
    CorruptDataError,
    EmbedderExhausted,
    JobChangedError,
    JobStopped,
    NotFoundError,
    PlanError,
    RetryableError,
)
from vecferry.model import CollectionSchema, id_type
from vecferry.pipeline.assembly import (
    SURVEYED,
    EmbedSurvey,
    StageSet,
    assemble,
    check_declared,
    choose_embedder,
    dedupes_ids,
    embed_stage,
    embedded_field,
    id_rule_of_backup,
    source_space,
)
from vecferry.pipeline.endpoints import (
    Endpoint,
    absolute_place,
    absolute_url,
    backup_url,
    is_ephemeral,
    refuse_one_place,
)
from vecferry.pipeline.job import Counters, JobFile, JobState, describe_state, job_id, peek_job
from vecferry.pipeline.plan import Plan, PlanInputs, build_plan, declare_space, stamp_of
from vecferry.pipeline.profile import HEAD, SourceProfile
from vecferry.pipeline.publish import live_tags, new_tag, swap_in
from vecferry.pipeline.quarantine import Quarantine
from vecferry.pipeline.settings import CallSettings
from vecferry.pipeline.stream import (
    Checkpointer,
    Reading,
    RejectionPolicy,
    Stream,
    batch_size_for,
    lanes_for,
)
from vecferry.pipeline.verify import (
    SAVED_EVERY,
    Expected,
    describe_change,
    reconcile,
    run_prepass,
    source_faults,
)
from vecferry.ports import (
    ConcurrentSink,
    Fields,
    KeepsOwn,
    Kept,
    LooksAtTarget,
    MapsIds,
    OnProgress,
    Progress,
    Publishable,
    Rewindable,
    Settling,
    ShouldStop,
    Source,
    Stateful,
    WriteMode,
)
from vecferry.reporting import Report
from vecferry.reporting.logs import job_log
from vecferry.verifying import End, Receipt, Verification, Verifier, compare

log = logging.getLogger("vecferry.job")

T = TypeVar("T")

MOST_PARTITIONS = 16
BATCHES_A_PARTITION = 8
"""A source is asked for about one partition in so many batches, and for no more than the most."""


@dataclass(frozen=True)
class Look:
    """What was seen when both sides were open.

    Attributes:
        source: its URL.
        folder: where the job's state lives; ``None`` if one side does not outlive this process anyway.
        unfinished: what is stored of an unfinished job of this pair.
        updated: when what is stored of the job was last changed.
        choice: the embedder of the whole job.
        report: of a job that has come to its end and whose caller never heard of it.
    """

    source: str
    folder: Path | None
    inputs: PlanInputs
    unfinished: Mapping[str, Any] = field(default_factory=dict)
    updated: str | None = None
    choice: Any = None
    notes: tuple[str, ...] = ()
    estimate: Mapping[str, Any] = field(default_factory=dict)
    report: Report | None = None


@dataclass(frozen=True)
class Migration:
    """One source, one target, one set of settings.

    Attributes:
        call: the arguments as JSON, for ``vecferry jobs resume``; ``None`` if they hold objects.
        alternative: the first of several embedders to try.
    """

    source: Endpoint
    target: Endpoint
    settings: CallSettings
    call: Mapping[str, Any] | None = None
    alternative: int = 0

    # -- plan ---------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Open both sides, compare, close. Nothing is written.

        The first run takes what the plan has seen, if the source is still the same; every other run looks
        at both sides anew.
        """
        with self._opened() as (source, target):
            refuse_one_place(source, target)
            look = self._look(source, target)
        inputs = look.inputs
        return Plan(
            source=source.url,
            target=target.url,
            mode=self.settings.mode,
            source_schema=inputs.source_schema,
            target_schema=inputs.target_schema,
            names=inputs.names,
            count=inputs.count(self.settings),
            losses=inputs.losses,
            notes=(*inputs.notes, *look.notes),
            estimate=dict(look.estimate),
            resuming=describe_state(look.unfinished) if look.unfinished else None,
            refusal=inputs.refusal,
            _runner=partial(self._run, look.folder, iter([look])),
        )

    @contextmanager
    def _opened(self, source: Endpoint | None = None) -> Iterator[tuple[Collection, Collection]]:
        with (source or self.source).opened() as origin, self.target.opened() as goal:
            yield origin, goal

    def _look(self, source: Collection, target: Collection) -> Look:
        settings = self.settings
        folder = self._folder(source, target)
        stored = peek_job(folder) if folder and settings.resume else {}
        unfinished = stored if stored.get("stage") not in (None, JobState.DONE) else {}
        if finished := self._finished(stored, source, target):
            return finished
        found = settings.retry.call(source.describe)
        space = source_space(settings, found)
        fingerprint = unfinished.get("embed_space")
        choice = choose_embedder(settings, fingerprint=fingerprint, start=self.alternative)
        looking = settings.model_copy(update={"cache": False})
        stage = embed_stage(looking, choice, declare_space(found, space)) if choice else None
        if unfinished:
            _check_space(unfinished, stage)
        survey = EmbedSurvey(stage) if stage else None
        inputs = build_plan(
            source,
            target,
            settings,
            space=space,
            embedded=embedded_field(stage, found),
            fixed=CollectionSchema(**unfinished["schema"]) if unfinished else None,
            dedupes_ids=dedupes_ids(settings),
            head=SURVEYED if survey else HEAD,
            **({"on_head": survey.add} if survey else {}),
        )
        notes: list[str] = []
        estimate = inputs.profile.estimate(inputs.target_schema, inputs.count(settings))
        if stage and survey:
            notes = [str(choice), *check_declared(stage, survey.first, settings)]
            estimate |= survey.estimate(settings, inputs.count(settings))
        updated = stored.get("updated")
        return Look(source.url, folder, inputs, unfinished, updated, choice, tuple(notes), estimate)

    def _finished(self, stored: Mapping[str, Any], source: Collection, target: Collection) -> Look | None:
        """The end that a job came to, where its process died before anybody heard of it, and nothing has
        changed since: target, source and settings."""
        if (
            stored.get("stage") != JobState.DONE
            or stored.get("delivered", True)
            or not stored.get("report")
        ):
            return None
        same = stored.get("settings") == _as_json(self._identity(source.url, target.url))
        if not same or stored.get("target_stamp") != _as_json(stamp_of(target, self.settings.retry)):
            return None
        if (stored.get("stamps") or {}).get("verdict") != _as_json(stamp_of(source, self.settings.retry)):
            return None
        schema = CollectionSchema(**stored["schema"])
        inputs = PlanInputs(
            schema, schema, stored.get("names") or {}, (), (), SourceProfile(), keep_text=True
        )
        note = f"job {stored['id']} has done this already; its report stands"
        report = stored_report(stored["report"])
        return Look(source.url, Path(stored["folder"]), inputs, notes=(note,), report=report)

    def _folder(self, source: Collection, target: Collection) -> Path | None:
        if self.settings.folder is not None:
            return self.settings.folder
        if is_ephemeral(source) or is_ephemeral(target):
            return None
        return home() / "jobs" / job_id(*(_keyed(side) for side in (source, target)))

    def _identity(self, source: str, target: str) -> dict[str, Any]:
        """What a resume must find unchanged."""
        sides = {"source": absolute_url(source), "target": absolute_url(target)}
        return {**sides, **self.settings.identity()}

    # -- run ----------------------------------------------------------------------------------

    def _run(
        self,
        folder: Path | None,
        once: Iterator[Look],
        planned: Plan,
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> Report:
        """Open both sides again and carry the plan out."""
        with ExitStack() as stack:
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vecferry-")))
            file = stack.enter_context(JobFile(folder))
            stack.enter_context(job_log(folder))
            source, target = stack.enter_context(self._opened())
            look = self._current(next(once, None), source, target)
            if look.report is not None:
                file.put(delivered=True)
                return look.report
            if look.inputs.refusal:
                raise PlanError(look.inputs.refusal)
            backup = self._back_up(file) if self.settings.backup is not None else None
            if backup:
                source = stack.enter_context(Endpoint(backup).opened())
            stages = self._stages(look, folder)
            stack.callback(stages.close)
            stages.listen(should_stop)
            run = Run(self, look, source, target, stages, file, on_progress, should_stop, backup=backup)
            try:
                return run.run()
            except EmbedderExhausted as error:
                again = self._restarted(look, target, error)
        return again.plan().run(on_progress, should_stop=should_stop)

    def _current(self, look: Look | None, source: Collection, target: Collection) -> Look:
        """``look`` if it still says how things are; else both sides are looked at anew."""
        if look is not None:
            stored = peek_job(look.folder) if look.folder else {}
            now = stamp_of(source, self.settings.retry)
            if look.inputs.stamp == now and look.updated == stored.get("updated"):
                return look
        refuse_one_place(source, target)
        return self._look(source, target)

    def _stages(self, look: Look, folder: Path) -> StageSet:
        inputs, settings = look.inputs, self.settings
        embed = embed_stage(settings, look.choice, inputs.source_schema, folder) if look.choice else None
        return assemble(
            settings,
            inputs.names,
            inputs.target_schema,
            keep_text=inputs.keep_text,
            uuid_ids=inputs.uuid_ids,
            embed=embed,
            folder=folder,
        )

    # -- restart and backup -------------------------------------------------------------------

    def _restarted(self, look: Look, target: Collection, error: EmbedderExhausted) -> Migration:
        """The whole job anew with the next alternative, into a fresh target: never a mixture."""
        models = self.settings.embed
        left = isinstance(models, list | tuple) and look.choice.index + 1 < len(models)
        if self.settings.on_exhausted != "restart" or not left:
            raise error
        log.warning("starting anew with the next embedding model: %s", error)
        changes: dict[str, Any] = {"resume": False}
        store = target.store
        if self.settings.mode == "create" and isinstance(store, Publishable):
            # Where creation writes in place, what was begun must give way to a fresh collection.
            changes |= {} if store.stages(WriteMode.CREATE) else {"mode": "replace"}
        settings = self.settings.model_copy(update=changes)
        return replace(self, settings=settings, alternative=look.choice.index + 1)

    def _back_up(self, file: JobFile) -> str:
        """Copy the source to a timestamped file, once in the life of the job; returns its URL."""
        made = file.get("backup") if file.begun and self.settings.resume else None
        if made:
            return str(made)
        url = backup_url(absolute_place(str(self.settings.backup)))
        settings = CallSettings(
            where=self.settings.where,
            dedupe=id_rule_of_backup(self.settings),
            state_dir=file.folder / "backup",
            retry_seconds=self.settings.retry_seconds,
        )
        Migration(self.source, Endpoint(url), settings).plan().run().check()
        log.info("backed up to %s", url)
        return url


class Run:
    """One run of a job in this process. Each step that is done already is passed over."""

    def __init__(
        self,
        migration: Migration,
        look: Look,
        source: Collection,
        target: Collection,
        stages: StageSet,
        file: JobFile,
        on_progress: OnProgress,
        should_stop: ShouldStop,
        *,
        backup: str | None,
    ) -> None:
        self.settings, self.migration, self.look = migration.settings, migration, look
        self.source, self.target, self.stages, self.file = source, target, stages, file
        self.backup = backup
        self.mode = self.settings.write_mode
        self._on_progress, self._should_stop = on_progress, should_stop
        self._start = time.monotonic()
        have = {f.name for f in look.inputs.source_schema.fields}
        self.reading = Reading(
            self.settings.batch_size or batch_size_for(look.inputs.target_schema),
            Fields(vectors=tuple(name for name in look.inputs.names if name in have)),
            self.settings.where,
            self.settings.retry,
            should_stop,
        )
        self.faults: list[str] = []
        self.notes: list[str] = []
        self._sink: Any = None
        self._answer: Report | None = None
        self._account: Verifier | None = None
        store = target.store
        self._builds_shadow = isinstance(store, Publishable) and self._patiently(
            "stages", lambda: store.stages(self.mode)
        )
        self.resumed = self._begin_or_resume()
        self.counters = file.counters
        self._clock = _Clock(self.counters.seconds)

    @property
    def _tag(self) -> str:
        return str(self.file.get("tag"))

    def run(self) -> Report:
        """All steps that are not done yet.

        Raises:
            JobStopped: when ``should_stop`` turned true; the next run goes on.
        """
        file, job = self.file, self.file.folder.name
        if self._answer is not None:
            return self._answer
        try:
            if file.state is JobState.STREAM:
                self._stream()
                file.advance(JobState.FINISH)
            if file.state is JobState.FINISH:
                self._tell("finish")
                with self._clock.time("index"):
                    self._patiently("finish", lambda: self._open_sink(WriteMode.RESUME).finish())
                file.advance(JobState.VERIFY)
            verification = self._verify()
            published = self._publish(verification)
        except JobStopped as stopped:
            if type(stopped) is not JobStopped:
                raise  # a budget names its own next move
            raise JobStopped(f"{stopped} (vecferry jobs resume {job})") from None
        except RetryableError as error:
            error.args = (f"{error} (vecferry jobs resume {job})",)
            raise
        finally:
            self._close_sink()
        return self._report(verification, published)

    # -- begin --------------------------------------------------------------------------------

    def _begin_or_resume(self) -> str | None:
        file, settings = self.file, self.settings
        identity = self.migration._identity(self.look.source, self.target.url)
        if file.begun and settings.resume:
            file.check_settings(identity)
            self._check_source()
            lost = self._what_is_lost()
            if lost is None:
                if file.state is JobState.FAILED:
                    self._answer = self._same_failure()
                    if self._answer is None:
                        file.advance(JobState.VERIFY)
                found = describe_state(
                    {"counters": vars(file.counters), "total": file.get("total"), "stage": file.state}
                )
                log.info("job %s goes on: %s", file.folder.name, found)
                return found
            log.warning("job %s begins anew: %s", file.folder.name, lost)
            self.notes.append(f"begun anew: {lost}")
        if file.begun:
            self._discard(str(file.get("tag")))
        self._begin(identity)
        return None

    def _begin(self, identity: Mapping[str, Any]) -> None:
        file, inputs = self.file, self.look.inputs
        total = inputs.count(self.settings)
        rows = self.reading.batch_size * BATCHES_A_PARTITION
        want = max(1, min(MOST_PARTITIONS, (total or 0) // rows))
        if self.settings.workers > 1:
            want = max(
                want, min(MOST_PARTITIONS, self.settings.workers, (total or 0) // self.reading.batch_size)
            )
        parts = self._patiently("partitions", lambda: self.source.store.partitions(want))
        embed = self.stages.embed
        if embed is not None:
            embed.begin_anew()
        fixed = {
            "source": identity["source"],
            "target": identity["target"],
            "call": self.migration.call,
            "embed_space": None if embed is None else embed.space.fingerprint,
            "backup": self.backup,
            "names": inputs.names,
            "keep_text": inputs.keep_text,
            "uuid_ids": inputs.uuid_ids,
            "tag": new_tag(),
            "schema": inputs.target_schema.model_dump(mode="json"),
            "losses": [loss.model_dump(mode="json") for loss in inputs.losses],
            "total": total,
            "counters": vars(Counters()),
            "stamps": {"begin": self._stamp(self.source)},
        }
        (file.folder / "quarantine.jsonl").unlink(missing_ok=True)
        shutil.rmtree(file.folder / "verify", ignore_errors=True)
        file.begin(identity, fixed, parts)
        log.info("job %s begins: %s → %s", file.folder.name, self.source.url, self.target.url)

    def _check_source(self) -> None:
        """A file that is another one than when the job began cannot be gone on with.

        Raises:
            JobChangedError: naming what has changed.
        """
        stamps = self.file.get("stamps") or {}
        before, now = stamps.get("begin"), self._stamp(self.source)
        if not before or before == now:
            return
        job, change = self.file.folder.name, describe_change(before, now)
        said = f"the source has changed since job {job} began ({change})"
        if now.get("kind") == "files":
            raise JobChangedError(f"{said}; start anew with resume=False (--no-resume)")
        log.warning("%s", said)
        self.file.put(stamps={**stamps, "resumed": now})

    def _what_is_lost(self) -> str | None:
        """Whether what was written of the job is still there; in words, if it is not."""
        if not self.file.counters.written or self.file.get("prepared") != "yes":
            return None
        store = self.target.store
        staged = self._builds_shadow and self._tag not in live_tags(store)
        view = store.shadow(self._tag) if staged else store
        if isinstance(view, Rewindable) and self.file.state is JobState.STREAM:
            return None  # `rewind` tells
        try:
            gone = self._patiently("count", view.count) == 0
        except (NotFoundError, CorruptDataError, FileNotFoundError):
            gone = True
        finally:
            if staged:
                view.close()
        return (
            f"the {self.file.counters.written:,} records written before are gone from the target"
            if gone
            else None
        )

    def _same_failure(self) -> Report | None:
        """The negative report, where both sides are known to be as they were when it was written."""
        stamps, stored = self.file.get("stamps") or {}, self.file.get("report")
        now = _as_json(self._target_stamp())
        known = now.get("kind") == (stamps.get("verdict") or {}).get("kind") == "files"
        if not stored or not known or now != self.file.get("target_stamp"):
            return None
        return stored_report(stored) if stamps["verdict"] == self._stamp(self.source) else None

    def _target_stamp(self) -> dict[str, Any]:
        """Of what was verified: the shadow as long as it is not published."""
        store = self.target.store
        if not self._builds_shadow or self._tag in live_tags(store):
            return stamp_of(self.target, self.settings.retry)
        view = store.shadow(self._tag)
        try:
            return stamp_of(Collection(view, self.target.url), self.settings.retry)
        finally:
            view.close()

    def _discard(self, tag: str) -> None:
        store = self.target.store
        if isinstance(store, Publishable):
            store.discard(tag)

    # -- stream -------------------------------------------------------------------------------

    def _stream(self) -> None:
        file, stages = self.file, self.stages.stages
        sink = self._prepare()
        quarantine = Quarantine(file.folder / "quarantine.jsonl", file.get("quarantine_length") or 0)
        policy = RejectionPolicy(self.settings.on_error == "quarantine", self.settings.max_rejected)
        checkpoint = Checkpointer(file, sink, quarantine, self.counters, policy)
        for place, stage in enumerate(stages):
            if isinstance(stage, Stateful):
                stage.restore(file.connection)
            if isinstance(stage, LooksAtTarget) and stage.against_target and self.target.store.exists():
                stage.bind_target(self.target.store)
            run_prepass(self.source, file, self.reading, stage, stages[:place])
        parts = file.partitions()
        writers = self._writers(sink, lanes_for(stages, parts, self.settings.workers))
        stream = Stream(self.source.store, self.reading, stages, writers, checkpoint, self._clock.add)
        try:
            with self._clock.time("stream"):
                for _ in stream.run(parts):
                    self._tell("stream", self.counters.read, file.get("total"))
        finally:
            quarantine.close()
            for writer in writers:
                if writer is not sink and hasattr(writer, "close"):
                    writer.close()

    @staticmethod
    def _writers(sink: Any, lanes: int) -> list[Any]:
        if lanes < 2 or not isinstance(sink, ConcurrentSink) or isinstance(sink, Rewindable):
            return [sink]
        return list(sink.writers(lanes)) or [sink]

    def _prepare(self) -> Any:
        """The sink, prepared, and rewound to the last committed mark."""
        sink = self._patiently("prepare", self._open_prepared)
        if isinstance(sink, Rewindable):
            try:
                sink.rewind(self.file.get("mark"))
            except CorruptDataError as error:
                return self._prepare_anew(error)
        self.file.put(prepared="yes")
        return sink

    def _prepare_anew(self, error: CorruptDataError) -> Any:
        """What was staged is gone, or a part of it: everything is read and written again."""
        log.warning("job %s begins anew: %s", self.file.folder.name, error)
        self.notes.append(f"begun anew: {error}")
        self._close_sink()
        self._discard(self._tag)
        self._begin(self.file.get("settings"))
        self.counters, self.resumed = self.file.counters, None
        self._clock = _Clock(self.counters.seconds)
        sink = self._patiently("prepare", self._open_prepared)
        sink.rewind(None)
        self.file.put(prepared="yes")
        return sink

    def _open_prepared(self) -> Any:
        """Prepare the sink for the first time, or go on with what was prepared.

        A run that died inside `prepare` may have left the collection behind. Where the sink is a shadow or
        a log of its own, it begins anew; elsewhere the collection that is there is this job's, since the
        plan has looked before.
        """
        prepared = self.file.get("prepared")
        if prepared == "yes":
            return self._open_sink(WriteMode.RESUME)
        store = self.target.store
        if prepared == "begun" and not self._builds_shadow and not isinstance(store, Rewindable):
            try:
                return self._open_sink(WriteMode.RESUME)
            except NotFoundError:
                pass
        self.file.put(prepared="begun")
        try:
            return self._open_sink(self.mode)
        except PlanError:
            self.file.put(prepared="no")  # it is somebody else's that is there
            raise

    def _open_sink(self, mode: WriteMode) -> Any:
        if self._sink is None:
            store = self.target.store
            sink = store.shadow(self._tag) if self._builds_shadow else store
            schema = self.look.inputs.target_schema
            sink.prepare(
                schema if self.stages.embed is None else self.stages.embed.identified(schema), mode
            )
            self._sink = sink
        return self._sink

    def _close_sink(self) -> None:
        if self._sink is not None and self._builds_shadow:
            self._sink.close()
        self._sink = None

    # -- verify -------------------------------------------------------------------------------

    def _verify(self) -> Verification | None:
        """Compare, going on where a run that was stopped or killed left off."""
        if not self.settings.verify or self.file.state not in (JobState.VERIFY, JobState.PUBLISH):
            return None
        file, upserted = self.file, self.mode is WriteMode.UPSERT
        self._tell("verify", 0, self.counters.written)
        with self._clock.time("proof"):
            proof = self._patiently("verify", lambda: self._compare(upserted=upserted))
        if self._should_stop() and not proof.ok:
            raise JobStopped("stopped while verifying; run the same call again to go on")
        self._settle()
        proof, faults = reconcile(proof, self.counters, upserted=upserted)
        stamps = {
            **(file.get("stamps") or {}),
            "verdict": self._stamp(self.source),
        }
        found, notes = source_faults(stamps, self.counters, filtered=self.settings.where is not None)
        self.faults = [*faults, *found]
        self.notes += notes
        file.put(
            verified=bool(proof.ok and not self.faults), verifying=None, stamps=stamps, faults=self.faults
        )
        return proof

    def _compare(self, *, upserted: bool) -> Verification:
        file = self.file
        return compare(
            Expected(self.source, self.reading, self.stages.stages, file),
            self.look.inputs.target_schema,
            self._view(),
            allow_extra=upserted,
            kept=self._kept() if upserted else None,
            workers=self.settings.workers,
            min_overlap=self.settings.min_overlap,
            on_progress=lambda done: self._tell("verify", done, self.counters.written),
            should_stop=self._should_stop,
            state=file.get("verifying"),
            on_state=lambda value: file.put(verifying=value),
            state_every=SAVED_EVERY,
            folder=file.folder / "verify",
            reference=self.source.store,
            on_account=self._keep_account,
        )

    def _settle(self) -> None:
        """Wait for the indexes that the target builds by itself; the proof has not waited for them."""
        view = self._view()
        if isinstance(view, Settling):
            with self._clock.time("index"):
                if self._patiently("settle", view.settle) is None:
                    self.notes.append("the target is still building its index")

    def _kept(self) -> Kept | None:
        store = self.target.store
        return store.kept(self.look.inputs.target_schema) if isinstance(store, KeepsOwn) else None

    def _keep_account(self, account: Verifier) -> None:
        self._account = account

    def _write_receipt(self, proof: Verification | None) -> None:
        """Beside the report: by it the target can be held later, without the source.

        After an upsert the target may hold more than was compared, and its sums are not those of the proof.
        """
        path = self.file.folder / "receipt.json"
        if self._account is None or proof is None or not proof.ok or self.mode is WriteMode.UPSERT:
            path.unlink(missing_ok=True)
            return
        counters = self.counters
        counts = {"read": counters.read, "written": counters.written, "rejected": counters.rejected}
        Receipt.of(
            proof,
            self._account,
            End(url=self.look.source, collection=self.look.inputs.source_schema),
            End(url=self.target.url, collection=self.look.inputs.target_schema),
            counts={
                **counts,
                "dropped": sum(counters.dropped.values()),
                "added": sum(counters.added.values()),
            },
            losses=self.look.inputs.losses,
        ).write(path)

    def _view(self) -> Any:
        """The target as the verification reads it: the shadow as long as it is not published."""
        store = self.target.store
        if self._builds_shadow and self._tag not in live_tags(store):
            self._close_sink()
            self._sink = store.shadow(self._tag)
            return self._sink
        return store

    # -- publish ------------------------------------------------------------------------------

    def _publish(self, verification: Verification | None) -> bool:
        file = self.file
        if verification is not None and (not verification.ok or self.faults):
            if file.state is JobState.PUBLISH:
                file.advance(JobState.VERIFY)
            file.advance(JobState.FAILED)
            return not self._builds_shadow
        if file.state is not JobState.PUBLISH:
            file.advance(JobState.PUBLISH)
        if self._builds_shadow and self.settings.publish == "manual":
            return False
        self._close_sink()
        if self._builds_shadow:
            self._tell("publish")
            job = file.folder.name
            self._patiently("publish", lambda: swap_in(self.target, self._tag, self.mode, job))
        return True

    # -- report -------------------------------------------------------------------------------

    def _report(self, verification: Verification | None, published: bool) -> Report:
        """The report, kept with the job before anybody sees it; the job is done with it."""
        file, counters = self.file, self.counters
        counters.seconds = self._clock.seconds
        quarantine = file.folder / "quarantine.jsonl"
        if self.look.folder:
            self._write_receipt(verification)
        report = Report(
            source=self.look.source,
            target=self.target.url,
            job=file.folder.name,
            folder=str(file.folder) if self.look.folder else None,
            read=counters.read,
            written=counters.written,
            rejected=counters.rejected,
            dropped=counters.dropped,
            added=counters.added,
            bytes=counters.bytes,
            seconds=time.monotonic() - self._start,
            stages=counters.seconds,
            resumed=self.resumed,
            published=published,
            verification=verification,
            faults=tuple(self.faults),
            notes=tuple(self.notes),
            source_stamps=file.get("stamps") or {},
            losses=self.look.inputs.losses,
            id_map=self._id_map() if self.look.folder and published else None,
            quarantine=str(quarantine) if counters.rejected else None,
            **self.stages.reports(file),
        )
        self._close_sink()
        write_durably(file.folder / "report.json", report.to_json().encode())
        end: dict[str, Any] = {"report": report.to_dict(), "counters": vars(counters), "delivered": False}
        end["target_stamp"] = _as_json(self._target_stamp())
        if published and file.state is JobState.PUBLISH:
            file.advance(JobState.DONE, **end)
            if self.stages.embed is not None:
                self.stages.embed.discard_private()
        else:
            file.put(**end)
        file.put(delivered=True)
        return report

    def _id_map(self) -> str | None:
        """The ids that the target keeps in another form, as a file, so that references to them can be
        mended.
        """
        store = self.target.store
        changed = any(loss.kind == "id" for loss in self.look.inputs.losses)
        if not changed or not isinstance(store, MapsIds) or not isinstance(store, Source):
            return None
        path = self.file.folder / "id-map.csv"
        with replacing(path) as file:
            text = TextIOWrapper(file, "utf-8", newline="", write_through=True)
            rows = csv.writer(text)
            rows.writerow(["type", "id", "target_id"])
            for batch in store.scan(fields=Fields.IDS):
                pairs = zip(batch.id_list, store.stored_ids(batch.id_list), strict=True)
                rows.writerows([id_type(a), a, b] for a, b in pairs if str(a) != str(b))
            text.detach()
        return str(path)

    # -- helpers ------------------------------------------------------------------------------

    def _stamp(self, collection: Collection) -> Any:
        return _as_json(stamp_of(collection, self.settings.retry))

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        """Call again after a passing fault. All that is called here is idempotent."""

        def tell(details: RetryDetails) -> None:
            log.warning("%s failed, again in %.1f s: %s", what, details.wait, details.error)

        return self.settings.retry.call(call, should_stop=self._should_stop, on_retry=tell)

    def _tell(self, stage: str, done: int = 0, total: int | None = None) -> None:
        counters = self.counters
        seconds = time.monotonic() - self._start
        self._on_progress(
            Progress(stage, done, total, counters.written, counters.rejected, counters.bytes, seconds)
        )


@dataclass
class _Clock:
    """Seconds that each step was busy; told by several threads."""

    seconds: dict[str, float]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - start)


def _keyed(collection: Collection) -> str:
    """What a job is keyed by: the place, and the account there, where a place is one of several
    accounts'.
    """
    account = getattr(collection.store, "account", "")
    return absolute_url(collection.url) + (f"\n{account}" if account else "")


def _check_space(unfinished: Mapping[str, Any], stage: Any) -> None:
    """One collection, one space: an unfinished job goes on with the model it began with, or not at all."""
    before, now = unfinished.get("embed_space"), stage and stage.space.fingerprint
    if before != now:
        raise JobChangedError(
            f"job {unfinished['id']} is unfinished and began with the embedding space {before or 'none'}, "
            f"not {now or 'none'}; go on with the same embed=, or start anew with resume=False"
        )


def _as_json(value: Any) -> Any:
    """As it comes back from the job's file."""
    return json.loads(json.dumps(value))


def stored_report(data: Mapping[str, Any]) -> Report:
    """A report as it was kept with its job."""
    values = {key: value for key, value in data.items() if key != "ok"}
    proof = values.get("verification")
    values["verification"] = None if proof is None else Verification(**proof)
    return Report(**values)
