"""One JSON request to a provider, and the one table that turns its answer into our errors."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import orjson

from vecferry.core.redaction import hide
from vecferry.embedding.base import clean
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    MissingDependencyError,
    RejectedRecord,
    RequestTooLargeError,
    RetryableError,
    VecferryError,
)
from vecferry.ports import is_secret

if TYPE_CHECKING:
    import httpx

# OpenAI answers these with 429 or 403; waiting does not help.
OUT_OF_MONEY = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "access_terminated",
    "account_deactivated",
}
# Not the texts' fault: the request is wrong as it is, whatever texts it carries.
_PARAMETERS = {"model", "dimensions", "encoding_format", "user"}
_PASSING = {408, 409, 425, 429}
_TOO_MANY_TOKENS = re.compile(r"tokens per request|too many inputs|array too long|payload too large", re.I)


class RateLimited(RetryableError):
    """The provider asks for fewer requests (429)."""


class Endpoint:
    """A provider's address: keeps connections open, thread-safe, and shows no key in its repr.

    Args:
        url: the base, such as ``"https://api.openai.com/v1"``.
        headers: called for every request, so that short-lived tokens stay fresh.
        who: how messages call the provider; ``scheme`` and ``extra`` name the missing dependency.
        timeout: seconds for one whole answer; a body that only trickles in counts as too slow.
        key_hint: what to check when the key is refused.
    """

    def __init__(
        self,
        url: str,
        headers: Callable[[], Mapping[str, str]],
        *,
        who: str,
        extra: str,
        timeout: float,
        key_hint: str = "the API key",
    ) -> None:
        self.url = url.rstrip("/")
        self.who = who
        self._headers = headers
        self._extra = extra
        self._timeout = timeout
        self._key_hint = key_hint
        self._client: httpx.Client | None = None

    def __repr__(self) -> str:
        return f"Endpoint({clean(self.url)!r})"

    def post(self, path: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON answer to ``payload``.

        Raises:
            RetryableError, RejectedRecord, FatalStoreError, ConfigurationError: by the table below.
        """
        return self._request("POST", path, orjson.dumps(payload))

    def get(self, path: str) -> dict[str, Any]:
        """The JSON answer to a plain question; see `post`."""
        return self._request("GET", path, None)

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _request(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        client = self._open()
        import httpx

        own = self._headers()
        for name, value in own.items():
            if is_secret(name):
                hide(value.removeprefix("Bearer "))
        headers = {"Content-Type": "application/json", **own}
        try:
            with client.stream(method, self.url + path, content=body, headers=headers) as response:
                answer = self._read(response)
        except (httpx.LocalProtocolError, UnicodeEncodeError) as error:
            raise FatalStoreError(
                f"{self.who} cannot be asked: a line break or a foreign character in {self._key_hint}"
            ) from error
        except httpx.TooManyRedirects as error:
            raise FatalStoreError(f"{self.who} at {clean(self.url)} redirects in circles") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ConfigurationError(f"{self.who}: {clean(self.url)} is not a usable address") from error
        except httpx.TimeoutException as error:
            raise RetryableError(f"{self.who} did not answer within {self._timeout:g} s") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise RetryableError(f"{self.who} at {clean(self.url)}: {clean(error)}") from error
        if response.status_code != 200:
            raise translate(response.status_code, response.headers, answer, self.who, self._key_hint)
        return self._parse(answer)

    def _read(self, response: httpx.Response) -> bytes:
        end = time.monotonic() + self._timeout
        chunks = []
        for chunk in response.iter_bytes():
            chunks.append(chunk)
            if time.monotonic() > end:
                raise RetryableError(f"{self.who} did not finish its answer within {self._timeout:g} s")
        return b"".join(chunks)

    def _parse(self, answer: bytes) -> dict[str, Any]:
        try:
            value = orjson.loads(answer)
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise RetryableError(f"{self.who} answered something that is not JSON: {clean(answer[:80])}")
        return value

    def _open(self) -> httpx.Client:
        if self._client is None:
            try:
                import httpx
            except ImportError as error:
                raise MissingDependencyError(self.who, self._extra) from error
            limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
            timeout = httpx.Timeout(self._timeout, connect=min(self._timeout, 10.0))
            self._client = httpx.Client(limits=limits, timeout=timeout, follow_redirects=True)
        return self._client


def translate(
    status: int, headers: Mapping[str, str], body: bytes, who: str, key_hint: str = "the API key"
) -> VecferryError:
    """The error for an answer that is not 200.

    | answer | error |
    |---|---|
    | quota or billing codes, 402 | FatalStoreError, at once |
    | 401, 403 | FatalStoreError |
    | 404, wrong parameter | FatalStoreError |
    | 413, too many tokens in one request | RequestTooLargeError |
    | 429 | RateLimited, with the server's ``Retry-After`` |
    | 408, 409, 425, 5xx | RetryableError |
    | other 4xx | RejectedRecord: some text of this request is at fault |
    """
    code, parameter, message = _error_of(body)
    said = f"{status}{f' {code}' if code else ''}{f': {message}' if message else ''}"
    if code in OUT_OF_MONEY or status == 402:
        return FatalStoreError(f"{who}: no quota left ({said}); check plan and billing, then run again")
    if status in (401, 403):
        return FatalStoreError(f"{who} refused {key_hint} ({said})")
    if status == 413 or (status == 400 and _TOO_MANY_TOKENS.search(message)):
        return RequestTooLargeError(f"{who}: the request is too large ({said})")
    if status == 429:
        return RateLimited(f"{who}: rate limit ({said})", retry_after=retry_after(headers))
    if status in _PASSING or status >= 500:
        return RetryableError(f"{who}: {said}", retry_after=retry_after(headers))
    if status == 404:
        return FatalStoreError(f"{who} does not know this model or address ({said})")
    if parameter in _PARAMETERS or status < 400:
        return FatalStoreError(f"{who} refuses the request as such ({said})")
    return RejectedRecord(f"{who} refuses a text ({said})")


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
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _seconds(text: str, unit: float) -> float | None:
    try:
        return max(0.0, float(text) / unit)
    except ValueError:
        return None


def _error_of(body: bytes) -> tuple[str, str, str]:
    """(code, parameter, message) of an error body in OpenAI's or Ollama's form."""
    try:
        error = orjson.loads(body).get("error", "")
    except (orjson.JSONDecodeError, AttributeError):
        return "", "", clean(body[:200].decode("utf-8", "replace"))
    if not isinstance(error, dict):
        return "", "", clean(error)
    code = error.get("code") or error.get("type") or ""
    return str(code), str(error.get("param") or ""), clean(error.get("message") or "")
