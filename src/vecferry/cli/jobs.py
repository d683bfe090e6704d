"""``vecferry jobs``, ``quarantine``, ``versions``, ``rollback``, ``prune``, ``publish`` and ``repair``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

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
def list_(
    orphans: Annotated[
        bool, typer.Option("--orphans", help="Pieces in the targets that no job goes on with.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """All jobs, the last touched first."""
    with errors_as_text(as_json=as_json):
        if orphans:
            pieces = api.orphans()
            lines = [
                f"{piece['target']}  {piece.get('error') or piece['tag']}  {piece.get('created') or ''}"
                for piece in pieces
            ]
            emit(pieces if as_json else "\n".join(lines) or "no orphans", as_json=as_json)
            return
        found = api.list_jobs()
        emit(found if as_json else "\n".join(map(api.describe_job, found)) or "no jobs", as_json=as_json)


@jobs.command()
def show(
    job: JobName,
    report: Annotated[
        Path | None, typer.Option(help="Write the job's report here: FILE.html, FILE.md or FILE.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One job: source, target, stage, counters, settings; or its report, as a file."""
    with errors_as_text(as_json=as_json):
        if report is not None:
            api.write_report(job, report)
            emit({"report": str(report)} if as_json else f"written: {report}", as_json=as_json)
            return
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


def rollback(
    url: str,
    to: Annotated[
        str | None, typer.Option(help="This version, earlier or later than the live one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the version before the live one the collection again, or any other that is kept."""
    with errors_as_text(as_json=as_json):
        version = api.rollback(url, to)
        emit({"live": version.tag} if as_json else f"live again: {version.tag}", as_json=as_json)


def prune(
    url: str,
    keep: Annotated[int, typer.Option(min=0, help="How many earlier versions to keep.")] = 0,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Instead, what was begun and no job goes on with.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, delete nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the versions that are no longer live."""
    with errors_as_text(as_json=as_json):
        take = api.prune_unfinished if unfinished else partial(api.prune, keep=keep)
        tags = take(url, dry_run=dry_run)
        what = "would be deleted" if dry_run else "deleted"
        emit(
            {what.replace(" ", "_"): tags} if as_json else f"{what}: {', '.join(tags) or 'nothing'}",
            as_json=as_json,
        )


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


def repair(
    source: str,
    target: str,
    delete_extra: Annotated[
        int, typer.Option(min=0, help="Delete what the source does not have, if it is at most so many.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, do nothing.")] = False,
    workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Verify, copy just the records that are missing or different, and verify again."""
    with errors_as_text(as_json=as_json):
        done = api.repair(source, target, delete_extra=delete_extra, dry_run=dry_run, workers=workers)
        emit(done, as_json=as_json)
        if not done.ok:
            raise typer.Exit(DIFFERENT)
