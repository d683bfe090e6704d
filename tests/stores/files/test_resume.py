"""Interrupted and resumed gives the same bytes as never interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vecferry.errors import CorruptDataError, FatalStoreError, JobLockedError, NotFoundError
from vecferry.model import CollectionSchema, DenseColumn, Metric, RecordBatch, VectorField, VectorRecord
from vecferry.ports import WriteMode
from vecferry.stores import parquet
from vecferry.stores.jsonl import JsonlStore
from vecferry.stores.kit.files import FileStore
from vecferry.stores.parquet import ParquetStore
from vecferry.testing import sample_records, sample_schema

KINDS: dict[str, Callable[[Path], FileStore]] = {
    "one.parquet": ParquetStore,
    "parts": ParquetStore,
    "one.jsonl": JsonlStore,
    "one.jsonl.gz": JsonlStore,
    "lines/": JsonlStore,
}


def make(folder: Path, name: str) -> FileStore:
    return KINDS[name](folder / name)


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def batches(records: list[VectorRecord], sizes: list[int]) -> list[RecordBatch]:
    cut, start = [], 0
    for size in sizes:
        cut.append(RecordBatch.from_records(records[start : start + size]))
        start += size
    return [batch for batch in [*cut, RecordBatch.from_records(records[start:])] if len(batch)]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 40 rows and parts of two groups, so that 300 records cross their borders."""
    monkeypatch.setattr(parquet, "group_rows", lambda schema: 40)
    monkeypatch.setattr(parquet, "GROUPS_PER_PART", 2)


