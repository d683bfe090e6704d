"""The client's local mode: a folder, or the memory of this process, spoken to in the server's JSON.

The client locks a folder and is not thread-safe: all stores of one folder share one client, which is closed
with the last of them, and take turns in using it. It commits every point by itself, one flush to the disk a
point; here the points of one `upsert` share one commit, made before it returns. There is no public switch
for that: where the client's inside looks other than expected, it commits point by point.
"""

from __future__ import annotations

import atexit
import base64
import os
import pickle
import re
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import orjson

from vecferry.core.durable import as_store_error
from vecferry.errors import CorruptDataError, MissingDependencyError, NotFoundError, UnsupportedError
from vecferry.layouts.folders.pickles import parse_pickle
from vecferry.model import Column, DenseColumn, MultiColumn
from vecferry.stores.qdrant.connection import MEMORY, Address
from vecferry.stores.qdrant.faults import translate
from vecferry.stores.qdrant.points import Json, PointId, Rows, order

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

T = TypeVar("T")


@dataclass(slots=True)
class _Shared:
    client: QdrantClient
    lock: threading.RLock
    users: int = 0


_OPEN: dict[str, _Shared] = {}
_OPEN_LOCK = threading.Lock()


@atexit.register
def _close_all() -> None:
    """Before the interpreter takes apart what the client needs for closing."""
    for shared in _OPEN.values():
        shared.client.close()


