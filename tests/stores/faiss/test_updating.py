"""A collection that an app made is changed in place: the app finds everything else as it was."""

from __future__ import annotations

import json
from pathlib import Path

import faiss
import pytest
from langchain_community.vectorstores import FAISS
from langchain_core.embeddings import FakeEmbeddings
from llama_index.core import StorageContext, SummaryIndex, VectorStoreIndex, load_index_from_storage
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import ImageNode, IndexNode, TextNode

from stores.faiss.support import by_id, random_vectors, records, schema, write
from vecferry.errors import ConfigurationError, CorruptDataError, NotFoundError, UnsupportedError
from vecferry.model import RecordBatch, VectorRecord
from vecferry.ports import WriteMode
from vecferry.stores.faiss import FaissStore

MODEL = FakeEmbeddings(size=8)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def langchain(folder: Path, name: str) -> None:
    FAISS.from_texts([f"{name} {i}" for i in range(3)], MODEL).save_local(str(folder), index_name=name)


def test_deleting_never_takes_the_files_of_others_away(tmp_path: Path) -> None:
    store = write(tmp_path / "kb", records(3))
    (tmp_path / "kb" / "notes.txt").write_text("mine")
    before = files(tmp_path / "kb")
    with pytest.raises(ConfigurationError, match=r"notes\.txt.*take away"):
        store.delete(["r1"])
    assert files(tmp_path / "kb") == before


def test_langchain_finds_an_index_by_its_name_after_a_change(tmp_path: Path) -> None:
    langchain(tmp_path / "kb", "questions")
    store = FaissStore(tmp_path / "kb")
    assert store.delete([next(iter(by_id(store)))]) == 1
    loaded = FAISS.load_local(
        str(tmp_path / "kb"), MODEL, "questions", allow_dangerous_deserialization=True
    )
    assert set(loaded.index_to_docstore_id.values()) == set(by_id(store))


def test_langchain_finds_an_index_under_the_name_that_was_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "kb", records(3, 8), layout="langchain", index_name="questions")
    loaded = FAISS.load_local(
        str(tmp_path / "kb"), MODEL, "questions", allow_dangerous_deserialization=True
    )
    assert set(loaded.index_to_docstore_id.values()) == {"r0", "r1", "r2"}
    assert FaissStore(tmp_path / "kb", index_name="questions").count() == 3


def test_an_index_of_another_name_is_never_taken_for_the_one_named(tmp_path: Path) -> None:
    langchain(tmp_path / "kb", "questions")
    other = FaissStore(tmp_path / "kb", index_name="answers", layout="langchain")
    with pytest.raises(NotFoundError, match=r"no answers\.faiss; there is questions\.faiss"):
        other.count()
    before = files(tmp_path / "kb")
    with pytest.raises(ConfigurationError, match="take away"):
        write(tmp_path / "kb", records(3, 8), index_name="answers", layout="langchain")
    assert files(tmp_path / "kb") == before


@pytest.mark.parametrize(("name", "layout"), [("questions", "plain"), ("../kb", "langchain")])
def test_a_name_that_cannot_be_kept_is_refused(name: str, layout: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="name"):
        write(tmp_path / "kb", records(3, 8), index_name=name, layout=layout)
    assert not list(tmp_path.iterdir())


def test_hand_written_files_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "kb").mkdir()
    index = faiss.IndexFlatIP(8)
    index.add(random_vectors(3, 8))
    faiss.write_index(index, str(tmp_path / "kb" / "my.index"))
    (tmp_path / "kb" / "docs.json").write_text(json.dumps([{"text": text} for text in "abc"]))
    store = FaissStore(tmp_path / "kb")
    assert store.delete([1]) == 1
    assert set(files(tmp_path / "kb")) == {"my.index", "docs.json", "vecferry.json"}
    assert [(id_, record.text) for id_, record in by_id(store).items()] == [(0, "a"), (2, "c")]


