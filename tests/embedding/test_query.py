"""Questions of a backend: cache, monthly budget, other hosts, the switch, figures; the forecast."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

import vecferry as vf
from servers.openai_faults import Fault, FaultServer, vector_of
from vecferry.cli import app
from vecferry.contrib.prometheus import PrometheusMetrics
from vecferry.core.retry import NO_RETRY
from vecferry.embedding import OpenAIEmbedder, QueryEmbedder, SqliteCache, forecast_costs
from vecferry.errors import BudgetExceeded, ConfigurationError, SpaceMismatchError
from vecferry.model import EmbeddingSpace

SPACE = EmbeddingSpace(model="m", dim=8)


@pytest.fixture
def second() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``paid`` costs a dollar a token; the second host nothing."""
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"as_of": "2030-01-01", "prices": {"127.0.0.1:paid": 1e6}}))
    monkeypatch.setenv("VECFERRY_PRICES", str(path))
    return path


def host(server: FaultServer, name: str = "m", **options: Any) -> OpenAIEmbedder:
    return OpenAIEmbedder(
        name, base_url=server.url, api_key="k", **{"space": SPACE, "retry": NO_RETRY, **options}
    )


def test_a_question_is_embedded_once(server: FaultServer) -> None:
    model = QueryEmbedder(host(server))
    for _ in range(3):
        assert np.array_equal(model.embed_query("what is it?"), vector_of("what is it?", "m", 8))
    assert np.array_equal(
        asyncio.run(model.aembed(["what is it?", "and why?"]))[1], vector_of("and why?", "m", 8)
    )
    assert server.texts == {"what is it?": 1, "and why?": 1}
    figures = model.figures
    assert (figures.asked, figures.hits, figures.failed, figures.calls) == (5, 3, 0, 4)
    assert figures.seconds_a_call > 0 and figures.hit_rate == 0.6 and server.url in figures.provider
    model.close()
    again = QueryEmbedder(host(server))  # the file outlives the process
    again.embed_query("and why?")
    assert again.figures.hits == 1


def test_questions_and_documents_do_not_share_a_cache(tmp_path: Path) -> None:
    """One text has another vector as a question, in models that want a prompt."""
    with FaultServer(dim=384) as server:
        model = OpenAIEmbedder("intfloat/e5-small-v2", base_url=server.url, api_key="k")
        cache = SqliteCache(tmp_path / "shared.sqlite")
        cache.put(model.space, ["ships"], model.embed(["ships"]))
        asked = QueryEmbedder(model, cache=cache).embed_query("ships")
        assert np.array_equal(asked, vector_of("query: ships", "intfloat/e5-small-v2", 384))
        assert np.array_equal(cache.get(model.space, ["ships"])[0][0],
                              vector_of("passage: ships", "intfloat/e5-small-v2", 384))  # fmt: skip


@pytest.mark.parametrize(
    "fault", [Fault(401), Fault(503), Fault(429, code="insufficient_quota"), Fault(reset=True)]
)
def test_the_next_host_of_the_space_answers(fault: Fault, server: FaultServer, second: FaultServer) -> None:
    told: list[tuple[str, float, dict[str, str]]] = []
    model = QueryEmbedder(
        [host(server), host(second)], listeners=[lambda n, a, labels: told.append((n, a, dict(labels)))]
    )
    assert np.array_equal(model.embed_query("one"), vector_of("one", "m", 8))
    server.rule = lambda _: fault
    assert np.array_equal(model.embed_query("two"), vector_of("two", "m", 8))
    assert second.texts["two"] == 1 and model.figures.switches == 1
    assert second.url in model.figures.provider
    computed = [labels for name, _, labels in told if name == "query_embeddings"]
    assert {labels["result"] for labels in computed} == {"computed"}


def test_hosts_and_collections_of_other_spaces_are_refused(
    server: FaultServer, second: FaultServer
) -> None:
    other = EmbeddingSpace(model="n", dim=8)
    with pytest.raises(SpaceMismatchError):
        QueryEmbedder([host(server), host(second, space=other)])
    with pytest.raises(SpaceMismatchError, match="comparable with the collection"):
        QueryEmbedder(host(server), space=other)
    assert QueryEmbedder(host(server), space=SPACE).space == SPACE


def test_the_months_budget_moves_on_to_a_free_host_or_stops(
    server: FaultServer, second: FaultServer, prices: Path
) -> None:
    alone = QueryEmbedder(host(server, "paid"), usd_per_month=10, cache=False)
    alone.embed_query("two words")
    assert alone.figures.usd == 2.0
    with pytest.raises(BudgetExceeded, match="month"):
        alone.embed_query("this question has very many words, more than the budget allows in this month")
    free = host(second, "paid")
    free.provider = "callable"  # as a server of one's own would be: its tokens cost nothing
    table = {"as_of": "2030-01-01", "prices": {"127.0.0.1:paid": 1e6, "callable:paid": 0.0}}
    prices.write_text(json.dumps(table))
    both = QueryEmbedder([host(server, "paid"), free], usd_per_month=0, cache=False)
    assert np.array_equal(both.embed_query("a question"), vector_of("a question", "paid", 8))
    assert second.texts["a question"] == 1 and both.figures.usd == 0.0
    assert "a question" not in server.texts


