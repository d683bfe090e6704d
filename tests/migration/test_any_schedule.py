"""Whatever goes wrong and whenever: in the end the target holds exactly the expected records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vecferry as vf
from vecferry.errors import FatalStoreError, JobStopped, RequestTooLargeError, RetryableError, TimedOutError
from vecferry.model import RecordBatch
from vecferry.pipeline import stream as run
from vecferry.ports import WriteReceipt
from vecferry.stores.jsonl import JsonlStore
from vecferry.stores.memory import MemoryStore


class Death(BaseException):
    """The process is gone, as far as the job can tell."""


@dataclass
class Fate:
    """Draws what happens next, until nothing is left."""

    left: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=Lock)

    def strike(self, place: str, rows: int = 0) -> None:
        """Raise what is due, if it is due here. A record alone is not too large: it would be rejected."""
        with self.lock:  # the source is read in a thread of its own
            due = self.left.pop(0) if self.left else "none"
        where, _, what = due.partition(" ")
        if where != place or (what == "large" and rows == 1):
            return
        raise {
            "retry": RetryableError("busy"),
            "late": TimedOutError("late"),
            "large": RequestTooLargeError("large"),
            "fatal": FatalStoreError("no"),
            "death": Death(),
        }[what]


class Shaken(MemoryStore):
    """A source or a target in memory whose every step may fail, before or after it was done."""

    fate: Fate

    def scan(self, **options: Any) -> Iterator[RecordBatch]:
        for batch in super().scan(**options):
            if options.get("partition"):
                self.fate.strike("read")
            yield batch

    def write(self, batch: RecordBatch) -> WriteReceipt:
        return shaken_write(self.fate, super().write, batch)


class ShakenJsonl(JsonlStore):
    """An append log on disk whose every write may fail."""

    fate: Fate

    def shadow(self, tag: str) -> Any:
        shadow = super().shadow(tag)
        shadow.fate = self.fate
        return shadow

    def write(self, batch: RecordBatch) -> WriteReceipt:
        return shaken_write(self.fate, super().write, batch)


def shaken_write(fate: Fate, write: Any, batch: RecordBatch) -> WriteReceipt:
    fate.strike("write", len(batch))
    receipt: WriteReceipt = write(batch)
    fate.strike("written")
    return receipt


def twice_or_never(batch: RecordBatch) -> RecordBatch:
    """A transform that drops every third record and makes two of every fifth."""
    made = []
    for record in batch.records():
        n = record.metadata["n"]
        if n % 3:
            made.append(record)
        if n % 5 == 0:
            made.append(record.model_copy(update={"id": n + 1000}))
    return RecordBatch.from_records(made) if made else batch.slice(0, 0)


twice_or_never.takes_batch = True  # type: ignore[attr-defined]

ROWS = 37
RECORDS = [
    vf.VectorRecord(id=n, text=f"text {n % 23}", vectors={"": [1.0, n, n * n]}, metadata={"n": n})
    for n in range(ROWS)
]
EVENTS = (
    *("read retry", "read late", "read fatal", "read death", "write retry", "write late", "write large"),
    *("write fatal", "write death", "written retry", "written fatal", "written death", "none"),
)
STAGES: dict[str, tuple[dict[str, Any], set[int]]] = {
    "as they are": ({}, set(range(ROWS))),
    "transform": (
        {"transform": twice_or_never},
        {n for n in range(ROWS) if n % 3} | {n + 1000 for n in range(0, ROWS, 5)},
    ),
    "dedupe": ({"dedupe": "text"}, set(range(23))),
}


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waits, but their bounds; a commit after every batch."""
    monkeypatch.setattr(run, "COMMIT_EVERY", 0.0)
    monkeypatch.setattr("vecferry.core.retry._sleep_unless", lambda seconds, should_stop: not should_stop())


def attempt(source: Any, target: Any, stop_after: int, **options: Any) -> Any:
    """One run of the job: its report, or ``None`` if it did not come to its end."""
    count = iter(range(10_000))
    try:
        return vf.migrate(source, target, should_stop=lambda: next(count) >= stop_after, **options)
    except (Death, JobStopped, FatalStoreError, RetryableError):
        return None


@pytest.mark.parametrize("kind", ["memory", "jsonl"])
@pytest.mark.parametrize("stages", STAGES)
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    events=st.lists(st.sampled_from(EVENTS), max_size=40),
    stops=st.lists(st.integers(1, 60), max_size=3),
    size=st.integers(1, 9),
)
def test_any_schedule_ends_with_exactly_the_expected_records(
    kind: str, stages: str, events: list[str], stops: list[int], size: int
) -> None:
    options, wanted = STAGES[stages]
    with TemporaryDirectory() as made:
        folder = Path(made)
        fate = Fate(list(events))
        source, target = Shaken(), Shaken() if kind == "memory" else ShakenJsonl(folder / "out.jsonl")
        source.fate = target.fate = Fate()
        vf.Collection(source).write(RECORDS)
        source.fate = target.fate = fate
        job = {"state_dir": folder / "job", "batch_size": size, **options}
        report = None
        for stop in [*stops, *[10_000] * (len(events) + 2)]:
            report = attempt(source, target, stop, **job)
            if report is not None:
                break
        assert report is not None and report.ok, report
        held = vf.connect(target) if kind == "memory" else vf.connect(f"jsonl:{folder / 'out.jsonl'}")
        found = [i for batch in held.scan() for i in batch.id_list]
        assert sorted(found) == sorted(wanted)
        assert report.written == len(wanted), "the counters agree with the target"
        if kind == "jsonl":
            lines = (folder / "out.jsonl").read_text().splitlines()
            assert len([line for line in lines if line.strip()]) == len(wanted)
