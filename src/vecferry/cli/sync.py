"""``vecferry sync``: what changed since the last run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from vecferry.cli.console import AsJson, bars, emit, errors_as_text, graceful_stop
from vecferry.connecting import connect
from vecferry.model import parse_where
from vecferry.serving import Announcing
from vecferry.serving import sync as run_once
from vecferry.serving import untrack as remove_tracking

From = Annotated[str, typer.Argument(metavar="SOURCE", help="The collection that changes.")]
To = Annotated[str, typer.Argument(metavar="TARGET", help="An existing copy of it.")]


def sync(
    source: From,
    target: To,
    by: Annotated[str, typer.Option(help="digest, column:NAME, or journal (Postgres).")] = "digest",
    where: Annotated[str | None, typer.Option(help="Only these records.")] = None,
    embed: Annotated[str | None, typer.Option(help="Embed changed texts with PROVIDER:MODEL.")] = None,
    long_text: Annotated[
        str | None, typer.Option("--long-text", help="As the migration had it, such as split.")
    ] = None,
    chunk_size: Annotated[int | None, typer.Option("--chunk-size", help="As the migration had it.")] = None,
    keep_deleted: Annotated[bool, typer.Option("--keep-deleted", help="Delete nothing.")] = False,
    max_deletes: Annotated[float, typer.Option(help="Refuse to delete a greater share.")] = 0.5,
    overlap: Annotated[float, typer.Option(help="Read the column again this far back.")] = 0.0,
    forget: Annotated[
        bool, typer.Option("--forget", help="Let the source's journal forget what was read.")
    ] = False,
    state: Annotated[Path | None, typer.Option(help="The file that remembers.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until stopped (Ctrl-C).")] = False,
    every: Annotated[float, typer.Option(help="Seconds between runs with --follow.")] = 5.0,
    untrack: Annotated[
        bool, typer.Option("--untrack", help="Remove what --by journal installed, and end.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No bars.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring TARGET up to SOURCE: what was added, changed and deleted since the last run."""
    options: dict[str, Any] = {
        "long_text": long_text,
        "chunk_size": chunk_size,
        "by": by,
        "state": state,
        "deletes": not keep_deleted,
        "max_deletes": max_deletes,
        "overlap": overlap,
        "forget": forget,
    }
    with (
        errors_as_text(as_json=as_json),
        graceful_stop() as stop,
        connect(source) as origin,
        connect(target) as goal,
    ):
        filter_ = parse_where(where) if where else None
        if untrack:
            remove_tracking(origin, goal, state=state, where=filter_)
            return
        options |= {"where": filter_, "embed": embed, "should_stop": stop}
        while True:
            with bars(quiet=quiet or as_json or follow) as listener:
                report = run_once(origin, goal, on_progress=listener, **options)
            if not (follow and report.quiet):
                emit(report, as_json=as_json)
            if not follow or _stopped_within(every, stop, origin.store if by == "journal" else None):
                return


def _stopped_within(seconds: float, stop: Any, source: Any) -> bool:
    """Wait for the next run: until the time is over, or the source announces a change."""
    end = time.monotonic() + seconds
    while not stop() and (left := end - time.monotonic()) > 0:
        if isinstance(source, Announcing):
            if source.wait_for_changes(min(left, 0.5)):
                break
        else:
            time.sleep(min(left, 0.05))
    return bool(stop())


def embedder_of(name: str | None) -> Any:
    """The embedder called so; ``None`` for none."""
    if name is None:
        return None
    from vecferry.embedding import resolve

    return resolve(name)
