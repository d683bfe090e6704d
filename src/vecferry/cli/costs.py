"""``vecferry costs``: what embedding has cost, from the ledger."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vecferry.cli.console import AsJson, emit, errors_as_text, out
from vecferry.contrib.model_bench import plot_costs
from vecferry.embedding import Ledger, Spent

app = typer.Typer(invoke_without_command=True, help="What embedding has cost.")


@app.callback()
def costs(
    since: Annotated[str, typer.Option(help="The first month, such as 2026-01.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print tokens and US dollars by month, model and job."""
    with errors_as_text(as_json=as_json):
        lines = Ledger().lines(since)
        if plot:
            plot_costs(lines, plot)
        if as_json:
            emit([asdict(line) for line in lines], as_json=True)
        elif lines:
            out.print(table(lines))
        else:
            out.print("nothing has been embedded yet")


def table(lines: list[Spent]) -> Table:
    """One row a month, model and job, and the sum."""
    result = Table("month", "model", "job", show_footer=True)
    totals = (sum(line.texts for line in lines), sum(line.tokens for line in lines))
    result.add_column("texts", f"{totals[0]:,}", justify="right")
    result.add_column("tokens", f"{totals[1]:,}", justify="right")
    result.add_column("US dollars", f"{sum(line.usd for line in lines):,.4f}", justify="right")
    for line in lines:
        model = f"{line.provider}:{line.model}"
        result.add_row(
            line.month, model, line.job, f"{line.texts:,}", f"{line.tokens:,}", f"{line.usd:,.4f}"
        )
    return result
