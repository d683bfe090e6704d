"""A Qdrant server, spoken to in its own JSON; points may be sent by gRPC as well.

Everything goes by REST, which reads every number and every depth exactly and has one door only. Where a
gRPC port is shown to belong to the same server, points are sent there, packed: a third of the bytes.
"Shown" means that both doors name the same peer for the same collection, never that some Qdrant answers.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from vecferry.core.retry import RetryPolicy
from vecferry.errors import (
    ConfigurationError,
    PlanError,
    RejectedRecord,
    RequestTooLargeError,
    RetryableError,
    VecferryError,
)
from vecferry.stores.qdrant.connection import Address, Rest
from vecferry.stores.qdrant.faults import TooMuch, translate
from vecferry.stores.qdrant.points import (
    GRPC_NUMBER,
    JSON_NUMBER,
    Json,
    NeedsRest,
    PointId,
    Rows,
    as_field,
    as_json,
    as_message,
    chunks,
    order,
)

T = TypeVar("T")

_PAGE_BYTES = 8 * 2**20
"""What a page of points should take; the next is sized by what the last one held."""
_MOST_PAGE_BYTES = 4 * _PAGE_BYTES
_FIRST_PAGE = 32
_PROBE_SECONDS = 1.5
_LOOKS = 5
_MOST_NAMED_WAIT = 300.0
_RETRY = RetryPolicy(attempts=5, max_seconds=90.0, base=0.05, cap=1.0)
"""For single requests that change nothing; a long fault is the caller's to wait for."""
_METADATA_ONLY: Json = {"with_payload": False, "with_vector": False}


