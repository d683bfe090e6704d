"""What is written here is opened with the frameworks themselves, and the reverse."""

from __future__ import annotations

import uuid
from datetime import date
from typing import Any, ClassVar

import numpy as np
import pytest

from known import some
from vecferry.errors import RejectedRecord, SchemaMismatchError, UnsupportedError
from vecferry.model import CollectionSchema, RecordBatch, VectorField, VectorRecord
from vecferry.ports import WriteMode

DIM = 4
TEXTS = ["a cat sleeps", "a dog barks", "rain falls", "고양이가 잔다", "the sun rises"]


class Model:
    """Embeds the texts of this file; the vectors are fixed."""

    vectors: ClassVar[dict[str, Any]] = dict(
        zip(TEXTS, np.eye(5, DIM, dtype=np.float32) + 0.1, strict=True)
    )

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [float(x) for x in self.vectors[text]]

    async def aembed_query(self, text: str) -> list[float]:
        return self.embed_query(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.embed_documents(texts)


def records(*extra: VectorRecord) -> list[VectorRecord]:
    base = [
        VectorRecord(id=f"doc-{i}", text=text, vector=Model.vectors[text], metadata={"n": i, "lang": "en"})
        for i, text in enumerate(TEXTS)
    ]
    return [*base, *extra]


def odd_records() -> list[VectorRecord]:
    vector = [0.5, 0.5, 0.5, 0.5]
    return [
        VectorRecord(
            id=7, text=None, vector=vector, metadata={"day": date(2026, 1, 1), "nested": {"a": [1]}}
        ),
        VectorRecord(id="7", text="", vector=vector),
        VectorRecord(id=uuid.UUID(int=3), text="x", vector=vector),
        VectorRecord(id=(1, "a"), text="y", vector=vector),
    ]


def schema(**changes: Any) -> CollectionSchema:
    return CollectionSchema(fields=(VectorField(dim=DIM),), id_type="mixed").model_copy(update=changes)


def load(store: Any, rows: list[VectorRecord], **changes: Any) -> None:
    store.prepare(schema(**changes), WriteMode.CREATE)
    store.write(RecordBatch.from_records(rows))
    store.write(RecordBatch.from_records(rows))
    store.finish()


def by_id(collection: Any) -> dict[Any, VectorRecord]:
    return {record.id: record for record in collection.records()}


@pytest.mark.parametrize("layout", ["langchain", "langchain-v2", "llamaindex"])
def test_every_layout_keeps_odd_records(both: Any, layout: str) -> None:
    rows = records(*odd_records())
    load(both.store("kb", layout=layout), rows)
    collection = both.connect("kb")  # recognised without being told
    assert collection.describe().layout == layout
    assert collection.count() == len(rows)
    assert by_id(collection) == {record.id: record for record in rows}
    found = collection.search(rows[1], 2, where={"lang": "en"})
    assert found[0].id == "doc-1" and found[0].score == pytest.approx(1.0)
    assert [r.id for r in collection.fetch([7, "7", "nobody", (1, "a")])] == [7, "7", (1, "a")]
    assert collection.delete([7, "doc-0"]) == 2 and collection.count() == len(rows) - 2
    parts = collection.store.partitions(3)
    seen = [i for p in parts for b in collection.scan(partition=p, batch_size=2) for i in b.id_list]
    assert len(seen) == len(set(seen)) == len(rows) - 2
    with pytest.raises(SchemaMismatchError):
        collection.store.prepare(schema(fields=(VectorField(dim=9),)), WriteMode.UPSERT)


def test_langchain_opens_what_is_written(db: Any) -> None:
    from langchain_postgres import PGVector

    load(db.store("kb", layout="langchain"), records(), id_type="str")
    url = db.server.sqlalchemy_url(db.database)
    app = PGVector(embeddings=Model(), collection_name="kb", connection=url)
    hits = app.similarity_search_with_score("a dog barks", k=2)
    assert (hits[0][0].page_content, hits[0][0].metadata, hits[0][0].id) == (
        *("a dog barks", {"n": 1, "lang": "en"}),
        "doc-1",
    )
    assert [d.metadata["n"] for d in app.similarity_search("rain falls", k=1, filter={"n": 2})] == [2]
    app.add_texts(["the sun rises"], metadatas=[{"n": 9}], ids=["new"])
    back = by_id(db.connect("kb"))
    assert back["new"].text == "the sun rises" and back["new"].metadata == {"n": 9} and len(back) == 6
    some(app._engine).dispose()


def test_what_langchain_wrote_is_read(db: Any) -> None:
    from langchain_postgres import PGVector

    url = db.server.sqlalchemy_url(db.database)
    one = PGVector(embeddings=Model(), collection_name="one", connection=url)
    one.add_texts(TEXTS, metadatas=[{"n": i} for i in range(5)], ids=[f"i:{i}" for i in range(5)])
    two = PGVector(embeddings=Model(), collection_name="two", connection=url)
    two.add_texts(TEXTS[:1], ids=["only"])
    collection = db.connect("one")
    described = collection.describe()
    assert (described.layout, described.fields[0].name, described.fields[0].dim) == ("langchain", "", DIM)
    back = by_id(collection)
    assert set(back) == {f"i:{i}" for i in range(5)}, "ids of others are never taken for typed ones"
    assert back["i:3"].text == "고양이가 잔다" and back["i:3"].metadata == {"n": 3}
    assert list(by_id(db.connect("two"))) == ["only"]
    store = db.store("two", layout="langchain")
    store.prepare(schema(), WriteMode.UPSERT)
    with pytest.raises(RejectedRecord, match="another collection") as caught:
        store.write(RecordBatch.from_records([VectorRecord(id="i:0", text="x", vector=[0, 0, 0, 1.0])]))
    assert caught.value.ids == ("i:0",)
    assert by_id(db.connect("one"))["i:0"].text == TEXTS[0]
    for app in (one, two):
        some(app._engine).dispose()


def test_langchain_v2_opens_what_is_written_and_is_read(db: Any) -> None:
    from langchain_postgres import PGEngine, PGVectorStore

    load(db.store("texts", layout="langchain-v2"), records(), id_type="str")
    ids = [uuid.uuid5(uuid.NAMESPACE_URL, text) for text in TEXTS]
    load(
        db.store("uuids", layout="langchain-v2"),
        [r.replace(id=i) for r, i in zip(records(), ids, strict=True)],
        id_type="uuid",
    )
    engine = PGEngine.from_connection_string(db.server.sqlalchemy_url(db.database))
    try:
        for table, first in (("texts", "doc-1"), ("uuids", str(ids[1]))):
            app = PGVectorStore.create_sync(engine, embedding_service=Model(), table_name=table)
            hit = app.similarity_search("a dog barks", k=1)[0]
            assert (hit.page_content, hit.metadata, hit.id) == (
                "a dog barks",
                {"n": 1, "lang": "en"},
                first,
            )
        engine.init_vectorstore_table("made", DIM)
        app = PGVectorStore.create_sync(engine, embedding_service=Model(), table_name="made")
        app.add_texts(TEXTS, metadatas=[{"n": i} for i in range(5)])
        back = db.connect("made")
        assert back.describe().layout == "langchain-v2" and back.describe().id_type == "uuid"
        assert {(r.text, r.metadata["n"]) for r in back.records()} == {(t, i) for i, t in enumerate(TEXTS)}
    finally:
        engine._run_as_sync(engine.close())


def llama(db: Any, name: str) -> Any:
    from llama_index.vector_stores.postgres import PGVectorStore

    sync, other = db.server.sqlalchemy_url(db.database), db.server.sqlalchemy_url(db.database, "asyncpg")
    return PGVectorStore(
        connection_string=sync, async_connection_string=other, table_name=name, embed_dim=DIM
    )


def test_llamaindex_opens_what_is_written(db: Any) -> None:
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, VectorStoreQuery

    linked = VectorRecord(
        id="chunk", text="linked", vector=[0, 0, 1, 1.0], metadata={"_llamaindex": {"ref_doc_id": "whole"}}
    )
    load(db.store("Kb", layout="llamaindex"), records(linked), id_type="str")
    assert db.sql("select count(*), count(distinct node_id) from data_kb") == [(6, 6)]
    app = llama(db, "Kb")
    query = VectorStoreQuery(query_embedding=Model().embed_query("a dog barks"), similarity_top_k=1)
    result = app.query(query)
    assert (result.ids, result.nodes[0].text, result.nodes[0].metadata) == (
        *(["doc-1"], "a dog barks"),
        {"n": 1, "lang": "en"},
    )
    query.filters = MetadataFilters(filters=[MetadataFilter(key="n", value=2)])
    assert app.query(query).ids == ["doc-2"]
    query.filters, query.query_embedding = None, [0.0, 0.0, 1.0, 1.0]
    assert app.query(query).nodes[0].ref_doc_id == "whole"
    app.delete("whole")
    assert db.connect("Kb").count() == 5
    db.store("Kb").close()


def test_what_llamaindex_wrote_is_read(db: Any) -> None:
    from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

    nodes = [
        TextNode(
            id_=f"n{i}",
            text=text,
            metadata={"n": i},
            embedding=Model().embed_query(text),
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc")},
        )
        for i, text in enumerate(TEXTS)
    ]
    llama(db, "notes").add(nodes)
    collection = db.connect("notes")
    assert collection.describe().layout == "llamaindex"
    back = by_id(collection)
    assert {i: r.text for i, r in back.items()} == {f"n{i}": text for i, text in enumerate(TEXTS)}
    assert back["n2"].metadata["n"] == 2 and back["n2"].metadata["_llamaindex"]["ref_doc_id"] == "doc"
    assert db.connect("data_notes").describe().layout == "llamaindex" and not collection.describe().losses
    edited = "update data_notes set metadata_ = jsonb_set(metadata_::jsonb, '{n}', '99')::json"
    db.sql(f"{edited} where node_id = 'n3'")
    (loss,) = db.connect("data_notes").describe().losses
    assert (loss.count, loss.example) == (1, "n") and by_id(collection)["n3"].metadata["n"] == 3
    collection.write([back["n2"].replace(text="changed")])
    assert collection.count() == 5 and by_id(collection)["n2"].text == "changed"


def test_a_llamaindex_table_is_replaced_as_a_whole_and_a_shared_one_is_not(db: Any) -> None:
    store = db.store("Kb", layout="llamaindex")
    load(store, records(), id_type="str")
    shadow = store.shadow("next")
    shadow.prepare(schema(id_type="str"), WriteMode.REPLACE)
    shadow.write(RecordBatch.from_records(records()[:2]))
    shadow.finish()
    assert store.count() == 5
    store.publish("next")
    assert db.sql("select count(*) from data_kb") == [(2,)] and db.connect("Kb").count() == 2
    store.rollback()
    assert db.connect("Kb").describe().layout == "llamaindex" and db.connect("Kb").count() == 5
    shared = db.store("kb", layout="langchain")
    load(shared, records(), id_type="str")
    with pytest.raises(UnsupportedError, match="new collection name"):
        shared.shadow("next")
