"""Where a collection lives, and one HTTP connection pool to a server.

A server is reached by REST. Points may also travel by gRPC (see `vecferry.stores.qdrant.server`).
"""

from __future__ import annotations

import base64
import os
import ssl
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import orjson

from vecferry.core.redaction import hide
from vecferry.errors import ConfigurationError, VecferryError
from vecferry.ports import StoreURL
from vecferry.stores.qdrant.faults import Answer, TooMuch, translate

MEMORY = ":memory:"
_NEAR = ("localhost", "127.0.0.1", "::1", "[::1]")
_READ_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Address:
    """Where a collection lives: ``path`` for the local mode, else a server.

    Attributes:
        grpc_port: the port behind ``port`` if not given: Qdrant's own pair is 6333 and 6334.
        prefer_grpc: ``None``: use gRPC where it is shown to lead to the same server; false: REST only;
            true: refuse to go on without gRPC.
        timeout: seconds for one call.
        shard_key: the only shard key to read and write, where a collection has custom ones.
        ca_file: certificates to trust instead of the system's; cert_file, cert_key_file: the client's own.
    """

    path: str | None = None
    host: str = "localhost"
    port: int = 6333
    grpc_port: int | None = None
    https: bool = False
    prefix: str = ""
    api_key: str | None = field(default=None, repr=False)
    timeout: int = 60
    prefer_grpc: bool | None = None
    shard_key: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    cert_key_file: str | None = None

    @property
    def local(self) -> bool:
        return self.path is not None

    @property
    def near(self) -> bool:
        """Whether the server is on this machine."""
        return self.host in _NEAR

    @property
    def grpc_target(self) -> tuple[str, int]:
        return self.host, self.port + 1 if self.grpc_port is None else self.grpc_port

    @classmethod
    def of(cls, url: StoreURL, **options: Any) -> Address:
        """From the URL, its options, and ``QDRANT_URL`` / ``QDRANT_API_KEY`` of the environment.

        Raises:
            ConfigurationError: if an option is malformed.
        """
        if not url.netloc:
            if not url.path:
                raise ConfigurationError("qdrant: needs a folder: write qdrant:FOLDER#COLLECTION")
            return cls(path=url.path)
        home = urlsplit(os.environ.get("QDRANT_URL", ""))
        same = not url.host or (url.host == home.hostname and url.port in (None, home.port))
        host = url.host or home.hostname or "localhost"
        key = options.get("api_key") or url.password or os.environ.get("QDRANT_API_KEY") or None
        hide(key or "")
        https = home.scheme == "https" if same and home.scheme else bool(key) and host not in _NEAR
        port, grpc_port = options.get("port"), options.get("grpc_port")
        files = {name: options.get(name) for name in ("ca_file", "cert_file", "cert_key_file")}
        return cls(
            host=host,
            port=number("port", port, url.port or (home.port if same and home.port else 6333)),
            grpc_port=None if grpc_port is None else number("grpc_port", grpc_port, 0),
            https=flag("https", options.get("https"), https or any(files.values())),
            prefix=options.get("prefix") or (home.path.strip("/") if same else ""),
            api_key=key,
            timeout=number("timeout", options.get("timeout"), 60),
            prefer_grpc=flag("prefer_grpc", options.get("prefer_grpc"), None),
            shard_key=options.get("shard_key"),
            **files,
        )

    def limited_to(self) -> list[str] | None:
        """The collections that a scoped key (a JWT) may touch; ``None`` if the key is not limited so.

        Nothing is verified here: the server decides, this only lets the plan say it beforehand.
        """
        parts = (self.api_key or "").split(".")
        if len(parts) != 3:
            return None
        try:
            claims = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
            access = claims.get("access")
        except (ValueError, AttributeError):
            return None
        if not isinstance(access, list):
            return None
        return [str(one.get("collection")) for one in access if isinstance(one, dict)]


