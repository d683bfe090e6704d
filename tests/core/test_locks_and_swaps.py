"""Locks between processes, and files and folders that change in one step."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vecferry.core import durable
from vecferry.core.durable import put_back, replacing, swap_in, write_durably
from vecferry.core.locks import Liveness, Lock, is_locked, locked
from vecferry.errors import ConfigurationError, FatalStoreError, JobLockedError

HOLDER = (
    "import sys; from pathlib import Path; from vecferry.core.locks import Lock\n"
    "lock = Lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "deep" / "lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_a_lock_lives_as_long_as_its_process(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    path = tmp_path / "deep" / "lock"
    assert is_locked(path)
    with pytest.raises(JobLockedError, match="somebody writes"):
        Lock(path, busy="somebody writes")
    holder.kill()
    holder.wait()
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)
    assert not is_locked(path) and not is_locked(tmp_path / "none")


def test_a_lock_is_released_from_any_thread(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    lock.release()
    Lock(tmp_path / "lock").release()


def test_a_waiting_lock_gets_its_turn(tmp_path: Path) -> None:
    first, order = Lock(tmp_path / "lock"), []

    def second() -> None:
        with locked(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    order.append("first")
    first.release()
    thread.join(timeout=10)
    assert order == ["first", "second"]


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("vecferry.core.locks.FileLock.acquire", none)
    with pytest.raises(ConfigurationError, match="has no locks"):
        Lock(tmp_path / "lock")


def test_who_is_alive(tmp_path: Path) -> None:
    one, two = Liveness(tmp_path), Liveness(tmp_path)
    assert one.alive(two.name) and one.alive(one.name) and not one.alive("somebody")
    two.close()
    two.close()
    assert not one.alive(two.name) and not (tmp_path / two.name).exists()
    alone = Liveness(None)
    assert alone.alive(alone.name) and not alone.alive(one.name)


# -- swaps ----------------------------------------------------------------------------------------


def filled(path: Path, word: str, kind: str) -> Path:
    if kind == "file":
        path.write_text(word)
    elif kind == "folder":
        path.mkdir()
        (path / "inside").write_text(word)
    return path


def content(path: Path) -> str | None:
    if not path.exists():
        return None
    return (path / "inside").read_text() if path.is_dir() else path.read_text()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("old", ["none", "file", "folder"])
@pytest.mark.parametrize("new", ["file", "folder"])
def test_what_goes_in_and_what_is_kept(
    new: str, old: str, exchanges: bool, keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(durable, "_exchange_call", lambda: None)
    target = filled(tmp_path / "kb", "old", old)
    kept = tmp_path / "versions" / "1" / "kb" if keep else None
    swap_in(filled(tmp_path / "new", "new", new), target, keep=kept)
    assert content(target) == "new"
    assert kept is None or content(kept) == (None if old == "none" else "old")
    assert {p.name for p in tmp_path.iterdir()} <= {"kb", "versions"}


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    real = filled(tmp_path / "real", "real", "folder")
    (tmp_path / "kb").symlink_to(real)
    swap_in(filled(tmp_path / "new", "new", "folder"), tmp_path / "kb")
    assert content(tmp_path / "kb") == "new" and content(real) == "real"


def test_killed_between_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_exchange_call", lambda: None)
    target, new = filled(tmp_path / "kb", "old", "folder"), filled(tmp_path / "new", "new", "folder")
    target.rename(tmp_path / ".old-0123abcd-kb")  # as a kill leaves it
    assert put_back(target) and content(target) == "old"
    target.rename(tmp_path / ".old-0123abcd-kb")
    swap_in(new, target)
    assert content(target) == "new" and [p.name for p in tmp_path.iterdir()] == ["kb"]


def test_a_rename_that_fails_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_exchange_call", lambda: None)
    target, new = filled(tmp_path / "kb", "old", "folder"), filled(tmp_path / "new", "new", "folder")
    rename = Path.rename

    def failing(self: Path, other: Path) -> Path:
        if self == new:
            raise OSError(5, "input/output error")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="input/output"):
        swap_in(new, target)
    assert content(target) == "old"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = filled(tmp_path / "f", "old", "file")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert content(path) == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]
    write_durably(path, b"new")
    assert content(path) == "new" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_windows_waits_for_readers_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tries = filled(tmp_path / "f", "old", "file"), []
    replace = Path.replace

    def busy(self: Path, other: Path) -> Path:
        tries.append(self)
        if len(tries) < 3:
            raise PermissionError(13, "sharing violation")
        return replace(self, other)

    monkeypatch.setattr(durable, "_WINDOWS", True)
    monkeypatch.setattr(Path, "replace", busy)
    write_durably(path, b"new")
    assert content(path) == "new" and len(tries) == 3
    tries.extend([path] * -100)
    monkeypatch.setattr(durable, "_PATIENCE", 0.0)
    tries.clear()
    with pytest.raises(FatalStoreError, match="open in another program"):
        write_durably(path, b"newer")
    assert content(path) == "new"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_right_that_is_missing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, other: Path) -> Path:
        raise PermissionError(13, "permission denied")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(PermissionError):
        write_durably(tmp_path / "f", b"x")
    assert not list(tmp_path.iterdir())
