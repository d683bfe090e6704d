"""``vecferry costs``: what embedding has cost, from the ledger, and what it will cost."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vecferry.cli.console import AsJson, emit, errors_as_text, out
from vecferry.connecting import connect
from vecferry.contrib.model_bench import plot_costs
from vecferry.embedding import Ledger, Spent, forecast_costs

app = typer.Typer(invoke_without_command=True, help="What embedding has cost, and will cost.")


@app.callback()
def costs(
    context: typer.Context,
    since: Annotated[str, typer.Option(help="The first month, such as 2026-01.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print tokens and US dollars by month, model and job."""
    if context.invoked_subcommand is not None:
        return
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


@app.command()
def forecast(
    models: Annotated[str, typer.Option(help="PROVIDER:MODEL,PROVIDER:MODEL,…")],
    documents: Annotated[int | None, typer.Option(help="How many; else those of --collection.")] = None,
    document_tokens: Annotated[float | None, typer.Option(help="Of one, on average.")] = None,
    collection: Annotated[str | None, typer.Option(help="Count documents and tokens there.")] = None,
    queries: Annotated[float, typer.Option(help="A month.")] = 0,
    query_tokens: Annotated[float, typer.Option(help="Of one, on average.")] = 20,
    changed: Annotated[float, typer.Option(help="Share of the documents that changes a month.")] = 0.0,
    cached: Annotated[float, typer.Option(help="Share of the questions a cache answers.")] = 0.0,
    months: Annotated[int, typer.Option(help="To sum up.")] = 12,
    as_json: AsJson = False,
) -> None:
    """Say what embedding documents once, and questions every month, will cost with each model."""
    with errors_as_text(as_json=as_json):
        counted = count_tokens_of(collection) if collection else (None, None)
        result = forecast_costs(
            [name.strip() for name in models.split(",") if name.strip()],
            documents=documents if documents is not None else counted[0] or 0,
            document_tokens=document_tokens if document_tokens is not None else counted[1] or 300.0,
            queries=queries,
            query_tokens=query_tokens,
            changed=changed,
            cached=cached,
            months=months,
        )
        emit(result, as_json=as_json)


def count_tokens_of(url: str, sample: int = 2_000) -> tuple[int, float]:
    """How many documents a collection has, and tokens of one, by its first ones: about 4 bytes a token."""
    with connect(url) as there:
        texts = [record.text for record in islice(there.records(), sample) if record.text]
        total = there.count()
    tokens = sum(len(text.encode("utf-8", "replace")) for text in texts) / 4
    return total, tokens / max(1, len(texts))


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
