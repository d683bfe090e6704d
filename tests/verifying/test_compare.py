"""Whatever differs is found and named; what is equal is not complained about."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from known import some
from vecferry.errors import ConfigurationError
from vecferry.model import (
    CollectionSchema,
    DType,
    Loss,
    Metric,
    RecordBatch,
    RecordId,
    VectorField,
    VectorRecord,
    encode_id,
)
from vecferry.ports import Capabilities, Fields, Kept, WriteMode
from vecferry.stores.memory import MemoryStore
from vecferry.verifying import Verification, compare

DIM = 6
SCHEMA = CollectionSchema(
    fields=(
        VectorField(dim=DIM, metric="l2"),
        VectorField(name="words", kind="sparse", metric="ip"),
        VectorField(name="late", kind="multi", dim=3, metric="ip"),
    )
)


class Bag(MemoryStore):
    """A source that may hold one id twice, in any order."""

    def __init__(self, records: list[VectorRecord], schema: CollectionSchema = SCHEMA) -> None:
        super().__init__()
        self.rows, self.schema = records, schema

    def describe(self) -> CollectionSchema:
        return self.schema

    def count(self) -> int:
        return len(self.rows)

    def scan(
        self, *, after: Any = None, batch_size: int = 1024, fields: Fields = Fields.ALL, **options: Any
    ) -> Any:
        part = options.get("partition")
        low, high = part.bounds if part else (0, len(self.rows))
        for start in range(after or low, high, batch_size):
            piece = self.rows[start : min(start + batch_size, high)]
            batch = RecordBatch.from_records(piece, self.schema)
            yield batch.replace(
                vectors={n: c for n, c in batch.vectors.items() if fields.wants(n)},
                sparse_vectors={n: c for n, c in batch.sparse_vectors.items() if fields.wants(n)},
                cursor=start + len(piece),
            )

    def fetch(self, ids: Any, *, fields: Fields = Fields.ALL) -> RecordBatch:
        wanted = {encode_id(i) for i in ids}
        return RecordBatch.from_records([r for r in self.rows if encode_id(r.id) in wanted], self.schema)

    def search(self, vector: Any, k: int = 10, **options: Any) -> list[VectorRecord]:
        store = MemoryStore()
        store.prepare(self.schema, WriteMode.CREATE)
        store.write(RecordBatch.from_records(self.rows, self.schema))
        return store.search(vector, k, **options)

    def partitions(self, want: int) -> Any:
        return MemoryStore.partitions(self, want)


def metadata(i: int) -> dict[str, Any]:
    return {
        "int": i,
        "float": float(i),
        "bool": i % 2 == 0,
        "none": None,
        "text": f"ü{i}",
        "when": datetime(2020, 1, 1, i % 24, tzinfo=UTC),
        "day": date(2020, 1, 1 + i % 28),
        "price": Decimal(i) / 8,
        "uuid": UUID(int=i),
        "raw": bytes([i % 256]),
        "list": [i, float(i), "x"],
        "tuple": (i, "x"),
        "nested": {"a/b": {"deep": [1, {"x": True}]}},
    }


def records(n: int = 40, seed: int = 0) -> list[VectorRecord]:
    rng = np.random.default_rng(seed)
    ids: list[Any] = [i if i % 3 else f"s{i}" for i in range(n)]
    return [
        VectorRecord(
            id=id_,
            text=f"text {i}" if i % 5 else None,
            vectors={
                **({"": rng.normal(size=DIM).astype(np.float32)} if i % 7 else {}),
                "late": rng.normal(size=(1 + i % 4, 3)).astype(np.float32),
            },
            sparse_vectors={"words": {j * 3 + i: float(rng.normal()) for j in range(i % 4)}},
            metadata=metadata(i),
        )
        for i, id_ in enumerate(ids)
    ]


def check(expected: list[VectorRecord], target: Any, **options: Any) -> Verification:
    options = {"sample_queries": 0, "schema": SCHEMA, **options}
    schema = options.pop("schema")

    def stream() -> Iterator[RecordBatch]:
        return (RecordBatch.from_records(expected[i : i + 7], schema) for i in range(0, len(expected), 7))

    return compare(stream, schema, target, **options)


def named(proof: Verification) -> set[RecordId]:
    return {*proof.missing_ids, *proof.extra_ids, *proof.different_ids}


ORDERS = {"merge": lambda rows: rows, "hash": lambda rows: rows[::-1]}


@pytest.mark.parametrize("order", ORDERS)
def test_equal_is_equal(order: str) -> None:
    rows = records()
    proof = check(rows, Bag(ORDERS[order](rows)), sample_queries=4, k=3)
    assert proof.ok and proof.strategy == order
    assert proof.digest_expected == proof.digest_target and not proof.buckets
    assert proof.expected_count == proof.target_count == 40
    assert proof.vectors[""].compared == 34 and proof.vectors[""].identical == 34
    assert proof.vectors["late"].compared == proof.vectors["words"].compared == 40
    assert [(s.field, s.overlap) for s in proof.search] == [("", 1.0), ("words", 1.0), ("late", 1.0)]
    assert "40 records are equal" in str(proof)
    assert Verification.model_validate_json(proof.model_dump_json()) == proof
    json.dumps(proof.model_dump(mode="json"))


def mutations(row: VectorRecord, data: st.DataObject) -> tuple[VectorRecord, str]:
    """A record that differs in one thing, and the place of the difference."""
    kind = data.draw(
        st.sampled_from(["text", "type", "value", "gone", "new", "bit", "sparse", "late", "drop"])
    )
    if kind == "text":
        return row.replace(text=(row.text or "") + "x" if row.text else ""), "text"
    if kind == "type":
        key, value = data.draw(
            st.sampled_from(
                [
                    ("int", float(row.metadata["int"])),
                    ("float", int(row.metadata["float"])),
                    ("bool", int(row.metadata["bool"])),
                    ("none", "None"),
                    ("when", row.metadata["when"].isoformat()),
                    ("day", row.metadata["day"].isoformat()),
                    ("price", float(row.metadata["price"])),
                    ("uuid", str(row.metadata["uuid"])),
                    ("raw", row.metadata["raw"].decode("latin-1")),
                    ("list", tuple(row.metadata["list"])),
                    ("tuple", list(row.metadata["tuple"])),
                ]
            )
        )
        return row.replace(metadata={**row.metadata, key: value}), f"metadata/{key}"
    if kind == "value":
        nested = {"a/b": {"deep": [1, {"x": 1}]}}
        return row.replace(metadata={**row.metadata, "nested": nested}), "metadata/nested/a~1b/deep/1/x"
    if kind == "gone":
        return row.replace(metadata={k: v for k, v in row.metadata.items() if k != "none"}), "metadata/none"
    if kind == "new":
        return row.replace(metadata={**row.metadata, "new": None}), "metadata/new"
    if kind == "bit" and "" in row.vectors:
        bits = row.vectors[""].view(np.uint32).copy()
        at, bit = data.draw(st.integers(0, DIM - 1)), data.draw(st.integers(0, 31))
        bits[at] ^= np.uint32(1 << bit)
        return row.replace(vectors={**row.vectors, "": bits.view(np.float32)}), "vector"
    if kind == "sparse" and len(row.sparse_vectors["words"]):
        pairs = row.sparse_vectors["words"]
        indices = pairs.indices.copy()
        indices[-1] += 1
        changed = {"indices": indices, "values": pairs.values}
        return row.replace(sparse_vectors={"words": changed}), "vector:words"
    if kind == "late":
        return row.replace(vectors={**row.vectors, "late": row.vectors["late"][:-1].reshape(-1, 3)}), "late"
    return row.replace(vectors={k: v for k, v in row.vectors.items() if k != "late"}), "vector:late"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_one_change_is_found_and_named(data: st.DataObject) -> None:
    rows = records(20)
    at = data.draw(st.integers(0, 19))
    try:
        changed, place = mutations(rows[at], data)
    except ValueError:  # a multi-vector of no rows is no vector
        return
    target = [*rows[:at], changed, *rows[at + 1 :]]
    strategy = data.draw(st.sampled_from(["merge", "hash", "fetch"]))
    target = target[::-1] if strategy == "hash" else target
    proof = check(rows, Bag(target), allow_extra=strategy == "fetch")
    assert proof.strategy == strategy
    assert not proof.ok and proof.different_count == 1 and named(proof) == {rows[at].id}
    assert any(place in difference.place for difference in proof.different), proof.different
    vectors_only = place.startswith(("vector", "late"))
    assert (proof.digest_expected == proof.digest_target) is vectors_only
    assert repr(rows[at].id) in str(proof)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_missing_extra_doubled_and_swapped_are_named(data: st.DataObject) -> None:
    rows = records(30)
    order = data.draw(st.permutations(range(30)))
    gone = set(data.draw(st.lists(st.integers(0, 29), max_size=4)))
    twice = set(data.draw(st.lists(st.integers(0, 29), max_size=3))) - gone
    new = data.draw(st.lists(st.integers(100, 120), max_size=3, unique=True))
    target = [rows[i] for i in order if i not in gone]
    target += [rows[i] for i in twice] + [rows[0].replace(id=i) for i in new]
    proof = check(rows, Bag(target))
    assert proof.ok is not bool(gone or twice or new)
    assert set(proof.missing_ids) == {rows[i].id for i in gone} and proof.missing_count == len(gone)
    assert set(proof.extra_ids) == set(new) and proof.extra_count == len(new)
    assert set(proof.doubled) == {encode_id(rows[i].id) for i in twice}
    assert proof.target_count == len(target) and proof.expected_count == 30
    if not twice:
        assert bool(proof.buckets) is (proof.digest_expected != proof.digest_target)


@pytest.mark.parametrize("order", ORDERS)
def test_two_swapped_vectors_are_named(order: str) -> None:
    rows = records()
    a, b = rows[3], rows[11]
    rows_ = list(rows)
    rows_[3] = a.replace(vectors={**a.vectors, "": b.vectors[""]})
    rows_[11] = b.replace(vectors={**b.vectors, "": a.vectors[""]})
    proof = check(rows, Bag(ORDERS[order](rows_)))
    assert not proof.ok and set(proof.different_ids) == {a.id, b.id}
    assert proof.digest_expected == proof.digest_target, "ids, texts and metadata are the same"
    assert {d.place for d in proof.different} == {"vector"}


def test_an_id_of_another_type_is_another_id() -> None:
    rows = [VectorRecord(id=7, vector=[1] * DIM)]
    proof = check(rows, Bag([VectorRecord(id="7", vector=[1] * DIM)]))
    assert proof.missing_ids == [7] and proof.extra_ids == ["7"] and not proof.ok


def test_of_an_id_expected_twice_the_last_counts() -> None:
    rows = records(10)
    newer = rows[4].replace(text="newer")
    late = check([*rows, newer], Bag([*rows[:4], newer, *rows[5:]]))
    assert not late.ok and not late.different_count, "the last of the two is there"
    stale = check([*rows, newer], Bag(rows))
    assert stale.different_ids == [newer.id]
    asked = check([*rows, newer], Bag([*rows[:4], newer, *rows[5:]]), allow_extra=True)
    for proof in (late, stale, asked):
        assert not proof.ok and proof.collided_ids == [newer.id] and proof.collided_count == 1
        assert (proof.expected_count, proof.expected_ids, proof.target_ids) == (11, 10, 10)
        assert "1 under the id of another" in proof.summary and "10 expected" in str(proof)


@pytest.mark.parametrize("order", ORDERS)
def test_two_records_of_one_id_are_no_success_wherever_they_lie(order: str) -> None:
    """Also when the target holds both: what finds a record by its id finds one of them."""
    rows = records(10)
    rows = [*rows, rows[4]]
    proof = check(rows, Bag(ORDERS[order](rows)))
    assert not proof.ok and proof.collided_ids == [rows[4].id]
    assert (proof.expected_count, proof.expected_ids) == (proof.target_count, proof.target_ids) == (11, 10)


def test_after_an_upsert_others_may_be_there() -> None:
    rows, others = records(10), [r.replace(id=f"o{i}") for i, r in enumerate(records(30))]
    proof = check(rows, Bag(others + rows), allow_extra=True)
    assert proof.ok and proof.strategy == "fetch" and proof.expected_count == 10
    proof = check(rows, Bag(others + rows), allow_extra=True, strategy="hash")
    assert proof.ok and proof.strategy == "hash"
    proof = check(rows, Bag(others + rows[:-1]), allow_extra=True)
    assert proof.missing_ids == [rows[-1].id]
    with pytest.raises(ConfigurationError, match="surplus"):
        check(rows, Bag(rows), strategy="fetch")
    with pytest.raises(ConfigurationError, match="strategy"):
        check(rows, Bag(rows), strategy="guess")


@pytest.mark.parametrize("order", ["merge", "fetch"])
def test_what_an_upsert_leaves_to_the_application_is_no_difference(order: str) -> None:
    rows = [row.replace(text=None) for row in records(10)]
    own = {"clicks": 7, "seen/at": datetime(2020, 1, 1, tzinfo=UTC)}
    target = [row.replace(text="theirs", metadata={**row.metadata, **own}) for row in rows]
    kept = Kept(text=True, metadata=lambda key: key in own)
    options: dict[str, Any] = {"allow_extra": order == "fetch", "strategy": order}
    proof = check(rows, Bag(target), kept=kept, **options)
    assert proof.ok and proof.digest_expected == proof.digest_target
    assert check(rows, Bag(target), **options).different_count == 10
    target[3] = target[3].replace(metadata={**target[3].metadata, "other": 1})
    target[4] = target[4].replace(metadata={k: v for k, v in target[4].metadata.items() if k != "none"})
    proof = check(rows, Bag(target), kept=kept, **options)
    assert [d.place for d in proof.different] == ["metadata/other", "metadata/none"]


def test_the_limit_bounds_the_names_not_the_counts() -> None:
    rows = records(40)
    changed = [row.replace(text="x") for row in rows[:30]]
    proof = check(rows, Bag(changed + rows[30:35]), limit=5)
    assert len(proof.different) == 5 and proof.different_count == 30
    assert len(proof.missing) == 5 == proof.missing_count
    assert "30 different" in proof.summary


def test_what_does_not_count_is_not_compared() -> None:
    rows = records(10)
    changed = [r.replace(text="x", vectors={**r.vectors, "late": [[0, 0, 0]]}) for r in rows]
    only = Fields(vectors=("", "words"), text=False)
    assert check(rows, Bag(changed), fields=only).ok
    assert not check(rows, Bag(changed), fields=Fields(vectors=("", "words"))).ok


def test_a_stopped_comparison_proves_nothing_and_goes_on() -> None:
    rows = records(40)
    rows_ = [*rows[:30], rows[30].replace(text="x"), *rows[31:]]
    states: list[dict[str, Any]] = []
    seen: list[int] = []
    partial = check(
        rows,
        Small(rows_),
        on_state=lambda state: states.append(json.loads(json.dumps(state))),
        on_progress=seen.append,
        should_stop=lambda: len(seen) >= 5,
    )
    assert not partial.ok and partial.expected_count < 40 and "stopped" in str(partial)
    resumed = check(rows, Small(rows_), state=states[-1])
    assert resumed.different_ids == [rows[30].id] and resumed.expected_count == 40
    straight = check(rows, Small(rows_))
    assert resumed.digest_target == straight.digest_target
    assert resumed.model_copy(update={"seconds": 0.0}) == straight.model_copy(update={"seconds": 0.0})


class Small(Bag):
    """Small batches, whatever is asked for."""

    def scan(self, **options: Any) -> Any:
        return super().scan(**{**options, "batch_size": 5})


# -- tolerance --------------------------------------------------------------------------------


class Unit(Bag):
    """Stores unit vectors in float32, as Qdrant does under cosine."""

    keeps_norms = False

    def capabilities(self) -> Capabilities:
        return Capabilities(normalizes=frozenset({Metric.COSINE}), keeps_norms=self.keeps_norms)


def cosine(dtype: DType = DType.FLOAT32, dim: int = 384) -> CollectionSchema:
    return CollectionSchema(fields=(VectorField(dim=dim, dtype=dtype),))


def dense(n: int = 50, dim: int = 384, scale: float = 7.0) -> list[VectorRecord]:
    rng = np.random.default_rng(1)
    vectors = (rng.normal(size=(n, dim)) * scale).astype(np.float32)
    return [VectorRecord(id=i, vector=v) for i, v in enumerate(vectors)]


def unit(row: VectorRecord) -> VectorRecord:
    vector = row.vectors[""]
    return row.replace(vectors={"": (vector / np.sqrt((vector * vector).sum())).astype(vector.dtype)})


@pytest.mark.parametrize("dim", [1, 3, 384, 4096])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_normalised_targets_are_compared_by_direction(dim: int, scale: float) -> None:
    rows = dense(20, dim, scale)
    schema = cosine(dim=dim)
    proof = check(rows, Unit([unit(row) for row in rows], schema), schema=schema)
    assert proof.ok and "directions" in proof.vectors[""].tolerance and "directions" in str(proof)
    turned = rows[4].vectors[""].copy()
    turned[0] *= -1.01
    wrong = [unit(r) for r in [*rows[:4], rows[4].replace(vectors={"": turned}), *rows[5:]]]
    assert check(rows, Unit(wrong, schema), schema=schema).different_ids == [4]


def test_an_expected_side_without_lengths_is_compared_by_direction() -> None:
    rows = dense()
    units = [unit(row) for row in rows]
    assert not check(units, Bag(rows, cosine()), schema=cosine()).ok
    assert check(units, Bag(rows, cosine()), schema=cosine(), directions=[""]).ok


def test_lengths_count_where_the_target_keeps_them() -> None:
    class Keeps(Unit):
        keeps_norms = True

    rows = dense()
    assert check(rows, Keeps(rows, cosine()), schema=cosine()).ok
    assert not check(rows, Keeps([unit(r) for r in rows], cosine()), schema=cosine()).ok


def test_a_zero_vector_has_no_direction() -> None:
    zero = VectorRecord(id=0, vector=np.zeros(4))
    schema = cosine(dim=4)
    assert check([zero], Unit([zero], schema), schema=schema).ok
    other = VectorRecord(id=0, vector=[1, 0, 0, 0])
    assert not check([zero], Unit([other], schema), schema=schema).ok


@settings(max_examples=40, deadline=None)
@given(scale=st.sampled_from([1e-7, 1e-3, 1.0, 1e3]), seed=st.integers(0, 99))
def test_float16_targets_may_round_once(scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(10, 64)) * scale).astype(np.float32)
    rows = [VectorRecord(id=i, vector=v) for i, v in enumerate(values)]
    schema = cosine(DType.FLOAT16, 64)
    stored = [VectorRecord(id=r.id, vector=some(r.vector).astype(np.float16)) for r in rows]
    proof = check(rows, Bag(stored, schema), schema=cosine(dim=64))
    assert proof.ok and proof.vectors[""].max_deviation > 0
    beyond = some(stored[3].vector).copy()
    beyond[5] = np.nextafter(np.nextafter(beyond[5], np.float16(np.inf)), np.float16(np.inf))
    stored[3] = stored[3].replace(vectors={"": beyond})
    assert check(rows, Bag(stored, schema), schema=cosine(dim=64)).different_ids == [3]


def test_nan_is_equal_to_nothing_but_its_own_bits() -> None:
    bad = VectorRecord(id=0, vector=[np.nan, 1, 2, 3])
    schema = cosine(dim=4)
    assert check([bad], Bag([bad], schema), schema=schema).ok
    finite = VectorRecord(id=0, vector=[0, 1, 2, 3])
    for target in (Bag, Unit):
        assert not check([bad], target([finite], schema), schema=schema).ok
        assert not check([finite], target([bad], schema), schema=schema).ok


def test_a_wider_type_keeps_signs_and_nan() -> None:
    narrow = VectorRecord(id=0, vector=np.array([-0.0, np.nan, 2, 3], np.float16))
    wide = narrow.replace(vectors={"": some(narrow.vector).astype(np.float32)})
    source, target = cosine(DType.FLOAT16, 4), cosine(dim=4)
    assert check([narrow], Bag([wide], target), schema=source).ok
    unsigned = wide.replace(vectors={"": np.array([0.0, np.nan, 2, 3], np.float32)})
    assert check([narrow], Bag([unsigned], target), schema=source).different_ids == [0]


def test_a_lossy_index_is_measured_not_judged() -> None:
    rows = dense()
    rough = [r.replace(vectors={"": np.round(some(r.vector))}) for r in rows]
    lossy = cosine().model_copy(update={"losses": (Loss(kind="vector", detail="PQ"),)})
    proof = check(rows, Bag(rough, lossy), schema=cosine())
    assert proof.ok and proof.vectors[""].max_deviation > 0.1 and "lossy" in str(proof)


def test_another_dimension_is_a_difference() -> None:
    rows = dense(3, 4)
    short = [r.replace(vectors={"": some(r.vector)[:3]}) for r in rows]
    proof = check(rows, Bag(short, cosine(dim=3)), schema=cosine(dim=4))
    assert proof.different_count == 3 and "entries" in proof.different[0].reason


# -- searches ---------------------------------------------------------------------------------


class Blind(Bag):
    """Finds whatever comes last, and boasts of it or not."""

    boast = 0.0

    def search(self, vector: Any, k: int = 10, **_: Any) -> list[VectorRecord]:
        return [r.model_copy(update={"score": self.boast}) for r in self.rows[-k:]]


@pytest.mark.parametrize("boast", [-1e9, 1e9])
def test_a_search_that_finds_something_else_fails(boast: float) -> None:
    rows = dense(200, 16)
    schema = CollectionSchema(fields=(VectorField(dim=16, metric="l2"),))
    target = Blind(rows, schema)
    target.boast = boast
    proof = check(rows, target, schema=schema, sample_queries=5)
    assert not proof.ok and proof.search[0].overlap < 0.5 and "searches" in proof.summary


def test_ties_are_no_difference() -> None:
    rows = [VectorRecord(id=i, vector=[1, 0] if i % 2 else [0, 1]) for i in range(40)]
    schema = CollectionSchema(fields=(VectorField(dim=2, metric="cosine"),))
    proof = check(rows, Bag(rows[::-1], schema), schema=schema, sample_queries=3, k=5)
    assert proof.ok and proof.search[0].worst == 1.0


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip", "l1", "hamming"])
def test_every_metric_is_searched(metric: str) -> None:
    dtype = DType.BIT if metric == "hamming" else DType.FLOAT32
    schema = CollectionSchema(fields=(VectorField(dim=32, metric=metric, dtype=dtype),))
    rng = np.random.default_rng(0)
    rows = [
        VectorRecord(id=i, vector=rng.integers(0, 256, 4, dtype=np.uint8) if dtype is DType.BIT else v)
        for i, v in enumerate(rng.normal(size=(100, 32)).astype(np.float32))
    ]
    proof = check(rows, Bag(rows, schema), schema=schema, sample_queries=7)
    assert proof.ok and proof.search[0].worst == 1.0 and proof.search[0].queries == 7


def test_sparse_and_multi_fields_are_searched_too() -> None:
    """A target that finds something else in one of them fails, and says in which."""

    class Confused(Bag):
        wrong = ""

        def search(
            self, vector: Any, k: int = 10, *, field: str = "", **options: Any
        ) -> list[VectorRecord]:
            if field == self.wrong:
                return [r.model_copy(update={"score": 0.0}) for r in self.rows[-k:]]
            return super().search(vector, k, field=field, **options)

    rows = records(200)
    for wrong in ("words", "late"):
        target = Confused(rows)
        target.wrong = wrong
        proof = check(rows, target, sample_queries=5, k=5)
        overlaps = {s.field: s.overlap for s in proof.search}
        assert not proof.ok and overlaps.pop(wrong) < 0.5 and set(overlaps.values()) == {1.0}


def test_what_an_index_misses_is_a_note_where_an_exact_search_finds_it() -> None:
    class Approximate(Blind):
        exact = True

        def search_exact(self, vectors: Any, k: int = 10, *, field: str = "") -> list[list[VectorRecord]]:
            find = super(Blind, self).search if self.exact else self.search
            return [find(vector, k, field=field) for vector in vectors]

    rows = dense(200, 16)
    schema = CollectionSchema(fields=(VectorField(dim=16, metric="l2"),))
    target = Approximate(rows, schema)
    proof = check(rows, target, schema=schema, sample_queries=5)
    assert proof.ok and proof.search[0].overlap < 0.5, "the number is told as it is"
    assert "100% without it" in str(proof)
    target.exact = False
    assert not check(rows, target, schema=schema, sample_queries=5).ok


def test_a_collection_equals_itself_however_little_its_index_finds() -> None:
    rows = dense(200, 16)
    schema = CollectionSchema(fields=(VectorField(dim=16, metric="l2"),))
    poor = Blind(rows, schema)
    proof = check(rows, poor, schema=schema, sample_queries=5, reference=poor)
    assert proof.ok and "where the records come from" in str(proof)
    assert not check(rows, poor, schema=schema, sample_queries=5, reference=Bag(rows, schema)).ok


def test_the_former_names_of_strategies_still_work() -> None:
    rows = records(5)
    with pytest.warns(DeprecationWarning, match="hash"):
        assert check(rows, Bag(rows), strategy="spool").strategy == "hash"


def test_of_equal_records_any_may_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """More records of one score than are remembered, and the store names others than the proof does."""
    schema = CollectionSchema(fields=(VectorField(name="words", kind="sparse", metric="ip"),))
    rows = [VectorRecord(id=i, sparse_vectors={"words": {1: 1.2}}) for i in range(60)]

    class Scaled(Bag):
        def search(self, vector: Any, k: int = 10, **_: Any) -> list[VectorRecord]:
            return [r.model_copy(update={"score": 1e-3}) for r in self.rows[30 : 30 + k]]

    proof = check(rows, Scaled(rows, schema), schema=schema, sample_queries=3)
    assert proof.ok and proof.search[0].overlap == 1.0


@pytest.mark.parametrize("index", [{"qdrant.params": {"modifier": "idf"}}, {"modifier": "idf"}])
def test_terms_that_a_server_weighs_itself_are_not_asked(index: dict[str, Any]) -> None:
    field = VectorField(name="words", kind="sparse", metric="ip", index=index)
    schema = CollectionSchema(fields=(field,))
    rows = [VectorRecord(id=i, sparse_vectors={"words": {i % 3: 1.0 + i}}) for i in range(40)]
    proof = check(rows, Blind(rows, schema), schema=schema, sample_queries=3)
    assert proof.ok and not proof.search and "weighs its terms" in str(proof)