@pytest.mark.parametrize("name", KINDS)
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_killed_anywhere_the_bytes_are_the_same(name: str, data: st.DataObject, tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    records = sample_records(300)
    straight = make(folder / "a", name)
    straight.prepare(sample_schema(), WriteMode.CREATE)
    for batch in batches(records, data.draw(st.lists(st.integers(1, 120), max_size=4))):
        straight.write(batch)
    straight.finish()

    done, mark = 0, None
    for attempt in range(data.draw(st.integers(1, 4))):
        store = make(folder / "b", name)
        store.prepare(sample_schema(), WriteMode.RESUME if attempt else WriteMode.CREATE)
        if attempt:
            store.rewind(mark)
        for size in data.draw(st.lists(st.integers(1, 90), max_size=3)):
            store.write(RecordBatch.from_records(records[done : done + size] or records[-1:]))
            if data.draw(st.booleans()):
                done, mark = min(done + size, 300), store.mark()
            else:
                break
        store.close()
        tear(store, data.draw(st.integers(0, 40)))
    store = make(folder / "b", name)
    store.prepare(sample_schema(), WriteMode.RESUME)
    store.rewind(mark)
    if done < 300:
        store.write(RecordBatch.from_records(records[done:]))
    store.finish()
    assert content(store.path) == content(straight.path)
    assert sorted(p.name for p in store.path.parent.iterdir()) == [store.path.name]


def tear(store: FileStore, junk: int) -> None:
    """Half a row, as a process leaves it that dies while it writes."""
    folder = store.room.folder / "pending"
    with (folder / "rows").open("ab") as rows, (folder / "keys").open("ab") as keys:
        rows.write(b"x" * junk)
        keys.write(b"x" * (junk % 25))


@pytest.mark.parametrize("name", KINDS)
def test_a_crash_at_any_instant_of_finish(
    name: str, tmp_path: Path, crash_before: Callable[[int], Any]
) -> None:
    old, new = sample_records(30), sample_records(60, seed=5)[20:]
    wanted: dict[str, bytes] | None = None
    for n in range(300):
        folder = tmp_path / str(n)
        store = make(folder, name)
        store.prepare(sample_schema(), WriteMode.CREATE)
        store.write(RecordBatch.from_records(old))
        store.finish()
        before = content(store.path)
        store.prepare(sample_schema(), WriteMode.UPSERT)
        store.write(RecordBatch.from_records(new))
        mark = store.mark()
        with crash_before(n) as survived:
            store.finish()
        store.close()
        seen = content(store.path)
        assert wanted is None or seen in (before, wanted)
        again = make(folder, name)
        if not survived:
            again.prepare(sample_schema(), WriteMode.RESUME)
            again.rewind(mark)
            again.finish()
        wanted = wanted or content(again.path)
        assert content(again.path) == wanted
        assert again.count() == 60
        assert sorted(p.name for p in folder.iterdir()) == [store.path.name]
        if survived:
            return
    raise AssertionError("finish never came to its end")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("expected", ["int", "mixed"])
def test_finished_twice_the_bytes_are_the_same(name: str, expected: str, tmp_path: Path) -> None:
    """A process may die behind `finish` and before anybody has noted that."""
    schema = sample_schema().model_copy(update={"id_type": expected})
    store = make(tmp_path, name)
    store.prepare(schema, WriteMode.CREATE)
    for batch in batches(sample_records(60), [25, 20]):
        store.write(batch)
    mark = store.mark()
    store.finish()
    once = content(store.path)
    again = make(tmp_path, name)
    again.prepare(schema, WriteMode.RESUME)
    again.rewind(mark)
    again.finish()
    assert content(again.path) == once


@pytest.mark.parametrize("name", KINDS)
def test_the_last_of_one_id_wins(name: str, tmp_path: Path) -> None:
    store = make(tmp_path, name)
    first, second = sample_records(25), sample_records(10, seed=9)
    store.prepare(sample_schema(), WriteMode.CREATE)
    store.write(RecordBatch.from_records(first))
    store.write(RecordBatch.from_records(second))
    store.finish()
    found = {record.id: record for batch in store.scan() for record in batch.records()}
    assert found == {r.id: r for r in first} | {r.id: r for r in second}
    assert store.count() == 25


@pytest.mark.parametrize("name", KINDS)
def test_an_empty_collection_keeps_its_schema(name: str, tmp_path: Path) -> None:
    store = make(tmp_path, name)
    store.prepare(sample_schema(), WriteMode.CREATE)
    store.finish()
    assert store.exists() and store.count() == 0
    assert store.describe().fields == sample_schema().fields
    assert [len(batch) for batch in store.scan()] in ([], [0])
    assert sum(len(list(store.scan(partition=p))) for p in store.partitions(3)) <= 1
    store.prepare(sample_schema(), WriteMode.UPSERT)
    store.write(RecordBatch.from_records(sample_records(3)))
    store.finish()
    assert store.count() == 3


def test_two_writers_cannot_meet(tmp_path: Path) -> None:
    one, two = JsonlStore(tmp_path / "a.jsonl"), JsonlStore(tmp_path / "a.jsonl")
    one.prepare(sample_schema(), WriteMode.CREATE)
    with pytest.raises(JobLockedError, match="another"):
        two.prepare(sample_schema(), WriteMode.RESUME)
    with pytest.raises(JobLockedError, match="another"):
        two.prepare(sample_schema(), WriteMode.CREATE)
    one.write(RecordBatch.from_records(sample_records(5)))
    one.finish()
    assert one.count() == 5


def test_a_log_shorter_than_its_mark_is_refused(tmp_path: Path) -> None:
    store = JsonlStore(tmp_path / "a.jsonl")
    store.prepare(sample_schema(), WriteMode.CREATE)
    store.write(RecordBatch.from_records(sample_records(5)))
    mark = store.mark()
    store.close()
    os.truncate(store.room.folder / "pending" / "rows", mark["bytes"] - 1)
    store.prepare(sample_schema(), WriteMode.RESUME)
    with pytest.raises(CorruptDataError, match="start the job again"):
        store.rewind(mark)


def test_nothing_to_resume(tmp_path: Path) -> None:
    store = JsonlStore(tmp_path / "a.jsonl")
    store.prepare(sample_schema(), WriteMode.RESUME)
    store.rewind(None)
    with pytest.raises(CorruptDataError, match="start the job again"):
        store.rewind({"bytes": 10, "rows": 1})
    store.close()
    with pytest.raises(NotFoundError, match="prepare"):
        JsonlStore(tmp_path / "a.jsonl").write(RecordBatch.from_records(sample_records(1)))


@pytest.mark.parametrize("name", ["one.parquet", "one.jsonl"])
def test_a_full_disk_leaves_the_target_and_the_log(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path, name)
    store.prepare(sample_schema(), WriteMode.CREATE)
    store.write(RecordBatch.from_records(sample_records(5)))
    store.finish()
    store.prepare(sample_schema(), WriteMode.UPSERT)
    real = store._log._keys
    assert real is not None

    class Full:
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

        def __getattr__(self, attribute: str) -> Any:
            return getattr(real, attribute)

    extra = RecordBatch.from_records(sample_records(9)[5:])
    store._log._keys = Full()  # type: ignore[assignment]
    with pytest.raises(FatalStoreError, match="no space"):
        store.write(extra)
    assert store.count() == 5
    store._log._keys = real
    store.write(extra)
    store.finish()
    assert store.count() == 9


@pytest.mark.parametrize("name", ["one.parquet", "one.jsonl"])
def test_a_file_size_limit_is_survived_and_resumed(name: str, tmp_path: Path) -> None:
    """The kernel itself refuses to write on, in the middle of a row."""
    code = (
        "import json, resource, signal, sys\n"
        "from pathlib import Path\n"
        "from stores.files.test_resume import make\n"
        "from vecferry.errors import FatalStoreError\n"
        "from vecferry.ports import WriteMode\n"
        "from vecferry.model import RecordBatch\n"
        "from vecferry.testing import sample_records, sample_schema\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))\n"
        "store = make(Path(sys.argv[1]), sys.argv[2])\n"
        "store.prepare(sample_schema(), WriteMode.CREATE)\n"
        "for start in range(0, 1000, 20):\n"
        "    try:\n"
        "        store.write(RecordBatch.from_records(sample_records(1000)[start:start + 20]))\n"
        "    except FatalStoreError:\n"
        "        print(json.dumps([start, store.mark()]))\n"
        "        break\n"
    )
    tests = Path(__file__).parents[2]
    paths = os.pathsep.join([str(tests), str(tests.parent / "src")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), name],
        env={**os.environ, "PYTHONPATH": paths},
        check=True,
        capture_output=True,
        text=True,
    )
    start, mark = json.loads(done.stdout)
    assert 0 < start < 1000
    store = make(tmp_path, name)
    assert not store.exists()
    store.prepare(sample_schema(), WriteMode.RESUME)
    store.rewind(mark)
    store.write(RecordBatch.from_records(sample_records(1000)[start:]))
    store.finish()
    found = {record.id: record for batch in store.scan() for record in batch.records()}
    assert found == {record.id: record for record in sample_records(1000)}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_two_unfinished_upserts_live_beside_each_other(suffix: str, tmp_path: Path) -> None:
    """Each goes on from its own mark, in whatever order, and both are in the file at the end."""
    path = tmp_path / f"x{suffix}"
    target = (JsonlStore if suffix == ".jsonl" else ParquetStore)(path)
    target.prepare(SCHEMA, WriteMode.CREATE)
    target.write(rows("old", 3))
    target.finish()
    marks = {}
    for job in ("one", "two"):
        store = type(target)(path)
        store.prepare(SCHEMA, WriteMode.UPSERT)
        store.write(rows(job, 4))
        marks[job] = json.loads(json.dumps(store.mark()))
        store.write(rows(f"{job} not committed", 1))
        store.close()
    assert [v.tag for v in type(target)(path).versions() if not v.published]
    for job in ("one", "two"):
        store = type(target)(path)
        store.prepare(SCHEMA, WriteMode.RESUME)
        store.rewind(marks[job])
        store.write(rows(f"{job} rest", 2))
        store.finish()
        store.close()
    ids = sorted(i for batch in type(target)(path).scan() for i in batch.id_list)
    names = {"old": 3, "one": 4, "one rest": 2, "two": 4, "two rest": 2}
    assert ids == sorted(f"{name} {i}" for name, n in names.items() for i in range(n))
    assert not any(not v.published for v in type(target)(path).versions())


def test_a_job_that_keeps_no_mark_yet_leaves_the_log_of_another_alone(tmp_path: Path) -> None:
    store = JsonlStore(tmp_path / "x.jsonl")
    store.prepare(SCHEMA, WriteMode.UPSERT)
    store.write(rows("first", 2))
    mark = store.mark()
    store.close()
    other = JsonlStore(tmp_path / "x.jsonl")
    other.prepare(SCHEMA, WriteMode.RESUME)
    other.rewind(None)
    other.write(rows("second", 1))
    other.finish()
    other.close()
    store.prepare(SCHEMA, WriteMode.RESUME)
    store.rewind(mark)
    store.finish()
    assert {i for b in store.scan() for i in b.id_list} == {"first 0", "first 1", "second 0"}


SCHEMA = CollectionSchema(fields=(VectorField(dim=2, metric=Metric.IP),))


def rows(name: str, n: int) -> RecordBatch:
    return RecordBatch(
        ids=[f"{name} {i}" for i in range(n)], vectors={"": DenseColumn(np.ones((n, 2), np.float32))}
    )
