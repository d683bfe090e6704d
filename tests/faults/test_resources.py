"""A full disk, a target that may not be written, a clock that jumps, and many bad records."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecferry as vf
from vecferry.api import jobs
from vecferry.core.retry import CircuitBreaker, RetryPolicy
from vecferry.errors import JobError, RejectedRecord, RetryableError, VerificationError
from vecferry.model import DenseColumn, RecordBatch
from vecferry.ports import WriteReceipt
from vecferry.stores.memory import MemoryStore
from vecferry.testing import sample_records

LIMITED = """
import json, resource, signal, sys
import vecferry as vf
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    report = vf.migrate(sys.argv[1], sys.argv[2], batch_size=100, state_dir=sys.argv[4])
    print(json.dumps({"ok": report.ok}))
except vf.VecferryError as error:
    print(json.dumps({"type": type(error).__name__, "message": str(error)}))
"""
TARGETS = ("jsonl:{}/out.jsonl", "parquet:{}/out", "faiss:{}/out", "qdrant:{}/q#kb")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("origin")
    rng = np.random.default_rng(1)
    with vf.connect("memory:") as memory:
        batch = RecordBatch(
            ids=np.arange(2000),
            vectors={"": DenseColumn(rng.standard_normal((2000, 64)).astype(np.float32))},
            texts=[f"a text that takes some room, number {i}" for i in range(2000)],
        )
        memory.store.prepare(vf.model.schema_of(batch), vf.ports.WriteMode.CREATE)
        memory.store.write(batch)
        vf.migrate(memory, f"jsonl:{folder / 'a.jsonl'}", state_dir=folder / "job").check()
    return f"jsonl:{folder / 'a.jsonl'}"


@pytest.mark.parametrize("most", [40_000, 300_000])
@pytest.mark.parametrize("kind", TARGETS)
def test_a_full_disk_is_named_and_the_job_goes_on_after(
    kind: str, most: int, origin: str, tmp_path: Path
) -> None:
    """RLIMIT_FSIZE: every file of the process, the job's own state too, may only grow so far."""
    target = kind.format(tmp_path)
    command = [sys.executable, "-c", LIMITED, origin, target, str(most), str(tmp_path / "job")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said.get("type") in ("FatalStoreError", "JobError"), (said, done.stderr)
    assert "Traceback" not in done.stderr or "Logging error" in done.stderr
    report = vf.migrate(origin, target, batch_size=100, state_dir=tmp_path / "job").check()
    assert report.written == 2000
    with vf.connect(target) as collection:
        assert collection.count() == 2000


def obey_permissions() -> None:
    """In the child: even root may only do what the permission bits allow (drops CAP_DAC_OVERRIDE)."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="uses prctl")
@pytest.mark.parametrize("kind", TARGETS)
def test_a_read_only_folder_is_named(kind: str, origin: str, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    command = [
        sys.executable,
        "-c",
        LIMITED,
        origin,
        kind.format(closed),
        str(2**40),
        str(tmp_path / "job"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=obey_permissions)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said.get("type") == "FatalStoreError", (said, done.stderr)
    assert "permission" in said["message"].lower() or "may not be written" in said["message"]


def test_a_target_where_a_folder_is_a_file(origin: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(vf.VecferryError, match="file"):
        vf.migrate(origin, f"jsonl:{tmp_path / 'file' / 'out.jsonl'}", state_dir=tmp_path / "job")
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_state_folder_that_cannot_be_made(origin: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(JobError, match="state"):
        vf.migrate(origin, MemoryStore(), state_dir=tmp_path / "file" / "job")


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps_changes_nothing(
    jump: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = time.time
    jumped: list[float] = [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + jumped[0])

    def leap(step: Any) -> None:
        jumped[0] += jump

    source = vf.Collection(MemoryStore())
    source.write(sample_records(300))
    report = vf.migrate(source, MemoryStore(), batch_size=10, on_progress=leap).check()
    assert 0 <= report.seconds < 60
    faults = [RetryableError("busy") for _ in range(3)]

    def call() -> str:
        jumped[0] += jump
        if faults:
            raise faults.pop()
        return "done"

    assert RetryPolicy(base=0.001, max_seconds=5).call(call) == "done"
    breaker = CircuitBreaker(failures=1, reset=30)
    with pytest.raises(RetryableError):
        breaker.call(lambda: (_ for _ in ()).throw(RetryableError("busy")))
    jumped[0] += jump
    assert breaker.open


class Fussy(MemoryStore):
    """Refuses each record whose text says so, without naming it."""

    def write(self, batch: RecordBatch) -> WriteReceipt:
        if any("bad" in (text or "") for text in batch.text_list):
            raise RejectedRecord("the value is out of range")
        return super().write(batch)


@pytest.mark.parametrize(
    ("rows", "bad"), [(8_000, 80), pytest.param(1_000_000, 10_000, marks=pytest.mark.slow)]
)
def test_many_bad_records_are_put_aside_one_by_one(rows: int, bad: int, tmp_path: Path) -> None:
    chosen = set(np.random.default_rng(7).choice(rows, bad, replace=False).tolist())
    source = vf.Collection(MemoryStore())
    for start in range(0, rows, 10_000):
        ids = range(start, min(start + 10_000, rows))
        batch = RecordBatch(
            ids=np.arange(ids.start, ids.stop),
            vectors={"": DenseColumn(np.ones((len(ids), 4), np.float32))},
            texts=[f"bad {i}" if i in chosen else f"good {i}" for i in ids],
        )
        if not start:
            source.store.prepare(vf.model.schema_of(batch), vf.ports.WriteMode.CREATE)
        source.store.write(batch)
    target = Fussy()
    report = vf.migrate(source, target, on_error="quarantine", batch_size=1000, state_dir=tmp_path / "job")
    assert (report.read, report.written, report.rejected) == (rows, rows - bad, bad)
    assert report.verification.ok and target.count() == rows - bad
    with pytest.raises(VerificationError):
        report.check()
    held = {int(row["id"].removeprefix("i:")) for row in jobs.quarantined(tmp_path / "job")}
    assert held == chosen
