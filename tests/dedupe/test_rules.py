import math
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest

import vecferry as vf
from dedupe.runs import in_one_run, record
from known import some
from vecferry.dedupe import Dedupe, DedupeStage, dedupe_stages
from vecferry.dedupe.features import normal_form
from vecferry.errors import ConfigurationError, SchemaMismatchError
from vecferry.stores.memory import MemoryStore


def kept_ids(rules, records, tmp_path, **options):
    return [r.id for r in in_one_run(rules, records, tmp_path, **options)[0]]


def test_ids_of_different_types_are_different(tmp_path):
    records = [record(7), record("7"), record("007"), record(7)]
    assert kept_ids("id", records, tmp_path) == [7, "7", "007"]


def test_text_is_compared_exactly_or_in_normal_form(tmp_path):
    records = [
        record(i, text) for i, text in enumerate(["Straße  eins", "STRASSE eins", "ﬁne", "fine ", "fine"])
    ]
    assert kept_ids(Dedupe(by="text"), records, tmp_path / "a") == [0, 1, 2, 3, 4]
    assert kept_ids(Dedupe(by="text", normalize=True), records, tmp_path / "b") == [0, 2]


def test_normal_form_is_a_fixed_point():
    for text in ("İstanbul", "ﬁ ﬀ", "Å\u030a", "ΐ", "a\u2003b\n c", "①②"):
        assert normal_form(normal_form(text)) == normal_form(text)


def test_empty_and_missing_texts_are_never_duplicates(tmp_path):
    records = [record(1, ""), record(2, ""), record(3), record(4)]
    assert kept_ids(Dedupe(by="text"), records, tmp_path) == [1, 2, 3, 4]


def test_metadata_fields_are_compared_with_their_types_and_a_missing_one_is_apart(tmp_path):
    records = [
        record(1, source="a", page=1),
        record(2, source="a", page="1"),
        record(3, source="a", page=1),
        record(4, source="a"),
        record(5, source="a"),
        record(6, source="a", page=True),
    ]
    assert kept_ids(Dedupe(by="metadata:source,page"), records, tmp_path) == [1, 2, 4, 5, 6]


def test_huge_integers_and_nested_values_are_keys_too(tmp_path):
    records = [
        record(i, key=value) for i, value in enumerate([2**80, 2**80, {"b": 1, "a": 2}, {"a": 2, "b": 1}])
    ]
    assert kept_ids(Dedupe(by="metadata:key"), records, tmp_path) == [0, 2]


def test_vectors_are_compared_bit_by_bit(tmp_path):
    records = [record(1, vector=[0.0, 1.0]), record(2, vector=[-0.0, 1.0]), record(3, vector=[0.0, 1.0])]
    assert kept_ids(Dedupe(by="vector"), records, tmp_path) == [1, 2]


@pytest.mark.parametrize("vectors", [[[1, 0], [2, 0], [0, 1]], [[1, 0], [0.999, 0.01], [0, 1]]])
def test_similar_compares_directions(tmp_path, vectors):
    records = [record(i, vector=v) for i, v in enumerate(vectors)]
    assert kept_ids(Dedupe(by="similar", threshold=0.99), records, tmp_path, size=2) == [0, 2]


def test_similar_within_a_group(tmp_path):
    records = [record(i, vector=[1.0, 0.0], lang=lang) for i, lang in enumerate(["en", "de", "en", "de"])]
    rule = Dedupe(by="similar", within="metadata:lang")
    assert kept_ids(rule, records, tmp_path, size=3) == [0, 1]


def test_a_similar_copy_is_no_chain(tmp_path):
    """B is near A and goes; C is near B only, and B was not kept, so C stays."""
    angles = [0.0, 0.15, 0.30]
    records = [record(i, vector=[np.cos(a), np.sin(a)]) for i, a in enumerate(angles)]
    assert kept_ids(Dedupe(by="similar", threshold=0.98), records, tmp_path) == [0, 2]


def test_a_batch_in_which_nothing_can_be_compared(tmp_path):
    rule = Dedupe(by="similar", within="metadata:lang")
    assert kept_ids(rule, [record(1, vector=[1.0]), record(2, vector=[1.0])], tmp_path) == [1, 2]


def test_zero_and_missing_vectors_are_apart(tmp_path):
    records = [
        record(1, vector=[0.0, 0.0]),
        record(2, vector=[0.0, 0.0]),
        record(3, vector=[1.0, 0.0]),
        record(4),
    ]
    assert kept_ids(Dedupe(by="similar"), records, tmp_path) == [1, 2, 3, 4]
    assert kept_ids(Dedupe(by="vector"), records, tmp_path / "bits") == [1, 2, 3, 4]


