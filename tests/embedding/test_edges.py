"""Less usual ways to use the providers, and answers and accidents that are rare but real."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import vecferry as vf
from servers.openai_faults import Fault, FaultServer
from vecferry.embedding import (
    Budget,
    CachedEmbedder,
    CallableEmbedder,
    EmbedderChain,
    Ledger,
    MeteredEmbedder,
    OllamaEmbedder,
    OpenAIEmbedder,
    SentenceTransformersEmbedder,
    resolve,
    workers,
)
from vecferry.embedding.base import LocalStateError
from vecferry.embedding.budget import PriceTable
from vecferry.embedding.cache import SqliteCache
from vecferry.embedding.providers.ollama import _address
from vecferry.embedding.space import declared_space
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    NotFoundError,
    RetryableError,
    VecferryError,
)
from vecferry.model import CollectionSchema, EmbeddingSpace, RecordBatch
from vecferry.ports import WriteMode, for_queries
from vecferry.stores.memory import MemoryStore

from .conftest import FAST

SPACE = EmbeddingSpace(model="m", dim=8)


def host(server: FaultServer, name: str = "m", **options: Any) -> OpenAIEmbedder:
    return OpenAIEmbedder(name, base_url=server.url, api_key="k", retry=FAST, **options)


def test_a_long_pause_asked_for_by_one_host_does_not_hold_the_chain(server: FaultServer) -> None:
    with FaultServer() as busy:
        busy.rule = lambda _: Fault(429, {"retry-after": "600"})
        chain = EmbedderChain([host(busy, space=SPACE), host(server, space=SPACE)])
        start = time.monotonic()
        for text in ("one", "two"):
            assert chain.embed([text]).shape == (1, 8)
        assert time.monotonic() - start < 5.0
        assert len(busy.requests) == 1  # and it is left in peace


def test_questions_through_a_chain_or_a_cache_get_the_prompt_of_questions() -> None:
    with FaultServer(dim=384) as server:
        name = "intfloat/multilingual-e5-small"
        for embedder in (EmbedderChain([host(server, name), host(server, name)]), host(server, name)):
            asking = for_queries(CachedEmbedder(embedder, None))
            asking.embed(["what"])
            assert server.requests[-1] == ["query: what"]
            assert asking.space == embedder.space


def test_what_the_ledger_lacks_is_blamed_on_no_host(server: FaultServer) -> None:
    class Full(MeteredEmbedder):
        def _reserve(self, texts: Any) -> int:
            raise LocalStateError("the disk is full")

    chain = EmbedderChain([host(server, space=SPACE), host(server, space=SPACE)])
    with pytest.raises(LocalStateError, match="disk is full"):
        chain.over(lambda one: Full(one, Ledger())).embed(["a"])


def test_an_async_function_keeps_its_connections(server: FaultServer) -> None:
    client = httpx.AsyncClient(headers={"Authorization": "Bearer k"})

    async def function(texts: list[str]) -> Any:
        answer = await client.post(f"{server.url}/embeddings", json={"model": "m", "input": texts})
        return [item["embedding"] for item in sorted(answer.json()["data"], key=lambda item: item["index"])]

    embedder = CallableEmbedder(function, space=SPACE, batch_size=2)
    for _ in range(2):
        assert embedder.embed(["a", "b", "c"]).shape == (3, 8)
    assert asyncio.run(embedder.aembed(["a"])).shape == (1, 8)


def test_what_the_caller_has_opened_stays_open(tmp_path: Path) -> None:
    source = MemoryStore("edges-source")
    source.prepare(CollectionSchema(), WriteMode.UPSERT)
    source.write(RecordBatch.from_records([{"id": n, "text": f"text {n}"} for n in range(5)]))
    embedder = CallableEmbedder(lambda texts: [[1.0, len(t)] for t in texts], space="x:m?dim=2")
    cache = SqliteCache(tmp_path / "cache")
    for turn in range(2):
        vf.migrate(
            "memory:edges-source", f"memory:edges-target-{turn}", embed=embedder, cache=cache
        ).check()
    assert len(cache) == 5
    cache.close()


def test_the_cache_is_bounded_over_many_short_jobs(tmp_path: Path) -> None:
    space = EmbeddingSpace(model="m", dim=256)
    for job in range(60):
        cache = SqliteCache(tmp_path / "cache", max_bytes=200_000)
        cache.put(space, [f"{job}/{n}" for n in range(8)], np.ones((8, 256), np.float32))
        size = cache.nbytes
        cache.close()
    assert size < 300_000


def test_processes_that_make_cache_and_ledger_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite says "locked" at once to the second that makes a file WAL: no time-out applies there."""
    refusals = [sqlite3.OperationalError("database is locked") for _ in range(4)]
    for error in refusals:
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY

    class Contended(sqlite3.Connection):
        def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
            if "journal_mode" in query and len(refusals) % 3:
                raise refusals.pop()
            return super().execute(query, *values)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Contended))
    SqliteCache(tmp_path / "cache").close()
    assert len(refusals) == 3
    refusals.pop()
    Ledger(tmp_path / "ledger").close()
    assert not refusals


