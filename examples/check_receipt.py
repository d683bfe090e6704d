"""Hold a Parquet file, a JSON Lines file or a Postgres table against a receipt, without vecferry.

    python check_receipt.py receipt.json kb.parquet | kb.jsonl | postgresql://localhost/app items

Sums ids, texts, metadata and dense vectors as docs/verification.md says. Exit status 1: a difference.
"""

import sys
from hashlib import blake2b
from pathlib import Path
from uuid import UUID
from zlib import crc32

import numpy as np
import orjson


def parquet(path):
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    mixed = b'"kind":"mixed"' in (file.schema_arrow.field("id").metadata or {}).get(b"vecferry", b"")
    for batch in file.iter_batches(2000):
        for row in batch.to_pylist():
            more = orjson.loads(row.get("_vecferry") or b"{}") | ({"id": row["id"]} if mixed else {})
            vectors = {k: v for k, v in row.items() if k == "vector" or k.startswith("vector:")}
            yield row["id"], row.get("text"), orjson.loads(row.get("metadata") or b"{}"), more, vectors


def jsonl(path):
    rows = map(orjson.loads, Path(path).read_bytes().splitlines())
    for row in (row for row in rows if "id" in row):  # an empty file has a header alone
        vectors = {f"vector:{k}" if k else "vector": v for k, v in row.get("vectors", {}).items()}
        vectors |= {"vector": row["vector"]} if row.get("vector") else {}
        yield row["id"], row.get("text"), row.get("metadata") or {}, row.get("_vecferry") or {}, vectors


def postgres(dsn, table):
    import psycopg

    with psycopg.connect(dsn) as connection, connection.cursor("rows") as rows:
        noted = connection.execute("SELECT obj_description(%s::regclass)", [table]).fetchone()[0] or ""
        coded = '"coded_ids":true' in noted  # ids of several types, written as text
        rows.execute(f"SELECT id, text, metadata::text, embedding::text FROM {table}")
        for id_, text, metadata, vector in rows:
            body = orjson.loads(metadata or "{}")
            more = body.pop("_vecferry", {})
            more.update({"id": id_} if coded and id_[1:2] == ":" else {})
            yield id_, text, body, more, {"vector": orjson.loads(vector) if vector else None}


def main(receipt, *source):
    receipt = orjson.loads(Path(receipt).read_bytes())
    read = postgres if len(source) == 2 else parquet if source[0].endswith("parquet") else jsonl
    names = {f"vector:{name}" if name else "vector": part for name, part in receipt["vectors"].items()}
    sums = {key: [[0, 0] for _ in range(256)] for key in ("documents", *names)}
    ids = set()
    for id_, text, metadata, more, vectors in read(*source):
        kind = "i" if isinstance(id_, int) else "u" if isinstance(id_, UUID) else "s"
        encoded = more.get("id") or f"{kind}:{id_}"
        form = [encoded, text if receipt["text"] else None, {}, {}]
        form[2:] = [metadata, more.get("types", {})] if receipt["metadata"] else form[2:]
        key = blake2b(encoded.encode(), digest_size=16).digest()
        ids.add(key)
        hashes = {"documents": orjson.dumps(form, option=orjson.OPT_SORT_KEYS)}
        there = {name: part["dtype"] for name, part in names.items() if vectors.get(name) is not None}
        hashes |= {name: key + np.array(vectors[name], dtype).tobytes() for name, dtype in there.items()}
        for name, data in hashes.items():
            (bucket := sums[name][crc32(encoded.encode()) % 256])[0] += 1
            bucket[1] += int.from_bytes(blake2b(data, digest_size=16).digest(), "little")
    wrong = ["ids"] * (len(ids) != receipt["ids"])
    for name, part in {"documents": receipt["documents"], **names}.items():
        found = [f"{count}:{total % 2**128:032x}" for count, total in sums[name]]
        wrong += [name] if found != part["buckets"] else []
    print(f"{len(ids):,} ids:", f"{', '.join(wrong)} differ" if wrong else "as the receipt says")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
