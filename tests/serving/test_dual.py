"""Two collections written in step, whatever happens to one of them or to the process."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from known import some
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    RejectedRecord,
    RetryableError,
    UnsupportedError,
)
from vecferry.model import RecordBatch, VectorRecord
from vecferry.model.vectors import DenseColumn
from vecferry.ports import WriteMode
from vecferry.serving import DualWriter, Journal
from vecferry.stores.memory import MemoryStore

from .conftest import Moody, WordEmbedder, contents, fill, record, schema


@pytest.fixture
def pair(words: WordEmbedder) -> tuple[Moody, Moody]:
    return fill(Moody(), words), fill(Moody(), words)


@pytest.fixture
def writer(pair: tuple[Moody, Moody], tmp_path: Path) -> Any:
    with DualWriter(*pair, tmp_path / "journal.sqlite3") as dual:
        yield dual


def test_writes_and_deletes_reach_both(
    writer: DualWriter, pair: tuple[Moody, Moody], words: WordEmbedder
) -> None:
    assert writer.write([record(1, words, "changed"), record(100, words)]) == 2
    assert writer.delete([2, 999]) == 1
    assert contents(pair[0]) == contents(pair[1])
    assert contents(pair[1])[1].text == "changed"
    assert 2 not in contents(pair[1])
    assert writer.pending == 0


def test_what_the_second_missed_is_made_up_for(
    writer: DualWriter, pair: tuple[Moody, Moody], words: WordEmbedder
) -> None:
    pair[1].write_error = RetryableError("down")
    writer.write([record(n, words, f"v2 of {n}") for n in range(5)])
    writer.delete([7, 8])
    writer.write([record(7, words, "back again")])
    assert writer.pending == 7
    assert writer.figures.get("writes", side="new", result="missed") == 3
    with pytest.raises(RetryableError):
        writer.replay()
    assert writer.pending == 7
    pair[1].write_error = None
    assert writer.replay() == 7
    assert contents(pair[0]) == contents(pair[1])
    assert writer.pending == 0


def test_the_journal_survives_the_process(
    pair: tuple[Moody, Moody], words: WordEmbedder, tmp_path: Path
) -> None:
    with DualWriter(*pair, tmp_path / "j") as first:
        pair[1].write_error = RetryableError("down")
        first.write([VectorRecord(id="007", text="x", vector=words.embed(["x"])[0])])
    pair[1].write_error = None
    with DualWriter(*pair, tmp_path / "j", retry_missed=True) as second:
        assert second.pending == 1
        second.write([record(50, words)])
        assert second.pending == 0
    assert contents(pair[0]) == contents(pair[1])


def test_a_side_that_stays_away_refuses_no_write(
    pair: tuple[Moody, Moody], words: WordEmbedder, tmp_path: Path
) -> None:
    with DualWriter(*pair, tmp_path / "j", retry_missed=True) as writer:
        pair[1].write_error = RetryableError("down")
        assert [writer.write([record(n, words, "meanwhile")]) for n in range(3)] == [1, 1, 1]
        assert writer.pending == 3
        pair[1].write_error = None
        writer.write([record(9, words)])
        assert writer.pending == 0
    assert contents(pair[0]) == contents(pair[1])


def test_a_leading_side_that_fails_refuses_the_write(
    writer: DualWriter, pair: tuple[Moody, Moody], words: WordEmbedder
) -> None:
    for error in (FatalStoreError("disk full"), RejectedRecord("bad", ids=[1])):
        pair[0].write_error = error
        with pytest.raises(type(error)):
            writer.write([record(1, words, "never arrives")])
    pair[0].write_error = None
    assert writer.pending == 1
    writer.replay()
    assert contents(pair[0]) == contents(pair[1])
    assert contents(pair[1])[1].text != "never arrives"


def test_cut_over_and_roll_back_change_who_leads(
    writer: DualWriter, pair: tuple[Moody, Moody], words: WordEmbedder
) -> None:
    pair[1].write_error = RetryableError("down")
    writer.write([record(1, words, "one")])
    with pytest.raises(RetryableError):
        writer.cut_over(timeout=0.2)
    assert writer.leading == "old"
    pair[1].write_error = None
    writer.cut_over()
    assert writer.leading == "new"
    assert contents(pair[1])[1].text == "one"
    pair[0].write_error = RetryableError("the old one is away")
    writer.write([record(1, words, "two")])
    pair[0].write_error = None
    writer.roll_back()
    assert writer.leading == "old"
    assert contents(pair[0])[1].text == "two"
    writer.write([record(3, words, "goes on")])
    assert contents(pair[0]) == contents(pair[1])


def test_each_side_in_its_own_space(words: WordEmbedder, tmp_path: Path) -> None:
    other = WordEmbedder("other-words")
    old, new = fill(MemoryStore(), words, []), fill(MemoryStore(), other, [])

    def embed(by: WordEmbedder) -> Any:
        def adapt(batch: RecordBatch) -> RecordBatch:
            column = DenseColumn(by.embed([text or "" for text in batch.text_list]))
            return batch.replace(vectors={"": column})

        return adapt

    with DualWriter(old, new, ":memory:", adapt={"old": embed(words), "new": embed(other)}) as writer:
        writer.write([{"id": 1, "text": "a b"}, {"id": 2, "text": "c"}])
        writer.mirror([1])
    for store, by in ((old, words), (new, other)):
        np.testing.assert_array_equal(contents(store)[1].vector, by.embed(["a b"])[0])


def test_a_journal_that_cannot_be_written_stops_the_write_before_it_begins(
    writer: DualWriter, pair: tuple[Moody, Moody], words: WordEmbedder
) -> None:
    before = contents(pair[0])
    writer.journal._file.connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(writer.journal.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RetryableError, match="journal"):
        writer.write([record(1, words, "not now")])
    other.execute("ROLLBACK")
    other.close()
    assert contents(pair[0]) == before
    assert writer.write([record(1, words, "now")]) == 1


def test_a_gate_left_shut_opens_by_itself(
    writer: DualWriter, pair: tuple[Moody, Moody], words: WordEmbedder
) -> None:
    writer.journal.shut(0.2)
    start = time.monotonic()
    writer.write([record(1, words, "waits")])
    assert 0.1 < time.monotonic() - start < 5.0
    writer.journal.shut(10.0)
    with pytest.raises(RetryableError, match="cut-over"):
        writer.journal.begin([1], patience=0.05)


def test_sides_that_cannot_are_refused(words: WordEmbedder) -> None:
    class ReadOnly:
        def search(self) -> None: ...

    with pytest.raises(UnsupportedError, match="cannot be written"):
        DualWriter(fill(MemoryStore(), words), ReadOnly(), ":memory:")


@pytest.mark.parametrize("seed", range(3))
def test_many_writers_of_the_same_ids_end_equal(words: WordEmbedder, tmp_path: Path, seed: int) -> None:
    """Two writers as two processes would be: a store object and a journal connection each."""
    names = [f"dual-{side}-{seed}-{os.getpid()}" for side in ("old", "new")]
    for name in names:
        fill(MemoryStore(name), words, range(6))

    class Slow(MemoryStore):
        def write(self, batch: RecordBatch) -> Any:
            time.sleep(random.random() * 0.004)
            return super().write(batch)

    def work(number: int) -> None:
        dice = random.Random(seed * 10 + number)
        with DualWriter(Slow(names[0]), Slow(names[1]), tmp_path / "j") as writer:
            for turn in range(25):
                id_ = dice.randrange(6)
                if dice.random() < 0.2:
                    writer.delete([id_])
                else:
                    writer.write([record(id_, words, f"by {number} in {turn}")])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Journal(tmp_path / "j")) == 0
    assert contents(MemoryStore(names[0])) == contents(MemoryStore(names[1]))


def test_a_write_overtaken_by_another_takes_over_its_outcome(words: WordEmbedder, tmp_path: Path) -> None:
    """The slow one reached the leading side first and the other side last."""
    names = [f"dual-{side}-{os.getpid()}-{tmp_path.name}" for side in ("old", "new")]
    for name in names:
        fill(MemoryStore(name), words, [1])
    waits, go = threading.Event(), threading.Event()

    class Slow(MemoryStore):
        def write(self, batch: RecordBatch) -> Any:
            if batch.text_list == ["slow"]:
                waits.set()
                assert go.wait(10)
            return super().write(batch)

    with DualWriter(MemoryStore(names[0]), Slow(names[1]), tmp_path / "j") as slow:
        thread = threading.Thread(target=slow.write, args=([record(1, words, "slow")],))
        thread.start()
        assert waits.wait(10)
        with DualWriter(MemoryStore(names[0]), MemoryStore(names[1]), tmp_path / "j") as quick:
            quick.write([record(1, words, "quick")])
        go.set()
        thread.join()
        assert slow.pending == 0
    assert [contents(MemoryStore(name))[1].text for name in names] == ["quick", "quick"]


class FileStore(MemoryStore):
    """A memory store that lies in a SQLite file, so that it outlives a killed process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._load()

    def _load(self) -> None:
        import pickle

        if self._path.exists():
            self._cabinet = pickle.loads(self._path.read_bytes())

    def _save(self) -> None:
        import pickle

        part = self._path.with_suffix(".part")
        part.write_bytes(pickle.dumps(self._cabinet))
        part.replace(self._path)

    def write(self, batch: RecordBatch) -> Any:
        receipt = super().write(batch)
        self._save()
        return receipt

    def delete(self, ids: Any) -> int:
        gone = super().delete(ids)
        self._save()
        return gone


