"""Qdrant over the wire: errors of the service, and a connection that breaks under it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from qdrant_client import QdrantClient

import vecferry as vf
from servers.proxy import Proxy
from servers.qdrant import QdrantServer
from vecferry.errors import FatalStoreError, RetryableError
from vecferry.testing import sample_records

ROWS = 400
Code = grpc.StatusCode


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with QdrantServer() as server:
        yield server


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("origin")
    with vf.connect("memory:") as memory:
        memory.write(sample_records(ROWS, unit=True))
        vf.migrate(memory, f"jsonl:{folder / 'a.jsonl'}", state_dir=folder / "job").check()
    return f"jsonl:{folder / 'a.jsonl'}"


def url_of(server: QdrantServer, port: int | None = None) -> str:
    return server.url("kb", grpc_port=port or server.port, prefer_grpc="true")


FAULTS: dict[str, tuple[str, grpc.StatusCode, dict[str, Any]]] = {
    "unavailable": ("Upsert", Code.UNAVAILABLE, {"times": 3}),
    "a lost answer": ("Upsert", Code.UNAVAILABLE, {"times": 2, "late": True}),
    "deadline exceeded": ("Upsert", Code.DEADLINE_EXCEEDED, {"times": 3}),
    "done, but too late": ("Upsert", Code.DEADLINE_EXCEEDED, {"times": 2, "late": True}),
    "rate limit": ("Upsert", Code.RESOURCE_EXHAUSTED, {"times": 2, "retry_after": 1}),
    "a broken scroll": ("Scroll", Code.UNAVAILABLE, {"times": 3}),
    "a lost creation": ("Create", Code.UNAVAILABLE, {"times": 1, "late": True}),
    "a lost update": ("Update", Code.UNAVAILABLE, {"times": 1, "late": True}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_passing_fault_of_the_service(
    name: str, server: QdrantServer, origin: str, tmp_path: Path
) -> None:
    method, code, how = FAULTS[name]
    plan = vf.plan(origin, url_of(server), batch_size=50, state_dir=tmp_path / "job")
    server.fail(method, code, **how)
    plan.run().check()
    assert server.client.count("kb").count == ROWS
    assert not any(fault.times for fault in server.faults), "every fault was met"


@pytest.mark.parametrize("name", ["a broken scroll"])
def test_a_broken_scroll_is_opened_again(
    name: str, server: QdrantServer, origin: str, tmp_path: Path
) -> None:
    vf.migrate(origin, url_of(server), state_dir=tmp_path / "fill").check()
    target = f"jsonl:{tmp_path / 'out.jsonl'}"
    plan = vf.plan(url_of(server), target, batch_size=40, state_dir=tmp_path / "job")
    for _ in range(4):
        server.fail("Scroll", Code.UNAVAILABLE)
    plan.run().check()
    assert vf.verify(url_of(server), target).ok


def test_a_server_that_dies_and_comes_back(server: QdrantServer, origin: str, tmp_path: Path) -> None:
    """The retry runs out while it is gone; the same call goes on when it is back."""
    died: list[bool] = []

    def strike(step: Any) -> None:
        if step.stage == "stream" and step.done >= 150 and not died:
            died.append(True)
            server.stop()

    options: dict[str, Any] = {"batch_size": 50, "state_dir": tmp_path / "job"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vecferry.core.retry._sleep_unless", lambda seconds, should_stop: True)
        with pytest.raises(RetryableError):
            vf.migrate(origin, url_of(server), on_progress=strike, **options)
    server.start()
    report = vf.migrate(origin, url_of(server), **options).check()
    assert died and report.resumed
    assert server.client.count("kb").count == ROWS


def test_a_denied_key_is_final(origin: str, tmp_path: Path) -> None:
    with QdrantServer(api_key="right") as server, pytest.raises(FatalStoreError, match="QDRANT_API_KEY"):
        vf.migrate(origin, url_of(server), state_dir=tmp_path / "job")


@pytest.mark.parametrize("kind", ["reset", "truncate", "stall"])
@pytest.mark.parametrize("after", [3_000, 20_000])
def test_a_broken_connection(
    kind: Any, after: int, server: QdrantServer, origin: str, tmp_path: Path
) -> None:
    with Proxy("127.0.0.1", server.port) as proxy:
        plan = vf.plan(origin, url_of(server, proxy.port), batch_size=50, state_dir=tmp_path / "job")
        for _ in range(2):
            proxy.fault(kind, after=after, direction="up", seconds=0.2)
        plan.run().check()
        assert proxy.struck
    assert server.client.count("kb").count == ROWS


def drop(name: str) -> None:
    """Leave the real server as it was found."""
    key = os.environ.get("QDRANT_API_KEY")
    client = QdrantClient(url=os.environ["QDRANT_URL"], api_key=key, check_compatibility=False)
    client.delete_collection(name)
    client.close()


@pytest.mark.qdrant_server
@pytest.mark.skipif("QDRANT_URL" not in os.environ, reason="needs QDRANT_URL")
@pytest.mark.parametrize("kind", ["reset", "truncate", "stall", "slow"])
def test_a_broken_connection_to_a_real_server(kind: Any, origin: str, tmp_path: Path) -> None:
    host, _, port = os.environ["QDRANT_URL"].rpartition("//")[2].partition(":")
    name = f"faults_{uuid4().hex[:8]}"
    with Proxy(host, int(port or 6333)) as proxy, ExitStack() as afterwards:
        afterwards.callback(drop, name)
        url = f"qdrant://127.0.0.1:{proxy.port}/{name}?prefer_grpc=false"
        plan = vf.plan(origin, url, batch_size=50, state_dir=tmp_path / "job")
        proxy.fault(kind, after=20_000, direction="up", seconds=0.2)
        plan.run().check()
        assert proxy.struck
        with vf.connect(url) as collection:
            assert collection.count() == ROWS
