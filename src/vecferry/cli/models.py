"""``vecferry models``: fetch a model once, compare models on one's own records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vecferry.cli.console import AsJson, emit, err, errors_as_text, out
from vecferry.connecting import connect
from vecferry.contrib.model_bench import Question, bench_models, sample_texts
from vecferry.embedding import fetch_model
from vecferry.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True, help="Embedding models: fetch, compare.")


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


@app.command()
def bench(
    url: Annotated[str, typer.Argument(help="A collection, such as faiss:./kb")],
    models: Annotated[str, typer.Option(help="PROVIDER:MODEL,PROVIDER:MODEL,…")],
    sample: Annotated[int, typer.Option(help="Records to draw.")] = 500,
    queries: Annotated[
        Path | None, typer.Option(help='JSON lines {"query": …, "ids": […]}; else derived from the texts.')
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours.")] = 10,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare models on a sample of a collection: recall, overlap, speed, storage, cost."""
    with errors_as_text(as_json=as_json):
        with connect(url) as collection:
            ids, texts, vectors = sample_texts(collection.scan(), sample)
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