class Waiting(FileStore):
    """Says that a write is about to begin, waits to be let go, and may die instead of writing."""

    dies = False

    def write(self, batch: RecordBatch) -> Any:
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        self._path.with_suffix(".waits").touch()
        while not self._path.with_suffix(".go").exists():
            time.sleep(0.002)
        return super().write(batch)


def _write_once(folder: Path) -> None:
    old, new = Waiting(folder / "old"), Waiting(folder / "new")
    new.dies = True
    with DualWriter(old, new, folder / "j") as writer:
        writer.write([record(1, WordEmbedder(), "by the one that dies")])


@pytest.mark.parametrize("settled_before", [False, True])
def test_a_writer_that_dies_between_two_others_leaves_its_note(
    words: WordEmbedder, tmp_path: Path, settled_before: bool
) -> None:
    """It wrote the leading side last and never reached the other; a later write of the same id did both."""
    for side in ("old", "new"):
        store = FileStore(tmp_path / side)
        store.prepare(schema(words), WriteMode.UPSERT)
        store.write(RecordBatch.from_records([record(1, words)]))
    child = multiprocessing.get_context("fork").Process(target=_write_once, args=(tmp_path,))
    child.start()
    while not (tmp_path / "old.waits").exists():
        time.sleep(0.002)
    with DualWriter(FileStore(tmp_path / "old"), FileStore(tmp_path / "new"), tmp_path / "j") as writer:
        writer.write([record(1, words, "by the other")])
        assert writer.pending == 1
        if settled_before:  # what is under way in a live process is that process's to settle
            assert writer.replay() == 0
        (tmp_path / "old.go").touch()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    sides = FileStore(tmp_path / "old"), FileStore(tmp_path / "new")
    assert [contents(side)[1].text for side in sides] == ["by the one that dies", "by the other"]
    with DualWriter(*sides, tmp_path / "j") as writer:
        assert writer.replay() == 1
        assert writer.pending == 0
    assert [contents(side)[1].text for side in sides] == ["by the one that dies"] * 2
    assert not list((tmp_path / "j.writers").iterdir()), "no sign of the living or the dead is left"


