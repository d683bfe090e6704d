"""Faults on the way to and from S3, against a real HTTP server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from known import some
from servers.s3 import answer, times
from vecferry.errors import (
    ConfigurationError,
    CorruptDataError,
    FatalStoreError,
    NotFoundError,
    UnsupportedError,
)
from vecferry.snapshots import SnapshotStore, transfer

SAMPLE = Path(__file__).parents[1] / "data" / "faiss_samples" / "langchain_faiss"
FOLDER = "dataset_rag/4_vectorstore/vectorstore"
MIB = 1 << 20


@pytest.fixture
def folder(s3):
    """A plain LangChain folder in the bucket, as it was before there was this library."""
    for path in SAMPLE.iterdir():
        s3.put(f"{FOLDER}/{path.name}", path.read_bytes())
    return s3.url(FOLDER)


@pytest.fixture
def big(tmp_path, monkeypatch):
    """A folder with one file of several parts."""
    monkeypatch.setattr(transfer, "PART", 5 * MIB)
    place = tmp_path / "big"
    place.mkdir()
    for name in ("index.faiss", "index.pkl"):
        (place / name).write_bytes((SAMPLE / name).read_bytes())
    (place / "attachment.bin").write_bytes(os.urandom(17 * MIB + 3))
    return place


def left_behind(tmp_path):
    rooms = [p for p in tmp_path.rglob("vecferry-snapshots-*") if p.is_dir()]
    return [p for room in rooms for p in room.iterdir() if p.is_dir()]


def test_a_plain_folder_in_a_bucket_is_a_source(folder, tmp_path):
    target = vf.connect("memory:")
    vf.migrate(folder, target).check()
    assert target.count() == 200
    with vf.connect(folder) as source:
        assert source.describe().layout == "langchain"
        assert left_behind(tmp_path)
    assert left_behind(tmp_path) == []


def test_a_single_file_and_a_prefix_of_versions_are_sources(s3, tmp_path):
    vf.connect(f"jsonl:{tmp_path / 'kb.jsonl'}").write([{"id": 1, "text": "x", "vector": [1.0]}])
    s3.put("exports/kb.jsonl", (tmp_path / "kb.jsonl").read_bytes())
    with vf.connect(s3.url("exports/kb.jsonl")) as source:
        assert source.count() == 1
    SnapshotStore(s3.url()).save(f"jsonl:{tmp_path / 'kb.jsonl'}", version="one")
    with vf.connect(s3.url() + "&version=one") as source:
        assert [r.text for r in source.records()] == ["x"]
    with pytest.raises(NotFoundError, match="two"), vf.connect(s3.url() + "&version=two") as source:
        source.count()


@pytest.mark.parametrize("fault", ["drop before", "drop after", "cut", "500", "503", "SlowDown"])
def test_passing_faults_are_ridden_out_both_ways(s3, big, tmp_path, fault):
    def some(method):
        return times(3, lambda r: r.method in method and "/kb/" in r.path)

    if fault == "drop before":
        s3.faults.drop_before.append(some(("GET", "PUT", "POST")))
    elif fault == "drop after":
        s3.faults.drop_after.append(some(("PUT", "POST")))
        s3.faults.drop_after.append(some(("GET",)))
    elif fault == "cut":
        s3.faults.cut_body.append(some(("GET",)))
    else:
        code, name = (503, "SlowDown") if fault == "SlowDown" else (int(fault), "InternalError")
        s3.faults.answers.append(answer(code, name, some(("GET", "PUT", "POST"))))
    store = SnapshotStore(s3.url())
    saved = store.save(f"faiss:{big}")
    for name in ("index.faiss", "attachment.bin"):
        assert s3.get(f"kb/{saved.version}/{name}") == (big / name).read_bytes()
    s3.faults.cut_body.append(some(("GET",)))
    store.download(tmp_path / "back")
    assert (tmp_path / "back/attachment.bin").read_bytes() == (big / "attachment.bin").read_bytes()
    assert len(store.list()) == 1
    uploads = s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads", [])
    assert uploads == []


def test_a_stale_listing_hides_nothing_of_a_version(s3, tmp_path):
    store = SnapshotStore(s3.url())
    store.save(f"faiss:{SAMPLE}")

    def without_contents(request, data):
        if request.method != "GET" or "list-type=2" not in request.path:
            return data
        start, stop = data.find(b"<Contents>"), data.rfind(b"</Contents>")
        return data if start < 0 else data[:start] + data[stop + len(b"</Contents>") :]

    s3.faults.edits.append(without_contents)
    store.download(tmp_path / "back")
    assert (tmp_path / "back/index.faiss").read_bytes() == (SAMPLE / "index.faiss").read_bytes()


def test_an_object_that_changes_during_the_download(s3, folder, tmp_path):
    changed = times(1, lambda r: r.method == "GET" and r.key.endswith("index.faiss"))

    def hook(request):
        if changed(request):
            s3.put(f"{FOLDER}/index.faiss", b"another")

    s3.faults.before.append(hook)
    with pytest.raises(CorruptDataError, match="changed or vanished"), vf.connect(folder) as source:
        source.describe()
    assert left_behind(tmp_path) == []


def test_an_object_that_vanishes_during_the_download(s3, folder, tmp_path):
    gone = times(1, lambda r: r.method == "GET" and r.key.endswith("index.pkl"))

    def hook(request):
        if gone(request):
            s3.client.delete_object(Bucket=s3.bucket, Key=f"{FOLDER}/index.pkl")

    s3.faults.before.append(hook)
    with pytest.raises(CorruptDataError, match="changed or vanished"), vf.connect(folder) as source:
        source.describe()
    assert left_behind(tmp_path) == []


def test_keys_that_climb_out_are_refused(s3, tmp_path):
    s3.put("evil/index.faiss", b"x")
    s3.put("evil/../../../../tmp/evil.faiss", b"x")
    with pytest.raises(CorruptDataError, match="leave its folder"), vf.connect(s3.url("evil")) as source:
        source.describe()
    assert left_behind(tmp_path) == []


def test_bytes_that_are_damaged_on_the_way_are_fetched_again(s3, tmp_path):
    store = SnapshotStore(s3.url())
    store.save(f"faiss:{SAMPLE}")
    once = times(1, lambda r: r.method == "GET" and r.key.endswith("index.pkl"))

    def flip(request, data):
        return data[:50] + bytes([data[50] ^ 1]) + data[51:] if once(request) else data

    s3.faults.edits.append(flip)
    store.download(tmp_path / "back")
    assert (tmp_path / "back/index.pkl").read_bytes() == (SAMPLE / "index.pkl").read_bytes()


def test_an_interrupted_upload_is_gone_on_with(s3, big):
    store = SnapshotStore(s3.url())
    s3.faults.answers.append(
        answer(403, "AccessDenied", lambda r: r.method == "PUT" and "partNumber=4" in r.path)
    )
    with pytest.raises(FatalStoreError, match="access denied"):
        store.save(f"faiss:{big}")
    assert store.list() == []
    s3.faults.answers.clear()
    s3.faults.seen.clear()
    saved = store.save(f"faiss:{big}")
    assert s3.faults.count("PUT", "partNumber") < 4
    assert s3.get(f"kb/{saved.version}/attachment.bin") == (big / "attachment.bin").read_bytes()
    assert {k.split("/")[1] for k in s3.keys("kb/") if k.count("/") > 1} == {saved.version}
    assert s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads", []) == []


def test_an_interrupted_download_is_gone_on_with(s3, big, tmp_path):
    store = SnapshotStore(s3.url())
    saved = store.save(f"faiss:{big}")
    once = times(1, lambda r: r.key.endswith("attachment.bin"))

    def delayed(request: Any) -> bool:
        if not once(request):
            return False
        time.sleep(1)  # the other ranges arrive first
        return True

    s3.faults.answers.append(answer(403, "AccessDenied", delayed))
    with pytest.raises(FatalStoreError):
        _fetch_into(store, saved, tmp_path / "kept")
    s3.faults.seen.clear()
    _fetch_into(store, saved, tmp_path / "kept")
    assert s3.faults.count("GET", "attachment.bin") < 4
    assert (tmp_path / "kept/attachment.bin").read_bytes() == (big / "attachment.bin").read_bytes()
    assert not (tmp_path / "kept/attachment.bin.parts").exists()


def _fetch_into(store, snapshot, place):
    from vecferry.snapshots.opening import fetch

    place.mkdir(exist_ok=True)
    fetch(store._objects, snapshot, place, lambda size: None)


def test_a_file_that_changes_while_it_is_saved(s3, big):
    def hook(request):
        if request.method == "PUT" and "partNumber=1" in request.path:
            with (big / "attachment.bin").open("ab") as file:
                file.write(b"more")

    s3.faults.before.append(hook)
    store = SnapshotStore(s3.url())
    with pytest.raises(CorruptDataError, match="changed while"):
        store.save(f"faiss:{big}")
    assert store.list() == []


def test_a_server_that_ignores_conditions_is_refused(s3):
    s3.faults.answers.append(answer(200, "", lambda r: r.method == "PUT" and "probe" in r.path))
    with pytest.raises(UnsupportedError, match="conditional"):
        SnapshotStore(s3.url()).save(f"faiss:{SAMPLE}")


def test_a_bucket_or_prefix_that_is_not_there(s3):
    with pytest.raises(NotFoundError, match="no bucket 'nowhere-to-be'"):
        SnapshotStore(f"s3://nowhere-to-be/kb?endpoint_url={s3.endpoint}").list()
    with pytest.raises(NotFoundError, match="holds nothing"), vf.connect(s3.url("empty")) as source:
        source.describe()
    s3.put("text/readme.txt", b"x")
    with pytest.raises(ConfigurationError, match="no index"), vf.connect(s3.url("text")) as source:
        source.describe()


def test_credentials_are_asked_for_by_name_and_never_shown(s3, monkeypatch):
    for code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"):
        s3.faults.answers[:] = [answer(403, code, lambda r: True)]
        with pytest.raises(ConfigurationError, match=code) as caught:
            SnapshotStore(s3.url()).list()
        assert "not-a-real-secret" not in str(caught.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(ConfigurationError, match="AWS_ACCESS_KEY_ID"):
        SnapshotStore(s3.url()).list()
    with pytest.raises(ConfigurationError, match="profile"):
        SnapshotStore(s3.url(), profile="nobody").list()
    with pytest.raises(ConfigurationError, match="takes no login"):
        vf.connect(f"s3://key:secret@{s3.bucket}/kb")


def kept_sum(s3, version):
    key = f"kb/{version}/attachment.bin"
    answer = s3.client.head_object(Bucket=s3.bucket, Key=key, ChecksumMode="ENABLED")
    return answer.get("ChecksumCRC32")


def test_parts_carry_sums_where_the_server_keeps_them(s3, big):
    store = SnapshotStore(s3.url())
    assert kept_sum(s3, store.save(f"faiss:{big}").version)
    refuse = times(1, lambda request: request.method == "POST" and "uploads" in request.path)
    s3.faults.answers[:] = [answer(501, "NotImplemented", refuse)]
    saved = store.save(f"faiss:{big}")
    assert s3.get(f"kb/{saved.version}/attachment.bin") == (big / "attachment.bin").read_bytes()
    assert not kept_sum(s3, saved.version)
    assert store.verify() == ()


KILLED = """
import sys
from vecferry.snapshots import SnapshotStore, transfer
transfer.PART = 5 << 20
store = SnapshotStore(sys.argv[1])
print("ready", flush=True)
{action}
"""


@pytest.mark.chaos
@pytest.mark.parametrize(
    "delay", [0.3, *(pytest.param(d, marks=pytest.mark.slow) for d in (0.05, 0.15, 0.6))]
)
@pytest.mark.parametrize("action", ["save", "prune", "restore"])
def test_killed_at_any_instant(s3, big, tmp_path, action, delay):
    store = SnapshotStore(s3.url())
    good = [store.save(f"faiss:{SAMPLE}", version=name).version for name in ("a", "b")]
    if action == "restore":
        store.save(f"faiss:{big}", version="c")
    goal = tmp_path / "goal"
    goal.mkdir()
    (goal / "index.faiss").write_bytes(b"old")
    code = {
        "save": f"store.save('faiss:{big}')",
        "prune": "store.prune(1)",
        "restore": f"store.restore('c', 'faiss:{goal}', mode='replace')",
    }[action]
    s3.faults.before.append(lambda request: time.sleep(0.05))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(action=code), s3.url()],
        stdout=subprocess.PIPE,
        env=dict(os.environ),
    )
    assert some(process.stdout).readline() == b"ready\n"
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    s3.faults.before.clear()
    for version in store.list():
        assert store.verify(version.version) == ()
    if action == "prune":
        store.prune(1)
        assert {k.split("/")[1] for k in s3.keys("kb/") if k.count("/") > 1} == {"b"}
        return
    assert {v.version for v in store.list()} >= set(good)
    if action == "save":
        saved = store.save(f"faiss:{big}")
        assert s3.get(f"kb/{saved.version}/attachment.bin") == (big / "attachment.bin").read_bytes()
        begun = {k.split("/")[1] for k in s3.keys("kb/") if k.count("/") > 1}
        assert begun == {v.version for v in store.list()}  # the interrupted version was gone on with
    else:
        assert (goal / "index.faiss").read_bytes() in (b"old", (big / "index.faiss").read_bytes())
        store.restore("c", f"faiss:{goal}", mode="replace")
        assert (goal / "attachment.bin").read_bytes() == (big / "attachment.bin").read_bytes()
        assert left_behind(tmp_path) == []


def test_the_catalog_is_json_that_people_can_read(s3):
    SnapshotStore(s3.url()).save(f"faiss:{SAMPLE}", note="für Menschen")
    data = json.loads(s3.get("kb/metadata.json"))
    assert data["format"] == "vecferry-snapshots"
    assert data["versions"][0]["note"] == "für Menschen"


def test_empty_objects_that_stand_for_folders_are_no_files(folder, s3):
    for marker in (f"{FOLDER}/", f"{FOLDER}/sub/", f"{FOLDER}_$folder$", f"{FOLDER}/sub_$folder$"):
        s3.put(marker, b"")
    with vf.connect(folder) as source:
        assert source.count() == 200
    with vf.connect(folder + "/") as source:
        assert source.count() == 200


def test_a_public_bucket_is_read_without_a_signature(folder, s3, monkeypatch):
    s3.client.put_bucket_acl(Bucket=s3.bucket, ACL="public-read")
    for key in s3.keys(FOLDER):
        s3.client.put_object_acl(Bucket=s3.bucket, Key=key, ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigurationError, match=r"no credentials.*anonymous=1"):
        vf.connect(folder).describe()
    joined = "&" if "?" in folder else "?"
    with vf.connect(f"{folder}{joined}anonymous=1") as source:
        assert source.count() == 200
        assert "Authorization" not in last_headers(source)


def last_headers(source):
    """What a request of this source would be signed with."""
    client = source.store._objects.client
    sent = []
    client.meta.events.register("before-send.s3", lambda request, **_: sent.append(dict(request.headers)))
    source.store._objects.head("index.pkl")
    return sent[-1]


def test_a_reader_who_pays_says_so_in_every_request(folder):
    joined = "&" if "?" in folder else "?"
    with vf.connect(f"{folder}{joined}requester_pays=1") as source:
        assert source.count() == 200
        assert last_headers(source)["x-amz-request-payer"] in (b"requester", "requester")
    with vf.connect(folder) as source:
        source.describe()
        assert "x-amz-request-payer" not in last_headers(source)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("SSOTokenLoadError(profile_name='work', error_msg='gone')", "aws sso login"),
        ("UnauthorizedSSOTokenError()", "aws sso login"),
        ("SSLError(endpoint_url='https://x', error='CERTIFICATE_VERIFY_FAILED')", "AWS_CA_BUNDLE"),
    ],
)
def test_what_no_waiting_mends_is_said_at_once(folder, monkeypatch, error, said):
    from botocore import exceptions

    raised = eval(error, vars(exceptions))
    source = vf.connect(folder)

    def fail(**_):
        raise raised

    monkeypatch.setattr(source.store._objects.client, "get_object", fail)
    with pytest.raises(ConfigurationError, match=said):
        source.describe()


def test_a_bundle_of_authorities_that_is_not_there_is_named(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    source = vf.connect(folder.replace("http://", "https://"))
    with pytest.raises(ConfigurationError, match="AWS_CA_BUNDLE"):
        source.describe()
