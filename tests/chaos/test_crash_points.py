"""A job that dies right before or right after each single change it makes, one after the other.

Random kills rarely hit the instants between two changes; these do, all of them with VECFERRY_CHAOS_KILLS
of 100 or more, and a choice of them otherwise.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from chaos.conftest import Zygote
from chaos.harbour import TARGETS, Harbour
from vecferry.pipeline.job import peek_job

KILLS = int(os.environ.get("VECFERRY_CHAOS_KILLS", "5"))
MANY = 100
WHERE = {"n": {"$lt": 40}}
OLD = {"n": {"$gte": 30, "$lt": 60}}

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mode", ["create", "replace", "upsert"])
def test_a_death_around_any_change_is_survived(
    mode: str,
    target: str,
    zygote: Zygote,
    harbour: Harbour,
    sources: dict[str, str],
    dice: random.Random,
    tmp_path: Path,
) -> None:
    def begin(name: str) -> tuple[str, dict[str, Any]]:
        url = harbour.url(target)
        if mode != "create":
            vf.migrate(sources["jsonl"], url, where=OLD, state_dir=tmp_path / f"old-{name}").check()
        job = {"mode": mode, "where": WHERE, "batch_size": 15, "state_dir": str(tmp_path / name)}
        return url, job

    quiet, job = begin("quiet")
    counted = zygote.migrate(sources["jsonl"], quiet, die=0, **job)
    assert counted and counted["outcome"] == "ok", counted
    wanted, total = harbour.peek(quiet), counted["steps"]
    points = range(1, total + 1) if KILLS >= MANY else sorted(dice.sample(range(1, total + 1), KILLS))
    for point in points:
        url, job = begin(f"at-{point}")
        alive = zygote.migrate(sources["jsonl"], url, die=point, **job)
        if alive is not None:  # a slow count may have had a few more steps, since some commits go by time
            assert alive["steps"] < point and point > total - 8, alive
            continue
        died = zygote.events[-1].get("died")
        last = zygote.migrate(sources["jsonl"], url, **job)
        assert last, died
        if _was_done(last, tmp_path / f"at-{point}"):
            last = {"outcome": "ok"}
        assert last["outcome"] == "ok", (died, last)
        assert harbour.peek(url) == wanted, died


def _was_done(last: dict[str, Any], job: Path) -> bool:
    """Whether the death left nothing to do: then the same call means a second, new job."""
    return last.get("type") == "TargetExistsError" and peek_job(job).get("stage") == "done"