class Folder:
    """One folder, for one user of it. The client is opened when it is first needed."""

    local = True

    def __init__(self, address: Address, where: str) -> None:
        self.address, self.where = address, where
        self._client: QdrantClient | None = None
        self._lock: Any = nullcontext()
        self._opening = threading.Lock()
        self._stored = None if address.path == MEMORY else _Stored(Path(str(address.path)), where)
        self.nonce: str | None = None

    def close(self) -> None:
        """Let go of the client. The folder's lock goes with its last user."""
        with self._opening:
            client, self._client = self._client, None
            if client is not None:
                self._lock = nullcontext()
                _release(_key(self.address))
        if self._stored is not None:
            self._stored.close()

    # -- collections --------------------------------------------------------------------------

    def info(self, name: str) -> Json:
        """As a server's; of a folder without its client, which would load every point."""
        if self._stored is not None:
            with self._undisturbed() as stored:
                return stored.info(name)
        found = self._run(lambda client: client.get_collection(name))
        return _dumped(found)

    def create(self, name: str, body: Json) -> None:
        def make(client: QdrantClient) -> None:
            from qdrant_client import models

            wanted = models.CreateCollection(**{k: v for k, v in body.items() if k in _CREATE})
            client.create_collection(
                name,
                vectors_config=wanted.vectors or {},
                sparse_vectors_config=wanted.sparse_vectors,
                metadata=body.get("metadata"),
            )

        self._run(make, create=True)

    def update(self, name: str, body: Json) -> None:
        if "metadata" in body:
            self._run(lambda client: client.update_collection(name, metadata=body["metadata"]))

    def drop(self, name: str) -> None:
        self._run(lambda client: client.delete_collection(name))

    def collections(self) -> list[str]:
        return [one.name for one in self._run(lambda client: client.get_collections()).collections]

    def aliases(self) -> dict[str, str]:
        found = self._run(lambda client: client.get_aliases()).aliases
        return {one.alias_name: one.collection_name for one in found}

    def change_aliases(self, actions: list[Any]) -> None:
        def change(client: QdrantClient) -> None:
            from qdrant_client import models

            client.update_collection_aliases(models.ChangeAliasesOperation(actions=actions).actions)

        self._run(change)

    def index(self, name: str, path: str, schema: Any) -> None:
        """The local mode has no payload indexes; that it was asked for is noted with the collection."""

    # -- reading ------------------------------------------------------------------------------

    def count(self, name: str) -> int:
        if self._stored is not None:
            with self._undisturbed() as stored:
                return len(stored.rows(name))
        return int(self._run(lambda client: client.count(name, exact=True)).count)

    def pages(
        self,
        name: str,
        wanted: Json,
        *,
        start: PointId | None = None,
        stop: PointId | None = None,
        most: int,
    ) -> Iterator[list[Json]]:
        """As a server's. A folder is read from its files, where a filter would save nothing."""
        if self._stored is None:
            ids = self._filtered_ids(name, wanted.get("filter"))
        else:
            with self._undisturbed() as stored:
                ids = sorted(stored.rows(name), key=order)
        first = None if start is None else order(start)
        end = None if stop is None else order(stop)
        ids = [
            id_
            for id_ in ids
            if (first is None or order(id_) >= first) and (end is None or order(id_) < end)
        ]
        for low in range(0, len(ids), most):
            page = self.retrieve(name, ids[low : low + most], wanted)
            if page:
                yield page

    def _filtered_ids(self, name: str, upper: Any) -> list[Any]:
        """The local mode walks through everything at each scroll: ids are asked for once."""
        everything = max(self.count(name), 1)

        def ids_of(client: QdrantClient) -> list[Any]:
            from qdrant_client import models

            condition = None if upper is None else models.Filter(**upper)
            found, _ = client.scroll(name, condition, everything, with_payload=False, with_vectors=False)
            return [point.id for point in found]

        return self._run(ids_of)

    def retrieve(self, name: str, ids: Sequence[PointId], wanted: Json) -> list[Json]:
        payload, vectors = wanted.get("with_payload", False), wanted.get("with_vector", False)
        if self._stored is not None:
            with self._undisturbed() as stored:
                return stored.points(name, ids, payload, vectors)
        found = self._run(
            lambda client: client.retrieve(name, ids, with_payload=payload, with_vectors=vectors)
        )
        return [_point(one) for one in found]

    def query(self, name: str, searches: list[Json]) -> list[list[Json]]:
        def ask(client: QdrantClient) -> list[list[Json]]:
            from qdrant_client import models

            answers = client.query_batch_points(name, [models.QueryRequest(**one) for one in searches])
            return [[_point(point) for point in answer.points] for answer in answers]

        return self._run(ask)

    # -- writing ------------------------------------------------------------------------------

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        self._run(lambda client: client.delete(name, list(ids)))

    def upsert(self, name: str, rows: Rows) -> None:
        """All of them in one commit, or none."""
        if len(rows):
            self._upsert(name, lambda: _points_of(rows))

    def put(self, name: str, points: list[Json]) -> None:
        """Write points that were read from a collection of the same shape."""

        def make() -> list[Any]:
            from qdrant_client import models

            return [
                models.PointStruct(id=p["id"], vector=p.get("vector") or {}, payload=p.get("payload"))
                for p in points
            ]

        self._upsert(name, make)

    def _upsert(self, name: str, make: Callable[[], list[Any]]) -> None:
        def write(client: QdrantClient) -> None:
            points = make()
            with _one_commit(client, name):
                client.upsert(name, points)

        self._run(write, writing=True)

    def grpc(self, name: str) -> bool:
        return False

    # -- the client ---------------------------------------------------------------------------

    @contextmanager
    def _undisturbed(self) -> Iterator[_Stored]:
        """The folder's files, while nobody changes them.

        Raises:
            FatalStoreError: if another process holds the folder.
        """
        _need_client()
        stored = self._stored
        assert stored is not None
        with _OPEN_LOCK:
            shared = _OPEN.get(_key(self.address))
            if shared is None:
                stored.check_free()
        try:
            with nullcontext() if shared is None else shared.lock:
                yield stored
        except Exception as error:
            raise translate(error, self.where) from error

    def _run(
        self, action: Callable[[QdrantClient], T], *, writing: bool = False, create: bool = False
    ) -> T:
        client = self._open(create)
        try:
            with self._lock:
                return action(client)
        except Exception as error:
            raise translate(error, self.where, writing=writing) from error

    def _open(self, create: bool) -> QdrantClient:
        """The client.

        Raises:
            MissingDependencyError: without qdrant-client.
            NotFoundError: if it is no Qdrant folder and ``create`` is false.
            FatalStoreError: if another process holds the folder.
        """
        with self._opening:
            if self._client is None:
                self._client = self._open_shared(create)
            return self._client

    def _open_shared(self, create: bool) -> QdrantClient:
        client_class = _client_class()
        path = str(self.address.path)
        with _OPEN_LOCK:
            shared = _OPEN.get(_key(self.address))
            if shared is None:
                if path != MEMORY and not create and not (Path(path) / "meta.json").is_file():
                    raise NotFoundError(
                        f"{self.where}: there is no Qdrant folder at {path}; check the path"
                    )
                shared = _Shared(self._make(client_class, path), threading.RLock())
                _OPEN[_key(self.address)] = shared
            shared.users += 1
            self._lock = shared.lock
            return shared.client

    def _make(self, client_class: Any, path: str) -> QdrantClient:
        # For good, as filters cannot be set for one thread; the docs page says what it says.
        warnings.filterwarnings("ignore", message="Local mode is not recommended")
        try:
            place = {"location": MEMORY} if path == MEMORY else {"path": path}
            with _harmless_pickles(path):
                client: QdrantClient = client_class(**place, force_disable_check_same_thread=True)
            return client
        except PermissionError as error:
            raise as_store_error(error, Path(path)) from error
        except Exception as error:
            raise translate(error, self.where) from error


