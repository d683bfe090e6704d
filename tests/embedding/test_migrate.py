"""Embedding as part of a whole migration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecferry as vf
from servers.openai_faults import Fault, FaultServer, vector_of
from vecferry.core.retry import NO_RETRY
from vecferry.embedding import Budget, OpenAIEmbedder
from vecferry.embedding.space import PROBE
from vecferry.errors import BudgetExceeded, EmbedderExhausted, SpaceMismatchError
from vecferry.model import EmbeddingSpace

TEXTS = [f"this is the text number {i}" for i in range(300)]
SPACE = EmbeddingSpace(model="m", dim=8)


@pytest.fixture
def source(tmp_path: Path) -> str:
    url = f"jsonl:{tmp_path / 'source.jsonl'}"
    vf.connect(url).write([{"id": i, "text": text, "metadata": {"n": i}} for i, text in enumerate(TEXTS)])
    return url


@pytest.fixture
def target(tmp_path: Path) -> str:
    return f"jsonl:{tmp_path / 'target.jsonl'}"


@pytest.fixture
def other() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def model(server: FaultServer, name: str = "m", **options: Any) -> OpenAIEmbedder:
    settings: dict[str, Any] = {
        "api_key": "k",
        "retry": NO_RETRY,
        "concurrency": 1,
        "max_inputs": 32,
    } | options
    return OpenAIEmbedder(name, base_url=server.url, space=EmbeddingSpace(model=name, dim=8), **settings)


def holds(target: str, name: str = "m") -> None:
    records = sorted(vf.connect(target).records(), key=lambda record: record.id)
    assert [record.id for record in records] == list(range(300))
    for record in records:
        assert np.array_equal(record.vector, vector_of(TEXTS[record.id], name, 8))  # type: ignore[arg-type]


@pytest.mark.parametrize("cache", [True, False])
def test_texts_are_embedded_once_also_for_the_verification(
    cache: bool, source: str, target: str, server: FaultServer
) -> None:
    report = vf.migrate(source, target, embed=model(server), cache=cache)
    report.check()
    holds(target)
    assert all(server.texts[text] == 1 for text in TEXTS)
    assert vf.connect(target).describe().field().space == SPACE
    assert report.details["embedding"]["embedded"] == 300


def test_the_second_run_calls_nobody(source: str, target: str, server: FaultServer) -> None:
    vf.migrate(source, target, embed=model(server)).check()
    before = len(server.requests)
    report = vf.migrate(source, target, embed=model(server), mode="replace")
    report.check()
    assert {text for request in server.requests[before:] for text in request} == {PROBE}
    assert report.details["embedding"]["hit_rate"] == 1.0


def test_a_budget_pauses_the_job_and_a_higher_one_goes_on(
    source: str, target: str, server: FaultServer, tmp_path: Path
) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({"as_of": "2030-01-01", "prices": {"127.0.0.1:m": 1e6}}))
    call: dict[str, Any] = {"embed": model(server), "batch_size": 50}
    with pytest.raises(BudgetExceeded):
        vf.migrate(source, target, budget=Budget(usd_per_job=2000, prices=prices), **call)
    assert 0 < sum(server.texts.values()) < 300
    vf.migrate(source, target, budget=Budget(usd_per_job=40_000, prices=prices), **call).check()
    holds(target)
    assert all(server.texts[text] == 1 for text in TEXTS)


def test_a_dead_provider_stops_the_job_resumable(source: str, target: str, server: FaultServer) -> None:
    server.rule = lambda inputs: Fault(status=401) if TEXTS[200] in inputs else None
    call: dict[str, Any] = {"embed": model(server), "batch_size": 50}
    with pytest.raises(EmbedderExhausted):
        vf.migrate(source, target, **call)
    server.rule = lambda _: None
    vf.migrate(source, target, **call).check()
    holds(target)
    assert all(server.texts[text] == 1 for text in TEXTS)


@pytest.mark.parametrize("on_exhausted", ["stop", "restart"])
def test_an_alternative_never_mixes(
    on_exhausted: str, source: str, target: str, server: FaultServer, other: FaultServer
) -> None:
    server.rule = lambda inputs: Fault(status=401) if TEXTS[200] in inputs else None
    call: dict[str, Any] = {
        "embed": [model(server), model(other, "n")],
        "batch_size": 50,
        "on_exhausted": on_exhausted,
    }
    if on_exhausted == "restart":
        vf.migrate(source, target, **call).check()
        holds(target, "n")
        assert vf.connect(target).describe().field().space.model == "n"  # type: ignore[union-attr]
        return
    with pytest.raises(EmbedderExhausted):
        vf.migrate(source, target, **call)
    server.rule = lambda _: Fault(status=401)
    with pytest.raises(EmbedderExhausted, match="began with"):
        vf.migrate(source, target, **call)
    assert not other.texts
    server.rule = lambda _: None
    vf.migrate(source, target, **call).check()
    holds(target)


def test_another_space_is_refused_before_the_first_write(
    source: str, target: str, server: FaultServer
) -> None:
    vf.migrate(source, target, embed=model(server)).check()
    before = Path(target.removeprefix("jsonl:")).read_bytes()
    with pytest.raises(SpaceMismatchError):
        vf.migrate(source, target, embed=model(server, "n"), mode="upsert")
    assert Path(target.removeprefix("jsonl:")).read_bytes() == before


def test_records_without_text_go_to_the_quarantine(
    tmp_path: Path, target: str, server: FaultServer
) -> None:
    source = f"jsonl:{tmp_path / 'gaps.jsonl'}"
    vf.connect(source).write([{"id": i, "text": "a" if i % 3 else None} for i in range(9)])
    report = vf.migrate(source, target, embed=model(server), on_no_text="quarantine", on_error="quarantine")
    assert (report.written, report.rejected) == (6, 3)
    assert "no text to embed" in Path(str(report.quarantine)).read_text()


def test_the_plan_says_what_embedding_takes(source: str, target: str, server: FaultServer) -> None:
    text = str(vf.plan(source, target, embed=model(server)))
    assert "300" in text
    assert "$0" in text
    assert not set(server.texts) & set(TEXTS[64:])
