"""What the pipeline itself costs: against reading and writing by hand, and with and without checkpoints.

python benchmarks/bench_pipeline.py [rows]

A commit waits for the disk, and a run that commits once waits for the same bytes at its end. The whims of a
disk are larger than the difference, so the share of each run that is spent in commits is compared too.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Side, compare

import vecferry as vf
from vecferry.model import DenseColumn, RecordBatch, schema_of
from vecferry.pipeline import stream as run
from vecferry.ports import WriteMode

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
        self.in_commits: list[float] = []

    def before(self) -> None:
        clear(self.folder)
        job = {"state_dir": self.folder / "job", "verify": False, "batch_size": BATCH, "sample": 1000}
        self.plan = vf.plan(self.source, self.target, **job)

    def run(self) -> int:
        run.COMMIT_EVERY = self.commit_every
        commit, spent = run.Checkpointer.commit, 0.0

        def timed(checkpoint: run.Checkpointer, *, force: bool = False) -> None:
            nonlocal spent
            began = time.perf_counter()
            commit(checkpoint, force=force)
            spent += time.perf_counter() - began

        run.Checkpointer.commit = timed  # type: ignore[method-assign]
        start = time.perf_counter()
        try:
            written = int(self.plan.run().written)
        finally:
            run.Checkpointer.commit = commit  # type: ignore[method-assign]
        self.in_commits.append(100 * spent / (time.perf_counter() - start))
        return written


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
            rarely, often = Ferry(source, target, out, 1e9), Ferry(source, target, out, usual)
            compare(
                f"Parquet → {kind}: checkpoints",
                Side("one commit at the end", rarely.run, rarely.before),
                Side(f"a commit every {usual} s", often.run, often.before),
                goal=0.97,
                rounds=8,
            )
            once, all_along = (statistics.median(side.in_commits) for side in (rarely, often))
            verdict = "ok" if all_along - once <= 3.0 else "ABOVE"
            print(f"  in commits: {all_along:.1f} % of the run, {once:.1f} % with one at the end")
            print(f"  {all_along - once:+.1f} points  (goal ≤ 3.0)  {verdict}\n", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 150_000)
