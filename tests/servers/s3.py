"""A real S3 server over HTTP (moto), behind a proxy that injects faults on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from botocore.config import Config

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "expect"})


@dataclass
class Request:
    """What a fault decides on."""

    method: str
    path: str

    @property
    def key(self) -> str:
        return self.path.partition("?")[0]


@dataclass
class Faults:
    """Faults by what they do. Each is asked with a `Request`; the first that says yes happens."""

    drop_before: list[Callable[[Request], bool]] = field(default_factory=list)
    drop_after: list[Callable[[Request], bool]] = field(default_factory=list)
    cut_body: list[Callable[[Request], bool]] = field(default_factory=list)
    answers: list[Callable[[Request], tuple[int, str] | None]] = field(default_factory=list)
    edits: list[Callable[[Request, bytes], bytes]] = field(default_factory=list)
    before: list[Callable[[Request], None]] = field(default_factory=list)
    seen: list[Request] = field(default_factory=list)

    def count(self, method: str, part: str = "") -> int:
        return sum(r.method == method and part in r.path for r in self.seen)


def times(n: int, test: Callable[[Request], bool] = lambda r: True) -> Callable[[Request], bool]:
    """True for the first ``n`` requests that pass the test."""
    left = [n]
    lock = threading.Lock()

    def ask(request: Request) -> bool:
        with lock:
            if not left[0] or not test(request):
                return False
            left[0] -= 1
            return True

    return ask


def answer(
    code: int, name: str, when: Callable[[Request], bool]
) -> Callable[[Request], tuple[int, str] | None]:
    """An S3 error document instead of the request."""
    return lambda request: (code, name) if when(request) else None


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, behind: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind
        self.faults = Faults()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Dropped connections are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def handle_one(self) -> None:
        faults, request = self.server.faults, Request(self.command, self.path)
        faults.seen.append(request)
        if self.headers.get("Expect"):
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for hook in faults.before:
            hook(request)
        if any(test(request) for test in faults.drop_before):
            self._hang_up()
            return
        for give in faults.answers:
            if given := give(request):
                self._error(*given)
                return
        self._forward(request, body)

    def _forward(self, request: Request, body: bytes) -> None:
        faults = self.server.faults
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        connection = HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
        connection.request(request.method, request.path, body, headers)
        answered = connection.getresponse()
        data = answered.read()
        if any(test(request) for test in faults.drop_after):
            self._hang_up()
            return
        for edit in faults.edits:
            data = edit(request, data)
        self.send_response_only(answered.status)
        length = len(data) if request.method != "HEAD" else answered.getheader("Content-Length", "0")
        for name, value in answered.getheaders():
            if name.lower() not in _HOP | {"content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if any(test(request) for test in faults.cut_body):
            self.wfile.write(data[: len(data) // 2])
            self._hang_up()
        elif request.method != "HEAD":
            self.wfile.write(data)
        connection.close()

    def _error(self, code: int, name: str) -> None:
        body = f"<Error><Code>{name}</Code><Message>injected</Message></Error>" if name else ""
        data = body.encode()
        self.send_response_only(code)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(0 if self.command == "HEAD" else len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one


@dataclass
class S3Server:
    """The endpoint, a fresh bucket, and the vendor's own client to look behind the library."""

    endpoint: str
    bucket: str
    client: Any
    faults: Faults

    def url(self, prefix: str = "kb") -> str:
        return f"s3://{self.bucket}/{prefix}?endpoint_url={self.endpoint}"

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)


@contextmanager
def serving() -> Iterator[tuple[int, _Proxy]]:
    """moto and the proxy before it."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    port = moto.get_host_and_port()[1]
    proxy = _Proxy(port)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield port, proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        moto.stop()


@pytest.fixture(scope="session")
def s3_process() -> Iterator[tuple[int, _Proxy]]:
    with serving() as both:
        yield both


_buckets = iter(range(1_000_000))


@pytest.fixture
def s3(
    s3_process: tuple[int, _Proxy], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> Iterator[S3Server]:
    """A bucket of its own, without faults."""
    port, proxy = s3_process
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-real-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("VECFERRY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    proxy.faults = Faults()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    bucket = f"bucket-{next(_buckets)}"
    client.create_bucket(Bucket=bucket)
    yield S3Server(f"http://127.0.0.1:{proxy.server_address[1]}", bucket, client, proxy.faults)
    proxy.faults = Faults()
