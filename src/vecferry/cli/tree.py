"""The command tree. A command's module is imported when the command is called, or its help is asked for."""

from __future__ import annotations

import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import vecferry as vf

_COMMANDS = {
    "migrate": "migrate:migrate",
    "plan": "migrate:plan",
    "verify": "migrate:verify",
    "inspect": "looking:inspect",
    "search": "looking:search",
    "versions": "jobs:versions",
    "rollback": "jobs:rollback",
    "prune": "jobs:prune",
    "publish": "jobs:publish",
    "repair": "jobs:repair",
    "dedupe": "dedupe:dedupe",
    "sync": "sync:sync",
    "bench": "bench:bench",
    "jobs": "jobs:jobs",
    "quarantine": "jobs:quarantine",
    "snapshots": "snapshots:app",
    "models": "models:app",
    "costs": "costs:app",
}
"""Command → ``module:attribute`` in this package: a function, or a `typer.Typer` of further commands."""


class _Lazy(TyperGroup):
    """Finds commands by name without importing the others."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        found = getattr(import_module(f"vecferry.cli.{module}"), attribute)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
            alone.command(cmd_name)(found)
            found = alone
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="vecferry",
    cls=_Lazy,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals may hold secrets
    help="Ferry collections of vectors between stores, and prove that nothing was lost.",
)


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


def run() -> None:
    """Read the command line and carry it out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # an arrow is no reason to fail where there is no Unicode
            stream.reconfigure(errors="backslashreplace")
    app()
