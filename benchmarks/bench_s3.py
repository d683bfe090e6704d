"""Snapshots to and from S3 against boto3's own TransferManager, on one server (moto, its own process).

python benchmarks/bench_s3.py
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

SIZE = 128 << 20
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
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        config=Config(max_pool_connections=2 * WORKERS),
    )
    client.create_bucket(Bucket="bench")
    files = [folder / "index.faiss", folder / "rows.parquet"]
    for path in files:
        path.write_bytes(os.urandom(SIZE // 2))
    ours = S3Objects("bench", "ours", endpoint_url=endpoint)
    config = TransferConfig(max_concurrency=WORKERS)

    def theirs_up() -> int:
        for path in files:
            client.upload_file(str(path), "bench", f"theirs/{path.name}", Config=config)
        return SIZE

    def ours_up() -> int:
        ours.upload([(path, path.name) for path in files], lambda n: None)
        return SIZE

    def clear() -> None:
        for key in ("ours/index.faiss", "ours/rows.parquet", "theirs/index.faiss", "theirs/rows.parquet"):
            client.delete_object(Bucket="bench", Key=key)

    limit, side = Side("boto3 TransferManager", theirs_up, clear), Side("snapshots", ours_up, clear)
    compare("upload, bytes", limit, side, goal=0.9)
    theirs_up()
    ours_up()
    infos: list[ObjectInfo] = sorted(ours.list(), key=lambda info: info.key)

    def theirs_down() -> int:
        for path in files:
            client.download_file(
                "bench", f"theirs/{path.name}", str(folder / f"t-{path.name}"), Config=config
            )
        return SIZE

    def ours_down() -> int:
        ours.download([(info, folder / f"o-{info.key}") for info in infos], lambda n: None)
        return SIZE

    def empty() -> None:
        for path in folder.glob("[ot]-*"):
            path.unlink()

    limit, side = Side("boto3 TransferManager", theirs_down, empty), Side("snapshots", ours_down, empty)
    compare("download, bytes", limit, side, goal=0.9)


if __name__ == "__main__":
    main()
