"""The embedding cache: a text is embedded once for each space.

Keys are SHA-256 over the space's fingerprint and the exact text; values are the float32 bytes. Beside each
space lies the model's vector of a probe text, so that another model of the same name is found out.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from vecferry.core.home import home
from vecferry.core.redaction import clean
from vecferry.core.retry import RetryPolicy
from vecferry.core.state import StateFile
from vecferry.embedding.base import BaseEmbedder, Matrix, Part, parts_of
from vecferry.errors import LocalStateError, MissingDependencyError, RetryableError
from vecferry.model import EmbeddingSpace
from vecferry.ports import Embedder, for_queries

T = TypeVar("T")

DEFAULT_MAX_BYTES = 4 * 2**30
_DAY = 86_400
# A row's key, its length and SQLite's own bookkeeping, measured with 384-d vectors.
_ROW_OVERHEAD = 140
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, used INTEGER, vector BLOB)",
    "CREATE TABLE IF NOT EXISTS probes (space TEXT PRIMARY KEY, vector BLOB)",
)


@runtime_checkable
class EmbeddingCache(Protocol):
    """Vectors by space and text. Thread-safe."""

    def get(self, space: EmbeddingSpace, texts: Sequence[str]) -> tuple[Matrix, list[int]]:
        """float32 ``(len(texts), dim)`` and the rows that were not there (they hold zeros)."""
        ...

    def put(self, space: EmbeddingSpace, texts: Sequence[str], vectors: Matrix) -> None:
        """Keep ``vectors`` ``(len(texts), dim)``. Idempotent."""
        ...

    def pin(self) -> None:
        """Keep what is used from now on, whatever the size: a job is going to need it again."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class KeepsProbes(Protocol):
    """A cache that knows the answer of a space's model to the probe text."""

    def probe(self, space: EmbeddingSpace) -> Matrix | None:
        """float32 ``(dim,)``, ``None`` if none was kept."""
        ...

    def keep_probe(self, space: EmbeddingSpace, vector: Matrix) -> None:
        """Keep it, for as long as the space's vectors."""
        ...


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
        self._state = StateFile(
            self.path,
            _SCHEMA,
            what="the embedding cache",
            hint="delete it or set cache=",
            durability="normal",
            timeout=60.0,
        )
        self._state.execute("PRAGMA mmap_size=1073741824")
        self._written = max_bytes  # so that the first put looks at the size: others have written too

    def __repr__(self) -> str:
        return f"SqliteCache({str(self.path)!r})"

    def get(self, space: EmbeddingSpace, texts: Sequence[str]) -> tuple[Matrix, list[int]]:
        keys, today = keys_of(space, texts), _today()
        query = "SELECT key, vector, used FROM vectors WHERE key IN ({})"
        rows: list[Any] = list(self._state.chosen(query, keys))
        stale = [(today, key) for key, _, used in rows if used < today]
        if stale:
            self._state.executemany("UPDATE vectors SET used = ? WHERE key = ?", stale)
        return _matrix(space, keys, {key: vector for key, vector, _ in rows})

    def put(self, space: EmbeddingSpace, texts: Sequence[str], vectors: Matrix) -> None:
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        today = _today()
        values = [(key, today, row.tobytes()) for key, row in zip(keys_of(space, texts), rows, strict=True)]
        with self._lock:
            self._state.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", values)
            self._written += rows.nbytes + _ROW_OVERHEAD * len(rows)
            # Counting the file's pages for every batch would cost more than the batch.
            if self._written > self.max_bytes // 20:
                self._written = 0
                self._evict()

    def probe(self, space: EmbeddingSpace) -> Matrix | None:
        value = self._state.value("SELECT vector FROM probes WHERE space = ?", (space.fingerprint,))
        return np.frombuffer(value, "<f4") if isinstance(value, bytes) else None

    def keep_probe(self, space: EmbeddingSpace, vector: Matrix) -> None:
        value = np.ascontiguousarray(vector, "<f4").tobytes()
        self._state.execute("INSERT OR IGNORE INTO probes VALUES (?, ?)", (space.fingerprint, value))

    def clear(self) -> None:
        """Forget all vectors and probes."""
        with self._state.transaction():
            self._state.execute("DELETE FROM vectors")
            self._state.execute("DELETE FROM probes")

    def pin(self) -> None:
        """Rows used today or later stay until this object is closed."""
        self._pinned_day = _today()

    def __len__(self) -> int:
        return int(self._state.value("SELECT count(*) FROM vectors") or 0)

    @property
    def nbytes(self) -> int:
        """Bytes in use, without the free pages of the file."""
        return self._state.nbytes

    def close(self) -> None:
        self._state.close()

    def _evict(self) -> None:
        size = self.nbytes
        if size <= self.max_bytes:
            return
        rows = len(self)
        surplus = rows - int(rows * self.max_bytes * 0.9 / size)
        keep_from = self._pinned_day if self._pinned_day is not None else _today() + 1
        self._state.execute(
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
        self._retry = retry or RetryPolicy(max_seconds=30.0)

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

    def probe(self, space: EmbeddingSpace) -> Matrix | None:
        value = self._call(lambda: self._client.get(self._probe_name(space)))
        return np.frombuffer(value, "<f4") if isinstance(value, bytes) else None

    def keep_probe(self, space: EmbeddingSpace, vector: Matrix) -> None:
        value = np.ascontiguousarray(vector, "<f4").tobytes()
        self._call(lambda: self._client.set(self._probe_name(space), value, nx=True))

    def _probe_name(self, space: EmbeddingSpace) -> str:
        return f"vecferry:probe:{space.fingerprint}"

    def pin(self) -> None:
        """Nothing to do: what Redis evicts is the server's decision."""

    def close(self) -> None:
        self._client.close()

    def _call(self, function: Callable[[], T]) -> T:
        def once() -> T:
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


# -- an embedder with a cache ---------------------------------------------------------------------


@dataclass(slots=True)
class CacheCounts:
    """Texts found in the cache, and texts computed. One that stands twice in a batch is computed once."""

    hits: int = 0
    misses: int = 0

    @property
    def hit_rate(self) -> float:
        """Between 0 and 1; 0 before the first text."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0


class CachedEmbedder(BaseEmbedder):
    """Asks the cache first and keeps every answer as soon as it is there.

    Args:
        inner: computes what the cache lacks.
        cache: see `vecferry.embedding.open_cache`; ``None`` only removes doubles within a batch.
        refused: texts known to be refused, by cache key; shared with a verification's own pass.
    """

    provider = "cache"

    def __init__(
        self, inner: Embedder, cache: EmbeddingCache | None, refused: dict[str, str] | None = None
    ) -> None:
        super().__init__()
        self.inner = inner
        self.cache = cache
        self.counts = CacheCounts()
        self.refused: dict[str, str] = {} if refused is None else refused
        self._lock = threading.Lock()

    @property
    def space(self) -> EmbeddingSpace:
        return self.inner.space

    def for_queries(self) -> Embedder:
        """The inner embedder of questions; the cache keeps documents."""
        return for_queries(self.inner)

    def embed_parts(self, texts: Sequence[str]) -> Iterator[Part]:
        """First what is known, then the rest as it comes."""
        places: dict[str, list[int]] = {}
        for row, text in enumerate(texts):
            places.setdefault(text, []).append(row)
        for text in [text for text in places if text in self.refused]:
            yield Part(places.pop(text), None, self.refused[text])
        unique = list(places)
        missing = unique
        if self.cache is not None and unique:
            vectors, rows = self.cache.get(self.space, unique)
            missing = [unique[row] for row in rows]
            yield from self._found(vectors, set(rows), unique, places)
        self._count(sum(map(len, places.values())) - len(missing), len(missing))
        for part in parts_of(self.inner, missing) if missing else ():
            yield self._keep(part, missing, places)

    def _found(
        self, vectors: Matrix, lacking: set[int], unique: list[str], places: dict[str, list[int]]
    ) -> Iterator[Part]:
        present = [row for row in range(len(unique)) if row not in lacking]
        if present:
            yield _spread(present, vectors[present] if lacking else vectors, unique, places, None)

    def _keep(self, part: Part, asked: list[str], places: dict[str, list[int]]) -> Part:
        if part.vectors is None:
            for row in part.rows:
                self.refused[asked[row]] = part.reason
            return Part([place for row in part.rows for place in places[asked[row]]], None, part.reason)
        if self.cache is not None:
            self.cache.put(self.space, [asked[row] for row in part.rows], part.vectors)
        return _spread(part.rows, part.vectors, asked, places, part.tokens)

    def _count(self, hits: int, misses: int) -> None:
        with self._lock:
            self.counts.hits += hits
            self.counts.misses += misses


def _spread(
    rows: list[int], vectors: Matrix, texts: list[str], places: dict[str, list[int]], tokens: int | None
) -> Part:
    """The vectors of unique texts at every place where these stand."""
    targets = [places[texts[row]] for row in rows]
    counts = [len(places) for places in targets]
    repeated = vectors if max(counts, default=1) == 1 else np.repeat(vectors, counts, axis=0)
    return Part([place for places in targets for place in places], repeated, tokens=tokens)
