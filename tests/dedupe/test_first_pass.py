"""The first pass decides the same whatever fits into memory, and leaves no file before it has decided."""

from pathlib import Path

import numpy as np
import pytest

from dedupe.runs import in_one_run, parcels, record
from vecferry.connecting import Collection
from vecferry.dedupe import Dedupe, DedupeStage
from vecferry.stores.memory import MemoryStore

N = 700
AT = "metadata:at"
RULES = [
    [Dedupe(by="id", keep="last"), Dedupe(by="text", keep="newest", timestamp=AT)],
    [Dedupe(by="text", keep="oldest", timestamp=AT, merge="union"), Dedupe(by="metadata:source")],
    [Dedupe(by="text", keep=lambda found: found[len(found) // 2])],
    [Dedupe(by="vector", keep="last", merge="union"), Dedupe(by="similar", threshold=0.999)],
]


def records():
    random = np.random.default_rng(3)
    ids, texts, times, angles = random.integers(0, [[400], [500], [9], [300]], (4, N)).tolist()
    return [
        # Every seventh has no vector, from the beginning on.
        record(id_, f"text {text}", None if n < 100 or n % 7 == 0 else [np.cos(angle), np.sin(angle)],
               at=None if n % 5 == 0 else at, source=f"s{n % 333}", seen=[n])
        for n, (id_, text, at, angle) in enumerate(zip(ids, texts, times, angles, strict=True))
    ]  # fmt: skip


def outcome(rules, folder: Path):
    kept, stage, connection = in_one_run(rules, records(), folder, size=90)
    removals = sorted(
        (r.rule, r.removed, r.kept, r.removed_text, r.kept_text) for r in stage._removals(connection)
    )
    connection.close()
    return [(r.id, r.text, r.metadata) for r in kept], removals


@pytest.mark.parametrize("rules", RULES, ids=repr)
def test_shares_blocks_and_pages_change_nothing(rules, tmp_path, monkeypatch):
    whole = outcome(rules, tmp_path / "whole")
    assert len(whole[1]) > 0 and len(whole[0]) + len(whole[1]) == N
    for name, value in {"_SHARE": 100, "_BLOCK": 16, "_PAGE": 3, "_BATCH": 50}.items():
        monkeypatch.setattr(f"vecferry.dedupe.first_pass.{name}", value)
    assert outcome(rules, tmp_path / "shared") == whole


def test_of_equal_ids_and_texts_the_last_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("vecferry.dedupe.first_pass._SHARE", 100)
    rule = Dedupe(by="text", keep="last")
    kept, *_ = in_one_run(rule, records(), tmp_path, size=90)
    last = {r.text: n for n, r in enumerate(records())}
    assert kept == [records()[n] for n in sorted(last.values())]


def test_a_first_pass_that_is_killed_is_made_anew(tmp_path):
    """What it had written by then is no decision."""
    rule = Dedupe(by="text", keep="last")
    stage = DedupeStage(rule)
    stage.bind_job(tmp_path)

    def dies():
        yield from list(parcels(records(), 90))[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.prepass(dies())
    assert not list(tmp_path.glob("*.sqlite")) and stage.prepass_fields is not None
    stage.prepass(parcels(records(), 90))
    kept = [r for parcel in parcels(records(), 90) for r in stage.apply(parcel).batch.records()]
    last = {r.text: n for n, r in enumerate(records())}
    assert kept == [records()[n] for n in sorted(last.values())]


def test_the_target_stays_even_against_the_largest_time(tmp_path):
    rule = Dedupe(by="text", keep="newest", timestamp=AT, against_target=True)
    target = MemoryStore()
    Collection(target).write([record(f"t{n}", f"text {n}", [1.0, 0.0]) for n in range(6)])
    newer = [record(n, f"text {n}", at=9.2e18) for n in range(7)]
    kept, *_ = in_one_run(rule, newer, tmp_path, target=target)
    assert [r.id for r in kept] == [6]
