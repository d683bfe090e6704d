"""A Qdrant for the wire: the client's own gRPC services over its local mode, with faults on demand.

It answers as a server does where the local mode does not (HNSW settings, payload indexes, statuses, the API
key), counts what came, and fails, delays, loses its answer or dies when told to::

    with QdrantServer() as server:
        server.fail("Upsert", grpc.StatusCode.UNAVAILABLE, times=2)
        QdrantClient(host="localhost", grpc_port=server.port, prefer_grpc=True, check_compatibility=False)
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as q
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

Code = grpc.StatusCode


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
    quantization: Any = None
    indexes: dict[str, models.PayloadIndexInfo] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    """What happened in which order: ``"m=0"``, ``"upsert"``, ``"index lang"``, ``"m=16"``."""


class QdrantServer:
    """Listens on a free port of this machine. Everything lies in ``client``, a local one."""

    def __init__(self, *, api_key: str | None = None, max_message: int = 32 * 2**20, port: int = 0) -> None:
        self.client = QdrantClient(":memory:")
        self.extras: dict[str, Extra] = {}
        self.calls: Counter[str] = Counter()
        self.upserts: list[tuple[int, int]] = []
        """Points and bytes of each upsert that came in."""
        self.at_once = self.most_at_once = 0
        self.faults: list[Fault] = []
        self.api_key, self.lock = api_key, threading.RLock()
        self.keeps_metadata = True
        """False: as servers before 1.16."""
        self._max_message, self.port = max_message, port
        self._server: grpc.Server | None = None
        self.start()

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

    def stop(self) -> None:
        """Die: calls under way are cut off. What was written stays for the next `start`."""
        if self._server is not None:
            self._server.stop(grace=None).wait()
            self._server = None

    def fail(self, method: str, code: grpc.StatusCode, detail: str = "told to", **how: Any) -> None:
        self.faults.append(Fault(method, code, detail, **how))

    def extra(self, name: str) -> Extra:
        with self.lock:
            aliases = {a.alias_name: a.collection_name for a in self.client.get_aliases().aliases}
            return self.extras.setdefault(aliases.get(name, name), Extra())

    def handle(self, method: str, context: grpc.ServicerContext, work: Callable[[], Any]) -> Any:
        self.calls[method] += 1
        if self.api_key and dict(context.invocation_metadata()).get("api-key") != self.api_key:
            context.abort(Code.UNAUTHENTICATED, "Must provide an API key")
        fault = next((f for f in self.faults if f.method in (method, "*") and f.times > 0), None)
        if fault is not None:
            fault.times -= 1
            time.sleep(fault.seconds)
            if not fault.late:
                self._abort(context, fault)
        try:
            with self.lock:
                answer = work()
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
            server.client.upsert(request.collection_name, points)
            server.extra(request.collection_name).history.append("upsert")
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
            result = [RestToGrpc.convert_retrieved_point(r) for r in found]
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
            extra = self.server.extra(request.collection_name)
            kind = q.FieldType.Name(request.field_type).removeprefix("FieldType").lower()
            params = _has(request, "field_index_params", GrpcToRest.convert_payload_schema_params)
            info = models.PayloadIndexInfo(
                data_type=models.PayloadSchemaType(kind), params=params, points=0
            )
            extra.indexes[request.field_name] = info
            extra.history.append(f"index {request.field_name}")
            return _done()

        return self.server.handle("CreateFieldIndex", context, work)


class _Collections(q.CollectionsServicer):
    def __init__(self, server: QdrantServer) -> None:
        self.server = server

    def Get(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            info = self.server.client.get_collection(request.collection_name)
            extra = self.server.extra(request.collection_name)
            info.config.hnsw_config = models.HnswConfig(full_scan_threshold=10000, **extra.hnsw)
            info.config.quantization_config = extra.quantization
            info.payload_schema = extra.indexes
            for name, value in extra.params.items():
                setattr(info.config.params, name, value)
            return q.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

        return self.server.handle("GetCollection", context, work)

    def List(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            names = [c.name for c in self.server.client.get_collections().collections]
            return q.ListCollectionsResponse(collections=[q.CollectionDescription(name=n) for n in names])

        return self.server.handle("List", context, work)

    def Create(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            sparse = _has(request, "sparse_vectors_config", GrpcToRest.convert_sparse_vector_config)
            metadata = GrpcToRest.convert_payload(request.metadata) if self.server.keeps_metadata else None
            self.server.client.create_collection(
                request.collection_name,
                vectors_config=GrpcToRest.convert_vectors_config(request.vectors_config),
                sparse_vectors_config=sparse,
                metadata=metadata or None,
            )
            extra = self.server.extras[request.collection_name] = Extra()
            self._set_hnsw(request, extra)
            names = ("shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload")
            extra.params = {name: getattr(request, name) for name in names if request.HasField(name)}
            extra.quantization = _has(
                request, "quantization_config", GrpcToRest.convert_quantization_config
            )
            return q.CollectionOperationResponse(result=True)

        return self.server.handle("Create", context, work)

    def Update(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            extra = self.server.extra(request.collection_name)
            self._set_hnsw(request, extra)
            if request.HasField("vectors_config"):
                diffs = GrpcToRest.convert_vectors_config_diff(request.vectors_config)
                collection = self.server.client._client._get_collection(request.collection_name)
                for name, diff in diffs.items():
                    collection.config.vectors[name].hnsw_config.m = diff.hnsw_config.m
            if request.metadata and self.server.keeps_metadata:
                metadata = GrpcToRest.convert_payload(request.metadata)
                self.server.client.update_collection(request.collection_name, metadata=metadata)
            return q.CollectionOperationResponse(result=True)

        return self.server.handle("Update", context, work)

    def _set_hnsw(self, request: Any, extra: Extra) -> None:
        if not request.HasField("hnsw_config"):
            return
        diff = GrpcToRest.convert_hnsw_config_diff(request.hnsw_config).model_dump(exclude_none=True)
        extra.hnsw.update({k: v for k, v in diff.items() if k in ("m", "ef_construct", "on_disk")})
        extra.history.append(f"m={extra.hnsw['m']}")

    def Delete(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            self.server.extras.pop(request.collection_name, None)
            done = self.server.client.delete_collection(request.collection_name)
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
