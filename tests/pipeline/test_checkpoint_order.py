"""Nothing that a resume relies on is stored before what it stands for is durable."""

from __future__ import annotations

from typing import Any, cast

import pytest

from vecferry.model import RecordBatch
from vecferry.pipeline.job import Counters, JobFile
from vecferry.pipeline.quarantine import Quarantine
from vecferry.pipeline.stream import Checkpointer, RejectionPolicy
from vecferry.ports import InFlightBatch, Partition, Rejection
from vecferry.stores.memory import MemoryStore


class Recorder:
    """Plays the job file, the quarantine and a log that is cut to a mark, and notes who was called when."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def add(self, rejection: Rejection) -> None:
        self.calls.append(("quarantine", len(rejection.batch)))

    def sync(self) -> int:
        self.calls.append(("sync quarantine", None))
        return 77

    def commit(self, counters: Counters, **values: Any) -> None:
        self.calls.append(("commit", {**values, "written": counters.written}))


class Log(MemoryStore):
    """A sink that appends."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__("")
        self._recorder = recorder

    def mark(self) -> Any:
        self._recorder.calls.append(("mark", None))
        return {"rows": 2}

    def rewind(self, mark: Any) -> None:
        raise AssertionError(mark)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def checkpoint(recorder: Recorder) -> Checkpointer:
    file, quarantine = cast(JobFile, recorder), cast(Quarantine, recorder)
    return Checkpointer(file, Log(recorder), quarantine, Counters(), RejectionPolicy(quarantine=True))


def inflight(*ids: int, **changes: Any) -> InFlightBatch:
    return InFlightBatch(RecordBatch(ids=list(ids)), Partition("p"), [ids[-1]], len(ids), **changes)


def test_the_quarantine_and_the_mark_are_durable_before_the_cursor(
    recorder: Recorder, checkpoint: Checkpointer
) -> None:
    bad = Rejection(RecordBatch(ids=[3]), "write", "no")
    checkpoint.enter()
    checkpoint.acknowledge(inflight(1, 2, 3), [bad], written=2)
    checkpoint.commit(force=True)
    assert [name for name, _ in recorder.calls] == ["quarantine", "sync quarantine", "mark", "commit"]
    stored = recorder.calls[-1][1]
    assert (stored["cursors"], stored["mark"], stored["quarantine_length"]) == ({"p": [3]}, {"rows": 2}, 77)
    assert stored["written"] == 2


def test_a_cursor_is_not_stored_before_its_batch_is_acknowledged(
    recorder: Recorder, checkpoint: Checkpointer
) -> None:
    checkpoint.acknowledge(inflight(1, 2), [], written=2)
    checkpoint.enter()  # the next batch is on its way: the log holds a part of it
    checkpoint.commit(force=True)
    assert recorder.calls == [], "a mark now would stand behind rows that no cursor accounts for"
    checkpoint.acknowledge(inflight(3, 4, last=True), [], written=2)
    checkpoint.commit(force=True)
    stored = recorder.calls[-1][1]
    assert (stored["cursors"], stored["done"], stored["written"]) == ({"p": [4]}, ["p"], 4)


def test_what_was_committed_is_not_committed_again(recorder: Recorder, checkpoint: Checkpointer) -> None:
    hooks = (lambda connection: None,)
    checkpoint.acknowledge(inflight(1, commit_hooks=hooks), [], written=1)
    checkpoint.commit(force=True)
    checkpoint.commit(force=True)
    first, second = (values for name, values in recorder.calls if name == "commit")
    assert list(first["hooks"]) == list(hooks)
    assert (second["cursors"], second["done"], list(second["hooks"])) == ({}, [], [])