def test_a_fault_that_is_no_store_s_counts_as_one(
    writer: DualWriter, pair: tuple[Moody, Moody], words: WordEmbedder
) -> None:
    old, new = pair
    old.write_error = ZeroDivisionError("a bug in a driver")
    with pytest.raises(ZeroDivisionError):
        writer.write([record(1, words, "half way")])
    old.write_error = None
    assert (writer.pending, writer.replay()) == (1, 1)
    new.write_error = ZeroDivisionError("a bug in a driver")
    assert writer.write([record(2, words, "the leading side has it")]) == 1
    new.write_error = None
    assert (writer.pending, writer.replay()) == (1, 1)
    assert contents(old) == contents(new)
    new.write_error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        writer.write([record(3, words, "to be settled")])
    assert writer.pending == 1


def test_a_write_counts_although_the_other_side_fails_in_the_settling_of_two_writers(
    writer: DualWriter, pair: tuple[Moody, Moody], words: WordEmbedder
) -> None:
    old, new = pair
    write = old.write

    def disturbed(batch: RecordBatch) -> Any:
        writer.journal.begin([1])  # another writer of the same id, that moment
        return write(batch)

    def once(batch: RecordBatch) -> Any:
        new.write = Moody.write.__get__(new)  # type: ignore[method-assign]
        new.write_error = RetryableError("away")
        return MemoryStore.write(new, batch)

    old.write, new.write = disturbed, once  # type: ignore[method-assign]
    assert writer.write([record(1, words, "acknowledged")]) == 1
    assert writer.pending == 1


