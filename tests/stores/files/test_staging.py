"""Swapping in one step, and what a crash at any instant leaves."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vecferry
from vecferry.core.durable import exchange, write_durably
from vecferry.errors import ConfigurationError, FatalStoreError, NotFoundError, SchemaMismatchError
from vecferry.stores.kit import staging
from vecferry.stores.kit.staging import StagingRoom


def put(path: Path, text: str, *, folder: bool) -> None:
    if not folder:
        path.write_text(text)
        return
    path.mkdir()
    for name in ("one", "two"):
        (path / name).write_text(text)


def seen(path: Path) -> str | None:
    """What a reader finds; a mixture fails."""
    if not path.exists():
        return None
    if path.is_file():
        return path.read_text()
    texts = {p.read_text() for p in path.iterdir()}
    assert len(texts) == 1 and len(list(path.iterdir())) == 2, "a reader saw a mixture"
    return texts.pop()


@pytest.fixture(params=["file", "folder"])
def folder(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "folder")


@pytest.fixture(params=["exchange", "renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the system call, and as on a system that has none."""
    if request.param == "renames":
        monkeypatch.setattr(staging, "exchange", lambda a, b: False)
    return str(request.param)


def test_publish_keeps_what_was_there(tmp_path: Path, folder: bool, swap: str) -> None:
    target = tmp_path / "kb"
    put(target, "old", folder=folder)
    room = StagingRoom(target)
    put(room.begin("new"), "new", folder=folder)
    assert seen(target) == "old", "what is staged is not seen"
    version = room.publish("new", count=3)
    assert (version.tag, version.live, version.count) == ("new", True, 3)
    assert room.publish("new").tag == "new", "twice is as once"
    assert seen(target) == "new"
    assert [(v.tag, v.live) for v in room.versions()] == [("new", True), ("original", False)]
    assert room.rollback().tag == "original"
    assert seen(target) == "old"
    with pytest.raises(NotFoundError, match="keeps no earlier version"):
        room.rollback()
    room.publish("new")
    assert seen(target) == "new"
    assert room.prune() == ["original"]
    room.sweep()
    assert [p.name for p in tmp_path.iterdir()] == ["kb"], "nothing is left beside the target"


def test_first_publish_needs_no_target(tmp_path: Path, folder: bool) -> None:
    room = StagingRoom(tmp_path / "kb")
    assert room.versions() == []
    put(room.begin("a"), "a", folder=folder)
    room.publish("a")
    put(room.begin("b"), "b", folder=folder)
    room.publish("b")
    put(room.begin("c"), "c", folder=folder)
    room.publish("c")
    assert [v.tag for v in room.versions()] == ["c", "b", "a"]
    assert room.prune(keep=1) == ["a"]
    assert seen(tmp_path / "kb") == "c"
    assert room.rollback().tag == "b"
    assert seen(tmp_path / "kb") == "b"


def test_the_same_tag_may_be_built_anew(tmp_path: Path) -> None:
    room = StagingRoom(tmp_path / "kb")
    for text in ("first", "second"):
        put(room.begin("job"), text, folder=False)
        room.publish("job")
    assert seen(tmp_path / "kb") == "second"
    room.rollback()
    assert seen(tmp_path / "kb") == "first"


def test_discard_touches_only_what_was_never_live(tmp_path: Path) -> None:
    room = StagingRoom(tmp_path / "kb")
    room.discard("nothing")
    put(room.begin("a"), "a", folder=False)
    room.publish("a")
    put(room.begin("b"), "b", folder=False)
    room.discard("a")
    room.discard("b")
    assert seen(tmp_path / "kb") == "a"
    with pytest.raises(NotFoundError, match="write it first"):
        room.publish("b")


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    real = tmp_path / "disk" / "kb"
    real.parent.mkdir()
    put(real, "old", folder=True)
    link = tmp_path / "kb"
    link.symlink_to(real)
    room = StagingRoom(link)
    put(room.begin("new"), "new", folder=True)
    room.publish("new")
    assert link.is_symlink() and seen(link) == "new" == seen(real)


def test_a_tag_is_never_a_path(tmp_path: Path) -> None:
    room = StagingRoom(tmp_path / "kb")
    put(room.begin("../../up"), "x", folder=False)
    room.publish("../../up")
    assert {p.name for p in tmp_path.iterdir()} == {"kb", ".kb.vecferry"}


