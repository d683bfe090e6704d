"""One connection to a server, or to a local folder that this process opens once and shares.

The client's local mode locks its folder and is not thread-safe: all stores of one folder share one client,
which is closed with the last of them, and take turns in using it.
"""

from __future__ import annotations

import atexit
import os
import socket
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from vecferry.core.redaction import hide
from vecferry.errors import ConfigurationError, MissingDependencyError, NotFoundError, VecferryError
from vecferry.ports import StoreURL
from vecferry.stores.qdrant.faults import translate

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

T = TypeVar("T")
MEMORY = ":memory:"
_NEAR = ("localhost", "127.0.0.1", "::1", "[::1]")
_PROBE_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Address:
    """Where a collection lives: ``path`` for the local mode, else a server.

    ``prefer_grpc`` is ``None`` when it is to be found out; ``timeout`` is in seconds for one call.
    """

    path: str | None = None
    host: str = "localhost"
    port: int = 6333
    grpc_port: int = 6334
    https: bool = False
    prefix: str = ""
    api_key: str | None = field(default=None, repr=False)
    timeout: int = 60
    prefer_grpc: bool | None = None

    @property
    def local(self) -> bool:
        return self.path is not None

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
        same = not url.host or url.host == home.hostname
        host = url.host or home.hostname or "localhost"
        key = options.get("api_key") or url.password or os.environ.get("QDRANT_API_KEY") or None
        hide(key or "")
        https = home.scheme == "https" if same and home.scheme else bool(key) and host not in _NEAR
        return cls(
            host=host,
            port=url.port or (home.port if same and home.port else 6333),
            grpc_port=number("grpc_port", options.get("grpc_port"), 6334),
            https=flag("https", options.get("https"), https),
            prefix=options.get("prefix") or (home.path.strip("/") if same else ""),
            api_key=key,
            timeout=number("timeout", options.get("timeout"), 60),
            prefer_grpc=flag("prefer_grpc", options.get("prefer_grpc"), None),
        )


@dataclass(slots=True)
class _Shared:
    client: QdrantClient
    lock: threading.RLock
    users: int = 0


_OPEN: dict[str, _Shared] = {}
_OPEN_LOCK = threading.Lock()


@atexit.register
def _close_all() -> None:
    """Before the interpreter takes apart what the client needs for closing."""
    for shared in _OPEN.values():
        shared.client.close()


class Connection:
    """Opens the client when it is first needed and translates what it raises."""

    def __init__(self, address: Address, where: str) -> None:
        self.address, self.where = address, where
        self._client: QdrantClient | None = None
        self._lock: Any = nullcontext()
        self._opening = threading.Lock()

    @property
    def grpc(self) -> bool:
        """Whether points travel by gRPC; opens the connection."""
        client = self.open()
        return not self.address.local and bool(getattr(client._client, "_prefer_grpc", False))

    def call(
        self, method: str, /, *args: Any, writing: bool = False, create: bool = False, **kw: Any
    ) -> Any:
        """Call a method of the client.

        Args:
            writing: points are sent, so a refusal is about records.
            create: make the local folder if it is not there.

        Raises:
            VecferryError: see `vecferry.stores.qdrant.faults`.
        """
        return self.run(lambda client: getattr(client, method)(*args, **kw), writing=writing, create=create)

    def run(self, action: Callable[[QdrantClient], T], *, writing: bool = False, create: bool = False) -> T:
        """As `call`, for anything done with the client."""
        client = self.open(create=create)
        try:
            with self._lock:
                return action(client)
        except Exception as error:
            raise self._clean(translate(error, self.where, writing=writing)) from error

    def open(self, *, create: bool = False) -> QdrantClient:
        """The client.

        Raises:
            MissingDependencyError: without qdrant-client.
            NotFoundError: if the local folder is not a Qdrant folder and ``create`` is false.
            FatalStoreError: if another process holds the folder.
        """
        with self._opening:
            if self._client is None:
                self._client = self._open_local(create) if self.address.local else self._open_server()
            return self._client

    def close(self) -> None:
        """Let go of the client. The folder's lock goes with its last user."""
        with self._opening:
            client, self._client = self._client, None
            if client is None:
                return
            if not self.address.local:
                client.close()
                return
            self._lock = nullcontext()
            _release(_key(self.address))

    def twin(self) -> Connection:
        """Another user of the same place."""
        return Connection(self.address, self.where)

    def _open_local(self, create: bool) -> QdrantClient:
        client_class = _client_class()
        path = str(self.address.path)
        with _OPEN_LOCK:
            shared = _OPEN.get(_key(self.address))
            if shared is None:
                if path != MEMORY and not create and not (Path(path) / "meta.json").is_file():
                    raise NotFoundError(
                        f"{self.where}: there is no Qdrant folder at {path}; check the path"
                    )
                shared = _Shared(self._make_local(client_class, path), threading.RLock())
                _OPEN[_key(self.address)] = shared
            shared.users += 1
            self._lock = shared.lock
            return shared.client

    def _make_local(self, client_class: Any, path: str) -> QdrantClient:
        # For good, as filters cannot be set for one thread; the docs page says what it says.
        warnings.filterwarnings("ignore", message="Local mode is not recommended")
        try:
            place = {"location": MEMORY} if path == MEMORY else {"path": path}
            client: QdrantClient = client_class(**place, force_disable_check_same_thread=True)
            return client
        except Exception as error:
            raise translate(error, self.where) from error

    def _open_server(self) -> QdrantClient:
        if self.address.prefer_grpc is not None:
            return self._make_server(self.address.prefer_grpc)
        if _listens(self.address.host, self.address.grpc_port):
            client = self._make_server(True)
            if _answers(client):
                return client
            client.close()
        return self._make_server(False)

    def _make_server(self, prefer_grpc: bool) -> QdrantClient:
        a = self.address
        client: QdrantClient = _client_class()(
            host=a.host,
            port=a.port,
            grpc_port=a.grpc_port,
            https=a.https,
            prefix=a.prefix or None,
            api_key=a.api_key,
            timeout=a.timeout,
            prefer_grpc=prefer_grpc,
            check_compatibility=False,
        )
        return client

    def _clean(self, error: VecferryError) -> VecferryError:
        key = self.address.api_key
        if key and key in str(error):
            error.args = (str(error).replace(key, "…"), *error.args[1:])
        return error


def _client_class() -> Any:
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise MissingDependencyError("qdrant:", "qdrant") from error
    return QdrantClient


def _key(address: Address) -> str:
    path = str(address.path)
    return path if path == MEMORY else os.path.realpath(path)


def _release(key: str) -> None:
    with _OPEN_LOCK:
        shared = _OPEN[key]
        shared.users -= 1
        if shared.users or key == MEMORY:  # what is in memory lives as long as the process
            return
        del _OPEN[key]
    with shared.lock:
        shared.client.close()


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_PROBE_SECONDS):
            return True
    except OSError:
        return False


def _answers(client: QdrantClient) -> bool:
    """Whether the port speaks Qdrant's gRPC. A refusal (a missing key) is an answer as well."""
    try:
        client.get_aliases()
    except Exception as error:  # noqa: BLE001 - whatever it is, the translated kind decides
        code = getattr(error, "code", lambda: None)()
        return getattr(code, "name", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED")
    return True


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