@pytest.mark.parametrize("what", ["several indexes", "vectors of images", "a graph"])
def test_a_llamaindex_folder_with_more_than_one_index_is_not_written_anew(
    what: str, tmp_path: Path
) -> None:
    context = StorageContext.from_defaults()
    nodes = [TextNode(id_=f"n{i}", text=f"text {i}") for i in range(3)]
    VectorStoreIndex(nodes, storage_context=context, embed_model=MockEmbedding(8))
    if what == "several indexes":
        SummaryIndex([TextNode(id_="s", text="a summary")], storage_context=context)
    if what == "vectors of images":
        context.vector_stores["image"].add([TextNode(id_="i", embedding=[1.0, 2.0])])
    if what == "a graph":
        context.graph_store.upsert_triplet("a", "knows", "b")
    context.persist(str(tmp_path / "kb"))
    before = files(tmp_path / "kb")
    store = FaissStore(tmp_path / "kb")
    assert set(by_id(store)) == {"n0", "n1", "n2"}
    with pytest.raises(UnsupportedError, match=what):
        store.delete(["n1"])
    assert files(tmp_path / "kb") == before


def test_nodes_keep_their_class(tmp_path: Path) -> None:
    nodes = [
        TextNode(id_="t", text="a text"),
        IndexNode(id_="x", text="an index", index_id="other"),
        ImageNode(id_="i", text="an image", image_url="http://host/image.png"),
    ]
    VectorStoreIndex(nodes, embed_model=MockEmbedding(8)).storage_context.persist(str(tmp_path / "kb"))
    copy = FaissStore(tmp_path / "kb")
    write(tmp_path / "copy", list(by_id(copy).values()), layout="llamaindex-simple")
    context = StorageContext.from_defaults(persist_dir=str(tmp_path / "copy"))
    found = load_index_from_storage(context, embed_model=MockEmbedding(8)).docstore.docs
    assert {name: node.to_dict() for name, node in found.items()} == {n.node_id: n.to_dict() for n in nodes}


@pytest.mark.parametrize("layout", ["llamaindex", "llamaindex-simple"])
@pytest.mark.parametrize(
    "odd",
    [{"id_": "other"}, {"metadata": 5}, {"text": "other"}, {"embedding": [1]}, {"class_name": 5}, "x"],
)
def test_what_stands_under_our_key_by_hand_never_changes_the_node(
    odd: object, layout: str, tmp_path: Path
) -> None:
    rows = records(2, _llamaindex=odd)
    assert by_id(write(tmp_path / "kb", rows, layout=layout)) == {row.id: row for row in rows}


def test_two_unfinished_upserts_live_beside_each_other(tmp_path: Path) -> None:
    """The first that ends is in the target; the other one sees that, and begins anew."""
    write(tmp_path / "kb", records(3, 8))
    marks = {}
    for job, seed in (("one", 1), ("two", 2)):
        store = FaissStore(tmp_path / "kb")
        store.prepare(schema(8), WriteMode.UPSERT)
        store.write(renamed(job, records(4, 8, seed)))
        marks[job] = json.loads(json.dumps(store.mark()))
        store.close()
    first = FaissStore(tmp_path / "kb")
    first.prepare(schema(8), WriteMode.RESUME)
    first.rewind(marks["one"])
    first.finish()
    first.close()
    assert set(by_id(first)) == {"r0", "r1", "r2", *(f"one r{i}" for i in range(4))}
    second = FaissStore(tmp_path / "kb")
    second.prepare(schema(8), WriteMode.RESUME)
    with pytest.raises(CorruptDataError, match="changed by another job"):
        second.rewind(marks["two"])
    second.prepare(schema(8), WriteMode.UPSERT)
    second.write(renamed("two", records(4, 8, 2)))
    second.finish()
    second.close()
    wanted = (("r", 3), ("one r", 4), ("two r", 4))
    assert set(by_id(second)) == {f"{name}{i}" for name, n in wanted for i in range(n)}


def renamed(job: str, rows: list[VectorRecord]) -> RecordBatch:
    return RecordBatch.from_records([row.model_copy(update={"id": f"{job} {row.id}"}) for row in rows])
