"""What an index says about itself, in vecferry's words; the later kind of index; creating one."""

from __future__ import annotations

from typing import Any

import pytest

from servers.llamacloud import LlamaCloud, Pipeline
from vecferry.errors import PlanError, TargetExistsError, UnsupportedError
from vecferry.model import CollectionSchema, EmbeddingSpace, RecordBatch, matches
from vecferry.ports import Fields, Searchable, Sink, Source, TextSearchable, WriteMode
from vecferry.stores.llamacloud.index import chunker_of, space_of

from .conftest import open_store


def embedding(kind: str, **component: Any) -> dict[str, Any]:
    return {"embedding_config": {"type": kind, "component": component}}


@pytest.mark.parametrize(
    ("config", "model", "dim"),
    [
        (
            embedding("MANAGED_OPENAI_EMBEDDING", model_name="openai-text-embedding-3-small"),
            "text-embedding-3-small",
            1536,
        ),
        (
            embedding("OPENAI_EMBEDDING", model_name="text-embedding-3-large", dimensions=256),
            "text-embedding-3-large",
            256,
        ),
        (
            embedding("OPENAI_EMBEDDING", model_name="text-embedding-ada-002"),
            "text-embedding-ada-002",
            1536,
        ),
        (embedding("COHERE_EMBEDDING", model_name="embed-english-v3.0"), "embed-english-v3.0", 1024),
        (
            embedding("HUGGINGFACE_API_EMBEDDING", model_name="BAAI/bge-small-en-v1.5"),
            "BAAI/bge-small-en-v1.5",
            384,
        ),
        (embedding("AZURE_EMBEDDING", azure_deployment="ours", dimensions=512), "ours", 512),
    ],
)
def test_the_space_follows_from_the_embedding_config(config: dict[str, Any], model: str, dim: int) -> None:
    assert space_of(config) == EmbeddingSpace(model=model, dim=dim)


def test_an_unknown_model_has_a_space_only_if_its_dimension_is_told() -> None:
    config = embedding("OPENAI_EMBEDDING", model_name="made-up")
    assert space_of(config) is None
    config["data_sink"] = {"component": {"embed_dim": 77}}
    assert space_of(config) == EmbeddingSpace(model="made-up", dim=77)
    assert space_of({}) is None


def test_chunkers() -> None:
    assert chunker_of({}) == {
        "splitter": "sentence",
        "chunk_size": 1024,
        "chunk_overlap": 200,
        "unit": "token",
    }
    advanced = {
        "mode": "advanced",
        "segmentation_config": {"mode": "page", "page_separator": "\n---\n"},
        "chunking_config": {"mode": "character", "chunk_size": 300, "chunk_overlap": 0},
    }
    assert chunker_of({"transform_config": advanced}) == {
        "splitter": "character",
        "chunk_size": 300,
        "chunk_overlap": 0,
        "unit": "character",
        "segmentation": {"mode": "page", "page_separator": "\n---\n"},
    }
    none = {"mode": "advanced", "chunking_config": {"mode": "none"}}
    assert chunker_of({"transform_config": none}) == {"splitter": "none"}


def test_describe(cloud: LlamaCloud, pipeline: Pipeline, documents: list[dict[str, Any]]) -> None:
    cloud.put(pipeline, documents)
    pipeline.files = [{"id": f"f{i}", "pipeline_id": "p", "name": f"{i}.pdf"} for i in range(7)]
    pipeline.info["embedding_config"]["component"]["api_key"] = "sk-secret"
    schema = open_store().describe()
    assert (schema.name, schema.count, schema.fields, schema.ids_unique) == ("handbook", 200, (), True)
    [loss] = schema.losses
    assert "embed=" in loss.detail
    settings = schema.settings["llamacloud"]
    assert settings["files"] == 7
    assert settings["space"]["model"] == "text-embedding-3-small"
    assert "sk-secret" not in str(schema)
    assert [f["name"] for f in open_store(page_size=3).files()] == [f"{i}.pdf" for i in range(7)]


