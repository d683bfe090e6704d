"""The embedded server: killed while it is made, shared, taken over, stopped by the last."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

import vecferry as vf
from vecferry.errors import ConfigurationError, CorruptDataError, FatalStoreError
from vecferry.ports import WriteMode
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


def test_a_folder_of_a_stranger_runs_nothing(shared_folder: Path) -> None:
    """Its settings, what is noted with a role or a database, and its event triggers name programs."""
    folder, canaries = shared_folder / "kb", shared_folder / "canaries"
    canaries.mkdir(mode=0o777)
    canaries.chmod(0o777)
    with vf.connect(f"pgvector:{folder}#items") as collection:
        collection.write([{"id": 1, "vector": [1.0, 2.0]}])
    with psycopg.connect(embedded.server_uri(folder), autocommit=True) as stranger:
        stranger.execute(
            "create function bite() returns event_trigger language plpgsql as $$ begin"
            f" copy (select 1) to program 'touch {canaries}/trigger'; end $$"
        )
        stranger.execute("create event trigger at_login on login execute function bite()")
        stranger.execute("create event trigger at_ddl on ddl_command_end execute function bite()")
        stranger.execute("alter database postgres set event_triggers = on")
        stranger.execute("alter role postgres set session_preload_libraries = 'nowhere_to_be_found'")
    with psycopg.connect(
        embedded.server_uri(folder), autocommit=True, options="-c session_preload_libraries="
    ) as bitten:
        bitten.execute("select 1")
    assert [path.name for path in canaries.iterdir()] == ["trigger"], "the trap is one"
    (canaries / "trigger").unlink()
    embedded.stop(folder)
    assert ended(folder)
    data = folder / "postgres"
    with (data / "postgresql.auto.conf").open("a") as settings:
        settings.write(
            f"archive_mode = on\narchive_command = 'touch {canaries}/archive'\narchive_timeout = 1\n"
            "shared_preload_libraries = 'nowhere_to_be_found'\nevent_triggers = on\n"
            f"restore_command = 'touch {canaries}/restore'\n"
        )
    with vf.connect(f"pgvector:{folder}#items") as collection:
        assert [r.id for r in collection.records()] == [1]
        collection.write([{"id": 2, "vector": [1.0, 2.0]}])
        collection.store.shadow("next").prepare(collection.describe(), WriteMode.REPLACE)
    embedded.stop(folder)
    assert list(canaries.iterdir()) == []
