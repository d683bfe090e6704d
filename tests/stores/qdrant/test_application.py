"""The target belongs to the application: what an upsert and a replacement leave as it was."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models

import vecferry as vf
from known import some
from servers.qdrant import QdrantServer
from vecferry.errors import NotFoundError
from vecferry.model import CollectionSchema, RecordBatch, VectorField, VectorRecord
from vecferry.ports import WriteMode
from vecferry.stores.qdrant import QdrantStore

from .conftest import fill, read

REAL_TOO = True
Open = Callable[..., QdrantStore]
SCHEMA = CollectionSchema(fields=(VectorField(dim=2, metric="ip"),))
DOT = models.VectorParams(size=2, distance=models.Distance.DOT)


def upsert(store: QdrantStore, rows: list[VectorRecord], like: CollectionSchema = SCHEMA) -> None:
    store.prepare(like, WriteMode.UPSERT)
    store.write(RecordBatch.from_records(rows, like))
    store.finish()


def payload(server: QdrantServer, point: Any, name: str = "c") -> Any:
    return server.client.retrieve(name, [point])[0].payload


# -- upsert -----------------------------------------------------------------------------------------


def test_keys_and_vectors_of_the_application_stay(server: QdrantServer, wire: Open) -> None:
    server.client.create_collection("c", {"dense": DOT, "extra": DOT})
    point = models.PointStruct(
        id=3, vector={"dense": [1, 2], "extra": [3, 4]}, payload={"text": "old", "clicks": 7, "lang": "de"}
    )
    server.client.upsert("c", [point])
    like = CollectionSchema(fields=(VectorField(name="dense", dim=2, metric="ip"),))
    row = VectorRecord(id=3, text="new", vectors={"dense": [5.0, 6.0]}, metadata={"lang": "en"})
    upsert(wire(), [row, VectorRecord(id=4, vectors={"dense": [0.0, 1.0]})], like)
    (found,) = server.client.retrieve("c", [3], with_vectors=True)
    assert found.payload == {"text": "new", "clicks": 7, "lang": "en"}
    assert found.vector == {"dense": [5.0, 6.0], "extra": [3.0, 4.0]}
    assert server.client.retrieve("c", [4], with_vectors=True)[0].vector == {"dense": [0.0, 1.0]}


def test_what_vecferry_wrote_itself_is_replaced_exactly(server: QdrantServer, wire: Open) -> None:
    store = fill(wire(), [VectorRecord(id=1, vector=[1.0, 0.0], metadata={"a": 1, "b": 2})], SCHEMA)
    server.client.set_payload("c", {"clicks": 7}, points=[1])
    upsert(store, [VectorRecord(id=1, vector=[1.0, 0.0], metadata={"c": 3})])
    assert payload(server, 1) == {"c": 3, "clicks": 7}
    upsert(wire(), [VectorRecord(id=1, vector=[1.0, 0.0], metadata={})])
    assert payload(server, 1) == {"clicks": 7}, "also what an earlier upsert brought"


def test_the_same_inside_langchains_metadata(server: QdrantServer, wire: Open) -> None:
    row = VectorRecord(id=1, text="t", vector=[1.0, 0.0], metadata={"a": 1})
    store = fill(wire(layout="langchain"), [row], SCHEMA)
    server.client.set_payload("c", {"seen": True}, points=[1], key="metadata")
    server.client.set_payload("c", {"beside": 1}, points=[1])
    upsert(store, [row.replace(text="u", metadata={"b": 0.42451918914251396})])
    came = payload(server, 1)
    assert came["metadata"].keys() == {"b", "seen"}
    assert (came["page_content"], came["beside"]) == ("u", 1)
    assert read(store)[0].metadata["b"] == 0.42451918914251396


def test_a_source_without_texts_leaves_the_texts(server: QdrantServer, wire: Open) -> None:
    for layout in ("plain", "langchain"):
        store = fill(wire(layout, layout=layout), [VectorRecord(id=1, text="t", vector=[1.0, 0.0])], SCHEMA)
        bare = SCHEMA.model_copy(update={"has_text": False})
        upsert(store, [VectorRecord(id=1, vector=[0.0, 1.0])], bare)
        (record,) = read(store)
        assert (record.text, some(record.vector).tolist()) == ("t", [0.0, 1.0])


def test_langchains_points_are_found_by_their_uuids(server: QdrantServer, tmp_path: Any) -> None:
    model = DeterministicFakeEmbedding(size=8)
    ids = [str(uuid.UUID(int=1000 + i)) for i in range(10)]
    client = QdrantClient(url=f"http://127.0.0.1:{server.rest_port}", check_compatibility=False)
    params = models.VectorParams(size=8, distance=models.Distance.COSINE)
    server.client.create_collection("lc", params)
    app = QdrantVectorStore(client=client, collection_name=server.named("lc"), embedding=model)
    app.add_documents([Document(page_content=f"doc {i}", metadata={"v": 1}) for i in range(10)], ids=ids)
    source = tmp_path / "a.jsonl"
    with vf.connect(f"jsonl:{source}") as lines:
        rows = [
            VectorRecord(
                id=ids[i], text=f"doc {i}", metadata={"v": 2}, vector=model.embed_query(f"doc {i}")
            )
            for i in range(10)
        ]
        lines.write(rows)
    report = vf.migrate(f"jsonl:{source}", server.url("lc"), mode="upsert", state_dir=tmp_path / "job")
    report.check()
    assert server.client.count("lc").count == 10
    assert not [loss for loss in report.losses if loss.kind == "id"], "none has changed"
    found = app.similarity_search("doc 3", k=10)
    assert {hit.metadata["v"] for hit in found} == {2}
    client.close()


def test_ids_of_both_kinds_stay_what_they_are(server: QdrantServer, wire: Open) -> None:
    server.client.create_collection("app", DOT)
    ids = [5, str(uuid.UUID(int=77))]
    document = {"page_content": "x", "metadata": {}}
    server.client.upsert("app", [models.PointStruct(id=i, vector=[1, 0], payload=document) for i in ids])
    source, target = wire("app"), wire("copy")
    target.prepare(source.describe(), WriteMode.CREATE)
    for batch in source.scan():
        assert not [loss for loss in target.foresee(batch) if loss.kind == "id"]
        target.write(batch)
    target.finish()
    assert [point.id for point in server.client.scroll("copy")[0]] == ids


def test_an_id_that_changed_is_readable_by_option(server: QdrantServer, wire: Open) -> None:
    rows = [VectorRecord(id=id_, vector=[1.0, 0.0], metadata={"a": 1}) for id_ in ("doc/1", -4, 7)]
    store = fill(wire(id_key="source_id"), rows, SCHEMA)
    found = sorted(str(some(p.payload).get("source_id")) for p in server.client.scroll("c")[0])
    assert found == ["-4", "None", "doc/1"], "an id that stays needs no copy"
    by_key = models.FieldCondition(key="source_id", match=models.MatchValue(value="doc/1"))
    assert server.client.count("c", models.Filter(must=[by_key])).count == 1
    assert {(r.id, *r.metadata.items()) for r in read(wire())} == {
        (r.id, *r.metadata.items()) for r in rows
    }
    upsert(store, [rows[0].replace(metadata={"a": 2})])
    assert server.client.count("c").count == 3


# -- what a layout does not expect ------------------------------------------------------------------

DEVIANTS: list[dict[str, Any]] = [
    {"page_content": "x", "metadata": ["a", "list"]},
    {"page_content": {"rich": 1}, "metadata": {"a": 1}},
    {"page_content": "y", "metadata": "text"},
    {"page_content": "z", "metadata": None},
    {"page_content": "z", "metadata": {"a": 1}, "_vecferry": "the app's own"},
    {"page_content": "z", "metadata": {"a": 1}, "_vecferry": {"mine": True}},
    {"page_content": 17, "metadata": {}},
]
PLAIN: list[dict[str, Any]] = [
    {"text": "a"},
    {"text": None, "k": 2},
    {"text": 17, "k": 3},
    {"text": ["a"]},
    {"text": "a", "_vecferry": 5},
]


@pytest.mark.parametrize("payloads", [DEVIANTS, PLAIN], ids=["langchain", "plain"])
def test_what_lies_differently_behind_the_first_points_is_carried(
    server: QdrantServer, tmp_path: Any, payloads: list[dict[str, Any]]
) -> None:
    usual = [{"page_content": f"t{i}", "metadata": {"a": i}} for i in range(100)]
    usual = usual if payloads is DEVIANTS else [{"text": f"t{i}"} for i in range(100)]
    server.client.create_collection("c", DOT)
    points = [models.PointStruct(id=i, vector=[1, 0], payload=p) for i, p in enumerate([*usual, *payloads])]
    server.client.upsert("c", points)
    vf.migrate(server.url("c"), server.url("d"), state_dir=tmp_path).check()
    came = [point.payload for point in server.client.scroll("d", limit=200)[0]]
    for after, before in zip(came[100:], payloads, strict=True):
        own = before.get("_vecferry")
        after = dict(some(after))
        if own is not None and after.get("_vecferry") != own:
            assert after.pop("_vecferry") == {"aside": {"_vecferry": own}}, "kept aside"
            before = {key: value for key, value in before.items() if key != "_vecferry"}
        assert after == before


# -- replace ----------------------------------------------------------------------------------------


def shaped(server: QdrantServer) -> None:
    """A collection with everything an application may have set."""
    server.create(
        "c",
        {
            "vectors": {"size": 2, "distance": "Dot", "on_disk": True},
            "quantization_config": {"scalar": {"type": "int8"}},
            "hnsw_config": {"m": 33},
            "optimizers_config": {"indexing_threshold": 777},
            "wal_config": {"wal_capacity_mb": 64},
            "strict_mode_config": {"enabled": True, "max_query_limit": 100},
            "shard_number": 2,
            "metadata": {"owner": "team a"},
        },
    )
    server.index("c", "page", "integer")
    points = [models.PointStruct(id=i, vector=[1, 0], payload={"page": i}) for i in range(5)]
    server.client.upsert("c", points)


def shape(server: QdrantServer, name: str = "c") -> dict[str, Any]:
    info = server.info(name)
    config, params = info["config"], info["config"]["params"]
    return {
        "indexes": sorted(info["payload_schema"]),
        "m": config["hnsw_config"]["m"],
        "on_disk": params["vectors"].get("on_disk"),
        "shards": params["shard_number"],
        "quantization": config.get("quantization_config"),
        "strict": config.get("strict_mode_config"),
        "threshold": config["optimizer_config"].get("indexing_threshold"),
        "wal": config["wal_config"]["wal_capacity_mb"],
        "owner": (config.get("metadata") or {}).get("owner"),
    }


def replace(store: QdrantStore, tag: str, rows: list[VectorRecord]) -> None:
    shadow = store.shadow(tag)
    shadow.prepare(SCHEMA, WriteMode.REPLACE)
    shadow.write(RecordBatch.from_records(rows))
    shadow.finish()
    shadow.close()
    store.publish(tag)


ROWS = [VectorRecord(id=i, vector=[1.0, i], metadata={"page": i}) for i in range(6)]


def test_the_new_version_has_the_shape_of_the_old_and_so_has_the_way_back(
    server: QdrantServer, wire: Open
) -> None:
    shaped(server)
    before = shape(server)
    replace(wire(), "one", ROWS)
    assert shape(server) == before
    wire().rollback()
    assert shape(server) == before
    assert [r.payload for r in server.client.scroll("c")[0]] == [{"page": i} for i in range(5)]


def test_the_shape_of_the_source_by_option(server: QdrantServer, wire: Open) -> None:
    shaped(server)
    replace(wire(shape="source"), "one", ROWS)
    assert shape(server)["m"] == 16
    assert not shape(server)["indexes"]


def test_the_layout_stays_that_of_the_application(server: QdrantServer, wire: Open) -> None:
    server.client.create_collection("c", DOT)
    document = {"page_content": "x", "metadata": {"page": 1}}
    server.client.upsert("c", [models.PointStruct(id=1, vector=[1, 0], payload=document)])
    replace(wire(), "one", [ROWS[0].replace(text="y")])
    assert payload(server, 0) == {"page_content": "y", "metadata": {"page": 0}}


def aliases(server: QdrantServer) -> dict[str, str]:
    return {a.alias_name: a.collection_name for a in server.client.get_aliases().aliases}


def add_alias(server: QdrantServer, alias: str, collection: str) -> None:
    made = models.CreateAlias(collection_name=collection, alias_name=alias)
    server.client.update_collection_aliases([models.CreateAliasOperation(create_alias=made)])


def test_every_alias_goes_along_and_comes_back(server: QdrantServer, wire: Open) -> None:
    fill(wire(), ROWS, SCHEMA)
    add_alias(server, "prod", "c")
    replace(wire(), "one", ROWS[:2])
    assert aliases(server) == {"c": "c__vf_one", "prod": "c__vf_one"}
    replace(wire(), "two", ROWS[:3])
    assert aliases(server) == {"c": "c__vf_two", "prod": "c__vf_two"}
    wire().rollback()
    assert aliases(server) == {"c": "c__vf_one", "prod": "c__vf_one"}


def test_pruning_takes_nobodys_alias(server: QdrantServer, wire: Open) -> None:
    for tag in ("one", "two", "three"):
        replace(wire(), tag, ROWS)
    add_alias(server, "audit", "c__vf_one")
    assert wire().prune() == ["two"]
    assert aliases(server)["audit"] == "c__vf_one"


def test_a_name_that_the_application_made_anew(server: QdrantServer, wire: Open) -> None:
    fill(wire(), [ROWS[0].replace(metadata={"gen": 1})], SCHEMA)
    replace(wire(), "one", ROWS[:2])
    alias = models.DeleteAlias(alias_name="c")
    server.client.update_collection_aliases([models.DeleteAliasOperation(delete_alias=alias)])
    server.client.create_collection("c", DOT)
    server.client.upsert("c", [models.PointStruct(id=9, vector=[1, 0], payload={"gen": 2})])
    replace(wire(), "two", ROWS[:3])
    kept = {
        name: [some(p.payload).get("gen") for p in server.client.scroll(name)[0]] for name in plain(server)
    }
    assert kept == {"c__vf_plain": [1], "c__vf_plain-2": [2]}, "never into an older version"
    assert [v.tag for v in wire().versions()] == ["two", "plain-2", "one", "plain"]


def plain(server: QdrantServer) -> list[str]:
    return sorted(c.name for c in server.client.get_collections().collections if "__vf_plain" in c.name)


def test_versions_whose_proof_failed_are_listed_and_pruned(server: QdrantServer, wire: Open) -> None:
    store = wire()
    replace(store, "one", ROWS)
    for tag, finished in (("bad", True), ("loading", False)):
        shadow = store.shadow(tag)
        shadow.prepare(SCHEMA, WriteMode.REPLACE)
        shadow.write(RecordBatch.from_records(ROWS))
        if finished:
            shadow.finish()
        shadow.close()
    found = {v.tag: (v.live, v.published) for v in store.versions()}
    assert found == {"one": (True, True), "bad": (False, False), "loading": (False, False)}
    assert store.prune() == ["bad"]
    assert [v.tag for v in store.versions()] == ["one", "loading"], "somebody may be at it"
    with pytest.raises(NotFoundError):
        store.rollback()


def test_a_layout_is_seen_the_same_each_time(server: QdrantServer, wire: Open) -> None:
    """And not by the first points alone: what comes later may be of another kind."""
    server.client.create_collection("c", DOT)
    early = [{"page_content": "x", "metadata": {}} for _ in range(200)]
    late = [{"note": "plain", "n": i} for i in range(200)]
    points = [models.PointStruct(id=i, vector=[1, 0], payload=p) for i, p in enumerate([*early, *late])]
    server.client.upsert("c", points)
    assert {wire().describe().layout for _ in range(5)} == {"plain"}
    assert {wire().describe().settings["qdrant"]["text_key"] for _ in range(5)} == {"page_content"}


def test_points_without_vectors_cross(server: QdrantServer, tmp_path: Any) -> None:
    server.create("c", {"vectors": {}})
    server.client.upsert("c", [models.PointStruct(id=i, vector={}, payload={"n": i}) for i in range(5)])
    vf.migrate(server.url("c"), server.url("d"), state_dir=tmp_path).check()
    assert [point.payload for point in server.client.scroll("d")[0]] == [{"n": i} for i in range(5)]


def test_a_renamed_field_keeps_its_settings(server: QdrantServer, tmp_path: Any) -> None:
    own = {"size": 2, "distance": "Dot", "on_disk": True, "hnsw_config": {"m": 5}}
    server.create("c", {"vectors": {"old": own}})
    server.client.upsert("c", [models.PointStruct(id=1, vector={"old": [1, 2]}, payload={})])
    vf.migrate(server.url("c"), server.url("d"), fields={"old": "new"}, state_dir=tmp_path).check()
    assert server.info("d")["config"]["params"]["vectors"] == {"new": own}
