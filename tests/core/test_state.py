"""State files: pragmas, schema versions, transactions, damage, other processes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vecferry.core.state import StateFile
from vecferry.errors import (
    ConfigurationError,
    CorruptStateError,
    JobError,
    JobLockedError,
    LocalStateError,
    RetryableError,
)

SCHEMA = "CREATE TABLE IF NOT EXISTS t (k TEXT PRIMARY KEY, v TEXT); CREATE INDEX IF NOT EXISTS i ON t (v);"


def open_state(path: Path, **options: object) -> StateFile:
    return StateFile(path, SCHEMA, what="the file", **options)  # type: ignore[arg-type]


def looked_at(path: Path, query: str) -> list[tuple[object, ...]]:
    """With sqlite3 itself, beside the helper."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize(("durability", "journal", "synchronous"), [
    ("full", "wal", 2), ("normal", "wal", 1), ("scratch", "off", 0),
])  # fmt: skip
def test_the_pragmas(tmp_path: Path, durability: str, journal: str, synchronous: int) -> None:
    with open_state(tmp_path / "deep" / "s.sqlite", durability=durability) as state:
        assert state.value("PRAGMA journal_mode") == journal
        assert state.value("PRAGMA synchronous") == synchronous


def test_a_transaction_is_all_or_nothing_and_nests(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with open_state(path) as state:
        with pytest.raises(ZeroDivisionError), state.transaction():
            state.execute("INSERT INTO t VALUES ('a', '1')")
            raise ZeroDivisionError
        with state.transaction():
            state.execute("INSERT INTO t VALUES ('b', '1')")
            state.executemany("INSERT INTO t VALUES (?, ?)", [("c", "1"), ("d", "1")])
            assert looked_at(path, "SELECT count(*) FROM t") == [(0,)]
    assert looked_at(path, "SELECT k FROM t ORDER BY k") == [("b",), ("c",), ("d",)]


def test_a_schema_grows_by_scripts(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    old = sqlite3.connect(path)  # as made before versions were counted
    old.executescript(SCHEMA + "INSERT INTO t VALUES ('a', '1');")
    old.close()
    later = (SCHEMA, "ALTER TABLE t ADD COLUMN w INTEGER DEFAULT 7; -- semicolons; in comments\n")
    for _ in range(2):
        StateFile(path, later, what="the file").close()
    assert looked_at(path, "SELECT * FROM t") == [("a", "1", 7)]
    assert looked_at(path, "PRAGMA user_version") == [(2,)]
    with pytest.raises(CorruptStateError, match="newer vecferry"):
        open_state(path)


def test_a_script_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    open_state(path).close()
    with pytest.raises(ConfigurationError):
        StateFile(path, (SCHEMA, "CREATE TABLE u (x); INSERT INTO nowhere VALUES (1);"), what="the file")
    assert looked_at(path, "PRAGMA user_version") == [(1,)]
    assert not looked_at(path, "SELECT name FROM sqlite_master WHERE name = 'u'")


@pytest.mark.parametrize("damage", [b"not a database at all" * 50, None])
def test_damage_is_named(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "s.sqlite"
    with open_state(path, durability="scratch") as state:
        state.executemany("INSERT INTO t VALUES (?, ?)", [(str(i), "x" * 500) for i in range(500)])
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(damage or data)
    with pytest.raises(CorruptStateError, match=r"the file .*s\.sqlite") as caught:
        with open_state(path) as state:
            state.rows("SELECT * FROM t")
    for kind in (LocalStateError, JobError, ConfigurationError):
        assert isinstance(caught.value, kind)


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        open_state(tmp_path)
    with pytest.raises(JobError, match="cannot be opened"):
        open_state(tmp_path / "none.sqlite", read_only=True, unusable=JobError)


def test_a_read_only_look_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "100% ? #.sqlite"
    open_state(path).close()
    before = path.read_bytes()
    with StateFile(path, what="the file", read_only=True) as state:
        assert state.rows("SELECT * FROM t") == []
        with pytest.raises(LocalStateError):
            state.execute("INSERT INTO t VALUES ('a', 'b')")
    assert path.read_bytes() == before


def test_a_full_disk_is_an_error_and_no_half_row(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with open_state(path, failed=RetryableError) as state:
        state.execute("PRAGMA max_page_count = 8")
        with pytest.raises(RetryableError, match="full"), state.transaction():
            for i in range(1000):
                state.execute("INSERT INTO t VALUES (?, ?)", (str(i), "x" * 900))
        state.execute("INSERT INTO t VALUES ('still', 'works')")
    assert looked_at(path, "SELECT * FROM t") == [("still", "works")]


def test_a_closed_file_says_so(tmp_path: Path) -> None:
    state = open_state(tmp_path / "s.sqlite")
    state.close()
    state.close()
    for call in (lambda: state.rows("SELECT 1"), lambda: state.executemany("SELECT ?", [(1,)])):
        with pytest.raises(ConfigurationError, match="was closed"):
            call()


def test_another_process_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    code = (
        "import sys; from vecferry.core.state import StateFile\n"
        "with StateFile(sys.argv[1], 'CREATE TABLE IF NOT EXISTS t (x);', what='it', exclusive=True):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout and holder.stdin
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(JobLockedError, match="another process"):
            open_state(path, exclusive=True, timeout=0.1)
    finally:
        holder.kill()
        holder.wait()
    open_state(path, exclusive=True, timeout=0.1).close()


def test_two_that_open_a_new_file_at_once(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def run() -> None:
        try:
            for n in range(20):
                with open_state(tmp_path / f"{n}.sqlite") as state:
                    state.execute("INSERT OR REPLACE INTO t VALUES ('a', 'b')")
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_private_file_is_gone_when_it_is_closed(tmp_path: Path) -> None:
    with StateFile(None, SCHEMA, what="a list", durability="scratch") as state:
        state.executemany("INSERT INTO t VALUES (?, ?)", [(str(i), "x") for i in range(2000)])
        keys = [str(i) for i in range(0, 2000, 2)]
        found = list(state.chosen("SELECT k FROM t WHERE k IN ({})", keys, 300))
        assert sorted(found) == sorted((key,) for key in keys)
        assert state.nbytes > 0
    assert not list(tmp_path.iterdir())
