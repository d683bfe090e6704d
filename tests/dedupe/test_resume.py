"""One run = stopped and resumed = other batches = the verification's second reading."""

import json
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dedupe.runs import begin, in_one_run, parcels, record, run, stopped_and_resumed
from vecferry.connecting import Collection
from vecferry.dedupe import Dedupe
from vecferry.stores.memory import MemoryStore

AT = "metadata:at"
EXACT = [
    Dedupe(by="id"),
    Dedupe(by="text"),
    Dedupe(by="text", normalize=True),
    Dedupe(by="metadata:source,page"),
    Dedupe(by="vector"),
]
RULES = [
    *EXACT,
    Dedupe(by="similar", threshold=0.95),
    Dedupe(by="similar", threshold=0.95, within="metadata:source"),
    Dedupe(by="minhash", threshold=0.8),
    Dedupe(by="id", keep="last"),
    Dedupe(by="text", keep="newest", timestamp=AT),
    Dedupe(by="text", keep="oldest", timestamp=AT),
    Dedupe(by="metadata:source", keep=lambda records: max(records, key=lambda r: str(r.text))),
    Dedupe(by="text", keep="newest", timestamp=AT, merge="union"),
    Dedupe(by="similar", threshold=0.95, keep="newest", timestamp=AT),
    Dedupe(by="minhash", keep="last"),
    Dedupe(by="text", against_target=True),
]

texts = st.sampled_from(["a", "A", "a ", "the cat sat on the mat", "The cat sat on the mat!", "", "b"])
records_of = st.lists(
    st.builds(
        lambda id_, text, angle, source, page, at: record(
            id_, text, [np.cos(angle / 8), np.sin(angle / 8)], source=source, page=page, at=at
        ),
        st.integers(0, 12) | st.sampled_from(["1", "2"]),
        texts,
        st.integers(0, 12),
        st.sampled_from(["x", "y"]),
        st.integers(0, 1),
        st.integers(0, 3) | st.none(),
    ),
    max_size=30,
)
chosen = st.lists(st.sampled_from(RULES), min_size=1, max_size=3)


def seen(outcome):
    kept, stage, connection = outcome
    pairs = sorted((r.rule, r.removed, r.kept) for r in stage._removals(connection))
    connection.close()
    return [(r.id, r.text, json.dumps(r.metadata, sort_keys=True)) for r in kept], pairs


def target_of(records):
    store = MemoryStore()
    if records:
        Collection(store).write(records)
    return store


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records_of, chosen, st.integers(0, 8), st.integers(1, 5), st.integers(1, 4))
def test_one_run_is_stopped_and_resumed_is_partitioned(records, rules, stop, size, partitions):
    target = target_of([record("t", "b", [0.0, 1.0], source="z", page=1)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = seen(in_one_run(rules, records, folder / "whole", size=64, target=target))
        cut = seen(stopped_and_resumed(rules, records, folder / "cut", stop, size, target=target))
        parted = seen(in_one_run(rules, records, folder / "parted", size, partitions, target=target))
    assert cut == whole
    assert parted == whole


@settings(max_examples=30, deadline=None)
@given(records_of, chosen, st.integers(1, 5))
def test_the_twin_decides_the_same(records, rules, size):
    with tempfile.TemporaryDirectory() as name:
        kept, stage, connection = in_one_run(rules, records, Path(name), size)
        other = sqlite3.connect(":memory:")
        twin = stage.replay_copy()
        begun = [
            done for parcel in parcels(records, size + 1) for done in twin.apply(parcel).batch.records()
        ]
        other.close()
        connection.close()
    assert begun == kept


@settings(max_examples=50, deadline=None)
@given(
    records_of,
    st.sampled_from(["id", "text", "metadata:source,page"]),
    st.sampled_from(["newest", "oldest"]),
)
def test_newest_and_oldest_against_a_plain_count(records, by, keep):
    clusters: dict[Any, list[tuple[int, Any]]] = {}
    for place, item in enumerate(records):
        key = {"id": (type(item.id), item.id), "text": item.text or place}.get(
            by, (item.metadata["source"], item.metadata["page"])
        )
        clusters.setdefault(key, []).append((place, item.metadata["at"]))
    sign = -1 if keep == "newest" else 1
    best = [
        min(members, key=lambda m: (m[1] is None, sign * (m[1] or 0), m[0]))[0]
        for members in clusters.values()
    ]
    with tempfile.TemporaryDirectory() as name:
        rule = Dedupe(by=by, keep=keep, timestamp=AT)
        kept, _, connection = in_one_run(rule, records, Path(name))
        connection.close()
    assert kept == [records[place] for place in sorted(best)]


def test_a_job_begun_anew_forgets_the_decisions_of_the_last(tmp_path):
    rule = Dedupe(by="text", keep="last")
    _, _, connection = in_one_run(rule, [record(1, "a"), record(2, "a")], tmp_path)
    for table in ("dedupe_kept", "dedupe_removed", "dedupe_parcel", "dedupe_token"):
        connection.execute(f"DELETE FROM {table}")
    connection.commit()
    again = [record(2, "a"), record(1, "a")]
    stage = begin(rule, tmp_path, connection, parcels(again))
    assert [r.id for r in run(stage, parcels(again), connection)] == [1]
    assert len(list(tmp_path.glob("*.decisions.sqlite"))) == 1


def test_a_record_that_appears_after_the_first_pass_is_kept(tmp_path):
    rule = Dedupe(by="text", keep="last")
    connection = sqlite3.connect(tmp_path / "job.sqlite")
    early = [record(1, "a"), record(2, "a")]
    stage = begin(rule, tmp_path, connection, parcels(early))
    kept = run(stage, parcels([*early, record(3, "a"), record(4, "new")]), connection)
    assert [r.id for r in kept] == [2, 3, 4]
