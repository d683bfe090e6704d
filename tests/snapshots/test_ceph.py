"""Against a server that checks signatures, checksums and conditions: run by ``make test-ceph``."""

import os
import threading
from pathlib import Path
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config

import vecferry as vf
from vecferry.errors import ConfigurationError, FatalStoreError
from vecferry.snapshots import SnapshotStore, transfer

ENDPOINT = os.environ.get("VECFERRY_TEST_S3")
SAMPLE = Path(__file__).parents[1] / "data" / "faiss_samples" / "langchain_faiss"
pytestmark = pytest.mark.skipif(not ENDPOINT, reason="needs VECFERRY_TEST_S3; see tests/ceph/run.sh")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    client = boto3.client(
        "s3", endpoint_url=ENDPOINT, region_name="us-east-1", config=Config(s3={"addressing_style": "path"})
    )
    name = f"b-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return client, name


def url(name, prefix="kb"):
    return f"s3://{name}/{prefix}?endpoint_url={ENDPOINT}"


def test_a_version_with_parts_goes_there_and_back(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "PART", 5 << 20)
    client, name = bucket
    place = tmp_path / "big"
    place.mkdir()
    for path in SAMPLE.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    (place / "attachment.bin").write_bytes(os.urandom((17 << 20) + 3))
    store = SnapshotStore(url(name))
    saved = store.save(f"faiss:{place}", note="größer")
    behind = client.get_object(Bucket=name, Key=f"kb/{saved.version}/attachment.bin")["Body"].read()
    assert behind == (place / "attachment.bin").read_bytes()
    assert store.verify() == ()
    store.download(tmp_path / "back")
    assert (tmp_path / "back/attachment.bin").read_bytes() == behind
    store.restore("latest", "memory:").check()
    store.save(f"faiss:{SAMPLE}")
    assert store.prune(1) == (saved.version,)


def test_a_plain_folder_is_a_source(bucket):
    client, name = bucket
    for path in SAMPLE.iterdir():
        client.upload_file(str(path), name, f"a folder/ünïcode/{path.name}")
    with vf.connect(url(name, "a folder/ünïcode")) as source:
        assert source.count() == 200


def test_writers_at_once_lose_nothing(bucket):
    _, name = bucket
    failures = []

    def save(number):
        try:
            SnapshotStore(url(name)).save(f"faiss:{SAMPLE}", note=str(number))
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=save, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(int(v.note) for v in SnapshotStore(url(name)).list()) == list(range(16))


def test_wrong_keys_are_refused(bucket, monkeypatch):
    _, name = bucket
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises((ConfigurationError, FatalStoreError), match="credentials"):
        SnapshotStore(url(name)).list()
