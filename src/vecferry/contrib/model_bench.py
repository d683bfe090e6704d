"""Comparing models on a sample of one's own records, before anything is embedded in bulk.

| column | what it is |
|---|---|
| recall | share of the queries' right records among the first k, by exact search in the sample |
| overlap | how many of a record's k nearest neighbours are the same as in the reference |
| texts/s | measured here, without loading the model |
| MB and $ a million | float32 vectors without an index, and embedding, for a million such records |

Derived queries are the second halves of texts: easier than real questions, so compare models by them
and do not read the number as quality. Give real questions where you have them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecferry.embedding.base import BaseEmbedder, Matrix, TextsRejected
from vecferry.embedding.budget import PriceTable
from vecferry.embedding.chain import quick
from vecferry.embedding.resolve import resolve
from vecferry.errors import ConfigurationError, MissingDependencyError, VecferryError
from vecferry.model import RecordBatch
from vecferry.ports import Embedder

_FEWEST_WORDS = 8
_NEIGHBOUR_QUERIES = 200


@dataclass(frozen=True, slots=True)
class Question:
    """A query and the rows of the sample that answer it."""

    text: str
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One model's line; ``error`` is set instead of numbers where it could not be measured."""

    model: str
    dim: int | None = None
    recall: float | None = None
    overlap: float | None = None
    texts_per_second: float | None = None
    mb_per_million: float | None = None
    usd_per_million: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class ModelBench:
    """The comparison.

    Attributes:
        scores: one line a model, in the order given.
        records, questions: how many were used.
        k: neighbours looked at.
        reference: what ``overlap`` compares with.
        prices_as_of: the date of the price table.
    """

    scores: tuple[ModelScore, ...]
    records: int
    questions: int
    k: int
    reference: str
    prices_as_of: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        head = (
            "model",
            "dim",
            f"recall@{self.k}",
            f"overlap@{self.k}",
            "texts/s",
            "MB/million",
            "$/million",
        )
        rows = [head, *(_cells(score) for score in self.scores)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        failed = [f"{score.model}: {score.error}" for score in self.scores if score.error]
        foot = (
            f"{self.records:,} records, {self.questions:,} queries; overlap with {self.reference}; "
            f"prices of {self.prices_as_of}"
        )
        return "\n".join([*(line.rstrip() for line in lines), *failed, foot])

    def plot(self, path: str | Path) -> None:
        """Recall against speed, one point a model; the point's area is the storage.

        Raises:
            MissingDependencyError: if matplotlib is not installed.
        """
        axes, save = _canvas(path)
        for score in self.scores:
            if score.error or score.texts_per_second is None:
                continue
            height = score.recall if score.recall is not None else score.overlap
            if height is None:
                continue
            axes.scatter(score.texts_per_second, height, s=40 + (score.dim or 0) / 4, alpha=0.6)
            axes.annotate(score.model, (score.texts_per_second, height), fontsize=8)
        axes.set(xscale="log", xlabel="texts a second", ylabel=f"recall@{self.k}", ylim=(0, 1.05))
        save()


def bench_models(
    models: Sequence[Any],
    texts: Sequence[str],
    *,
    vectors: Matrix | None = None,
    questions: Sequence[Question] = (),
    k: int = 10,
    on_model: Callable[[str], None] = lambda _: None,
) -> ModelBench:
    """Compare candidates on a sample.

    Args:
        models: what `resolve` takes.
        texts: the sample, some hundred texts.
        vectors: ``(len(texts), dim)``: those stored now, the reference for ``overlap``; else the first
            model that works is the reference.
        questions: queries with their right rows; else derived from the texts.
        k: neighbours looked at, fewer than there are texts.
        on_model: told which model is measured next.

    Raises:
        ConfigurationError: if the sample is too small for ``k``.
    """
    if len(texts) <= k:
        raise ConfigurationError(f"{len(texts)} texts are too few for k={k}; take a larger sample")
    asked = tuple(questions) or derived_questions(texts)
    prices = PriceTable.load()
    reference = None if vectors is None else _neighbours(_unit(vectors), k)
    name = "the stored vectors"
    scores = []
    for model in models:
        on_model(_label(model))
        try:
            score, neighbours = _measure(model, texts, asked, k, prices)
        except VecferryError as error:
            scores.append(ModelScore(_label(model), error=str(error)))
            continue
        if reference is None:
            reference, name = neighbours, _label(model)
        scores.append(score(_overlap(reference, neighbours)))
    return ModelBench(tuple(scores), len(texts), len(asked), k, name, prices.as_of)


def derived_questions(texts: Sequence[str], most: int = 200) -> tuple[Question, ...]:
    """The second half of each text that is long enough, asking for that text."""
    found: list[Question] = []
    for row, text in enumerate(texts):
        words = text.split()
        if len(words) >= _FEWEST_WORDS and len(found) < most:
            found.append(Question(" ".join(words[len(words) // 2 :]), (row,)))
    return tuple(found)


def sample_texts(
    batches: Iterable[RecordBatch], count: int, field: str = "", seed: int = 0
) -> tuple[list[Any], list[str], Matrix | None]:
    """Ids, texts and (if all have them) vectors of ``count`` records with text, evenly drawn.

    Reads everything once (algorithm R: J. Vitter, "Random Sampling with a Reservoir", 1985).
    """
    random = np.random.default_rng(seed)
    chosen: list[tuple[Any, str, Any]] = []
    seen = 0
    for batch in batches:
        column = batch.vectors.get(field) or next(iter(batch.vectors.values()), None)
        for row, (id_, text) in enumerate(zip(batch.id_list, batch.text_list, strict=True)):
            if not text or not text.strip():
                continue
            seen += 1
            place = len(chosen) if len(chosen) < count else int(random.integers(seen))
            if place >= count:
                continue
            vector = None if column is None else column[row]
            chosen[place : place + 1] = [(id_, text, None if vector is None else vector.copy())]
    vectors = [vector for *_, vector in chosen]
    whole = bool(vectors) and all(v is not None and v.ndim == 1 for v in vectors)
    return (
        [id_ for id_, *_ in chosen],
        [text for _, text, _ in chosen],
        np.stack(vectors).astype(np.float32) if whole else None,
    )


def _measure(
    model: Any, texts: Sequence[str], questions: tuple[Question, ...], k: int, prices: PriceTable
) -> tuple[Callable[[float], ModelScore], NDArray[np.int64]]:
    embedder = quick(resolve(model)) if isinstance(model, str) else resolve(model)
    try:
        dim = embedder.space.dim  # loads the model: not part of the time
        start = time.perf_counter()
        vectors = _embed(embedder, texts)
        seconds = time.perf_counter() - start
        recall = _recall(embedder, vectors, questions, k)
        price = prices.of(embedder)
        cost = None if price is None else price * _tokens(embedder, texts) / len(texts)
    finally:
        if isinstance(model, str) and isinstance(embedder, BaseEmbedder):
            embedder.close()

    def score(overlap: float) -> ModelScore:
        speed = len(texts) / seconds
        return ModelScore(_label(model), dim, recall, overlap, speed, dim * 4.0, cost)

    return score, _neighbours(vectors, k)


def _embed(embedder: Embedder, texts: Sequence[str]) -> Matrix:
    """Unit vectors; a text that is refused has a row of zeros and finds nothing."""
    try:
        return _unit(embedder.embed(texts))
    except TextsRejected as error:
        return _unit(error.vectors)


def _recall(embedder: Embedder, vectors: Matrix, questions: tuple[Question, ...], k: int) -> float | None:
    if not questions:
        return None
    asking = embedder.for_queries() if isinstance(embedder, BaseEmbedder) else embedder
    queries = _embed(asking, [question.text for question in questions])
    best = _best(queries @ vectors.T, k)
    shares = [
        len(set(q.rows) & set(row)) / len(q.rows) for q, row in zip(questions, best.tolist(), strict=True)
    ]
    return float(np.mean(shares))


def _neighbours(vectors: Matrix, k: int) -> NDArray[np.int64]:
    """The ``k`` nearest other rows of the first rows, by cosine."""
    scores = vectors[:_NEIGHBOUR_QUERIES] @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return _best(scores, k)


def _best(scores: Matrix, k: int) -> NDArray[np.int64]:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def _overlap(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in pairs]))


def _unit(vectors: Matrix) -> Matrix:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Matrix = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit


def _tokens(embedder: Embedder, texts: Sequence[str]) -> int:
    return sum(embedder.count_tokens(texts)) if isinstance(embedder, BaseEmbedder) else 0


def _label(model: Any) -> str:
    return model if isinstance(model, str) else str(getattr(model, "name", type(model).__name__))


def _cells(score: ModelScore) -> tuple[str, ...]:
    if score.error:
        return (score.model, *["–"] * 6)
    numbers = (
        (score.recall, ".3f"),
        (score.overlap, ".3f"),
        (score.texts_per_second, ",.0f"),
        (score.mb_per_million, ",.0f"),
        (score.usd_per_million, ",.2f"),
    )
    return (score.model, str(score.dim), *("–" if n is None else format(n, f) for n, f in numbers))


def _canvas(path: str | Path) -> tuple[Any, Callable[[], None]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("--plot", "plot") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    return figure.subplots(), lambda: figure.savefig(path)


def plot_costs(lines: Iterable[Any], path: str | Path) -> None:
    """US dollars by month, stacked by model, from `vecferry.embedding.Ledger.lines`.

    Raises:
        MissingDependencyError: if matplotlib is not installed.
    """
    axes, save = _canvas(path)
    sums: dict[str, dict[str, float]] = {}
    for line in lines:
        by_month = sums.setdefault(f"{line.provider}:{line.model}", {})
        by_month[line.month] = by_month.get(line.month, 0.0) + line.usd
    months = sorted({month for by_month in sums.values() for month in by_month})
    base = np.zeros(len(months))
    for model, by_month in sums.items():
        heights = np.array([by_month.get(month, 0.0) for month in months])
        axes.bar(months, heights, bottom=base, label=model)
        base += heights
    axes.set(ylabel="US dollars", title="Embedding by month")
    if sums:
        axes.legend()
    save()


__all__ = ["ModelBench", "ModelScore", "Question", "bench_models", "plot_costs", "sample_texts"]
