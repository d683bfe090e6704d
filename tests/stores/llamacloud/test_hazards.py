"""Everything that real life adds to the contract: lists that change, faults, limits, odd answers."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from servers.llamacloud import Fault, LlamaCloud, Pipeline
from vecferry.core.http import retry_after
from vecferry.core.limiter import Limiter
from vecferry.core.retry import RetryPolicy
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    NotFoundError,
    RejectedRecord,
    RequestTooLargeError,
    RetryableError,
)
from vecferry.model import RecordBatch, VectorRecord
from vecferry.stores.llamacloud import LlamaCloudStore

from .conftest import QUICK, open_store


def docs(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"id": f"d{i:04}", "text": f"text number {i}", "metadata": {"n": i}} for i in range(start, n)]


def ids_of(store: LlamaCloudStore, **how: Any) -> list[Any]:
    return [i for batch in store.scan(**how) for i in batch.id_list]


# -- a list that changes while it is read -----------------------------------------------------------


def test_a_document_removed_between_pages_makes_no_hole(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.put(pipeline, docs(50))

    def remove_the_first(pipe: Pipeline, skip: int) -> None:
        if skip == 10 and "d0000" in pipe.documents:
            del pipe.documents["d0000"]

    cloud.on_page = remove_the_first
    found = ids_of(open_store(page_size=10))
    assert found == [f"d{i:04}" for i in range(1, 50)]


def test_a_document_inserted_in_front_is_not_doubled(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.put(pipeline, docs(50))

    def insert_in_front(pipe: Pipeline, skip: int) -> None:
        if skip == 20 and "new" not in pipe.documents:
            old = dict(pipe.documents)
            pipe.documents.clear()
            cloud.put(pipe, [{"id": "new", "text": "new"}])
            pipe.documents.update(old)

    cloud.on_page = insert_in_front
    found = ids_of(open_store(page_size=10))
    assert sorted(found) == sorted({*(f"d{i:04}" for i in range(50)), "new"})


def test_one_in_and_one_out_leaves_counts_equal_and_still_no_hole(
    cloud: LlamaCloud, pipeline: Pipeline
) -> None:
    cloud.put(pipeline, docs(40))

    def swap(pipe: Pipeline, skip: int) -> None:
        if skip == 0 and "d0000" in pipe.documents:
            del pipe.documents["d0000"]
            cloud.put(pipe, [{"id": "zz", "text": "late"}])

    cloud.on_page = swap
    found = ids_of(open_store(page_size=10))
    assert set(found) >= {f"d{i:04}" for i in range(1, 40)}
    assert len(found) == len(set(found))


@pytest.mark.parametrize("seed", range(5))
def test_whatever_was_there_throughout_is_read_once(
    cloud: LlamaCloud, pipeline: Pipeline, seed: int
) -> None:
    dice = random.Random(seed)
    cloud.put(pipeline, docs(60))
    stay = {f"d{i:04}" for i in range(0, 60, 2)}
    restless = {"left": 25}

    def shuffle(pipe: Pipeline, skip: int) -> None:
        if restless["left"] <= 0:
            return
        restless["left"] -= 1
        going = [i for i in pipe.documents if i not in stay]
        if going and dice.random() < 0.5:
            del pipe.documents[dice.choice(going)]
        cloud.put(pipe, [{"id": f"x{dice.random()}", "text": "x"}])
        order = list(pipe.documents.items())
        dice.shuffle(order)
        pipe.documents.clear()
        pipe.documents.update(order)

    cloud.on_page = shuffle
    found = ids_of(open_store(page_size=7), batch_size=9)
    assert set(found) >= stay
    assert len(found) == len(set(found))


def test_a_list_that_never_rests_is_an_error_and_not_a_guess(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.put(pipeline, docs(30))
    cloud.on_page = lambda pipe, skip: cloud.put(pipe, [{"id": f"n{time.monotonic_ns()}", "text": "n"}])
    with pytest.raises(RetryableError, match="did not come to rest"):
        ids_of(open_store(page_size=10))


@pytest.mark.parametrize("drift", [3, -3, -30])
def test_a_wrong_count_is_outvoted_by_two_equal_readings(
    cloud: LlamaCloud, pipeline: Pipeline, drift: int
) -> None:
    cloud.put(pipeline, docs(30))
    cloud.drift = drift
    for size in (9, 10, 100):
        assert len(ids_of(open_store(page_size=size))) == 30


def test_short_pages_are_followed_to_the_end(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.put(pipeline, docs(31))
    cloud.max_page = 4
    assert len(ids_of(open_store(page_size=10))) == 31


@pytest.mark.parametrize("records", ["documents", "chunks"])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_scan_goes_on_behind_any_cursor_in_a_new_process(
    cloud: LlamaCloud, pipeline: Pipeline, records: str, size: int
) -> None:
    pipeline.info["transform_config"]["chunk_size"] = 8
    cloud.put(pipeline, docs(6))
    whole = list(open_store(records=records).scan(batch_size=size))
    everything = [i for batch in whole for i in batch.id_list]
    assert len(everything) == (6 if records == "documents" else 18)
    for at, batch in enumerate(whole):
        rest = [i for later in whole[at + 1 :] for i in later.id_list]
        assert ids_of(open_store(records=records), after=batch.cursor, batch_size=size) == rest


# -- chunks -----------------------------------------------------------------------------------------


def test_long_and_empty_documents(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    pipeline.info["transform_config"]["chunk_size"] = 8
    long = " ".join(f"w{i}" for i in range(1500))
    cloud.put(pipeline, [{"id": "long", "text": long}, {"id": "none", "text": ""}])
    batches = list(open_store(records="chunks").scan(batch_size=400))
    assert [len(b) for b in batches] == [400, 400, 400, 300]
    assert open_store(records="chunks").count() == 1500
    relations = batches[0].metadata_list[1]["_llamaindex"]["relationships"]
    assert relations["2"]["node_id"] == batches[0].id_list[0]
    assert relations["5"][0]["node_id"] == batches[0].id_list[2]


def test_embeddings_are_used_only_when_asked_for_and_of_the_right_length(
    cloud: LlamaCloud, pipeline: Pipeline
) -> None:
    cloud.put(pipeline, docs(3))
    cloud.embeddings = "filled"
    assert open_store(records="chunks").describe().fields == ()
    store = open_store(records="chunks", vectors=True)
    assert store.describe().field().dim == 1536
    assert all(b.vectors[""].mask is None for b in store.scan())
    cloud.embeddings = "wrong"
    [batch] = open_store(records="chunks", vectors=True).scan()
    assert not batch.vectors[""].present.any()


def test_null_absent_nested_and_large(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    metadata = {"a": {"b": [1, None, {"c": True}]}, "n": 1.5, "none": None}
    cloud.put(pipeline, [{"id": "x", "text": "q" * 70_000, "metadata": metadata, "page_positions": [0, 9]}])
    for sparse in (False, True):
        cloud.sparse = sparse
        [batch] = open_store().scan()
        assert len(batch.text_list[0] or "") == 70_000
        assert batch.metadata_list[0] == {**metadata, "_llamacloud": {"page_positions": [0, 9]}}


# -- writing ----------------------------------------------------------------------------------------


def test_upserts_twice_are_as_once_and_come_back_whole(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    records = [
        VectorRecord(
            id="s", text="one", metadata={"k": 1, "_llamaindex": {"excluded_llm_metadata_keys": ["k"]}}
        ),
        VectorRecord(id=7, text="two", metadata={"nested": {"x": [1, 2]}}),
        VectorRecord(id="..", text="three", metadata={"_vecferry": {"mine": 1}}),
    ]
    batch = RecordBatch.from_records(records)
    for _ in range(2):
        assert open_store().write(batch).written == 3
    assert len(pipeline.documents) == 3
    assert pipeline.documents["s"]["excluded_llm_metadata_keys"] == ["k"]
    back = {r.text: r for b in open_store().scan() for r in b.records()}
    assert {r.text: r for r in records} == back
    assert open_store().delete([7, "missing"]) == 1
    assert {r.id for r in open_store().fetch(["s", 7, ".."]).records()} == {"s", ".."}


def test_large_batches_are_cut_by_number_and_by_bytes(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    big = [VectorRecord(id=f"b{i}", text="x" * 400_000) for i in range(4)]
    small = [VectorRecord(id=f"s{i}", text="x") for i in range(250)]
    open_store().write(RecordBatch.from_records(big + small))
    assert len(pipeline.documents) == 254
    assert cloud.calls["upsert_documents"] == 4  # 2, 2 + 98, 100, 52


@pytest.mark.parametrize("has_counts", [True, False])
def test_a_write_waits_and_reports_each_failed_document(
    cloud: LlamaCloud, pipeline: Pipeline, has_counts: bool
) -> None:
    cloud.looks, cloud.has_counts = 3, has_counts
    pipeline.failing = {"d0002": "ERROR", "d0004": "PARTIAL_SUCCESS"}
    batch = RecordBatch.from_records([VectorRecord(id=f"d{i:04}", text="t") for i in range(6)])
    with pytest.raises(RejectedRecord, match="no text could be read") as caught:
        open_store().write(batch)
    assert set(caught.value.ids) == {"d0002", "d0004"}
    open_store().write(batch.take([0, 1, 3, 5]))


def test_a_record_the_service_refuses_is_named(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    records = [VectorRecord(id=1, text="fine"), VectorRecord(id=2, text="a\x00b")]
    with pytest.raises(RejectedRecord, match="must not contain NUL") as caught:
        open_store().write(RecordBatch.from_records(records))
    assert caught.value.ids == (2,)
    with pytest.raises(RejectedRecord, match="has no text") as caught:
        open_store().write(RecordBatch(ids=["a"], texts=[None]))
    assert caught.value.ids == ("a",)
    assert not pipeline.documents


def test_ingestion_that_takes_too_long_says_what_to_do(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.looks = 10_000
    with pytest.raises(RetryableError, match="run the same call again"):
        open_store(ingest_timeout=0.05).write(RecordBatch(ids=["a"], texts=["t"]))


def test_deletions_are_eventually_seen(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.put(pipeline, docs(5))
    cloud.lag = 2
    store = open_store()
    store.delete(["d0001"])
    assert len(ids_of(store)) == 5
    assert [len(ids_of(store)) for _ in range(3)][-1] == 4


# -- faults -----------------------------------------------------------------------------------------

PASSING = [
    Fault(500),
    Fault(502, body=b"<html>Bad Gateway</html>"),
    Fault(503, headers={"Retry-After": "0"}),
    Fault(429, headers={"retry-after-ms": "10"}),
    Fault(429),
    Fault(409),
    Fault(408),
    Fault(mode="reset"),
    Fault(mode="truncate"),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: f.mode or f"{f.status}{f.headers}")
def test_passing_faults_pass_unseen(cloud: LlamaCloud, pipeline: Pipeline, fault: Fault) -> None:
    cloud.put(pipeline, docs(25))
    cloud.faults.extend([fault, Fault(**vars(fault))])
    assert len(ids_of(open_store(page_size=10))) == 25
    assert not cloud.faults


def test_a_slow_answer_times_out_and_is_asked_for_again(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.put(pipeline, docs(3))
    cloud.faults.append(Fault(mode="slow", seconds=0.6, path="paginated"))
    assert len(ids_of(open_store(timeout=0.3))) == 3


def test_a_fault_that_stays_is_raised(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.faults.extend(Fault(503) for _ in range(50))
    with pytest.raises(RetryableError, match="503"):
        open_store().describe()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, FatalStoreError),
        (401, ConfigurationError),
        (402, FatalStoreError),
        (403, FatalStoreError),
        (413, RequestTooLargeError),
        (418, FatalStoreError),
    ],
)
def test_final_answers_are_not_asked_for_again(
    cloud: LlamaCloud, pipeline: Pipeline, status: int, kind: type[Exception]
) -> None:
    store = open_store()
    store.describe()
    before = len(cloud.requests)
    cloud.faults.append(Fault(status, path="paginated", body=b'{"detail":"llx-test-key is wrong"}'))
    with pytest.raises(kind) as caught:
        ids_of(store)
    assert len(cloud.requests) == before + 1
    assert "llx-test-key" not in str(caught.value)


def test_the_rate_limit_is_kept_to_and_waited_for(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.put(pipeline, docs(40))
    cloud.rate, cloud.retry_after = 40.0, "0.05"
    patient = RetryPolicy(attempts=20, max_seconds=20.0, base=0.02, cap=0.2)
    assert len(ids_of(open_store(page_size=4, retry=patient))) == 40


def test_the_client_keeps_its_pace() -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    limiter = Limiter(4, rate=5.0, clock=lambda: now[0], sleep=sleep)
    for _ in range(55):
        with limiter.slot():
            pass
    assert now[0] == pytest.approx(10.0, rel=0.01)
    limiter.slower()
    assert limiter.rate == 2.5
    for _ in range(20):
        limiter.faster()
    assert limiter.rate == 5.0


def test_retry_after_in_every_form() -> None:
    assert retry_after({"retry-after-ms": "1500"}) == 1.5
    assert retry_after({"retry-after": "2"}) == 2.0
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


# -- names and keys ---------------------------------------------------------------------------------


def test_unknown_and_ambiguous_names_say_what_there_is(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    twice = cloud.project("Second")
    for _ in range(2):
        cloud.pipeline(twice, "twins")
    with pytest.raises(NotFoundError, match="there is no project 'Nowhere'; there is 'Default', 'Second'"):
        open_store("Nowhere/handbook").describe()
    with pytest.raises(NotFoundError, match="no index 'nothing' in project 'Default'; there is 'handbook'"):
        open_store("Default/nothing").describe()
    with pytest.raises(ConfigurationError, match="2 of index are called 'twins'") as caught:
        open_store("Second/twins").describe()
    assert all(p.info["id"] in str(caught.value) for p in list(cloud.pipelines.values())[1:])
    by_id = open_store(pipeline.info["id"]).describe()
    assert by_id.name == "handbook"
    assert open_store("handbook").describe().settings["llamacloud"]["index_id"] == pipeline.info["id"]
    with pytest.raises(NotFoundError):
        open_store(f"Second/{pipeline.info['id']}").describe()


def test_a_missing_or_wrong_key_names_the_variable(
    cloud: LlamaCloud, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="LLAMA_CLOUD_API_KEY") as caught:
        open_store(key="llx-wrong").describe()
    assert "llx-wrong" not in str(caught.value)
    monkeypatch.delenv("LLAMA_CLOUD_API_KEY")
    with pytest.raises(ConfigurationError, match="LLAMA_CLOUD_API_KEY"):
        open_store()
    monkeypatch.setenv("LLAMA_PARSE_API_KEY", "llx-test-key")
    assert open_store().describe().name == "handbook"


def test_urls() -> None:
    from vecferry.ports import StoreURL

    def parse(text: str, **options: Any) -> LlamaCloudStore:
        return LlamaCloudStore.from_url(StoreURL.parse(text), key="k", **options)

    store = parse("llamacloud://My%20Project/%ED%9C%B4%EA%B0%80", rate="2.5", vectors="true")
    assert (store.project, store.index, store._vectors) == ("My Project", "휴가", True)
    assert parse("llamacloud:8b1c").project is None
    for bad in ("llamacloud:", "llamacloud://only-project", "llamacloud:///index"):
        with pytest.raises(ConfigurationError, match="PROJECT/INDEX"):
            parse(bad)
    with pytest.raises(ConfigurationError, match="rate='fast'"):
        parse("llamacloud:x", rate="fast")
    with pytest.raises(ConfigurationError, match="documents"):
        parse("llamacloud:x", records="pages")
    assert QUICK.attempts
