"""``vecferry models``: fetch, list and remove models, compare them on one's own records."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vecferry.cli.console import AsJson, emit, err, errors_as_text, out
from vecferry.connecting import connect
from vecferry.contrib.model_bench import Question, bench_models, sample_texts
from vecferry.embedding import fetch_model, list_models, remove_model
from vecferry.errors import ConfigurationError
from vecferry.model import parse_where

app = typer.Typer(no_args_is_help=True, help="Embedding models: fetch, list, remove, compare.")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Such as all-MiniLM-L6-v2 or intfloat/e5-small-v2.")],
    to: Annotated[Path | None, typer.Option(help="The folder; else one of vecferry's own.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.")] = None,
) -> None:
    """Download a model from Hugging Face once; it is used offline from then on."""
    with errors_as_text():
        local = fetch_model(name, to, revision=revision)
        used = f"sentence-transformers:{local.path if to else name}"
        out.print(f"{local.name} is in {local.path}; use it as {used}", markup=False)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the models that were fetched."""
    with errors_as_text(as_json=as_json):
        found = list_models()
        if as_json:
            emit([{**asdict(model), "bytes": size} for model, size in found], as_json=True)
            return
        for model, size in found:
            out.print(f"{model.name}  {size / 1e6:,.0f} MB  {model.path}", markup=False)
        if not found:
            out.print("no model was fetched yet; vecferry models fetch NAME")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="As it was fetched.")],
    revision: Annotated[str | None, typer.Option(help="As it was fetched.")] = None,
) -> None:
    """Delete a model that was fetched."""
    with errors_as_text():
        out.print(f"{remove_model(name, revision).name} is gone", markup=False)


@app.command()
def bench(
    url: Annotated[str, typer.Argument(help="A collection, such as faiss:./kb")],
    models: Annotated[str, typer.Option(help="PROVIDER:MODEL,PROVIDER:MODEL,…")],
    sample: Annotated[int, typer.Option(help="Records to draw.")] = 500,
    queries: Annotated[
        Path | None, typer.Option(help='JSON lines {"query": …, "ids": […]}; else derived from the texts.')
    ] = None,
    where: Annotated[str | None, typer.Option(help="Only these records.")] = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours.")] = 10,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare models on a sample of a collection: recall, overlap, speed, storage, cost."""
    with errors_as_text(as_json=as_json):
        with connect(url) as collection:
            ids, texts, vectors = sample_texts(
                collection.scan(where=parse_where(where) if where else None), sample
            )
        asked = read_questions(queries, ids) if queries else ()
        result = bench_models(
            [name.strip() for name in models.split(",") if name.strip()],
            texts,
            vectors=vectors,
            questions=asked,
            k=k,
            on_model=lambda name: err.print(f"measuring {name} …", markup=False),
        )
        if plot:
            result.plot(plot)
        emit(result, as_json=as_json)


def read_questions(path: Path, ids: list[Any]) -> list[Question]:
    """Queries whose right records are in the sample; ids are compared as text.

    Raises:
        ConfigurationError: if the file is malformed, or none of its records was drawn.
    """
    rows = {str(id_): row for row, id_ in enumerate(ids)}
    found = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            entry: dict[str, Any] = json.loads(line) if line.strip() else {"query": "", "ids": []}
            right = tuple(rows[str(id_)] for id_ in entry["ids"] if str(id_) in rows)
            found += [Question(str(entry["query"]), right)] if right else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f'{path}: expected lines like {{"query": "…", "ids": [1]}}') from error
    if not found:
        raise ConfigurationError(f"no record named in {path} is in the sample; draw more with --sample")
    return found
