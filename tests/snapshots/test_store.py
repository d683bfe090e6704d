"""What a `SnapshotStore` promises, in a bucket and in a folder; looked at with the vendor's own client."""

import hashlib
import json
import shutil
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vecferry as vf
from vecferry.dedupe import DedupeReport
from vecferry.errors import (
    ConfigurationError,
    CorruptDataError,
    NotFoundError,
    TargetExistsError,
)
from vecferry.snapshots import SnapshotStore

SAMPLE = Path(__file__).parents[1] / "data" / "faiss_samples" / "langchain_faiss"


@pytest.fixture(params=["s3", "file"])
def place(request, tmp_path):
    """A store, and functions that look behind it: keys and bytes below its prefix."""
    if request.param == "file":
        root = tmp_path / "versions"

        def files():
            found = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
            return sorted(k for k in found if not k.startswith("."))

        return SnapshotStore(f"file:{root}"), files, lambda key: (root / key).read_bytes(), lambda k, b: (
            (root / k).parent.mkdir(parents=True, exist_ok=True), (root / k).write_bytes(b))  # fmt: skip
    s3 = request.getfixturevalue("s3")

    def keys():
        return sorted(k.removeprefix("kb/") for k in s3.keys("kb/") if ".vecferry-probe" not in k)

    return SnapshotStore(s3.url()), keys, lambda k: s3.get(f"kb/{k}"), lambda k, b: s3.put(f"kb/{k}", b)


def little(name="", n=5, **changes):
    """A small collection in memory."""
    collection = vf.connect(f"memory:{name}")
    rows = [
        {"id": i, "text": f"text {i}", "vector": [float(i), 1.0], "metadata": {"n": i}} for i in range(n)
    ]
    for id_, text in changes.items():
        rows[int(id_[1:])]["text"] = text
    collection.write(rows)
    return collection


def test_a_langchain_folder_stays_one(place, tmp_path):
    store, keys, read, _ = place
    saved = store.save(f"faiss:{SAMPLE}", note="as it is", dedupe=DedupeReport(3, ()))
    assert keys() == sorted(
        [f"{saved.version}/{n}" for n in ("index.faiss", "index.pkl", "manifest.json")] + ["metadata.json"]
    )
    for name in ("index.faiss", "index.pkl"):
        assert read(f"{saved.version}/{name}") == (SAMPLE / name).read_bytes()
    (entry,) = json.loads(read("metadata.json"))["versions"]
    assert entry["files"][0]["sha256"] == hashlib.sha256((SAMPLE / "index.faiss").read_bytes()).hexdigest()
    assert (entry["count"], entry["dim"], entry["note"], entry["format"]) == (200, 384, "as it is", "faiss")
    assert entry["dedupe"]["removed"] == 3
    assert entry["library"] == vf.__version__
    store.download(tmp_path / "back")
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["index.faiss", "index.pkl"]
    assert not list(tmp_path.rglob("*fetching*"))


def test_anything_else_becomes_parquet_and_comes_back(place):
    store, keys, *_ = place
    saved = store.save(little())
    assert f"{saved.version}/snapshot.parquet" in keys()
    with store.open() as opened:
        assert sorted(r.id for r in opened.records()) == [0, 1, 2, 3, 4]
        assert opened.search([4.0, 1.0], k=1)[0].id in range(5)
    target = vf.connect("memory:")
    store.restore("latest", target).check()
    assert target.count() == 5


def test_versions_are_newest_first(place):
    store, *_ = place
    names = [store.save(little(), note=str(n)).version for n in range(3)]
    assert [v.version for v in store.list()] == names[::-1]
    assert store.get().note == "2"
    with pytest.raises(NotFoundError, match="the newest are"):
        store.get("never")


def test_a_name_of_ones_own_is_taken_once(place):
    store, *_ = place
    store.save(little(), version="v1")
    with pytest.raises(TargetExistsError, match="v1"):
        store.save(little(), version="v1")
    for bad in ("../up", "", "a/b", ".hidden"):
        with pytest.raises(ConfigurationError):
            store.save(little(), version=bad)


def test_diff_tells_added_removed_and_changed(place):
    store, *_ = place
    store.save(little(n=5), version="old")
    store.save(little(n=6, _2="another"), version="new")
    found = store.diff("old", "new")
    assert (found.added_ids, found.removed_ids, found.changed_ids, found.unchanged) == ([5], [], [2], 4)
    back = store.diff("new", "old")
    assert (back.added, back.removed_ids, back.changed_ids) == (0, [5], [2])
    assert store.diff("new", "new").equal


def test_prune_keeps_the_newest_and_deletes_the_files_of_others(place):
    store, keys, *_ = place
    names = [store.save(little()).version for _ in range(3)]
    assert set(store.prune(1)) == set(names[:2])
    assert {k.partition("/")[0] for k in keys()} == {names[2], "metadata.json"}
    with pytest.raises(ConfigurationError):
        store.prune(0)


def test_prune_goes_on_where_it_was_killed(place):
    store, keys, read, write = place
    old, new = (store.save(little()).version for _ in range(2))
    state = json.loads(read("metadata.json"))
    state["removing"] = [old]
    state["versions"] = state["versions"][:1]
    write("metadata.json", json.dumps(state).encode())
    assert store.prune(1) == (old,)
    assert {k.partition("/")[0] for k in keys()} == {new, "metadata.json"}


def test_prune_removes_what_an_interrupted_save_left(place):
    store, keys, _, write = place
    store.save(little(), version="good")
    write("20240101T000000Z-0123abcd/half.parquet", b"half")
    write("my-own-things/notes.txt", b"mine")
    store.prune(1)
    assert any("half" in k for k in keys())  # it may be on its way at this moment
    store.prune(1, abandoned_after=timedelta(seconds=-5))
    assert not any("half" in k for k in keys())
    assert "my-own-things/notes.txt" in keys()


