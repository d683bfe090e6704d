"""``vecferry inspect`` and ``search``."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any
from uuid import UUID

import typer

import vecferry as vf
from vecferry.cli.console import AsJson, emit, errors_as_text
from vecferry.errors import ConfigurationError, NotFoundError
from vecferry.model import RecordId, VectorRecord, encode_id, parse_where
from vecferry.ports import for_queries

Url = Annotated[str, typer.Argument(metavar="URL", help="A collection, such as faiss:./kb")]


def inspect(
    url: Url,
    sample: Annotated[int, typer.Option(help="Records to look at; 0 for all.")] = 50_000,
    as_json: AsJson = False,
) -> None:
    """Show what a collection holds: schema, layout, metric, types, norms, duplicates, what is missing."""
    with errors_as_text(as_json=as_json):
        emit(vf.inspect(url, sample=sample or None), as_json=as_json)


def search(
    url: Url,
    text: Annotated[str | None, typer.Argument(help="A text; needs --embed.")] = None,
    like: Annotated[str | None, typer.Option(help="The id of a record to start from.")] = None,
    embed: Annotated[str | None, typer.Option(help="The model that made the collection.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many hits.")] = 5,
    field: Annotated[str, typer.Option(help="The vector field to search in.")] = "",
    where: Annotated[str | None, typer.Option(help="\"lang == 'en'\"")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the records nearest to a text or to another record."""
    with errors_as_text(as_json=as_json), vf.connect(url) as collection:
        query = _query(collection, text, like, embed)
        hits = collection.search(query, k, parse_where(where) if where else None, field=field)
        emit([_row(hit) for hit in hits] if as_json else _table(hits), as_json=as_json)


def _query(collection: vf.Collection, text: str | None, like: str | None, embed: str | None) -> Any:
    if like is not None:
        found = next((r for i in _readings(like) for r in collection.fetch([i])), None)
        if found is None:
            raise NotFoundError(f"{collection.url} has no record {like!r}")
        return found
    if text is None:
        raise ConfigurationError("give a TEXT, or --like ID")
    if embed is None:
        return text
    from vecferry.embedding import resolve

    return for_queries(resolve(embed)).embed([text])[0]


def _readings(text: str) -> list[RecordId]:
    """An id typed on a command line may be a string, an integer or a UUID."""
    readings: list[RecordId] = [text]
    if text.lstrip("-").isdigit():
        readings.append(int(text))
    with suppress(ValueError):
        readings.append(UUID(text))
    return readings


def _row(hit: VectorRecord) -> dict[str, Any]:
    return {"id": encode_id(hit.id), "score": hit.score, "text": hit.text, "metadata": hit.metadata}


def _table(hits: list[VectorRecord]) -> str:
    lines = [
        f"{(hit.score or 0.0) + 0.0:8.4f}  {hit.id}  {' '.join((hit.text or '')[:90].split())}"
        for hit in hits
        if hit.score is not None
    ]
    return "\n".join(lines) if lines else "no hits"