class Server:
    """One server, for one user of it.

    Args:
        points, max_bytes: the most points and bytes in one request.
        parallel: requests with points on their way at once.
    """

    local = False

    def __init__(self, address: Address, where: str, *, points: int, max_bytes: int, parallel: int) -> None:
        self.address, self.where = address, where
        self._rest = Rest(address, where)
        self._points, self._max_bytes, self._parallel = points, max_bytes, max(parallel, 1)
        self._pool: ThreadPoolExecutor | None = None
        self._door: GrpcDoor | None = None
        self._looked = False
        self.nonce: str | None = None
        """What was just noted with a collection by REST: gRPC of the same server reads it."""
        self._door_lock = threading.Lock()

    def close(self) -> None:
        """Let go of every connection; a later call connects anew."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
        self._rest.close()
        if self._door is not None:
            self._door.close()
        self._door, self._looked = None, False

    # -- collections --------------------------------------------------------------------------

    def info(self, name: str) -> Json:
        """Configuration, payload indexes, status and ``points_count`` of a collection (or alias)."""
        found: Json = self._ask("GET", f"/collections/{_quoted(name)}")
        return found

    def cluster(self, name: str) -> Json:
        """Which peers hold which shards of a collection."""
        found: Json = self._ask("GET", f"/collections/{_quoted(name)}/cluster")
        return found

    def create(self, name: str, body: Json) -> None:
        self._do("PUT", f"/collections/{_quoted(name)}", body)

    def update(self, name: str, body: Json) -> None:
        self._do("PATCH", f"/collections/{_quoted(name)}", body)

    def drop(self, name: str) -> None:
        self._do("DELETE", f"/collections/{_quoted(name)}")

    def collections(self) -> list[str]:
        found = self._ask("GET", "/collections")
        return [one["name"] for one in found["collections"]]

    def aliases(self) -> dict[str, str]:
        """Alias → collection."""
        found = self._ask("GET", "/aliases")
        return {one["alias_name"]: one["collection_name"] for one in found["aliases"]}

    def change_aliases(self, actions: list[Json]) -> None:
        """In one step."""
        self._do("POST", "/collections/aliases", {"actions": actions})

    def index(self, name: str, path: str, schema: Any) -> None:
        """Build a payload index, and wait for it."""
        body = {"field_name": path, "field_schema": schema}
        self._do("PUT", f"/collections/{_quoted(name)}/index?wait=true", body)

    # -- reading ------------------------------------------------------------------------------

    def count(self, name: str) -> int:
        """The exact number of points, counted by id where strict mode refuses to count."""
        body = {"exact": True, **self._key()}
        try:
            return int(self._ask("POST", f"{_at(name)}/count", body)["count"])
        except (PlanError, RejectedRecord) as error:
            if "exact" not in str(error).lower():
                raise
        return sum(len(page) for page in self.pages(name, dict(_METADATA_ONLY), most=_PAGE_BYTES // 64))

    def pages(
        self,
        name: str,
        wanted: Json,
        *,
        start: PointId | None = None,
        stop: PointId | None = None,
        most: int,
    ) -> Iterator[list[Json]]:
        """Points in the order of their ids, from ``start`` to before ``stop``; no page is empty.

        A page takes about `_PAGE_BYTES`, whatever its points hold.

        Args:
            wanted: ``filter``, ``with_payload`` and ``with_vector`` of the request.
            most: points a page.
        """
        limit, end = min(_FIRST_PAGE, most), None if stop is None else order(stop)
        while True:
            body = {**wanted, **self._key(), "limit": limit, "offset": start}
            try:
                found, size = self._patiently(partial(self._scroll, name, body))
            except TooMuch:
                limit = max(1, limit // 4)
                continue
            except PlanError:
                if "filter" not in wanted:
                    raise
                # Strict mode refuses some filters; the caller checks every record anyway.
                wanted = {name: value for name, value in wanted.items() if name != "filter"}
                continue
            page, following = found["points"], found.get("next_page_offset")
            inside = page if end is None else [point for point in page if order(point["id"]) < end]
            if inside:
                yield inside
            if following is None or len(inside) < len(page):
                return
            start = following
            fitting = len(page) * _PAGE_BYTES // max(size, 1)
            limit = max(1, min(fitting, limit * 4, most))

    def _scroll(self, name: str, body: Json) -> tuple[Json, int]:
        most = None if body["limit"] == 1 else _MOST_PAGE_BYTES
        found, size = self._rest.send("POST", f"{_at(name)}/scroll", body, most=most)
        return found, size

    def retrieve(self, name: str, ids: Sequence[PointId], wanted: Json) -> list[Json]:
        """The points of these ids that are there, in any order."""
        body = {**wanted, **self._key(), "ids": ids}
        most = None if len(ids) < 2 else _MOST_PAGE_BYTES
        try:
            found, _ = self._patiently(lambda: self._rest.send("POST", _at(name), body, most=most))
        except TooMuch:
            middle = len(ids) // 2
            return [
                *self.retrieve(name, ids[:middle], wanted),
                *self.retrieve(name, ids[middle:], wanted),
            ]
        points: list[Json] = found
        return points

    def query(self, name: str, searches: list[Json]) -> list[list[Json]]:
        """The points that each search finds, the best first."""
        for without in ((), ("params",), ("params", "filter")):  # strict mode refuses some of either
            asked = [{k: v for k, v in one.items() if k not in without} | self._key() for one in searches]
            try:
                answers = self._ask("POST", f"{_at(name)}/query/batch", {"searches": asked})
            except PlanError:
                if len(without) == 2 or not any({"params", "filter"} & one.keys() for one in searches):
                    raise
                if any((one.get("params") or {}).get("exact") for one in searches):
                    raise
                continue
            return [answer["points"] for answer in answers]
        raise AssertionError

    # -- writing ------------------------------------------------------------------------------

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        self._do("POST", f"{_at(name)}/delete?wait=true", {"points": ids, **self._key()})

    def upsert(self, name: str, rows: Rows) -> None:
        """Write points by id, as whole points; returns when all are acknowledged.

        Raises:
            RejectedRecord: if a point alone is beyond the server's limit, or is refused.
            RetryableError, FatalStoreError: as the port says. Some rows may be written by then.
        """
        if not len(rows):
            return
        rows = rows.last_of_each()
        width = GRPC_NUMBER if self.grpc(name) else JSON_NUMBER
        pieces = list(chunks(rows, points=self._points, max_bytes=self._max_bytes, number_bytes=width))
        if len(pieces) == 1 or self._parallel == 1:
            for piece in pieces:
                self._send(name, piece, whole=len(pieces) == 1)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._parallel, thread_name_prefix="vecferry-qdrant")
        jobs = [self._pool.submit(self._send, name, piece) for piece in pieces]
        wait(jobs)  # also those behind a failure: nothing may arrive after the error is known
        for job in jobs:
            job.result()

    def _send(self, name: str, rows: Rows, *, whole: bool = False) -> None:
        """Send one piece, waiting as long as a rate limit names; what was acknowledged stays so.

        whole: it is all there is to send, so that waiting may be left to the caller.
        """
        waited = 0.0
        while True:
            try:
                self._send_once(name, rows)
                return
            except RequestTooLargeError as error:
                if len(rows) == 1:
                    reason = f"one point is beyond the server's limit: {error}"
                    raise RejectedRecord(reason, ids=rows.records) from error
                middle = len(rows) // 2
                self._send(name, rows.slice(0, middle))
                self._send(name, rows.slice(middle, len(rows)))
                return
            except RetryableError as error:
                if whole or error.retry_after is None:
                    raise
                waited += error.retry_after
                if waited > _MOST_NAMED_WAIT:
                    raise
                time.sleep(error.retry_after)

    def _send_once(self, name: str, rows: Rows) -> None:
        if self._door is not None:
            with suppress(NeedsRest):
                self._door.upsert(as_message(name, rows, self.address.shard_key))
                return
        body = b'{"points":[%s]' % b",".join(as_json(rows))
        if self.address.shard_key is not None:
            body += b',"shard_key":"%s"' % self.address.shard_key.encode()
        self._rest.send("PUT", f"{_at(name)}?wait=true", body + b"}", writing=True)

    def put(self, name: str, points: list[Json]) -> None:
        """Write points that were read from a collection of the same shape."""
        try:
            body = {"points": points, **self._key()}
            self._rest.send("PUT", f"{_at(name)}?wait=true", body)
        except RequestTooLargeError:
            if len(points) == 1:
                raise
            middle = len(points) // 2
            self.put(name, points[:middle])
            self.put(name, points[middle:])

    def grpc(self, name: str) -> bool:
        """Whether points of this collection are sent by gRPC; finds it out at the first call.

        Raises:
            ConfigurationError: if gRPC was asked for and does not lead to the same server.
        """
        if self.address.prefer_grpc is False:
            return False
        with self._door_lock:
            if not self._looked:
                self._door = self._find_door(name)
                self._looked = True
        return self._door is not None

    def _find_door(self, name: str) -> GrpcDoor | None:
        host, port = self.address.grpc_target
        if not self.address.prefer_grpc and not _listens(host, port):
            return None
        try:
            door = GrpcDoor(self.address, self.where)
        except ImportError:
            return None
        try:
            same = bool(peers_of(self.cluster(name)) & door.peers(name))
            problem = None if same and self._reads_the_note(door, name) else "another server answers there"
        except RetryableError:
            door.close()
            if self.address.prefer_grpc:
                raise
            return None
        except VecferryError as error:
            problem = str(error)
        if problem is None:
            return door
        door.close()
        if self.address.prefer_grpc:
            raise ConfigurationError(
                f"{self.where}: gRPC at {host}:{port} does not lead to the same server ({problem}); "
                "name its port with grpc_port=, or leave prefer_grpc out to use REST"
            )
        return None

    def _reads_the_note(self, door: GrpcDoor, name: str) -> bool:
        """A copy of a server's storage names the same peers, but it has no note of a moment ago."""
        if self.nonce is None:
            return True
        for _ in range(_LOOKS):  # the peers of a cluster learn of it one after the other
            if self.nonce.encode() in door.info(name):
                return True
            time.sleep(_PROBE_SECONDS / _LOOKS)
        return False

    # -- requests -----------------------------------------------------------------------------

    def _key(self) -> Json:
        key = self.address.shard_key
        return {} if key is None else {"shard_key": key}

    def _do(self, method: str, path: str, body: Any = None) -> None:
        self._rest.send(method, path, body)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        return self._patiently(lambda: self._rest.send(method, path, body)[0])

    def _patiently(self, call: Callable[[], T]) -> T:
        return _RETRY.call(call)