def test_a_damaged_file_is_found_and_not_opened(place, tmp_path):
    store, _, read, write = place
    saved = store.save(f"faiss:{SAMPLE}")
    assert store.verify() == ()
    key = f"{saved.version}/index.pkl"
    data = bytearray(read(key))
    data[100] ^= 1
    write(key, bytes(data))
    (problem,) = store.verify()
    assert problem.path == "index.pkl"
    with pytest.raises(CorruptDataError, match=r"index\.pkl"):
        store.download(tmp_path / "back")
    write(key, bytes(data[:-1]))
    with pytest.raises(CorruptDataError, match="bytes where"):
        store.open().describe()
    assert not (tmp_path / "back").exists()
    assert not [p for p in tmp_path.rglob("index.faiss") if "versions" not in p.parts]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"versions": []}',
        b'{"format": "vecferry-snapshots", "versions": [{"version": "../x"}]}',
    ],
)
def test_a_metadata_file_of_another_hand_is_left_alone(place, content):
    store, _, read, write = place
    store.save(little(), version="good")
    write("metadata.json", content)
    for action in (store.list, lambda: store.save(little()), lambda: store.prune(1)):
        with pytest.raises(CorruptDataError, match="repair"):
            action()
    assert read("metadata.json") == content
    assert [v.version for v in store.repair()] == ["good"]
    with store.open("good") as opened:
        assert opened.count() == 5


def test_a_file_name_that_climbs_out_is_refused(place, tmp_path):
    store, _, read, write = place
    store.save(little(), version="good")
    state = json.loads(read("metadata.json"))
    for path in ("../../evil", "/etc/evil", "a\\..\\evil", "a//b"):
        state["versions"][0]["files"][0]["path"] = path
        write("metadata.json", json.dumps(state).encode())
        with pytest.raises(CorruptDataError, match="leave its folder"):
            store.download(tmp_path / "back")
    assert not list(tmp_path.rglob("*evil*"))


def test_a_full_disk_is_told_before_anything_is_fetched(place, tmp_path, monkeypatch):
    store, *_ = place
    store.save(little())
    tight = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr("vecferry.snapshots.workspace.shutil.disk_usage", lambda path: tight)
    with pytest.raises(vf.VecferryError, match="10 bytes free"):
        store.open().describe()


def test_restore_puts_the_very_files_or_migrates(place, tmp_path):
    store, *_ = place
    store.save(f"faiss:{SAMPLE}", version="v")
    goal = tmp_path / "kb"
    store.restore("v", f"faiss:{goal}")
    assert (goal / "index.pkl").read_bytes() == (SAMPLE / "index.pkl").read_bytes()
    with pytest.raises(TargetExistsError):
        store.restore("v", f"faiss:{goal}")
    (goal / "index.pkl").write_bytes(b"broken")
    store.restore("v", f"faiss:{goal}", mode="replace")
    assert vf.connect(f"faiss:{goal}").count() == 200
    kept = vf.versions(f"faiss:{goal}")
    assert len(kept) == 2 and kept[0].live, "what was replaced is kept, as by every replace"
    vf.rollback(f"faiss:{goal}")
    assert (goal / "index.pkl").read_bytes() == b"broken"
    vf.rollback(f"faiss:{goal}", to=kept[0].tag)
    assert vf.connect(f"faiss:{goal}").count() == 200
    store.restore("v", f"parquet:{tmp_path / 'kb.parquet'}").check()


@pytest.mark.parametrize("writers", [12, pytest.param(64, marks=pytest.mark.slow)])
def test_many_writers_lose_nothing(place, writers):
    store, keys, *_ = place
    collection = little()
    url = store.url
    failures: list[BaseException] = []

    def save(n):
        try:
            SnapshotStore(*given).save(collection, note=str(n))
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    endpoint = getattr(store._objects, "_options", {}).get("endpoint_url")
    given = (url if endpoint is None else f"{url}?endpoint_url={endpoint}",)
    threads = [threading.Thread(target=save, args=(n,)) for n in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    listed = store.list()
    assert sorted(int(v.note) for v in listed) == list(range(writers))
    assert [v.created for v in listed] == sorted((v.created for v in listed), reverse=True)
    assert {k.partition("/")[0] for k in keys() if "/" in k} == {v.version for v in listed}


def test_the_command_line(place, tmp_path):
    from vecferry.cli.snapshots import app

    store, *_ = place
    endpoint = getattr(store._objects, "_options", {}).get("endpoint_url")
    extra = ["--endpoint-url", endpoint] if endpoint else []
    run = CliRunner().invoke
    assert run(app, ["save", f"faiss:{SAMPLE}", store.url, "--version", "a", *extra]).exit_code == 0
    assert run(app, ["save", f"faiss:{SAMPLE}", store.url, "--version", "b", *extra]).exit_code == 0
    listed = run(app, ["list", store.url, "--json", *extra])
    assert [v["version"] for v in json.loads(listed.stdout)] == ["b", "a"]
    assert run(app, ["diff", store.url, "a", "b", *extra]).exit_code == 0
    assert run(app, ["verify", store.url, *extra]).exit_code == 0
    assert run(app, ["restore", store.url, "a", f"faiss:{tmp_path / 'x'}", *extra]).exit_code == 0
    assert "deleted a" in run(app, ["prune", store.url, "--keep", "1", *extra]).stdout
    assert run(app, ["restore", store.url, "a", "memory:", *extra]).exit_code == 2
