"""JSON over HTTP: one client, one table from a status to our errors, one reader of ``Retry-After``.

Requests never leave the origin of the client's address: a redirect elsewhere is refused by name, so that
keys and texts do not go to strangers. Proxies and certificate authorities come from the environment, and
what is wrong with them is a `ConfigurationError`, at once.
"""

from __future__ import annotations

import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import getproxies

import orjson

from vecferry.core.redaction import clean, hide, is_secret
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    MissingDependencyError,
    NotFoundError,
    RateLimitedError,
    RejectedRecord,
    RequestTooLargeError,
    RetryableError,
    TimedOutError,
    VecferryError,
)

if TYPE_CHECKING:
    import httpx

ErrorType: TypeAlias = type[VecferryError]
Kinds: TypeAlias = Mapping[int, tuple[ErrorType, str]]

STATUS: Kinds = {
    400: (FatalStoreError, "refuses the request"),
    401: (ConfigurationError, "refuses {key}"),
    402: (FatalStoreError, "wants the plan or the credits of the account to be renewed"),
    403: (FatalStoreError, "denies access with {key}"),
    404: (NotFoundError, "does not know what was asked for"),
    407: (ConfigurationError, "is behind a proxy that wants a login (HTTPS_PROXY=http://USER:PASSWORD@…)"),
    408: (TimedOutError, "timed out"),
    409: (RetryableError, "is busy with this"),
    410: (NotFoundError, "has removed this address"),
    413: (RequestTooLargeError, "finds the request too large"),
    422: (RejectedRecord, "finds the request invalid"),
    425: (RetryableError, "is not ready"),
    429: (RateLimitedError, "limits the rate of requests"),
    504: (TimedOutError, "timed out"),
}
"""Status → error and words. Others: 5xx `RetryableError`, 3xx `ConfigurationError`, `FatalStoreError`."""

# Answered with 429 or 403, and no waiting helps.
OUT_OF_MONEY = frozenset({
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated",
    "account_deactivated",
})  # fmt: skip
_SENDABLE = re.compile(r"[\t\x20-\x7e]*")
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5


