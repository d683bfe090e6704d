"""Beyond the size at which everything is compared: the inverted file, on real vectors."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

import vecferry as vf
from dedupe.runs import begin, record, run
from vecferry.dedupe import Dedupe, similar
from vecferry.dedupe.exact import KeyLedger
from vecferry.model import DenseColumn, RecordBatch
from vecferry.ports import InFlightBatch, Partition

SAMPLE = Path(__file__).parents[2] / "examples" / "data" / "wordnet_langchain"
N = 3000


@pytest.fixture(scope="module")
def vectors():
    """Mixtures of real embeddings; each of the last 300 is a noisy copy of one before."""
    base = np.concatenate([b.vectors[""].values for b in vf.connect(f"faiss:{SAMPLE}").scan()])
    random = np.random.default_rng(3)
    made = base[random.integers(0, len(base), N)] + base[random.integers(0, len(base), N)]
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    noise = random.normal(size=(300, base.shape[1])) / np.sqrt(base.shape[1])
    made[-300:] = made[random.permutation(N - 300)[:300]] + 0.15 * noise
    return made.astype(np.float32)


def parcels(vectors, size):
    for start in range(0, len(vectors), size):
        part = vectors[start : start + size]
        yield InFlightBatch(
            RecordBatch(np.arange(start, start + len(part)), {"": DenseColumn(part)}),
            Partition("0"),
            start,
            len(part),
        )


def kept(stage, source, connection):
    return [r.id for r in run(stage, source, connection)]


@pytest.fixture
def small_exact(monkeypatch):
    """The inverted file takes over early, and grows twice."""
    monkeypatch.setattr(similar, "EXACT", 300)
    monkeypatch.setattr(similar, "_BLOCK", 256)


def test_the_index_finds_what_an_exhaustive_comparison_finds(vectors, small_exact, tmp_path):
    connection = sqlite3.connect(tmp_path / "job.sqlite")
    stage = begin(Dedupe(by="similar", threshold=0.98), tmp_path, connection, None)
    found = set(range(N)) - set(kept(stage, parcels(vectors, 500), connection))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = unit @ unit.T >= 0.98
    truth = set()
    stays = np.zeros(N, dtype=bool)
    for row in range(N):
        stays[row] = not (near[row, :row] & stays[:row]).any()
        truth |= set() if stays[row] else {row}
    assert len(truth) >= 250
    assert len(found & truth) / len(truth) >= 0.99
    assert found <= truth
    report = stage.report(connection).rules[0]
    assert report.removed == len(found)
    assert report.recall is None or report.recall > 0.9


def test_batches_and_a_restart_change_nothing_beyond_the_exact_size(vectors, small_exact, tmp_path):
    rule = Dedupe(by="similar", threshold=0.95)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    connection = sqlite3.connect(tmp_path / "a/job.sqlite")
    stage = begin(rule, tmp_path / "a", connection, None)
    whole = kept(stage, parcels(vectors, 1000), connection)
    connection = sqlite3.connect(tmp_path / "b/job.sqlite")
    every = list(parcels(vectors, 300))
    first = kept(begin(rule, tmp_path / "b", connection, None), every[:6], connection)
    second = kept(begin(rule, tmp_path / "b", connection, None), every[6:], connection)
    assert first + second == whole


def test_planted_copies_of_real_texts_are_found_by_minhash(tmp_path):
    texts = [r.text for r in vf.connect(f"faiss:{SAMPLE}").records()][:400]
    long = [f"{a} {b} {c}" for a, b, c in zip(texts, texts[1:], texts[2:], strict=False)][::3]
    copies = [text.upper() + " (copy)" for text in long[::4]]
    records = [record(i, text) for i, text in enumerate(long + copies)]
    batch = RecordBatch.from_records(records)
    connection = sqlite3.connect(":memory:")
    stage = begin(Dedupe(by="minhash", threshold=0.8), tmp_path, connection, None)
    stay = kept(stage, [InFlightBatch(batch, Partition("0"), 0, len(batch))], connection)
    removed = set(range(len(records))) - set(stay)
    planted = set(range(len(long), len(records)))
    assert len(removed & planted) / len(planted) >= 0.95
    assert removed <= planted


def test_the_ledger_is_a_map_of_first_appearances(monkeypatch):
    monkeypatch.setattr("vecferry.dedupe.exact._SMALLEST_CAP", 64)
    random = np.random.default_rng(1)
    ledger = KeyLedger(memory_keys=300)
    known: dict[tuple[int, ...], int] = {}
    for _ in range(60):
        keys = random.integers(0, 900, (50, 1)).astype(np.uint64) * np.array([[2**50, 3]], dtype=np.uint64)
        found = ledger.match(keys).tolist()
        for key, entry in zip(map(tuple, keys.tolist()), found, strict=True):
            assert entry == known.get(key, -1)
            known.setdefault(key, len(known))
    assert len(ledger) == len(known)
    assert ledger.nbytes < 24 * len(known)  # some of it lies on disk by now


def test_a_key_takes_24_bytes():
    ledger = KeyLedger()
    ledger.match(np.random.default_rng(0).integers(0, 2**64, (100_000, 2), dtype=np.uint64))
    assert ledger.nbytes == 24 * len(ledger)
