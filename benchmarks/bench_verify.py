"""The verification against merely reading both sides.

python benchmarks/bench_verify.py [rows]
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench_files import BATCH, make_batches, write
from common import Side, compare

from vecferry.records import RecordBatch, schema_of
from vecferry.stores.parquet import ParquetStore
from vecferry.verifying import compare as verify


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    folder = Path(tempfile.mkdtemp())
    batches = make_batches(rows)
    schema = schema_of(batches[0])
    ours, same, other = (ParquetStore(folder / f"{name}.parquet") for name in "abc")
    write(ours, batches)
    write(same, batches)
    order = np.random.default_rng(1).permutation(rows)
    write(other, list(RecordBatch.concat(batches).take(order).split(BATCH)))
    del batches
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def read(*stores: ParquetStore) -> int:
        return sum(len(b) for store in stores for b in store.scan(batch_size=BATCH)) // len(stores)

    def prove(target: ParquetStore, queries: int) -> int:
        proof = verify(lambda: ours.scan(batch_size=BATCH), schema, target, sample_queries=queries)
        assert proof.ok, proof
        return proof.expected_count

    reading = Side("reading both sides", lambda: read(ours, same))
    compare(
        "verify, same order, no searches",
        reading,
        Side("compare", lambda: prove(same, 0)),
        goal=0.5,
        rounds=3,
    )
    compare(
        "verify, same order, 10 exact searches",
        reading,
        Side("compare", lambda: prove(same, 10)),
        goal=0.25,
        rounds=3,
    )
    compare(
        "verify, shuffled target, through the spool",
        Side("reading both sides", lambda: read(ours, other)),
        Side("compare", lambda: prove(other, 0)),
        goal=0.1,
        rounds=3,
    )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    print(f"peak memory grew by {grown / 1024:.0f} MiB over the data itself")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
