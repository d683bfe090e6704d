"""Damaged and hostile files of every format, seeded: each is read, or refused by name; none hangs or kills.

    FUZZ=5000 pytest tests/fuzz            more of them than in the suite (`make fuzz`)

Every file is read as a whole in a process of its own kind, under a bound on its memory, so that a signal
or an allocation without bound is seen as what it is.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stores.faiss.support import SAMPLES, random_vectors, records, write

FUZZ = int(os.environ.get("FUZZ", "0"))
VECTORS = random_vectors(64, 8)
ROWS = [
    {
        "id": f"r{i}",
        "text": f"text {i}",
        "vector": VECTORS[i].tolist(),
        "metadata": {"n": i, "deep": [[1]]},
    }
    for i in range(8)
]
CSV = "id,text\n" + "".join(f"r{i},t\n" for i in range(64))


def made(factory: str, folder: Path) -> Path:
    index = faiss.index_factory(8, factory)
    index.train(VECTORS)
    index.add(VECTORS) if "IDMap" not in factory else index.add_with_ids(VECTORS, np.arange(64) * 3)
    faiss.write_index(index, str(folder / "x.faiss"))
    return folder / "x.faiss"


def beside(name: str, body: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        made("Flat", folder)
        (folder / name).write_bytes(body)
        return folder / name

    return make


def sample(name: str, file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for path in (SAMPLES / name).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return folder / file

    return make


def alone(name: str, body: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(body)
        return folder / name

    return make


def parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "x.parquet")
    return folder / "x.parquet"


def own_folder(folder: Path) -> Path:
    write(folder / "kb", records(8, 8))
    for path in (folder / "kb").iterdir():
        path.rename(folder / path.name)
    (folder / "kb").rmdir()
    return folder / "vecferry.json"


def haystack(folder: Path) -> Path:
    made("Flat", folder)
    with sqlite3.connect(folder / "faiss_document_store.db") as db:
        db.execute("CREATE TABLE document (id TEXT, content TEXT, vector_id TEXT)")
        db.execute("CREATE TABLE meta_document (document_id TEXT, name TEXT, value TEXT)")
        db.executemany("INSERT INTO document VALUES (?, 't', ?)", [(f"r{i}", str(i)) for i in range(64)])
    return folder / "faiss_document_store.db"


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
MANY = [{"id": f"r{i}", "text": "t"} for i in range(64)]
BY_ID = {row["id"]: row for row in MANY}
FORMATS: dict[str, tuple[str, Callable[[Path], Path], int]] = {
    "jsonl": ("jsonl", alone("x.jsonl", LINES), 300),
    "jsonl.gz": ("jsonl", alone("x.jsonl.gz", gzip.compress(LINES)), 150),
    "json": ("jsonl", alone("x.json", json.dumps({"documents": ROWS}).encode()), 200),
    "parquet": ("parquet", parquet, 300),
    "own card": ("faiss", own_folder, 150),
    "langchain pickle": ("faiss", sample("langchain_faiss", "index.pkl"), 100),
    "script pickle": ("faiss", beside("metadata.pkl", pickle.dumps(MANY)), 300),
    "script json": ("faiss", beside("metadata.json", json.dumps(MANY).encode()), 200),
    "semantica": (
        "faiss",
        beside(
            "x.faiss.metadata.json",
            json.dumps(
                {"vector_ids": [r["id"] for r in MANY], "metadata": {r["id"]: r for r in MANY}}
            ).encode(),
        ),
        150,
    ),
    "csv": ("faiss", beside("meta.csv", CSV.encode()), 150),
    "sqlite": ("faiss", haystack, 100),
    "docstore": ("faiss", sample("llamaindex_faiss", "docstore.json"), 40),
    "index store": ("faiss", sample("llamaindex_faiss", "index_store.json"), 60),
    "id map": ("faiss", sample("llamaindex_faiss_map", "id_map.json"), 60),
    "flat index": ("faiss", lambda folder: made("Flat", folder), 200),
    "idmap index": ("faiss", lambda folder: made("IDMap2,Flat", folder), 100),
    "hnsw index": ("faiss", lambda folder: made("HNSW8", folder), 8),
    "ivf index": ("faiss", lambda folder: made("IVF2,Flat", folder), 8),
    "sq index": ("faiss", lambda folder: made("SQ8", folder), 6),
}
INSERTS = [b"\xff\xfe", b"[" * 2000, b"{" * 200, b'"', b"\n", b"\\ud800", b"1e999"]
EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]


def damaged(data: bytes, seed: str) -> bytes:
    """One of many ways in which a file may be broken, or made to break its reader."""
    chance = random.Random(seed)
    body = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        at = chance.randrange(max(len(body), 1))
        way = chance.randrange(7)
        if way == 0:
            body[at : at + 1] = bytes([(body[at] if body else 0) ^ (1 << chance.randrange(8))])
        elif way == 1:
            del body[at:]
        elif way == 2:
            width = chance.choice([1, 2, 4, 8])
            edge = chance.choice(EDGES) & ((1 << 8 * width) - 1)
            body[at : at + width] = edge.to_bytes(width, "little")
        elif way == 3:
            stop = at + chance.randrange(1, 64)
            body[at:at] = body[at:stop] * chance.choice([1, 2, 50])
        elif way == 4:
            del body[at : at + chance.randrange(1, 32)]
        elif way == 5:
            body[at:at] = chance.choice(
                [b"\xff\xfe", b"[" * 2000, b"{" * 200, b'"', b"\n", b"\\ud800", b"1e999"]
            )
        else:
            body[at : at + 4] = bytes(chance.randrange(256) for _ in range(4))
    return bytes(body)


READ = """
import resource, sys, time
from pathlib import Path
import warnings; warnings.simplefilter("ignore")
import vecferry as vf
from vecferry.errors import VecferryError
from vecferry.ports import StoreURL
from vecferry.connecting import connect
scheme, victim, corpus = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
import faiss, pyarrow.parquet
resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
where = victim if scheme != "faiss" else victim.parent
for path in sorted(corpus.iterdir()):
    victim.write_bytes(path.read_bytes())
    print("reading", path.name, flush=True)
    start = time.monotonic()
    try:
        store = connect(f"{scheme}:{where}").store
        store.describe()
        for batch in store.scan(batch_size=16):
            for record in batch.records():
                pass
    except VecferryError as error:
        str(error)
    took = time.monotonic() - start
    if took > 60:
        sys.exit(f"{path.name} took {took:.0f} s")
