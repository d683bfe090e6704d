"""What can be done with jobs after the call that began them: look, go on, replay, publish, repair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from vecferry.api.migration import holds_text, migrate, shared_fields, verify
from vecferry.connecting import Collection, borrowed, connect
from vecferry.core.durable import rename_over, write_durably
from vecferry.core.home import home
from vecferry.errors import (
    ConfigurationError,
    JobError,
    NotFoundError,
    PlanError,
    UnsupportedError,
    VecferryError,
)
from vecferry.model import CollectionSchema, RecordBatch, RecordId, VectorRecord, encode_id
from vecferry.pipeline import job as jobs
from vecferry.pipeline.migration import stored_report
from vecferry.pipeline.publish import prunable, publishable, roll_to, swap_in
from vecferry.pipeline.quarantine import Quarantine, Quarantined, read_quarantine
from vecferry.pipeline.stages import ConformToSchema, RejectNonFinite
from vecferry.pipeline.stream import Writer
from vecferry.ports import (
    Fetchable,
    InFlightBatch,
    OnProgress,
    Partition,
    Publishable,
    Rejection,
    ShouldStop,
    Version,
    WriteMode,
    ignore_progress,
    never_stop,
)
from vecferry.reporting import RepairReport, Report

_REPAIR_CHUNK = 256
_REPAIR_LIMIT = 1_000_000


def list_jobs() -> list[dict[str, Any]]:
    """The jobs under ``VECFERRY_HOME``, the last touched first."""
    return jobs.list_jobs(home() / "jobs")


def show_job(job: str | Path) -> dict[str, Any]:
    """Everything stored of one job.

    Raises:
        NotFoundError: if there is none.
    """
    found = jobs.peek_job(job_folder(job))
    if not found:
        raise _no_job(job)
    return found


def _no_job(job: str | Path) -> NotFoundError:
    return NotFoundError(f"there is no job {str(job)!r}; see: vecferry jobs list")


def describe_job(job: dict[str, Any]) -> str:
    """One line: id, stage, counters, source and target."""
    if "error" in job:
        return f"{job['id']}  {job['stage']:<7} {job['error']}"
    counters = job.get("counters", {})
    return (
        f"{job['id']}  {job.get('stage', '?'):<7} {counters.get('written', 0):>12,} written  "
        f"{job.get('updated', '')}  {job.get('source')} → {job.get('target')}"
    )


def job_folder(job: str | Path) -> Path:
    """The folder of a job given by its id or by the folder itself."""
    folder = Path(job)
    return folder if (folder / "job.sqlite").exists() else home() / "jobs" / str(job)


def resume_job(
    job: str | Path,
    *,
    source: str | None = None,
    target: str | None = None,
    on_progress: OnProgress = ignore_progress,
    should_stop: ShouldStop = never_stop,
) -> Report:
    """Go on with an unfinished job, with the settings it began with, from whatever folder.

    Args:
        source, target: the URLs again, where they hold a password or a key: those are not stored.

    Raises:
        JobError: if it is done, or was begun with objects or functions that only its caller has.
    """
    found = show_job(job)
    call = dict(found.get("call") or {})
    if found.get("stage") == "done":
        raise JobError(f"job {found['id']} is done; migrate() begins a new one")
    if not call:
        raise JobError(
            f"job {found['id']} was begun from code with objects or functions; "
            "make the same call again there"
        )
    given = {"source": source, "target": target}
    for side in call.pop("hidden", ()):
        if given[side] is None:
            raise JobError(
                f"the {side} URL of job {found['id']} holds a password or a key, which is not stored; "
                f"give it again: vecferry jobs resume {found['id']} --{side} URL"
            )
    call |= {side: url for side, url in given.items() if url is not None}
    hooks: dict[str, Any] = {"on_progress": on_progress, "should_stop": should_stop}
    return migrate(call.pop("source"), call.pop("target"), **call, state_dir=found["folder"], **hooks)


def forget_job(job: str | Path) -> bool:
    """Delete the state of a job (its target stays as it is); false if there is none."""
    return jobs.forget_job(job_folder(job))


def publish_job(job: str | Path, *, replace: bool = False) -> Version:
    """Swap in the target of a job that was run with ``publish="manual"`` and verified without difference.

    Args:
        replace: also where somebody else has made the collection since a job that was to create it began.
            What is there is kept as a version.

    Raises:
        JobError: if the job did not come so far.
        TargetExistsError: without ``replace``.
    """
    found = show_job(job)
    if found.get("stage") != "publish" or not found.get("verified"):
        raise JobError(
            f"job {found['id']} is at stage {found.get('stage')}; only a verified target is published"
        )
    with jobs.JobFile(job_folder(job)) as state, _goal(found, None) as target:
        publishable(target)
        mode = WriteMode((state.get("settings") or {}).get("mode", WriteMode.REPLACE))
        mode = WriteMode.REPLACE if replace else mode
        version = swap_in(target, str(state.get("tag")), mode, state.folder.name)
        state.advance(jobs.JobState.DONE)
        return version


def _goal(found: dict[str, Any], target: Any) -> AbstractContextManager[Collection]:
    """The job's target, opened as its call opened it."""
    if target is not None:
        return borrowed(partial(connect, target))
    call = found.get("call") or {}
    options = {**({"layout": call["layout"]} if "layout" in call else {}), **call.get("target_options", {})}
    return borrowed(partial(connect, found["target"], **options))