def test_the_budget_of_questions_is_their_own(server: FaultServer, prices: Path) -> None:
    from vecferry.embedding import Budget, Ledger, MeteredEmbedder

    ledger = Ledger()
    MeteredEmbedder(host(server, "paid"), ledger, budget=Budget(), job="a migration").embed(["w " * 500])
    model = QueryEmbedder(host(server, "paid"), usd_per_month=50, cache=False)
    assert model.embed_query("a b").shape == (8,)
    assert ledger.spent(job="queries") == 2.0 and ledger.spent() == 502.0


def test_the_environment_names_the_provider(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {"cloud": [host(server)], "local": host(server, "l", space=EmbeddingSpace(model="l", dim=8))}
    monkeypatch.setenv("EMBEDDING_PROVIDER", "local")
    assert QueryEmbedder.from_environment(choices).space.model == "l"
    monkeypatch.setenv("EMBEDDING_PROVIDER", "cloud")
    assert QueryEmbedder.from_environment(choices, space=SPACE).space == SPACE
    monkeypatch.setenv("EMBEDDING_PROVIDER", "elsewhere")
    with pytest.raises(ConfigurationError, match="cloud, local"):
        QueryEmbedder.from_environment(choices)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("EMBEDDING_PROVIDER", "openai")
    monkeypatch.setenv("EMBEDDING_MODEL", "m")
    assert QueryEmbedder.from_environment().space == SPACE
    monkeypatch.setenv("EMBEDDING_PROVIDER", "openai:m, openai:m")
    assert QueryEmbedder.from_environment().embed_query("x").shape == (8,)
    monkeypatch.delenv("EMBEDDING_PROVIDER")
    with pytest.raises(ConfigurationError, match="EMBEDDING_PROVIDER is not set"):
        QueryEmbedder.from_environment()


@pytest.mark.usefixtures("prices")
def test_prometheus_counts_questions(server: FaultServer) -> None:
    registry = CollectorRegistry()
    model = QueryEmbedder(host(server, "paid"), listeners=[PrometheusMetrics(registry)])
    for _ in range(2):
        model.embed_query("two words")
    provider = {"provider": model.figures.provider}
    found = registry.get_sample_value
    assert found("vecferry_query_embeddings_total", {**provider, "result": "hit"}) == 1
    assert found("vecferry_query_embeddings_total", {**provider, "result": "computed"}) == 1
    assert found("vecferry_query_embedding_usd_total", provider) == 2.0
    assert found("vecferry_query_embedding_seconds_count", provider) == 2


def test_a_backend_searches_with_it(server: FaultServer) -> None:
    kb = vf.connect("memory:query-backend")
    kb.write(
        [{"id": t, "text": t, "vector": vector_of(t, "m", 8).tolist()} for t in ("one", "two", "three")]
    )
    model = QueryEmbedder(host(server))
    assert kb.search(model.embed_query("two"), k=1)[0].id == "two"
    assert vf.FallbackCollection(kb, embedder=model).search("three", k=1)[0].id == "three"


# -- the forecast ---------------------------------------------------------------------------------


def test_the_forecast_adds_up() -> None:
    found = forecast_costs(
        ["openai:text-embedding-3-small", "azure:text-embedding-3-large", "ollama:nomic-embed-text",
         "openai:unheard-of"],
        documents=1_000_000, document_tokens=500, queries=100_000, query_tokens=20, changed=0.1, cached=0.5,
        months=12,
    )  # fmt: skip
    small, large, local, unknown = found.lines
    assert small.once == pytest.approx(500 * 0.02) and small.gigabytes == pytest.approx(6.144)
    assert small.monthly == pytest.approx(50 * 0.02 + 0.02)
    assert small.total == pytest.approx((small.once or 0) + 12 * (small.monthly or 0))
    assert (large.once or 0) > (small.once or 0)
    assert (local.once, local.note) == (0.0, "runs on your own machines")
    assert unknown.once is None and "prices.json" in unknown.note
    assert "1,000,000 documents" in str(found) and found.prices_as_of in str(found)
    for wrong in ({"documents": -1}, {"documents": 1, "cached": 1.5}):
        with pytest.raises(ConfigurationError):
            forecast_costs(["openai:text-embedding-3-small"], **wrong)


def test_the_forecast_on_the_command_line(tmp_path: Path) -> None:
    kb = vf.connect(f"jsonl:{tmp_path}/kb.jsonl")
    kb.write([{"id": f"a{i}", "text": "word " * 80} for i in range(50)])
    call = ["costs", "forecast", "--models", "openai:text-embedding-3-small", "--json"]
    done = CliRunner().invoke(
        app, [*call, "--collection", f"jsonl:{tmp_path}/kb.jsonl", "--queries", "1000"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert (found["documents"], found["document_tokens"]) == (50, 100.0)
    assert found["lines"][0]["once"] == pytest.approx(50 * 100 * 0.02 / 1e6)
    assert CliRunner().invoke(app, ["costs", "--json"]).exit_code == 0
