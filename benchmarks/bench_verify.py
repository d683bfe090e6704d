"""The verification: against hashing both sides by hand, against merely reading them, with one and two
readers, and its memory.

    python benchmarks/bench_verify.py [hashing|speed|workers|memory]

``hashing`` takes the 2,000 WordNet synsets of ``examples/data`` ten times over, from memory, so that
nothing but the proof is measured, in seconds of CPU.

``workers`` reads an embedded Postgres on this very machine, where server and comparison share the cores,
and a file that answers late, as a store far away does.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from bench_files import BATCH, make_batches, write
from common import Side, compare

import vecferry as vf
from vecferry.model import CollectionSchema, Metric, RecordBatch, VectorField
from vecferry.ports import Capabilities, WriteMode
from vecferry.stores.memory import MemoryStore
from vecferry.stores.parquet import ParquetStore
from vecferry.stores.pgvector import embedded
from vecferry.verifying import compare as verify

SYNSETS = Path(__file__).parents[1] / "examples" / "data" / "wordnet_langchain"
LATE = 0.25
"""Seconds for which a store far away lets a batch be waited for."""


class FarAway(ParquetStore):
    """Each batch comes late. Requests of several threads are under way at the same time."""

    def scan(self, **options: Any) -> Iterator[RecordBatch]:
        for batch in super().scan(**options):
            time.sleep(LATE)
            yield batch

    def fetch(self, ids: Any, **options: Any) -> RecordBatch:
        time.sleep(LATE)
        return super().fetch(ids, **options)


class Rig:
    """The same records in one order, and in another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ours, self.same, self.other = (ParquetStore(folder / f"{name}.parquet") for name in "abc")

    def fill(self, rows: int) -> None:
        batches = make_batches(rows)
        write(self.ours, batches)
        write(self.same, batches)
        order = np.random.default_rng(1).permutation(rows)
        write(self.other, list(RecordBatch.concat(batches).take(order).split(BATCH)))

    @property
    def schema(self) -> CollectionSchema:
        return self.ours.describe()

    def prove(self, target: Any, queries: int = 0, **options: Any) -> int:
        expected = partial(self.other.scan, batch_size=BATCH)
        proof = verify(expected, self.schema, target, sample_queries=queries, **options)
        assert proof.ok, proof
        return proof.expected_count


def read(*stores: ParquetStore) -> int:
    return sum(len(b) for store in stores for b in store.scan(batch_size=BATCH)) // len(stores)


def speed(rig: Rig, rows: int) -> None:
    rig.fill(rows)
    both = Side("reading both sides", partial(read, rig.other, rig.other))
    title = f"verify, {rows:,} x 384, "
    same, exact = partial(rig.prove, rig.other), partial(rig.prove, rig.other, 10)
    compare(f"{title}same order, no searches", both, Side("compare", same), goal=0.35)
    compare(f"{title}same order, 10 exact searches", both, Side("compare", exact), goal=0.25)
    joined = Side("compare", partial(rig.prove, rig.ours))
    compare(f"{title}shuffled, by a hash join", both, joined, goal=0.35, rounds=4)


class InMemory(MemoryStore):
    """Batches as they are, in the order in which they were put in."""

    def __init__(self, batches: list[RecordBatch], schema: CollectionSchema, *, unit: bool) -> None:
        super().__init__()
        self.batches, self.schema, self.unit = batches, schema, unit

    def describe(self) -> CollectionSchema:
        return self.schema

    def capabilities(self) -> Capabilities:
        metrics = frozenset({Metric.COSINE}) if self.unit else frozenset()
        return replace(super().capabilities(), normalizes=metrics)

    def scan(self, **_: Any) -> Iterator[RecordBatch]:
        return iter(self.batches)


def synsets(copies: int) -> list[RecordBatch]:
    """Real metadata and vectors: the synsets that the examples ship, again and again under other ids."""
    with vf.connect(f"faiss:{SYNSETS}") as source:
        whole = RecordBatch.concat(list(source.scan()))
    ids = [[f"{id_}/{n}" for id_ in whole.id_list] for n in range(copies)]
    return list(RecordBatch.concat([whole.replace(ids=some) for some in ids]).split(BATCH))