@pytest.mark.parametrize(
    ("sink", "url"),
    [
        (
            {
                "sink_type": "QDRANT",
                "component": {"url": "http://qdrant.local:6333", "collection_name": "kb"},
            },
            "qdrant://qdrant.local:6333/kb?https=false",
        ),
        (
            {
                "sink_type": "POSTGRES",
                "component": {
                    "host": "db",
                    "port": 5433,
                    "user": "rag",
                    "password": "never",
                    "database": "app",
                    "schema_name": "public",
                    "table_name": "Handbook",
                    "embed_dim": 256,
                },
            },
            "pgvector://rag@db:5433/app#public.data_handbook",
        ),
        ({"sink_type": "PINECONE", "component": {"index_name": "x"}}, None),
    ],
)
def test_a_customer_owned_sink_is_named(
    cloud: LlamaCloud, pipeline: Pipeline, sink: dict[str, Any], url: str | None
) -> None:
    pipeline.info["data_sink"] = {"id": "s", "name": "ours", "project_id": "p", **sink}
    store = open_store()
    assert store.sink_url == url
    [loss] = store.describe().losses
    assert "'ours'" in loss.detail
    assert (url or "read them there") in loss.detail
    assert "never" not in str(store.describe())


def test_abilities(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    store = open_store()
    assert isinstance(store, Source | Sink)
    assert isinstance(store, TextSearchable)
    assert not isinstance(store, Searchable)


def test_fields_filters_and_search_filters(
    cloud: LlamaCloud, pipeline: Pipeline, documents: list[dict[str, Any]]
) -> None:
    cloud.put(pipeline, documents)
    [ids] = list(open_store().scan(fields=Fields.IDS))
    assert len(ids) == 200
    assert ids.texts is None
    assert ids.metadata is None
    for where in (
        {"lang": "ko"},
        {"$or": [{"page": {"$gt": 4}}, {"lang": {"$in": ["en"]}}]},
        {"$not": {"lang": "ko"}},
        {"lang": {"$exists": True}, "topic": {"$ne": "storage"}},
        {"nothing": {"$exists": False}, "page": {"$lte": 2}},
    ):
        wanted = {d["id"] for d in documents if matches(where, d["metadata"])}
        found = {i for b in open_store().scan(where=where, batch_size=17) for i in b.id_list}
        assert found == wanted
        assert wanted
        hits = open_store().search_text("the archive server 백업 서버는", 100, where=where)
        assert all(matches(where, hit.metadata) for hit in hits)
    assert open_store().search_text("the archive server", 3, where={"lang": "en"})


def test_the_later_kind_of_index(cloud: LlamaCloud) -> None:
    project = cloud.project("Default")
    files = {f"{i}.md": f"file number {i} " + "long " * 60_000 for i in range(5)}
    cloud.index_v2(project, "later", files)
    store = open_store("Default/later")
    schema = store.describe()
    assert (schema.count, schema.settings["llamacloud"]["version"]) == (5, 2)
    found = {r.metadata["file_name"]: r.text for b in store.scan(batch_size=2) for r in b.records()}
    assert found == files
    assert store.count() == 5
    assert "file number 3" in (store.search_text("number 3", 1)[0].text or "")
    with pytest.raises(UnsupportedError):
        store.prepare(CollectionSchema(), WriteMode.UPSERT)


def test_modes_of_writing(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    store = open_store()
    store.prepare(CollectionSchema(), WriteMode.CREATE)
    store.write(RecordBatch(ids=["a"], texts=["t"]))
    with pytest.raises(TargetExistsError, match="upsert"):
        open_store().prepare(CollectionSchema(), WriteMode.CREATE)
    open_store().prepare(CollectionSchema(), WriteMode.UPSERT)
    open_store().prepare(CollectionSchema(), WriteMode.RESUME)
    with pytest.raises(UnsupportedError):
        open_store().prepare(CollectionSchema(), WriteMode.REPLACE)


def test_a_new_index_is_made_with_the_settings_of_the_old(cloud: LlamaCloud, pipeline: Pipeline) -> None:
    schema = open_store().describe()
    target = open_store("Default/copy")
    assert not target.exists()
    for _ in range(2):
        target.prepare(schema, WriteMode.CREATE)
    assert target.exists()
    copies = [p.info for p in cloud.pipelines.values() if p.info["name"] == "copy"]
    assert [c["transform_config"] for c in copies] == [pipeline.info["transform_config"]]
    with pytest.raises(PlanError, match="PROJECT/other"):
        open_store("other").prepare(schema, WriteMode.CREATE)
