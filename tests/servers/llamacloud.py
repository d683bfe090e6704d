"""A local LlamaCloud: the REST contract of the service with the hazards that real life adds.

It speaks raw HTTP (ids may hold ``/``, ``#``, ``%`` and spaces, percent-encoded once or twice), checks
the bearer key, limits the rate, ingests in its own time, and breaks on demand. Everything it holds can be
looked at from outside: ``cloud.pipelines[id].documents``.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, unquote_plus, urlsplit
from uuid import UUID, uuid4, uuid5

KEY = "llx-test-key"
STATUSES = ("NOT_STARTED", "IN_PROGRESS", "SUCCESS", "PARTIAL_SUCCESS", "ERROR", "CANCELLED")
_NAMESPACE = UUID("0a6f5a57-0f7e-4d3c-9d5a-3b1a1d1f0c11")


class Refusal(Exception):
    def __init__(self, status: int, detail: Any) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


@dataclass
class Fault:
    """One broken answer: an HTTP status, or ``reset``, ``truncate`` or ``slow``."""

    status: int = 0
    mode: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    method: str = ""
    path: str = ""
    seconds: float = 0.0


@dataclass
class Pipeline:
    info: dict[str, Any]
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    """How often somebody must still ask before a document is ingested."""
    failing: dict[str, str] = field(default_factory=dict)
    """Document id → status it ends in."""
    files: list[dict[str, Any]] = field(default_factory=list)
    leaving: dict[str, int] = field(default_factory=dict)
    """Deleted documents that the list still shows, and for how many requests."""
    chunk_override: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


class LlamaCloud:
    """The server. A context manager; ``url`` is its base URL.

    Attributes that change its manners: ``rate`` (requests a second, 0 for no limit), ``retry_after``
    (whether a 429 says how long), ``on_page(pipeline, skip)`` (called after each page of documents),
    ``max_page`` (shorter pages than asked for), ``drift`` (added to every total_count), ``embeddings``
    (``""``, ``"filled"`` or ``"wrong"``), ``decodes_twice`` (paths), ``most_text`` (characters of a file at
    once), ``page_limit`` (422 above it), ``counts_lag`` (how many counts do not know of new documents),
    ``lost_chunks`` (ids that are listed and whose chunks are not there), ``sparse`` (leave null fields
    out), ``has_counts``, ``looks`` (how many questions an ingestion takes), ``lag`` (how many requests a
    deletion takes).
    """

    def __init__(self) -> None:
        self.projects: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, Pipeline] = {}
        self.indexes: dict[str, dict[str, Any]] = {}
        self.index_files: dict[str, dict[str, tuple[str, str]]] = {}
        self.calls: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []
        self.faults: deque[Fault] = deque()
        self.rate, self.retry_after, self.max_page, self.drift = 0.0, "1", 0, 0
        self.embeddings, self.sparse, self.has_counts, self.looks, self.lag = "", False, True, 1, 0
        self.decodes_twice, self.most_text, self.page_limit, self.counts_lag = False, 0, 0, 0
        self.lost_chunks: set[str] = set()
        self.on_page: Callable[[Pipeline, int], None] | None = None
        self.delay = 0.0
        self.lock = threading.RLock()
        self._tokens, self._last = 5.0, time.monotonic()
        self.organization = str(uuid4())
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> LlamaCloud:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    # -- furniture ------------------------------------------------------------------------------

    def project(self, name: str) -> str:
        id_ = str(uuid4())
        self.projects[id_] = {
            "id": id_,
            "name": name,
            "organization_id": self.organization,
            "is_default": not self.projects,
            "created_at": "2026-01-02T03:04:05Z",
            "updated_at": None,
        }
        return id_

    def pipeline(self, project: str, name: str, **settings: Any) -> Pipeline:
        id_ = str(uuid4())
        info = {
            "id": id_,
            "name": name,
            "project_id": project,
            "pipeline_type": "MANAGED",
            "status": "CREATED",
            "embedding_config": {
                "type": "MANAGED_OPENAI_EMBEDDING",
                "component": {"model_name": "openai-text-embedding-3-small"},
            },
            "transform_config": {"mode": "auto", "chunk_size": 64, "chunk_overlap": 8},
            "data_sink": None,
            "config_hash": {"parsing_config_hash": "5b"},
            "unknown_to_clients": {"added": "later"},
            **settings,
        }
        self.pipelines[id_] = Pipeline(info)
        return self.pipelines[id_]

    def put(self, pipeline: Pipeline, documents: list[dict[str, Any]]) -> None:
        """Documents that are already ingested."""
        for document in documents:
            pipeline.documents[document["id"]] = self.complete(document)

    def complete(self, document: dict[str, Any]) -> dict[str, Any]:
        return {
            "metadata": {},
            "excluded_embed_metadata_keys": [],
            "excluded_llm_metadata_keys": [],
            "page_positions": None,
            "status_metadata": None,
            "server_side_extra": 1,
            **document,
        }

    def index_v2(self, project: str, name: str, files: dict[str, str]) -> str:
        id_ = str(uuid4())
        self.indexes[id_] = {
            "id": id_,
            "name": name,
            "project_id": project,
            "source_directory_id": str(uuid4()),
            "output_directory_id": str(uuid4()),
            "export_config_id": str(uuid4()),
            "sync_config_id": str(uuid4()),
        }
        self.index_files[id_] = {str(uuid4()): (n, text) for n, text in files.items()}
        return id_

    # -- documents ------------------------------------------------------------------------------

    def status(self, pipeline: Pipeline, id_: str, *, ask: bool = True) -> str:
        left = pipeline.looks.get(id_, 0)
        if ask and left:
            pipeline.looks[id_] = left - 1
        if left > 1:
            return "NOT_STARTED"
        return "IN_PROGRESS" if left else pipeline.failing.get(id_, "SUCCESS")

    def chunks(self, pipeline: Pipeline, document: dict[str, Any]) -> list[dict[str, Any]]:
        id_ = document["id"]
        if id_ in pipeline.chunk_override:
            return pipeline.chunk_override[id_]
        words = document["text"].split()
        size = max(1, int(pipeline.info["transform_config"].get("chunk_size") or 64) // 8)
        pieces = [" ".join(words[i : i + size]) for i in range(0, len(words), size)]
        ids = [str(uuid5(_NAMESPACE, f"{id_}/{n}/{piece}")) for n, piece in enumerate(pieces)]
        nodes, position = [], 0
        for n, piece in enumerate(pieces):
            relations: dict[str, Any] = {"1": _related(id_, "4")}
            if n:
                relations["2"] = _related(ids[n - 1], "1")
            if n + 1 < len(pieces):
                relations["3"] = _related(ids[n + 1], "1")
                relations["5"] = [_related(ids[n + 1], "1")]
            start = document["text"].find(piece.split(" ")[0], position)
            position = start
            node = {
                "id_": ids[n],
                "text": piece,
                "extra_info": {**document["metadata"], "start_page_index": 0},
                "embedding": self._embedding(pipeline, piece),
                "relationships": relations,
                "start_char_idx": start,
                "end_char_idx": start + len(piece),
                "excluded_embed_metadata_keys": document["excluded_embed_metadata_keys"],
                "excluded_llm_metadata_keys": document["excluded_llm_metadata_keys"],
                "metadata_template": "{key}: {value}",
                "metadata_seperator": "\n",
                "text_template": "{metadata_str}\n\n{content}",
                "mimetype": "text/plain",
                "class_name": "TextNode",
            }
            if self.sparse:
                node = {key: value for key, value in node.items() if value is not None}
            nodes.append(node)
        return nodes

    def _embedding(self, pipeline: Pipeline, text: str) -> list[float] | None:
        if not self.embeddings:
            return None
        dim = pipeline.info["embedding_config"]["component"].get("dimensions") or 1536
        dim = dim if self.embeddings == "filled" else dim - 1
        seed = blake2b(text.encode(), digest_size=8).digest()
        return [((seed[i % 8] + i) % 17) / 17.0 for i in range(dim)]

    # -- manners --------------------------------------------------------------------------------

    def take_token(self) -> bool:
        if not self.rate:
            return True
        now = time.monotonic()
        self._tokens = min(5.0, self._tokens + (now - self._last) * self.rate)
        self._last = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def fault_for(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.method in ("", method) and re.search(fault.path, path):
                self.faults.remove(fault)
                return fault
        return None


def _related(node_id: str, kind: str) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "node_type": kind,
        "metadata": {},
        "hash": "c0ff",
        "class_name": "RelatedNodeInfo",
    }


# -- routes -------------------------------------------------------------------------------------------


class Call:
    """One request: raw path segments, query, JSON body."""

    def __init__(self, cloud: LlamaCloud, method: str, target: str, body: bytes) -> None:
        parts = urlsplit(target)
        self.cloud, self.method, self.raw = cloud, method, parts.path
        self.segments = parts.path.strip("/").split("/")
        self.query = {k: v[-1] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        self.body: Any = json.loads(body) if body else None

    def number(self, name: str, default: int) -> int:
        text = self.query.get(name, str(default))
        if not text.isdigit():
            raise invalid(["query", name], "Input should be greater than or equal to 0", text)
        return int(text)

    def pipeline(self) -> Pipeline:
        id_ = uuid_or_422(self.segments[3])
        if id_ not in self.cloud.pipelines:
            raise Refusal(404, f"Pipeline {id_} not found")
        return self.cloud.pipelines[id_]

    def document(self, pipeline: Pipeline) -> dict[str, Any]:
        raw = self.segments[5]
        once = unquote(raw)
        if self.cloud.decodes_twice:  # as a proxy in front does, and a router behind that splits at "/"
            twice = unquote(once)
            if "/" in once or twice not in pipeline.documents:
                raise Refusal(404, f"Document {twice} not found")
            return pipeline.documents[twice]
        for id_ in (once, unquote_plus(unquote_plus(raw))):
            if id_ in pipeline.documents:
                return pipeline.documents[id_]
        raise Refusal(404, f"Document {once} not found")


def invalid(loc: list[Any], message: str, value: Any = None) -> Refusal:
    return Refusal(422, [{"type": "value_error", "loc": loc, "msg": message, "input": value}])


def uuid_or_422(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise invalid(["path", "id"], "Input should be a valid UUID", text) from None


def list_projects(call: Call) -> Any:
    name = call.query.get("project_name", call.query.get("name"))
    found = [p for p in call.cloud.projects.values() if name in (None, p["name"])]
    return found if "/v1/" in call.raw else {"items": found, "next_page_token": None}


def get_project(call: Call) -> Any:
    id_ = uuid_or_422(call.segments[3])
    if id_ not in call.cloud.projects:
        raise Refusal(404, f"Project {id_} not found")
    return call.cloud.projects[id_]


def list_pipelines(call: Call) -> Any:
    wanted = {
        "project_id": call.query.get("project_id"),
        "name": call.query.get("pipeline_name", call.query.get("name")),
    }
    found = [
        p.info
        for p in call.cloud.pipelines.values()
        if all(value in (None, p.info[key]) for key, value in wanted.items())
    ]
    if "/v1/" in call.raw:
        return found
    keys = ("id", "name", "pipeline_type", "project_id", "status")
    page, size = int(call.query.get("page_token") or 0), int(call.query.get("page_size") or 2)
    more = str(page + size) if page + size < len(found) else None
    items = [{key: p[key] for key in keys} for p in found[page : page + size]]
    return {"items": items, "next_page_token": more}


def upsert_pipeline(call: Call) -> Any:
    body, project = call.body, call.query.get("project_id") or next(iter(call.cloud.projects))
    for pipeline in call.cloud.pipelines.values():
        if (pipeline.info["name"], pipeline.info["project_id"]) == (body["name"], project):
            pipeline.info.update(body)
            return pipeline.info
    return call.cloud.pipeline(project, **body).info


def get_pipeline(call: Call) -> Any:
    return call.pipeline().info


def pipeline_status(call: Call) -> Any:
    pipeline = call.pipeline()
    states = {call.cloud.status(pipeline, id_, ask=False) for id_ in pipeline.documents}
    worst = next((s for s in ("IN_PROGRESS", "NOT_STARTED", "ERROR") if s in states), "SUCCESS")
    return {"status": worst, "job_id": str(uuid4()), "error": None}


def list_documents(call: Call) -> Any:
    cloud, pipeline = call.cloud, call.pipeline()
    skip, limit = call.number("skip", 0), call.number("limit", 10)
    if cloud.page_limit and limit > cloud.page_limit:
        raise invalid(
            ["query", "limit"], f"Input should be less than or equal to {cloud.page_limit}", limit
        )
    for id_ in [i for i, left in pipeline.leaving.items() if left <= 0]:
        del pipeline.leaving[id_]
        pipeline.documents.pop(id_, None)
    for id_ in pipeline.leaving:
        pipeline.leaving[id_] -= 1
    everything = list(pipeline.documents.values())
    size = min(limit, cloud.max_page) if cloud.max_page else limit
    page = everything[skip : skip + size]
    if cloud.sparse:
        page = [{k: v for k, v in document.items() if v is not None} for document in page]
    answer = {
        "documents": page,
        "limit": limit,
        "offset": skip,
        "total_count": max(0, len(everything) + cloud.drift),
    }
    if cloud.on_page:
        cloud.on_page(pipeline, skip)
    return answer


def upsert_documents(call: Call) -> Any:
    cloud, pipeline = call.cloud, call.pipeline()
    if not isinstance(call.body, list):
        raise invalid(["body"], "Input should be a valid list")
    for row, document in enumerate(call.body):
        for key, kind in (("text", str), ("metadata", dict)):
            if not isinstance(document.get(key), kind):
                raise invalid(["body", row, key], f"Input should be a valid {kind.__name__}")
        if "\x00" in document["text"]:
            raise invalid(["body", row, "text"], "Value must not contain NUL", document["text"])
    stored = []
    for document in call.body:
        new = cloud.complete({"id": document.get("id") or str(uuid4()), **document})
        pipeline.documents[new["id"]] = new
        pipeline.looks[new["id"]] = cloud.looks
        pipeline.leaving.pop(new["id"], None)
        stored.append(new)
    return stored


def get_document(call: Call) -> Any:
    return call.document(call.pipeline())


def document_chunks(call: Call) -> Any:
    pipeline = call.pipeline()
    document = call.document(pipeline)
    if document["id"] in call.cloud.lost_chunks:
        raise Refusal(404, f"Document {document['id']} not found")
    return call.cloud.chunks(pipeline, document)


def document_status(call: Call) -> Any:
    pipeline = call.pipeline()
    status = call.cloud.status(pipeline, call.document(pipeline)["id"])
    failed = status in ("ERROR", "PARTIAL_SUCCESS")
    error = [{"job_id": str(uuid4()), "message": "no text could be read", "step": "TRANSFORM"}]
    return {"status": status, "job_id": str(uuid4()), "error": error if failed else None}


def status_counts(call: Call) -> Any:
    cloud, pipeline = call.cloud, call.pipeline()
    if not cloud.has_counts:
        raise Refusal(404, "Not Found")
    counted = list(pipeline.documents)
    if cloud.counts_lag:
        cloud.counts_lag -= 1
        counted = [id_ for id_ in counted if not pipeline.looks.get(id_)]
    states = Counter(cloud.status(pipeline, id_) for id_ in counted)
    counts = {status: states.get(status, 0) for status in STATUSES}
    return {
        "counts": counts,
        "pipeline_id": pipeline.info["id"],
        "total_count": len(pipeline.documents),
        "data_source_id": None,
        "file_id": None,
        "only_direct_upload": False,
    }


def delete_document(call: Call) -> Any:
    pipeline = call.pipeline()
    id_ = call.document(pipeline)["id"]
    if call.cloud.lag:
        pipeline.leaving[id_] = call.cloud.lag
    else:
        del pipeline.documents[id_]
    return None


def list_files(call: Call) -> Any:
    pipeline, limit, offset = call.pipeline(), call.number("limit", 50), call.number("offset", 0)
    page = pipeline.files[offset : offset + limit]
    return {"files": page, "limit": limit, "offset": offset, "total_count": len(pipeline.files)}


def retrieve(call: Call) -> Any:
    pipeline, body = call.pipeline(), call.body
    top = body.get("dense_similarity_top_k") or 30
    if not body.get("query"):
        raise invalid(["body", "query"], "String should have at least 1 character")
    if not 1 <= top <= 100:
        raise invalid(["body", "dense_similarity_top_k"], "Input should be less than or equal to 100", top)
    nodes = [n for d in pipeline.documents.values() for n in call.cloud.chunks(pipeline, d)]
    if body.get("search_filters"):
        nodes = [n for n in nodes if passes(body["search_filters"], n["extra_info"])]
    scored = sorted(((overlap(body["query"], n["text"]), n) for n in nodes), key=lambda pair: -pair[0])
    hits = [{"node": n, "score": s, "class_name": "TextNodeWithScore"} for s, n in scored[:top] if s > 0]
    return {
        "pipeline_id": pipeline.info["id"],
        "retrieval_nodes": hits,
        "image_nodes": [],
        "page_figure_nodes": [],
        "retrieval_latency": {"total": 0.01},
        "metadata": {},
        "inferred_search_filters": None,
        "class_name": "RetrieveResults",
    }


def overlap(query: str, text: str) -> float:
    left, right = set(query.lower().split()), set(text.lower().split())
    return len(left & right) / max(1, len(left))


_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda have, want: have == want,
    "!=": lambda have, want: have != want,
    ">": lambda have, want: have is not None and have > want,
    "<": lambda have, want: have is not None and have < want,
    ">=": lambda have, want: have is not None and have >= want,
    "<=": lambda have, want: have is not None and have <= want,
    "in": lambda have, want: have in want,
    "nin": lambda have, want: have not in want,
    "is_empty": lambda have, _: have is None,
}


def passes(filters: dict[str, Any], metadata: dict[str, Any]) -> bool:
    if "filters" not in filters:
        return _TESTS[filters["operator"]](metadata.get(filters["key"]), filters["value"])
    results = [passes(part, metadata) for part in filters["filters"]]
    condition = filters.get("condition", "and")
    return not any(results) if condition == "not" else (any if condition == "or" else all)(results)


def list_indexes(call: Call) -> Any:
    project = call.query.get("project_id")
    found = [i for i in call.cloud.indexes.values() if project in (None, i["project_id"])]
    return {"items": found, "next_page_token": None}


def get_index(call: Call) -> Any:
    id_ = uuid_or_422(call.segments[3])
    if id_ not in call.cloud.indexes:
        raise Refusal(404, f"Index {id_} not found")
    return call.cloud.indexes[id_]


def _index_files(call: Call) -> dict[str, tuple[str, str]]:
    if call.body["index_id"] not in call.cloud.index_files:
        raise Refusal(404, "Index not found")
    return call.cloud.index_files[call.body["index_id"]]


def find_files(call: Call) -> Any:
    files = list(_index_files(call).items())
    start, size = int(call.body.get("page_token") or 0), min(call.body.get("page_size") or 2, 2)
    items = [{"file_id": id_, "file_name": name} for id_, (name, _) in files[start : start + size]]
    more = str(start + size) if start + size < len(files) else None
    return {"items": items, "next_page_token": more}


def read_file(call: Call) -> Any:
    _, text = _index_files(call)[call.body["file_id"]]
    start = call.body.get("offset") or 0
    most = min(call.body.get("max_length") or 10**9, call.cloud.most_text or 10**9)
    return {"content": text[start : start + most]}


def retrieve_v2(call: Call) -> Any:
    scored = [
        (overlap(call.body["query"], text), file_id, text)
        for file_id, (_, text) in _index_files(call).items()
    ]
    scored.sort(key=lambda hit: -hit[0])
    fields = [
        {"parsed_directory_file_id": f, "chunk_index": 0, "page_range_start": None} for _, f, _ in scored
    ]
    results = [
        {"content": text, "score": s, "rerank_score": None, "metadata": {}, "static_fields": place}
        for (s, _, text), place in zip(scored, fields, strict=True)
    ]
    return {"results": results[: call.body.get("top_k") or 10]}


ROUTES: list[tuple[str, str, Callable[[Call], Any]]] = [
    ("GET", r"/api/v[12]/projects", list_projects),
    ("GET", r"/api/v[12]/projects/[^/]+", get_project),
    ("GET", r"/api/v[12]/pipelines", list_pipelines),
    ("PUT", r"/api/v1/pipelines", upsert_pipeline),
    ("GET", r"/api/v1/pipelines/[^/]+", get_pipeline),
    ("GET", r"/api/v1/pipelines/[^/]+/status", pipeline_status),
    ("POST", r"/api/v1/pipelines/[^/]+/retrieve", retrieve),
    ("GET", r"/api/v1/pipelines/[^/]+/files2", list_files),
    ("GET", r"/api/v1/pipelines/[^/]+/documents/paginated", list_documents),
    ("GET", r"/api/v1/pipelines/[^/]+/documents/status-counts", status_counts),
    ("PUT", r"/api/v1/pipelines/[^/]+/documents", upsert_documents),
    ("POST", r"/api/v1/pipelines/[^/]+/documents", upsert_documents),
    ("GET", r"/api/v1/pipelines/[^/]+/documents/[^/]+", get_document),
    ("DELETE", r"/api/v1/pipelines/[^/]+/documents/[^/]+", delete_document),
    ("GET", r"/api/v1/pipelines/[^/]+/documents/[^/]+/chunks", document_chunks),
    ("GET", r"/api/v1/pipelines/[^/]+/documents/[^/]+/status", document_status),
    ("GET", r"/api/v1/indexes", list_indexes),
    ("GET", r"/api/v1/indexes/[^/]+", get_index),
    ("POST", r"/api/v1/retrieval/files/find", find_files),
    ("POST", r"/api/v1/retrieval/files/read", read_file),
    ("POST", r"/api/v1/retrieval/retrieve", retrieve_v2),
]


def _handler_of(cloud: LlamaCloud) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one packet, or each answer waits 40 ms for an ACK
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            cloud.requests.append((self.command, self.path))
            if cloud.delay:
                time.sleep(cloud.delay)
            fault = cloud.fault_for(self.command, self.path)
            if fault and self._break(fault):
                return
            status, headers, answer = self._answer(body)
            if fault and fault.mode == "truncate":
                self._send(status, headers, answer[: len(answer) // 2])
            else:
                self._send(status, headers, answer)

        do_PUT = do_POST = do_DELETE = do_GET

        def _answer(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            with cloud.lock:
                if self.headers.get("authorization") != f"Bearer {KEY}":
                    return 401, {}, b'{"detail":"Invalid API Key"}'
                if not cloud.take_token():
                    headers = {"Retry-After": cloud.retry_after} if cloud.retry_after else {}
                    return 429, headers, b'{"detail":"Rate limit exceeded"}'
                call = Call(cloud, self.command, self.path, body)
                for method, pattern, handle in ROUTES:
                    if method == self.command and re.fullmatch(pattern, call.raw):
                        cloud.calls[handle.__name__] += 1
                        return _reply(handle, call)
                return 404, {}, b'{"detail":"Not Found"}'

        def _break(self, fault: Fault) -> bool:
            """Whether the fault is the whole answer."""
            if fault.mode == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"docu')
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return True
            if fault.mode == "slow":
                time.sleep(fault.seconds)
                return False
            if fault.status:
                body = fault.body or b'{"detail":"made to fail"}'
                self._send(fault.status, fault.headers, body)
                return True
            return False

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            try:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                self.close_connection = True

    return Handler


def _reply(handle: Callable[[Call], Any], call: Call) -> tuple[int, dict[str, str], bytes]:
    try:
        answer = handle(call)
    except Refusal as refusal:
        return refusal.status, {}, json.dumps({"detail": refusal.detail}).encode()
    if answer is None:
        return 204, {}, b""
    return 200, {}, json.dumps(answer, ensure_ascii=False).encode()