def hash_by_hand(batches: list[RecordBatch]) -> int:
    """What anybody would write: a sum of hashes of each record as sorted JSON, and of its vector."""
    total = rows = 0
    for batch in batches:
        vectors = np.ascontiguousarray(batch.vectors[""].values)
        documents = zip(batch.id_list, batch.text_list, batch.metadata_list, vectors, strict=True)
        for id_, text, metadata, vector in documents:
            document = orjson.dumps([id_, text, metadata], option=orjson.OPT_SORT_KEYS)
            for data in (document, id_.encode() + vector.tobytes()):
                total += int.from_bytes(blake2b(data, digest_size=16).digest(), "little")
            rows += 1
    return rows


def hashing(copies: int) -> None:
    batches = synsets(copies)
    whole = RecordBatch.concat(batches)
    other = list(whole.take(np.random.default_rng(1).permutation(len(whole))).split(BATCH))
    by_hand = Side("both sides hashed by hand", lambda: (hash_by_hand(batches) + hash_by_hand(other)) // 2)
    for metric, told in (("l2", "bit for bit"), ("cosine", "within a tolerance")):
        field = VectorField(dim=whole.vectors[""].values.shape[1], metric=metric)
        schema = CollectionSchema(fields=(field,))
        for order, title in ((batches, "same order"), (other, "other order")):
            target = InMemory(order, schema, unit=metric == "cosine")

            def prove(target: Any = target, schema: CollectionSchema = schema) -> int:
                proof = verify(lambda: iter(batches), schema, target, sample_queries=0)
                assert proof.ok, proof
                return proof.expected_count

            compare(
                f"proof, {len(whole):,} synsets, {told}, {title}",
                by_hand,
                Side("compare", prove),
                goal=0.5,
                clock=time.process_time,
            )


def workers(rig: Rig, rows: int) -> None:
    rig.fill(rows)
    server = tempfile.mkdtemp(prefix="vecferry-bench-")
    try:
        with vf.connect(f"pgvector:{server}#items", index="none") as target:
            target.store.prepare(rig.schema, WriteMode.CREATE)
            for batch in rig.ours.scan(batch_size=BATCH):
                target.store.write(batch)
            target.store.finish()
            for strategy in ("hash", "fetch"):
                one_and_two(rig, f"verify Postgres here, {rows:,} x 384", target.store, strategy)
    finally:
        embedded.stop(server)
        shutil.rmtree(server, ignore_errors=True)
    one_and_two(rig, f"verify a store far away, {rows:,} x 384", FarAway(rig.ours.path), "hash")


def one_and_two(rig: Rig, title: str, target: Any, strategy: str) -> None:
    how: dict[str, Any] = {"strategy": strategy, "allow_extra": strategy == "fetch"}
    one, two = (Side(f"workers={n}", partial(rig.prove, target, workers=n, **how)) for n in (1, 2))
    compare(f"{title}, {strategy}", one, two, goal=0.9, rounds=4)


def peak() -> int:
    """The peak resident KiB of this very process; ``ru_maxrss`` would carry over from its parent."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def memory(rig: Rig, sizes: tuple[int, int]) -> None:
    """How much the peak grows over that of a process that only opened both sides, in each way."""
    grown: dict[str, list[int]] = {}
    for rows in sizes:
        rig.fill(rows)
        for way in ("merge", "hash"):
            command = [sys.executable, __file__, "peak", str(rig.folder), way]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            grown.setdefault(way, []).append(int(done.stdout) // 1024)
    for way, (small, large) in grown.items():
        verdict = "ok" if large <= small * 1.1 + 8 else "GROWS"
        shown = f"{small} MiB at {sizes[0]:,} records, {large} MiB at {sizes[1]:,}"
        print(f"{way}: the peak grew by {shown}  {verdict}")


def grown_by(rig: Rig, way: str) -> int:
    target = rig.other if way == "merge" else rig.ours
    next(iter(rig.other.scan(batch_size=BATCH)))
    next(iter(target.scan(batch_size=BATCH)))
    before = peak()
    rig.prove(target, workers=2, strategy=way)
    return peak() - before


def main(chosen: list[str]) -> None:
    if chosen[0] == "peak":
        print(grown_by(Rig(Path(chosen[1])), chosen[2]))
        return
    folder = Path(tempfile.mkdtemp())
    try:
        if "hashing" in chosen:
            hashing(10)
        if "speed" in chosen:
            speed(Rig(folder), 50_000)
        if "workers" in chosen:
            workers(Rig(folder), 40_000)
        if "memory" in chosen:
            memory(Rig(folder), (40_000, 160_000))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:] or ["hashing", "speed", "workers", "memory"])
