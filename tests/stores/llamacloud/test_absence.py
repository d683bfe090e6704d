"""Absence is not emptiness: what the service does not give is never taken for nothing."""

from __future__ import annotations

from typing import Any

import pytest

import vecferry as vf
from servers.llamacloud import LlamaCloud, Pipeline
from vecferry.errors import CorruptDataError, NotFoundError
from vecferry.model import RecordBatch, VectorRecord

from .conftest import open_store
from .test_hazards import docs, ids_of


def test_a_listed_document_without_chunks_is_an_error(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.put(pipeline, docs(5))
    cloud.lost_chunks = {"d0003"}
    with pytest.raises(CorruptDataError, match="'d0003' and answers 404"):
        ids_of(open_store(records="chunks"))
    assert len(ids_of(open_store(records="documents"))) == 5


def test_a_document_that_went_away_meanwhile_is_none(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.put(pipeline, docs(20))
    calls = []

    def leave(pipe: Pipeline, skip: int) -> None:
        calls.append(skip)
        if len(calls) == 4:  # the list has come to rest, and no chunk was asked for yet
            del pipe.documents["d0019"]

    cloud.on_page = leave
    assert len(ids_of(open_store(records="chunks", page_size=10))) == 19


@pytest.mark.parametrize("twice", [False, True])
def test_ids_that_a_path_folds_or_decodes(cloud: LlamaCloud, pipeline: Pipeline, twice: bool) -> None:
    ids = ["..", ".", "a/b c#1%", "50%25", "plain", "휴가 #3.md", "x/../y"]
    cloud.put(pipeline, [{"id": id_, "text": f"about {id_}"} for id_ in ids])
    cloud.decodes_twice = twice
    texts = {t for b in open_store(records="chunks").scan() for t in b.text_list}
    assert texts == {f"about {id_}" for id_ in ids}
    usual = [id_ for id_ in ids if id_ not in (".", "..")]
    assert set(open_store().fetch(usual).id_list) == set(usual)


def test_a_short_text_is_read_to_its_end(cloud: LlamaCloud) -> None:
    text = "word " * 3000
    cloud.index_v2(cloud.project("Default"), "later", {"a.txt": text, "empty.txt": ""})
    cloud.most_text = 777
    found = {m["file_name"]: t for b in open_store("Default/later").scan()
             for m, t in zip(b.metadata_list, b.text_list, strict=True)}  # fmt: skip
    assert found == {"a.txt": text, "empty.txt": ""}


def test_a_smaller_page_is_tried_where_one_is_refused(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.put(pipeline, docs(40))
    cloud.page_limit = 15
    assert len(ids_of(open_store(page_size=100))) == 40


def test_an_upsert_that_is_not_counted_yet_is_not_done(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.put(pipeline, docs(5))
    cloud.looks, cloud.counts_lag = 2, 3
    open_store().write(RecordBatch(ids=["new"], texts=["text"]))
    assert not pipeline.looks["new"]  # it is ingested, and not only accepted


def test_what_the_service_could_not_read_is_in_the_plan(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    cloud.put(pipeline, docs(3))
    states = ["SUCCESS"] * 3 + ["ERROR"] * 3 + ["IN_PROGRESS"]
    pipeline.files = [{"id": f"f{i}", "name": f"{i}.pdf", "status": s} for i, s in enumerate(states)]
    pipeline.failing = {"d0001": "ERROR"}
    found = {str(loss) for loss in open_store().describe().losses}
    assert any(
        "of 7 files" in text and "3 ERROR, 1 IN_PROGRESS" in text and "3.pdf" in text for text in found
    )
    assert any("of 3 documents" in text and "1 ERROR" in text for text in found)


def test_files_without_documents_are_refused(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    assert ids_of(open_store()) == []
    pipeline.files = [{"id": "f", "name": "a.pdf", "status": "ERROR"}]
    for records in ("documents", "chunks"):
        with pytest.raises(NotFoundError, match=r"1 files and no documents.*1 ERROR"):
            ids_of(open_store(records=records))


def test_chunks_are_fetched_once_for_plan_backup_copy_and_proof(
    cloud: LlamaCloud, pipeline: Pipeline, tmp_path: Any
) -> None:
    cloud.put(pipeline, docs(12))
    source = open_store(records="chunks")
    vf.migrate(vf.Collection(source), f"jsonl:{tmp_path}/out.jsonl").check()
    assert cloud.calls["document_chunks"] == 12
    cloud.put(pipeline, [{"id": "d0003", "text": "another text now"}])
    assert "another text now" in {t for b in open_store(records="chunks").scan() for t in b.text_list}
    assert cloud.calls["document_chunks"] == 13  # what has changed is fetched again


def test_records_by_id_come_from_the_list_where_that_is_cheaper(
    cloud: LlamaCloud, pipeline: Pipeline
) -> None:
    cloud.put(pipeline, docs(100))
    store = open_store(page_size=50)
    batch = RecordBatch.from_records([VectorRecord(id=f"d{i:04}", text="t") for i in range(100)])
    for start in range(0, 100, 25):
        assert len(store.fetch(batch.id_list[start : start + 25])) == 25
    assert not cloud.calls["get_document"]
    store.write(batch.take([0]))
    assert store.fetch(["d0000", "none"]).text_list == ["t"]  # what was written here is read anew


def test_a_search_with_a_filter_asks_for_more_until_enough_have_passed(
    cloud: LlamaCloud, pipeline: Pipeline
) -> None:
    from datetime import date

    many = [{"id": f"a{i}", "text": "same words here", "metadata": {"n": i}} for i in range(60)]
    cloud.put(pipeline, many)
    where = {
        "$or": [{"n": {"$gte": 55}}, {"day": date(2026, 1, 1)}]
    }  # the service cannot be asked for a date
    hits = open_store().search_text("same words here", 5, where=where)
    assert sorted(hit.metadata["n"] for hit in hits) == [55, 56, 57, 58, 59]


def test_an_account_is_part_of_what_an_index_is(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    store = open_store()
    assert store.place() == open_store(pipeline.info["id"]).place()
    assert open_store("Default/none").place() is None
    other = open_store(key="llx-another-account")
    assert other.account != store.account and "llx" not in store.account
    stamp = store.stamp()
    assert stamp == open_store().stamp() and stamp["count"] == 0
    cloud.put(pipeline, docs(1))
    assert store.stamp() != stamp
