"""``vecferry jobs``, ``quarantine``, ``versions``, ``rollback``, ``prune``, ``publish`` and ``repair``."""

from __future__ import annotations

from typing import Annotated

import typer

import vecferry as vf
from vecferry.api import jobs as api
from vecferry.cli.console import (
    DIFFERENT,
    AsJson,
    Workers,
    bars,
    emit,
    errors_as_text,
    graceful_stop,
)
from vecferry.errors import NotFoundError

jobs = typer.Typer(no_args_is_help=True, help="Jobs that are running, unfinished or done.")
quarantine = typer.Typer(no_args_is_help=True, help="Records that could not go on.")
JobName = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or its folder.")]


@jobs.command("list")
def list_(as_json: AsJson = False) -> None:
    """All jobs, the last touched first."""
    with errors_as_text(as_json=as_json):
        found = api.list_jobs()
        emit(found if as_json else "\n".join(map(api.describe_job, found)) or "no jobs", as_json=as_json)


@jobs.command()
def show(job: JobName, as_json: AsJson = False) -> None:
    """One job: source, target, stage, counters, settings."""
    with errors_as_text(as_json=as_json):
        found = api.show_job(job)
        lines = [f"{key:<12} {value}" for key, value in found.items()]
        emit(found if as_json else "\n".join(lines), as_json=as_json)


@jobs.command()
def resume(
    job: JobName,
    source: Annotated[str | None, typer.Option(help="The source URL, if it holds a secret.")] = None,
    target: Annotated[str | None, typer.Option(help="The target URL, if it holds a secret.")] = None,
    as_json: AsJson = False,
) -> None:
    """Go on with an unfinished job, with the settings it began with."""
    with errors_as_text(as_json=as_json), graceful_stop() as stop, bars(quiet=as_json) as listener:
        report = api.resume_job(job, source=source, target=target, on_progress=listener, should_stop=stop)
        emit(report, as_json=as_json)
        if not report.ok:
            raise typer.Exit(DIFFERENT)


@jobs.command()
def forget(job: JobName, as_json: AsJson = False) -> None:
    """Delete the state of a job. Its target stays as it is."""
    with errors_as_text(as_json=as_json):
        if not api.forget_job(job):
            raise NotFoundError(f"there is no job {job!r}; see: vecferry jobs list")
        emit({"forgotten": job} if as_json else f"forgotten: {job}", as_json=as_json)


@quarantine.command("show")
def show_quarantine(
    job: JobName,
    limit: Annotated[int, typer.Option(help="How many to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The rejected records of a job, with the reasons."""
    with errors_as_text(as_json=as_json):
        rows = api.quarantined(job, limit=limit)
        lines = [f"{row['id']}  [{row['stage']}] {row['reason']}" for row in rows]
        emit(rows if as_json else "\n".join(lines) or "nothing in quarantine", as_json=as_json)


@quarantine.command()
def replay(job: JobName, as_json: AsJson = False) -> None:
    """Write the rejected records again, after they or the target were mended."""
    with errors_as_text(as_json=as_json):
        done = api.replay_quarantine(job)
        emit(done if as_json else f"{done['written']} written, {done['left']} left", as_json=as_json)
        if done["left"]:
            raise typer.Exit(DIFFERENT)


def versions(url: str, as_json: AsJson = False) -> None:
    """The versions of a collection that are kept, newest first."""
    with errors_as_text(as_json=as_json):
        found = [
            {"tag": v.tag, "live": v.live, "created": v.created, "count": v.count}
            for v in api.versions(url)
        ]
        lines = [f"{'→' if v['live'] else ' '} {v['tag']}  {v['created']}  {v['count']}" for v in found]
        emit(found if as_json else "\n".join(lines) or "no versions", as_json=as_json)


def rollback(url: str, as_json: AsJson = False) -> None:
    """Make the version before the live one the collection again."""
    with errors_as_text(as_json=as_json):
        version = api.rollback(url)
        emit({"live": version.tag} if as_json else f"live again: {version.tag}", as_json=as_json)


def prune(
    url: str,
    keep: Annotated[int, typer.Option(min=0, help="How many earlier versions to keep.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Delete the versions that are no longer live."""
    with errors_as_text(as_json=as_json):
        tags = api.prune(url, keep)
        emit({"deleted": tags} if as_json else f"deleted: {', '.join(tags) or 'nothing'}", as_json=as_json)


def publish(
    job: JobName,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also over what somebody else has made there since.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Swap in the verified target of a job that was run with --publish manual."""
    with errors_as_text(as_json=as_json):
        version = api.publish_job(job, replace=replace)
        emit({"live": version.tag} if as_json else f"published: {version.tag}", as_json=as_json)


def repair(source: str, target: str, workers: Workers = 1, as_json: AsJson = False) -> None:
    """Verify, copy just the records that are missing or different, and verify again."""
    with errors_as_text(as_json=as_json):
        done = api.repair(vf.connect(source), vf.connect(target), workers=workers)
        emit(done, as_json=as_json)
        if not done.ok:
            raise typer.Exit(DIFFERENT)
