"""The command tree."""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Annotated

import typer

import vecferry as vf
from vecferry.cli import bench, costs, crossing, dedupe, jobs, looking, models, snapshots, sync

app = typer.Typer(
    name="vecferry",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals may hold secrets
    help="Ferry collections of vectors between stores, and prove that nothing was lost.",
)

_COMMANDS: tuple[Callable[..., None], ...] = (
    crossing.migrate,
    crossing.plan,
    crossing.verify,
    looking.inspect,
    looking.search,
    jobs.versions,
    jobs.rollback,
    jobs.prune,
    jobs.publish,
    jobs.repair,
    dedupe.dedupe,
    sync.sync,
    bench.bench,
)
for command in _COMMANDS:
    app.command()(command)
app.add_typer(jobs.jobs, name="jobs")
app.add_typer(jobs.quarantine, name="quarantine")
app.add_typer(snapshots.app, name="snapshots")
app.add_typer(models.app, name="models")
app.add_typer(costs.app, name="costs")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vecferry {vf.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Ferry collections of vectors between stores, and prove that nothing was lost."""


def main() -> None:
    """The entry point of ``vecferry`` and ``python -m vecferry``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # an arrow is no reason to fail where there is no Unicode
            stream.reconfigure(errors="backslashreplace")
    app()