def test_a_budget_of_exactly_the_cost_is_enough() -> None:
    function = CallableEmbedder(lambda texts: [[1.0] * 8 for _ in texts], space=SPACE)
    table = PriceTable("2026-01-01", {"callable:m": 100_000.0})  # 0.1 + 0.1 + 0.1 > 0.3
    metered = MeteredEmbedder(function, Ledger(), budget=Budget(usd_per_job=0.3), job="j", prices=table)
    for _ in range(3):
        metered._settle(metered._reserve(["a"]), 1, 1)
    with pytest.raises(VecferryError, match="exceeds"):
        metered.embed(["a"])


def test_a_ledger_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("not a database " * 100)
    with pytest.raises(ConfigurationError, match=r"note\.txt cannot be opened"):
        Ledger(tmp_path / "note.txt")


@pytest.mark.parametrize("options", ["dimensions=abc", "timeout=soon", "name=other", "space=x:y%3Fdim=abc"])
def test_options_without_a_usable_value(options: str) -> None:
    with pytest.raises(ConfigurationError):
        resolve(f"openai:m?base_url=http://localhost:1&{options}")


def test_a_dimension_that_is_no_number() -> None:
    with pytest.raises(ConfigurationError, match="no dimension"):
        declared_space("openai:m?dim=abc")


def test_concurrency_zero_is_one(server: FaultServer) -> None:
    assert host(server, concurrency=0).embed(["a"]).shape == (1, 8)


@pytest.mark.parametrize("key", ["secret-key\n", "secret-kéy"])
def test_a_key_that_cannot_be_sent_is_said_at_once(server: FaultServer, key: str) -> None:
    embedder = OpenAIEmbedder("m", base_url=server.url, api_key=key, space=SPACE)
    with pytest.raises(ConfigurationError, match="foreign character in the API key") as raised:
        embedder.embed(["a"])
    assert "secret" not in str(raised.value)


def test_a_server_that_redirects_in_circles(server: FaultServer) -> None:
    server.rule = lambda _: Fault(307, {"location": "/v1/embeddings"})
    with pytest.raises(FatalStoreError, match="in circles"):
        host(server, space=SPACE).embed(["a"])


@pytest.mark.parametrize("junk", [5, "x", [1], [[{"a": 1}]], [[1.0], [1.0, 2.0]]])
def test_ollama_answers_that_are_no_vectors(server: FaultServer, junk: Any) -> None:
    server.rule = lambda _: Fault(edit=lambda answer: answer | {"embeddings": junk})
    embedder = OllamaEmbedder("m", base_url=server.url.removesuffix("/v1"), retry=FAST)
    with pytest.raises((FatalStoreError, RetryableError), match="ollama answered"):
        _ = embedder.space


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("gpu", "http://gpu:11434"),
        ("gpu:1", "http://gpu:1"),
        ("https://gpu.example.com", "https://gpu.example.com"),
        ("http://gpu.example.com/ollama/", "http://gpu.example.com/ollama"),
    ],
)
def test_ollama_host_as_ollama_reads_it(monkeypatch: pytest.MonkeyPatch, given: str, address: str) -> None:
    monkeypatch.setenv("OLLAMA_HOST", given)
    assert _address(None) == address


def test_a_model_s_folder_that_is_not_there() -> None:
    with pytest.raises(NotFoundError, match="no folder /models/nowhere"):
        _ = SentenceTransformersEmbedder("/models/nowhere").space


def test_an_interrupted_question_spoils_no_later_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer would come when the next question is asked, so the process is ended."""

    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "read_frame", interrupted)
    worker = workers.Worker.__new__(workers.Worker)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    worker._process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], **pipes)
    worker._finalizer = weakref.finalize(worker, workers._end, worker._process)
    assert worker.alive
    with pytest.raises(KeyboardInterrupt):
        worker.count(["wrong"])
    assert not worker.alive


def test_half_a_pair_can_be_counted(minilm: SentenceTransformersEmbedder) -> None:
    assert minilm.count_tokens(["half a pair \ud800"])[0] > 2
