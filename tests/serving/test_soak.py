"""A whole move under live traffic, a few seconds of it; ten minutes are `benchmarks/soak.py`."""

from __future__ import annotations

import sys
import threading
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from servers.postgres import Postgres, postgres
from vecferry.model import RecordBatch, VectorRecord
from vecferry.ports import WriteMode
from vecferry.stores.memory import MemoryStore

__all__ = ["postgres"]


@pytest.fixture(scope="module")
def soaking() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "soak.py"
    spec = spec_from_file_location("soak", path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


def test_a_move_in_memory(soaking: Any, tmp_path: Path) -> None:
    names = [f"soak-{tmp_path.name}-{side}" for side in ("old", "new")]
    log = soaking.soak(
        lambda: MemoryStore(names[0]), lambda: MemoryStore(names[1]), seconds=5.0, rate=80.0, start_with=200
    )
    assert log.problems == []
    assert log.searches > 300
    assert log.writes > 100
    assert log.deletes > 10
    assert set(log.origins) == {"old", "new"}


def test_a_move_between_real_databases(soaking: Any, postgres: Postgres) -> None:
    database = postgres.database()
    old, new = (postgres.url(table, database) for table in ("old_kb", "new_kb"))
    log = soaking.soak(
        lambda: vf.connect(old).store,
        lambda: vf.connect(new).store,
        seconds=12.0,
        rate=30.0,
        start_with=300,
    )
    assert log.problems == []
    assert log.searches > 200
    assert log.writes > 80
    assert set(log.origins) == {"old", "new"}
    with postgres.connect(new) as connection:
        held = dict(connection.execute("select id, text from new_kb").fetchall())
    assert held == log.state


def test_the_traffic_is_exchanged_between_two_writes(soaking: Any) -> None:
    """A write under way past the exchange would reach the old side behind the reading that catches up."""
    began, go, ended = threading.Event(), threading.Event(), []

    class Slow(MemoryStore):
        def write(self, batch: RecordBatch) -> Any:
            began.set()
            assert go.wait(10)
            receipt = super().write(batch)
            ended.append(batch)
            return receipt

    store = Slow()
    store.prepare(soaking.SCHEMA, WriteMode.CREATE)
    kb = vf.FallbackCollection(vf.connect(store))
    with soaking.Traffic(soaking.Log(), vf.connect(store), kb, 50.0) as traffic:
        assert began.wait(10)
        threading.Timer(0.2, go.set).start()
        traffic.write_through(object())
        before = len(ended)
        time.sleep(0.2)
    assert before == len(ended) > 0


def test_the_soak_notices_a_lost_and_a_stale_write(soaking: Any) -> None:
    store = MemoryStore()
    log = soaking.Log(state={"a": "a version 1", "b": "b version 2"})
    vf.connect(store).write(
        [
            VectorRecord(id="b", text="b version 1", vector=soaking.vector_of("b version 1")),
            VectorRecord(id="c", text="c", vector=soaking.vector_of("c")),
        ],
        schema=soaking.SCHEMA,
    )
    soaking._check(log, "new", vf.connect(store))
    assert [problem.split(",")[0] for problem in log.problems] == [
        "new: 1 lost",
        "new: 1 came back",
        "new: 1 is stale",
    ]
