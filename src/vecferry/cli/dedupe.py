"""``vecferry dedupe``: remove the duplicates of one collection where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vecferry.cli.console import AsJson, bars, emit, errors_as_text
from vecferry.dedupe import Dedupe
from vecferry.dedupe import dedupe as dedupe_in_place


def dedupe(
    collection: Annotated[str, typer.Argument(help="A collection, such as qdrant://localhost:6333/kb")],
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="id, text, metadata:KEY[,KEY], vector, similar or minhash; may be repeated. Default: text."
        ),
    ] = None,
    keep: Annotated[str, typer.Option(help="first, last, newest or oldest.")] = "first",
    timestamp: Annotated[str | None, typer.Option(help="metadata:KEY, for newest and oldest.")] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Compare texts after NFKC, case folding, white space.")
    ] = False,
    threshold: Annotated[float | None, typer.Option(help="For similar and minhash.")] = None,
    within: Annotated[
        str | None, typer.Option(help="metadata:KEY: compare only inside these groups.")
    ] = None,
    field: Annotated[str, typer.Option(help="The vector field.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide and report, delete nothing.")] = False,
    audit: Annotated[Path | None, typer.Option(help="Write removed id, kept id and reason here.")] = None,
    backup: Annotated[
        str | None,
        typer.Option(help="Copy what goes to this collection first, such as parquet:./gone.parquet"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find duplicates in a collection and delete them."""
    with errors_as_text(as_json=as_json):
        rules = [
            _rule(name, keep, timestamp, normalize, threshold, within, field) for name in by or ["text"]
        ]
        with bars(quiet=as_json) as on_progress:
            done = dedupe_in_place(
                collection, rules, dry_run=dry_run, audit=audit, backup=backup, on_progress=on_progress
            )
        emit(done, as_json=as_json)


def _rule(
    by: str,
    keep: Any,
    timestamp: str | None,
    normalize: bool,
    threshold: float | None,
    within: str | None,
    field: str,
) -> Dedupe:
    """One rule of the options that concern it: with several rules each takes what is its own."""
    near = by in ("similar", "minhash")
    return Dedupe(
        by=by,
        keep=keep,
        timestamp=timestamp,
        normalize=normalize and by == "text",
        threshold=threshold if near else None,
        within=within if near else None,
        field=field if by in ("similar", "vector") else "",
    )
