"""``vecferry bench``: two collections, the same queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vecferry.cli.console import AsJson, emit, errors_as_text
from vecferry.cli.sync import embedder_of
from vecferry.connecting import connect
from vecferry.errors import ConfigurationError, NotFoundError
from vecferry.model import parse_where
from vecferry.serving import compare

Side = Annotated[str, typer.Argument(help="A collection, such as faiss:./kb")]


def bench(
    a: Side,
    b: Side,
    queries: Annotated[Path, typer.Option(help="Texts, one a line; JSON lines; or vectors as .npy.")],
    k: Annotated[int, typer.Option("-k", help="Hits a query.")] = 10,
    where: Annotated[str | None, typer.Option(help="Only these records.")] = None,
    embed: Annotated[str | None, typer.Option(help="Embed query texts with PROVIDER:MODEL.")] = None,
    embed_a: Annotated[str | None, typer.Option(help="For A only, if its space is another.")] = None,
    embed_b: Annotated[str | None, typer.Option(help="For B only.")] = None,
    price_a: Annotated[float | None, typer.Option(help="What a query to A costs.")] = None,
    price_b: Annotated[float | None, typer.Option(help="What a query to B costs.")] = None,
    repeat: Annotated[int, typer.Option(help="How often all queries are asked.")] = 1,
    by_text: Annotated[
        bool, typer.Option("--by-text", help="Hits are the same if their texts are (other ids).")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare latency, results and cost of two collections by the same queries."""
    with errors_as_text(as_json=as_json):
        asked = read_queries(queries)
        with connect(a) as left, connect(b) as right:
            comparison = compare(
                left,
                right,
                asked,
                k=k,
                where=parse_where(where) if where else None,
                names=(left.url, right.url),
                embedders=(embedder_of(embed_a or embed), embedder_of(embed_b or embed)),
                prices=(price_a, price_b),
                repeat=repeat,
                key=(lambda hit: hit.text) if by_text else None,
            )
        if plot:
            comparison.plot(plot)
        emit(comparison, as_json=as_json)


def read_queries(path: Path) -> list[Any]:
    """Texts or vectors: rows of a ``.npy`` file; ``{"text"}`` or ``{"vector"}`` lines; plain lines.

    Raises:
        NotFoundError: if there is no such file.
        ConfigurationError: naming the line that is neither.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}; write one query a line into it")
    if path.suffix == ".npy":
        import numpy as np

        return list(np.load(path, allow_pickle=False))
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    return [_query(line, number) for number, line in enumerate(lines, 1) if line]


def _query(line: str, number: int) -> Any:
    if not line.startswith("{"):
        return line
    try:
        value = json.loads(line)
    except ValueError:
        return line
    for key in ("text", "query", "vector"):
        if isinstance(value, dict) and value.get(key):
            return value[key]
    raise ConfigurationError(f'line {number} has neither "text" nor "vector"')
