"""What every test shares: a home of its own, and no secrets from the outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VECFERRY_RETRY_SECONDS", "20")  # a server that is gone for good ends a test soon


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Job states, caches and ledgers of a test stay in a folder of its own."""
    monkeypatch.setenv("VECFERRY_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def wordnet() -> Path:
    """2,000 WordNet glosses with MiniLM vectors, as LangChain saves a FAISS store."""
    return Path(__file__).parents[1] / "examples" / "data" / "wordnet_langchain"
