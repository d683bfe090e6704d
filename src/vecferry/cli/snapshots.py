"""``vecferry snapshots``: save, list, restore, diff, prune, verify, repair."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from vecferry.cli.console import DIFFERENT, AsJson, bars, emit, errors_as_text
from vecferry.errors import ConfigurationError
from vecferry.snapshots import Snapshot, SnapshotStore

app = typer.Typer(no_args_is_help=True, help="Versioned copies of a collection, on disk and in S3.")

Store = Annotated[str, typer.Argument(help="s3://BUCKET/PREFIX or file:PATH")]
Endpoint = Annotated[
    str | None, typer.Option(help="Of another S3 server than AWS.", envvar="AWS_ENDPOINT_URL")
]
Profile = Annotated[str | None, typer.Option(help="A profile of ~/.aws.")]
Which = Annotated[str, typer.Argument(help="A version, or latest.")]


@app.command()
def save(
    collection: Annotated[str, typer.Argument(help="A collection, such as faiss:./kb")],
    store: Store,
    note: Annotated[str, typer.Option(help="A word on why.")] = "",
    version: Annotated[str | None, typer.Option(help="Its name; default the time.")] = None,
    format: Annotated[str, typer.Option(help="auto or parquet.")] = "auto",
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Save a collection as a new version."""
    with errors_as_text(as_json=as_json), _open(store, endpoint_url, profile) as versions:
        with bars(quiet=as_json) as on_progress:
            snapshot = versions.save(
                collection, note=note, version=version, format=format, on_progress=on_progress
            )
        emit(snapshot if as_json else f"saved {_line(snapshot)}", as_json=as_json)


@app.command(name="list")
def list_(
    store: Store, endpoint_url: Endpoint = None, profile: Profile = None, as_json: AsJson = False
) -> None:
    """List the versions, newest first."""
    with errors_as_text(as_json=as_json), _open(store, endpoint_url, profile) as versions:
        found = versions.list()
        lines = "\n".join(map(_line, found)) or "no version yet"
        emit([v.model_dump(mode="json") for v in found] if as_json else lines, as_json=as_json)


@app.command()
def restore(
    store: Store,
    version: Which,
    target: Annotated[str, typer.Argument(help="A collection, such as qdrant://localhost:6333/kb")],
    mode: Annotated[str, typer.Option(help="create, replace or upsert.")] = "create",
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Copy a version into a collection and verify it; files of the same kind are put as they are."""
    with errors_as_text(as_json=as_json), _open(store, endpoint_url, profile) as versions:
        with bars(quiet=as_json) as on_progress:
            chosen: Any = mode  # checked by migrate() itself, with a message of its own
            result = versions.restore(version, target, mode=chosen, on_progress=on_progress)
        if isinstance(result, Snapshot):
            emit(result if as_json else f"restored {_line(result)}", as_json=as_json)
            return
        emit(result, as_json=as_json)
        if not result.ok:
            raise typer.Exit(DIFFERENT)


@app.command()
def diff(
    store: Store,
    old: Which,
    new: Which,
    limit: Annotated[int, typer.Option(help="Ids shown of each sort.")] = 20,
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Show which ids were added, removed and changed. Exits with 1 if any was."""
    with errors_as_text(as_json=as_json), _open(store, endpoint_url, profile) as versions:
        found = versions.diff(old, new, limit=limit)
        shown = [f"{sign} {id_!r}" for sign, ids in found.signed() for id_ in ids]
        emit(found if as_json else "\n".join([*shown, str(found)]), as_json=as_json)
        if not found.equal:
            raise typer.Exit(DIFFERENT)


@app.command()
def prune(
    store: Store,
    keep: Annotated[int, typer.Option(help="The newest so many stay.")],
    abandoned_after: Annotated[
        str, typer.Option(help="Interrupted saves older than this go too, such as 1d or 12h.")
    ] = "1d",
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Delete all but the newest versions, and what interrupted saves left behind."""
    with errors_as_text(as_json=as_json), _open(store, endpoint_url, profile) as versions:
        gone = versions.prune(keep, abandoned_after=_span(abandoned_after))
        emit(list(gone) if as_json else "\n".join(f"deleted {v}" for v in gone), as_json=as_json)


@app.command()
def verify(
    store: Store,
    version: Which = "latest",
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Read a version and compare every checksum. Exits with 1 if one differs."""
    with errors_as_text(as_json=as_json), _open(store, endpoint_url, profile) as versions:
        with bars(quiet=as_json) as on_progress:
            problems = versions.verify(version, on_progress=on_progress)
        lines = "\n".join(f"{p.path}: {p.reason}" for p in problems) or "every file is as it was saved"
        emit([[p.path, p.reason] for p in problems] if as_json else lines, as_json=as_json)
        if problems:
            raise typer.Exit(DIFFERENT)


@app.command()
def download(
    store: Store,
    version: Which,
    folder: Annotated[Path, typer.Argument(help="Where to put the files.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace what is there.")] = False,
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Put the very files of a version into a folder, verified."""
    with errors_as_text(as_json=as_json), _open(store, endpoint_url, profile) as versions:
        with bars(quiet=as_json) as on_progress:
            snapshot = versions.download(folder, version, replace=replace, on_progress=on_progress)
        emit(snapshot if as_json else f"downloaded {_line(snapshot)}", as_json=as_json)


@app.command()
def repair(
    store: Store, endpoint_url: Endpoint = None, profile: Profile = None, as_json: AsJson = False
) -> None:
    """Write metadata.json anew from the complete versions that lie there."""
    with errors_as_text(as_json=as_json), _open(store, endpoint_url, profile) as versions:
        found = versions.repair()
        lines = "\n".join(map(_line, found)) or "no complete version found"
        emit([v.model_dump(mode="json") for v in found] if as_json else lines, as_json=as_json)


def _open(store: str, endpoint_url: str | None, profile: str | None) -> SnapshotStore:
    return SnapshotStore(store, endpoint_url=endpoint_url, profile=profile)


def _line(snapshot: Snapshot) -> str:
    count = "?" if snapshot.count is None else f"{snapshot.count:,}"
    shape = f"{snapshot.dim} d {snapshot.metric}" if snapshot.dim else ""
    parts = [snapshot.version, f"{count} records", shape, f"{snapshot.bytes:,} bytes", snapshot.format]
    return "  ".join(part for part in (*parts, " ".join(snapshot.note.split())) if part)


def _span(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+)([dhms])", text.strip())
    if not match:
        raise ConfigurationError(f"{text!r} is no span of time; write 1d, 12h, 30m or 90s")
    names = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
    return timedelta(**{names[match[2]]: int(match[1])})
