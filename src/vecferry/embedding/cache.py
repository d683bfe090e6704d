"""The embedding cache: a text is embedded once for each space.

Keys are SHA-256 over the space's fingerprint and the exact text; values are the float32 bytes.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vecferry.core.home import home
from vecferry.core.retry import RetryPolicy
from vecferry.embedding.base import LocalStateError, Matrix, clean
from vecferry.errors import ConfigurationError, MissingDependencyError, RetryableError
from vecferry.model import EmbeddingSpace

DEFAULT_MAX_BYTES = 4 * 2**30
_CHUNK = 500
_DAY = 86_400
# A row's key, its length and SQLite's own bookkeeping, measured with 384-d vectors.
_ROW_OVERHEAD = 140


@runtime_checkable
class EmbeddingCache(Protocol):
    """Vectors by space and text. Thread-safe."""

    def get(self, space: EmbeddingSpace, texts: Sequence[str]) -> tuple[Matrix, list[int]]:
        """float32 ``(len(texts), dim)`` and the rows that were not there (they hold zeros)."""
        ...

    def put(self, space: EmbeddingSpace, texts: Sequence[str], vectors: Matrix) -> None:
        """Keep ``vectors`` ``(len(texts), dim)``. Twice is as once."""
        ...

    def pin(self) -> None:
        """Keep what is used from now on, whatever the size: a job is going to need it again."""
        ...

    def close(self) -> None: ...


def keys_of(space: EmbeddingSpace, texts: Sequence[str]) -> list[bytes]:
    """32 bytes a text."""
    start = sha256(space.fingerprint.encode() + b"\0")
    keys = []
    for text in texts:
        digest = start.copy()
        digest.update(text.encode("utf-8", "surrogatepass"))
        keys.append(digest.digest())
    return keys


class SqliteCache:
    """One SQLite file (WAL), shared between threads and processes.

    Args:
        path: the file; its folder is made.
        max_bytes: above it the vectors used longest ago go first, down to nine tenths.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self.path = Path(path).expanduser() if path else home() / "embeddings.sqlite"
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pinned_day: int | None = None
        self._connection = self._open()
        self._written = max_bytes  # so that the first put looks at the size: others have written too

    def __repr__(self) -> str:
        return f"SqliteCache({str(self.path)!r})"

    def get(self, space: EmbeddingSpace, texts: Sequence[str]) -> tuple[Matrix, list[int]]:
        found: dict[bytes, bytes] = {}
        keys = keys_of(space, texts)
        today = _today()
        with self._lock, sqlite_errors(self.path):
            for start in range(0, len(keys), _CHUNK):
                self._look_up(keys[start : start + _CHUNK], found, today)
        return _matrix(space, keys, found)

    def put(self, space: EmbeddingSpace, texts: Sequence[str], vectors: Matrix) -> None:
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        today = _today()
        values = [(key, today, row.tobytes()) for key, row in zip(keys_of(space, texts), rows, strict=True)]
        with self._lock, sqlite_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", values)
            self._written += rows.nbytes + _ROW_OVERHEAD * len(rows)
            # Counting the file's pages for every batch would cost more than the batch.
            if self._written > self.max_bytes // 20:
                self._written = 0
                self._evict()

    def pin(self) -> None:
        """Rows used today or later stay until this object is closed."""
        self._pinned_day = _today()

    def __len__(self) -> int:
        with self._lock:
            return int(self._connection.execute("SELECT count(*) FROM vectors").fetchone()[0])

    @property
    def nbytes(self) -> int:
        """Bytes in use, without the free pages of the file."""
        with self._lock:
            return self._size()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _open(self) -> sqlite3.Connection:
        try:
            connection = shared_database(self.path)
            connection.execute("PRAGMA mmap_size=1073741824")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, used INTEGER, vector BLOB)"
            )
        except (OSError, sqlite3.DatabaseError) as error:
            raise ConfigurationError(
                f"the embedding cache {self.path} cannot be opened ({error}); delete it or set cache="
            ) from error
        return connection

    def _look_up(self, keys: list[bytes], found: dict[bytes, bytes], today: int) -> None:
        marks = ",".join("?" * len(keys))
        rows = self._connection.execute(
            f"SELECT key, vector, used FROM vectors WHERE key IN ({marks})",  # noqa: S608 - only marks
            keys,
        ).fetchall()
        found.update((key, vector) for key, vector, _ in rows)
        stale = [(today, key) for key, _, used in rows if used < today]
        if stale:
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:
                self._connection.executemany("UPDATE vectors SET used = ? WHERE key = ?", stale)

    def _size(self) -> int:
        pages, free, size = (
            int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _evict(self) -> None:
        size = self._size()
        if size <= self.max_bytes:
            return
        rows = int(self._connection.execute("SELECT count(*) FROM vectors").fetchone()[0])
        surplus = rows - int(rows * self.max_bytes * 0.9 / size)
        keep_from = self._pinned_day if self._pinned_day is not None else _today() + 1
        self._connection.execute("BEGIN IMMEDIATE")
        with self._connection:
            self._connection.execute(
                "DELETE FROM vectors WHERE rowid IN "
                "(SELECT rowid FROM vectors WHERE used < ? ORDER BY used, rowid LIMIT ?)",
                (keep_from, surplus),
            )


class RedisCache:
    """Redis by URL: ``redis://``, ``rediss://`` or ``unix://``. The server's own limit bounds it.

    Args:
        url: with the login, if there is one; it is never shown.
        ttl: seconds a vector stays; ``None`` keeps it.
    """

    def __init__(self, url: str, *, ttl: int | None = None, retry: RetryPolicy | None = None) -> None:
        try:
            import redis
        except ImportError as error:
            raise MissingDependencyError("cache='redis://…'", "redis") from error
        self._client = redis.Redis.from_url(url)
        self._passing = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.BusyLoadingError)
        self._final = redis.RedisError
        self._ttl = ttl
        self._retry = retry or RetryPolicy(attempts=5, max_seconds=30.0)

    def __repr__(self) -> str:
        return "RedisCache(redis://…)"

    def get(self, space: EmbeddingSpace, texts: Sequence[str]) -> tuple[Matrix, list[int]]:
        keys = keys_of(space, texts)
        names = [b"vecferry:" + key for key in keys]
        values = self._call(lambda: self._client.mget(names)) if names else []
        found = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
        return _matrix(space, keys, found)

    def put(self, space: EmbeddingSpace, texts: Sequence[str], vectors: Matrix) -> None:
        rows = np.ascontiguousarray(vectors, dtype="<f4")

        def send() -> None:
            pipe = self._client.pipeline(transaction=False)
            for key, row in zip(keys_of(space, texts), rows, strict=True):
                pipe.set(b"vecferry:" + key, row.tobytes(), ex=self._ttl)
            pipe.execute()

        self._call(send)

    def pin(self) -> None:
        """Nothing to do: what Redis evicts is the server's decision."""

    def close(self) -> None:
        self._client.close()

    def _call(self, function: Any) -> Any:
        def once() -> Any:
            try:
                return function()
            except self._passing as error:
                raise RetryableError(f"the Redis cache does not answer: {clean(error)}") from error
            except self._final as error:
                raise LocalStateError(f"the Redis cache refuses: {clean(error)}") from error

        try:
            return self._retry.call(once)
        except RetryableError as error:
            raise LocalStateError(f"{error}; set cache= to go on without it") from error


