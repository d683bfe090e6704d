"""Every kind of index gives back the right ids, metric and vectors, or says that it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from known import some
from stores.faiss.support import random_vectors
from vecferry.errors import UnsupportedError
from vecferry.model import DType, Metric
from vecferry.stores.faiss import FaissStore

DIM, N = 32, 400
EXACT = ["Flat", "IDMap,Flat", "IDMap2,Flat", "IVF8,Flat", "IDMap2,IVF8,Flat", "HNSW8", "IDMap,HNSW8"]
EXACT += ["NSG8,Flat", "SQ8,RFlat", "IVF8,SQ8,RFlat", "IDMap,SQ8,RFlat", "IVF8_HNSW8,Flat"]
LOSSY = {  # factory → the least mean cosine with the originals
    "SQ8": 0.999,
    "SQfp16": 0.999,
    "SQ4": 0.98,
    "PQ8x4": 0.6,
    "PQ8x4fs": 0.6,
    "LSH": 0.3,
    "RQ2x4": 0.3,
    "IVF8,SQ8": 0.999,
    "IVF8,PQ8x4np": 0.6,
    "IVF8,PQ8x4fs": 0.6,
    "IVF8,PQ8x4fsr": 0.6,
    "PCA16,Flat": 0.6,
    "PCA16,IVF8,SQ8": 0.6,
    "OPQ4,PQ4x4": 0.4,
    "RR32,Flat": 0.999,
    "IDMap2,PCA16,SQ8": 0.6,
    "HNSW8,SQ8": 0.999,
    "RaBitQ": 0.6,
    "IVF8,RaBitQ": 0.6,
    "SQ8,Refine(SQfp16)": 0.999,
}


@pytest.fixture(scope="module")
def vectors() -> Any:
    return random_vectors(N, DIM)


def build(factory: str, vectors: Any, ids: Any, metric: int = faiss.METRIC_L2) -> Any:
    index = faiss.index_factory(DIM, factory, metric)
    index.train(vectors)
    if ids is None and not isinstance(index, faiss.IndexIDMap):
        index.add(vectors)
    else:
        index.add_with_ids(vectors, np.arange(N) if ids is None else ids)
    return index


def own_ids() -> Any:
    return np.arange(N)[::-1] * 10**10 + 5


def read(path: Path) -> tuple[Any, Any, Any]:
    store = FaissStore(path)
    batches = list(store.scan(batch_size=37))
    ids = np.concatenate([batch.ids for batch in batches])
    rows = np.concatenate([batch.vectors[""].values for batch in batches])
    order = np.argsort(ids)
    return store, ids[order], rows[order]


def with_ids(factory: str) -> list[Any]:
    takes = factory.startswith(("IDMap", "IVF", "PCA16,IVF")) and "RFlat" not in factory
    return [None, own_ids()] if takes or factory == "IDMap,SQ8,RFlat" else [None]


@pytest.mark.parametrize("factory", EXACT)
def test_exact_indexes_give_back_every_bit(factory: str, vectors: Any, tmp_path: Path) -> None:
    for ids in with_ids(factory):
        faiss.write_index(build(factory, vectors, ids), str(tmp_path / "i.faiss"))
        store, got, rows = read(tmp_path / "i.faiss")
        wanted = np.arange(N) if ids is None else ids
        assert np.array_equal(got, np.sort(wanted))
        assert np.array_equal(rows, vectors[np.argsort(wanted)])
        assert store.describe().losses == () and store.count() == N


@pytest.mark.parametrize("factory", LOSSY)
def test_lossy_indexes_come_back_close_and_are_named(factory: str, vectors: Any, tmp_path: Path) -> None:
    for ids in with_ids(factory):
        faiss.write_index(build(factory, vectors, ids), str(tmp_path / "i.faiss"))
        store, got, rows = read(tmp_path / "i.faiss")
        wanted = np.arange(N) if ids is None else ids
        assert np.array_equal(got, np.sort(wanted))
        original = vectors[np.argsort(wanted)]
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(original, axis=1)
        assert ((rows * original).sum(axis=1) / lengths).mean() > LOSSY[factory]
        (loss,) = store.describe().losses
        assert (loss.kind, loss.where, loss.count) == ("vector", "source", N)


@pytest.mark.parametrize(
    ("number", "metric"),
    [(faiss.METRIC_L2, "l2"), (faiss.METRIC_INNER_PRODUCT, "ip"), (faiss.METRIC_L1, "l1")],
)
@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IDMap,Flat"])
def test_the_metric_is_the_index_own(
    number: int, metric: str, factory: str, vectors: Any, tmp_path: Path
) -> None:
    index = build(factory, vectors, None, number)
    faiss.write_index(index, str(tmp_path / "i.faiss"))
    store, _, rows = read(tmp_path / "i.faiss")
    assert store.describe().field().metric == metric
    assert np.array_equal(rows, vectors)
    _, neighbours = index.search(vectors[5:6], 3)
    assert [hit.id for hit in store.search(vectors[5], 3)] == neighbours[0].tolist()


def test_a_metric_without_counterpart_is_named_and_can_be_overridden(vectors: Any, tmp_path: Path) -> None:
    faiss.write_index(build("Flat", vectors, None, faiss.METRIC_Canberra), str(tmp_path / "i.faiss"))
    with pytest.raises(UnsupportedError, match="metric="):
        FaissStore(tmp_path / "i.faiss").describe()
    store = FaissStore(tmp_path / "i.faiss", metric="cosine")
    assert store.describe().field().metric is Metric.COSINE and store.count() == N


@pytest.mark.parametrize("factory", ["IVF8,RaBitQfs", "IVF8,ITQ16,SH2.5"])
def test_what_faiss_cannot_give_back_is_refused(factory: str, vectors: Any, tmp_path: Path) -> None:
    faiss.write_index(build(factory, vectors, None), str(tmp_path / "i.faiss"))
    with pytest.raises(UnsupportedError, match="original vectors"):
        FaissStore(tmp_path / "i.faiss").describe()


@pytest.mark.parametrize("kind", ["flat", "idmap", "ivf", "hnsw"])
def test_binary_indexes_are_bits_under_hamming(kind: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (N, 8), dtype=np.uint8)
    ids = np.arange(N)
    flat = faiss.IndexBinaryFlat(64)
    index: Any = flat
    if kind == "flat":
        pass
    elif kind == "idmap":
        index, ids = faiss.IndexBinaryIDMap(flat), np.arange(N) * 3
    elif kind == "ivf":
        index = faiss.IndexBinaryIVF(flat, 64, 4)
        index.train(rows)
    else:
        index = faiss.IndexBinaryHNSW(64, 8)
    index.add_with_ids(rows, ids) if kind == "idmap" else index.add(rows)
    faiss.write_index_binary(index, str(tmp_path / "i.faiss"))
    store, got, found = read(tmp_path / "i.faiss")
    field = store.describe().field()
    assert (field.dtype, field.metric, field.dim) == (DType.BIT, Metric.HAMMING, 64)
    assert np.array_equal(got, ids) and np.array_equal(found, rows)
    hits = store.search(rows[9], 2)
    assert hits[0].id == ids[9] and hits[0].score == 0


def test_index_settings_are_carried(vectors: Any, tmp_path: Path) -> None:
    faiss.write_index(build("IVF8,Flat", vectors, None), str(tmp_path / "ivf.faiss"))
    faiss.write_index(build("HNSW8", vectors, None), str(tmp_path / "hnsw.faiss"))
    assert FaissStore(tmp_path / "ivf.faiss").describe().field().index["ivf_lists"] == 8
    assert FaissStore(tmp_path / "hnsw.faiss").describe().field().index["hnsw_m"] == 8


def test_search_with_own_ids_in_an_ivf_finds_the_right_records(vectors: Any, tmp_path: Path) -> None:
    ids = own_ids()
    index = build("IVF8,Flat", vectors, ids)
    faiss.write_index(index, str(tmp_path / "i.faiss"))
    index.nprobe = 8
    distances, wanted = index.search(vectors[17:18], 5)
    hits = FaissStore(tmp_path / "i.faiss").search(vectors[17], 5)
    assert [hit.id for hit in hits] == wanted[0].tolist()
    np.testing.assert_allclose([-some(hit.score) for hit in hits], np.sqrt(distances[0]), atol=1e-4)


def test_a_list_beside_an_ivf_belongs_to_the_numbers_not_to_the_positions(
    vectors: Any, tmp_path: Path
) -> None:
    faiss.write_index(build("IVF8,Flat", vectors, None), str(tmp_path / "faiss.index"))
    rows = [{"id": f"d{i}", "text": f"t{i}"} for i in range(N)]
    (tmp_path / "metadata.json").write_text(json.dumps(rows))
    for batch in FaissStore(tmp_path).scan(batch_size=50):
        for record in batch.records():
            assert np.array_equal(some(record.vector), vectors[int(record.id[1:])])


def test_flat_files_need_no_faiss(vectors: Any, tmp_path: Path) -> None:
    faiss.write_index(build("IDMap2,Flat", vectors, own_ids()), str(tmp_path / "i.faiss"))
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "from vecferry.stores.faiss import FaissStore\n"
        f"print(sum(map(len, FaissStore({str(tmp_path / 'i.faiss')!r}).scan())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(N)


@pytest.mark.parametrize("factory", ["SQ8", "IVF4,PQ4"])
def test_what_faiss_stores_but_cannot_search_is_searched_here(
    factory: str, vectors: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_L1)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    store = FaissStore(tmp_path)
    stored = next(iter(store.scan())).vectors[""].values[7]
    assert store.search(stored, 1)[0].score == 0
