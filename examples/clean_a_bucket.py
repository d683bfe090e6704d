"""A FAISS folder in a bucket: fetch it, let the newest of each text win, save a version, move it to Qdrant.

python examples/clean_a_bucket.py

runs against a server in this process (pip install 'moto[s3]' flask flask-cors) and an embedded Qdrant.
With AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL) set, it does so to your own folder:

python examples/clean_a_bucket.py s3://my-bucket/prefix qdrant://localhost:6333/kb

``created_at`` in the metadata says which record is newer.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import vecferry as vf
from vecferry.dedupe import Dedupe, dedupe
from vecferry.snapshots import SnapshotStore

DATA = Path(__file__).parent / "data" / "wordnet_langchain"


def story(bucket_folder: str, versions: str, qdrant: str, work: Path) -> None:
    """Bucket → local folder → dedupe → new version → Qdrant → proof."""
    local = f"faiss:{work / 'vectorstore'}"
    print(f"1. fetch {bucket_folder}")
    vf.migrate(bucket_folder, local, layout="langchain").check()

    print("2. remove duplicates, the newest wins")
    rule = Dedupe(by="text", normalize=True, keep="newest", timestamp="metadata:created_at")
    cleaned = dedupe(
        local, rule, audit=work / "removed.jsonl", backup=f"jsonl:{work / 'removed-records.jsonl'}"
    )
    print(cleaned)

    print("3. save a version")
    store = SnapshotStore(versions)
    saved = store.save(local, note="newest of each text", dedupe=cleaned.report)
    print(f"   {saved.version}: {saved.count:,} records, {saved.bytes:,} bytes")

    print("4. move it to Qdrant, and prove it")
    report = store.restore(saved.version, qdrant, mode="replace")
    report.check()
    print(report)


@contextmanager
def a_bucket_of_our_own() -> Iterator[str]:
    """A server with a LangChain folder in which every fourth record stands twice."""
    import boto3
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://{host}:{port}", AWS_ACCESS_KEY_ID="demo", AWS_SECRET_ACCESS_KEY="demo"
    )
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="rag")
    with tempfile.TemporaryDirectory() as folder:
        with_duplicates(f"faiss:{folder}/vectorstore")
        for path in Path(folder, "vectorstore").iterdir():
            if path.is_file():
                client.upload_file(str(path), "rag", f"dataset_rag/4_vectorstore/vectorstore/{path.name}")
    try:
        yield "s3://rag/dataset_rag/4_vectorstore/vectorstore"
    finally:
        server.stop()


def with_duplicates(url: str) -> None:
    """Real glosses; a quarter of them a second time, written later and a little differently."""
    records = list(vf.connect(f"faiss:{DATA}").records())
    first = [r.replace(metadata={**r.metadata, "created_at": "2025-01-01T00:00:00Z"}) for r in records]
    again = [
        r.replace(
            id=f"{r.id}-again",
            text=f" {(r.text or '').upper()} ",
            metadata={**r.metadata, "created_at": "2026-01-01T00:00:00Z"},
        )
        for r in records[::4]
    ]
    memory = vf.connect("memory:")
    memory.write(first + again)
    vf.migrate(memory, url, layout="langchain").check()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) == 3:
            bucket = sys.argv[1]
            story(bucket, f"{bucket}-versions", sys.argv[2], Path(folder))
            return
        with a_bucket_of_our_own() as bucket:
            story(bucket, "s3://rag/versions", f"qdrant:{folder}/qdrant#kb", Path(folder))


if __name__ == "__main__":
    main()
