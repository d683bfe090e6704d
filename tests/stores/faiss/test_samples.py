"""Every sample folder that the frameworks saved equals its truth, and survives every other layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from known import some
from stores.faiss.support import NODE, SAMPLES, WORDNET, truth
from vecferry.model import Metric, VectorRecord
from vecferry.ports import WriteMode
from vecferry.stores.faiss import FaissStore

FOLDERS = {
    "langchain_faiss": ("langchain", Metric.L2),
    "langchain_faiss_0_2": ("langchain", Metric.L2),
    "langchain_faiss_0_0_200": ("langchain", Metric.L2),
    "llamaindex_faiss": ("llamaindex", Metric.IP),
    "llamaindex_faiss_map": ("llamaindex-map", Metric.IP),
    "llamaindex_simple": ("llamaindex-simple", Metric.COSINE),
    "raw_faiss_pkl": ("raw-pkl", Metric.IP),
}
LAYOUTS = (
    *("plain", "langchain", "llamaindex", "llamaindex-map", "llamaindex-simple"),
    *("raw-pkl", "raw-json", "raw-jsonl"),
)


def read(store: FaissStore) -> list[VectorRecord]:
    return [record for batch in store.scan(batch_size=33) for record in batch.records()]


def assert_truth(found: list[VectorRecord], *, relations: bool) -> None:
    assert len(found) == 200
    for record, wanted in zip(found, truth(), strict=True):
        metadata = dict(record.metadata)
        node = metadata.pop(NODE, None)
        assert (record.id, record.text, metadata) == (wanted["id"], wanted["text"], wanted["metadata"])
        assert some(record.vector).tobytes() == wanted["vector"].tobytes()
        # Every sample node was cut from a document named after its source file.
        assert node == ({"ref_doc_id": f"src-{metadata['source']}"} if relations else None)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_sample_is_recognised_and_equals_its_truth(folder: str) -> None:
    layout, metric = FOLDERS[folder]
    store = FaissStore(SAMPLES / folder)
    schema = store.describe()
    assert (schema.layout, schema.count, schema.losses) == (layout, 200, ())
    assert (schema.field().metric, schema.field().dim) == (metric, 384)
    assert schema.has_text and schema.metadata_types["tags"] == "list"
    assert_truth(read(store), relations=layout.startswith("llamaindex"))


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("folder", ["langchain_faiss", "llamaindex_faiss_map", "raw_faiss_pkl"])
def test_a_sample_survives_every_layout(folder: str, target: str, tmp_path: Path) -> None:
    source, sink = FaissStore(SAMPLES / folder), FaissStore(tmp_path / "kb", layout=target)
    sink.prepare(source.describe(), WriteMode.CREATE)
    for batch in source.scan(batch_size=64):
        sink.write(batch)
    sink.finish()
    again = FaissStore(tmp_path / "kb")
    assert again.describe().layout == target
    assert again.describe().field().metric == source.describe().field().metric
    assert_truth(read(again), relations=folder.startswith("llamaindex"))


def test_the_index_file_itself_may_be_named() -> None:
    for path in ("langchain_faiss/index.faiss", "llamaindex_faiss/default__vector_store.json"):
        assert_truth(read(FaissStore(SAMPLES / path)), relations=path.startswith("llamaindex"))


def test_an_index_alone_has_its_row_numbers_as_ids() -> None:
    store = FaissStore(SAMPLES / "langchain_faiss", layout="none")
    batch = next(store.scan(batch_size=7))
    assert batch.ids.ints is not None and batch.ids.tolist() == list(range(7))
    assert batch.texts is None and store.describe().id_type == "int"


def test_wordnet_is_read_in_batches_of_any_size() -> None:
    store = FaissStore(WORDNET)
    assert store.count() == 2000
    one = [record.id for batch in store.scan(batch_size=2000) for record in batch.records()]
    many = [record.id for batch in store.scan(batch_size=17) for record in batch.records()]
    assert one == many and len(set(one)) == 2000
    picked = store.fetch([one[1999], "nobody", one[3]])
    assert picked.id_list == [one[1999], one[3]]
    hit = store.search(picked.vectors[""].values[0], 1)[0]
    assert hit.id == one[1999] and hit.score == 0.0