print("done")
"""


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_refused_by_name(name: str, tmp_path: Path) -> None:
    scheme, make, count = FORMATS[name]
    (tmp_path / "kb").mkdir()
    (tmp_path / "corpus").mkdir()
    victim = make(tmp_path / "kb")
    data = victim.read_bytes()
    count = count if not FUZZ else FUZZ if count > 20 else FUZZ // 20
    for number in range(count):
        (tmp_path / "corpus" / f"{number:05d}").write_bytes(damaged(data, f"{name} {number} {FUZZ}"))
    done = subprocess.run(
        [sys.executable, "-c", READ, scheme, str(victim), str(tmp_path / "corpus")],
        capture_output=True,
        check=False,
        timeout=3000 if FUZZ else 500,
        text=True,
    )
    last = done.stdout.strip().splitlines()[-1:] or ["nothing"]
    assert last == ["done"], f"{name}, {last[0]}: {done.returncode} {done.stderr[-1500:]}"


def shared_tuples(levels: int) -> bytes:
    """A key whose hash takes 2^levels steps."""
    body = b"\x80\x02}("
    body += b"K\x01K\x01\x86q\x00"
    for level in range(levels):
        body += b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
    return body + b"K\x01u."


def wide_tuples(levels: int) -> bytes:
    """A key of few levels whose hash takes 100^levels steps."""
    body = b"\x80\x02}((" + b"K\x01" * 100 + b"tq\x00"
    for level in range(levels):
        body += b"(" + (b"h" + bytes([level])) * 100 + b"tq" + bytes([level + 1])
    return body + b"K\x01u."


def shared_lists(levels: int) -> bytes:
    """A value that is 2^levels texts once it is written down."""
    body = b"\x80\x02]U\x10" + b"x" * 16 + b"aq\x00"
    for level in range(levels):
        body += b"](h" + bytes([level]) + b"h" + bytes([level]) + b"eq" + bytes([level + 1])
    return b"\x80\x02](}U\x01a" + body[2:] + b"se."


@pytest.mark.parametrize(
    "body",
    [
        shared_tuples(60),
        wide_tuples(12),
        shared_lists(60),
        pickle.dumps([np.empty((200_000_000, 0), np.float32)]),
        b"\x80\x02]r\xff\xff\xff\x7f.",
        b"\x80\x04" + b"]" * 100_000 + b".",
        b"I" + b"9" * 100_000 + b"\n.",
    ],
    ids=["tuples", "wide tuples", "lists", "empty shape", "memo", "depth", "digits"],
)
def test_a_small_pickle_asks_for_no_great_work(body: bytes, tmp_path: Path) -> None:
    made("Flat", tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "one").write_bytes(body)
    victim = tmp_path / "metadata.pkl"
    victim.write_bytes(body)
    code = READ.replace("6 << 30, 6 << 30", "3 << 30, 3 << 30").replace("took > 60", "took > 10")
    done = subprocess.run(
        [sys.executable, "-c", code, "faiss", str(victim), str(tmp_path / "corpus")],
        capture_output=True,
        check=False,
        timeout=120,
        text=True,
    )
    assert done.stdout.endswith("done\n"), done.stderr[-1500:]
