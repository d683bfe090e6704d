"""Nothing lost, nothing doubled: kill -9 at random instants on every pair of stores, then go on.

The target must equal that of an uninterrupted run: byte for byte where the store is a file, record for
record as the vendor's own client sees it elsewhere.
"""

from __future__ import annotations

import os
import random
import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest

import vecferry as vf
from chaos.conftest import Zygote
from chaos.harbour import BATCH, ROWS, SOURCES, TARGETS, Harbour
from servers.postgres import running
from vecferry.api import jobs
from vecferry.errors import JobLockedError, VecferryError
from vecferry.pipeline.job import peek_job

KILLS = int(os.environ.get("VECFERRY_CHAOS_KILLS", "5"))

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_killed_migration_goes_on_as_if_nothing_happened(
    source: str,
    target: str,
    zygote: Zygote,
    harbour: Harbour,
    sources: dict[str, str],
    dice: random.Random,
    tmp_path: Path,
) -> None:
    quiet = harbour.url(target)
    first = zygote.migrate(sources[source], quiet, batch_size=BATCH, state_dir=str(tmp_path / "quiet"))
    assert first and first["outcome"] == "ok", first
    wanted = harbour.peek(quiet)
    killed, halfway, round_ = 0, 0, 0
    while killed < KILLS:
        round_ += 1
        job, url = tmp_path / str(round_), harbour.url(target)
        last = None
        while last is None:
            at = (dice.randint(1, 9), dice.random() * 0.01) if killed < KILLS else None
            last = zygote.migrate(
                sources[source], url, kill=at, pause=0.003, batch_size=BATCH, state_dir=str(job)
            )
            killed += last is None
            read = (peek_job(job).get("counters") or {}).get("read", 0)
            halfway += last is None and 0 < read < ROWS
        assert last["outcome"] == "ok", last
        assert harbour.peek(url) == wanted
    assert halfway, "no resume began in the middle: the test proves nothing"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stage", ["finish", "verify", "publish"])
def test_a_kill_at_the_end_loses_nothing(
    stage: str,
    target: str,
    zygote: Zygote,
    harbour: Harbour,
    sources: dict[str, str],
    dice: random.Random,
    tmp_path: Path,
) -> None:
    """Kills inside finish, verify and publish of a replacement; the old version stays until the swap."""
    url = harbour.url(target)
    options: dict[str, Any] = {"batch_size": BATCH, "mode": "replace", "state_dir": str(tmp_path / "job")}
    vf.migrate(sources["jsonl"], url, where={"n": {"$lt": 50}}, state_dir=tmp_path / "first").check()
    count = f"count-{target}"
    if count not in _EVENTS:
        other = harbour.url(target)
        counted = zygote.migrate(
            sources["jsonl"], other, batch_size=BATCH, mode="replace", state_dir=str(tmp_path / "count")
        )
        assert counted and counted["outcome"] == "ok", counted
        _EVENTS[count] = [event["stage"] for event in zygote.events]
    at = _EVENTS[count].index(stage) + 1
    last = zygote.migrate(sources["jsonl"], url, kill=(at, dice.random() * 0.02), pause=0.01, **options)
    if last is None:
        with vf.connect(url) as collection:
            assert collection.count() in (50, ROWS), "neither the old nor the new version is there"
        last = zygote.migrate(sources["jsonl"], url, **options)
    assert last and last["outcome"] == "ok", last
    with vf.connect(url) as collection:
        assert collection.count() == ROWS
    assert vf.verify(sources["jsonl"], url).ok


_EVENTS: dict[str, list[str]] = {}


@pytest.mark.parametrize("target", TARGETS)
def test_a_kill_inside_a_rollback_leaves_one_version_or_the_other(
    target: str,
    zygote: Zygote,
    harbour: Harbour,
    sources: dict[str, str],
    dice: random.Random,
    tmp_path: Path,
) -> None:
    url = harbour.url(target)
    for i, most in enumerate((50, 80)):
        replace = {"where": {"n": {"$lt": most}}, "mode": "replace", "state_dir": tmp_path / str(i)}
        vf.migrate(sources["jsonl"], url, **replace).check()
    for _ in range(max(2, KILLS // 5)):
        zygote.do("rollback", url, kill=(0, dice.random() * 0.03))
        with vf.connect(url) as collection:
            assert collection.count() in (50, 80)
            live = [version for version in jobs.versions(collection) if version.live]
            assert len(live) == 1
    with vf.connect(url) as collection:
        if collection.count() == 80:
            jobs.rollback(collection)
        assert collection.count() == 50


def test_two_runs_of_one_job_cannot_meet(sources: dict[str, str], tmp_path: Path) -> None:
    def again(_: Any) -> None:
        with pytest.raises(JobLockedError):
            vf.migrate(sources["jsonl"], target, state_dir=tmp_path / "job")
        met.append(True)

    met: list[bool] = []
    target = f"jsonl:{tmp_path / 'out.jsonl'}"
    vf.migrate(sources["jsonl"], target, state_dir=tmp_path / "job", on_progress=again).check()
    assert met


def test_the_state_file_survives_a_kill(zygote: Zygote, sources: dict[str, str], tmp_path: Path) -> None:
    job = tmp_path / "job"
    target = f"jsonl:{tmp_path / 'out.jsonl'}"
    zygote.migrate(
        sources["jsonl"], target, kill=(12, 0.0), pause=0.01, batch_size=BATCH, state_dir=str(job)
    )
    with sqlite3.connect(job / "job.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_killed_postgres_is_waited_for_or_resumed(tmp_path: Path, sources: dict[str, str]) -> None:
    """kill -9 of the server itself in the middle of a load; the same call goes on when it is back."""
    struck: list[bool] = []
    with running(18) as server:
        url = server.url("kb")

        def strike(step: Any) -> None:
            if step.stage == "stream" and step.done > 200 and not struck:
                struck.append(True)
                server.crash()
                server.start()

        options: dict[str, Any] = {"batch_size": BATCH, "state_dir": tmp_path / "job"}
        try:
            vf.migrate(sources["jsonl"], url, on_progress=strike, **options).check()
        except VecferryError:
            vf.migrate(sources["jsonl"], url, **options).check()
        assert struck
        with psycopg.connect(server.dsn(url.partition("#")[0].rpartition("/")[2])) as connection:
            found = connection.execute("select count(*), count(distinct id) from kb").fetchone()
        assert found == (ROWS, ROWS)
