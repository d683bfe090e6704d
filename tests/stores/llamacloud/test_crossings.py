"""Whole migrations out of LlamaCloud and home again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecferry as vf
from known import some
from servers.llamacloud import Fault, LlamaCloud, Pipeline
from servers.postgres import Postgres, postgres
from vecferry.core.retry import RetryPolicy
from vecferry.model import VectorRecord

from .conftest import open_store

__all__ = ["postgres"]


def test_out_to_a_backup_and_home_again_without_a_difference(
    cloud: LlamaCloud, pipeline: Pipeline, documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    documents[3]["excluded_llm_metadata_keys"] = ["page"]
    documents[4]["page_positions"] = [0, 20]
    cloud.put(pipeline, documents)
    backup = f"jsonl:{tmp_path}/backup.jsonl"
    vf.migrate(open_store(), backup, state_dir=tmp_path / "out").check()
    assert len((tmp_path / "backup.jsonl").read_text("utf-8").splitlines()) >= 200

    cloud.pipeline(pipeline.info["project_id"], "other")
    report = vf.migrate(backup, open_store("Default/other"), state_dir=tmp_path / "home")
    report.check()
    [other] = [p for p in cloud.pipelines.values() if p.info["name"] == "other"]
    assert other.documents == pipeline.documents


def test_the_backup_replays_without_the_network(
    cloud: LlamaCloud, pipeline: Pipeline, documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    cloud.put(pipeline, documents[:48])
    backup = f"jsonl:{tmp_path}/backup.jsonl"
    vf.migrate(open_store(), backup, state_dir=tmp_path / "out").check()
    asked = len(cloud.requests)
    target = vf.connect("memory:")
    for batch in vf.connect(backup).scan():
        target.write(batch)
    assert target.count() == 48
    assert len(cloud.requests) == asked


def test_vectors_stay_behind_on_the_way_to_llamacloud_and_the_plan_says_so(
    cloud: LlamaCloud, pipeline: Pipeline, tmp_path: Path
) -> None:
    source = vf.connect("memory:to-llamacloud")
    vectors = np.eye(5, dtype=np.float32)
    source.write(
        [VectorRecord(id=i, text=f"text {i}", vector=vectors[i], metadata={"n": i}) for i in range(5)]
    )
    plan = vf.plan("memory:to-llamacloud", open_store(), state_dir=tmp_path / "job")
    assert "chunks and embeds by itself" in str(plan)
    plan.run().check()
    assert {d["text"] for d in pipeline.documents.values()} == {f"text {i}" for i in range(5)}
    assert {r.id for b in open_store().scan() for r in b.records()} == set(range(5))


def test_a_document_that_fails_goes_to_quarantine_and_the_others_arrive(
    cloud: LlamaCloud, pipeline: Pipeline, tmp_path: Path
) -> None:
    pipeline.failing = {"d7": "ERROR"}
    source = vf.connect("memory:to-llamacloud-failing")
    source.write([VectorRecord(id=f"d{i}", text=f"text {i}", vector=[1.0, float(i)]) for i in range(12)])
    report = vf.migrate(
        source, open_store(), on_error="quarantine", state_dir=tmp_path / "job", batch_size=5
    )
    assert report.rejected == 1
    kept = "".join(p.read_text("utf-8") for p in (tmp_path / "job").rglob("*") if "quarantine" in p.name)
    assert "no text could be read" in kept
    assert set(pipeline.documents) >= {f"d{i}" for i in range(12)} - {"d7"}


@pytest.mark.parametrize("records", ["documents", "chunks"])
def test_a_migration_under_faults_loses_nothing(
    cloud: LlamaCloud, pipeline: Pipeline, documents: list[dict[str, Any]], tmp_path: Path, records: str
) -> None:
    cloud.put(pipeline, documents)
    for fault in (Fault(503), Fault(429), Fault(mode="reset"), Fault(mode="truncate")):
        cloud.faults.extend(Fault(**vars(fault)) for _ in range(3))
    target = f"jsonl:{tmp_path}/backup.jsonl"
    patient = RetryPolicy(attempts=15, max_seconds=20.0, base=0.001, cap=0.01)
    source = open_store(records=records, page_size=20, retry=patient)
    vf.migrate(source, target, state_dir=tmp_path / "job").check()
    lines = [json.loads(line) for line in (tmp_path / "backup.jsonl").read_text("utf-8").splitlines()]
    texts = [line["text"] for line in lines if "text" in line]
    if records == "documents":
        assert sorted(texts) == sorted(d["text"] for d in documents)
    else:
        chunks = [n["text"] for d in pipeline.documents.values() for n in cloud.chunks(pipeline, d)]
        assert sorted(texts) == sorted(chunks)
    assert not cloud.faults


def test_the_vectors_of_a_customer_owned_sink_are_read_there(
    cloud: LlamaCloud, pipeline: Pipeline, postgres: Postgres
) -> None:
    """The service writes through LlamaIndex; so does this test, and then follows the URL it is given."""
    stores = pytest.importorskip("llama_index.vector_stores.postgres")
    from llama_index.core.schema import TextNode

    database = postgres.database()
    sink = stores.PGVectorStore.from_params(
        host="127.0.0.1",
        port=str(postgres.port),
        user="postgres",
        password="",
        database=database,
        table_name="Handbook",
        embed_dim=3,
    )
    sink.add([TextNode(id_=f"n{i}", text=f"chunk {i}", embedding=[1.0, 0.5, i]) for i in range(4)])
    component = {
        "host": "127.0.0.1",
        "port": postgres.port,
        "user": "postgres",
        "database": database,
        "schema_name": "public",
        "table_name": "Handbook",
        "embed_dim": 3,
    }
    pipeline.info["data_sink"] = {
        "id": "s",
        "name": "ours",
        "project_id": "p",
        "sink_type": "POSTGRES",
        "component": component,
    }
    with vf.connect("llamacloud://Default/handbook", rate=0) as source:
        url = source.store.sink_url
        assert url in str(source.describe().losses[0])
    found = {record.id: record for record in vf.connect(url).records()}
    assert {id_: record.text for id_, record in found.items()} == {f"n{i}": f"chunk {i}" for i in range(4)}
    assert some(found["n2"].vector).tolist() == [1.0, 0.5, 2.0]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://qdrant.local:7000", ("qdrant.local", 7000, False)),
        ("https://x.cloud.qdrant.io", ("x.cloud.qdrant.io", 6333, True)),
    ],
)
def test_the_url_of_a_qdrant_sink_means_the_same_server(
    cloud: LlamaCloud,
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    expected: tuple[str, int, bool],
) -> None:
    from vecferry.ports import StoreURL
    from vecferry.stores.qdrant.connection import Address

    monkeypatch.setenv("QDRANT_API_KEY", "a-key")  # with which other addresses would be encrypted
    pipeline.info["data_sink"] = {
        "sink_type": "QDRANT",
        "name": "ours",
        "component": {"url": address, "collection_name": "my kb"},
    }
    url = StoreURL.parse(open_store().sink_url or "")
    at = Address.of(url, **url.options)
    assert (at.host, at.port, at.https) == expected
    assert url.path == "my kb"
