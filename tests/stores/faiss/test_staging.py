"""Writing in one step, also when the process is killed at any instant; resuming; updating by id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from known import some
from stores.faiss.support import by_id, records, schema, write
from vecferry.errors import CorruptDataError, JobLockedError, NotFoundError
from vecferry.model import DenseColumn, RecordBatch, VectorRecord
from vecferry.ports import Deletable, Publishable, Rewindable, Store, WriteMode
from vecferry.stores.faiss import FaissStore

LAYOUTS = ["plain", "langchain", "llamaindex", "llamaindex-map", "llamaindex-simple", "raw-pkl", "raw-json"]


def stage(store: FaissStore, rows: list[VectorRecord], mode: WriteMode, tag: str = "job") -> FaissStore:
    shadow = store.shadow(tag)
    shadow.prepare(schema(), mode)
    shadow.write(RecordBatch.from_records(rows))
    shadow.finish()
    return shadow


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_store_promises_every_ability() -> None:
    for ability in (Store, Rewindable, Publishable, Deletable):
        assert isinstance(FaissStore("x"), ability)
    modes = (WriteMode.CREATE, WriteMode.REPLACE, WriteMode.UPSERT)
    assert [FaissStore("x").stages(mode) for mode in modes] == [True, True, False]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resumed_job_leaves_the_same_bytes_as_one_that_ran_through(layout: str, tmp_path: Path) -> None:
    rows = records(300)
    batches = [RecordBatch.from_records(rows[i : i + 50]) for i in range(0, 300, 50)]
    through = FaissStore(tmp_path / "a" / "kb", layout=layout)
    (tmp_path / "a").mkdir()
    shadow = through.shadow("job")
    shadow.prepare(schema(), WriteMode.CREATE)
    for batch in batches:
        shadow.write(batch)
    shadow.finish()
    through.publish("job")
    (tmp_path / "b").mkdir()
    mark = None
    for i, batch in enumerate(batches):
        broken = FaissStore(tmp_path / "b" / "kb", layout=layout).shadow("job")
        broken.prepare(schema(), WriteMode.CREATE if i == 0 else WriteMode.RESUME)
        broken.rewind(mark)
        broken.write(batch)
        mark = broken.mark()
        broken.write(batches[(i + 2) % 6])  # not marked: it must not stay
        broken.close()
    last = FaissStore(tmp_path / "b" / "kb", layout=layout).shadow("job")
    last.prepare(schema(), WriteMode.RESUME)
    last.rewind(mark)
    last.finish()
    last.finish()
    FaissStore(tmp_path / "b" / "kb").publish("job")
    assert content(tmp_path / "a" / "kb") == content(tmp_path / "b" / "kb")
    assert FaissStore(tmp_path / "b" / "kb").count() == 300


@pytest.mark.parametrize("file", ["vectors", "records.jsonl", "rows"])
@pytest.mark.parametrize("cut", [1, 7, 400])
def test_a_torn_write_is_cut_back_to_the_last_whole_record(file: str, cut: int, tmp_path: Path) -> None:
    rows = records(100)
    shadow = FaissStore(tmp_path / "kb").shadow("job")
    shadow.prepare(schema(), WriteMode.CREATE)
    shadow.write(RecordBatch.from_records(rows))
    shadow.close()
    (path,) = (tmp_path / ".kb.vecferry").rglob(file)
    os.truncate(path, path.stat().st_size - cut)
    again = FaissStore(tmp_path / "kb").shadow("job")
    again.prepare(schema(), WriteMode.RESUME)
    kept = again._staged().rows
    assert 80 < kept < 100
    again.write(RecordBatch.from_records(rows[kept:]))
    again.finish()
    found = [record for batch in again.scan() for record in batch.records()]
    assert found == rows


def test_a_mark_beyond_what_is_there_is_named(tmp_path: Path) -> None:
    shadow = FaissStore(tmp_path / "kb").shadow("job")
    shadow.prepare(schema(), WriteMode.CREATE)
    with pytest.raises(CorruptDataError, match="start again"):
        shadow.rewind({"rows": 5, "bytes": 100})
    with pytest.raises(NotFoundError, match="prepare"):
        FaissStore(tmp_path / "other").write(RecordBatch.from_records(records(1)))


def test_two_writers_of_one_stage_are_told_apart(tmp_path: Path) -> None:
    first, second = FaissStore(tmp_path / "kb").shadow("job"), FaissStore(tmp_path / "kb").shadow("job")
    first.prepare(schema(), WriteMode.CREATE)
    for mode in (WriteMode.RESUME, WriteMode.CREATE):
        with pytest.raises(JobLockedError, match="another process"):
            second.prepare(schema(), mode)
    first.close()
    second.prepare(schema(), WriteMode.RESUME)
    second.close()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=6), min_size=1, max_size=6),
    data=st.data(),
)
def test_writing_is_an_upsert_whatever_repeats(
    batches: list[list[int]], data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against a dict: later records win, within a batch, between batches, and between jobs."""
    folder = tmp_path_factory.mktemp("upsert")
    layout = data.draw(st.sampled_from(LAYOUTS))
    model: dict[Any, VectorRecord] = {}
    serial = 0
    for job in range(2):
        store = FaissStore(folder / "kb", layout=layout)
        store.prepare(schema(4), WriteMode.UPSERT)
        for ids in batches:
            rows = []
            for id_ in ids:
                serial += 1
                key: Any = id_ if id_ % 2 else str(id_)
                vector = [float(serial), 1.0, 2.0, float(job)]
                rows.append(VectorRecord(id=key, text=f"t{serial}", vector=vector, metadata={"s": serial}))
                model[key] = rows[-1]
            store.write(RecordBatch.from_records(rows))
        store.finish()
        store.close()
        assert by_id(FaissStore(folder / "kb")) == model
    gone = data.draw(st.sampled_from(sorted(model, key=str)))
    assert FaissStore(folder / "kb").delete([gone, "nobody"]) == 1
    del model[gone]
    assert by_id(FaissStore(folder / "kb")) == model
    assert not list(folder.glob(".kb*")), "nothing is left beside the collection"


