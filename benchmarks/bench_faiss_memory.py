"""How much memory reading takes: a process of its own a case, its peak above the bare libraries.

python benchmarks/bench_faiss_memory.py [--rows 300000] [--dim 384]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import faiss
import numpy as np
from bench_faiss import make_index

GOAL_MIB = 150

CHILD = """
import sys, numpy, faiss, pydantic, orjson
from vecferry.stores.faiss import FaissStore
from vecferry.ports import WriteMode

def resident():
    # Pages of a mapped file belong to the kernel's cache and can be taken back at any time.
    status = open("/proc/self/status").read()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024

base = peak = resident()
store = FaissStore(sys.argv[1])
for batch in store.scan(batch_size=1024):
    peak = max(peak, resident())
if len(sys.argv) > 2:
    target = FaissStore(sys.argv[2])
    target.prepare(store.describe(), WriteMode.UPSERT)
    for batch in store.scan(batch_size=1024):
        target.write(batch)
        peak = max(peak, resident())
    target.finish()
    peak = max(peak, resident())
print(peak - base)
"""


def peak_of(*arguments: str) -> float:
    """MiB above the interpreter with the libraries loaded."""
    result = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    return float(result.stdout)


def build(path: Path, source: Path, factory: str, rows: int, dim: int) -> None:
    """Another index of the same vectors, or of a part of them."""
    index = faiss.index_factory(dim, factory)
    data = np.fromfile(source, dtype=np.uint8, offset=45, count=rows * dim * 4).view(np.float32)
    data = data.reshape(rows, dim)
    index.train(data[:20_000])
    index.add_with_ids(data, np.arange(rows)) if factory.startswith("IDMap") else index.add(data)
    faiss.write_index(index, str(path))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--dim", type=int, default=384)
    options = parser.parse_args()
    rows, dim = options.rows, options.dim
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        full, quarter = folder / "full.faiss", folder / "quarter.faiss"
        make_index(full, rows, dim)
        make_index(quarter, rows // 4, dim)
        report(f"Flat, {rows // 4:,} rows, read", peak_of(str(quarter)))
        report(f"Flat, {rows:,} rows, read", peak_of(str(full)))
        report(f"Flat, {rows:,} rows, copied to Flat", peak_of(str(full), str(folder / "copy")))
        for factory in ("IDMap2,Flat", "IVF256,Flat", "SQ8"):
            path = folder / "other.faiss"
            build(path, full, factory, rows, dim)
            report(f"{factory}, {rows:,} rows, read", peak_of(str(path)))


def report(what: str, mib: float) -> None:
    verdict = "ok" if mib <= GOAL_MIB else "ABOVE"
    print(f"{what:<44}{mib:>8.1f} MiB  (goal ≤ {GOAL_MIB})  {verdict}", flush=True)


if __name__ == "__main__":
    main()
