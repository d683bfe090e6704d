"""A verification that is stopped or dies goes on where it was, in lockstep and in the spool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from vecferry.engines import local
from vecferry.errors import JobStopped
from vecferry.records import RecordBatch
from vecferry.stores.memory import MemoryStore
from vecferry.testing import sample_records
from vecferry.verifying import comparing

ROWS = 400


class Death(BaseException):
    """The process is gone, as far as the job can tell."""


class Watched(MemoryStore):
    """Counts what is read of it; may give its records in the reverse order; may die while it is read."""

    reverse = False
    die_after: int | None = None
    read = 0

    def scan(self, **options: Any) -> Iterator[RecordBatch]:
        batches = super().scan(**options)
        if self.reverse:
            batches = self._reversed(**options)
        for batch in batches:
            self.read += 0 if options.get("partition") else len(batch)
            if self.die_after is not None and self.read > self.die_after:
                raise Death
            yield batch

    def _reversed(self, *, after: Any = None, batch_size: int = 1024, **options: Any) -> Any:
        everything = RecordBatch.concat(list(super().scan(**options)))
        turned = everything.take(list(range(len(everything)))[::-1])
        start = after[0] if after else 0
        for at in range(start, len(turned), batch_size):
            end = min(at + batch_size, len(turned))
            yield turned.slice(at, end).replace(cursor=[end])


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "VERIFY_SAVED_EVERY", 0.0)
    monkeypatch.setattr(comparing, "_BATCH", 50)


@pytest.mark.parametrize("reverse", [False, True], ids=["lockstep", "spool"])
@pytest.mark.parametrize("how", ["stop", "death"])
@pytest.mark.parametrize("tampered", [False, True])
def test_it_goes_on(reverse: bool, how: str, tampered: bool, tmp_path: Path) -> None:
    source, target = vf.Collection(MemoryStore()), Watched()
    source.write(sample_records(ROWS))
    target.reverse = reverse
    stopping: list[bool] = []

    def look(step: Any) -> None:
        if step.stage == "verify" and target.read >= 250 and how == "stop":
            stopping.append(True)

    options: dict[str, Any] = {"state_dir": tmp_path / "job", "batch_size": 50}
    if how == "death":
        target.die_after = 250
    with pytest.raises((JobStopped, Death)):
        vf.migrate(source, target, on_progress=look, should_stop=lambda: bool(stopping), **options)
    seen, target.read, target.die_after = target.read, 0, None
    if tampered:  # what was not read yet is still looked at
        last = 0 if reverse else ROWS - 1
        vf.Collection(target).delete([last])
    report = vf.migrate(source, target, **options)
    strategy = "spool" if reverse or tampered else "lockstep"
    assert report.resumed and report.verification.strategy == strategy
    assert report.ok is not tampered
    if tampered:
        assert report.verification.missing_ids == [last]
    else:
        assert target.read <= ROWS - 150 and seen >= 250, "not from the beginning"
        assert report.verification.expected_count == report.verification.target_count == ROWS
        assert report.verification.search, "the search was compared too"
    assert not list((tmp_path / "job").glob("verify.sqlite*")), "the spool is removed at the end"
