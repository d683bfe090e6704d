"""Postgres: ours beside hand-written psycopg, on an embedded server in a temporary folder.

    python benchmarks/bench_pgvector.py [384|1536|crossing|memory]

The limit is what a careful person writes by hand with psycopg 3 for this one table: binary COPY from
numpy, COPY of joined bytes with orjson, staging and one ON CONFLICT, ``get_copy_data`` into numpy. Both
sides commit once a batch. The last row is the usual SQLAlchemy insert, to show what a user gains.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import orjson
import psycopg
import sqlalchemy as sa
from common import Side, compare

import vecferry as vf
from vecferry.model import CollectionSchema, DenseColumn, RecordBatch, VectorField
from vecferry.ports import WriteMode
from vecferry.stores.pgvector import embedded

HEADER, TRAILER = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
BATCH = 4_000


class Rig:
    """One server, one shape of data."""

    def __init__(self, rows: int, dim: int) -> None:
        self.rows, self.dim = rows, dim
        self.folder = tempfile.mkdtemp(prefix="vecferry-bench-")
        self.uri = embedded.server_uri(self.folder)
        self.raw = psycopg.connect(self.uri, autocommit=True)
        self.raw.execute("create extension vector")
        random = np.random.default_rng(0)
        self.vectors = random.standard_normal((rows, dim), dtype=np.float32)
        self.ids = np.arange(rows, dtype=np.int64)
        self.keys = [f"document-{i:08}" for i in range(rows)]
        self.texts = [f"Passage {i}: the quick brown fox jumps over the lazy dog." for i in range(rows)]
        self.metadata: list[dict[str, Any]] = [
            {"page": i % 90, "lang": "en", "source": f"f{i % 7}.pdf"} for i in range(rows)
        ]
        self.schema = CollectionSchema(fields=(VectorField(dim=dim),), id_type="int")

    def close(self) -> None:
        self.raw.close()
        embedded.stop(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def store(self, table: str, **options: Any) -> Any:
        return vf.connect(f"pgvector:{self.folder}#{table}", index="none", **options).store

    def spans(self) -> Iterator[slice]:
        for start in range(0, self.rows, BATCH):
            yield slice(start, min(start + BATCH, self.rows))

    def int_batches(self) -> Iterator[RecordBatch]:
        for span in self.spans():
            yield RecordBatch(self.ids[span], {"": DenseColumn(self.vectors[span])})

    def full_batches(self) -> Iterator[RecordBatch]:
        for span in self.spans():
            column = DenseColumn(self.vectors[span])
            yield RecordBatch(
                self.keys[span], {"": column}, texts=self.texts[span], metadata=self.metadata[span]
            )

    # -- by hand --------------------------------------------------------------------------------

    def make(self, table: str, key: str, more: str = "") -> None:
        self.raw.execute(f"drop table if exists {table}")
        self.raw.execute(f"create table {table} (id {key} primary key, embedding vector({self.dim}){more})")

    def rows_of(self, span: slice) -> bytes:
        size = span.stop - span.start
        out = np.empty(size, self.layout())
        out["n"], out["id_size"], out["id"] = 2, 8, self.ids[span]
        out["size"], out["dim"], out["zero"] = 4 + 4 * self.dim, self.dim, 0
        out["values"] = self.vectors[span]
        return out.tobytes()

    def layout(self) -> Any:
        head = [
            ("n", ">i2"),
            ("id_size", ">i4"),
            ("id", ">i8"),
            ("size", ">i4"),
            ("dim", ">i2"),
            ("zero", ">i2"),
        ]
        return np.dtype([*head, ("values", ">f4", (self.dim,))])

    def copy(self, statement: str, data: bytes, connection: Any = None) -> None:
        with (connection or self.raw).cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(HEADER)
            copy.write(data)
            copy.write(TRAILER)

    def hand_write(self) -> int:
        for span in self.spans():
            self.copy("copy hand (id, embedding) from stdin (format binary)", self.rows_of(span))
        return self.rows

    def hand_write_text(self) -> int:
        head, pack = struct.pack(">h", 4), struct.Struct(">i").pack
        prefix = pack(4 + 4 * self.dim) + struct.pack(">hh", self.dim, 0)
        for span in self.spans():
            parts = []
            vectors = self.vectors[span].astype(">f4")
            for i in range(span.start, span.stop):
                key, text, data = (
                    self.keys[i].encode(),
                    self.texts[i].encode(),
                    orjson.dumps(self.metadata[i]),
                )
                parts += (
                    *(head, pack(len(key)), key, prefix, vectors[i - span.start].tobytes()),
                    *(pack(len(text)), text, pack(len(data) + 1), b"\x01", data),
                )
            self.copy(
                "copy hand_text (id, embedding, text, metadata) from stdin (format binary)", b"".join(parts)
            )
        return self.rows

    def hand_upsert(self) -> int:
        with psycopg.connect(self.uri) as connection:
            connection.execute(
                "create temp table stage on commit delete rows as select "
                "id, embedding from hand with no data"
            )
            for span in self.spans():
                self.copy(
                    "copy stage (id, embedding) from stdin (format binary)", self.rows_of(span), connection
                )
                connection.execute(
                    "insert into hand (id, embedding) select id, embedding from stage "
                    "on conflict (id) do update set embedding = excluded.embedding"
                )
                connection.commit()
        return self.rows

    def hand_read(self) -> int:
        """Batches of arrays, as a careful reader would for this very table."""
        with psycopg.connect(self.uri) as connection:
            pgconn, layout, seen = connection.pgconn, self.layout(), 0
            pgconn.exec_(b"copy (select id, embedding from hand order by id) to stdout (format binary)")
            size, data = pgconn.get_copy_data(0)
            buffer = bytearray(data[19:])
            while size > 0:
                if len(buffer) >= BATCH * layout.itemsize:
                    seen += self.take(buffer, layout)
                    buffer = bytearray()
                size, data = pgconn.get_copy_data(0)
                if size > 2:
                    buffer += data
            seen += self.take(buffer, layout)
            while pgconn.get_result():
                pass
        assert seen == self.rows
        return seen

    def take(self, buffer: bytearray, layout: Any) -> int:
        rows = np.frombuffer(buffer, layout)
        ids, vectors = rows["id"].astype("<i8"), rows["values"].astype("<f4")
        return len(ids) if len(vectors) == len(ids) else -1

    # -- ours -----------------------------------------------------------------------------------

    def write(self, table: str, batches: Iterator[RecordBatch], id_type: str, mode: WriteMode) -> int:
        store = self.store(table)
        store.prepare(self.schema.model_copy(update={"id_type": id_type}), mode)
        for batch in batches:
            store.write(batch)
        store.close()
        return self.rows

    def read(self) -> int:
        store = self.store("hand")
        seen = sum(len(batch) for batch in store.scan(batch_size=BATCH))
        store.close()
        assert seen == self.rows
        return seen

    def orm_write(self, rows: int = 2_000) -> int:
        from pgvector.sqlalchemy import Vector

        table = sa.Table(
            "orm",
            sa.MetaData(),
            sa.Column("id", sa.BigInteger, primary_key=True),
            sa.Column("embedding", Vector(self.dim)),
        )
        engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(self.uri))
        values = [{"id": i, "embedding": self.vectors[i]} for i in range(rows)]
        with engine.begin() as connection:
            connection.execute(sa.insert(table), values)
        engine.dispose()
        return rows


def speed(rows: int, dim: int) -> None:
    rig = Rig(rows, dim)
    title = f"{rows:,} x {dim}"

    def drop(table: str) -> Any:
        return lambda: rig.raw.execute(f"drop table if exists {table}")

    try:
        compare(
            f"write, int key + vector, {title}",
            Side("hand-written COPY", rig.hand_write, lambda: rig.make("hand", "bigint")),
            Side(
                "vecferry",
                lambda: rig.write("ours", rig.int_batches(), "int", WriteMode.CREATE),
                drop("ours"),
            ),
            goal=0.9,
        )
        compare(
            f"write, text key + text + jsonb, {title}",
            Side(
                "hand-written bytes + orjson",
                rig.hand_write_text,
                lambda: rig.make("hand_text", "text", ", text text, metadata jsonb"),
            ),
            Side(
                "vecferry",
                lambda: rig.write("ours_text", rig.full_batches(), "str", WriteMode.CREATE),
                drop("ours_text"),
            ),
            goal=0.9,
        )
        rig.raw.execute("vacuum hand")
        compare(
            f"upsert of known rows, {title}",
            Side(
                "hand-written staging + ON CONFLICT",
                rig.hand_upsert,
                lambda: rig.raw.execute("vacuum hand"),
            ),
            Side(
                "vecferry",
                lambda: rig.write("ours", rig.int_batches(), "int", WriteMode.UPSERT),
                lambda: rig.raw.execute("vacuum ours"),
            ),
            goal=0.9,
            rounds=3,
        )
        rig.make("hand", "bigint")
        rig.hand_write()
        rig.raw.execute("vacuum analyze hand")
        compare(
            f"read, int key + vector, {title}",
            Side("get_copy_data + numpy", rig.hand_read),
            Side("vecferry", rig.read),
            goal=0.85 if dim < 1000 else 0.9,
        )
        rig.raw.execute("drop table if exists orm")
        compare(
            f"the usual SQLAlchemy insert, {title}",
            Side("SQLAlchemy", rig.orm_write, lambda: rig.make("orm", "bigint")),
            Side(
                "vecferry",
                lambda: rig.write("ours", rig.int_batches(), "int", WriteMode.CREATE),
                drop("ours"),
            ),
            goal=5.0,
            rounds=3,
        )
    finally:
        rig.close()


def crossing(rows: int, dim: int) -> None:
    """FAISS → Postgres through migrate(), beside the slower of its two ends alone: the writing."""
    rig = Rig(rows, dim)
    index = faiss.IndexFlatL2(dim)
    index.add(rig.vectors)
    path = f"{rig.folder}-index/index.faiss"
    Path(path).parent.mkdir()
    faiss.write_index(index, path)

    def migrate() -> int:
        report = vf.migrate(
            f"faiss:{path}",
            f"pgvector:{rig.folder}#ours",
            target_options={"index": "none"},
            batch_size=BATCH,
            verify=False,
            resume=False,
            state_dir=f"{rig.folder}-index/job",
        )
        return report.written

    def alone() -> int:
        rig.write("ours", rig.int_batches(), "int", WriteMode.CREATE)
        store = rig.store("ours")
        store.prepare(rig.schema, WriteMode.RESUME)
        store.finish()
        store.close()
        return rows

    try:
        compare(
            f"FAISS → Postgres, {rows:,} x {dim}",
            Side(
                "writing and finishing alone", alone, lambda: rig.raw.execute("drop table if exists ours")
            ),
            Side("migrate()", migrate, lambda: rig.raw.execute("drop table if exists ours")),
            goal=0.8,
        )
    finally:
        rig.close()
        shutil.rmtree(f"{rig.folder}-index", ignore_errors=True)


def peak_of(rows: int) -> int:
    """Peak resident MiB of a process that writes and reads ``rows`` rows of 128 components."""
    folder = tempfile.mkdtemp(prefix="vecferry-bench-")
    try:
        store = vf.connect(f"pgvector:{folder}#m", index="none").store
        store.prepare(CollectionSchema(fields=(VectorField(dim=128),), id_type="int"), WriteMode.CREATE)
        vectors = np.random.default_rng(0).standard_normal((2_000, 128), dtype=np.float32)
        for start in range(0, rows, 2_000):
            store.write(RecordBatch(np.arange(start, start + 2_000), {"": DenseColumn(vectors)}))
        assert sum(len(batch) for batch in store.scan(batch_size=2_000)) == rows
        store.close()
        status = Path("/proc/self/status").read_text()  # ru_maxrss would carry over from the parent
        return int(status.partition("VmHWM:")[2].split()[0]) // 1024
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def memory() -> None:
    """The peak must not grow with the table; each size in a process of its own."""
    peaks = []
    for rows in (100_000, 1_000_000):
        command = [sys.executable, __file__, "peak", str(rows)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    verdict = "ok" if peaks[1] <= peaks[0] * 1.1 else "GROWS"
    print(f"peak memory after 100,000 rows {peaks[0]} MiB, after 1,000,000 rows {peaks[1]} MiB  {verdict}")


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["384", "1536", "crossing", "memory"]
    if chosen[0] == "peak":
        print(peak_of(int(chosen[1])))
    if "384" in chosen:
        speed(100_000, 384)
    if "1536" in chosen:
        speed(50_000, 1536)
    if "crossing" in chosen:
        crossing(100_000, 384)
    if "memory" in chosen:
        memory()