def test_infinities_differ_and_nan_is_nothing(tmp_path):
    values = [math.inf, -math.inf, math.nan, math.nan, [math.inf], [None], [math.inf]]
    records = [record(n, score=value) for n, value in enumerate(values)]
    assert kept_ids("metadata:score", records, tmp_path) == [0, 1, 2, 3, 4, 5]


TIMES = [
    ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00+02:00"),  # the second is earlier
    (1_700_000_000, 1_600_000_000_000),  # seconds, milliseconds
    (datetime(2024, 1, 2, tzinfo=UTC), "2024-01-01"),
    (date(2024, 1, 2), 1_600_000_000.5),
    ("1700000000", "not a time"),
    ("2024-01-01 00:00:00.000002", "2024-01-01 00:00:00.000001"),
    ("20240102", "2024-01-01"),
]


@pytest.mark.parametrize(("later", "earlier"), TIMES)
def test_newest_and_oldest(tmp_path, later, earlier):
    records = [record(1, "same", at=earlier), record(2, "same", at=later), record(3, "same")]
    newest = Dedupe(by="text", keep="newest", timestamp="metadata:at")
    assert kept_ids(newest, records, tmp_path / "a") == [2]
    oldest = Dedupe(by="text", keep="oldest", timestamp="metadata:at")
    assert kept_ids(oldest, records, tmp_path / "b") == ([1] if earlier != "not a time" else [2])


@pytest.mark.parametrize("at", [["2024-01-02"], {"day": 2}, 10**19, 1e300, 10**400, math.nan])
@pytest.mark.parametrize("keep", ["newest", "oldest"])
def test_what_is_no_time_loses(tmp_path, at, keep):
    records = [record(1, "same", at=at), record(2, "same", at="2024-01-01")]
    assert kept_ids(Dedupe(by="text", keep=keep, timestamp="metadata:at"), records, tmp_path) == [2]


def test_unreadable_times_are_reported(tmp_path):
    rule = Dedupe(by="text", keep="newest", timestamp="metadata:at")
    _, stage, connection = in_one_run(rule, [record(1, "a", at="soon"), record(2, "a")], tmp_path)
    assert stage.report(connection).unreadable_times == 2


def test_keep_last_among_equal_ids(tmp_path):
    records = [record("a", "one"), record("b", "two"), record("a", "three"), record("a", "four")]
    kept, *_ = in_one_run(Dedupe(by="id", keep="last"), records, tmp_path, size=2)
    assert [(r.id, r.text) for r in kept] == [("b", "two"), ("a", "four")]


def test_a_callable_chooses_among_records_without_vectors(tmp_path):
    def longest(records):
        return max(records, key=lambda r: len(r.metadata["note"]))

    records = [record(i, "same", [1.0], note="x" * n) for i, n in enumerate([2, 5, 3])] + [
        record(9, "other", note="")
    ]
    assert kept_ids(Dedupe(by="text", keep=longest), records, tmp_path) == [1, 9]


def test_a_callable_that_returns_something_else_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="must return one of the records"):
        wrong: Any = lambda records: "first"  # noqa: E731
        in_one_run(Dedupe(by="text", keep=wrong), [record(1, "a"), record(2, "a")], tmp_path)


def test_union_of_metadata(tmp_path):
    records = [
        record(1, "same", lang="en", tags=["a"]),
        record(2, "same", lang="de", tags=["b"], page=3),
        record(3, "other", page=9),
        record(4, "same", when=datetime(2024, 1, 1, tzinfo=UTC)),
    ]
    kept, *_ = in_one_run(Dedupe(by="text", merge="union"), records, tmp_path, size=2)
    assert [r.metadata for r in kept] == [
        {"lang": "en", "tags": ["a", "b"], "page": 3, "when": datetime(2024, 1, 1, tzinfo=UTC)},
        {"page": 9},
    ]


def test_union_reaches_a_batch_without_metadata_and_repeats_nothing(tmp_path):
    rule = Dedupe(by="text", merge="union")
    records = [record(1, "a"), record(2, "b"), record(3, "a", tags=["x"]), record(4, "a", tags=["y", "y"])]
    kept, _, _ = in_one_run(rule, records, tmp_path, size=2)
    assert [r.metadata for r in kept] == [{"tags": ["x", "y"]}, {}]


