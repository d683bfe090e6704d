"""The local mode: one folder, one client; what another process sees; what is on the disk when."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

import vecferry as vf
from known import some
from vecferry.errors import ConfigurationError, FatalStoreError, NotFoundError, TargetExistsError
from vecferry.model import CollectionSchema, RecordBatch, VectorField
from vecferry.ports import WriteMode
from vecferry.stores.qdrant import QdrantStore
from vecferry.stores.qdrant.folder import _OPEN

from .conftest import fill, read, records, schema

Open = Callable[..., QdrantStore]


def test_two_stores_of_one_folder_share_its_client(folder: Open) -> None:
    one, two = folder("one"), folder("two")
    fill(one, records(3))
    fill(two, records(4))
    path = one._address.path
    one.close()
    assert two.count() == 4, "still open for the other"
    with pytest.raises(RuntimeError, match="already accessed"):
        QdrantClient(path=path)
    two.close()
    two.close()
    QdrantClient(path=path).close()


def test_a_closed_store_opens_again_by_itself(folder: Open) -> None:
    store = fill(folder(), records(3))
    store.close()
    assert store.count() == 3
    assert len(read(store)) == 3


def test_another_process_that_holds_the_folder_is_named(folder: Open, tmp_path: Path) -> None:
    path = tmp_path / "db"
    fill(folder(), records(1)).close()
    code = (
        "from qdrant_client import QdrantClient\n"
        f"client = QdrantClient(path={str(path)!r})\n"
        "print('open', flush=True)\n"
        "input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert some(holder.stdout).readline() == "open\n"
        with pytest.raises(FatalStoreError, match="another process"):
            folder().count()
    finally:
        holder.communicate("\n")
    assert folder().count() == 1


def test_looking_makes_no_folder(tmp_path: Path) -> None:
    with vf.connect(f"qdrant:{tmp_path}/nowhere#c") as nothing:
        assert not nothing.store.exists()
        with pytest.raises(NotFoundError, match="nowhere"):
            nothing.describe()
        with pytest.raises(NotFoundError):
            list(nothing.scan())
    assert not (tmp_path / "nowhere").exists()


def test_an_unknown_collection_is_not_found(folder: Open) -> None:
    fill(folder(), records(1))
    with pytest.raises(NotFoundError, match="other"):
        folder("other").describe()


def test_a_url_without_its_parts_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="COLLECTION"):
        vf.connect(f"qdrant:{tmp_path}")
    with pytest.raises(ConfigurationError, match="FOLDER"):
        vf.connect("qdrant:#c")
    with pytest.raises(ConfigurationError, match="no option 'colour'"):
        vf.connect(f"qdrant:{tmp_path}#c", colour="red")
    with pytest.raises(ConfigurationError, match="layout"):
        vf.connect(f"qdrant:{tmp_path}#c?layout=haystack", layout="haystack")
    with pytest.raises(ConfigurationError, match="https='maybe'"):
        vf.connect("qdrant://h/c?https=maybe")


def test_what_is_in_memory_lives_with_the_process() -> None:
    with vf.connect("qdrant::memory:#lives") as first:
        first.write([{"id": 1, "vector": [1.0, 0.0], "text": "a"}])
    with vf.connect("qdrant::memory:#lives") as second:
        assert [r.text for r in second.records()] == ["a"]
        second.store._engine.drop("lives")


def test_a_written_batch_is_on_the_disk_as_a_whole(folder: Open, tmp_path: Path) -> None:
    store = folder()
    store.prepare(schema(), WriteMode.CREATE)
    file = tmp_path / "db" / "collection" / "c" / "storage.sqlite"
    store.write(RecordBatch.from_records(records(500)))
    with sqlite3.connect(file) as other:
        assert other.execute("select count(*) from points").fetchone() == (500,)


def test_a_batch_that_fails_on_the_disk_leaves_nothing_there(
    folder: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdrant_client.local.persistence import CollectionPersistence

    store = folder()
    store.prepare(schema(), WriteMode.CREATE)
    store.write(RecordBatch.from_records(records(10)))
    persist, done = CollectionPersistence.persist, []

    def breaks(self: CollectionPersistence, point: models.PointStruct) -> None:
        done.append(1)
        if len(done) == 5:
            raise sqlite3.OperationalError("database or disk is full")
        persist(self, point)

    monkeypatch.setattr(CollectionPersistence, "persist", breaks)
    with pytest.raises(FatalStoreError, match="disk is full"):
        store.write(RecordBatch.from_records(records(20)))
    monkeypatch.undo()
    file = tmp_path / "db" / "collection" / "c" / "storage.sqlite"
    with sqlite3.connect(file) as other:
        assert other.execute("select count(*) from points").fetchone() == (10,)
    store.write(RecordBatch.from_records(records(20)))
    store.close()
    assert folder().count() == 20


def test_the_client_reads_what_was_joined_into_one_commit(folder: Open) -> None:
    store = fill(folder(), records(20))
    path = store._address.path
    store.close()
    client = QdrantClient(path=path)
    points, _ = client.scroll("c", limit=100, with_vectors=True)
    assert [p.id for p in points] == list(range(20))
    np.testing.assert_allclose(
        np.array([p.vector for p in points], np.float32),
        np.stack([some(r.vector) for r in records(20)]),
        rtol=1e-6,
    )
    client.close()


def test_reading_and_writing_one_folder_from_two_threads(folder: Open) -> None:
    source = fill(folder("source"), records(300))
    target = folder("target")
    target.prepare(schema(), WriteMode.CREATE)
    waiting: list[RecordBatch] = list(source.scan(batch_size=20))
    faults: list[BaseException] = []

    def write() -> None:
        try:
            for batch in waiting:
                target.write(batch)
        except BaseException as error:  # noqa: BLE001
            faults.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(5):
        assert len(read(source, batch_size=20)) == 300
    writer.join()
    assert not faults
    assert target.count() == 300


def test_create_refuses_points_and_takes_what_never_began(folder: Open) -> None:
    begun = folder()
    begun.prepare(schema(), WriteMode.CREATE)
    assert not begun.exists()
    other = CollectionSchema(fields=(VectorField(dim=3),))
    begun.prepare(other, WriteMode.CREATE)  # nothing was written yet: the last word counts
    assert begun.describe().fields[0].dim == 3
    begun.prepare(schema(), WriteMode.CREATE)
    begun.write(RecordBatch.from_records(records(2)))
    with pytest.raises(TargetExistsError, match="upsert"):
        begun.prepare(schema(), WriteMode.CREATE)
    begun.finish()
    assert begun.exists()


def test_nothing_stays_open(folder: Open) -> None:
    store = fill(folder(), records(1))
    store.close()
    assert str(Path(some(store._address.path)).resolve()) not in _OPEN


def test_without_the_client_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['qdrant_client'] = None\n"
        "import vecferry as vf\n"
        f"store = vf.connect('qdrant:{tmp_path}#c').store\n"
        "for call in (store.count, store.exists, store.versions, lambda: store.publish('x')):\n"
        "    try:\n"
        "        call()\n"
        "    except vf.VecferryError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install 'vecferry[qdrant]'") == 4, done.stdout + done.stderr


@pytest.mark.chaos
def test_what_was_acknowledged_survives_kill_9(folder: Open, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from stores.qdrant.conftest import records, schema\n"
        "from vecferry.ports import WriteMode\n"
        "from vecferry.model import RecordBatch\n"
        "from vecferry.stores.qdrant import QdrantStore\n"
        "from vecferry.stores.qdrant.connection import Address\n"
        f"store = QdrantStore(Address(path={str(tmp_path / 'db')!r}), 'c')\n"
        "store.prepare(schema(), WriteMode.CREATE)\n"
        "rows = records(20_000)\n"
        "for start in range(0, 20_000, 100):\n"
        "    store.write(RecordBatch.from_records(rows[start : start + 100]))\n"
        "    print(start + 100, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = 0
    while acknowledged < 1500:
        acknowledged = int(writer.stdout.readline())
    writer.kill()
    acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
    writer.wait()
    store = folder()
    assert not store.exists(), "begun, not finished"
    store.prepare(schema(), WriteMode.RESUME)
    ids = [record.id for record in read(store)]
    assert len(ids) >= acknowledged
    assert len(ids) % 100 == 0, "a batch is there as a whole or not at all"
    assert ids == list(range(len(ids)))


def test_the_copy_of_a_first_replace_takes_one_commit_a_page(
    folder: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vecferry.stores.qdrant import folder as module

    store = fill(folder(), records(600))
    shadow = store.shadow("new")
    shadow.prepare(schema(), WriteMode.REPLACE)
    shadow.finish()
    commits: list[int] = []
    original = module._one_commit
    monkeypatch.setattr(module, "_one_commit", lambda *a: (commits.append(1), original(*a))[1])
    store.publish("new")
    assert len(commits) == 3, "pages of 256"
    store.rollback()
    assert store.count() == 600


def test_reading_a_folder_needs_no_client(folder: Open, tmp_path: Path) -> None:
    """Which takes a second to import, and loads every point of every collection."""
    fill(folder(), records(20)).close()
    code = (
        "import sys\n"
        "import vecferry as vf\n"
        f"with vf.connect('qdrant:{tmp_path / 'db'}#c') as there:\n"
        "    assert there.describe().count == 20\n"
        "    assert len(list(there.records(where={'n': {'$gte': 5}}))) == 15\n"
        "    assert [r.id for r in there.fetch([3, 99, 1])] == [3, 1]\n"
        "print('qdrant_client' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_server_needs_no_vendors_client_either() -> None:
    code = (
        "import sys\n"
        "import vecferry as vf\n"
        "store = vf.connect('qdrant://127.0.0.1:1/c?timeout=1').store\n"
        "print('qdrant_client' in sys.modules, 'grpc' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
