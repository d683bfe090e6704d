"""One call of `migrate`: from the two sides and the settings to a plan, a job, and a report."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from vecferry.connecting import Collection, borrowed, connect
from vecferry.core.home import home
from vecferry.core.redaction import redact
from vecferry.errors import EmbedderExhausted, JobChangedError, PlanError
from vecferry.model import CollectionSchema
from vecferry.pipeline.assembly import (
    Assembly,
    assemble,
    check_declared,
    choose_embedder,
    dedupes_ids,
    embed_stage,
    embedded_field,
    estimate,
    id_rule_of_backup,
    source_space,
)
from vecferry.pipeline.checkpoint import JobState, describe_state, job_id, peek_job
from vecferry.pipeline.job import Job, LocalRun, Outcome
from vecferry.pipeline.plan import Plan
from vecferry.pipeline.planning import Draft, declare_space, draw_up
from vecferry.pipeline.read import Reading, batch_size_for
from vecferry.pipeline.settings import Settings
from vecferry.pipeline.stream import Tolerance
from vecferry.ports import Fields, OnProgress, Publishable, ShouldStop, StoreURL, WriteMode, is_secret
from vecferry.reporting import Report
from vecferry.reporting.logs import job_log
from vecferry.verifying import compare

log = logging.getLogger("vecferry.job")

_EPHEMERAL = ("memory:", "qdrant::memory:")

Opener = Callable[[], Collection]


@dataclass
class Crossing:
    """One source, one target, one set of settings.

    Attributes:
        call: the arguments as JSON, for ``vecferry jobs resume``; ``None`` if they hold objects.
        options: what the adapters were given, as a part of what a resume must find unchanged.
        alternative: the first of several embedders to try.
    """

    open_source: Opener
    open_target: Opener
    settings: Settings
    call: dict[str, Any] | None
    options: dict[str, Any] = field(default_factory=dict)
    alternative: int = 0
    backup_url: str | None = None
    source: Collection = field(init=False)
    target: Collection = field(init=False)

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Both sides open; those that were named by URL are closed again, so that no lock is left."""
        with ExitStack() as stack:
            self.source = stack.enter_context(borrowed(self.open_source))
            self.target = stack.enter_context(borrowed(self.open_target))
            yield

    # -- plan ---------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Open both sides, compare, close. Nothing is written."""
        with self._opened():
            self._refuse_one_place()
            return self._draw()

    def _refuse_one_place(self) -> None:
        a, b = self.source.url, self.target.url
        here, there = _place(a), _place(b)
        if self.source.store is self.target.store or (here and here == there):
            raise PlanError(f"source and target are the same collection ({a}); name another target")
        if here and there and here[0] == there[0] and _nested(here[1], there[1]):
            raise PlanError(f"one of {a} and {b} lies inside the other; name a target elsewhere")

    def _draw(self) -> Plan:
        folder = self._folder()
        unfinished = self._unfinished(folder)
        found = self.source.describe()
        space = source_space(self.settings, found)
        fingerprint = unfinished.get("embed_space")
        choice = choose_embedder(self.settings, fingerprint=fingerprint, start=self.alternative)
        looking = self.settings.model_copy(update={"cache": False})
        stage = embed_stage(looking, choice, declare_space(found, space)) if choice else None
        if unfinished:
            _check_space(unfinished, stage)
        draft = draw_up(
            self.source,
            self.target,
            self.settings,
            space=space,
            embedded=embedded_field(stage, found),
            fixed=CollectionSchema(**unfinished["schema"]) if unfinished else None,
            dedupes_ids=dedupes_ids(self.settings),
        )
        count = self._count(draft)
        notes = [str(choice), *check_declared(stage, self.source, self.settings)] if choice else []
        return Plan(
            source=self.source.url,
            target=self.target.url,
            mode=self.settings.mode,
            source_schema=draft.source_schema,
            target_schema=draft.target_schema,
            names=draft.names,
            count=count,
            losses=draft.losses,
            notes=(*draft.notes, *notes),
            estimate=estimate(stage, self.source, self.settings, count) if stage else {},
            resuming=describe_state(unfinished) if unfinished else None,
            _runner=partial(self.run, draft, folder, choice),
        )

    def _unfinished(self, folder: Path | None) -> dict[str, Any]:
        """What is stored of an unfinished job of this pair."""
        state = peek_job(folder) if folder and self.settings.resume else {}
        return state if state.get("stage") not in (None, "done") else {}

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

    # -- run ----------------------------------------------------------------------------------

    def run(
        self,
        draft: Draft,
        folder: Path | None,
        choice: Any,
        planned: Plan,
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> Report:
        """Open both sides again and carry the plan out."""
        try:
            with ExitStack() as stack:
                if folder is None:
                    made = tempfile.TemporaryDirectory(prefix="vecferry-")
                    folder = Path(stack.enter_context(made))
                return self._run(stack, draft, folder, choice, planned.count, on_progress, should_stop)
        except EmbedderExhausted as error:
            return self._restart(choice, error).run(on_progress, should_stop=should_stop)

    def _run(
        self,
        stack: ExitStack,
        draft: Draft,
        folder: Path,
        choice: Any,
        total: int | None,
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> Report:
        state = stack.enter_context(JobState(folder))
        stack.enter_context(job_log(folder))
        if self.settings.backup is not None:
            self.backup_url = self._back_up(state)
            self.open_source = partial(connect, self.backup_url)
        stack.enter_context(self._opened())
        assembly = self._assemble(draft, folder, choice)
        stack.callback(assembly.close)
        assembly.listen(should_stop)
        job = self._job(draft, folder, total, assembly)
        outcome = LocalRun(job, state, on_progress, should_stop).run()
        return self._report(draft, state, outcome, assembly)

    def _assemble(self, draft: Draft, folder: Path, choice: Any) -> Assembly:
        stage = embed_stage(self.settings, choice, draft.source_schema, folder) if choice else None
        return assemble(
            self.settings,
            draft.names,
            draft.target_schema,
            keep_text=draft.keep_text,
            embed=stage,
            folder=folder,
        )

    def _job(self, draft: Draft, folder: Path, total: int | None, assembly: Assembly) -> Job:
        settings = self.settings
        have = {f.name for f in draft.source_schema.fields}
        reading = Reading(
            settings.batch_size or batch_size_for(draft.target_schema),
            Fields(vectors=tuple(name for name in draft.names if name in have)),
            settings.where,
        )
        space = None if assembly.embed is None else assembly.embed.space.fingerprint
        sides = {"source": _absolute(self.source.url), "target": _absolute(self.target.url)}
        return Job(
            source=self.source,
            target=self.target,
            schema=draft.target_schema,
            mode=settings.write_mode,
            settings={**sides, **settings.identity(), **self.options},
            reading=reading,
            tolerance=Tolerance(settings.on_error == "quarantine", settings.max_rejected),
            stages=assembly.stages,
            folder=folder,
            total=total,
            resume=settings.resume,
            publish=settings.publish == "auto",
            verify=partial(_compare, draft.target_schema, settings.workers) if settings.verify else None,
            fixed={
                **sides,
                "call": self.call,
                "embed_space": space,
                "backup": self.backup_url,
                "names": draft.names,
                "keep_text": draft.keep_text,
            },
        )

    def _report(self, draft: Draft, state: JobState, outcome: Outcome, assembly: Assembly) -> Report:
        counters = outcome.counters
        quarantine = state.folder / "quarantine.jsonl"
        return Report(
            source=self.source.url,
            target=self.target.url,
            job=state.folder.name,
            folder=str(state.folder) if self._folder() else None,
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
            **assembly.reports(state),
        )

    # -- restart and backup -------------------------------------------------------------------

    def _restart(self, choice: Any, error: EmbedderExhausted) -> Plan:
        """The whole job anew with the next alternative, into a fresh target: never a mixture."""
        left = isinstance(self.settings.embed, list | tuple) and choice.index + 1 < len(self.settings.embed)
        if self.settings.on_exhausted != "restart" or not left:
            raise error
        log.warning("starting anew with the next embedding model: %s", error)
        changes: dict[str, Any] = {"resume": False}
        store = self.target.store
        if self.settings.mode == "create" and isinstance(store, Publishable):
            # Where creation writes in place, what was begun must give way to a fresh collection.
            changes |= {} if store.stages(WriteMode.CREATE) else {"mode": "replace"}
        settings = self.settings.model_copy(update=changes)
        return replace(self, settings=settings, alternative=choice.index + 1).plan()

    def _back_up(self, state: JobState) -> str:
        """Copy the source to a timestamped file, once in the life of the job; returns its URL."""
        made = state.get("backup") if state.begun and self.settings.resume else None
        if made:
            return str(made)
        url = _backup_url(_absolute_place(str(self.settings.backup)), datetime.now(UTC))
        rule = id_rule_of_backup(self.settings)
        settings = Settings(where=self.settings.where, dedupe=rule, state_dir=state.folder / "backup")
        copied = Crossing(self.open_source, partial(connect, url), settings, None).plan()
        copied.run().check()
        log.info("backed up to %s", url)
        return url


def _absolute_place(place: str) -> str:
    """A path or a URL, the same from whatever folder it is used."""
    scheme, colon, _ = place.partition(":")
    if colon and len(scheme) > 1:
        return _absolute(str(StoreURL.parse(place)))
    return str(Path(place).expanduser().absolute())


def _backup_url(place: str, now: datetime) -> str:
    """A URL as it is; a folder gets a timestamped JSON Lines file."""
    scheme, colon, _ = place.partition(":")
    if colon and len(scheme) > 1:
        return place
    return f"jsonl:{Path(place) / f'backup-{now:%Y%m%dT%H%M%SZ}.jsonl'}"


def _check_space(unfinished: dict[str, Any], stage: Any) -> None:
    """One collection, one space: an unfinished job goes on with the model it began with, or not at all."""
    before, now = unfinished.get("embed_space"), stage and stage.space.fingerprint
    if before != now:
        raise JobChangedError(
            f"job {unfinished['id']} is unfinished and began with the embedding space {before or 'none'}, "
            f"not {now or 'none'}; go on with the same embed=, or start anew with resume=False"
        )


def _compare(
    schema: CollectionSchema, workers: int, expected: Any, target: Any, *, upserted: bool, **hooks: Any
) -> Any:
    return compare(expected, schema, target, workers=workers, allow_extra=upserted, **hooks)


def repeatable(call: dict[str, Any]) -> dict[str, Any] | None:
    """The call as JSON, without secrets and with absolute paths; ``None`` if it holds objects.

    ``hidden`` names the sides that must be given again, since something of their URL is not stored.
    """
    named = {"state_dir", "resume"}
    kept = {key: value for key, value in call.items() if value is not None and key not in named}
    hidden = []
    for side in ("source", "target"):
        if not isinstance(kept.get(side), str):
            return None
        url = StoreURL.parse(kept[side])
        hidden += [side] if url.hides else []
        kept[side] = _absolute(str(url))
    if isinstance(kept.get("backup"), str | Path):
        kept["backup"] = _absolute_place(str(kept["backup"]))
    try:
        text = json.dumps(kept)
    except TypeError:
        return None
    if redact(text) != text:
        return None  # a key in the name of a model, say
    options = [*kept.get("source_options", {}), *kept.get("target_options", {})]
    if any(map(is_secret, options)):
        return None
    return {**kept, "hidden": hidden} if hidden else kept


def adapter_options(call: dict[str, Any]) -> dict[str, Any]:
    """What was passed to the adapters, without secrets: a part of the job's identity."""
    found: dict[str, Any] = {"layout": call.get("layout")}
    for side in ("source_options", "target_options"):
        options = call.get(side) or {}
        found[side] = {k: str(v) for k, v in sorted(options.items()) if not is_secret(k)} or None
    return found


def _ephemeral(collection: Collection) -> bool:
    return collection.url.startswith(_EPHEMERAL) or ":" not in collection.url


def _place(url: str) -> tuple[str, Path, str] | None:
    """Scheme, path and the rest of a URL, equal for two names of one place: links are followed.

    The path of a server's collection is the root; what lives in this process only has no place.
    """
    scheme, colon, rest = url.partition(":")
    if not colon or url.startswith(_EPHEMERAL):
        return None
    if rest.startswith("//"):
        return scheme, Path("/"), rest
    path = re.split("[?#]", rest, maxsplit=1)[0]
    return scheme, Path(os.path.realpath(unquote(path))), rest.removeprefix(path)


def _nested(a: Path, b: Path) -> bool:
    return a in b.parents or b in a.parents


def _absolute(url: str) -> str:
    """The same text for the same place, from whatever folder it is named."""
    scheme, _, rest = url.partition(":")
    return url if rest.startswith(("//", ":")) else f"{scheme}:{Path(rest).absolute()}"