# -- versions ---------------------------------------------------------------------------------


def versions(url: str | Collection) -> list[Version]:
    """The versions of a collection that are kept, the live one first."""
    with borrowed(partial(connect, url)) as collection:
        return publishable(collection).versions()


def rollback(url: str | Collection, to: str | None = None) -> Version:
    """Make another version the collection again, in one step: the one before the live one, or ``to``,
    earlier or later than it.

    Raises:
        NotFoundError: if no such version is kept.
    """
    with borrowed(partial(connect, url)) as collection:
        return roll_to(collection, to)


def prune(url: str | Collection, keep: int = 0, *, dry_run: bool = False) -> list[str]:
    """Delete all versions but the live one and ``keep`` others; returns their tags.

    Args:
        dry_run: only say which.
    """
    with borrowed(partial(connect, url)) as collection:
        store = publishable(collection)
        return prunable(store.versions(), keep) if dry_run else store.prune(keep)


def prune_unfinished(url: str | Collection, *, dry_run: bool = False) -> list[str]:
    """Delete what was begun in a target, never was live, and belongs to no job under ``VECFERRY_HOME``
    that could go on with it; returns the tags.

    Jobs that keep their state elsewhere (``state_dir=``) are not known here: finish or forget them first.
    """
    claimed = _claimed()
    with borrowed(partial(connect, url)) as collection:
        store = publishable(collection)
        tags = [v.tag for v in store.versions() if not (v.published or v.live) and v.tag not in claimed]
        for tag in tags if not dry_run else ():
            store.discard(tag)
        return tags


def _claimed() -> set[str]:
    """The tags of the jobs that can be gone on with."""
    unfinished = (job for job in list_jobs() if job.get("stage") not in (None, jobs.JobState.DONE))
    return {str(job.get("tag")) for job in unfinished}


def orphans() -> list[dict[str, Any]]:
    """What was begun in some target and is neither published nor of a job that could go on with it.

    Only targets of known jobs are looked at, and of these only those that open without a secret.
    """
    known = list_jobs()
    claimed = _claimed()
    found: list[dict[str, Any]] = []
    for url in sorted({str(job["target"]) for job in known if job.get("target")}):
        try:
            with borrowed(partial(connect, url)) as collection:
                store: Any = collection.store
                pieces = store.versions() if isinstance(store, Publishable) else []
        except VecferryError as error:
            found.append({"target": url, "tag": None, "error": str(error)})
            continue
        found += [
            {"target": url, "tag": v.tag, "created": v.created, "count": v.count}
            for v in pieces
            if not v.published and not v.live and v.tag not in claimed
        ]
    return found