def test_an_upsert_forgets_only_its_own_when_it_is_rewound(tmp_path: Path) -> None:
    write(tmp_path / "kb", records(10))
    store = FaissStore(tmp_path / "kb")
    store.prepare(schema(), WriteMode.UPSERT)
    store.write(RecordBatch.from_records(records(3, seed=5)))
    store.rewind(None)
    store.finish()
    assert by_id(FaissStore(tmp_path / "kb")) == {record.id: record for record in records(10)}


@pytest.mark.parametrize("index", ["Flat", "HNSW8", "IVF2,Flat"])
def test_an_upsert_keeps_layout_index_and_space(index: str, tmp_path: Path) -> None:
    write(tmp_path / "kb", records(50), index=index, layout="raw-jsonl")
    store = FaissStore(tmp_path / "kb")
    before = store.describe()
    store.prepare(schema(), WriteMode.UPSERT)
    store.write(RecordBatch.from_records(records(60, seed=1)[50:]))
    store.finish()
    after = FaissStore(tmp_path / "kb").describe()
    assert after.layout == "raw-jsonl" and after.fields == before.fields and after.count == 60


def test_a_scan_goes_on_over_the_state_it_began_with(tmp_path: Path) -> None:
    store = write(tmp_path / "kb", records(100))
    scan = store.scan(batch_size=10)
    first = next(scan)
    write(tmp_path / "kb", records(5, seed=9), schema())
    store.delete(["r50"])
    rest = [record.id for batch in scan for record in batch.records()]
    assert [*first.id_list, *rest] == [f"r{i}" for i in range(100)]
    assert store.count() == 99


def test_batches_own_their_arrays(tmp_path: Path) -> None:
    batches = list(write(tmp_path / "kb", records(100)).scan(batch_size=10))
    rows = np.concatenate([batch.vectors[""].values for batch in batches])
    assert np.array_equal(rows, np.stack([some(record.vector) for record in records(100)]))
    batches[0].vectors[""].values[:] = 0
    assert FaissStore(tmp_path / "kb").fetch(["r0"]).vectors[""].values.any()


def test_a_discarded_shadow_leaves_nothing(tmp_path: Path) -> None:
    store = write(tmp_path / "kb", records(5))
    stage(store, records(3, seed=1), WriteMode.REPLACE).close()
    store.discard("job")
    store.discard("job")
    assert store.count() == 5 and not list((tmp_path / ".kb.vecferry").glob("v-*"))


CHILD = """
import sys
sys.path[:0] = {paths!r}
from stores.faiss.support import records, schema
from vecferry.ports import WriteMode
from vecferry.model import RecordBatch
from vecferry.stores.faiss import FaissStore

for round in range(1000):
    size = 20 + round % 2
    store = FaissStore({target!r}, layout={layout!r})
    shadow = store.shadow(f"job-{{round}}")
    shadow.prepare(schema(), WriteMode.REPLACE)
    shadow.write(RecordBatch.from_records(records(size, seed=size)))
    shadow.finish()
    shadow.close()
    store.publish(f"job-{{round}}")
    store.prune(1)
    print(round, flush=True)
"""


def assert_whole(target: Path) -> dict[Any, VectorRecord]:
    found = by_id(FaissStore(target))
    wanted = records(len(found), seed=len(found))
    assert len(found) in (20, 21) and found == {record.id: record for record in wanted}
    return found


@pytest.mark.chaos
@pytest.mark.parametrize("layout", ["plain", "langchain"])
def test_a_kill_at_any_instant_leaves_one_whole_collection(layout: str, tmp_path: Path) -> None:
    """A loop of replacing jobs is killed again and again: the target is the old one or the new one."""
    target = tmp_path / "kb"
    write(target, records(20, seed=20), layout=layout)
    code = CHILD.format(paths=[p for p in sys.path if p], target=str(target), layout=layout)
    rng = np.random.default_rng(1)
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert_whole(target)
        # Whoever comes next completes a swap that was cut short.
        assert [version.live for version in FaissStore(target).versions()].count(True) == 1
        found = assert_whole(target)
        # Whatever was under construction can be taken up again.
        store = FaissStore(target)
        stage(store, records(30, seed=30), WriteMode.REPLACE, tag="after").close()
        store.publish("after")
        assert by_id(FaissStore(target)) == {record.id: record for record in records(30, seed=30)}
        store.rollback()
        assert by_id(FaissStore(target)) == found


def test_a_kill_while_an_upsert_copies_leaves_the_old_and_starts_anew(tmp_path: Path) -> None:
    write(tmp_path / "kb", records(10))
    store = FaissStore(tmp_path / "kb")
    store.prepare(schema(), WriteMode.UPSERT)
    staged = store._staged()
    staged.plan.base = None  # as if killed while the old records were copied
    staged.save()
    staged.rewind({"rows": 4, "bytes": 0})
    store.close()
    again = FaissStore(tmp_path / "kb")
    again.prepare(schema(), WriteMode.RESUME)
    again.write(RecordBatch(ids=["new"], vectors={"": DenseColumn(np.ones((1, 16), np.float32))}))
    again.finish()
    assert set(by_id(FaissStore(tmp_path / "kb"))) == {f"r{i}" for i in range(10)} | {"new"}
