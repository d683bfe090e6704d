"""A repair that dies right before or right after any change it makes, and is run again."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from chaos.conftest import Zygote
from chaos.harbour import TARGETS, Harbour
from vecferry.testing import sample_records

ALL = int(os.environ.get("VECFERRY_CHAOS_KILLS", "5")) >= 100
SOME = 3
HELD = 60

pytestmark = pytest.mark.chaos


@pytest.fixture
def whole(harbour: Harbour, sources: dict[str, str], tmp_path: Path) -> str:
    """The collection that the others should equal."""
    url = harbour.url("jsonl")
    vf.migrate(sources["jsonl"], url, where={"n": {"$lt": HELD}}, state_dir=tmp_path / "whole").check()
    return url


@pytest.mark.parametrize("target", TARGETS)
def test_a_killed_repair_is_run_again_and_ends_with_equal_collections(
    target: str, zygote: Zygote, harbour: Harbour, whole: str, dice: random.Random, tmp_path: Path
) -> None:
    def damaged(name: str) -> str:
        url = harbour.url(target)
        vf.migrate(whole, url, state_dir=tmp_path / name).check()
        damage(url)
        return url

    counted = zygote.do("repair", damaged("quiet"), source=whole, die=0)
    assert counted and counted["outcome"] == "ok", counted
    total = counted["steps"]
    assert total >= 8, "prepare, write, finish and delete, before and after each"
    points = range(1, total + 1) if ALL else sorted(dice.sample(range(1, total + 1), SOME))
    for point in points:
        url = damaged(f"at-{point}")
        assert zygote.do("repair", url, source=whole, die=point) is None, "it was to die"
        died = zygote.events[-1].get("died")
        with vf.connect(url) as left:
            assert left.count() >= 1, (died, "whatever it was doing, the collection is readable")
        last = zygote.do("repair", url, source=whole)
        assert last and last["outcome"] == "ok", (died, last)
        assert len(harbour.peek(url)), died
        assert vf.verify(whole, url).ok, died
        with vf.connect(url) as mended:
            assert mended.count() == HELD, died


def damage(url: str) -> None:
    """Records that are gone, others, and too many."""
    records: list[Any] = sample_records(HELD + 10, unit=True)
    changed = [record.replace(text="not this") for record in records[20:30]]
    with vf.connect(url) as collection:
        collection.delete([record.id for record in records[:10]])
        collection.write([*changed, *(record for record in records[HELD:])])
        assert collection.count() == HELD
