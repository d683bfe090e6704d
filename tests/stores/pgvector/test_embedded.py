"""The embedded server: killed while it is made, shared, taken over, stopped by the last."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import vecferry as vf
from vecferry.errors import ConfigurationError, CorruptDataError, FatalStoreError
from vecferry.stores.pgvector import embedded

CHILD = """
import sys, time, vecferry as vf
with vf.connect(f"pgvector:{sys.argv[1]}#items") as collection:
    collection.write([{"id": int(sys.argv[2]), "vector": [1.0, 2.0]}])
    print(collection.count(), flush=True)
if len(sys.argv) > 3:
    time.sleep(60)
"""


def child(folder: Path, number: int, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(folder), str(number), *more],
        stdout=subprocess.PIPE,
        text=True,
    )


def servers_of(folder: Path) -> list[Any]:
    where = str(folder.resolve() / "postgres")
    return [
        p
        for p in psutil.process_iter(["name", "cmdline"])
        if p.info["name"] == "postgres" and where in (p.info["cmdline"] or [])
    ]


def ended(folder: Path) -> bool:
    for _ in range(100):
        if not servers_of(folder):
            return True
        time.sleep(0.1)
    return False


def test_killed_at_any_instant_of_its_making_the_folder_can_be_opened(shared_folder: Path) -> None:
    folder = shared_folder / "kb"
    for wait in (0.45, 0.6, 0.8):
        process = child(folder, 1)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    (folder / ".setup-1-left").mkdir(parents=True, exist_ok=True)
    process = child(folder, 2)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and int(out) >= 1
    assert sorted(p.name for p in folder.iterdir()) == [".vecferry.lock", "postgres"]
    with vf.connect(f"pgvector:{folder}#items") as collection:
        assert {record.id for record in collection.records()} >= {2}
    embedded.stop(folder)
    assert ended(folder)


def test_processes_share_a_server_and_the_last_stops_it(shared_folder: Path) -> None:
    folder = shared_folder / "kb"
    first = child(folder, 1, "stay")
    assert first.stdout and first.stdout.readline() == "1\n"
    second = child(folder, 2)
    assert second.communicate(timeout=60)[0] == "2\n"
    assert servers_of(folder), "the first still uses it"
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert servers_of(folder), "a killed owner leaves it running"
    third = child(folder, 3)
    assert third.communicate(timeout=60)[0] == "3\n"
    assert ended(folder), "the last one stops it"


def test_places_that_cannot_be_opened_are_named(shared_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="folder"):
        vf.connect("pgvector:#items")
    file = shared_folder / "file"
    file.write_text("x")
    with pytest.raises(FatalStoreError, match="another folder"):
        vf.connect(f"pgvector:{file}#items").describe()
    broken = shared_folder / "broken"
    (broken / "postgres").mkdir(parents=True)
    (broken / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(CorruptDataError, match="cannot be opened"):
        vf.connect(f"pgvector:{broken}#items").describe()
    assert [p.name for p in (broken / "postgres").iterdir()] == ["PG_VERSION"]
