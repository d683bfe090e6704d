"""SIGINT and SIGTERM in a real process: the first stops at a checkpoint, the second at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from vecferry.pipeline.job import peek_job
from vecferry.testing import sample_records

ROWS = 3000
SLOW = """
import sys, time
from vecferry.stores.jsonl import JsonlStore
write = JsonlStore.write
def slowly(self, batch):
    time.sleep({seconds})
    return write(self, batch)
JsonlStore.write = slowly
from vecferry.cli import main
sys.argv[0] = "vecferry"
main()
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    url = f"jsonl:{tmp_path / 'source.jsonl'}"
    with vf.connect("memory:") as origin:
        origin.write(sample_records(ROWS))
        vf.migrate(origin, url, state_dir=tmp_path / "fill").check()
    return url


def start(tmp_path: Path, source: str, seconds: float) -> tuple[subprocess.Popen[str], str]:
    target = f"jsonl:{tmp_path / 'out.jsonl'}"
    command = [sys.executable, "-c", SLOW.format(seconds=seconds), "migrate", source, target]
    process = subprocess.Popen(
        [*command, "--batch-size", "50", "--state-dir", str(tmp_path / "job")],
        env={**os.environ, "VECFERRY_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not _begun(tmp_path / "job") and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process, target


def _begun(job: Path) -> bool:
    state: dict[str, Any] = peek_job(job) if (job / "job.sqlite").exists() else {}
    return bool((state.get("counters") or {}).get("read"))


def finish(tmp_path: Path, target: str) -> None:
    """Go on by the job's name alone, from another folder."""
    done = subprocess.run(
        [sys.executable, "-m", "vecferry", "jobs", "resume", str(tmp_path / "job"), "--json"],
        cwd="/", capture_output=True, text=True,
        env={**os.environ, "VECFERRY_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed"]
    with vf.connect(target) as collection:
        assert collection.count() == ROWS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_at_a_checkpoint_and_says_how_to_go_on(
    number: signal.Signals, source: str, tmp_path: Path
) -> None:
    process, target = start(tmp_path, source, 0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "once more to stop at once" in said
    assert "run the same call again" in said and "vecferry jobs resume" in said
    state = peek_job(tmp_path / "job")
    assert 0 < state["counters"]["written"] < ROWS
    finish(tmp_path, target)


def test_the_second_signal_stops_at_once(source: str, tmp_path: Path) -> None:
    process, target = start(tmp_path, source, 0.4)
    slow = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - slow < 25
    finish(tmp_path, target)
