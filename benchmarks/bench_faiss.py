"""How fast a Flat index streams out and in, against a bare loop over the same bytes.

python benchmarks/bench_faiss.py [--rows 300000] [--dim 384]
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from common import Side, compare

from vecferry.model import CollectionSchema, DenseColumn, Metric, RecordBatch, VectorField
from vecferry.ports import WriteMode
from vecferry.stores.faiss import FaissStore
from vecferry.stores.faiss.flat import flat_header

BATCH = 1024


def make_index(path: Path, rows: int, dim: int) -> None:
    """A Flat index of random vectors, written block by block."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(flat_header(dim, Metric.L2, rows))
        for start in range(0, rows, 4096):
            n = min(4096, rows - start)
            file.write(rng.standard_normal((n, dim), dtype=np.float32).tobytes())


def read_bare(path: Path, rows: int, dim: int) -> int:
    """``readinto`` one buffer over and over: the fastest way to see every byte."""
    buffer = np.empty((BATCH, dim), dtype=np.float32)
    view = memoryview(buffer).cast("B")
    with path.open("rb", buffering=0) as file:
        file.seek(45)
        while file.readinto(view):
            pass
    return rows


def read_scan(path: Path) -> int:
    store = FaissStore(path)
    rows = sum(len(batch) for batch in store.scan(batch_size=BATCH))
    store.close()
    return rows


def write_bare(path: Path, rows: int, dim: int) -> int:
    """Write the same bytes a row: the vector, a short line, and 25 bytes of key."""
    block = np.zeros((BATCH, dim), dtype=np.float32)
    rest = bytes(BATCH * 85)
    with path.open("wb") as file, path.with_suffix(".rest").open("wb") as other:
        for _ in range(0, rows, BATCH):
            file.write(block.data)
            other.write(rest)
        for handle in (file, other):
            handle.flush()
            os.fsync(handle.fileno())
    return rows


def write_store(path: Path, rows: int, dim: int) -> int:
    store = FaissStore(path)
    field = VectorField(dim=dim, metric=Metric.L2)
    store.prepare(CollectionSchema(fields=(field,)), WriteMode.UPSERT)
    block = DenseColumn(np.zeros((BATCH, dim), dtype=np.float32))
    for start in range(0, rows, BATCH):
        store.write(RecordBatch(ids=np.arange(start, start + BATCH), vectors={"": block}))
    store.finish()
    store.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--dim", type=int, default=384)
    options = parser.parse_args()
    rows, dim = options.rows // BATCH * BATCH, options.dim
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = folder / "flat.faiss"
        make_index(index, rows, dim)
        compare(
            f"Flat index, {rows:,} × {dim}, scan() in batches of {BATCH}",
            Side("bare readinto", lambda: read_bare(index, rows, dim)),
            Side("FaissStore.scan", lambda: read_scan(index)),
            goal=0.8,
        )
        compare(
            f"the same written, {rows // 4:,} rows with ids, fsync at the end",
            Side("bare write", lambda: write_bare(folder / "bare", rows // 4, dim)),
            Side(
                "FaissStore.write",
                lambda: write_store(folder / "kb", rows // 4, dim),
                before=lambda: shutil.rmtree(folder / "kb", ignore_errors=True),
            ),
            goal=0.15,
            rounds=3,
        )


if __name__ == "__main__":
    main()
