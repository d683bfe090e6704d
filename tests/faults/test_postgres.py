"""Connections to Postgres that break, stall and crawl, while it is read and written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from servers.postgres import Postgres, postgres
from servers.proxy import Proxy
from vecferry.testing import sample_records

__all__ = ["postgres"]

ROWS = 1500


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", postgres.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("origin")
    with vf.connect("memory:") as memory:
        memory.write(sample_records(ROWS, unit=True))
        vf.migrate(memory, f"jsonl:{folder / 'a.jsonl'}", state_dir=folder / "job").check()
    return f"jsonl:{folder / 'a.jsonl'}"


def through(proxy: Proxy, postgres: Postgres, url: str) -> str:
    return url.replace(f":{postgres.port}/", f":{proxy.port}/")


FAULTS: dict[str, list[dict[str, Any]]] = {
    "refuse": [{"kind": "refuse", "times": 2}],
    "reset early": [{"kind": "reset", "after": 1_000}],
    "reset again and again": [{"kind": "reset", "after": n, "times": 1} for n in (9_000, 40_000, 90_000)],
    "truncate": [{"kind": "truncate", "after": 30_000}],
    "stall": [{"kind": "stall", "after": 30_000, "seconds": 0.5}],
    "slow": [{"kind": "slow", "after": 10_000, "seconds": 0.003}],
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_load_survives(name: str, proxy: Proxy, postgres: Postgres, origin: str, tmp_path: Path) -> None:
    url = postgres.url("kb")
    target = through(proxy, postgres, url)
    plan = vf.plan(origin, target, batch_size=100, state_dir=tmp_path / "job")
    for fault in FAULTS[name]:
        way = {} if fault["kind"] == "refuse" else {"direction": "up"}
        proxy.fault(**fault | way)
    plan.run().check()
    assert proxy.struck == sum(fault.get("times", 1) for fault in FAULTS[name])
    with postgres.connect(url) as connection:
        found = connection.execute("select count(*), count(distinct id) from kb").fetchone()
    assert found == (ROWS, ROWS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_read_survives(
    name: str, proxy: Proxy, postgres: Postgres, origin: str, loaded: str, tmp_path: Path
) -> None:
    target = f"jsonl:{tmp_path / 'out.jsonl'}"
    plan = vf.plan(through(proxy, postgres, loaded), target, batch_size=100, state_dir=tmp_path / "job")
    for fault in FAULTS[name]:
        way = {} if fault["kind"] == "refuse" else {"direction": "down"}
        proxy.fault(**fault | way)
    plan.run().check()
    assert proxy.struck == sum(fault.get("times", 1) for fault in FAULTS[name])
    assert vf.verify(origin, target).ok
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) == ROWS


@pytest.fixture(scope="module")
def loaded(postgres: Postgres, origin: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = postgres.url("kb")
    vf.migrate(origin, url, state_dir=tmp_path_factory.mktemp("loaded")).check()
    return url


def test_a_server_that_is_not_there_is_an_error_with_a_next_move(tmp_path: Path, origin: str) -> None:
    with pytest.raises(vf.VecferryError, match="running and reachable"):
        vf.plan(origin, "pgvector://postgres@127.0.0.1:1/db#kb", state_dir=tmp_path / "job")
