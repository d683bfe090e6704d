"""Serving on real stores: FAISS folders, Qdrant's local mode, Postgres."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecferry as vf
from known import some
from servers.postgres import Postgres, postgres
from vecferry.model import RecordBatch
from vecferry.ports import WriteMode
from vecferry.serving import DualWriter, FallbackCollection, sync, untrack
from vecferry.stores.memory import MemoryStore

from .conftest import WordEmbedder, contents, fill, record, schema

__all__ = ["postgres"]


@pytest.fixture(params=["faiss", "qdrant", "pgvector"])
def open_target(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    if request.param == "faiss":
        return lambda: vf.connect(f"faiss:{tmp_path}/kb").store
    if request.param == "qdrant":
        return lambda: vf.connect(f"qdrant:{tmp_path}/qdrant#kb").store
    server: Postgres = request.getfixturevalue("postgres")
    url = server.url("kb")
    return lambda: vf.connect(url).store


def migrated(source: MemoryStore, open_target: Callable[[], Any], tmp_path: Path) -> None:
    target = open_target()
    vf.migrate(source, target, state_dir=tmp_path / "job").check()
    target.close()


def same(source: MemoryStore, target: Any) -> None:
    ours, theirs = contents(source), contents(target)
    assert ours.keys() == theirs.keys()
    for id_, found in theirs.items():
        assert (found.text, found.metadata) == (ours[id_].text, ours[id_].metadata)
        np.testing.assert_allclose(some(found.vector), some(ours[id_].vector), atol=1e-5)


def test_sync_after_a_migration(
    open_target: Callable[[], Any], words: WordEmbedder, tmp_path: Path
) -> None:
    source = fill(MemoryStore(), words)
    migrated(source, open_target, tmp_path)
    source.write(RecordBatch.from_records([record(1, words, "changed"), record(77, words)]))
    source.delete([2, 3])
    for expected in ((1, 1, 2, 28), (0, 0, 0, 29)):
        target = open_target()
        report = sync(source, target, state=tmp_path / "sync")
        found = (report.added, report.changed, report.deleted)
        assert found == expected[:3], report
        same(source, target)
        target.close()


def test_dual_writes_and_searches(
    open_target: Callable[[], Any], words: WordEmbedder, tmp_path: Path
) -> None:
    old = fill(MemoryStore(), words)
    migrated(old, open_target, tmp_path)
    new = open_target()
    kb = FallbackCollection(old, new, names=("old", "new"), embedder=words)
    with DualWriter(old, new, tmp_path / "journal") as writer:
        writer.write([record(5, words, "a changed text"), record(200, words, "a new text")])
        writer.delete([6])
        for side in ("old", "new"):
            kb.primary = side
            assert [kb.search(text)[0].id for text in ("a changed text", "a new text")] == [5, 200]
            assert 6 not in {hit.id for hit in kb.search("record number n6 about topic t6", 30)}
            assert kb.search("a new text", where={"n": {"$lt": 3}})[0].metadata["n"] < 3
        writer.cut_over()
        writer.write([record(7, words, "after the cut-over")])
        same(old, new)
    kb.close()


def filled_table(url: str, words: WordEmbedder) -> Any:
    store = vf.connect(url).store
    store.prepare(schema(words).model_copy(update={"id_type": "int"}), WriteMode.CREATE)
    store.write(RecordBatch.from_records([record(n, words) for n in range(30)]))
    store.finish()
    return store


def test_postgres_tells_what_changed(postgres: Postgres, words: WordEmbedder, tmp_path: Path) -> None:
    url = postgres.url("items")
    source = filled_table(url, words)
    target = fill(MemoryStore(), words, [])
    first = sync(source, target, by="journal", state=tmp_path / "sync")
    assert first.added == 30
    # The application writes as it always did, past vecferry.
    with postgres.connect(url) as connection:
        connection.execute("update items set text = 'changed by the app' where id = 4")
        connection.execute("delete from items where id in (5, 6)")
    source.write(RecordBatch.from_records([record(99, words)]))
    source.finish()
    report = sync(source, target, by="journal", state=tmp_path / "sync")
    assert (report.changed, report.deleted) == (2, 2)
    found = contents(target)
    assert found.keys() == {*range(30), 99} - {5, 6}
    assert found[4].text == "changed by the app"
    assert sync(source, target, by="journal", state=tmp_path / "sync", forget=True).quiet
    with postgres.connect(url) as connection:
        triggers = "select count(*) from pg_trigger where not tgisinternal"
        assert connection.execute(triggers).fetchone() != (0,)
        untrack(source, target, state=tmp_path / "sync")
        assert connection.execute(triggers).fetchone() == (0,)
    source.close()


def test_postgres_journal_under_live_writes(
    postgres: Postgres, words: WordEmbedder, tmp_path: Path
) -> None:
    url = postgres.url("items")
    source = filled_table(url, words)
    target = fill(MemoryStore(), words, [])
    sync(source, target, by="journal", state=tmp_path / "sync")
    stop = threading.Event()

    def live() -> None:
        writer = vf.connect(url).store
        for turn in range(10_000):
            writer.write(RecordBatch.from_records([record(turn % 40, words, f"turn {turn}")]))
            if turn % 5 == 0:
                writer.delete([(turn * 7) % 40])
            if stop.is_set():
                writer.close()
                return

    thread = threading.Thread(target=live)
    thread.start()
    for _ in range(8):
        sync(source, target, by="journal", state=tmp_path / "sync", batch_size=7)
    stop.set()
    thread.join()
    sync(source, target, by="journal", state=tmp_path / "sync")
    with postgres.connect(url) as connection:
        truth = dict(connection.execute("select id, text from items").fetchall())
    assert {id_: found.text for id_, found in contents(target).items()} == truth
    source.close()
