"""JSON over HTTP: the status table, redirects, proxies, certificates, deadlines, broken answers."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from vecferry.core.http import Answer, HttpClient, header_lines, kind_of, retry_after
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    NotFoundError,
    RateLimitedError,
    RejectedRecord,
    RequestTooLargeError,
    RetryableError,
    TimedOutError,
    VecferryError,
)

Behaviour = Callable[[BaseHTTPRequestHandler], None]
KEY = "s3cret-key-value"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy",
           "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # fmt: skip


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


class Server:
    """Answers with ``behaviour``, and remembers paths, headers and bodies."""

    def __init__(self, behaviour: Behaviour, context: ssl.SSLContext | None = None) -> None:
        seen = self.seen = []  # type: ignore[var-annotated]

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                seen.append((self.command, self.path, dict(self.headers), body))
                behaviour(self)

            do_GET = do_POST = do_CONNECT = handle_one

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def says(status: int, body: Any = None, **headers: str) -> Behaviour:
    def behave(handler: BaseHTTPRequestHandler) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return behave


def client(url: str, **options: Any) -> HttpClient:
    headers = {"Authorization": f"Bearer {KEY}"}
    return HttpClient(url, headers=headers, who="the server", extra="openai", **options)


# -- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "kind"), [
    (302, ConfigurationError), (400, FatalStoreError), (401, ConfigurationError), (402, FatalStoreError),
    (403, FatalStoreError), (404, NotFoundError), (407, ConfigurationError), (408, TimedOutError),
    (409, RetryableError), (410, NotFoundError), (413, RequestTooLargeError), (418, FatalStoreError),
    (422, RejectedRecord), (425, RetryableError), (429, RateLimitedError), (500, RetryableError),
    (502, RetryableError), (503, RetryableError), (504, TimedOutError), (599, RetryableError),
])  # fmt: skip
def test_a_status_has_one_meaning(status: int, kind: type[VecferryError]) -> None:
    assert kind_of(status) is kind
    with Server(says(status, {"error": {"message": "so it is"}}, Retry_After="7")) as server:
        with pytest.raises(kind, match=rf"the server .*\({status}.*so it is") as caught:
            client(server.url).post("/x", {"a": 1})
    assert type(caught.value) is kind
    assert getattr(caught.value, "retry_after", 7.0) == 7.0


@pytest.mark.parametrize(("body", "said"), [
    ({"error": {"message": "of OpenAI", "code": "bad_thing"}}, "bad_thing.*of OpenAI"),
    ({"error": "of Ollama and LM Studio"}, "of Ollama and LM Studio"),
    ({"error": "of TEI", "error_type": "Validation"}, "Validation.*of TEI"),
    ({"detail": "of FastAPI"}, "of FastAPI"),
    ({"detail": [{"loc": ["body", 3, "text"], "msg": "field required", "type": "x"}]}, "body.3.text"),
    ({"message": "of vLLM", "code": 400}, "of vLLM"),
    (b"plain words", "plain words"),
])  # fmt: skip
def test_every_form_of_error_body_is_shown(body: Any, said: str) -> None:
    with Server(says(400, body)) as server, pytest.raises(FatalStoreError, match=said):
        client(server.url).get("/x")


def test_a_web_page_says_nothing() -> None:
    page = b"<html><body>Bad gateway for Bearer abcdefghijk</body></html>"
    with Server(says(502, page)) as server, pytest.raises(RetryableError) as caught:
        client(server.url).get("/x")
    assert "html" not in str(caught.value)
    with Server(says(200, page, Content_Type="text/html")) as server:
        with pytest.raises(ConfigurationError, match="web page; check the address"):
            client(server.url).get("/x")


@pytest.mark.parametrize(("status", "wish", "kind"), [
    (400, "true", RetryableError), (500, "false", FatalStoreError), (429, "false", FatalStoreError),
    (500, "true", RetryableError), (413, "false", RequestTooLargeError),
])  # fmt: skip
def test_the_server_may_say_whether_to_retry(status: int, wish: str, kind: type[VecferryError]) -> None:
    with Server(says(status, {}, x_should_retry=wish)) as server, pytest.raises(kind):
        client(server.url).get("/x")


def test_no_quota_is_final_whatever_the_status() -> None:
    for status in (402, 403, 429):
        with Server(says(status, {"error": {"code": "insufficient_quota"}})) as server:
            with pytest.raises(FatalStoreError, match="no quota left"):
                client(server.url).get("/x")


def test_a_store_may_read_a_status_otherwise() -> None:
    kinds = {401: (FatalStoreError, "refuses {key}")}
    with Server(says(401, {"detail": [{"loc": ["body", 2]}]})) as server:
        with pytest.raises(FatalStoreError, match="refuses the key of X"):
            client(server.url, kinds=kinds, key="the key of X").get("/x")
        assert client(server.url).ask("GET", "/x").locations == [["body", 2]]


def test_retry_after_in_all_its_forms() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after({"retry-after": "7"}) == 7.0
    assert retry_after({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    assert 27 < (retry_after({"retry-after": soon}) or 0) <= 30
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after({"retry-after": "-3"}) == 0.0
    for nonsense in ("tomorrow", "inf", "nan", ""):
        assert retry_after({"retry-after": nonsense}) is None
    assert retry_after({}) is None


def test_header_lines() -> None:
    assert header_lines("A: 1\n  B-c :x: y \nnonsense\n: z") == {"A": "1", "B-c": "x: y"}


# -- requests -------------------------------------------------------------------------------------


def test_what_is_sent_and_read() -> None:
    with Server(says(200, {"ok": True})) as server:
        asking = client(f"{server.url}/v1/")
        assert asking.post("/x", {"ä": [1]}) == {"ok": True}
        assert asking.send("GET", "/y", params={"a": 1, "b": None, "c": ["p", "q"]}).json() == {"ok": True}
        asking.close()
        assert asking.get("/z") == {"ok": True}
        [post, get, _] = server.seen
        assert post[:2] == ("POST", "/v1/x") and json.loads(post[3]) == {"ä": [1]}
        assert post[2]["Authorization"] == f"Bearer {KEY}"
        assert get[1] == "/v1/y?a=1&c=p&c=q"
        assert KEY not in repr(asking)
    with Server(says(204)) as server:
        assert client(server.url).send("POST", "/x").json() is None


def test_a_key_with_a_line_break_is_named() -> None:
    asking = HttpClient("http://127.0.0.1:1", headers={"X-Key": "a\nb"}, who="it", extra="openai")
    with pytest.raises(ConfigurationError, match="line break"):
        asking.get("/x")


@pytest.mark.parametrize(
    "url", ["", "localhost:80", "ftp://host", "http://", "http://host:port", "http://[::1"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigurationError, match="usable address"):
        client(url)


def test_an_encoded_slash_stays_encoded() -> None:
    with Server(says(200, {})) as server:
        client(server.url).get("/documents/a%2Fb%20c%25/chunks")
        client(server.url).get("/documents/%2E%2E/chunks")
        assert [seen[1] for seen in server.seen] == [
            "/documents/a%2Fb%20c%25/chunks", "/documents/%2E%2E/chunks",
        ]  # fmt: skip


def test_an_answer_that_trickles_is_too_late() -> None:
    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    with Server(trickle) as server, pytest.raises(TimedOutError, match="did not finish"):
        client(server.url, timeout=0.3).get("/x")
    with Server(lambda _: time.sleep(1)) as server, pytest.raises(TimedOutError, match="did not answer"):
        client(server.url, timeout=0.2).get("/x")


def test_a_broken_connection_is_passing() -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b'{"a"')
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)

    with Server(cut) as server, pytest.raises(RetryableError):
        client(server.url).get("/x")
    with Server(says(200, b'{"half')) as server, pytest.raises(RetryableError, match="broken JSON"):
        client(server.url).get("/x")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RetryableError, match="refused"):
        client(f"http://127.0.0.1:{port}").get("/x")


# -- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_within_the_origin_keeps_method_and_body(status: int) -> None:
    def behave(handler: BaseHTTPRequestHandler) -> None:
        moved = handler.path == "/x"
        (says(status, None, Location="/x/") if moved else says(200, {"ok": 1}))(handler)

    with Server(behave) as server:
        assert client(server.url).post("/x", {"a": 1}) == {"ok": 1}
        assert [(m, p, b) for m, p, _, b in server.seen] == [
            ("POST", "/x", b'{"a":1}'), ("POST", "/x/", b'{"a":1}'),
        ]  # fmt: skip


def test_a_redirect_elsewhere_gets_neither_key_nor_text() -> None:
    with Server(says(200, {"data": []})) as thief:
        for status in (301, 302, 303, 307, 308):
            with Server(says(status, None, Location=f"{thief.url}/v1/x?token={KEY}")) as server:
                with pytest.raises(
                    ConfigurationError, match=f"another origin, {thief.url}/v1/x;"
                ) as caught:
                    client(server.url).post("/x", {"secret": "text"})
                assert KEY not in str(caught.value)
        assert not thief.seen


def test_redirects_in_circles_end() -> None:
    with Server(says(307, None, Location="/x")) as server:
        with pytest.raises(FatalStoreError, match="circles"):
            client(server.url).get("/x")
        assert len(server.seen) == 6


# -- proxies and certificates ---------------------------------------------------------------------


def test_the_environments_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(says(200, {"by": "proxy"})) as proxy, Server(says(200, {"by": "server"})) as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:pass-word@127.0.0.1:{proxy.port}")
        assert client(server.url).get("/x") == {"by": "proxy"}
        assert proxy.seen[0][1] == f"{server.url}/x"
        for exempt in ("127.0.0.1", "*", "10.0.0.0/8, 127.0.0.0/8", "localhost,127.0.0.1:80"):
            monkeypatch.setenv("NO_PROXY", exempt)
            assert client(server.url).get("/x") == {"by": "server"}
        monkeypatch.setenv("NO_PROXY", "[::1],example.org")
        assert client(server.url).get("/x") == {"by": "proxy"}


def test_no_proxy_may_name_an_ipv6_address(monkeypatch: pytest.MonkeyPatch) -> None:
    from vecferry.core.http import _proxy_for

    monkeypatch.setenv("HTTPS_PROXY", "proxy.local:3128")
    monkeypatch.setenv("NO_PROXY", "[::1], .internal, api.example.org")
    assert _proxy_for("https://[::1]:8080/v1") is None
    assert _proxy_for("https://models.internal/v1") is None
    assert _proxy_for("https://api.example.org/v1") is None
    assert _proxy_for("https://example.org/v1") == "http://proxy.local:3128"


@pytest.mark.parametrize(("proxy", "said"), [
    ("socks5://127.0.0.1:1", "SOCKS|127.0.0.1"), ("http://[", "no address|proxy"), ("foo://bar", "address"),
])  # fmt: skip
def test_a_proxy_that_cannot_be_is_named(proxy: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises((ConfigurationError, RetryableError), match=said) as caught:
        client("http://example.invalid").get("/x")
    if not proxy.startswith("socks"):  # where its support is installed, nobody answers there
        assert isinstance(caught.value, ConfigurationError)


def test_a_proxy_that_wants_a_login_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(says(407, None)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(ConfigurationError, match="HTTPS_PROXY"):
            client("https://example.invalid").get("/x")
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(ConfigurationError, match="proxy"):
            client("http://example.invalid").get("/x")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl here")
    return folder


@pytest.fixture
def tls(certificate: Path) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with Server(says(200, {"ok": 1}), context) as server:
        yield server


def test_a_certificate_nobody_signed_stops_at_once(
    tls: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        client(tls.url).get("/x")
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(certificate / "cert.pem"))
        assert client(tls.url).get("/x") == {"ok": 1}
        monkeypatch.setenv(name, str(certificate / "none.pem"))
        with pytest.raises(ConfigurationError, match=f"{name}=.*PEM"):
            client(tls.url).get("/x")
        monkeypatch.delenv(name)


def test_https_where_http_is_spoken_stops_at_once() -> None:
    with Server(says(200, {})) as server, pytest.raises(ConfigurationError, match="https or http"):
        client(server.url.replace("http:", "https:")).get("/x")


def test_the_callers_own_client_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"ok": request.headers["x-own"]})

    own = httpx.Client(transport=httpx.MockTransport(answer), headers={"x-own": "yes"})
    asking = client("http://anywhere", http_client=own)
    assert asking.get("/x") == {"ok": "yes"}
    asking.close()
    assert asking.get("/x") == {"ok": "yes"} and not own.is_closed
    assert asked[0].headers["authorization"] == f"Bearer {KEY}"


def test_an_answer_of_another_client_goes_through_the_same_table() -> None:
    answer = Answer(429, {"retry-after-ms": "250"}, b'{"error": {"message": "slow"}}', "their client")
    error = answer.error()
    assert isinstance(error, RateLimitedError) and error.retry_after == 0.25
    assert str(error).startswith("their client limits the rate")
