"""What the pipeline itself costs: against reading and writing by hand, and with and without checkpoints.

python benchmarks/bench_pipeline.py [rows]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Side, compare

import vecferry as vf
from vecferry.ports import WriteMode
from vecferry.records import DenseColumn, RecordBatch, schema_of
from vecferry.streaming import run

DIM = 384
BATCH = 2048
TARGETS = {"faiss": "faiss:{}/out", "parquet": "parquet:{}/out", "jsonl": "jsonl:{}/out.jsonl"}


def fill(folder: Path, rows: int) -> str:
    """A Parquet file of unit vectors with texts and metadata."""
    rng = np.random.default_rng(1)
    url = f"parquet:{folder / 'in'}"
    with vf.connect(url) as collection:
        store: Any = collection.store
        for start in range(0, rows, BATCH):
            n = min(BATCH, rows - start)
            values = rng.standard_normal((n, DIM)).astype(np.float32)
            values /= np.linalg.norm(values, axis=1, keepdims=True)
            batch = RecordBatch(
                ids=np.arange(start, start + n),
                vectors={"": DenseColumn(values)},
                texts=[f"This is the text of record number {i}." for i in range(start, start + n)],
                metadata=[{"n": i, "lang": "en", "share": i / 7} for i in range(start, start + n)],
            )
            if not start:
                store.prepare(schema_of(batch), WriteMode.CREATE)
            store.write(batch)
        store.finish()
    return url


def by_hand(source: str, target: str) -> int:
    """The loop that everybody writes: no checkpoint, no check, no overlap, no proof."""
    with vf.connect(source) as origin, vf.connect(target) as goal:
        store: Any = goal.store
        shadow = store.shadow("hand")
        shadow.prepare(origin.describe(), WriteMode.REPLACE)
        n = 0
        for batch in origin.scan(batch_size=BATCH):
            n += shadow.write(batch).written
        shadow.finish()
        shadow.close()
        store.publish("hand")
        return n


class Ferry:
    """The same through the pipeline. The plan is made beforehand; the proof is measured elsewhere."""

    def __init__(self, source: str, target: str, folder: Path, commit_every: float) -> None:
        self.source, self.target, self.folder = source, target, folder
        self.commit_every = commit_every
        self.plan: Any = None

    def before(self) -> None:
        clear(self.folder)
        job = {"state_dir": self.folder / "job", "verify": False, "batch_size": BATCH, "sample": 1000}
        self.plan = vf.plan(self.source, self.target, **job)

    def run(self) -> int:
        run.COMMIT_EVERY = self.commit_every
        return int(self.plan.run().written)


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def main(rows: int) -> None:
    usual = run.COMMIT_EVERY
    with tempfile.TemporaryDirectory() as made:
        folder, out = Path(made), Path(made) / "out"
        source = fill(folder, rows)
        for kind, form in TARGETS.items():
            target = form.format(out)
            ferry = Ferry(source, target, out, usual)
            compare(
                f"Parquet → {kind}, {rows:,} records of {DIM} components: the pipeline",
                Side("scan and write by hand", partial(by_hand, source, target), partial(clear, out)),
                Side("migrate(verify=False)", ferry.run, ferry.before),
                goal=0.95,
            )
            rarely = Ferry(source, target, out, 1e9)
            compare(
                f"Parquet → {kind}: checkpoints",
                Side("one commit at the end", rarely.run, rarely.before),
                Side(f"a commit every {usual} s", ferry.run, ferry.before),
                goal=0.97,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60_000)