def shared_database(path: Path) -> sqlite3.Connection:
    """A SQLite file that threads and processes share; made if it is not there.

    Raises:
        OSError, sqlite3.DatabaseError: if it cannot be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=60.0, check_same_thread=False, isolation_level=None)
    end = time.monotonic() + 60.0
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            return connection
        except sqlite3.OperationalError as error:
            # Two that make the file WAL at once: SQLite does not wait here, whatever the timeout.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                connection.close()
                raise
            time.sleep(0.01)


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn what sqlite3 raises (a full disk, a damaged file) into our error.

    Raises:
        LocalStateError: naming the file.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise LocalStateError(f"{path}: {error}; free the disk or move the file away") from error


def open_cache(
    cache: bool | str | os.PathLike[str] | EmbeddingCache, job_cache_path: str | os.PathLike[str] | None
) -> EmbeddingCache | None:
    """What ``cache=`` names.

    Args:
        cache: ``True`` for the user's own file, a path, a Redis URL, an object, or ``False``.
        job_cache_path: the file of this job, used when the shared cache is off: a verification
            reads the vectors again, and they shall not be computed (or paid) twice.
    """
    if cache is True:
        return SqliteCache()
    if cache is False or cache is None:
        return SqliteCache(job_cache_path, max_bytes=2**62) if job_cache_path else None
    if isinstance(cache, str) and cache.startswith(("redis://", "rediss://", "unix://")):
        return RedisCache(cache)
    if isinstance(cache, str | os.PathLike):
        return SqliteCache(cache)
    return cache


def _matrix(
    space: EmbeddingSpace, keys: list[bytes], found: dict[bytes, bytes]
) -> tuple[Matrix, list[int]]:
    """Rows in the order of ``keys``. A value of the wrong length counts as not there."""
    width = space.dim * 4
    empty = bytes(width)
    values = [found.get(key, b"") for key in keys]
    missing = [row for row, value in enumerate(values) if len(value) != width]
    for row in missing:
        values[row] = empty
    flat = np.frombuffer(b"".join(values), dtype="<f4")
    return flat.reshape(len(keys), space.dim).astype(np.float32), missing


def _today() -> int:
    return int(time.time()) // _DAY