def write_report(job: str | Path, path: Path) -> None:
    """Write the report of a job as HTML, Markdown or JSON, as the suffix says.

    Raises:
        ConfigurationError: for another suffix.
    """
    report = job_report(job)
    forms = {".html": report.to_html, ".md": report.to_markdown, ".json": report.to_json}
    if path.suffix not in forms:
        raise ConfigurationError(f"{path}: a report is written as {', '.join(sorted(forms))}")
    write_durably(path, forms[path.suffix]().encode())


def job_report(job: str | Path) -> Report:
    """The report that a job ended with.

    Raises:
        NotFoundError: if there is no job, or it has not come to an end yet.
    """
    stored = show_job(job).get("report")
    if not stored:
        raise NotFoundError(f"job {str(job)!r} has no report yet; go on with: vecferry jobs resume {job}")
    return stored_report(stored)


# -- quarantine -------------------------------------------------------------------------------


def quarantined(job: str | Path, *, limit: int | None = None) -> list[dict[str, Any]]:
    """The rejected records of a job: id, stage, reason, text.

    Raises:
        NotFoundError: if there is no such job.
    """
    folder = job_folder(job)
    if not (folder / "job.sqlite").exists():
        raise _no_job(job)
    rows = islice(read_quarantine(folder / "quarantine.jsonl"), limit)
    return [
        {"id": encode_id(r.record.id), "stage": r.stage, "reason": r.reason, "text": r.record.text}
        for r in rows
    ]


def replay_quarantine(job: str | Path, target: Any = None) -> dict[str, int]:
    """Write the quarantined records to the job's target again; those it still refuses stay.

    Args:
        target: where to write, if the job's own URL does not open it.

    Returns:
        ``{"written": n, "left": m}``.
    """
    found = show_job(job)
    if found.get("stage") not in ("done", "failed", "verify", "publish"):
        raise JobError(
            f"job {found['id']} is not through; finish it first: vecferry jobs resume {found['id']}"
        )
    with jobs.JobFile(job_folder(job)) as state, _goal(found, target) as goal:
        path = state.folder / "quarantine.jsonl"
        items = list(read_quarantine(path))
        if not items:
            return {"written": 0, "left": 0}
        ready, left = _fitted(found, items)
        sink = goal.store
        writer = Writer(sink)
        if ready:
            sink.prepare(goal.describe(), WriteMode.UPSERT)
            for batch in RecordBatch.from_records(ready).split(_REPAIR_CHUNK):
                left += writer.write(batch)
            sink.finish()
        _rewrite(path, left)
        counters = state.counters
        counters.rejected = sum(len(rejection.batch) for rejection in left)
        counters.written += writer.written
        state.commit(counters, cursors={}, quarantine_length=path.stat().st_size)
        return {"written": writer.written, "left": counters.rejected}


def _fitted(
    found: dict[str, Any], items: Sequence[Quarantined]
) -> tuple[list[VectorRecord], list[Rejection]]:
    """The records as the target takes them, from wherever they were rejected; and what is not mended yet.

    Raises:
        UnsupportedError: if some would have to pass the job's function or model first.
    """
    early = {item.stage for item in items} - {"write"}
    if early and ((found.get("settings") or {}).get("transform") or found.get("embed_space")):
        raise UnsupportedError(
            f"records rejected at {', '.join(sorted(early))} have not passed the job's transform or "
            'embedding; mend them in the source, and migrate them with mode="upsert" and where='
        )
    schema = CollectionSchema(**found["schema"])
    stages = (
        RejectNonFinite(),
        ConformToSchema(schema, found.get("names") or {}, keep_text=found.get("keep_text", True)),
    )
    ready: list[VectorRecord] = []
    left: list[Rejection] = []
    for item in items:
        batch = RecordBatch.from_records([item.record])
        inflight = InFlightBatch(batch, Partition("quarantine"), None, 0)
        for stage in stages if item.stage != "write" else ():
            inflight = stage.apply(inflight) if len(inflight.batch) else inflight
        ready += inflight.batch.records()
        left += inflight.rejections
    return ready, left


