from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servers.llamacloud import KEY, LlamaCloud, Pipeline
from vecferry.core.retry import RetryPolicy
from vecferry.stores.llamacloud import LlamaCloudStore

QUICK = RetryPolicy(attempts=6, max_seconds=20.0, base=0.005, cap=0.02)
DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[LlamaCloud]:
    with LlamaCloud() as server:
        monkeypatch.setenv("LLAMA_CLOUD_API_KEY", KEY)
        monkeypatch.setenv("LLAMA_CLOUD_BASE_URL", server.url)
        yield server


@pytest.fixture
def pipeline(cloud: LlamaCloud) -> Pipeline:
    return cloud.pipeline(cloud.project("Default"), "handbook")


@pytest.fixture
def documents() -> list[dict[str, Any]]:
    return json.loads((DATA / "llamacloud_documents.json").read_text("utf-8"))  # type: ignore[no-any-return]


def open_store(name: str = "Default/handbook", **options: Any) -> LlamaCloudStore:
    project, _, index = name.rpartition("/")
    settings = {"rate": 0, "retry": QUICK, "poll": 0.005, **options}
    return LlamaCloudStore(index, project or None, **settings)
