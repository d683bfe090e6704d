"""Dedupe: records a second of the exact rules and of ``similar``, with memory a key and recall.

python benchmarks/bench_dedupe.py [exact] [first] [minhash] [similar]

The goal of the exact rules is 300,000 records/s, of ``similar`` 20,000 records/s on 100,000 × 384 with a
recall of 0.99. Rates belong to a machine, so the exact rules are also shown beside a yardstick: BLAKE2b of
the same texts and nothing else.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
from common import Side, compare

import vecferry as vf
from vecferry.dedupe import Dedupe, DedupeStage
from vecferry.dedupe.exact import KeyLedger
from vecferry.model import DenseColumn, RecordBatch
from vecferry.ports import InFlightBatch, Partition

N = 500_000
SOURCE = Path(__file__).parents[1] / "examples" / "data" / "wordnet_langchain"


def glosses() -> list[str]:
    return [record.text or "" for record in vf.connect(f"faiss:{SOURCE}").records()]


def batches(n: int, vectors: np.ndarray | None = None) -> list[RecordBatch]:
    texts = glosses()
    every = [f"{texts[i % len(texts)]} {i if i % 10 else 0}" for i in range(n)]
    made = []
    for start in range(0, n, 1024):
        rows = range(start, min(n, start + 1024))
        made.append(
            RecordBatch(
                ids=[f"doc-{i}" for i in rows],
                texts=[every[i] for i in rows],
                metadata=[{"source": f"s{i % 5000}", "page": i // 5000} for i in rows],
                vectors={} if vectors is None else {"": DenseColumn(vectors[rows.start : rows.stop])},
            )
        )
    return made


def through(rule: Dedupe, made: list[RecordBatch]) -> int:
    """The whole stage: keys, ledger, and the durable log in SQLite."""
    with tempfile.TemporaryDirectory() as folder:
        state = sqlite3.connect(f"{folder}/job.sqlite")
        state.execute("PRAGMA journal_mode = WAL")
        stage = DedupeStage(rule)
        stage.bind_job(Path(folder))
        stage.restore(state)
        for number, batch in enumerate(made):
            for effect in stage.apply(
                InFlightBatch(batch, Partition("0"), number, len(batch))
            ).commit_hooks:
                effect(state)
            if number % 100 == 0:
                state.commit()
        state.commit()
    return sum(len(batch) for batch in made)


def exact() -> None:
    made = batches(N)
    messages = [text.encode() for batch in made for text in batch.text_list]

    def yardstick() -> int:
        return len([blake2b(message, digest_size=16).digest() for message in messages])

    rules = [
        Dedupe(by="id"),
        Dedupe(by="text"),
        Dedupe(by="text", normalize=True),
        Dedupe(by="metadata:source,page"),
    ]
    for rule in rules:
        compare(
            f"dedupe by {rule.label}, {N:,} records, ledger durable in SQLite",
            Side("BLAKE2b of the texts, nothing else", yardstick),
            Side("DedupeStage", lambda rule=rule: through(rule, made)),
            goal=0.15,
            rounds=3,
        )


def twice(rule: Dedupe, made: list[RecordBatch]) -> int:
    """The first pass, and its decisions applied to a second reading."""
    inflights = [
        InFlightBatch(batch, Partition("0"), number, len(batch)) for number, batch in enumerate(made)
    ]
    with tempfile.TemporaryDirectory() as folder:
        stage = DedupeStage(rule)
        stage.bind_job(Path(folder))
        stage.prepass(iter(inflights))
        for inflight in inflights:
            stage.apply(inflight)
    return sum(len(batch) for batch in made)


def first(n: int = 200_000) -> None:
    made = batches(n)
    messages = [text.encode() for batch in made for text in batch.text_list]

    def yardstick() -> int:
        return len([blake2b(message, digest_size=16).digest() for message in messages])

    for rule in (Dedupe(by="id", keep="last"), Dedupe(by="text", keep="last")):
        compare(
            f"dedupe by {rule.label}, keep last, {n:,} records, first pass and second reading",
            Side(
                "BLAKE2b of the texts, nothing else", lambda: len([blake2b(m).digest() for m in messages])
            ),
            Side("DedupeStage", lambda rule=rule: twice(rule, made)),
            goal=0.12,
            rounds=3,
        )


def memory() -> None:
    ledger, random = KeyLedger(), np.random.default_rng(0)
    for _ in range(3000):
        ledger.match(random.integers(0, 2**64, (1000, 2), dtype=np.uint64))
    print(f"ledger: {ledger.nbytes / len(ledger):.1f} bytes a key of {len(ledger):,}  (goal ≤ 32)\n")


def minhash() -> None:
    """Short texts, a tenth of them copies but for their last word, through the whole stage."""
    made = batches(50_000)
    start = time.perf_counter()
    n = through(Dedupe(by="minhash"), made)
    print(f"minhash ≥ 0.85: {n / (time.perf_counter() - start):,.0f} texts/s\n")


def similar(n: int = 100_000) -> None:
    """Mixtures of pairs of real embeddings, a tenth replaced by noisy copies of others."""
    base = np.concatenate([b.vectors[""].values for b in vf.connect(f"faiss:{SOURCE}").scan()])
    random = np.random.default_rng(0)
    vectors = base[random.integers(0, len(base), n)] + base[random.integers(0, len(base), n)]
    vectors += random.normal(size=vectors.shape) * (0.5 / np.sqrt(base.shape[1]))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    places = random.permutation(n)[: n // 5]
    first, copies = np.sort(places.reshape(2, -1), axis=0)
    noise = random.normal(size=(len(first), base.shape[1])) / np.sqrt(base.shape[1])
    vectors[copies] = vectors[first] + noise * random.uniform(0, 0.21, (len(first), 1))
    made = batches(n, vectors)
    start = time.perf_counter()
    state = sqlite3.connect(":memory:")
    stage = DedupeStage(Dedupe(by="similar", threshold=0.98))
    stage.restore(state)
    removed: set[int] = set()
    kept_rows: list[int] = []
    for number, batch in enumerate(made):
        done = stage.apply(InFlightBatch(batch, Partition("0"), number, len(batch)))
        kept_rows += [int(str(id_)[4:]) for id_ in done.batch.ids]
        for effect in done.commit_hooks:
            effect(state)
    seconds = time.perf_counter() - start
    removed = set(range(n)) - set(kept_rows)
    print(f"similar ≥ 0.98, {n:,} × {vectors.shape[1]}: {n / seconds:,.0f} records/s  (goal ≥ 20,000)")
    print(f"  recall measured by the stage itself: {stage.report(state).rules[0].recall}")
    truth = exhaustive(vectors)
    print(
        f"  recall against an exhaustive comparison: {len(removed & truth) / len(truth):.4f}  (goal ≥ 0.99)"
    )
    print(f"  precision: {len(removed & truth) / len(removed):.4f}  ({len(truth):,} duplicates)\n")


def exhaustive(vectors: np.ndarray) -> set[int]:
    """The rows that a greedy comparison with everything kept removes."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    kept = np.empty_like(unit)
    count, gone = 0, set()
    for start in range(0, len(unit), 512):
        block = unit[start : start + 512]
        before = (block @ kept[:count].T).max(axis=1, initial=-1.0) if count else np.full(len(block), -1.0)
        inside = block @ block.T
        fresh: list[int] = []
        for row in range(len(block)):
            if before[row] >= 0.98 or (fresh and inside[row, fresh].max() >= 0.98):
                gone.add(start + row)
            else:
                fresh.append(row)
        kept[count : count + len(fresh)] = block[fresh]
        count += len(fresh)
    return gone


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["exact", "first", "minhash", "similar"]
    if "exact" in wanted:
        exact()
        memory()
    if "first" in wanted:
        first()
    if "minhash" in wanted:
        minhash()
    if "similar" in wanted:
        similar()
