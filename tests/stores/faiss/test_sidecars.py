"""Which record belongs to which vector: measured ids, holes, shapes of sidecars, what is not carried."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vecferry as vf
from known import some
from stores.faiss.support import by_id, random_vectors
from vecferry.errors import CorruptDataError, LossRefusedError, NotFoundError, PlanError
from vecferry.stores.faiss import FaissStore

VECTORS = random_vectors(4, 8)


def index(folder: Path, name: str = "kb.faiss", vectors: Any = VECTORS, ids: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    made: Any = faiss.IndexFlatIP(vectors.shape[1])
    if ids is not None:
        made = faiss.IndexIDMap2(made)
        made.add_with_ids(vectors, np.array(ids))
    else:
        made.add(vectors)
    faiss.write_index(made, str(folder / name))
    return folder


def losses(store: FaissStore) -> str:
    return " / ".join(str(loss) for loss in store.describe().losses)


# -- LangChain --------------------------------------------------------------------------------


def langchain(folder: Path, n: int = 6) -> Any:
    from langchain_community.vectorstores import FAISS
    from langchain_core.embeddings import DeterministicFakeEmbedding

    return FAISS.from_texts(
        [f"p{i}" for i in range(n)], DeterministicFakeEmbedding(size=8), ids=[f"id-{i}" for i in range(n)]
    )


def test_two_rows_that_name_one_document_are_refused_with_its_id(tmp_path: Path) -> None:
    store = langchain(tmp_path)
    store.index_to_docstore_id[5] = "id-4"
    store.save_local(str(tmp_path / "lc"))
    with pytest.raises(PlanError, match="id-4"):
        vf.migrate(f"faiss:{tmp_path}/lc", f"jsonl:{tmp_path}/out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    assert "1 × documents" in losses(FaissStore(tmp_path / "lc"))  # the one that no row names any more


def test_the_live_part_of_a_langchain_folder_with_holes_can_be_had(tmp_path: Path) -> None:
    store = langchain(tmp_path)
    want = {f"id-{i}": store.index.reconstruct(i).tolist() for i in (0, 2, 3, 5)}
    del store.docstore._dict["id-1"]  # a document without which its row dangles
    store.index_to_docstore_id[4] = "id-5"  # an earlier vector of a document that came again
    store.save_local(str(tmp_path / "lc"))
    with pytest.raises(CorruptDataError, match=r"id-1.*live=1"):
        FaissStore(tmp_path / "lc").describe()
    live = FaissStore(tmp_path / "lc", live="1")
    assert {id_: some(record.vector).tolist() for id_, record in by_id(live).items()} == want
    assert live.count() == 4 and live.fetch(["id-5"]).id_list == ["id-5"]
    assert "1 × vectors have no record" in losses(live) and "1 × vectors belong to" in losses(live)
    assert live.search(store.index.reconstruct(5), 1)[0].id == "id-5"


# -- LlamaIndex -------------------------------------------------------------------------------


def llamaindex(folder: Path) -> tuple[Any, Any]:
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.core.embeddings import MockEmbedding
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.faiss import FaissVectorStore

    class Words(MockEmbedding):  # type: ignore[misc]
        def _get_text_embedding(self, text: str) -> list[float]:
            return [float(x) for x in random_vectors(1, 8, sum(text.encode()))[0]]

    nodes = [TextNode(id_=f"n{i}", text=f"chunk {i}") for i in range(6)]
    context = StorageContext.from_defaults(vector_store=FaissVectorStore(faiss.IndexFlatL2(8)))
    return VectorStoreIndex(nodes, storage_context=context, embed_model=Words(embed_dim=8)), nodes


def test_nodes_that_were_inserted_again_are_refused_or_the_later_vector_is_taken(tmp_path: Path) -> None:
    made, nodes = llamaindex(tmp_path)
    again = [nodes[2].model_copy(update={"text": "chunk 2, mended", "embedding": None})]
    made.insert_nodes(again)
    made.storage_context.persist(str(tmp_path / "li"))
    with pytest.raises(PlanError, match="n2"):
        vf.migrate(f"faiss:{tmp_path}/li", f"jsonl:{tmp_path}/out.jsonl")
    report = vf.migrate(f"faiss:{tmp_path}/li?live=1", f"jsonl:{tmp_path}/out.jsonl")
    rows = {r["id"]: r for r in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    stored = faiss.read_index(str(tmp_path / "li" / "default__vector_store.json"))
    assert report.ok and len(rows) == 6 and rows["n2"]["text"] == "chunk 2, mended"
    assert np.array_equal(np.float32(rows["n2"]["vector"]), stored.reconstruct(6))


def test_nodes_without_a_vector_are_named(tmp_path: Path) -> None:
    made, _ = llamaindex(tmp_path)
    from llama_index.core.schema import TextNode

    made.docstore.add_documents([TextNode(id_="orphan", text="left behind")])
    made.storage_context.persist(str(tmp_path / "li"))
    assert "without a vector" in losses(FaissStore(tmp_path / "li"))
    with pytest.raises(LossRefusedError, match="orphan"):
        vf.migrate(f"faiss:{tmp_path}/li", f"jsonl:{tmp_path}/out.jsonl", lossy="refuse")


# -- hand-written and from smaller libraries --------------------------------------------------

TRUTH = {key: (key.upper(), {"n": i}) for i, key in enumerate("abcd")}
RECORDS = {key: {"text": text, **metadata} for key, (text, metadata) in TRUTH.items()}
ROWS = [{"id": key, **row} for key, row in RECORDS.items()]


def seen(store: FaissStore) -> dict[Any, tuple[str | None, dict[str, Any]]]:
    records = by_id(store)
    assert [some(r.vector).tolist() for r in records.values()] == VECTORS.tolist()
    return {id_: (r.text, r.metadata) for id_, r in records.items()}


SHAPES: dict[str, tuple[str, Any]] = {
    "semantica": ("kb.faiss.metadata.json", {"vector_ids": list("abcd"), "metadata": RECORDS}),
    "list of chunks": ("chunks.json", ROWS),
    "one list": ("documents.json", {"documents": ROWS, "model": "m"}),
    "parallel lists": (
        "texts.json",
        {"ids": list("abcd"), "texts": list("ABCD"), "metadatas": [{"n": i} for i in range(4)]},
    ),
    "index_to_id": (
        "docstore.json",
        {"docstore": RECORDS, "index_to_id": {str(i): key for i, key in enumerate("abcd")}},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["json", "pkl"])
def test_a_shape_that_is_clear_is_read(shape: str, kind: str, tmp_path: Path) -> None:
    name, body = SHAPES[shape]
    path = index(tmp_path / "kb") / name
    path = path if kind == "json" else path.with_suffix(".pkl")
    path.write_bytes(pickle.dumps(body) if kind == "pkl" else json.dumps(body).encode())
    store = FaissStore(tmp_path / "kb")
    assert seen(store) == TRUTH
    assert path.name in str(vf.plan(f"faiss:{tmp_path}/kb", f"jsonl:{tmp_path}/out.jsonl"))


def test_mem0_keeps_a_pickle_of_payloads_and_names_with_holes_after_deletions(tmp_path: Path) -> None:
    payloads = {key: {"data": text, **metadata} for key, (text, metadata) in TRUTH.items() if key != "b"}
    names = {i: key for i, key in enumerate("abcd") if key != "b"}
    (index(tmp_path / "kb", "mem.faiss") / "mem.pkl").write_bytes(pickle.dumps((payloads, names)))
    with pytest.raises(CorruptDataError, match="live=1"):
        FaissStore(tmp_path / "kb").describe()
    records = by_id(FaissStore(tmp_path / "kb", live=True))
    assert {id_: (r.text, r.metadata) for id_, r in records.items()} == {
        k: v for k, v in TRUTH.items() if k != "b"
    }
    assert some(records["c"].vector).tolist() == VECTORS[2].tolist()


def test_haystack_keeps_documents_in_sqlite(tmp_path: Path) -> None:
    folder = index(tmp_path / "kb", "index.faiss")
    (folder / "index.json").write_text('{"similarity": "dot_product"}')
    with sqlite3.connect(folder / "faiss_document_store.db") as db:
        db.execute("CREATE TABLE document (id TEXT, content TEXT, vector_id TEXT)")
        db.execute("CREATE TABLE meta_document (document_id TEXT, name TEXT, value TEXT)")
        for number, key in reversed(list(enumerate("abcd"))):
            db.execute("INSERT INTO document VALUES (?, ?, ?)", (key, key.upper(), str(number)))
            db.execute("INSERT INTO meta_document VALUES (?, 'n', ?)", (key, str(number)))
    want = {key: (text, {"n": str(m["n"])}) for key, (text, m) in TRUTH.items()}
    assert seen(FaissStore(folder)) == want


def test_tables_and_an_array_of_ids_are_read_too(tmp_path: Path) -> None:
    folder = index(tmp_path / "csv")
    (folder / "meta.csv").write_text(
        "id,text,n\n" + "".join(f"{r['id']},{r['text']},{r['n']}\n" for r in ROWS)
    )
    assert seen(FaissStore(folder)) == {k: (t, {"n": str(m["n"])}) for k, (t, m) in TRUTH.items()}
    folder = index(tmp_path / "parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "mine.parquet")
    assert seen(FaissStore(folder, sidecar="mine.parquet")) == TRUTH
    folder = index(tmp_path / "npy")
    (folder / "texts.json").write_text(json.dumps(list("ABCD")))
    np.save(folder / "ids.npy", np.array(list("abcd")))
    assert seen(FaissStore(folder)) == {key: (text, {}) for key, (text, _) in TRUTH.items()}


def test_a_file_beside_an_index_that_is_not_read_is_named(tmp_path: Path) -> None:
    folder = index(tmp_path / "kb")
    (folder / "my_own_name.json").write_text(json.dumps(ROWS))
    (folder / "README.md").write_text("about")
    plan = str(vf.plan(f"faiss:{folder}", f"jsonl:{tmp_path}/out.jsonl"))
    assert "my_own_name.json" in plan and "?sidecar=FILE" in plan and "README" not in plan
    with pytest.raises(LossRefusedError, match=r"my_own_name\.json"):
        vf.migrate(f"faiss:{folder}", f"jsonl:{tmp_path}/out.jsonl", lossy="refuse")
    assert seen(FaissStore(folder, sidecar="my_own_name.json")) == TRUTH
    with pytest.raises(NotFoundError, match=r"gone\.json"):
        FaissStore(folder, sidecar="gone.json").describe()


def test_numbers_may_be_negative(tmp_path: Path) -> None:
    own = [-5, 3, -9, 0]
    rows = {str(number): {"text": key, "id": key} for number, key in zip(own, "abcd", strict=True)}
    folder = index(tmp_path / "kb", ids=own)
    (folder / "metadata.json").write_text(json.dumps(dict(reversed(rows.items()))))
    assert {id_: text for id_, (text, _) in seen(FaissStore(folder)).items()} == dict(
        zip("abcd", "abcd", strict=True)
    )


def test_a_mapping_by_ids_beside_numbers_of_the_index_is_refused(tmp_path: Path) -> None:
    folder = index(tmp_path / "kb", ids=[7, 5, 9, 1])
    (folder / "metadata.json").write_text(json.dumps(RECORDS))
    with pytest.raises(CorruptDataError, match="keyed by these numbers"):
        FaissStore(folder).describe()


def test_a_mapping_by_ids_in_row_order_is_said_in_the_plan(tmp_path: Path) -> None:
    folder = index(tmp_path / "kb")
    (folder / "metadata.json").write_text(json.dumps(RECORDS))
    store = FaissStore(folder)
    assert seen(store) == TRUTH and "the order of the file is taken" in losses(store)


def test_ids_that_only_some_records_have_are_said_in_the_plan(tmp_path: Path) -> None:
    folder = index(tmp_path / "kb")
    (folder / "metadata.json").write_text(json.dumps([ROWS[0], *({"text": "t"} for _ in range(3))]))
    store = FaissStore(folder)
    assert list(by_id(store)) == [0, 1, 2, 3] and "not all records have one" in losses(store)
    assert by_id(store)[0].metadata["id"] == "a"


def test_an_idmap_over_an_ivf_is_read_only_where_its_rows_are_a_permutation(tmp_path: Path) -> None:
    quantizer = faiss.IndexFlatL2(8)
    inner = faiss.IndexIVFFlat(quantizer, 8, 1)
    vectors = random_vectors(60, 8)
    inner.train(vectors)
    outer = faiss.IndexIDMap(inner)
    inner.add_with_ids(vectors, np.arange(60) + 1000)
    outer.ntotal = 60
    faiss.copy_array_to_vector(np.arange(60), outer.id_map)
    faiss.write_index(outer, str(tmp_path / "x.faiss"))
    with pytest.raises(CorruptDataError, match="write the index anew"):
        by_id(FaissStore(tmp_path / "x.faiss"))


def test_lists_on_disk_are_found_where_the_index_lies_now(tmp_path: Path, monkeypatch: Any) -> None:
    from faiss.contrib.ondisk import merge_ondisk

    vectors = random_vectors(500, 8)
    folder = tmp_path / "made"
    folder.mkdir()
    monkeypatch.chdir(folder)
    empty = faiss.index_factory(8, "IVF8,Flat")
    empty.train(vectors)
    full = faiss.clone_index(empty)
    full.add(vectors)
    faiss.write_index(full, "block")
    merge_ondisk(empty, ["block"], "lists.ivfdata")
    faiss.write_index(empty, "big.index")
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "moved")
    data = tmp_path / "moved" / "lists.ivfdata"
    os.utime(data, ns=(1, 1))
    records = by_id(FaissStore(tmp_path / "moved" / "big.index"))
    assert all(some(records[i].vector).tolist() == vectors[i].tolist() for i in range(500))
    assert data.stat().st_mtime_ns == 1  # nothing was written