class GrpcDoor:
    """The gRPC port of a server: upserts as bytes that are packed already."""

    def __init__(self, address: Address, where: str) -> None:
        import grpc

        host, port = address.grpc_target
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if address.https:
            credentials = grpc.ssl_channel_credentials(
                _bytes_of(address.ca_file), _bytes_of(address.cert_key_file), _bytes_of(address.cert_file)
            )
            self._channel = grpc.secure_channel(target, credentials, options=options)
        else:
            self._channel = grpc.insecure_channel(target, options=options)
        self._where, self._timeout, self._secret = where, address.timeout, address.api_key
        self._metadata = (("api-key", address.api_key),) if address.api_key else ()
        self._upsert = self._channel.unary_unary("/qdrant.Points/Upsert")
        self._cluster = self._channel.unary_unary("/qdrant.Collections/CollectionClusterInfo")
        self._info = self._channel.unary_unary("/qdrant.Collections/Get")

    def upsert(self, message: bytes) -> None:
        """Send points and wait until they are written."""
        self._call(self._upsert, message, writing=True)

    def peers(self, collection: str) -> set[int]:
        """The peers that answer for a collection, as this port names them."""
        return _peers_in(self._call(self._cluster, as_field(0x0A, collection.encode())))

    def info(self, collection: str) -> bytes:
        """A collection's configuration, as it came."""
        return self._call(self._info, as_field(0x0A, collection.encode()))

    def _call(self, method: Any, message: bytes, *, writing: bool = False) -> bytes:
        try:
            answer: bytes = method(message, timeout=self._timeout, metadata=self._metadata)
            return answer
        except Exception as error:
            found = translate(error, self._where, writing=writing)
            if self._secret and self._secret in str(found):
                found.args = (str(found).replace(self._secret, "…"), *found.args[1:])
            raise found from error

    def close(self) -> None:
        self._channel.close()


