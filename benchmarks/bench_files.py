"""The file stores against bare pyarrow and bare orjson on the same files.

python benchmarks/bench_files.py [rows]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from common import Side, compare

from vecferry.model import DenseColumn, RecordBatch, schema_of
from vecferry.ports import WriteMode
from vecferry.stores.jsonl import JsonlStore
from vecferry.stores.parquet import ParquetStore

DIM = 384
BATCH = 2048


def make_batches(rows: int) -> list[RecordBatch]:
    rng = np.random.default_rng(0)
    batches = []
    for start in range(0, rows, BATCH):
        ids = np.arange(start, min(start + BATCH, rows))
        batches.append(
            RecordBatch(
                ids=ids,
                vectors={"": DenseColumn(rng.normal(size=(len(ids), DIM)).astype(np.float32))},
                texts=[f"record {i}: a sentence of about the length that a gloss has" for i in ids],
                metadata=[{"n": int(i), "lang": "en", "tags": ["a", "b"], "weight": i / 7} for i in ids],
            )
        )
    return batches


def write(store: ParquetStore | JsonlStore, batches: list[RecordBatch]) -> int:
    store.prepare(schema_of(batches[0]), WriteMode.REPLACE)
    for batch in batches:
        store.write(batch)
    store.finish()
    return sum(map(len, batches))


def bare_parquet_read(path: Path) -> int:
    """Every value as Python and numpy objects, as any reader needs them."""
    rows = 0
    for batch in pq.ParquetFile(path, memory_map=True).iter_batches(BATCH, use_threads=False):
        batch.column("vector").flatten().to_numpy()
        batch.column("text").to_pylist()
        [orjson.loads(m) for m in batch.column("metadata").to_pylist()]
        rows += batch.num_rows
    return rows


def bare_jsonl_read(path: Path) -> int:
    rows = 0
    held = []
    with path.open("rb") as handle:
        for line in handle:
            held.append(orjson.loads(line)["vector"])
            rows += 1
            if len(held) == BATCH:
                np.array(held, dtype=np.float32)
                held = []
    return rows


def bare_parquet_write(path: Path, batches: list[RecordBatch]) -> int:
    """pyarrow alone, in the same layout, with no log and no way to resume."""
    tables = (batch.to_arrow() for batch in batches)
    first = next(tables)
    options = {"use_dictionary": [], "compression": {"text": "zstd", "metadata": "zstd", "id": "zstd"}}
    with pq.ParquetWriter(path, first.schema, **options) as writer:
        writer.write_batch(first)
        for table in tables:
            writer.write_table(pa.Table.from_batches([table]))
    return sum(map(len, batches))


def bare_jsonl_write(path: Path, batches: list[RecordBatch]) -> int:
    with path.open("wb") as out:
        for batch in batches:
            for record in batch.records():
                row = {
                    "id": record.id,
                    "text": record.text,
                    "metadata": record.metadata,
                    "vector": record.vectors[""],
                }
                out.write(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
    return sum(map(len, batches))


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    folder = Path(tempfile.mkdtemp())
    batches = make_batches(rows)
    parquet, jsonl = ParquetStore(folder / "a.parquet"), JsonlStore(folder / "a.jsonl")
    write(parquet, batches)
    write(jsonl, batches)

    def scan(store: ParquetStore | JsonlStore) -> int:
        return sum(len(batch) for batch in store.scan(batch_size=BATCH))

    compare(
        "read Parquet",
        Side("pyarrow and orjson", lambda: bare_parquet_read(parquet.path)),
        Side("parquet: scan", lambda: scan(parquet)),
        goal=0.8,
    )
    compare(
        "read JSONL",
        Side("orjson and numpy", lambda: bare_jsonl_read(jsonl.path)),
        Side("jsonl: scan", lambda: scan(jsonl)),
        goal=0.8,
    )
    compare(
        "write Parquet (ours also keeps a log that survives kill -9)",
        Side("pyarrow", lambda: bare_parquet_write(folder / "b.parquet", batches)),
        Side("parquet: write and finish", lambda: write(parquet, batches)),
        goal=0.4,
        rounds=3,
    )
    compare(
        "write JSONL (ours also keeps a log that survives kill -9)",
        Side("orjson", lambda: bare_jsonl_write(folder / "b.jsonl", batches)),
        Side("jsonl: write and finish", lambda: write(jsonl, batches)),
        goal=0.7,
        rounds=3,
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
