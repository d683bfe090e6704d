"""A Qdrant for the wire: the client's local mode behind both doors of a server, with faults on demand.

It answers as a server does where the local mode does not (settings, payload indexes and what they decide,
strict mode, rate limits, floats that come back a little off, the API key), counts what came, and fails,
delays, loses its answer or dies when told to::

    with QdrantServer() as server:
        server.fail("Upsert", grpc.StatusCode.UNAVAILABLE, times=2)
        vf.connect(server.url("kb"))

``port`` is its gRPC port, ``rest_port`` the other. What it does is itself held against a real server by the
tests that run where ``QDRANT_URL`` is set.
"""

from __future__ import annotations

import copy
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import grpc
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as q
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.local.payload_filters import check_filter

Code = grpc.StatusCode
HTTP = {
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
    Code.INTERNAL: 500,
    Code.ABORTED: 503,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.PERMISSION_DENIED: 403,
    Code.UNAUTHENTICATED: 401,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.UNIMPLEMENTED: 501,
    Code.INVALID_ARGUMENT: 400,
}


@dataclass
class Fault:
    """The next ``times`` calls of ``method`` end so. ``late``: after the work was done (a lost answer)."""

    method: str
    code: grpc.StatusCode
    detail: str = "told to"
    times: int = 1
    late: bool = False
    retry_after: int | None = None
    seconds: float = 0.0


@dataclass
class Extra:
    """What a server keeps of a collection and the local mode forgets."""

    hnsw: dict[str, Any] = field(default_factory=lambda: {"m": 16, "ef_construct": 100})
    params: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """``quantization_config``, ``optimizer_config``, ``wal_config``, ``strict_mode_config`` as JSON."""
    vectors: dict[str, Any] = field(default_factory=dict)
    """Field → its settings beyond size, distance and datatype."""
    indexes: dict[str, Any] = field(default_factory=dict)
    """Payload path → type, or parameters."""
    history: list[str] = field(default_factory=list)
    """What happened in which order: ``"m=0"``, ``"upsert"``, ``"index lang"``, ``"m=16"``."""
    written: list[float] = field(default_factory=list)
    """When points came in, for the rate limit."""
    raw: dict[Any, Any] = field(default_factory=dict)
    """Point → vectors as they came."""
    hidden: int = 0
    """Points that the optimizer has not seen: ``points_count`` knows of them, nothing else does."""


