"""A verification that is stopped or dies goes on where it was: in a merge, in a hash join, asking by id,
with one thread that reads the target and with several."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from vecferry.errors import JobStopped
from vecferry.model import RecordBatch
from vecferry.pipeline import migration as local
from vecferry.ports import Fields
from vecferry.stores.memory import MemoryStore
from vecferry.testing import sample_records
from vecferry.verifying import reading

ROWS, BATCH = 1600, 50
UNTIL = 1000
"""Records that a first run has read of its target when it is stopped or dies."""


class Death(BaseException):
    """The process is gone, as far as the job can tell."""


class Watched(MemoryStore):
    """Counts what is read of it; may give its records in the reverse order; may die while it is read."""

    reverse = False
    die_after: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.read = 0
        self.partitioned: set[str] = set()
        self._lock = threading.Lock()

    def scan(self, *, fields: Fields = Fields.ALL, **options: Any) -> Iterator[RecordBatch]:
        batches = super().scan(fields=fields, **options)
        if self.reverse:
            batches = self._reversed(fields=fields, **options)
        for batch in batches:
            if fields.text:  # else queries are drawn for the comparison of searches
                self._count(len(batch))
                self.partitioned |= {part.key for part in [options.get("partition")] if part}
            yield batch

    def fetch(self, ids: Any, **options: Any) -> RecordBatch:
        found = super().fetch(ids, **options)
        self._count(len(found))
        return found

    def _count(self, rows: int) -> None:
        with self._lock:
            self.read += rows
            if self.die_after is not None and self.read > self.die_after:
                raise Death

    def _reversed(
        self, *, partition: Any = None, after: Any = None, batch_size: int = 1024, **options: Any
    ) -> Any:
        everything = RecordBatch.concat(list(super().scan(**options)))
        turned = everything.take(list(range(len(everything)))[::-1])
        low, high = partition.bounds if partition else (0, len(turned))
        for at in range(after[0] if after else low, high, batch_size):
            end = min(at + batch_size, high)
            yield turned.slice(at, end).replace(cursor=[end])


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SAVED_EVERY", 0.0)
    monkeypatch.setattr(reading, "BATCH", BATCH)


@pytest.mark.parametrize("how", ["stop", "death"])
@pytest.mark.parametrize("tampered", [False, True], ids=["", "tampered"])
@pytest.mark.parametrize(
    ("strategy", "workers"), [("merge", 1), ("hash", 1), ("hash", 3), ("fetch", 1), ("fetch", 3)]
)
def test_it_goes_on(strategy: str, workers: int, how: str, tampered: bool, tmp_path: Path) -> None:
    source, target = vf.Collection(MemoryStore()), Watched()
    source.write(sample_records(ROWS))
    target.reverse = strategy == "hash"
    begun: list[int] = []
    stopping: list[bool] = []

    def look(step: Any) -> None:
        if step.stage != "verify":
            return
        if step.done == ROWS or strategy != "hash":  # an index is filled, at least
            begun.append(target.read)
            if how == "death":
                target.die_after = begun[0] + UNTIL
        if begun and target.read - begun[0] >= UNTIL:
            stopping.append(how == "stop")

    options: dict[str, Any] = {"state_dir": tmp_path / "job", "batch_size": BATCH, "workers": workers}
    options["mode"] = "upsert" if strategy == "fetch" else "create"
    with pytest.raises((JobStopped, Death)):
        vf.migrate(source, target, on_progress=look, should_stop=lambda: any(stopping), **options)
    for reader in [thread for thread in threading.enumerate() if "verify" in thread.name]:
        reader.join(5)  # after a stop nobody waited for it
        assert not reader.is_alive()
    target.read, target.die_after = 0, None
    if tampered:  # what was not read yet is still looked at
        last = 0 if strategy == "hash" else ROWS - 1
        vf.Collection(target).delete([last])
    report = vf.migrate(source, target, **options)
    proof = report.verification
    assert report.resumed and report.ok is not tampered
    assert proof.strategy == ("hash" if strategy == "merge" and tampered else strategy)
    if tampered:
        assert proof.missing_ids == [last]
    else:
        # In the queue, in the hands of the threads, and the one that was being compared.
        ahead = (1 + workers + workers + 1) * BATCH
        assert target.read <= ROWS - UNTIL + ahead, "not from the beginning"
        assert proof.expected_count == proof.target_count == ROWS
        assert proof.search, "the search was compared too"
    assert len(target.partitioned) == (12 if (strategy, workers) == ("hash", 3) else 0)
    assert not (tmp_path / "job" / "verify").exists(), "the index is removed at the end"


def test_a_resume_with_other_workers_keeps_the_shares(tmp_path: Path) -> None:
    """The partitions are fixed once: neither another number of threads nor other bounds move them."""
    source, target = vf.Collection(MemoryStore()), Watched()
    source.write(sample_records(ROWS))
    target.reverse = True

    def look(step: Any) -> None:
        if step.stage == "verify" and step.done == ROWS and target.die_after is None:
            target.die_after = target.read + UNTIL

    options: dict[str, Any] = {"state_dir": tmp_path / "job", "batch_size": BATCH}
    with pytest.raises(Death):
        vf.migrate(source, target, on_progress=look, workers=2, **options)
    target.read, target.die_after = 0, None
    report = vf.migrate(source, target, workers=5, **options)
    assert report.ok and report.verification.target_count == ROWS
    assert target.partitioned == {str(i) for i in range(2 * 4)}
    assert target.read < ROWS, "not from the beginning"
