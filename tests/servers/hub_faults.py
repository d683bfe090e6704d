"""A small Hugging Face hub: serves one model folder to the real client, and fails on request."""

from __future__ import annotations

import json
import threading
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """``with HubServer({"org/name": folder}) as hub: HF_ENDPOINT=hub.url``.

    Attributes:
        fault: ``(status, headers)`` for every request instead of an answer.
        asked: the paths of all requests.
    """

    def __init__(self, models: dict[str, Path]) -> None:
        self.models = models
        self.fault: tuple[int, dict[str, str]] | None = None
        self.asked: list[str] = []
        self.tokens: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> HubServer:
        owner = self

        class Handler(_Handler):
            server_owner = owner

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_owner: HubServer

    def log_message(self, *_: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def _serve(self, with_body: bool) -> None:
        owner = self.server_owner
        path = self.path.split("?")[0]
        owner.asked.append(path)
        owner.tokens.append(self.headers.get("Authorization"))
        if owner.fault:
            self._send(owner.fault[0], b'{"error": "as the test asked"}', owner.fault[1], with_body)
            return
        for name, folder in owner.models.items():
            if path in (f"/api/models/{name}", f"/api/models/{name}/revision/{COMMIT}"):
                self._send(200, _info(name, folder), {}, with_body)
                return
            if path == f"/api/models/{name}/tree/{COMMIT}":
                self._send(200, _tree(folder), {}, with_body)
                return
            start = f"/{name}/resolve/{COMMIT}/"
            if path.startswith(start) and (folder / path.removeprefix(start)).is_file():
                self._send_file((folder / path.removeprefix(start)).read_bytes(), with_body)
                return
        self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)

    def _send_file(self, content: bytes, with_body: bool) -> None:
        headers = {
            "ETag": f'"{sha1(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        self._send(200, content, headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _tree(folder: Path) -> bytes:
    entries = [
        {
            "type": "file",
            "path": str(path.relative_to(folder)),
            "size": path.stat().st_size,
            "oid": sha1(path.read_bytes()).hexdigest(),
        }
        for path in _files(folder)
    ]
    return json.dumps(entries).encode()


def _info(name: str, folder: Path) -> bytes:
    siblings = [{"rfilename": str(path.relative_to(folder))} for path in _files(folder)]
    return json.dumps({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}).encode()