def peers_of(cluster: Json) -> set[int]:
    """Every peer that `Server.cluster` names."""
    remote = {shard["peer_id"] for shard in cluster.get("remote_shards") or ()}
    return {cluster["peer_id"], *remote}


def _peers_in(message: bytes) -> set[int]:
    """The same of a ``CollectionClusterInfoResponse``: field 1, and field 2 of each field 4."""
    found = set()
    for number, value in _fields(message):
        if number == 1 and isinstance(value, int):
            found.add(value)
        elif number == 4 and isinstance(value, bytes):
            found |= {v for n, v in _fields(value) if n == 2 and isinstance(v, int)}
    return found


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The varints and the strings of a protobuf message, with their numbers."""
    at = 0

    def varint() -> int:
        nonlocal at
        result = shift = 0
        while True:
            byte = message[at]
            at += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result
            shift += 7

    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
        elif tag & 7 == 2:
            size = varint()
            yield tag >> 3, message[at : at + size]
            at += size
        else:
            at += 8 if tag & 7 == 1 else 4


def _bytes_of(path: str | None) -> bytes | None:
    if path is None:
        return None
    return Path(path).read_bytes()


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _at(name: str) -> str:
    return f"/collections/{_quoted(name)}/points"


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_PROBE_SECONDS):
            return True
    except OSError:
        return False
