from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servers.openai_faults import Fault, FaultServer, tokens_of
from vecferry.core.retry import NO_RETRY
from vecferry.embedding import (
    Budget,
    CallableEmbedder,
    Ledger,
    MeteredEmbedder,
    OllamaEmbedder,
    OpenAIEmbedder,
    PriceTable,
)
from vecferry.errors import BudgetExceeded, ConfigurationError, FatalStoreError
from vecferry.model import EmbeddingSpace

MODEL = "text-embedding-3-small"


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    """A dollar a token at the test server's address."""
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"as_of": "2030-01-01", "prices": {f"127.0.0.1:{MODEL}": 1e6}}))
    return path


@pytest.fixture
def paid(server: FaultServer) -> OpenAIEmbedder:
    server.dim = 1536
    return OpenAIEmbedder(
        MODEL, base_url=server.url, api_key="k", retry=NO_RETRY, concurrency=1, max_inputs=2
    )


def metered(paid: OpenAIEmbedder, prices: Path, job: str = "job", **limits: Any) -> MeteredEmbedder:
    budget = Budget(prices=prices, **limits)
    return MeteredEmbedder(paid, Ledger(), budget=budget, job=job)


def test_what_the_provider_counts_is_booked(paid: OpenAIEmbedder, prices: Path) -> None:
    meter = metered(paid, prices)
    texts = ["one", "two words", "and three words"]
    meter.embed(texts)
    (line,) = Ledger().lines()
    assert (line.provider, line.model, line.job, line.texts, line.calls) == ("openai", MODEL, "job", 3, 1)
    assert line.tokens == sum(map(tokens_of, texts)) == meter.tokens
    assert line.usd == pytest.approx(line.tokens)
    assert meter.usd == pytest.approx(line.usd)


def test_the_call_that_would_exceed_is_not_made(
    paid: OpenAIEmbedder, prices: Path, server: FaultServer
) -> None:
    meter = metered(paid, prices, usd_per_job=10)
    meter.embed(["six words make six tokens here"])
    before = len(server.requests)
    with pytest.raises(BudgetExceeded, match=r"exceeds \$10\.00 for this job") as caught:
        meter.embed(["another six words make it twelve"])
    assert len(server.requests) == before
    assert "run the same call again" in str(caught.value)
    meter.embed(["these fit"])
    assert Ledger().spent() <= 10


def test_tokens_are_counted_exactly_before_giving_up(paid: OpenAIEmbedder, prices: Path) -> None:
    """24 bytes might be 24 tokens, but the tokenizer counts 4."""
    metered(paid, prices, usd_per_job=10).embed(["international relations"])


def test_a_month_spans_jobs_and_a_job_spans_runs(paid: OpenAIEmbedder, prices: Path) -> None:
    for _ in range(2):
        metered(paid, prices, "first", usd_per_job=4).embed(["two words"])
    with pytest.raises(BudgetExceeded, match="job"):
        metered(paid, prices, "first", usd_per_job=4).embed(["x"])
    with pytest.raises(BudgetExceeded, match="month"):
        metered(paid, prices, "second", usd_per_month=4).embed(["x"])
    metered(paid, prices, "second", usd_per_month=5).embed(["x"])


def test_an_old_month_does_not_count(
    paid: OpenAIEmbedder, prices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as past:
        past.setattr("vecferry.embedding.budget._month", lambda: "2020-01")
        metered(paid, prices).embed(["two words"])
    metered(paid, prices, usd_per_month=2).embed(["two words"])


def test_failed_calls_cost_what_was_answered(
    paid: OpenAIEmbedder, prices: Path, server: FaultServer
) -> None:
    server.rule = lambda inputs: Fault(status=401) if "e" in inputs else None
    with pytest.raises(FatalStoreError):
        metered(paid, prices).embed(["a", "b", "c", "d", "e", "f"])
    assert Ledger().spent() == 4


def test_a_process_that_dies_in_a_call_leaves_its_booking(prices: Path) -> None:
    ledger = Ledger()
    ledger.reserve("openai", MODEL, "job", 1, 7, 7.0, Budget())
    with pytest.raises(BudgetExceeded):
        Ledger().reserve("openai", MODEL, "job", 1, 4, 4.0, Budget(usd_per_job=10))


def test_processes_cannot_overdraw_together() -> None:
    budget, refused = Budget(usd_per_month=10), []

    def spend() -> None:
        ledger = Ledger()
        for _ in range(5):
            try:
                ledger.reserve("openai", MODEL, "job", 1, 1, 1.0, budget)
            except BudgetExceeded as error:
                refused.append(error)

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (Ledger().spent(), len(refused)) == (10.0, 10)


def test_a_budget_refuses_an_unknown_price() -> None:
    unknown = OpenAIEmbedder(
        "m", base_url="https://api.example.com/v1", api_key="k", space=EmbeddingSpace(model="m", dim=3)
    )
    with pytest.raises(ConfigurationError, match=r"no price is known for api.example.com:m"):
        MeteredEmbedder(unknown, Ledger(), budget=Budget(usd_per_job=1))
    assert MeteredEmbedder(unknown, Ledger()).price is None
    with pytest.raises(ConfigurationError, match="0 or more"):
        Budget(usd_per_job=-1)


def test_prices_by_where_a_model_runs(tmp_path: Path) -> None:
    table = PriceTable.load()
    assert table.as_of >= "2025"
    assert table.of(OpenAIEmbedder(MODEL, api_key="k")) == 0.02
    assert table.of(OpenAIEmbedder(MODEL, api_key="k", base_url="http://localhost:8000/v1")) == 0
    assert table.of(OpenAIEmbedder(MODEL, api_key="k", base_url="http://10.1.2.3/v1")) == 0
    assert table.of(OpenAIEmbedder(MODEL, api_key="k", base_url="http://gpu-box:8000/v1")) == 0
    assert table.of(OpenAIEmbedder(MODEL, api_key="k", base_url="https://api.else.com/v1")) is None
    assert table.of(OllamaEmbedder("m")) == 0
    assert table.of(CallableEmbedder(np.asarray, space=EmbeddingSpace(model="m", dim=1))) == 0


def test_a_users_prices_win(own_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own_home.mkdir()
    own = {"as_of": "2031-05-05", "prices": {f"openai:{MODEL}": 9}}
    (own_home / "prices.json").write_text(json.dumps(own))
    table = PriceTable.load()
    assert (table.as_of, table.of(OpenAIEmbedder(MODEL, api_key="k"))) == ("2031-05-05", 9)
    assert table.of(OpenAIEmbedder("text-embedding-3-large", api_key="k")) == 0.13
    monkeypatch.setenv("VECFERRY_PRICES", str(tmp_path / "absent.json"))
    with pytest.raises(ConfigurationError, match="is not there"):
        PriceTable.load()
    (tmp_path / "absent.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="no price table"):
        PriceTable.load()
