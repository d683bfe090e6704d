"""The story on one page.

source ─▶ plan ─▶ stream ( read ▸ transform ▸ dedupe ▸ embed ▸ write ) ─▶ finish ─▶ verify ─▶ publish
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vecferry.engines.local import Job, LocalRun, Outcome
from vecferry.errors import PlanError
from vecferry.home import home
from vecferry.planning import Plan, Settings, field_names, read_settings
from vecferry.planning.census import SAMPLE
from vecferry.planning.draft import Draft, draw_up
from vecferry.planning.inspection import Inspection, inspect_collection
from vecferry.ports import (
    Collection,
    Fields,
    OnProgress,
    ShouldStop,
    StoreURL,
    ignore_progress,
    is_secret,
    never_stop,
)
from vecferry.records import CollectionSchema, RecordBatch
from vecferry.registry import borrowed, connect
from vecferry.reporting import Report
from vecferry.reporting.logs import job_log
from vecferry.streaming.checkpoint import JobState, Progressing, job_id, peek_job
from vecferry.streaming.read import Reading, batch_size_for
from vecferry.streaming.run import Tolerance, flow
from vecferry.streaming.stage import Stage
from vecferry.streaming.transform import Apply, Check, Fit
from vecferry.verifying import Verification, compare

_EPHEMERAL = ("memory:", "qdrant::memory:")


def migrate(
    source: Any,
    target: Any,
    *,
    on_progress: OnProgress = ignore_progress,
    should_stop: ShouldStop = never_stop,
    **options: Any,
) -> Report:
    """Ferry a collection from ``source`` to ``target`` and prove that it arrived.

    Args:
        source, target: URLs, collections from `connect`, or adapter objects.
        on_progress: called with a `Progress` after every batch.
        should_stop: asked after every batch; true stops at a checkpoint with `JobStopped`.
        options: the fields of `vecferry.planning.Settings`, and ``layout``, ``source_options`` and
            ``target_options`` for the adapters.

    Returns:
        A `Report`. It does not raise on a difference: ask ``report.check()``.

    Raises:
        PlanError: the call cannot work as written; nothing was written.
        JobStopped: stopped; the same call goes on where it was.
        VecferryError: anything else went wrong; the same call goes on where it was.
    """
    return plan(source, target, **options).run(on_progress, should_stop=should_stop)


def plan(
    source: Any,
    target: Any,
    *,
    layout: str | None = None,
    source_options: dict[str, Any] | None = None,
    target_options: dict[str, Any] | None = None,
    **options: Any,
) -> Plan:
    """Look at both sides and say what `migrate` would do. Nothing is written.

    Takes what `migrate` takes, and raises `PlanError` where that would.
    """
    settings = read_settings(options)
    laid = {"layout": layout} if layout else {}
    open_source = partial(connect, source, **(source_options or {}))
    open_target = partial(connect, target, **laid, **(target_options or {}))
    call = {"source": source, "target": target, "layout": layout, **options}
    call |= {"source_options": source_options, "target_options": target_options}
    return _Crossing(open_source, open_target, settings, _repeatable(call)).plan()


def verify(
    source: Any,
    target: Any,
    *,
    on_progress: Callable[[int], None] = lambda _: None,
    should_stop: ShouldStop = never_stop,
    where: Any = None,
    fields: Any = None,
    **options: Any,
) -> Verification:
    """Compare two collections record by record: ids, texts, metadata, vectors, search results.

    Args:
        where: compare only the records of the source that pass this filter; others are no difference.
        fields: as in `migrate`.
        options: passed on to `vecferry.verifying.compare`.
    """
    with borrowed(partial(connect, source)) as origin, borrowed(partial(connect, target)) as goal:
        found, have = origin.describe(), goal.describe()
        names = _shared_fields(found, have, fields)
        wanted = have.model_copy(
            update={"fields": tuple(f for f in have.fields if f.name in names.values())}
        )
        stages: list[Stage] = [Fit(wanted, names, keep_text=have.has_text)]
        reading = Reading(batch_size_for(found), Fields(vectors=tuple(names)), where)
        parts = [Progressing(part) for part in origin.store.partitions(1)]

        def expected() -> Iterator[RecordBatch]:
            return (p.batch for p in flow(origin.store, parts, reading, stages) if len(p.batch))

        return compare(
            expected,
            wanted,
            goal.store,
            allow_extra=where is not None,
            on_progress=on_progress,
            should_stop=should_stop,
            **options,
        )


def inspect(target: Any, *, sample: int | None = SAMPLE) -> Inspection:
    """Look at a collection: schema, layout, types, lengths of vectors, duplicates, what is missing.

    Args:
        sample: how many records to look at; ``None`` for all.
    """
    with borrowed(partial(connect, target)) as collection:
        return inspect_collection(collection, sample=sample)


def _shared_fields(found: CollectionSchema, have: CollectionSchema, fields: Any) -> dict[str, str]:
    """Pair the fields by name; two lone fields are a pair whatever they are called."""
    names = field_names(found, fields)
    there = {field.name for field in have.fields}
    if fields is None and len(names) == 1 and len(there) == 1:
        return {next(iter(names)): next(iter(there))}
    return {old: new for old, new in names.items() if new in there}


@dataclass
class _Crossing:
    """One source, one target, one set of settings: on the way from call to report."""

    open_source: Callable[[], Collection]
    open_target: Callable[[], Collection]
    settings: Settings
    call: dict[str, Any] | None

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Both sides open; those that were named by URL are closed again, so that no lock is left."""
        with ExitStack() as stack:
            self.source = stack.enter_context(borrowed(self.open_source))
            self.target = stack.enter_context(borrowed(self.open_target))
            yield

    def plan(self) -> Plan:
        """Open both sides, compare, close."""
        with self._opened():
            if self.source.store is self.target.store or self._same_place():
                raise PlanError(f"source and target are the same collection ({self.source.url})")
            return self._draw()

    def _same_place(self) -> bool:
        a, b = self.source.url, self.target.url
        return not _ephemeral(self.source) and _absolute(a) == _absolute(b)

    def _draw(self) -> Plan:
        folder = self._folder()
        state = peek_job(folder) if folder and self.settings.resume else {}
        unfinished = state.get("stage") not in (None, "done")
        fixed = CollectionSchema(**state["schema"]) if unfinished else None
        draft = draw_up(self.source, self.target, self.settings, fixed=fixed)
        return Plan(
            source=self.source.url,
            target=self.target.url,
            mode=self.settings.mode,
            source_schema=draft.source_schema,
            target_schema=draft.target_schema,
            names=draft.names,
            count=self._count(draft),
            losses=draft.losses,
            notes=draft.notes,
            resuming=_describe(state) if unfinished else None,
            _runner=partial(self.run, draft, folder),
        )

    def run(
        self,
        draft: Draft,
        folder: Path | None,
        planned: Plan,
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> Report:
        with ExitStack() as stack:
            stack.enter_context(self._opened())
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vecferry-")))
            state = stack.enter_context(JobState(folder))
            stack.enter_context(job_log(folder))
            job = self._job(draft, folder, planned.count)
            outcome = LocalRun(job, state, on_progress, should_stop).run()
            return self._report(draft, state, outcome)

    def _job(self, draft: Draft, folder: Path, total: int | None) -> Job:
        settings = self.settings
        reading = Reading(
            settings.batch_size or batch_size_for(draft.source_schema),
            Fields(vectors=tuple(draft.names)),
            settings.where,
            should_stop=never_stop,
        )
        return Job(
            source=self.source,
            target=self.target,
            schema=draft.target_schema,
            mode=settings.write_mode,
            settings=settings.identity(),
            reading=reading,
            tolerance=Tolerance(settings.on_error == "quarantine", settings.max_rejected),
            stages=self._stages(draft),
            folder=folder,
            total=total,
            resume=settings.resume,
            publish=settings.publish == "auto",
            verify=partial(_compare, draft.target_schema) if settings.verify else None,
            fixed={"call": self.call},
        )

    def _stages(self, draft: Draft) -> list[Stage]:
        stages: list[Stage] = [Check()]
        if self.settings.transform is not None:
            stages.append(Apply(self.settings.transform))
        return [*stages, Fit(draft.target_schema, draft.names, keep_text=draft.keep_text)]

    def _report(self, draft: Draft, state: JobState, outcome: Outcome) -> Report:
        counters = outcome.counters
        quarantine = state.folder / "quarantine.jsonl"
        return Report(
            source=self.source.url,
            target=self.target.url,
            job=state.folder.name,
            folder=str(state.folder),
            read=counters.read,
            written=counters.written,
            rejected=counters.rejected,
            dropped=counters.dropped,
            bytes=counters.bytes,
            seconds=outcome.seconds,
            stages=counters.seconds,
            resumed=outcome.resumed,
            published=outcome.published,
            verification=outcome.verification,
            losses=draft.losses,
            quarantine=str(quarantine) if counters.rejected else None,
        )

    def _count(self, draft: Draft) -> int | None:
        if self.settings.where is not None:
            return draft.census.records if draft.census.complete else None
        return draft.source_schema.count

    def _folder(self) -> Path | None:
        """Where the job's state lives; ``None`` if one side does not outlive this process anyway."""
        if self.settings.state_dir is not None:
            return self.settings.state_dir
        if _ephemeral(self.source) or _ephemeral(self.target):
            return None
        return home() / "jobs" / job_id(_absolute(self.source.url), _absolute(self.target.url))


def _compare(schema: CollectionSchema, expected: Any, target: Any, *, upserted: bool, **hooks: Any) -> Any:
    return compare(expected, schema, target, allow_extra=upserted, **hooks)


def _repeatable(call: dict[str, Any]) -> dict[str, Any] | None:
    """The call as JSON without secrets, for ``vecferry jobs resume``; ``None`` if it holds objects."""
    named = {"state_dir", "resume"}
    kept = {key: value for key, value in call.items() if value is not None and key not in named}
    for side in ("source", "target"):
        if not isinstance(kept[side], str):
            return None
        kept[side] = str(StoreURL.parse(kept[side]))
    try:
        json.dumps(kept)
    except TypeError:
        return None
    secret = any(
        is_secret(name) for side in ("source", "target") for name in kept.get(f"{side}_options", {})
    )
    return None if secret else kept


def _ephemeral(collection: Collection) -> bool:
    return collection.url.startswith(_EPHEMERAL) or ":" not in collection.url


def _absolute(url: str) -> str:
    """The same text for the same place, from whatever folder it is named."""
    scheme, _, rest = url.partition(":")
    return url if rest.startswith("//") else f"{scheme}:{Path(rest).absolute()}"


def _describe(state: dict[str, Any]) -> str:
    counters = state.get("counters", {})
    return (
        f"{counters.get('read', 0):,} records read, {counters.get('written', 0):,} written, "
        f"at stage {state.get('stage')}"
    )


__all__ = ["inspect", "migrate", "plan", "verify"]