def test_wrong_calls_are_named(pair: tuple[Moody, Moody], words: WordEmbedder, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'old' and 'new'"):
        DualWriter(*pair, ":memory:", adapt={"nwe": lambda batch: batch})
    note = tmp_path / "note.txt"
    note.write_text("not a database " * 100)
    for path in (note, tmp_path, note / "below"):
        with pytest.raises(ConfigurationError, match=r"the journal .* cannot be opened"):
            DualWriter(*pair, path)
    assert {path.name for path in tmp_path.iterdir()} == {"note.txt"}
    writer = DualWriter(*pair, tmp_path / "j")
    writer.close()
    with pytest.raises(ConfigurationError, match="was closed"):
        writer.write([record(1, words)])


def test_sides_may_be_urls(words: WordEmbedder) -> None:
    sides = [fill(MemoryStore(name), words) for name in ("dual-by-url-old", "dual-by-url-new")]
    with DualWriter("memory:dual-by-url-old", "memory:dual-by-url-new", ":memory:") as writer:
        writer.write([record(99, words)])
    assert all(99 in contents(side) for side in sides)


def _write_for_ever(folder: Path, log: Path) -> None:
    words = WordEmbedder()
    sides = FileStore(folder / "old"), FileStore(folder / "new")
    with DualWriter(*sides, folder / "j") as writer, log.open("a") as file:
        for turn in range(100_000):
            writer.write([record(turn % 9, words, f"turn {turn}")])
            file.write(f"{turn}\n")
            file.flush()


@pytest.mark.chaos
def test_a_killed_process_loses_no_acknowledged_write(words: WordEmbedder, tmp_path: Path) -> None:
    for side in ("old", "new"):
        store = FileStore(tmp_path / side)
        store.prepare(schema(words), WriteMode.UPSERT)
        store.write(RecordBatch.from_records([record(0, words)]))
    log = tmp_path / "acknowledged"
    context = multiprocessing.get_context("fork")
    for round_ in range(3):
        log.write_text("")
        child = context.Process(target=_write_for_ever, args=(tmp_path, log))
        child.start()
        while log.stat().st_size < 60 + 10 * round_ and child.is_alive():
            time.sleep(0.002)
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        last = max(int(line) for line in log.read_text().split("\n")[:-1])
        with DualWriter(FileStore(tmp_path / "old"), FileStore(tmp_path / "new"), tmp_path / "j") as writer:
            writer.cut_over()
            writer.roll_back()
            assert writer.pending == 0
        old, new = contents(FileStore(tmp_path / "old")), contents(FileStore(tmp_path / "new"))
        assert old == new
        turns = {
            int(text.split()[1]) for text in (some(r.text) for r in new.values()) if text.startswith("turn")
        }
        assert max(turns) >= last
        # The write after the last acknowledged one may have arrived too, in the place of the oldest.
        assert {t for t in range(last - 8, last + 1) if t >= 0} <= turns | {last + 1 - 9}
