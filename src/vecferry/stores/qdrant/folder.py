"""The client's local mode: a folder, or the memory of this process, spoken to in the server's JSON.

The client locks a folder and is not thread-safe: all stores of one folder share one client, which is closed
with the last of them, and take turns in using it. It commits every point by itself, one flush to the disk a
point; here the points of one `upsert` share one commit, made before it returns. There is no public switch
for that: where the client's inside looks other than expected, it commits point by point.
"""

from __future__ import annotations

import atexit
import os
import pickle
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

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
        self.nonce: str | None = None

    def close(self) -> None:
        """Let go of the client. The folder's lock goes with its last user."""
        with self._opening:
            client, self._client = self._client, None
            if client is not None:
                self._lock = nullcontext()
                _release(_key(self.address))

    # -- collections --------------------------------------------------------------------------

    def info(self, name: str) -> Json:
        """As a server's; what the local mode does not know is invented by it."""
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

    def change_aliases(self, actions: list[Json]) -> None:
        def change(client: QdrantClient) -> None:
            from qdrant_client import models

            client.update_collection_aliases(models.ChangeAliasesOperation(actions=actions).actions)

        self._run(change)

    def index(self, name: str, path: str, schema: Any) -> None:
        """The local mode has no payload indexes; that it was asked for is noted with the collection."""

    # -- reading ------------------------------------------------------------------------------

    def count(self, name: str) -> int:
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
        """As a server's. The local mode walks through everything at each scroll: ids are asked for once."""
        everything = max(self.count(name), 1)
        upper = wanted.get("filter")

        def ids_of(client: QdrantClient) -> list[Any]:
            from qdrant_client import models

            condition = None if upper is None else models.Filter(**upper)
            found, _ = client.scroll(
                name, condition, everything, offset=start, with_payload=False, with_vectors=False
            )
            return [point.id for point in found]

        end = None if stop is None else order(stop)
        ids = [id_ for id_ in self._run(ids_of) if end is None or order(id_) < end]
        for low in range(0, len(ids), most):
            page = self.retrieve(name, ids[low : low + most], wanted)
            if page:
                yield page

    def retrieve(self, name: str, ids: Sequence[PointId], wanted: Json) -> list[Json]:
        payload, vectors = wanted.get("with_payload", False), wanted.get("with_vector", False)
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
        except Exception as error:
            raise translate(error, self.where) from error


_CREATE = ("vectors", "sparse_vectors")


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
        return _stored_point(parse_pickle(value, path))

    original = persistence.pickle
    persistence.pickle = SimpleNamespace(loads=loads, dumps=pickle.dumps)
    try:
        yield
    finally:
        persistence.pickle = original


def _stored_point(fields: Any) -> Any:
    from qdrant_client import models

    if not isinstance(fields, dict) or "id" not in fields:
        raise CorruptDataError("a point of the folder is none; restore the folder from a backup")
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