class Rest:
    """Keeps connections to one server open and lends each to one thread at a time."""

    def __init__(self, address: Address, where: str) -> None:
        self._address, self._where = address, where
        self._idle: SimpleQueue[HTTPConnection] = SimpleQueue()
        self._path = f"/{address.prefix.strip('/')}" if address.prefix else ""
        self._headers = {"content-type": "application/json"}
        if address.api_key:
            self._headers["api-key"] = address.api_key
        if not address.near:
            self._headers["accept-encoding"] = "gzip"

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        writing: bool = False,
        most: int | None = None,
    ) -> tuple[Any, int]:
        """The ``result`` of an answer, and how many bytes it took.

        Args:
            body: bytes as they are, anything else as JSON.
            writing: points are sent, so a refusal is about records.
            most: give up an answer that is longer than so many bytes.

        Raises:
            TooMuch: the answer is longer than ``most``.
            VecferryError: see `vecferry.stores.qdrant.faults`.
        """
        data = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        try:
            answer = self._exchange(method, self._path + path, data, most)
            if answer.status >= 300:
                raise answer
            return _result(answer)
        except TooMuch:
            raise
        except Exception as error:
            raise self.cleaned(translate(error, self._where, writing=writing)) from error

    def _exchange(self, method: str, path: str, data: bytes | None, most: int | None) -> Answer:
        fresh, connection = self._lend()
        while True:
            try:
                connection.request(method, path, body=data, headers=self._headers)
                answer = self._receive(connection, connection.getresponse(), most)
            except (OSError, HTTPException) as error:
                connection.close()
                # A connection that lay idle may have been closed by the server: then once more, anew.
                if fresh or isinstance(error, TimeoutError):
                    raise
                fresh, connection = True, self._connect()
            except BaseException:
                connection.close()
                raise
            else:
                self._idle.put(connection)
                return answer

    def _receive(self, connection: HTTPConnection, response: HTTPResponse, most: int | None) -> Answer:
        parts, size = [], 0
        while part := response.read(_READ_AT_ONCE):
            size += len(part)
            if most is not None and size > most:
                raise TooMuch(size)
            parts.append(part)
        content = b"".join(parts)
        if response.headers.get("content-encoding") == "gzip":
            import gzip

            content = gzip.decompress(content)
        if response.headers.get("connection", "").lower() == "close":
            connection.close()
        return Answer(response.status, response.reason or "", dict(response.headers), content)

    def _lend(self) -> tuple[bool, HTTPConnection]:
        try:
            return False, self._idle.get_nowait()
        except Empty:
            return True, self._connect()

    def _connect(self) -> HTTPConnection:
        a = self._address
        if not a.https:
            return HTTPConnection(a.host, a.port, timeout=a.timeout)
        context = ssl.create_default_context(cafile=a.ca_file)
        if a.cert_file:
            context.load_cert_chain(a.cert_file, a.cert_key_file)
        return HTTPSConnection(a.host, a.port, timeout=a.timeout, context=context)

    def close(self) -> None:
        """Close what lies idle; a later `send` connects anew."""
        while True:
            try:
                self._idle.get_nowait().close()
            except Empty:
                return

    def cleaned(self, error: VecferryError) -> VecferryError:
        """The error without the key."""
        key = self._address.api_key
        if key and key in str(error):
            error.args = (str(error).replace(key, "…"), *error.args[1:])
        return error


def _result(answer: Answer) -> tuple[Any, int]:
    try:
        found = orjson.loads(answer.content)
        return found["result"], len(answer.content)
    except (ValueError, KeyError, TypeError):
        raise answer from None


def flag(name: str, value: Any, default: Any) -> Any:
    """A yes or no from a URL; ``default`` if it is not there."""
    if value is None or isinstance(value, bool):
        return default if value is None else value
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if str(value).lower() not in known:
        raise ConfigurationError(f"qdrant: {name}={value!r} is neither 1 nor 0")
    return known[str(value).lower()]


def number(name: str, value: Any, default: int) -> int:
    """A whole number from a URL; ``default`` if it is not there."""
    try:
        return default if value is None else int(value)
    except ValueError:
        raise ConfigurationError(f"qdrant: {name}={value!r} is not a whole number") from None