def test_several_rules_each_see_what_the_one_before_kept(tmp_path):
    records = [record("a", "x"), record("a", "y"), record("b", "y"), record("c", "x")]
    # "y" of the second "a" is gone before texts are compared, so the "y" of b stays.
    assert kept_ids(["id", "text"], records, tmp_path) == ["a", "b"]


def test_a_target_that_goes_is_nothing_to_compare_with(tmp_path):
    url = f"parquet:{tmp_path / 'kb.parquet'}"
    rows = [{"id": 1, "text": "a", "vector": [1.0]}]
    vf.connect(url).write(rows)
    source = vf.connect("memory:")
    source.write(rows)
    with pytest.raises(ConfigurationError, match="against_target"):
        vf.migrate(source, url, mode="replace", dedupe=Dedupe(by="text", against_target=True))
    assert vf.connect(url).count() == 1


def test_the_target_wins(tmp_path):
    target = MemoryStore()
    from vecferry.connecting import Collection

    Collection(target).write([record("t", "known", [1.0, 0.0], at=1)])
    records = [
        record(1, "known", [0.0, 1.0], at=5),
        record(2, "new", [0.0, 1.0], at=5),
        record(3, "new", at=9),
    ]
    first = Dedupe(by="text", against_target=True)
    kept, stage, connection = in_one_run(first, records, tmp_path / "a", target=target)
    assert [r.id for r in kept] == [2]
    pairs = [(r.removed, r.kept) for r in stage._removals(connection)]
    assert pairs == [("i:1", "s:t"), ("i:3", "i:2")]
    newest = Dedupe(by="text", keep="newest", timestamp="metadata:at", against_target=True)
    kept, stage, connection = in_one_run(newest, records, tmp_path / "b", target=target)
    assert [r.id for r in kept] == [3]
    near = Dedupe(by="similar", against_target=True)
    vectors = [record(1, vector=[1.0, 0.001]), record(2, vector=[0.0, 1.0])]
    assert [r.id for r in in_one_run(near, vectors, tmp_path / "c", target=target)[0]] == [2]


@pytest.mark.parametrize(
    "settings",
    [
        {"by": "colour"},
        {"by": "metadata:"},
        {"keep": "best"},
        {"keep": "newest"},
        {"by": "similar", "keep": max},
        {"by": "text", "threshold": 0.9},
        {"by": "similar", "threshold": 1.5},
        {"by": "id", "normalize": True},
        {"merge": "all"},
        {"keep": "newest", "timestamp": "created_at"},
        {"by": "similar", "within": "lang"},
    ],
)
def test_a_rule_that_does_not_fit_is_refused_at_once(settings):
    with pytest.raises(ConfigurationError):
        Dedupe(**settings)


def test_no_rule_is_refused():
    with pytest.raises(ConfigurationError, match="at least one rule"):
        DedupeStage([])


@pytest.mark.parametrize("by", ["vector", "similar"])
@pytest.mark.parametrize("keep", ["first", "last"])
def test_whole_batches_without_vectors_are_apart(tmp_path, by, keep):
    vectors = [None, None, [1.0, 0.0], None, None, None, [1.0, 0.0]]
    records = [record(n, "text", vector=vector) for n, vector in enumerate(vectors)]
    left = [0, 1, 2, 3, 4, 5] if keep == "first" else [0, 1, 3, 4, 5, 6]
    assert kept_ids(Dedupe(by=by, keep=keep), records, tmp_path, size=2) == left


def test_an_unknown_vector_field_is_named(tmp_path):
    with pytest.raises(SchemaMismatchError, match="title"):
        in_one_run(Dedupe(by="similar", field="title"), [record(1, vector=[1.0])], tmp_path)


def test_rules_without_vectors_come_before_the_embedding():
    before, behind = dedupe_stages([Dedupe(by="similar"), Dedupe(by="text")], embeds=True)
    assert (before.needs_vectors, behind.needs_vectors) == (False, True)
    assert before.prepass_fields is None
    with pytest.raises(ConfigurationError, match="only being made"):
        dedupe_stages(Dedupe(by="similar", keep="last"), embeds=True)


def test_newest_by_text_reads_no_vectors():
    stage = DedupeStage(Dedupe(by="text", keep="newest", timestamp="metadata:at"))
    assert some(stage.prepass_fields).vectors is False


def test_the_rule_is_written_the_same_in_every_process():
    rule: Any = max
    assert repr(Dedupe(keep=rule)) == "Dedupe(by='id', keep='builtins.max')"