# -- answers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a server sent back.

    Attributes:
        status, headers, content: as they came; header names in lower case.
        who, key: how messages call the server, and the key.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    who: str = "the server"
    key: str = "the API key"
    _parsed: list[Any] = field(default_factory=list, repr=False)

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:
        """The decoded body, ``None`` if there is none.

        Raises:
            ConfigurationError: if it is a web page: the address is not that of the service.
            RetryableError: if it is broken.
        """
        if not self.content:
            return None
        try:
            return self._body()
        except orjson.JSONDecodeError as error:
            if "html" in self.headers.get("content-type", "") or self.content.lstrip()[:1] == b"<":
                raise ConfigurationError(
                    f"{self.who} answered {self.status} with a web page; check the address"
                ) from error
            raise RetryableError(f"{self.who} sent broken JSON: {clean(self.content[:80])}") from error

    @property
    def code(self) -> str:
        """The error's code or type, as OpenAI, TEI and others name it."""
        error = self._error()
        found = error.get("code") or error.get("type") or error.get("error_type") or ""
        return str(found)

    @property
    def parameter(self) -> str:
        """The parameter at fault, where the server names one."""
        return str(self._error().get("param") or "")

    @property
    def message(self) -> str:
        """What the server says about it, in any of the usual forms; a web page says nothing."""
        error = self._error()
        for name in ("message", "detail", "error", "title", "msg"):
            if said := _words(error.get(name)):
                return said
        if not error and self.content and self.content.lstrip()[:1] not in (b"<", b"{", b"["):
            return clean(self.content[:200].decode("utf-8", "replace"))
        return ""

    @property
    def locations(self) -> list[Sequence[Any]]:
        """The ``loc`` lists of a FastAPI refusal: ``["body", 3, "text"]`` names the fourth item."""
        detail = self._error().get("detail")
        return [item["loc"] for item in detail if _has_loc(item)] if isinstance(detail, list) else []

    @property
    def retry_after(self) -> float | None:
        return retry_after(self.headers)

    def error(self, kinds: Kinds | None = None, call: str = "") -> VecferryError:
        """Our error for this answer.

        Args:
            kinds: laid over `STATUS`.
            call: what was asked, for the message.
        """
        kind, what = (kinds or {}).get(self.status) or STATUS.get(self.status) or _other(self.status)
        if self.code in OUT_OF_MONEY or self.status == 402:
            kind, what = FatalStoreError, "has no quota left; check plan and billing, then run again"
        said = ", ".join(filter(None, (str(self.status), self.code, call)))
        message = f"{self.who} {what.format(key=self.key)} ({said})" + (
            f": {self.message}" if self.message else ""
        )
        wish = self.headers.get("x-should-retry", "").lower()
        if wish == "true" and not issubclass(kind, RetryableError):
            kind = RetryableError
        elif wish == "false" and issubclass(kind, RetryableError) and kind is not RequestTooLargeError:
            kind = FatalStoreError
        if issubclass(kind, RetryableError):
            return kind(message, retry_after=self.retry_after)
        return kind(message)

    def _body(self) -> Any:
        if not self._parsed:
            self._parsed.append(orjson.loads(self.content))
        return self._parsed[0]

    def _error(self) -> dict[str, Any]:
        try:
            body = self._body() if self.content else None
        except orjson.JSONDecodeError:
            return {}
        if not isinstance(body, dict):
            return {}
        inner = body.get("error")
        return inner if isinstance(inner, dict) else body


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: ``retry-after-ms``, or ``Retry-After`` as seconds or a date (RFC 9110, 10.2.3)."""
    if milliseconds := headers.get("retry-after-ms"):
        return _seconds(milliseconds, 1000.0)
    asked = headers.get("retry-after")
    if asked is None:
        return None
    if (seconds := _seconds(asked, 1.0)) is not None:
        return seconds
    try:
        at = parsedate_to_datetime(asked)
    except (TypeError, ValueError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def kind_of(status: int) -> ErrorType:
    """The error of a status, for adapters whose SDK did the request."""
    return (STATUS.get(status) or _other(status))[0]


def _other(status: int) -> tuple[ErrorType, str]:
    if status >= 500:
        return RetryableError, "fails for now"
    if 300 <= status < 400:
        return ConfigurationError, "redirects to nowhere; check the address"
    return FatalStoreError, "refuses the request"


def _seconds(text: str, unit: float) -> float | None:
    try:
        seconds = float(text) / unit
    except ValueError:
        return None
    return max(0.0, seconds) if seconds < float("inf") else None


def _words(value: Any) -> str:
    if isinstance(value, str):
        return clean(value, 300)
    if isinstance(value, list):
        parts = [
            f"{'.'.join(map(str, item.get('loc', ())))}: {item.get('msg', '')}"
            if _has_loc(item)
            else str(item)
            for item in value[:3]
        ]
        return clean("; ".join(parts), 300)
    if isinstance(value, dict):
        return _words(value.get("message") or value.get("msg"))
    return ""


def _item_words(item: Any) -> str:
    return f"{'.'.join(map(str, item['loc']))}: {item.get('msg', '')}" if _has_loc(item) else str(item)


def _has_loc(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("loc"), list)


# -- the client -----------------------------------------------------------------------------------


class HttpClient:
    """A server's address: keeps connections open, thread-safe, and shows no key in its repr.

    Args:
        url: the base, such as ``"https://api.openai.com/v1"``.
        headers: sent with every request; a function is called for each, so that tokens stay fresh.
        who: how messages call the server; ``extra``: the pip extra that brings httpx.
        timeout: seconds for one whole answer; a body that only trickles in counts as too slow.
        key: what to check when the key is refused.
        kinds: statuses that mean something else here; see `STATUS`.
        http_client: an ``httpx.Client`` of the caller's, used as it is (proxy, certificates, transport).

    Raises:
        MissingDependencyError: without httpx, or without its SOCKS support where a proxy needs that.
        ConfigurationError: for a malformed address, proxy or certificate file.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] = dict,
        who: str,
        extra: str,
        timeout: float = 60.0,
        key: str = "the API key",
        kinds: Kinds | None = None,
        http_client: httpx.Client | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.who, self.key, self.timeout = who, key, timeout
        self._extra, self._kinds = extra, kinds
        self._headers = headers if callable(headers) else lambda: headers
        self._given, self._client = http_client, http_client
        self._lock = threading.Lock()
        _check_address(self.url, who)

    def __repr__(self) -> str:
        return f"HttpClient({clean(self.url)!r})"

    def close(self) -> None:
        """Close the connections; the next request opens them again."""
        with self._lock:
            client, self._client = self._client, self._given
        if client is not None and client is not self._given:
            client.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to a plain question; see `send`."""
        return self.send("GET", path, params=params).json()

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON answer to ``body``; see `send`."""
        return self.send("POST", path, body=body).json()

    def send(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: Any = None
    ) -> Answer:
        """One request; an answer of 2xx.

        Raises:
            VecferryError: by `STATUS` and ``kinds`` for other answers.
            TimedOutError: if the answer is not whole in time.
            RetryableError: if the connection broke.
            ConfigurationError: for TLS, proxy and redirects elsewhere.
        """
        answer = self.ask(method, path, params=params, body=body)
        if not answer.ok:
            raise answer.error(self._kinds, f"{method} {path}")
        return answer

    def ask(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: Any = None
    ) -> Answer:
        """As `send`, and whatever the server answers."""
        client = self._open()
        import httpx

        headers = {"Content-Type": "application/json", **self._headers()}
        for name, value in headers.items():
            if is_secret(name):
                hide(value.removeprefix("Bearer "))
            if not _SENDABLE.fullmatch(value):
                where = self.key if is_secret(name) else f"the header {name}"
                raise ConfigurationError(
                    f"{self.who} cannot be asked: a line break or a foreign character in {where}"
                )
        content = None if body is None else orjson.dumps(body)
        url, shown = httpx.URL(self.url + path), {k: v for k, v in (params or {}).items() if v is not None}
        for _ in range(_MOST_REDIRECTS + 1):
            with transport_errors(self.who, self.url, self.timeout):
                answer = self._once(client, method, url, shown, content, headers)
            following = self._following(answer, url)
            if following is None:
                return answer
            url, shown = following, {}
            if answer.status == 303:
                method, content = "GET", None
        raise FatalStoreError(f"{self.who} at {clean(self.url)} redirects in circles")

    def _once(
        self,
        client: httpx.Client,
        method: str,
        url: httpx.URL,
        params: Mapping[str, Any],
        content: bytes | None,
        headers: Mapping[str, str],
    ) -> Answer:
        asked = {"params": params} if params else {}
        with client.stream(
            method,
            url,
            content=content,
            headers=headers,
            follow_redirects=False,
            timeout=self._timeouts(),
            **asked,  # type: ignore[arg-type]
        ) as response:
            end = time.monotonic() + self.timeout
            chunks = []
            for chunk in response.iter_bytes():
                chunks.append(chunk)
                if time.monotonic() > end:
                    raise TimedOutError(f"{self.who} did not finish its answer within {self.timeout:g} s")
        found = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, found, b"".join(chunks), self.who, self.key)

    def _following(self, answer: Answer, url: httpx.URL) -> httpx.URL | None:
        """Where a redirect within the origin leads; ``None`` if there is none.

        Raises:
            ConfigurationError: if it leads elsewhere.
        """
        location = answer.headers.get("location")
        if answer.status not in _REDIRECTS or not location:
            return None
        following = url.join(location)
        if _origin(following) != _origin(url):
            there = clean(str(following).partition("?")[0])
            raise ConfigurationError(
                f"{self.who} redirects to another origin, {there}; nothing was sent there. Name that "
                "address yourself if it is the right one"
            )
        return following

    @property
    def kinds(self) -> Kinds | None:
        return self._kinds

    def _timeouts(self) -> httpx.Timeout:
        import httpx

        return httpx.Timeout(self.timeout, connect=min(self.timeout, 10.0))

    def _open(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                self._client = open_client(self.url, self.who, self._extra)
            return self._client


def open_client(url: str, who: str, extra: str) -> httpx.Client:
    """An ``httpx.Client`` for one origin, with the environment's proxy and certificates."""
    try:
        import httpx
    except ImportError as error:
        raise MissingDependencyError(who, extra) from error
    proxy, verify = _proxy_for(url), _certificates()
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    try:
        return httpx.Client(limits=limits, proxy=proxy, verify=verify, trust_env=False)
    except ImportError as error:
        raise ConfigurationError(
            f"the proxy {clean(proxy)} needs SOCKS support: pip install 'httpx[socks]'"
        ) from error
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigurationError(
            f"the proxy {clean(proxy)} is no usable address: {clean(error)}"
        ) from error


@contextmanager
def transport_errors(who: str, url: str, timeout: float) -> Iterator[None]:
    """Turn what httpx raises in the block into our errors; see `HttpClient.send`."""
    try:
        yield
    except VecferryError:
        raise
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore")):
            raise
        raise transport_error(error, who, clean(url), timeout) from error


def transport_error(
    error: BaseException, who: str, url: str = "its address", timeout: float = 0.0
) -> VecferryError:
    """Our error for an exception of httpx."""
    names = {base.__name__ for base in type(error).__mro__}
    if "LocalProtocolError" in names:
        return ConfigurationError(f"{who} cannot be asked: {clean(error)}")
    if names & {"InvalidURL", "UnsupportedProtocol"}:
        return ConfigurationError(f"{who}: {url} is not a usable address")
    tls = _tls_fault(error)
    if tls is not None:
        return ConfigurationError(
            f"{who} at {url}: the TLS connection is refused ({clean(tls)}); if a certificate authority of "
            "your own signs it, name its file with SSL_CERT_FILE, and check https or http"
        )
    if "ProxyError" in names:
        status = re.match(r"\s*(\d{3})", str(error))
        if status and 400 <= int(status[1]) < 500:
            return ConfigurationError(
                f"the proxy does not let {who} through ({clean(error)}); check HTTPS_PROXY, its login, "
                "and NO_PROXY"
            )
        return RetryableError(f"the proxy to {who} fails: {clean(error)}")
    if "TimeoutException" in names and not names & {"ConnectTimeout", "PoolTimeout"}:
        return TimedOutError(f"{who} did not answer within {f'{timeout:g} s' if timeout else 'its time'}")
    return RetryableError(f"{who} at {url}: {clean(error) or type(error).__name__}")


def header_lines(text: str) -> dict[str, str]:
    """``Name: value``, one a line, as the SDKs read ``OPENAI_CUSTOM_HEADERS`` and their like."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs if name.strip()}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and everything behind it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _tls_fault(error: BaseException) -> ssl.SSLError | None:
    """A TLS fault that waiting does not mend; a connection that merely broke is none."""
    broken = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLWantReadError, ssl.SSLSyscallError)
    faults = (cause for cause in causes(error) if isinstance(cause, ssl.SSLError))
    return next((fault for fault in faults if not isinstance(fault, broken)), None)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _check_address(url: str, who: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname
        _ = parts.port
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(f"{who}: {clean(url)} is not a usable address; write https://HOST/PATH")


def _proxy_for(url: str) -> str | None:
    """The environment's proxy for an address; none where ``NO_PROXY`` names its host."""
    proxies = getproxies()
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if any(_matches(entry.strip().lower(), host) for entry in proxies.get("no", "").split(",")):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        if proxy and (password := urlsplit(proxy).password):
            hide(password)
    except ValueError as error:
        raise ConfigurationError(f"the proxy {clean(proxy)} is no address: {clean(error)}") from error
    return proxy


def _matches(entry: str, host: str) -> bool:
    """Whether an entry of ``NO_PROXY`` (a name, ``.name``, an address, a network, ``*``) names a host."""
    if not entry or entry == "*":
        return entry == "*"
    name = entry[1:].partition("]")[0] if entry.startswith("[") else entry
    if name.count(":") == 1:
        name = name.partition(":")[0]
    name = name.removeprefix("*").removeprefix(".")
    if host == name or host.endswith(f".{name}"):
        return True
    try:
        return ip_address(host) in ip_network(name, strict=False)
    except ValueError:
        return False


def _certificates() -> ssl.SSLContext | bool:
    """The environment's certificate authorities; ``True`` for those that httpx brings."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR"):
        if chosen := os.environ.get(name):
            folder = os.path.isdir(chosen)  # noqa: PTH112 - as ssl takes it
            try:
                if folder:
                    return ssl.create_default_context(capath=chosen)
                return ssl.create_default_context(cafile=chosen)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(
                    f"{name}={chosen} holds no usable certificates ({clean(error)}); name a PEM file"
                ) from error
    return True
