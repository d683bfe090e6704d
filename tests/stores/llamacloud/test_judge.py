"""The vendor's own SDK judges: the local server must satisfy it, and the adapter must agree with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from servers.llamacloud import KEY, LlamaCloud, Pipeline
from vecferry.model import RecordBatch, VectorRecord

from .conftest import open_store

llama_cloud = pytest.importorskip("llama_cloud")


@pytest.fixture
def sdk(cloud: LlamaCloud) -> Iterator[Any]:
    with llama_cloud.LlamaCloud(api_key=KEY, base_url=cloud.url, max_retries=0) as client:
        yield client


def sdk_documents(sdk: Any, pipeline: Pipeline) -> dict[str, Any]:
    return {d.id: d for d in sdk.pipelines.documents.list(pipeline_id=pipeline.info["id"], limit=7)}


def test_the_server_satisfies_the_sdk_and_the_adapter_agrees(
    cloud: LlamaCloud, pipeline: Pipeline, sdk: Any, documents: list[dict[str, Any]]
) -> None:
    cloud.put(pipeline, documents)
    theirs = sdk_documents(sdk, pipeline)
    ours = [r for batch in open_store().scan(batch_size=30) for r in batch.records()]
    assert len(ours) == len(theirs) == 200
    for record in ours:
        assert (record.text, record.metadata) == (theirs[record.id].text, theirs[record.id].metadata)


def test_chunks_agree_with_the_sdk(
    cloud: LlamaCloud, pipeline: Pipeline, sdk: Any, documents: list[dict[str, Any]]
) -> None:
    cloud.put(pipeline, documents[95:105])
    theirs = {
        node.id: node
        for document in documents[95:105]
        for node in sdk.pipelines.documents.get_chunks(document["id"], pipeline_id=pipeline.info["id"])
    }
    ours = [r for b in open_store(records="chunks").scan(batch_size=4) for r in b.records()]
    assert [r.id for r in ours] and {r.id for r in ours} == set(theirs)
    for record in ours:
        node = theirs[record.id]
        kept = record.metadata["_llamaindex"]
        assert record.text == node.text
        assert kept["ref_doc_id"] == node.relationships["1"].node_id
        assert kept["start_char_idx"] == node.start_char_idx
        assert {k: v for k, v in record.metadata.items() if k != "_llamaindex"} == node.extra_info


def test_the_sdk_reads_what_the_adapter_wrote(cloud: LlamaCloud, pipeline: Pipeline, sdk: Any) -> None:
    nasty = ["a/b c#1%", "휴가 규정/3.md", "100%25", "?q=1&r", "x" * 300, " ", "+"]
    records = [VectorRecord(id=i, text=f"text of {i}", metadata={"n": n}) for n, i in enumerate(nasty)]
    open_store().write(RecordBatch.from_records(records))
    for record in records:
        found = sdk.pipelines.documents.get(record.id, pipeline_id=pipeline.info["id"])
        assert (found.text, found.metadata) == (record.text, record.metadata)
    assert {r.id for r in open_store().fetch(nasty).records()} == set(nasty)


def test_searches_agree_with_the_sdk(
    cloud: LlamaCloud, pipeline: Pipeline, sdk: Any, documents: list[dict[str, Any]]
) -> None:
    cloud.put(pipeline, documents)
    query = "nightly snapshots for thirty days"
    theirs = sdk.pipelines.retrieve(
        pipeline.info["id"], query=query, dense_similarity_top_k=5, enable_reranking=False
    )
    ours = open_store().search_text(query, 5)
    assert [(h.id, h.score, h.text) for h in ours] == [
        (n.node.id, n.score, n.node.text) for n in theirs.retrieval_nodes
    ]
    assert ours[0].score == 0.8


def test_the_sdk_finds_the_index_and_its_settings(cloud: LlamaCloud, pipeline: Pipeline, sdk: Any) -> None:
    [found] = sdk.pipelines.list(pipeline_name="handbook")
    settings = open_store().describe().settings["llamacloud"]
    assert settings["index_id"] == found.id
    assert settings["chunker"]["chunk_size"] == found.transform_config.chunk_size


def test_the_sdk_writes_and_the_adapter_reads(cloud: LlamaCloud, pipeline: Pipeline, sdk: Any) -> None:
    documents, id_ = sdk.pipelines.documents, pipeline.info["id"]
    cloud.looks, pipeline.failing = 2, {"b/2": "ERROR"}
    body = [
        {"id": "a", "text": "first", "metadata": {"n": 1}, "excluded_llm_metadata_keys": ["n"]},
        {"id": "b/2", "text": "second", "metadata": {}},
    ]
    assert [d.id for d in documents.upsert(id_, body=body)] == ["a", "b/2"]
    assert documents.get_status("a", pipeline_id=id_).status == "NOT_STARTED"
    for _ in range(3):
        states = {i: documents.get_status(i, pipeline_id=id_) for i in ("a", "b/2")}
    assert (states["a"].status, states["b/2"].status) == ("SUCCESS", "ERROR")
    assert states["b/2"].error[0].step == "TRANSFORM"
    counts = documents.get_status_counts(id_)
    assert (counts.total_count, counts.counts["ERROR"]) == (2, 1)
    found = {r.id: r for batch in open_store().scan() for r in batch.records()}
    assert found["a"].metadata == {"n": 1, "_llamaindex": {"excluded_llm_metadata_keys": ["n"]}}
    documents.delete("b/2", pipeline_id=id_)
    assert [r.id for batch in open_store().scan() for r in batch.records()] == ["a"]


def test_the_sdk_pages_projects_files_and_indexes(cloud: LlamaCloud, pipeline: Pipeline, sdk: Any) -> None:
    pipeline.files = [
        {"id": f"f{i}", "pipeline_id": pipeline.info["id"], "name": f"{i}.pdf", "status": "SUCCESS"}
        for i in range(5)
    ]
    theirs = list(sdk.pipelines.files.list(pipeline.info["id"], limit=2))
    assert [f.name for f in theirs] == [f["name"] for f in open_store(page_size=2).files()]
    assert [p.name for p in sdk.projects.list()] == ["Default"]
    files = {f"{i}.md": f"text {i} " * 50 for i in range(5)}
    index_id = cloud.index_v2(pipeline.info["project_id"], "later", files)
    assert [i.name for i in sdk.indexes.list()] == ["later"]
    ours = {r.id: r.text for batch in open_store("Default/later").scan() for r in batch.records()}
    listed = list(sdk.retrieval.find(index_id=index_id, page_size=2))
    assert {f.file_id for f in listed} == set(ours)
    for file in listed:
        read = sdk.retrieval.read(index_id=index_id, file_id=file.file_id)
        assert ours[file.file_id] == read.content
    hits = sdk.retrieval.retrieve(index_id=index_id, query="text 3", top_k=1).results
    assert [h.text for h in open_store("Default/later").search_text("text 3", 1)] == [
        h.content for h in hits
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "AuthenticationError"),
        (404, "NotFoundError"),
        (422, "UnprocessableEntityError"),
        (429, "RateLimitError"),
        (502, "InternalServerError"),
    ],
)
def test_the_servers_errors_are_the_sdks_errors(
    cloud: LlamaCloud, pipeline: Pipeline, status: int, kind: str
) -> None:
    from servers.llamacloud import Fault

    client = llama_cloud.LlamaCloud(
        api_key=KEY if status != 401 else "llx-other", base_url=cloud.url, max_retries=0
    )
    if status in (429, 502):
        cloud.faults.append(Fault(status, body=b"<html>bad gateway</html>"))
    wanted = {404: "6c3f1f5e-6a43-4f9c-8e37-8f2f3d7c0a11", 422: "not-a-uuid"}.get(status)
    with pytest.raises(getattr(llama_cloud, kind)):
        client.pipelines.get(wanted or pipeline.info["id"])