class Refusal(Exception):
    """An answer with an error: ``status``, what is said, and seconds to wait."""

    def __init__(self, status: int, detail: str, wait: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.wait = status, detail, wait


class QdrantServer:
    """Listens on two free ports of this machine. Everything lies in ``client``, a local one.

    Args:
        max_message: bytes in one request by gRPC; max_body: by REST.
        peer: the number that a server draws once and keeps beside its data.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        max_message: int = 32 * 2**20,
        max_body: int = 32 * 2**20,
        port: int = 0,
        rest_port: int = 0,
        peer: int | None = None,
    ) -> None:
        self.client = QdrantClient(":memory:")
        self.peer = random.getrandbits(50) if peer is None else peer
        self.max_body, self.answers = max_body, list[tuple[int, dict[str, str], str]]()
        """Given by REST to requests that change points, before the truth: ``(status, headers, text)``."""
        self.extras: dict[str, Extra] = {}
        self.calls: Counter[str] = Counter()
        self.upserts: list[tuple[int, int]] = []
        """Points and bytes of each upsert that came in."""
        self.at_once = self.most_at_once = 0
        self.faults: list[Fault] = []
        self.api_key, self.lock = api_key, threading.RLock()
        self.shards: list[dict[str, Any]] = []
        self.minute = 60.0
        """Seconds in which a rate limit counts."""
        self.keeps_metadata = True
        """False: as servers before 1.16."""
        self._max_message, self.port, self.rest_port = max_message, port, rest_port
        self._server: grpc.Server | None = None
        self._http: _Http | None = None
        self.start()

    def url(self, collection: str, **options: Any) -> str:
        query = "&".join(f"{k}={v}" for k, v in {"grpc_port": self.port, **options}.items())
        return f"qdrant://127.0.0.1:{self.rest_port}/{collection}?{query}"

    def named(self, collection: str) -> str:
        """What the server calls it; on a real one every run has names of its own."""
        return collection

    def __enter__(self) -> QdrantServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        options = [("grpc.max_receive_message_length", self._max_message), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(ThreadPoolExecutor(8), options=options)
        q.add_PointsServicer_to_server(_Points(self), self._server)
        q.add_CollectionsServicer_to_server(_Collections(self), self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()
        handler = type("Handler", (_Handler,), {"server_": self})
        self._http = _Http(("127.0.0.1", self.rest_port), handler)
        self.rest_port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Die: calls under way are cut off. What was written stays for the next `start`."""
        if self._server is not None:
            self._server.stop(grace=None).wait()
            self._server = None
        if self._http is not None:
            self._http.shutdown()
            self._http.cut_off()
            self._http = None

    def fail(self, method: str, code: grpc.StatusCode, detail: str = "told to", **how: Any) -> None:
        self.faults.append(Fault(method, code, detail, **how))

    def extra(self, name: str) -> Extra:
        with self.lock:
            aliases = {a.alias_name: a.collection_name for a in self.client.get_aliases().aliases}
            return self.extras.setdefault(aliases.get(name, name), Extra())

    def met(self, method: str) -> Fault | None:
        """The fault that strikes this call, if one does; early ones are waited for."""
        self.calls[method] += 1
        fault = next((f for f in self.faults if f.method in (method, "*") and f.times > 0), None)
        if fault is not None:
            fault.times -= 1
            time.sleep(fault.seconds)
        return fault

    def handle(self, method: str, context: grpc.ServicerContext, work: Callable[[], Any]) -> Any:
        if self.api_key and dict(context.invocation_metadata()).get("api-key") != self.api_key:
            context.abort(Code.UNAUTHENTICATED, "Must provide an API key")
        fault = self.met(method)
        if fault is not None and not fault.late:
            self._abort(context, fault)
        try:
            with self.lock:
                answer = work()
        except Refusal as refusal:
            if refusal.wait is not None:
                context.set_trailing_metadata((("retry-after", str(refusal.wait)),))
            codes = {429: Code.RESOURCE_EXHAUSTED, 403: Code.PERMISSION_DENIED}
            context.abort(codes.get(refusal.status, Code.INVALID_ARGUMENT), refusal.detail)
        except (ValueError, TypeError) as error:
            context.abort(_code_of(str(error)), str(error))
        if fault is not None:
            self._abort(context, fault)
        return answer

    def _abort(self, context: grpc.ServicerContext, fault: Fault) -> None:
        if fault.code is Code.OK:  # only slow
            return
        if fault.retry_after is not None:
            context.set_trailing_metadata((("retry-after", str(fault.retry_after)),))
        context.abort(fault.code, fault.detail)

    # -- what both doors do -------------------------------------------------------------------

    def real(self, name: str) -> str:
        aliases = {a.alias_name: a.collection_name for a in self.client.get_aliases().aliases}
        return aliases.get(name, name)

    def info(self, name: str) -> dict[str, Any]:
        """As a server's ``GET /collections/NAME``."""
        found = self.client.get_collection(name)
        extra, local = self.extra(name), _json(found)["config"]
        params = {"shard_number": 1, "replication_factor": 1, "write_consistency_factor": 1, **extra.params}
        dense = local["params"].get("vectors") or {}
        if "size" in dense:
            dense = {**_shape(dense), **extra.vectors.get("", {})}
        else:
            dense = {n: {**_shape(v), **extra.vectors.get(n, {})} for n, v in dense.items()}
        sparse = {n: extra.vectors.get(n, {}) for n in local["params"].get("sparse_vectors") or {}}
        optimizer: dict[str, Any] = {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000}
        optimizer |= {"default_segment_number": 0, "flush_interval_sec": 5}
        config = {
            "params": {**params, "vectors": dense, **({"sparse_vectors": sparse} if sparse else {})},
            "hnsw_config": {"full_scan_threshold": 10000, **extra.hnsw},
            "optimizer_config": {**optimizer, **extra.config.get("optimizer_config", {})},
            "wal_config": {
                "wal_capacity_mb": 32,
                "wal_segments_ahead": 0,
                **extra.config.get("wal_config", {}),
            },
            **{k: v for k, v in extra.config.items() if k not in ("optimizer_config", "wal_config")},
            "metadata": local.get("metadata"),
        }
        schema = {
            path: {
                "data_type": index if isinstance(index, str) else index["type"],
                "points": 0,
                **({} if isinstance(index, str) else {"params": index}),
            }
            for path, index in extra.indexes.items()
        }
        return {
            "status": "green",
            "optimizer_status": "ok",
            "segments_count": 1,
            "points_count": self.client.count(name).count + extra.hidden,
            "config": config,
            "payload_schema": schema,
        }

    def create(self, name: str, body: dict[str, Any]) -> bool:
        wanted = models.CreateCollection(**{k: body[k] for k in ("vectors", "sparse_vectors") if k in body})
        done = self.client.create_collection(
            name,
            vectors_config=wanted.vectors or {},
            sparse_vectors_config=wanted.sparse_vectors,
            metadata=body.get("metadata") if self.keeps_metadata else None,
        )
        extra = self.extras[name] = Extra()
        dense = body.get("vectors") or {}
        dense = {"": dense} if "size" in dense else dense
        for field_, params in {**dense, **(body.get("sparse_vectors") or {})}.items():
            extra.vectors[field_] = {k: v for k, v in params.items() if k not in _SHAPE}
        names = ("shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload")
        extra.params = {name: body[name] for name in (*names, "sharding_method") if name in body}
        self._configure(body, extra)
        return done

    def update(self, name: str, body: dict[str, Any]) -> bool:
        extra = self.extra(name)
        self._configure(body, extra)
        for field_, params in (body.get("vectors") or {}).items():
            own = extra.vectors.setdefault(field_, {})
            for key, value in params.items():
                own[key] = {**own.get(key, {}), **value} if isinstance(value, dict) else value
        if body.get("metadata") and self.keeps_metadata:
            self.client.update_collection(name, metadata=body["metadata"])
        return True

    def _configure(self, body: dict[str, Any], extra: Extra) -> None:
        if body.get("hnsw_config"):
            extra.hnsw.update({k: v for k, v in body["hnsw_config"].items() if v is not None})
            extra.history.append(f"m={extra.hnsw['m']}")
        if body.get("optimizers_config"):
            extra.config["optimizer_config"] = body["optimizers_config"]
        for key in ("wal_config", "quantization_config", "strict_mode_config"):
            if body.get(key):
                extra.config[key] = {**extra.config.get(key, {}), **body[key]}

    def drop(self, name: str) -> bool:
        self.extras.pop(name, None)
        return self.client.delete_collection(name)

    def index(self, name: str, path: str, schema: Any) -> None:
        extra = self.extra(name)
        extra.indexes[path] = schema if isinstance(schema, str | dict) else _json(schema)
        extra.history.append(f"index {path}")

    def strict(self, name: str) -> dict[str, Any]:
        found = self.extra(name).config.get("strict_mode_config") or {}
        return found if found.get("enabled") else {}

    def store(self, name: str, points: list[models.PointStruct]) -> None:
        """Write points as a server does: no earlier than its rate limit allows."""
        extra, limit = self.extra(name), self.strict(name).get("write_rate_limit")
        if limit is not None:
            if len(points) > limit:
                raise Refusal(
                    429,
                    "Rate limiting exceeded: Write rate limit exceeded, request larger than rate limiter"
                    " capacity, please try to split your request",
                )
            now = time.monotonic()
            extra.written = [at for at in extra.written if now - at < self.minute]
            if len(extra.written) + len(points) > limit:
                raise Refusal(429, "Rate limiting exceeded: Write rate limit exceeded", wait=1)
            extra.written += [now] * len(points)
        most = self.strict(name).get("upsert_max_batchsize")
        if most is not None and len(points) > most:
            raise Refusal(400, f"Limit exceeded {len(points)} > {most} for upsert limit")
        self.client.upsert(name, points)
        extra.raw.update({point.id: point.vector for point in points})
        extra.history.append("upsert")

    def unscaled(self, name: str, records: list[Any]) -> list[Any]:
        """Vectors of bytes as they came: the local mode brings them to unit length, a server does not."""
        dense, raw = self.info(name)["config"]["params"]["vectors"], self.extra(name).raw
        for field_, params in ({"": dense} if "size" in dense else dense).items():
            if params.get("datatype") != "uint8":
                continue
            for record in records:
                if isinstance(record.vector, dict) and field_ in record.vector:
                    record.vector[field_] = raw[record.id][field_]
                elif isinstance(record.vector, list):
                    record.vector = raw[record.id]
        return records

    def scroll(self, name: str, body: dict[str, Any]) -> tuple[list[Any], Any]:
        """Points in order, filtered as payload indexes make a server filter."""
        limit = body.get("limit") or 10
        self.check_limit(name, limit)
        condition = models.Filter(**body["filter"]) if body.get("filter") else None
        if condition is None:
            return self.client.scroll(name, None, limit, offset=body.get("offset"), **_selected(body))
        self.check_filter(name, body["filter"])
        everything, _ = self.client.scroll(name, limit=10**9, offset=body.get("offset"), with_payload=True)
        fitting = [r.id for r in everything if check_filter(condition, self.seen(name, r), r.id, {})]
        page, rest = fitting[:limit], fitting[limit:]
        return self.client.retrieve(name, page, **_selected(body)), rest[0] if rest else None

    def check_limit(self, name: str, limit: int) -> None:
        most = self.strict(name).get("max_query_limit")
        if most is not None and limit > most:
            raise Refusal(400, f'Limit exceeded {limit} > {most} for "limit"')

    def check_filter(self, name: str, condition: Any) -> None:
        most, found = self.strict(name).get("filter_max_conditions"), _conditions(condition)
        if most is not None and found > most:
            raise Refusal(400, f"Bad request: Filter condition limit reached ({found} > {most}).")
        if self.strict(name).get("unindexed_filtering_retrieve") is False:
            for key in _keys(condition):
                if key.replace('"', "") not in self.extra(name).indexes:
                    raise Refusal(400, f'Bad request: Index required but not found for "{key}"')

    def seen(self, name: str, record: Any) -> dict[str, Any]:
        """A payload as the indexes hold it: an integer index no floats, a datetime index only moments."""
        payload: dict[str, Any] = drifted(record.payload or {})
        for path, index in self.extra(name).indexes.items():
            kind = index if isinstance(index, str) else index["type"]
            *steps, last = path.split(".")
            holder: Any = payload
            for step in steps:
                holder = holder.get(step) if isinstance(holder, dict) else None
            value = holder.get(last) if isinstance(holder, dict) else None
            if (kind == "integer" and isinstance(value, float)) or (
                kind == "datetime" and isinstance(value, int | float)
            ):
                holder[last] = None
        return payload


def drifted(value: Any) -> Any:
    """A payload as a server gives it back: JSON text, whose numbers it parses without exact round-trip."""
    if isinstance(value, float):
        mantissa, _, power = repr(value).partition("e")
        whole, _, fraction = mantissa.partition(".")
        shift = int(power or "0") - len(fraction)
        digits = float(int(whole + fraction))
        if not 0 <= abs(shift) <= 308:
            return value
        power_of_ten = float(f"1e{abs(shift)}")
        found = digits * power_of_ten if shift >= 0 else digits / power_of_ten
        return -0.0 if found == 0 and repr(value).startswith("-") else found
    if isinstance(value, dict):
        return {key: drifted(one) for key, one in value.items()}
    return [drifted(one) for one in value] if isinstance(value, list) else value


def narrowed(record: Any) -> Any:
    """As gRPC gives it: integers beyond 64 bits with a sign are doubles there."""

    def narrow(value: Any) -> Any:
        if type(value) is int and value >= 2**63:
            return float(value)
        if isinstance(value, dict):
            return {key: narrow(one) for key, one in value.items()}
        return [narrow(one) for one in value] if isinstance(value, list) else value

    return record.model_copy(update={"payload": narrow(drifted(record.payload or {}))})


def _conditions(condition: Any) -> int:
    """How many a filter has, those of the filters within it included."""
    found = 0
    for name in ("must", "should", "must_not"):
        inner = condition.get(name) or []
        for one in inner if isinstance(inner, list) else [inner]:
            found += _conditions(one) or 1
    return found


def _keys(condition: Any) -> Iterator[str]:
    if isinstance(condition, dict):
        for name in ("key", "is_empty", "is_null"):
            if name in condition:
                key = condition[name]
                yield key["key"] if isinstance(key, dict) else key
        for value in condition.values():
            if isinstance(value, dict | list):
                yield from _keys(value)
    elif isinstance(condition, list):
        for one in condition:
            yield from _keys(one)


_SHAPE = ("size", "distance", "datatype", "multivector_config")


def _shape(params: dict[str, Any]) -> dict[str, Any]:
    return {key: params[key] for key in _SHAPE if params.get(key) is not None}


def _selected(body: dict[str, Any]) -> dict[str, Any]:
    vectors = body.get("with_vector", body.get("with_vectors", False))
    return {"with_payload": body.get("with_payload") or False, "with_vectors": vectors or False}


def _json(model: Any) -> Any:
    return model.model_dump(mode="json", exclude_none=True, by_alias=True)


def _code_of(message: str) -> grpc.StatusCode:
    if message.endswith("not found"):
        return Code.NOT_FOUND
    return Code.ALREADY_EXISTS if message.endswith("already exists") else Code.INVALID_ARGUMENT


def _done() -> q.PointsOperationResponse:
    return q.PointsOperationResponse(result=q.UpdateResult(operation_id=1, status=q.UpdateStatus.Completed))


def _has(request: Any, name: str, convert: Callable[[Any], Any]) -> Any:
    return convert(getattr(request, name)) if request.HasField(name) else None


def _selectors(request: Any) -> dict[str, Any]:
    payload = _has(request, "with_payload", GrpcToRest.convert_with_payload_selector)
    vectors = _has(request, "with_vectors", GrpcToRest.convert_with_vectors_selector)
    return {"with_payload": payload or False, "with_vectors": vectors or False}


class _Points(q.PointsServicer):
    def __init__(self, server: QdrantServer) -> None:
        self.server = server

    def Upsert(self, request: Any, context: Any) -> Any:
        server = self.server
        with server.lock:
            server.upserts.append((len(request.points), request.ByteSize()))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)

        def work() -> Any:
            points = [GrpcToRest.convert_point_struct(point) for point in request.points]
            server.store(request.collection_name, points)
            return _done()

        try:
            return server.handle("Upsert", context, work)
        finally:
            with server.lock:
                server.at_once -= 1

    def Delete(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            selector = GrpcToRest.convert_points_selector(request.points)
            self.server.client.delete(request.collection_name, selector)
            return _done()

        return self.server.handle("Delete", context, work)

    def Get(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            ids = [GrpcToRest.convert_point_id(i) for i in request.ids]
            found = self.server.client.retrieve(request.collection_name, ids, **_selectors(request))
            found = [narrowed(record) for record in found]
            return q.GetResponse(result=[RestToGrpc.convert_retrieved_point(r) for r in found])

        return self.server.handle("Get", context, work)

    def Scroll(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            found, following = self.server.client.scroll(
                request.collection_name,
                scroll_filter=_has(request, "filter", GrpcToRest.convert_filter),
                limit=request.limit,
                offset=_has(request, "offset", GrpcToRest.convert_point_id),
                **_selectors(request),
            )
            offset = None if following is None else RestToGrpc.convert_extended_point_id(following)
            result = [RestToGrpc.convert_retrieved_point(narrowed(r)) for r in found]
            return q.ScrollResponse(result=result, next_page_offset=offset)

        return self.server.handle("Scroll", context, work)

    def Count(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            count = self.server.client.count(request.collection_name, exact=True).count
            return q.CountResponse(result=q.CountResult(count=count))

        return self.server.handle("Count", context, work)

    def Query(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            answer = self.server.client.query_points(
                request.collection_name,
                GrpcToRest.convert_query(request.query),
                using=request.using or None,
                query_filter=_has(request, "filter", GrpcToRest.convert_filter),
                limit=request.limit,
                **_selectors(request),
            )
            result = [RestToGrpc.convert_scored_point(p) for p in answer.points]
            return q.QueryResponse(result=result)

        return self.server.handle("Query", context, work)

    def QueryBatch(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            results = []
            for one in request.query_points:
                answer = self.server.client.query_points(
                    request.collection_name,
                    GrpcToRest.convert_query(one.query),
                    using=one.using or None,
                    query_filter=_has(one, "filter", GrpcToRest.convert_filter),
                    limit=one.limit,
                    **_selectors(one),
                )
                points = [RestToGrpc.convert_scored_point(p) for p in answer.points]
                results.append(q.BatchResult(result=points))
            return q.QueryBatchResponse(result=results)

        return self.server.handle("QueryBatch", context, work)

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            kind = q.FieldType.Name(request.field_type).removeprefix("FieldType").lower()
            params = _has(request, "field_index_params", GrpcToRest.convert_payload_schema_params)
            self.server.index(request.collection_name, request.field_name, params or kind)
            return _done()

        return self.server.handle("CreateFieldIndex", context, work)


class _Collections(q.CollectionsServicer):
    def __init__(self, server: QdrantServer) -> None:
        self.server = server

    def Get(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            info = models.CollectionInfo(**self.server.info(request.collection_name))
            return q.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

        return self.server.handle("GetCollection", context, work)

    def List(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            names = [c.name for c in self.server.client.get_collections().collections]
            return q.ListCollectionsResponse(collections=[q.CollectionDescription(name=n) for n in names])

        return self.server.handle("List", context, work)

    def CollectionClusterInfo(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            self.server.client.get_collection(request.collection_name)
            return q.CollectionClusterInfoResponse(peer_id=self.server.peer, shard_count=1)

        return self.server.handle("CollectionClusterInfo", context, work)

    def Delete(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            done = self.server.drop(request.collection_name)
            return q.CollectionOperationResponse(result=done)

        return self.server.handle("DeleteCollection", context, work)

    def UpdateAliases(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            actions = [GrpcToRest.convert_alias_operations(action) for action in request.actions]
            self.server.client.update_collection_aliases(actions)
            return q.CollectionOperationResponse(result=True)

        return self.server.handle("UpdateAliases", context, work)

    def ListAliases(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            found = self.server.client.get_aliases().aliases
            return q.ListAliasesResponse(aliases=[RestToGrpc.convert_alias_description(a) for a in found])

        return self.server.handle("ListAliases", context, work)

    def CollectionExists(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            exists = self.server.client.collection_exists(request.collection_name)
            return q.CollectionExistsResponse(result=q.CollectionExists(exists=exists))

        return self.server.handle("CollectionExists", context, work)


# -- REST ---------------------------------------------------------------------------------------


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        self.connections: set[Any] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def cut_off(self) -> None:
        self.server_close()
        for connection in self.connections:
            try:
                connection.shutdown(2)
            except OSError:
                continue


class _Handler(BaseHTTPRequestHandler):
    server_: QdrantServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def handle(self) -> None:
        with suppress(ConnectionError, ValueError):  # cut off
            super().handle()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        server = self.server_
        if server.api_key and self.headers.get("api-key") != server.api_key:
            self._send(403, "Must provide an API key")
        elif len(body) > server.max_body:
            limit = f"(limit: {server.max_body} bytes)"
            self._send(400, f"JSON payload ({len(body)} bytes) is larger than allowed {limit}.")
        elif self.command == "PUT" and self.path.partition("?")[0].endswith("/points") and server.answers:
            status, headers, text = server.answers.pop(0)
            self._send(status, text, headers)
        else:
            self._do(body)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer

    def _do(self, raw: bytes) -> None:
        path = self.path.split("?")[0]
        for method, pattern, name, fault_name in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                self._route(name, fault_name, [unquote(one) for one in match.groups()], raw)
                return
        self._send(404, f"no route for {self.command} {path}")

    def _route(self, name: str, fault_name: str, arguments: list[str], raw: bytes) -> None:
        server = self.server_
        if name == "upsert":
            with server.lock:
                server.upserts.append((raw.count(b'"payload":'), len(raw)))
        fault = server.met(fault_name)
        if fault is not None and not fault.late and fault.code is not Code.OK:
            self._fail(fault)
            return
        try:
            with server.lock:
                result = getattr(self, name)(*arguments, json.loads(raw) if raw else {})
        except Refusal as refusal:
            headers = {} if refusal.wait is None else {"retry-after": str(refusal.wait)}
            self._send(refusal.status, refusal.detail, headers)
        except (ValueError, TypeError) as error:
            self._send(HTTP[_code_of(str(error))], str(error))
        else:
            if fault is not None and fault.code is not Code.OK:
                self._fail(fault)
            else:
                self._send(200, {"result": result, "status": "ok", "time": 0.0})

    def _fail(self, fault: Fault) -> None:
        headers = {} if fault.retry_after is None else {"retry-after": str(fault.retry_after)}
        self._send(HTTP[fault.code], fault.detail, headers)

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        content = content if isinstance(content, dict) else {"status": {"error": content}, "time": 0.0}
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    # -- routes -------------------------------------------------------------------------------

    def get_collection(self, name: str, _: Any) -> Any:
        return self.server_.info(name)

    def get_cluster(self, name: str, _: Any) -> Any:
        self.server_.client.get_collection(name)
        shards = self.server_.shards
        return {"peer_id": self.server_.peer, "shard_count": 1, "local_shards": shards, "remote_shards": []}

    def exists(self, name: str, _: Any) -> Any:
        return {"exists": self.server_.client.collection_exists(name)}

    def create_collection(self, name: str, body: dict[str, Any]) -> bool:
        return self.server_.create(name, body)

    def update_collection(self, name: str, body: dict[str, Any]) -> bool:
        return self.server_.update(name, body)

    def get_collections(self, _: Any) -> Any:
        return _json(self.server_.client.get_collections())

    def get_aliases(self, _: Any) -> Any:
        return _json(self.server_.client.get_aliases())

    def upsert(self, name: str, body: dict[str, Any]) -> Any:
        for point in body["points"]:
            point["payload"] = drifted(point.get("payload"))
        self.server_.store(name, models.PointsList(points=body["points"]).points)
        return {"operation_id": 1, "status": "completed"}

    def retrieve(self, name: str, body: dict[str, Any]) -> Any:
        found = self.server_.client.retrieve(name, body["ids"], **_selected(body))
        return [_given(record) for record in self.server_.unscaled(name, found)]

    def scroll(self, name: str, body: dict[str, Any]) -> Any:
        points, offset = self.server_.scroll(name, body)
        points = self.server_.unscaled(name, points)
        return {"points": [_given(p) for p in points], "next_page_offset": offset}

    def count(self, name: str, body: dict[str, Any]) -> Any:
        if body.get("exact", True) and self.server_.strict(name).get("search_allow_exact") is False:
            raise Refusal(400, "Bad request: Exact search disabled!. Help: Set exact=false.")
        return {"count": self.server_.client.count(name).count}

    def query_points(self, name: str, body: dict[str, Any]) -> Any:
        self.server_.check_limit(name, body.get("limit") or 10)
        if body.get("filter"):
            self.server_.check_filter(name, body["filter"])
        wanted = models.QueryRequest(**body)
        answer = self.server_.client.query_points(
            name,
            wanted.query,
            using=wanted.using,
            query_filter=wanted.filter,
            limit=wanted.limit or 10,
            **_selected(body),
        )
        return {"points": [_given(point) for point in answer.points]}

    def query_batch(self, name: str, body: dict[str, Any]) -> Any:
        return [self.query_points(name, one) for one in body["searches"]]

    def delete_collection(self, name: str, _: Any) -> bool:
        return self.server_.drop(name)

    def update_aliases(self, body: dict[str, Any]) -> bool:
        actions = models.ChangeAliasesOperation(**body).actions
        return self.server_.client.update_collection_aliases(actions)

    def create_index(self, name: str, body: dict[str, Any]) -> Any:
        self.server_.index(name, body["field_name"], body["field_schema"])
        return {"operation_id": 1, "status": "completed"}

    def delete(self, name: str, body: dict[str, Any]) -> Any:
        return _json(self.server_.client.delete(name, models.PointIdsList(points=body["points"])))


def _given(record: Any) -> Any:
    found = _json(record)
    if record.payload is not None:
        found["payload"] = drifted(copy.deepcopy(record.payload))
    return found


_ROUTES = (
    ("POST", "/collections/aliases", "update_aliases", "UpdateAliases"),
    ("PUT", "/collections/([^/]+)/index", "create_index", "CreateFieldIndex"),
    ("DELETE", "/collections/([^/]+)", "delete_collection", "DeleteCollection"),
    ("GET", "/collections/([^/]+)", "get_collection", "GetCollection"),
    ("GET", "/collections/([^/]+)/cluster", "get_cluster", "CollectionClusterInfo"),
    ("GET", "/collections/([^/]+)/exists", "exists", "CollectionExists"),
    ("PUT", "/collections/([^/]+)", "create_collection", "Create"),
    ("PATCH", "/collections/([^/]+)", "update_collection", "Update"),
    ("GET", "/collections", "get_collections", "List"),
    ("GET", "/aliases", "get_aliases", "ListAliases"),
    ("PUT", "/collections/([^/]+)/points", "upsert", "Upsert"),
    ("POST", "/collections/([^/]+)/points", "retrieve", "Get"),
    ("POST", "/collections/([^/]+)/points/scroll", "scroll", "Scroll"),
    ("POST", "/collections/([^/]+)/points/count", "count", "Count"),
    ("POST", "/collections/([^/]+)/points/query", "query_points", "Query"),
    ("POST", "/collections/([^/]+)/points/query/batch", "query_batch", "QueryBatch"),
    ("POST", "/collections/([^/]+)/points/delete", "delete", "Delete"),
)
