"""``vecferry migrate``, ``plan`` and ``verify``. The options of the first two are those of `Settings`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature, signature
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

import vecferry as vf
from vecferry.api.migration import CallSettings, options_of
from vecferry.cli.console import (
    DIFFERENT,
    UNVERIFIED,
    AsJson,
    Workers,
    bars,
    emit,
    errors_as_text,
    graceful_stop,
)
from vecferry.errors import ConfigurationError, JobStopped
from vecferry.model import parse_where

From = Annotated[str, typer.Argument(metavar="SOURCE", help="Where to read, such as faiss:./kb")]
To = Annotated[str, typer.Argument(metavar="TARGET", help="Where to write, such as qdrant://host/kb")]
OptionalTo = Annotated[
    str | None,
    typer.Argument(metavar="TARGET", help="What is held against it; with --receipt the only collection."),
]
ReceiptFile = Annotated[
    Path | None,
    typer.Option("--receipt", help="Hold a collection against this receipt of a job, without its source."),
]
Filter = Annotated[
    str | None, typer.Option("--where", help="Only these records: \"lang == 'en' and page >= 3\".")
]
FieldNames = Annotated[
    list[str] | None, typer.Option("--field", help="A vector field to carry, NAME or OLD=NEW; repeatable.")
]


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option that `vecferry.plan` takes as a keyword; it gets them as ``options``."""
    hints = get_type_hints(function, include_extras=True)
    own = [
        p.replace(annotation=hints[name])
        for name, p in signature(function).parameters.items()
        if name != "options"
    ]
    settings = [_parameter(name) for name, option in options_of(CallSettings) if option.flag]

    def command(**values: Any) -> None:
        given = {p.name: values.pop(p.name) for p in settings}
        options = {name: _READERS[reads](given[name]) for name, reads in _READ.items()}
        function(**values, options=options)

    placed = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in own]
    parameters = [*placed[:2], *settings, *placed[2:]]
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*own, *settings]}
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    return command


def _parameter(name: str) -> Parameter:
    """One setting as a parameter that typer reads."""
    option = dict(options_of(CallSettings))[name]
    field = CallSettings.model_fields[name]
    kind: Any = str | None
    default: Any = None
    if option.reads in ("many", "fields", "pairs"):
        kind = list[str] | None
    elif option.reads in ("yes", "no"):
        kind, default = bool, False
    elif option.reads == "share":
        kind = float | None
    elif option.reads == "sample":
        kind, default = int, field.default
    elif isinstance(field.default, int | float):
        kind, default = type(field.default), field.default
    elif "int" in str(field.annotation):
        kind = int | None
    elif "float" in str(field.annotation):
        kind = float | None
    elif isinstance(field.default, str):
        kind, default = str, field.default
    info = typer.Option(option.flag, help=(field.description or "").replace("`", ""))
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


_READ = {name: option.reads for name, option in options_of(CallSettings) if option.flag}


@with_settings
def migrate(
    source: From,
    target: To,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No bars, no plan.")] = False,
    as_json: AsJson = False,
    *,
    options: dict[str, Any],
) -> None:
    """Ferry a collection and prove that nothing was lost.

    Exit status: 0 proved, 1 a difference, 2 could not be done, 3 written and not verified (--no-verify),
    130 stopped (run it again to go on)."""
    with errors_as_text(as_json=as_json), graceful_stop() as stop:
        plan = vf.plan(source, target, **options)
        if not (quiet or as_json):
            emit(plan, as_json=False)
        with bars(quiet=quiet or as_json) as listener:
            report = plan.run(listener, should_stop=stop)
        emit(report, as_json=as_json)
        leave(report)


def leave(report: vf.Report) -> None:
    """End with the exit status that the report deserves."""
    if report.unverified:
        raise typer.Exit(UNVERIFIED)
    if not report.ok:
        raise typer.Exit(DIFFERENT)


@with_settings
def plan(source: From, target: To, as_json: AsJson = False, *, options: dict[str, Any]) -> None:
    """Say what a migration would do. Writes nothing."""
    with errors_as_text(as_json=as_json):
        emit(vf.plan(source, target, **options), as_json=as_json)


def verify(
    source: From,
    target: OptionalTo = None,
    receipt: ReceiptFile = None,
    where: Filter = None,
    field: FieldNames = None,
    workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Compare two collections record by record, or one with a receipt. Exit status 1 on any difference."""
    with errors_as_text(as_json=as_json), graceful_stop() as stop:
        proof = vf.verify(
            source,
            target,
            receipt=receipt,
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


def field_names(fields: Sequence[str] | None) -> dict[str, str] | None:
    """``["a", "b=c"]`` → ``{"a": "a", "b": "c"}``."""
    if not fields:
        return None
    pairs = [name.partition("=") for name in fields]
    return {old: new if equals else old for old, equals, new in pairs}


def one_or_many(values: Sequence[str] | None) -> str | list[str] | None:
    """A single value as itself, several as a list, none as ``None``."""
    if not values:
        return None
    return values[0] if len(values) == 1 else list(values)


def share_or_count(value: float | None) -> int | float | None:
    """A share below 1 stays a float; anything else is a number of records, or none at all."""
    return value if value is None or 0 < value < 1 or not isfinite(value) else int(value)


def amounts(pairs: Sequence[str] | None) -> dict[str, float] | None:
    """``["usd_per_month=100"]`` → ``{"usd_per_month": 100.0}``.

    Raises:
        ConfigurationError: for anything else.
    """
    found: dict[str, float] = {}
    for pair in pairs or ():
        name, _, amount = pair.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            raise ConfigurationError(f"{pair!r} is no NAME=AMOUNT; e.g. usd_per_month=100") from None
    return found or None


_READERS: dict[str, Callable[[Any], Any]] = {
    "value": lambda value: value,
    "where": lambda text: parse_where(text) if text else None,
    "fields": field_names,
    "many": one_or_many,
    "share": share_or_count,
    "sample": lambda number: number or None,
    "pairs": amounts,
    "yes": lambda given: given,
    "no": lambda given: not given,
}
