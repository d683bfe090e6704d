"""The job file: fixed once, committed in one transaction, locked."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from vecferry.errors import JobChangedError, JobError, JobLockedError
from vecferry.pipeline.job import (
    Counters,
    JobFile,
    forget_job,
    job_id,
    list_jobs,
    peek_job,
)
from vecferry.ports import Partition

PARTS = [Partition("0", [0, 10], 10), Partition("1", {"from": "a"}, None)]


def test_what_is_fixed_comes_back(tmp_path: Path) -> None:
    with JobFile(tmp_path / "job") as state:
        assert not state.begun
        state.begin({"mode": "create"}, {"tag": "t1"}, PARTS)
        state.commit(Counters(read=5), cursors={"0": [4]}, mark={"rows": 5})
    with JobFile(tmp_path / "job") as state:
        assert (state.state, state.get("tag"), state.get("mark")) == ("stream", "t1", {"rows": 5})
        first, second = state.partitions()
        assert (first.partition, first.cursor, first.done) == (PARTS[0], [4], False)
        assert (second.partition, second.cursor) == (PARTS[1], None)
        assert state.counters.read == 5


def test_a_second_run_cannot_meet_the_first(tmp_path: Path) -> None:
    with JobFile(tmp_path / "job"), pytest.raises(JobLockedError, match="another process"):
        JobFile(tmp_path / "job")
    JobFile(tmp_path / "job").close()


def test_changed_settings_are_shown(tmp_path: Path) -> None:
    with JobFile(tmp_path / "job") as state:
        state.begin({"mode": "create", "where": None}, {}, PARTS)
        state.check_settings({"mode": "create", "where": None})
        with pytest.raises(JobChangedError, match=r"where: None → 'x'.*resume=False"):
            state.check_settings({"mode": "create", "where": "x"})


def test_effects_and_cursor_are_one_transaction(tmp_path: Path) -> None:
    def good(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE IF NOT EXISTS ledger (k)")
        connection.execute("INSERT INTO ledger VALUES (1)")

    def bad(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk full")

    with JobFile(tmp_path / "job") as state:
        state.begin({}, {}, PARTS)
        state.commit(Counters(read=1), cursors={"0": 1}, hooks=[good])
        with pytest.raises(JobError, match=r"disk full.*again"):
            state.commit(Counters(read=2), cursors={"0": 2}, hooks=[good, bad])
        assert state.partitions()[0].cursor == 1
        assert state.counters.read == 1
        assert state.connection.execute("SELECT count(*) FROM ledger").fetchone() == (1,)


def test_a_new_job_forgets_the_tables_of_stages(tmp_path: Path) -> None:
    with JobFile(tmp_path / "job") as state:
        state.begin({}, {}, PARTS)
        with state.connection:
            state.connection.execute("CREATE TABLE ledger (k)")
            state.connection.execute("INSERT INTO ledger VALUES (1)")
        state.begin({}, {}, PARTS[:1])
        assert state.connection.execute("SELECT count(*) FROM ledger").fetchone() == (0,)
        assert len(state.partitions()) == 1


def test_jobs_are_listed_and_forgotten(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with JobFile(tmp_path / name) as state:
            state.begin({}, {"source": name}, PARTS)
    assert {job["id"] for job in list_jobs(tmp_path)} == {"a", "b"}
    assert peek_job(tmp_path / "a")["source"] == "a"
    with JobFile(tmp_path / "a"), pytest.raises(JobLockedError):
        forget_job(tmp_path / "a")
    assert forget_job(tmp_path / "a")
    assert not forget_job(tmp_path / "a")
    assert {job["id"] for job in list_jobs(tmp_path)} == {"b"}


def test_forgetting_deletes_nothing_but_the_state(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert not forget_job(tmp_path), "a folder that is no job"
    for folder in (tmp_path, tmp_path / "backup"):
        with JobFile(folder) as state:
            state.begin({}, {}, PARTS)
    for name in ("job.log.1", "quarantine.jsonl", "dedupe-removed.jsonl", "app.sqlite"):
        (tmp_path / name).touch()
    assert forget_job(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.sqlite", "precious.txt"]


def test_a_broken_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.sqlite").write_bytes(b"not a database, certainly not" * 100)
    with pytest.raises(JobError, match="vecferry jobs forget"):
        JobFile(tmp_path / "job")
    with pytest.raises(JobError, match="vecferry jobs forget job"):
        peek_job(tmp_path / "job")
    with JobFile(tmp_path / "sound") as state:
        state.begin({}, {"source": "a"}, PARTS)
    sound, damaged = sorted(list_jobs(tmp_path), key=lambda job: str(job["stage"]), reverse=True)
    assert (sound["source"], damaged["id"], damaged["stage"]) == ("a", "job", "damaged")


def test_a_process_killed_while_making_the_file_leaves_no_job(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.sqlite").touch()
    assert peek_job(tmp_path / "job") == {}
    assert list_jobs(tmp_path) == []
    with JobFile(tmp_path / "job") as state:
        state.begin({}, {}, PARTS)
    assert peek_job(tmp_path / "job")["partitions"] == 2


def test_the_id_names_the_pair() -> None:
    one = job_id("faiss:/a", "qdrant:/b#c")
    assert one.startswith("faiss-qdrant-")
    assert one != job_id("faiss:/a", "qdrant:/b#d")