_CREATE = ("vectors", "sparse_vectors")


class _Stored:
    """The files of a folder: ``meta.json``, and for each collection an SQLite file of pickled points."""

    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where
        self._files: dict[str, tuple[int, sqlite3.Connection]] = {}
        self._known: dict[str, tuple[Any, dict[PointId, int]]] = {}

    def close(self) -> None:
        for _, file in self._files.values():
            file.close()
        self._files.clear()
        self._known.clear()

    def check_free(self) -> None:
        """Whether no other process has it open: the client holds a lock as long as it has."""
        if not (self._path / "meta.json").is_file():
            raise NotFoundError(f"{self._where}: there is no Qdrant folder at {self._path}; check the path")
        import portalocker

        try:
            with (self._path / ".lock").open("a") as lock:
                portalocker.lock(lock, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
                portalocker.unlock(lock)
        except portalocker.exceptions.LockException as error:
            raise translate(RuntimeError("already accessed"), self._where) from error
        except PermissionError:
            return  # who may only read it has nobody to wait for

    def info(self, name: str) -> Json:
        """A collection as a server describes it, as far as a folder knows."""
        config = self._meta()["collections"][self._real(name)]
        params = {key: config.get(key) for key in _CREATE if config.get(key)}
        return {
            "status": "green",
            "points_count": len(self.rows(name)),
            "config": {"params": params, "metadata": config.get("metadata")},
            "payload_schema": {},
        }

    def rows(self, name: str) -> dict[PointId, int]:
        """Point → where it lies. Of two rows of one point, which old clients left, the later one counts."""
        name = self._real(name)
        file = self._file(name)
        stamp = file.execute("select max(rowid), count(*) from points").fetchone()
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            keys = file.execute("select id, rowid from points order by rowid").fetchall()
            known = stamp, {_id_of(key, str(self._path)): row for key, row in keys}
            self._known[name] = known
        return known[1]

    def points(self, name: str, ids: Sequence[PointId], payload: Any, vectors: Any) -> list[Json]:
        """As REST gives them, in the order of ``ids``."""
        rows, file = self.rows(name), self._file(self._real(name))
        found = []
        for id_ in ids:
            row = rows.get(_normal(id_))
            stored = row and file.execute("select point from points where rowid = ?", (row,)).fetchone()
            if stored:
                fields = _fields_of(stored[0], str(self._path))
                found.append(
                    {
                        "id": _normal(id_),
                        "payload": _picked(fields.get("payload") or {}, payload),
                        "vector": _picked_vectors(fields.get("vector"), vectors),
                    }
                )
        return found

    def _meta(self) -> Json:
        found: Json = orjson.loads((self._path / "meta.json").read_bytes())
        return found

    def _real(self, name: str) -> str:
        meta = self._meta()
        real: str = meta.get("aliases", {}).get(name, name)
        if real not in meta["collections"]:
            raise NotFoundError(f"{self._where}: there is no collection {name!r}; check its name")
        return real

    def _file(self, name: str) -> sqlite3.Connection:
        path = self._path / "collection" / name / "storage.sqlite"
        if not path.is_file():  # made at the first point
            empty = sqlite3.connect(":memory:", check_same_thread=False)
            empty.execute("create table points (id text primary key, point blob)")
            return empty
        number = path.stat().st_ino  # a collection that was made anew is another file
        known = self._files.get(name)
        if known is None or known[0] != number:
            if known is not None:
                known[1].close()
            file = sqlite3.connect(path, timeout=60, check_same_thread=False)
            file.execute("pragma query_only = on")
            known = self._files[name] = number, file
            self._known.pop(name, None)
        return known[1]


_PLAIN_UUID = re.compile(rb"\x80\x04\x95.{8}\x8c\x24([0-9a-f-]{36})\x94\.", re.DOTALL)

_PLAIN_INT = re.compile(rb"\x80\x04(?:K(.)|M(..))\.", re.DOTALL)


def _id_of(key: str, where: str) -> PointId:
    data = base64.b64decode(key)
    if number := _PLAIN_INT.fullmatch(data):
        return int.from_bytes(number[1] or number[2], "little")
    if plain := _PLAIN_UUID.fullmatch(data):
        return plain[1].decode()
    return _normal(parse_pickle(data, where))


def _normal(id_: Any) -> PointId:
    return id_ if isinstance(id_, int) else str(UUID(str(id_)))


def _fields_of(blob: bytes, where: str) -> Json:
    fields = parse_pickle(blob, where)
    if not isinstance(fields, dict) or "id" not in fields:
        raise CorruptDataError("a point of the folder is none; restore the folder from a backup")
    return fields


def _picked(payload: Json, wanted: Any) -> Json | None:
    if isinstance(wanted, list):
        return {key: payload[key] for key in wanted if key in payload}
    return payload if wanted else None


def _picked_vectors(vector: Any, wanted: Any) -> Any:
    if isinstance(wanted, list) and isinstance(vector, dict):
        return {name: vector[name] for name in wanted if name in vector}
    return vector if wanted else None


def _dumped(model: Any) -> Json:
    found: Json = model.model_dump(mode="json", exclude_none=True)
    return found


def _point(record: Any) -> Json:
    """A record or a scored point as REST gives it."""
    vector = record.vector
    if isinstance(vector, dict):
        vector = {name: _plain_vector(value) for name, value in vector.items()}
    payload = None if record.payload is None else dict(record.payload)
    found: Json = {"id": record.id, "payload": payload, "vector": vector}
    if hasattr(record, "score"):
        found["score"] = record.score
    return found


def _plain_vector(value: Any) -> Any:
    if hasattr(value, "indices"):
        return {"indices": value.indices, "values": value.values}
    return value


def _points_of(rows: Rows) -> list[Any]:
    """``models.PointStruct``, built without validating what is known to fit."""
    from qdrant_client import models

    make = models.PointStruct.model_construct
    columns = {name: _plain_column(column) for name, column in rows.columns.items()}
    points = []
    for i, (id_, payload) in enumerate(zip(rows.ids, rows.payloads, strict=True)):
        vectors: Any = {name: values[i] for name, values in columns.items() if values[i] is not None}
        vectors = vectors[""] if len(vectors) == 1 and "" in vectors else vectors
        points.append(make(id=id_, vector=vectors, payload=orjson.loads(payload)))
    return points


def _plain_column(column: Column) -> list[Any]:
    from qdrant_client import models

    if isinstance(column, DenseColumn):
        rows: list[Any] = column.values.tolist()
        if column.mask is None:
            return rows
        return [row if there else None for row, there in zip(rows, column.mask, strict=True)]
    if isinstance(column, MultiColumn):
        return [None if (m := column[i]) is None else m.tolist() for i in range(len(column))]
    make = models.SparseVector.model_construct
    vectors = [column[i] for i in range(len(column))]
    return [
        None if v is None else make(indices=v.indices.tolist(), values=v.values.tolist()) for v in vectors
    ]


def _need_client() -> None:
    """Whether the client is installed, without the second that importing it takes."""
    try:
        found = find_spec("qdrant_client")
    except ValueError:
        found = None
    if found is None:
        raise MissingDependencyError("qdrant:", "qdrant")


def _client_class() -> Any:
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise MissingDependencyError("qdrant:", "qdrant") from error
    return QdrantClient


def _key(address: Address) -> str:
    path = str(address.path)
    return path if path == MEMORY else os.path.realpath(path)


def _release(key: str) -> None:
    with _OPEN_LOCK:
        shared = _OPEN[key]
        shared.users -= 1
        if shared.users or key == MEMORY:  # what is in memory lives as long as the process
            return
        del _OPEN[key]
    with shared.lock:
        shared.client.close()


# -- what lies in a folder ----------------------------------------------------------------------


@contextmanager
def _harmless_pickles(path: str) -> Iterator[None]:
    """The client keeps points as pickles, which may run anything when they are read by Python.

    While it opens a folder they are read by a machine that can build points and nothing else
    (see `vecferry.layouts.folders.pickles`).
    """
    from qdrant_client.local import persistence

    if not hasattr(persistence, "pickle"):
        raise UnsupportedError(
            "this qdrant-client reads its folders in a way that vecferry does not know, and could run what "
            "is in them; install qdrant-client 1.20, or use a server"
        )

    def loads(value: bytes) -> Any:
        return _stored_point(_fields_of(value, path))

    original = persistence.pickle
    persistence.pickle = SimpleNamespace(loads=loads, dumps=pickle.dumps)
    try:
        yield
    finally:
        persistence.pickle = original


def _stored_point(fields: Any) -> Any:
    from qdrant_client import models

    vector: Any = fields.get("vector")
    if isinstance(vector, dict):
        vector = {name: _stored_vector(value) for name, value in vector.items()}
    return models.PointStruct.model_construct(id=fields["id"], vector=vector, payload=fields.get("payload"))


def _stored_vector(value: Any) -> Any:
    from qdrant_client import models

    return models.SparseVector.model_construct(**value) if isinstance(value, dict) else value


# -- one commit ---------------------------------------------------------------------------------


class _Joined:
    """Stands in for the connection while a batch is written: leaving its ``with`` block commits nothing."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        return None

    def commit(self) -> None:
        """Clients that call it instead of using the block."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@contextmanager
def _one_commit(client: Any, collection: str) -> Iterator[None]:
    """Everything written to ``collection`` inside is committed at the end, or not at all."""
    inside = getattr(client, "_client", None)
    names = getattr(inside, "aliases", {})
    found = getattr(inside, "collections", {}).get(names.get(collection, collection))
    storage = getattr(found, "storage", None)
    connection = getattr(storage, "storage", None)
    if storage is None or not isinstance(connection, sqlite3.Connection):
        yield
        return
    storage.storage = _Joined(connection)
    try:
        yield
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    finally:
        storage.storage = connection
