"""Snapshots to and from S3 against boto3's own TransferManager, on one server (moto, its own process).

python benchmarks/bench_s3.py

Both sides move the same files in parts of 8 MiB, eight at a time, with a client made before. Both sign
every part with its SHA-256 and name its CRC-32; ours also takes the SHA-256 of the whole file. The peer is
called as its manual shows, ``client.upload_file`` for one file after the other. The server shares the
machine, so what a request costs the server counts as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from common import Side, compare

from vecferry.snapshots.objects import ObjectInfo
from vecferry.snapshots.s3 import WORKERS, S3Objects
from vecferry.snapshots.transfer import PART

SIZE = 256 << 20
FILES = ("index.faiss", "rows.parquet")
ROUNDS = 15
PORT = 5055


def wait_for(endpoint: str) -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(endpoint, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("moto did not start")


def main() -> None:
    os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="y", AWS_EC2_METADATA_DISABLED="true")
    endpoint = f"http://127.0.0.1:{PORT}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(PORT)]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(endpoint)
            measure(endpoint, Path(folder))
        finally:
            server.terminate()
            server.wait()


def measure(endpoint: str, folder: Path) -> None:
    config = Config(max_pool_connections=2 * WORKERS)
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)
    client.create_bucket(Bucket="bench")
    files = [folder / name for name in FILES]
    for path in files:
        path.write_bytes(os.urandom(SIZE // len(FILES)))
    ours = S3Objects("bench", "ours", endpoint_url=endpoint)
    transfer = TransferConfig(max_concurrency=WORKERS, multipart_threshold=PART, multipart_chunksize=PART)

    def theirs_up() -> int:
        for path in files:
            client.upload_file(str(path), "bench", f"theirs/{path.name}", Config=transfer)
        return SIZE

    def ours_up() -> int:
        ours.upload([(path, path.name) for path in files], lambda n: None)
        return SIZE

    def clear() -> None:
        for key in (f"{side}/{name}" for side in ("ours", "theirs") for name in FILES):
            client.delete_object(Bucket="bench", Key=key)

    limit, side = Side("boto3 TransferManager", theirs_up, clear), Side("snapshots", ours_up, clear)
    theirs_up()
    ours_up()  # both once, so that connections, threads and the server are warm
    compare("upload, bytes", limit, side, goal=0.9, rounds=ROUNDS)
    theirs_up()
    ours_up()
    infos: list[ObjectInfo] = sorted(ours.list(), key=lambda info: info.key)

    def theirs_down() -> int:
        for path in files:
            client.download_file(
                "bench", f"theirs/{path.name}", str(folder / f"t-{path.name}"), Config=transfer
            )
        return SIZE

    def ours_down() -> int:
        ours.download([(info, folder / f"o-{info.key}") for info in infos], lambda n: None)
        return SIZE

    def empty() -> None:
        for path in folder.glob("[ot]-*"):
            path.unlink()

    limit, side = Side("boto3 TransferManager", theirs_down, empty), Side("snapshots", ours_down, empty)
    compare("download, bytes", limit, side, goal=0.9, rounds=ROUNDS)


if __name__ == "__main__":
    main()
