"""`StoreContract`: every sentence of the ports that a test can hold, against one adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from vecferry.errors import (
    ConfigurationError,
    PlanError,
    RejectedRecord,
    SchemaMismatchError,
    SpaceMismatchError,
    TargetExistsError,
)
from vecferry.model import (
    EmbeddingSpace,
    Metric,
    RecordBatch,
    VectorField,
    VectorRecord,
    encode_id,
    id_type,
    matches,
)
from vecferry.ports import (
    Deletable,
    Fetchable,
    Fields,
    Publishable,
    Rewindable,
    Searchable,
    WriteMode,
)
from vecferry.testing.samples import (
    DIM,
    ODD_IDS,
    TYPED_METADATA,
    filter_records,
    filters,
    sample_fields,
    sample_records,
    sample_schema,
)


@dataclass(frozen=True)
class VendorView:
    """What the vendor's own client sees of one record.

    ``metadata`` may be left out (``None``) where the vendor's form of it is no mapping; what is exact about
    it is then looked at through the adapter alone.
    """

    text: str | None
    vector: Any
    metadata: Mapping[str, Any] | None = None


class StoreContract:
    """Subclass it, give `open` and `vendor_view`, and pytest runs every test below against your store.

    Attributes:
        metric: a metric under which the store keeps vectors bit for bit, if it has one.
        exact: whether float32 vectors come back bit for bit under that metric.
        examples: how many filters, and how many sequences of writes, the property tests try.
    """

    metric: Metric = Metric.L2
    exact: bool = True
    last_index: int = 4_000_000_000
    examples: int = 25

    def open(self, folder: Path, name: str) -> Any:
        """The store called ``name`` in ``folder``; the same collection for the same arguments."""
        raise NotImplementedError

    def vendor_view(self, store: Any) -> Mapping[Any, VendorView]:
        """Every record as the vendor's own client sees it, by whatever id it has there.

        Called after `finish` and `close` of every store object of the test."""
        older: Any = getattr(self, "peek", None)  # its name until 0.2
        if older is None:
            raise NotImplementedError
        found: Mapping[Any, VendorView] = older(store)
        return found

    # -- fixtures -----------------------------------------------------------------------------

    @pytest.fixture
    def store(self, tmp_path: Path) -> Any:
        store = self.open(tmp_path, "one")
        yield store
        store.close()

    @pytest.fixture
    def full(self, store: Any) -> Any:
        """A published collection of 25 records."""
        return self.load(store, sample_records(unit=not self.exact))

    def load(self, store: Any, records: list[VectorRecord], **schema: Any) -> Any:
        """Write records as a job does: through the shadow where the store wants one."""
        sink = store.shadow("load") if self._staged(store) else store
        sink.prepare(sample_schema(self.metric, **schema), WriteMode.CREATE)
        for start in range(0, len(records), 10):
            sink.write(RecordBatch.from_records(records[start : start + 10]))
        sink.finish()
        if sink is not store:
            sink.close()
            store.publish("load")
        return store

    # -- reading ------------------------------------------------------------------------------

    def test_describe_tells_what_was_prepared(self, full: Any) -> None:
        schema = full.describe()
        field = schema.field("")
        assert (field.dim, field.metric) == (DIM, self.metric)
        assert field.space == sample_schema().fields[0].space
        assert full.count() == 25
        assert schema.count in (None, 25)

    def test_records_come_back_as_they_were(self, full: Any) -> None:
        self.same(read(full.scan(batch_size=7)), sample_records(unit=not self.exact))

    def test_metadata_keeps_its_types(self, full: Any) -> None:
        first = next(r for r in read(full.scan()).values() if r.metadata["n"] == 0)
        for key, value in TYPED_METADATA.items():
            assert first.metadata[key] == value, key
            assert type(first.metadata[key]) is type(value), key

    def test_the_vendor_sees_the_same(self, full: Any) -> None:
        expected = sorted(
            (r.text, np.asarray(r.vector).tolist()) for r in sample_records(unit=not self.exact)
        )
        full.close()
        seen = sorted(
            (p.text, np.asarray(p.vector, np.float32).tolist()) for p in self.vendor_view(full).values()
        )
        assert [text for text, _ in seen] == [text for text, _ in expected]
        np.testing.assert_allclose(
            [v for _, v in seen], [v for _, v in expected], rtol=0 if self.exact else 1e-5, atol=1e-6
        )

    @pytest.mark.parametrize("kind", ["int", "str", "uuid", "tuple"])
    def test_ids_keep_their_type(self, store: Any, kind: str) -> None:
        ids = ODD_IDS[kind]
        self.load(store, sample_records(ids=ids, unit=not self.exact), id_type=kind)
        back = [record.id for record in read(store.scan()).values()]
        assert sorted(map(encode_id, back)) == sorted(map(encode_id, ids))

    def test_mixed_ids_stay_apart(self, store: Any) -> None:
        ids = [id_ for group in ODD_IDS.values() for id_ in group]
        self.load(store, sample_records(ids=ids, unit=not self.exact), id_type="mixed")
        back = {(id_type(r.id), encode_id(r.id)) for r in read(store.scan()).values()}
        assert back == {(id_type(i), encode_id(i)) for i in ids}

    @pytest.mark.parametrize("size", [1, 4, 25, 100])
    def test_a_batch_is_never_larger_than_asked(self, full: Any, size: int) -> None:
        assert all(0 < len(batch) <= size for batch in full.scan(batch_size=size) if len(batch))

    def test_every_cursor_goes_on_where_it_stands(self, full: Any) -> None:
        everything = [encode_id(i) for b in full.scan(batch_size=4) for i in b.id_list]
        done: list[str] = []
        for batch in full.scan(batch_size=4):
            done += map(encode_id, batch.id_list)
            if batch.cursor is not None:
                rest = [
                    encode_id(i) for b in full.scan(after=batch.cursor, batch_size=3) for i in b.id_list
                ]
                assert sorted(done + rest) == sorted(everything)
        assert len(set(everything)) == 25

    @pytest.mark.parametrize("want", [1, 3, 50])
    def test_partitions_are_disjoint_and_complete(self, full: Any, want: int) -> None:
        seen: list[str] = []
        for part in full.partitions(want):
            after = None
            for batch in full.scan(partition=part, batch_size=3):
                seen += map(encode_id, batch.id_list)
                after = batch.cursor
            assert not list(read(full.scan(partition=part, after=after)))
        assert sorted(seen) == sorted(encode_id(r.id) for r in sample_records())

    def test_partitions_are_scanned_side_by_side(self, full: Any) -> None:
        parts = list(full.partitions(4))
        meeting = Barrier(len(parts))

        def keys(part: Any) -> list[str]:
            batches = iter(full.scan(partition=part, batch_size=2))
            meeting.wait(30)  # nobody begins before all are here
            first = next(batches, None)
            meeting.wait(30)  # and all are open at once
            found = [] if first is None else first.id_list
            return [encode_id(i) for i in [*found, *(i for b in batches for i in b.id_list)]]

        with ThreadPoolExecutor(len(parts)) as pool:
            seen = [key for found in pool.map(keys, parts) for key in found]
        assert sorted(seen) == sorted(encode_id(r.id) for r in sample_records())

    def test_only_the_wanted_fields_are_read(self, full: Any) -> None:
        batch = next(iter(full.scan(fields=Fields.IDS)))
        assert not batch.vectors and batch.texts is None and batch.metadata is None
        batch = next(iter(full.scan(fields=Fields.NO_VECTORS)))
        assert not batch.vectors and batch.texts is not None and batch.metadata is not None

    def test_where_filters(self, full: Any) -> None:
        where = {"even": True, "n": {"$gte": 10, "$lt": 20}}
        found = {r.metadata["n"] for r in read(full.scan(where=where)).values()}
        assert found == {10, 12, 14, 16, 18}

    # -- writing ------------------------------------------------------------------------------

    def test_writing_twice_is_as_once(self, store: Any) -> None:
        records = sample_records(unit=not self.exact)
        sink = store.shadow("load") if self._staged(store) else store
        batch = RecordBatch.from_records(records[:10])
        sink.prepare(sample_schema(self.metric), WriteMode.CREATE)
        assert sink.write(batch).written == 10
        sink.write(batch)
        sink.write(RecordBatch.from_records(records[5:]))
        sink.finish()
        sink.finish()
        if sink is not store:
            sink.close()
            store.publish("load")
        self.same(read(store.scan()), records)

    def test_what_is_unfinished_can_be_resumed(self, tmp_path: Path) -> None:
        records = sample_records(unit=not self.exact)
        first = self.open(tmp_path, "resumed")
        sink = first.shadow("job") if self._staged(first) else first
        sink.prepare(sample_schema(self.metric), WriteMode.CREATE)
        sink.write(RecordBatch.from_records(records[:15]))
        mark = sink.mark() if able(sink, Rewindable) else None
        sink.close()
        first.close()
        second = self.open(tmp_path, "resumed")
        sink = second.shadow("job") if self._staged(second) else second
        sink.prepare(sample_schema(self.metric), WriteMode.RESUME)
        if able(sink, Rewindable):
            sink.rewind(mark)
        sink.write(RecordBatch.from_records(records[10:]))
        sink.finish()
        if sink is not second:
            sink.close()
            second.publish("job")
        self.same(read(second.scan()), records)
        second.close()

    def test_upsert_replaces_by_id(self, full: Any) -> None:
        changed = sample_records(3, seed=1, unit=not self.exact)
        extra = sample_records(ids=[100], seed=2, unit=not self.exact)
        full.prepare(sample_schema(self.metric), WriteMode.UPSERT)
        full.write(RecordBatch.from_records(changed + extra))
        full.finish()
        self.same(read(full.scan()), changed + sample_records(unit=not self.exact)[3:] + extra)

    def test_create_refuses_an_existing_target(self, full: Any) -> None:
        with pytest.raises(TargetExistsError, match="mode="):
            sink = full.shadow("other") if self._staged(full) else full
            sink.prepare(sample_schema(self.metric), WriteMode.CREATE)
        assert full.count() == 25

    def test_another_dimension_is_refused(self, full: Any) -> None:
        field = VectorField(dim=DIM + 1, metric=self.metric)
        with pytest.raises(SchemaMismatchError):
            full.prepare(sample_schema(self.metric, fields=(field,)), WriteMode.UPSERT)
        assert full.count() == 25

    def test_another_space_is_refused_at_equal_dimension(self, full: Any) -> None:
        other = EmbeddingSpace(model="another-model", dim=DIM)
        field = VectorField(dim=DIM, metric=self.metric, space=other)
        with pytest.raises(SpaceMismatchError, match="another-model"):
            full.prepare(sample_schema(self.metric, fields=(field,)), WriteMode.UPSERT)
        assert full.count() == 25

    # -- more than one vector, and less -------------------------------------------------------

    def test_several_fields_come_back_each_as_it_was(self, store: Any) -> None:
        kinds = store.capabilities().kinds
        if not store.capabilities().several_fields:
            pytest.skip("holds one vector field")
        records, schema = sample_fields(kinds, self.metric, unit=not self.exact, last_index=self.last_index)
        self.load(store, records, fields=schema)
        assert {f.name: f.kind for f in store.describe().fields} == {f.name: f.kind for f in schema}
        self.same(read(store.scan(batch_size=4)), records)
        only = read(store.scan(fields=Fields(vectors=("title",))))
        assert all(set(r.vectors) <= {"title"} and not r.sparse_vectors for r in only.values())

    def test_a_record_may_lack_its_vector_or_its_text(self, store: Any) -> None:
        able_to = store.capabilities()
        records = [
            record.replace(
                vectors={} if able_to.missing_vectors and i % 3 == 1 else record.vectors,
                text=None if i % 4 == 2 else record.text,
            )
            for i, record in enumerate(sample_records(12, unit=not self.exact))
        ]
        if not able_to.missing_vectors and not able_to.text:
            pytest.skip("holds a vector and no text of each record")
        self.load(store, records)
        assert store.count() == 12
        found = read(store.scan(batch_size=5))
        for record in records:
            back = found[encode_id(record.id)]
            assert set(back.vectors) == set(record.vectors), record.id
            if able_to.text:
                assert back.text == record.text, record.id
        if not able(store, Fetchable):
            return
        fetched = read([store.fetch([r.id for r in records])])
        assert {key: set(r.vectors) for key, r in fetched.items()} == {
            key: set(r.vectors) for key, r in found.items()
        }

    # -- filters ------------------------------------------------------------------------------

    def test_every_filter_means_what_the_reference_says(self, store: Any) -> None:
        """Hypothesis draws filters of every operator; `vecferry.model.matches` is the reference."""
        pytest.importorskip("hypothesis")
        from hypothesis import given, settings

        records = filter_records(unit=not self.exact)
        self.load(store, records)

        @settings(max_examples=self.examples, deadline=None, database=None)
        @given(filters())
        def hold(where: dict[str, Any]) -> None:
            wanted = {encode_id(r.id) for r in records if matches(where, r.metadata)}
            try:
                found = set(read(store.scan(where=where, batch_size=16)))
            except ConfigurationError as error:  # a filter that can never match may be refused, by name
                assert not wanted, f"{where} was refused though {len(wanted)} records match: {error}"
                return
            assert found == wanted, where

        hold()

    # -- exactness of a write -----------------------------------------------------------------

    def test_a_write_replaces_the_whole_record(self, full: Any) -> None:
        """Metadata ``{a, b}`` written over by ``{c}`` is ``{c}``, and a vector that is gone is gone."""
        one = sample_records(1, unit=not self.exact)[0]
        full.prepare(sample_schema(self.metric), WriteMode.UPSERT)
        full.write(RecordBatch.from_records([one.replace(metadata={"a": 1, "b": {"x": 1}})]))
        full.finish()
        full.prepare(sample_schema(self.metric), WriteMode.UPSERT)
        full.write(RecordBatch.from_records([one.replace(metadata={"c": 3}, text="other")]))
        full.finish()
        back = read(full.scan())[encode_id(one.id)]
        assert (back.metadata, back.text) == ({"c": 3}, "other")
        full.close()
        seen = [view for view in self.vendor_view(full).values() if view.text == "other"]
        assert len(seen) == 1
        if seen[0].metadata is not None:
            own = {key for key in seen[0].metadata if not key.startswith("_")}
            assert {"a", "b"}.isdisjoint(own) and "c" in own, own

    def test_an_id_written_twice_is_one_record(self, full: Any) -> None:
        """Seen by the vendor's client, too: within a batch, across batches and across writers."""
        changed = sample_records(4, seed=5, unit=not self.exact)
        full.prepare(sample_schema(self.metric), WriteMode.UPSERT)
        full.write(RecordBatch.from_records(changed[:2]))
        full.write(RecordBatch.from_records(changed))
        full.finish()
        assert full.count() == 25
        full.close()
        assert len(self.vendor_view(full)) == 25

    def test_a_vector_of_another_width_is_refused_before_it_is_written(self, full: Any) -> None:
        records = sample_records(3, seed=6, unit=not self.exact)
        wide = [r.replace(vectors={"": np.ones(DIM + 1, np.float32)}) for r in records]
        full.prepare(sample_schema(self.metric), WriteMode.UPSERT)
        with pytest.raises((SchemaMismatchError, RejectedRecord)):
            full.write(RecordBatch.from_records(wide))
        full.close()
        full = self.reopened(full)
        self.same(read(full.scan()), sample_records(unit=not self.exact))
        full.close()

    def test_a_record_that_cannot_be_kept_is_named(self, full: Any) -> None:
        """NaN in a vector: kept bit for bit, or refused with the id; the others can be written then."""
        records = sample_records(ids=range(200, 205), seed=7, unit=not self.exact)
        broken = records[2].replace(vectors={"": np.full(DIM, np.nan, np.float32)})
        batch = RecordBatch.from_records([*records[:2], broken, *records[3:]])
        full.prepare(sample_schema(self.metric), WriteMode.UPSERT)
        try:
            full.write(batch)
            kept = True
        except RejectedRecord as refusal:
            kept = False
            assert refusal.ids in ((), [202], (202,)), (
                "where ids are named, they are those of the bad records"
            )
            full.write(RecordBatch.from_records([*records[:2], *records[3:]]))
        full.finish()
        found = read(full.scan())
        assert len(found) == (30 if kept else 29)
        if kept:
            assert np.isnan(np.asarray(found[encode_id(202)].vector)).all()

    def test_replace_keeps_the_old_until_the_new_is_there(self, full: Any) -> None:
        """A store that cannot build aside refuses ``REPLACE``, or says so in its capabilities."""
        if able(full, Publishable):
            assert full.stages(WriteMode.REPLACE)
            return
        try:
            full.prepare(sample_schema(self.metric), WriteMode.REPLACE)
        except PlanError:
            assert full.count() == 25
            return
        announced = " ".join(str(loss) for loss in full.capabilities().losses)
        assert "replace" in announced, (
            "replace destroys the old collection: capabilities() must announce it"
        )

    def test_any_sequence_of_writes_ends_as_a_dict_would(self, tmp_path: Path) -> None:
        """A stateful property: upsert, delete, reopen, in any order, against a dict."""
        pytest.importorskip("hypothesis")
        from hypothesis import given, settings
        from hypothesis import strategies as st

        names, taken = st.integers(0, 6), [0]
        step: st.SearchStrategy[tuple[str, list[int]]] = st.one_of(
            st.tuples(st.just("upsert"), st.lists(names, min_size=1, max_size=4, unique=True)),
            st.tuples(st.just("delete"), st.lists(names, min_size=1, max_size=3, unique=True)),
            st.tuples(st.just("reopen"), st.just([])),
        )

        @settings(max_examples=max(3, self.examples // 4), deadline=None, database=None)
        @given(st.lists(step, max_size=6))
        def hold(steps: list[tuple[str, list[int]]]) -> None:
            taken[0] += 1
            store = self.load(self.open(tmp_path, f"seq{taken[0]}"), sample_records(3, unit=not self.exact))
            model = {encode_id(r.id): r for r in sample_records(3, unit=not self.exact)}
            for number, (what, ids) in enumerate(steps):
                if what == "upsert":
                    records = sample_records(ids=ids, seed=number + 10, unit=not self.exact)
                    store.prepare(sample_schema(self.metric), WriteMode.UPSERT)
                    store.write(RecordBatch.from_records(records))
                    store.finish()
                    model |= {encode_id(r.id): r for r in records}
                elif what == "delete" and able(store, Deletable):
                    gone = store.delete(ids)
                    assert gone == len({encode_id(i) for i in ids} & model.keys())
                    model = {k: v for k, v in model.items() if k not in {encode_id(i) for i in ids}}
                elif what == "reopen":
                    store.close()
                    store = self.open(tmp_path, f"seq{taken[0]}")
                assert store.count() == len(model)
            self.same(read(store.scan()), model.values())
            store.close()

        hold()

    # -- abilities ----------------------------------------------------------------------------

    def test_fetch_keeps_the_order_and_leaves_out_the_unknown(self, full: Any) -> None:
        if not able(full, Fetchable):
            pytest.skip("cannot fetch")
        batch = full.fetch([9, "nobody", 3, 24])
        assert batch.id_list == [9, 3, 24]
        self.same(
            {encode_id(r.id): r for r in batch.records()},
            [sample_records(unit=not self.exact)[i] for i in (9, 3, 24)],
        )

    def test_several_threads_fetch_at_once(self, full: Any) -> None:
        if not able(full, Fetchable):
            pytest.skip("cannot fetch")
        meeting = Barrier(4)

        def fetch(start: int) -> list[Any]:
            meeting.wait(30)
            return [full.fetch([i, i - 1]).id_list for i in range(start, 25, 4)]

        scan = iter(full.scan(batch_size=2))
        next(scan)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(fetch, range(1, 5)))
        assert found == [[[i, i - 1] for i in range(start, 25, 4)] for start in range(1, 5)]
        assert sum(map(len, scan)) == 23

    def test_search_finds_the_record_itself_first(self, full: Any) -> None:
        if not able(full, Searchable):
            pytest.skip("cannot search")
        record = sample_records(unit=not self.exact)[4]
        hits = full.search(record.vector, 5)
        assert hits[0].id == record.id and len(hits) == 5
        assert [h.score for h in hits] == sorted((h.score or 0.0 for h in hits), reverse=True)
        only = full.search(record.vector, 5, where={"topic": "t2"})
        assert only and all(hit.metadata["topic"] == "t2" for hit in only)
        with pytest.raises(SchemaMismatchError):
            full.search([1.0] * (DIM + 1), 1)

    def test_delete_counts_what_was_there(self, full: Any) -> None:
        if not able(full, Deletable):
            pytest.skip("cannot delete")
        assert full.delete([3, 4, "nobody"]) == 2
        assert full.count() == 23
        assert not {3, 4} & {r.id for r in read(full.scan()).values()}

    def test_rewind_forgets_what_came_after_the_mark(self, store: Any) -> None:
        sink = store.shadow("job") if self._staged(store) else store
        if not able(sink, Rewindable):
            pytest.skip("cannot rewind")
        records = sample_records(unit=not self.exact)
        sink.prepare(sample_schema(self.metric), WriteMode.CREATE)
        sink.write(RecordBatch.from_records(records[:10]))
        mark = sink.mark()
        sink.write(RecordBatch.from_records(records[10:]))
        sink.rewind(mark)
        sink.finish()
        if sink is not store:
            sink.close()
            store.publish("job")
        self.same(read(store.scan()), records[:10])

    def test_publish_swaps_and_rollback_swaps_back(self, full: Any) -> None:
        if not able(full, Publishable):
            pytest.skip("cannot publish")
        fresh = sample_records(5, seed=3, unit=not self.exact)
        shadow = self._built(full, "next", fresh)
        assert full.count() == 25, "a shadow must not be seen"
        self.same(read(shadow.scan()), fresh)
        shadow.close()
        full.publish("next")
        full.publish("next")
        self.same(read(full.scan()), fresh)
        assert [v.live for v in full.versions()][:1] == [True]
        full.rollback()
        self.same(read(full.scan()), sample_records(unit=not self.exact))
        full.publish("next")
        assert full.count() == 5
        full.prune()
        assert len(full.versions()) == 1

    def test_prune_keeps_the_version_to_roll_back_to(self, full: Any) -> None:
        if not able(full, Publishable):
            pytest.skip("cannot publish")
        for tag in ("second", "third"):
            self._built(full, tag, sample_records(5, seed=3, unit=not self.exact)).close()
            full.publish(tag)
        full.rollback()
        assert full.prune(keep=9) == []
        assert full.prune(keep=1) == ["third"]
        full.rollback()
        self.same(read(full.scan()), sample_records(unit=not self.exact))

    # -- helpers ------------------------------------------------------------------------------

    def _built(self, store: Any, tag: str, records: list[VectorRecord]) -> Any:
        shadow = store.shadow(tag)
        shadow.prepare(sample_schema(self.metric), WriteMode.REPLACE)
        shadow.write(RecordBatch.from_records(records))
        shadow.finish()
        return shadow

    def _staged(self, store: Any) -> bool:
        return able(store, Publishable) and store.stages(WriteMode.CREATE)

    def reopened(self, store: Any) -> Any:
        """The store to go on with after `close`: the same object where a closed one opens itself again."""
        return store

    def same_vectors(self, got: VectorRecord, want: VectorRecord) -> None:
        """Every field, dense, sparse or multi; bit for bit where ``exact``."""
        assert set(got.vectors) == set(want.vectors)
        assert set(got.sparse_vectors) == set(want.sparse_vectors)
        rtol, atol = (0.0, 0.0) if self.exact else (1e-5, 1e-6)
        for name, vector in want.vectors.items():
            np.testing.assert_allclose(got.vectors[name], vector, rtol=rtol, atol=atol)
        for name, sparse in want.sparse_vectors.items():
            assert got.sparse_vectors[name].indices.tolist() == sparse.indices.tolist()
            np.testing.assert_allclose(got.sparse_vectors[name].values, sparse.values, rtol=rtol, atol=atol)

    def same(self, got: Mapping[str, VectorRecord], want: Iterable[VectorRecord]) -> None:
        """Ids, texts, metadata equal with their types; vectors bit for bit where ``exact``."""
        expected = {encode_id(record.id): record for record in want}
        assert got.keys() == expected.keys()
        for key, record in expected.items():
            assert got[key].text == record.text
            assert got[key].metadata == record.metadata
            self.same_vectors(got[key], record)


def able(store: Any, ability: Any) -> bool:
    """``isinstance``, without narrowing the type: a store has more than one ability."""
    return isinstance(store, ability)


def read(batches: Iterable[RecordBatch]) -> dict[str, VectorRecord]:
    """Records by encoded id; an id that comes twice fails.

    Raises:
        AssertionError: if a scan yields one id twice.
    """
    found: dict[str, VectorRecord] = {}
    for batch in batches:
        for record in batch.records():
            key = encode_id(record.id)
            assert key not in found, f"{record.id!r} came twice"
            found[key] = record
    return found
