"""The job's own log: JSON lines with the job's id, one file a job, bounded."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Thread

import pytest

import vecferry as vf
from migration.faulty import BreakingSource
from vecferry.errors import RetryableError
from vecferry.reporting.logs import job_log
from vecferry.stores.memory import MemoryStore
from vecferry.testing import sample_records


def entries(job: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (job / "job.log").read_text().splitlines()]


def test_two_jobs_in_one_process_keep_their_logs_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecferry.core.retry._sleep_unless", lambda seconds, should_stop: True)

    def ferry(name: str) -> None:
        vf.connect(f"memory:logs-{name}").write(sample_records(40))
        source = BreakingSource(f"logs-{name}", lambda: RetryableError(f"lost {name}"), times=3)
        vf.migrate(source, MemoryStore(), batch_size=4, state_dir=tmp_path / name / "job").check()

    threads = [Thread(target=ferry, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, other in (("one", "two"), ("two", "one")):
        found = entries(tmp_path / name / "job")
        assert all(entry["job"] == "job" and entry["logger"].startswith("vecferry") for entry in found)
        said = " ".join(entry["message"] for entry in found)
        assert f"lost {name}" in said and f"lost {other}" not in said, (
            "the reader's thread is told apart too"
        )


def test_the_log_is_bounded(tmp_path: Path) -> None:
    import logging

    with job_log(tmp_path):
        for i in range(15_000):
            logging.getLogger("vecferry.test").info("line %d %s", i, "x" * 300)
    sizes = [path.stat().st_size for path in tmp_path.glob("job.log*")]
    assert len(sizes) == 4 and max(sizes) <= 1_000_000