def test_a_crash_at_any_instant_leaves_old_or_new(
    tmp_path: Path, folder: bool, swap: str, crash_before: Callable[[int], Any]
) -> None:
    for n in range(200):
        target = tmp_path / str(n) / "kb"
        target.parent.mkdir()
        put(target, "old", folder=folder)
        put(StagingRoom(target).begin("new"), "new", folder=folder)
        with crash_before(n) as survived:
            StagingRoom(target).publish("new")
        found = seen(target)
        assert found in ("old", "new") or (found is None and folder and swap == "renames")
        StagingRoom(target).publish("new")
        assert seen(target) == "new"
        with crash_before(n) as rolled_back:
            StagingRoom(target).rollback()
        if not rolled_back and StagingRoom(target).versions()[0].live:
            StagingRoom(target).rollback()
        assert seen(target) == "old"
        StagingRoom(target).publish("new")
        assert seen(target) == "new"
        assert [v.tag for v in StagingRoom(target).versions()] == ["new", "original"]
        if survived and rolled_back:
            return
    raise AssertionError("publish never came to its end")


def test_kill_9_while_versions_change(tmp_path: Path) -> None:
    target = tmp_path / "kb"
    put(target, "original", folder=True)
    code = (
        "import sys; from pathlib import Path; from vecferry.stores.kit.staging import StagingRoom\n"
        "room = StagingRoom(Path(sys.argv[1])); n = int(sys.argv[2])\n"
        "print('go', flush=True)\n"
        "while True:\n"
        "    n += 1; place = room.begin(f't{n}'); place.mkdir(exist_ok=True)\n"
        "    [(place / x).write_text(f't{n}') for x in ('one', 'two')]\n"
        "    room.publish(f't{n}'); room.rollback(); room.publish(f't{n}'); room.prune(1)\n"
    )
    rng = random.Random(7)
    for attempt in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(target), str(attempt * 1000)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None and process.stdout.readline() == b"go\n"
        time.sleep(rng.uniform(0.02, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        text = seen(target)
        assert text is not None
        versions = StagingRoom(target).versions()
        assert [v.live for v in versions].count(True) == 1
        assert seen(target) in (text, next(v.tag for v in versions if v.live))


def test_small_files_are_replaced_whole(tmp_path: Path, crash_before: Callable[[int], Any]) -> None:
    path = tmp_path / "state"
    write_durably(path, b"old")
    for n in range(20):
        with crash_before(n) as survived:
            write_durably(path, b"new" * 1000)
        assert path.read_bytes() in (b"old", b"new" * 1000)
        if survived:
            return
    raise AssertionError


def test_exchange_swaps_a_file_with_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "a", "file", folder=False)
    put(tmp_path / "b", "folder", folder=True)
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system cannot exchange names")
    assert seen(tmp_path / "a") == "folder" and seen(tmp_path / "b") == "file"
    with pytest.raises(OSError):
        exchange(tmp_path / "a", tmp_path / "nothing")


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    room = StagingRoom(tmp_path / "kb")
    put(room.begin("a"), "a", folder=False)
    room.publish("a")
    (room.folder / "room.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"room\.json is damaged"):
        room.versions()


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((FatalStoreError, NotFoundError), match="file"):
        StagingRoom(tmp_path / "file" / "kb").publish("a")


@pytest.mark.parametrize("scheme", ["faiss", "jsonl", "parquet"])
@pytest.mark.parametrize("there", [True, False])
def test_the_working_folder_is_not_taken_from_under_the_process(
    scheme: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "kb"
    target.mkdir()
    if there:
        vecferry.connect(f"{scheme}:{target}").write([{"id": 1, "vector": [1.0]}])
    monkeypatch.chdir(target)
    before = sorted(target.iterdir())
    with pytest.raises(ConfigurationError, match=r"working folder.*name a folder in it"):
        vecferry.connect(f"{scheme}:.").write([{"id": 2, "vector": [2.0]}])
    assert sorted(target.iterdir()) == before
    if there:
        assert vecferry.connect(f"{scheme}:.").count() == 1


@pytest.mark.parametrize("scheme", ["faiss", "jsonl", "parquet", "memory"])
def test_a_query_names_a_field_that_exists(scheme: str, tmp_path: Path) -> None:
    with vecferry.connect(f"{scheme}:{tmp_path / 'kb'}") as kb:
        kb.write([{"id": 1, "vector": [1.0]}])
        with pytest.raises(SchemaMismatchError, match=r"no vector field 'title'.*one of these"):
            kb.search([1.0], field="title")
