"""Hands, clocks, links and moments that nobody plans for."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import vecferry as vf
from vecferry.cli.snapshots import _line
from vecferry.errors import ConfigurationError, CorruptDataError, FatalStoreError, TargetExistsError
from vecferry.snapshots import SnapshotStore
from vecferry.snapshots.transfer import run_all

SAMPLE = Path(__file__).parents[1] / "data" / "faiss_samples" / "langchain_faiss"
LINE = b'{"id": 1, "text": "a", "vector": [1.0]}\n'


@pytest.fixture
def root(tmp_path):
    return tmp_path / "versions"


@pytest.fixture
def store(root):
    return SnapshotStore(f"file:{root}")


def little():
    collection = vf.connect("memory:")
    collection.write([{"id": 1, "text": "a", "vector": [1.0]}])
    return collection


def edit(root, change):
    state = json.loads((root / "metadata.json").read_text())
    change(state)
    (root / "metadata.json").write_text(json.dumps(state))


def names(store):
    return [v.version for v in store.list()]


def test_verify_deletes_nothing_that_a_path_by_hand_names(store, root, tmp_path):
    store.save(little())
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    for path in (str(precious), "../../../precious.txt"):
        edit(root, lambda state, path=path: state["versions"][0]["files"][0].update(path=path))
        (problem,) = store.verify()
        assert "leave its folder" in problem.reason
    assert precious.read_text() == "mine"


def test_prune_during_a_save_of_old_files(store, tmp_path, monkeypatch):
    shutil.copytree(SAMPLE, tmp_path / "kb")
    for path in (tmp_path / "kb").iterdir():
        os.utime(path, (1.6e9, 1.6e9))
    announce = SnapshotStore._announce

    def prune_first(self, snapshot):
        SnapshotStore(self.url).prune(5)
        announce(self, snapshot)

    monkeypatch.setattr(SnapshotStore, "_announce", prune_first)
    store.save(f"faiss:{tmp_path / 'kb'}")
    assert store.verify() == ()


def test_a_name_that_is_still_being_removed_waits(store, monkeypatch):
    store.save(little(), version="a")
    store.save(little(), version="b")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(SnapshotStore, "_delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        store.prune(1)
    with pytest.raises(TargetExistsError, match="run prune"):
        store.save(little(), version="a")
    store.prune(5)
    store.save(little(), version="a")
    store.prune(5)
    assert names(store) == ["a", "b"]
    assert store.verify("a") == ()


def test_the_version_saved_last_is_the_latest_whatever_the_clock_says(store, root):
    store.save(little(), version="ahead")
    edit(root, lambda state: state["versions"][0].update(created="2090-01-01T00:00:00Z"))
    store.save(little(), version="last")
    assert names(store) == ["last", "ahead"]
    assert store.prune(1) == ("ahead",)


def test_a_time_by_hand_without_a_zone_is_utc(store, root):
    store.save(little(), version="a")
    edit(root, lambda state: state["versions"][0].update(created="2020-01-01T00:00:00"))
    store.save(little(), version="b")
    assert names(store) == ["b", "a"]


@pytest.mark.parametrize("version", ["latest", "metadata.json"])
def test_names_with_a_meaning_are_refused(store, version):
    with pytest.raises(ConfigurationError, match="meaning"):
        store.save(little(), version=version)
    assert store.list() == []


def test_repair_leaves_somebodys_own_metadata_alone(store, root):
    root.mkdir()
    (root / "metadata.json").write_text('{"mine": 1}')
    assert store.repair() == ()
    assert (root / "metadata.json").read_text() == '{"mine": 1}'


def test_a_folder_where_metadata_should_be(store, root):
    (root / "metadata.json").mkdir(parents=True)
    with pytest.raises(CorruptDataError, match="is a folder"):
        store.list()


@pytest.mark.parametrize(
    "change",
    [{"format": "pgvector"}, {"open_as": "other.parquet"}, {"files": []}, {"open_as": "../up"}],
    ids=str,
)
def test_an_entry_by_hand_is_refused_before_anything_is_placed(store, root, tmp_path, change):
    store.save(little())
    edit(root, lambda state: state["versions"][0].update(change))
    for action in (lambda: store.open().count(), lambda: store.download(tmp_path / "out" / "kb")):
        with pytest.raises(CorruptDataError):
            action()
    assert not list(tmp_path.rglob("out/*"))


def test_links_in_a_saved_folder_are_refused_and_not_lost(store, tmp_path):
    kb = tmp_path / "kb"
    kb.mkdir()
    (tmp_path / "real.jsonl").write_bytes(LINE)
    (kb / "part.jsonl").symlink_to(tmp_path / "real.jsonl")
    with pytest.raises(ConfigurationError, match="is a link"):
        store.save(f"jsonl:{kb}")
    assert store.save(f"jsonl:{kb}", format="parquet").count == 1
    with store.open() as opened:
        assert opened.count() == 1


def test_a_file_that_could_not_come_back_is_not_saved(store, tmp_path):
    (tmp_path / "kb").mkdir()
    (tmp_path / "kb" / "a\\b.jsonl").write_bytes(LINE)
    with pytest.raises(CorruptDataError, match="leave its folder"):
        store.save(f"jsonl:{tmp_path / 'kb'}")
    assert store.list() == []


def test_a_link_is_replaced_and_what_it_led_to_stays(store, tmp_path):
    store.save(f"faiss:{SAMPLE}")
    shutil.copytree(SAMPLE, tmp_path / "real")
    (tmp_path / "kb").symlink_to(tmp_path / "real")
    store.restore("latest", f"faiss:{tmp_path / 'kb'}", mode="replace")
    assert not (tmp_path / "kb").is_symlink()
    assert len(list((tmp_path / "real").iterdir())) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kb", "real", "versions"]


def test_a_failed_download_leaves_nothing(store, root, tmp_path):
    version = store.save(little()).version
    (root / version / "snapshot.parquet").write_bytes(b"x")
    with pytest.raises(CorruptDataError):
        store.download(tmp_path / "out" / "kb.parquet")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_note_of_several_lines_is_one_line_of_the_list(store):
    assert "\n" not in _line(store.save(little(), note="one\ntwo"))


def test_a_temporary_folder_that_cannot_be(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FatalStoreError, match="TMPDIR"):
        SnapshotStore(f"file:{root}", temp_dir=tmp_path / "file").save(little())


_OTHER_USER = """
import os, sys
from vecferry.snapshots.workspace import Workspace
os.setuid(int(sys.argv[1]))
Workspace().close()
"""


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be another user")
def test_users_share_the_folder_for_temporary_files():
    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o1777)
        for user in ("0", "65534"):
            environment = {**os.environ, "TMPDIR": shared}
            subprocess.run([sys.executable, "-c", _OTHER_USER, user], check=True, env=environment)


def test_ctrl_c_stops_what_has_not_begun():
    done = []

    def task():
        time.sleep(0.05)
        done.append(1)

    # A shell starts what runs in its background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            run_all([task] * 400)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(done) < 200


def test_the_key_of_one_file_is_opened_twice(s3):
    s3.put("kb/a.jsonl", LINE)
    s3.put("kb/b.jsonl", LINE + LINE)
    collection = vf.connect(s3.url("kb/a.jsonl"))
    assert collection.count() == 1
    collection.close()
    assert collection.count() == 1


@pytest.mark.parametrize("content", [b"", b"null", None])
def test_versions_without_their_list_are_not_read_as_one_folder(s3, content):
    store = SnapshotStore(s3.url())
    store.save(little(), version="a")
    store.save(little(), version="b")
    if content is None:
        s3.client.delete_object(Bucket=s3.bucket, Key="kb/metadata.json")
    else:
        s3.put("kb/metadata.json", content)
    with pytest.raises(CorruptDataError, match="repair"):
        vf.connect(s3.url()).count()
    store.repair()
    assert vf.connect(s3.url()).count() == 1


def test_a_login_in_the_url_is_refused():
    with pytest.raises(ConfigurationError, match="takes no login"):
        SnapshotStore("s3://key:word@bucket/kb")


def test_a_key_that_is_file_and_folder(s3):
    s3.put("kb/a.jsonl", LINE)
    s3.put("kb/a.jsonl/b.jsonl", LINE)
    with pytest.raises(CorruptDataError, match="of one name"):
        vf.connect(s3.url()).count()


def test_more_files_than_a_process_may_open(s3, tmp_path):
    kb = tmp_path / "kb"
    kb.mkdir()
    for n in range(120):
        (kb / f"{n}.jsonl").write_bytes(LINE)
    store = SnapshotStore(s3.url())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/dev/fd").iterdir())) + 100, hard))
    try:
        store.save(f"jsonl:{kb}")
        store.download(tmp_path / "back")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list((tmp_path / "back").iterdir())) == 120
