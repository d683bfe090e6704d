"""A Qdrant that speaks REST: the requests the store makes, answered from the client's local mode."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import QdrantClient, models


class QdrantRest:
    """Listens on a free port; ``client`` holds everything; ``answers`` are given first, then the truth.

    An answer is ``(status, headers, text)`` and is used up by the next request that changes points.
    """

    def __init__(self, *, api_key: str | None = None, max_body: int = 32 * 2**20) -> None:
        self.client = QdrantClient(":memory:")
        self.answers: list[tuple[int, dict[str, str], str]] = []
        self.calls: Counter[str] = Counter()
        self.most: int | None = None
        """Strict mode's ``max_query_limit``."""
        self.api_key, self.max_body, self.lock = api_key, max_body, threading.RLock()
        handler = type("Handler", (_Handler,), {"server_": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def __enter__(self) -> QdrantRest:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_: QdrantRest

    def log_message(self, *_: Any) -> None: ...

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        rest = self.server_
        if rest.api_key and self.headers.get("api-key") != rest.api_key:
            self._send(403, "Must provide an API key")
        elif len(body) > rest.max_body:
            limit = (
                f"JSON payload ({len(body)} bytes) is larger than allowed (limit: {rest.max_body} bytes)."
            )
            self._send(400, limit)
        elif self.command == "PUT" and "/points" in self.path and rest.answers:
            status, headers, text = rest.answers.pop(0)
            self._send(status, text, headers)
        else:
            self._do(json.loads(body) if body else {})

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer

    def _do(self, body: dict[str, Any]) -> None:
        path = self.path.split("?")[0]
        for method, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                self.server_.calls[name] += 1
                try:
                    with self.server_.lock:
                        result = getattr(self, name)(*match.groups(), body)
                except ValueError as error:
                    self._send(404 if str(error).endswith("not found") else 400, str(error))
                else:
                    self._send(200, {"result": result, "status": "ok", "time": 0.0})
                return
        self._send(404, f"no route for {self.command} {path}")

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        content = content if isinstance(content, dict) else {"status": {"error": content}, "time": 0.0}
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _check(self, limit: int | None) -> None:
        most = self.server_.most
        if most and (limit or 10) > most:
            raise ValueError(f'Limit exceeded {limit} > {most} for "limit"')

    # -- routes -------------------------------------------------------------------------------

    def get_collection(self, name: str, _: Any) -> Any:
        info = _json(self.server_.client.get_collection(name))
        if self.server_.most:
            info["config"]["strict_mode_config"] = {"enabled": True, "max_query_limit": self.server_.most}
        return info

    def create_collection(self, name: str, body: dict[str, Any]) -> bool:
        wanted = models.CreateCollection(**body)
        return self.server_.client.create_collection(
            name,
            vectors_config=wanted.vectors,
            sparse_vectors_config=wanted.sparse_vectors,
            metadata=wanted.metadata,
        )

    def update_collection(self, name: str, body: dict[str, Any]) -> bool:
        return self.server_.client.update_collection(name, metadata=body.get("metadata"))

    def get_collections(self, _: Any) -> Any:
        return _json(self.server_.client.get_collections())

    def get_aliases(self, _: Any) -> Any:
        return _json(self.server_.client.get_aliases())

    def upsert(self, name: str, body: dict[str, Any]) -> Any:
        points = models.PointsList(**body).points
        return _json(self.server_.client.upsert(name, points))

    def retrieve(self, name: str, body: dict[str, Any]) -> Any:
        found = self.server_.client.retrieve(name, body["ids"], **_selectors(body))
        return [_json(record) for record in found]

    def scroll(self, name: str, body: dict[str, Any]) -> Any:
        wanted = models.ScrollRequest(**body)
        self._check(wanted.limit)
        points, offset = self.server_.client.scroll(
            name, wanted.filter, wanted.limit, offset=wanted.offset, **_selectors(body)
        )
        return {"points": [_json(p) for p in points], "next_page_offset": offset}

    def count(self, name: str, _: Any) -> Any:
        return {"count": self.server_.client.count(name).count}

    def query_points(self, name: str, body: dict[str, Any]) -> Any:
        wanted = models.QueryRequest(**body)
        self._check(wanted.limit)
        answer = self.server_.client.query_points(
            name,
            wanted.query,
            using=wanted.using,
            query_filter=wanted.filter,
            limit=wanted.limit,
            **_selectors(body),
        )
        return _json(answer)

    def query_batch(self, name: str, body: dict[str, Any]) -> Any:
        return [self.query_points(name, one) for one in body["searches"]]

    def delete_collection(self, name: str, _: Any) -> bool:
        return self.server_.client.delete_collection(name)

    def update_aliases(self, body: dict[str, Any]) -> bool:
        actions = models.ChangeAliasesOperation(**body).actions
        return self.server_.client.update_collection_aliases(actions)

    def create_index(self, name: str, body: dict[str, Any]) -> Any:
        return {"operation_id": 1, "status": "completed"}

    def delete(self, name: str, body: dict[str, Any]) -> Any:
        return _json(self.server_.client.delete(name, models.PointIdsList(**body)))


def _selectors(body: dict[str, Any]) -> dict[str, Any]:
    vectors = body.get("with_vector", body.get("with_vectors", False))
    return {"with_payload": body.get("with_payload") or False, "with_vectors": vectors or False}


def _json(model: Any) -> Any:
    return model.model_dump(mode="json", exclude_none=True, by_alias=True)


_ROUTES = (
    ("POST", "/collections/aliases", "update_aliases"),
    ("PUT", "/collections/([^/]+)/index", "create_index"),
    ("DELETE", "/collections/([^/]+)", "delete_collection"),
    ("GET", "/collections/([^/]+)", "get_collection"),
    ("PUT", "/collections/([^/]+)", "create_collection"),
    ("PATCH", "/collections/([^/]+)", "update_collection"),
    ("GET", "/collections", "get_collections"),
    ("GET", "/aliases", "get_aliases"),
    ("PUT", "/collections/([^/]+)/points", "upsert"),
    ("POST", "/collections/([^/]+)/points", "retrieve"),
    ("POST", "/collections/([^/]+)/points/scroll", "scroll"),
    ("POST", "/collections/([^/]+)/points/count", "count"),
    ("POST", "/collections/([^/]+)/points/query", "query_points"),
    ("POST", "/collections/([^/]+)/points/query/batch", "query_batch"),
    ("POST", "/collections/([^/]+)/points/delete", "delete"),
)
