"""A server with OpenAI's embeddings interface that keeps its rules and fails on request.

Vectors are a fixed function of model and text, so a test can tell which text a vector belongs to.
Also answers as Azure (``/openai/deployments/NAME/embeddings``) and as Ollama (``/api/embed``).
"""

from __future__ import annotations

import base64
import json
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from vecferry.embedding.space import PROBE

MAX_INPUTS, MAX_TOKENS, MAX_INPUT_TOKENS = 2048, 300_000, 8192


@dataclass(frozen=True)
class Fault:
    """How one request goes wrong."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    code: str = ""
    message: str = "as the test asked"
    reset: bool = False  # the connection is cut instead of an answer
    hang: float = 0.0  # seconds without a word
    drip: float = 0.0  # seconds over which the body trickles in
    cut: bool = False  # the body ends too early
    edit: Callable[[dict[str, Any]], Any] | None = None  # changes a good answer


def vector_of(text: str, model: str, dim: int) -> np.ndarray:
    """The unit vector of a text, float32 ``(dim,)``."""
    seed = int.from_bytes(sha256(f"{model}\0{text}".encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


def tokens_of(text: str) -> int:
    """What this server counts: words."""
    return len(text.split())


class FaultServer:
    """``with FaultServer() as server: OpenAIEmbedder("m", base_url=server.url, api_key="k")``.

    Attributes:
        faults: taken from the left, one a request, until there are none.
        texts: how often each text was answered with a vector; that of the probe is counted as ``probes``.
        requests: the inputs of every request, failed ones included.
        most_at_once: requests that were under way together.
        busy: seconds that requests spent here, from the last byte read to the last byte sent, summed.
    """

    def __init__(
        self, *, dim: int = 8, key: str = "k", latency: float = 0.0, model: str = "", places: int = 0
    ) -> None:
        self.dim, self.key, self.latency, self.model = dim, key, latency, model
        self.faults: deque[Fault] = deque()
        self.rule: Callable[[list[str]], Fault | None] = lambda _: None
        self.texts: Counter[str] = Counter()
        self.probes = 0
        self.requests: list[list[str]] = []
        self.headers: list[dict[str, str]] = []
        self.payloads: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.most_at_once = 0
        self.busy = 0.0
        self._now = 0
        self._lock = threading.Lock()
        self._places = threading.Semaphore(places) if places else None
        self._http: ThreadingHTTPServer | None = None

    @property
    def root(self) -> str:
        assert self._http
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def fail(self, *faults: Fault, times: int = 1) -> None:
        self.faults.extend(faults * times)

    def __enter__(self) -> FaultServer:
        owner = self

        class Handler(_Handler):
            server_owner = owner

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._http
        self._http.shutdown()
        self._http.server_close()

    # -- called by the handler ----------------------------------------------------------------

    def enter(self, inputs: list[str]) -> Fault | None:
        with self._lock:
            self.requests.append(inputs)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            fault = self.faults.popleft() if self.faults else None
        if self._places:
            self._places.acquire()
        if self.latency:
            time.sleep(self.latency)
        return fault or self.rule(inputs)

    def leave(self, start: float) -> None:
        if self._places:
            self._places.release()
        with self._lock:
            self._now -= 1
            self.busy += time.perf_counter() - start

    def answered(self, inputs: Iterable[str]) -> None:
        with self._lock:
            self.texts.update(text for text in inputs if not text.endswith(PROBE))
            self.probes += sum(text.endswith(PROBE) for text in inputs)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_owner: FaultServer

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        if self.path == "/api/tags":
            digest = "sha256:" + "0a1b2c3d4e5f" * 4
            self._send(200, {"models": [{"name": "nomic-embed-text:latest", "digest": digest}]})
        else:
            self._send(404, {"error": "not found"})

    def do_POST(self) -> None:
        owner = self.server_owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner.headers.append({name.lower(): value for name, value in self.headers.items()})
        owner.payloads.append(body)
        owner.paths.append(self.path)
        if self.path == "/api/show":
            self._send(200, {"model_info": {"nomic-bert.context_length": 2048}})
            return
        inputs = body["input"]
        start = time.perf_counter()
        fault = owner.enter(inputs)
        try:
            if fault and self._broken(fault):
                return
            status, answer = self._answer(body, inputs)
            if status == 200:
                if fault and fault.edit:
                    answer = fault.edit(answer)
                owner.answered(inputs)
            self._send(status, answer, fault)
        finally:
            owner.leave(start)

    def _broken(self, fault: Fault) -> bool:
        time.sleep(fault.hang)
        if fault.reset:
            # Linger 0 makes close() send a reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return True
        if fault.status != 200:
            error = {"message": fault.message, "type": fault.code or "error", "code": fault.code or None}
            self._send(fault.status, {"error": error}, fault)
            return True
        return False

    def _answer(self, body: dict[str, Any], inputs: list[str]) -> tuple[int, dict[str, Any]]:
        owner = self.server_owner
        if self.path == "/api/embed":
            vectors = [vector_of(text, body["model"], owner.dim).tolist() for text in inputs]
            return 200, {"model": body["model"], "embeddings": vectors, "prompt_eval_count": len(inputs)}
        given = {
            self.headers.get("api-key"),
            (self.headers.get("Authorization") or "").removeprefix("Bearer "),
        }
        if owner.key not in given:
            return 401, _error("Incorrect API key provided: sk-abcdef", "invalid_api_key")
        if owner.model and body["model"] != owner.model:
            return 404, _error("The model does not exist", "model_not_found")
        counts = [tokens_of(text) for text in inputs]
        if len(inputs) > MAX_INPUTS or "" in inputs or max(counts) > MAX_INPUT_TOKENS:
            return 400, _error("$.input is invalid", "invalid_request_error")
        if sum(counts) > MAX_TOKENS:
            return 400, _error(
                "Requested 300001 tokens, max 300000 tokens per request", "max_tokens_per_request"
            )
        dim = body.get("dimensions") or owner.dim
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": _encode(vector_of(t, body["model"], dim), body),
            }
            for i, t in enumerate(inputs)
        ]
        usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
        return 200, {"object": "list", "model": body["model"], "data": data, "usage": usage}

    def _send(self, status: int, answer: Any, fault: Fault | None = None) -> None:
        body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (fault.headers if fault else {}).items():
            self.send_header(name, value)
        self.end_headers()
        if fault and fault.cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault and fault.drip:
            self._drip(body, fault.drip)
        else:
            self.wfile.write(body)

    def _drip(self, body: bytes, seconds: float) -> None:
        pieces = 20
        size = len(body) // pieces + 1
        try:
            for start in range(0, len(body), size):
                self.wfile.write(body[start : start + size])
                self.wfile.flush()
                time.sleep(seconds / pieces)
        except OSError:  # the client has given up, as it should
            self.close_connection = True


def _encode(vector: np.ndarray, body: dict[str, Any]) -> Any:
    if body.get("encoding_format") == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def _error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