def _rewrite(path: Path, left: Sequence[Rejection]) -> None:
    draft = path.with_suffix(".tmp")
    fresh = Quarantine(draft)
    for rejection in left:
        fresh.add(rejection)
    fresh.sync()
    fresh.close()
    rename_over(draft, path)


# -- repair -----------------------------------------------------------------------------------


def repair(
    source: Any, target: Any, *, delete_extra: int = 0, dry_run: bool = False, workers: int = 1
) -> RepairReport:
    """Verify, copy the records that are missing or different, and verify again.

    Args:
        delete_extra: delete the records that the source does not have, if there are at most so many. By
            default they are left alone: they may be the application's own.
        dry_run: say what would be done, and do nothing.
        workers: see `vecferry.verify`.

    Raises:
        UnsupportedError: if the source cannot fetch by id, the target cannot be written, or it has vector
            fields that the source lacks: writing a record would take them from it.
        PlanError: if there are more surplus records than ``delete_extra`` allows; nothing is deleted then.
    """
    with borrowed(partial(connect, source)) as origin, borrowed(partial(connect, target)) as goal:
        if not isinstance(origin.store, Fetchable):
            raise UnsupportedError(f"{origin.url} cannot fetch by id; migrate it again with mode='replace'")
        proof = verify(origin, goal, limit=_REPAIR_LIMIT, workers=workers)
        wrong: list[RecordId] = [*proof.missing_ids, *proof.different_ids]
        copied = tuple(map(encode_id, wrong))
        extra = proof.extra if delete_extra else ()
        left = () if delete_extra else proof.extra
        if delete_extra and proof.extra_count > delete_extra:
            raise PlanError(
                f"{goal.url} holds {proof.extra_count:,} records that {origin.url} does not have, more "
                "than "
                f"delete_extra={delete_extra} allows; look at them with dry_run=True (--dry-run)"
            )
        if proof.ok or dry_run:
            return RepairReport(
                copied=copied, deleted=extra, left=left, dry_run=dry_run, verification=proof
            )
        if wrong:
            _copy(origin, goal, wrong)
        if extra:
            goal.delete(list(proof.extra_ids))
        again = verify(origin, goal, workers=workers)
        return RepairReport(copied=copied, deleted=extra, left=left, verification=again)


def _copy(origin: Collection, goal: Collection, ids: Sequence[RecordId]) -> None:
    have = goal.describe()
    names = shared_fields(origin.describe(), have, None)
    _refuse_more_fields(goal.url, have, names)
    conform = ConformToSchema(have, names, keep_text=holds_text(goal))
    goal.store.prepare(have, WriteMode.UPSERT)
    for batch in _fetched(origin.store, ids):
        inflight = conform.apply(InFlightBatch(batch, Partition("repair"), None, len(batch)))
        if inflight.rejections or Writer(goal.store).write(inflight.batch):
            raise PlanError("the target refuses some of the records; see verify()")
    goal.store.finish()


def _refuse_more_fields(url: str, have: CollectionSchema, names: Mapping[str, str]) -> None:
    more = sorted({field.name for field in have.fields} - set(names.values()))
    if more:
        raise UnsupportedError(
            f"{url} also has vector field {more[0]!r}, which the source has not and a repaired record "
            'would lose; run the migration that made it again with mode="upsert"'
        )


def _fetched(store: Fetchable, ids: Sequence[RecordId]) -> Iterator[RecordBatch]:
    for start in range(0, len(ids), _REPAIR_CHUNK):
        yield store.fetch(ids[start : start + _REPAIR_CHUNK])


publish = publish_job
