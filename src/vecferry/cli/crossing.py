"""``vecferry migrate``, ``plan`` and ``verify``."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

import vecferry as vf
from vecferry.cli.console import DIFFERENT, AsJson, Workers, bars, emit, errors_as_text, graceful_stop
from vecferry.errors import JobStopped
from vecferry.model import parse_where

From = Annotated[str, typer.Argument(metavar="SOURCE", help="Where to read, such as faiss:./kb")]
To = Annotated[str, typer.Argument(metavar="TARGET", help="Where to write, such as qdrant://host/kb")]
Mode = Annotated[str, typer.Option(help="create, upsert or replace.")]
Filter = Annotated[
    str | None, typer.Option("--where", help="Only these records: \"lang == 'en' and page >= 3\".")
]
FieldNames = Annotated[
    list[str] | None, typer.Option("--field", help="A vector field to carry, NAME or OLD=NEW; repeatable.")
]
Embed = Annotated[
    list[str] | None, typer.Option(help="Embed the texts with this model; repeat it for alternatives.")
]


def migrate(
    source: From,
    target: To,
    mode: Mode = "create",
    where: Filter = None,
    field: FieldNames = None,
    metric: Annotated[str | None, typer.Option(help="The target's metric: cosine, l2, ip.")] = None,
    layout: Annotated[str | None, typer.Option(help="plain, langchain, llamaindex, both.")] = None,
    space: Annotated[str | None, typer.Option(help="The model that made the source's vectors.")] = None,
    embed: Embed = None,
    reembed: Annotated[str, typer.Option(help="auto, always or never.")] = "auto",
    long_text: Annotated[str, typer.Option(help="truncate, split or refuse.")] = "truncate",
    chunk_size: Annotated[int | None, typer.Option(help="Tokens a chunk, with --long-text split.")] = None,
    chunk_overlap: Annotated[int | None, typer.Option(help="Tokens shared by neighbours.")] = None,
    dedupe: Annotated[list[str] | None, typer.Option(help="id, text, metadata:KEY, vector, …")] = None,
    lossy: Annotated[str, typer.Option(help="allow, or refuse what is not kept reversibly.")] = "allow",
    on_error: Annotated[str, typer.Option(help="stop, or quarantine bad records.")] = "stop",
    max_rejected: Annotated[
        float | None, typer.Option(help="Stop beyond this many (or this share, below 1).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Records a batch.")] = None,
    fresh: Annotated[bool, typer.Option("--no-resume", help="Forget an unfinished run.")] = False,
    state_dir: Annotated[Path | None, typer.Option(help="The job's folder.")] = None,
    publish: Annotated[str, typer.Option(help="auto, or manual: stop before the swap.")] = "auto",
    backup: Annotated[str | None, typer.Option(help="Write the source to this place first.")] = None,
    unverified: Annotated[bool, typer.Option("--no-verify", help="Skip the proof.")] = False,
    workers: Workers = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No bars, no plan.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ferry a collection and prove that nothing was lost.

    Exit status: 0 proved, 1 a difference, 2 could not be done, 130 stopped (run it again to go on)."""
    with errors_as_text(as_json=as_json), graceful_stop() as stop:
        options: dict[str, Any] = {  # checked by plan() itself, with messages of its own
            "mode": mode,
            "where": parse_where(where) if where else None,
            "fields": field_names(field),
            "metric": metric,
            "layout": layout,
            "space": space,
            "embed": one_or_many(embed),
            "reembed": reembed,
            "long_text": long_text,
            "chunk_size": chunk_size,
            "chunk_overlap": chunk_overlap,
            "dedupe": one_or_many(dedupe),
            "lossy": lossy,
            "on_error": on_error,
            "max_rejected": share_or_count(max_rejected),
            "batch_size": batch_size,
            "resume": not fresh,
            "state_dir": state_dir,
            "publish": publish,
            "backup": backup,
            "verify": not unverified,
            "workers": workers,
        }
        plan = vf.plan(source, target, **options)
        if not (quiet or as_json):
            emit(plan, as_json=False)
        with bars(quiet=quiet or as_json) as listener:
            report = plan.run(listener, should_stop=stop)
        emit(report, as_json=as_json)
        if not report.ok and not (unverified and not report.rejected):
            raise typer.Exit(DIFFERENT)


def plan(
    source: From,
    target: To,
    mode: Mode = "create",
    where: Filter = None,
    field: FieldNames = None,
    metric: Annotated[str | None, typer.Option(help="The target's metric.")] = None,
    layout: Annotated[str | None, typer.Option(help="plain, langchain, llamaindex, both.")] = None,
    space: Annotated[str | None, typer.Option(help="The model that made the source's vectors.")] = None,
    embed: Embed = None,
    sample: Annotated[int | None, typer.Option(help="Records to look at; 0 for all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a migration would do. Writes nothing."""
    extra: dict[str, Any] = {} if sample is None else {"sample": sample or None}
    with errors_as_text(as_json=as_json):
        options: dict[str, Any] = dict(
            mode=mode,
            where=parse_where(where) if where else None,
            fields=field_names(field),
            metric=metric,
            layout=layout,
            space=space,
            embed=one_or_many(embed),
            **extra,
        )
        drawn = vf.plan(source, target, **options)
        emit(drawn, as_json=as_json)


def verify(
    source: From,
    target: To,
    where: Filter = None,
    field: FieldNames = None,
    workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Compare two collections record by record. Exit status 1 on any difference."""
    with errors_as_text(as_json=as_json), graceful_stop() as stop:
        proof = vf.verify(
            source,
            target,
            where=parse_where(where) if where else None,
            fields=field_names(field),
            workers=workers,
            should_stop=stop,
        )
        if stop() and not proof.ok:
            raise JobStopped("stopped before the end, nothing is proved; run the same command again")
        emit(proof, as_json=as_json)
        if not proof.ok:
            raise typer.Exit(DIFFERENT)


def field_names(fields: list[str] | None) -> dict[str, str] | None:
    """``["a", "b=c"]`` → ``{"a": "a", "b": "c"}``."""
    if not fields:
        return None
    pairs = [name.partition("=") for name in fields]
    return {old: new if equals else old for old, equals, new in pairs}


def one_or_many(values: list[str] | None) -> str | list[str] | None:
    """A single value as itself, several as a list, none as ``None``."""
    if not values:
        return None
    return values[0] if len(values) == 1 else values


def share_or_count(value: float | None) -> int | float | None:
    """A share below 1 stays a float; anything else is a number of records, or none at all."""
    return value if value is None or 0 < value < 1 or not isfinite(value) else int(value)
