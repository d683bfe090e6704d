"""The dozen HTTP calls of the LlamaCloud service, and the one table of its errors.

Source: the service's own OpenAPI file, as shipped with its SDKs. Ids in a path are percent-encoded
once, slashes included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from time import time
from typing import Any
from urllib.parse import quote

from vecferry.core.redaction import hide
from vecferry.core.retry import RetryPolicy
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    MissingDependencyError,
    NotFoundError,
    RejectedRecord,
    RequestTooLargeError,
    RetryableError,
    VecferryError,
)
from vecferry.stores.llamacloud.pace import Pace

BASE_URL = "https://api.cloud.llamaindex.ai"
RETRY = RetryPolicy(attempts=6, max_seconds=120.0, base=0.5, cap=8.0)

_ERRORS: dict[int, tuple[type[VecferryError], str]] = {
    400: (FatalStoreError, "refused the request"),
    401: (ConfigurationError, "refused the key; check LLAMA_CLOUD_API_KEY and LLAMA_CLOUD_BASE_URL"),
    402: (FatalStoreError, "wants the plan or the credits of the account to be renewed"),
    403: (FatalStoreError, "denies access; use a key of the organisation that owns the index"),
    404: (NotFoundError, "does not know what was asked for"),
    408: (RetryableError, "timed out"),
    409: (RetryableError, "is busy with this index"),
    410: (NotFoundError, "has removed this endpoint"),
    413: (RequestTooLargeError, "finds the request too large"),
    422: (RejectedRecord, "finds the request invalid"),
    425: (RetryableError, "is not ready"),
    429: (RetryableError, "limits the rate of requests"),
}


class Client:
    """A thin JSON client with a pace, a retry around each call, and our errors.

    Args:
        key: the API key; by default from ``LLAMA_CLOUD_API_KEY`` (or ``LLAMA_PARSE_API_KEY``).
        base_url: by default from ``LLAMA_CLOUD_BASE_URL``.
        rate: requests a second at most; 0 means no limit.
        timeout: seconds for one answer.

    Raises:
        ConfigurationError: if there is no key.
        MissingDependencyError: without httpx.
    """

    def __init__(
        self,
        key: str | None = None,
        base_url: str | None = None,
        *,
        rate: float = 5.0,
        timeout: float = 60.0,
        retry: RetryPolicy = RETRY,
    ) -> None:
        try:
            import httpx
        except ImportError:
            raise MissingDependencyError("llamacloud:", "llamacloud") from None
        key = key or os.environ.get("LLAMA_CLOUD_API_KEY") or os.environ.get("LLAMA_PARSE_API_KEY")
        if not key:
            raise ConfigurationError("llamacloud: needs a key; set LLAMA_CLOUD_API_KEY=llx-…")
        hide(key)
        self._key = key
        self.base_url = (base_url or os.environ.get("LLAMA_CLOUD_BASE_URL") or BASE_URL).rstrip("/")
        self._pace, self._retry = Pace(rate, burst=max(1, int(rate))), retry
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={**_custom_headers(), "Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 5.0)),
        )

    def __repr__(self) -> str:
        return f"<LlamaCloud {self.base_url}>"

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """GET; parameters that are ``None`` are left out."""
        return self.request("GET", path, params=params)

    def post(self, path: str, body: Any = None, **params: Any) -> Any:
        return self.request("POST", path, body=body, params=params)

    def put(self, path: str, body: Any, **params: Any) -> Any:
        return self.request("PUT", path, body=body, params=params)

    def delete(self, path: str) -> None:
        self.request("DELETE", path)

    def items(self, method: str, path: str, *, body: Any = None, **params: Any) -> Iterator[Any]:
        """The ``items`` of all pages of an endpoint that pages by ``next_page_token``."""
        token: str | None = None
        while True:
            if method == "GET":
                page = self.request("GET", path, params={**params, "page_token": token})
            else:
                page = self.request("POST", path, body={**body, **({"page_token": token} if token else {})})
            yield from page.get("items") or []
            following = page.get("next_page_token")
            if not following or following == token:
                return
            token = following

    def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: Any = None
    ) -> Any:
        """One call, retried while it fails in passing; the decoded JSON, ``None`` if there is none.

        Raises:
            VecferryError: by the table above.
        """
        return self._retry.call(lambda: self._once(method, path, params or {}, body))

    def _once(self, method: str, path: str, params: Mapping[str, Any], body: Any) -> Any:
        import httpx

        self._pace.wait()
        shown = {name: value for name, value in params.items() if value is not None}
        json = {} if body is None else {"json": body}
        try:
            response = self._http.request(method, path, params=shown or None, **json)
        except httpx.TimeoutException as error:
            raise RetryableError(f"{self.base_url} did not answer in time: {method} {path}") from error
        except httpx.TransportError as error:
            raise RetryableError(f"{self.base_url} broke the connection: {error}") from error
        if response.status_code >= 300:
            raise self._translate(response, f"{method} {path}")
        self._pace.recover()
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise RetryableError(f"{self.base_url} sent broken JSON: {method} {path}") from error

    def _translate(self, response: Any, call: str) -> VecferryError:
        status = response.status_code
        if status == 429:
            self._pace.slow_down()
        passing = status >= 500
        kind, what = _ERRORS.get(
            status,
            (RetryableError, "failed") if passing else (FatalStoreError, "gave an unexpected answer"),
        )
        message = f"{self.base_url} {what} ({status}, {call}){self._detail(response)}"
        if issubclass(kind, RetryableError):
            return kind(message, retry_after=retry_after(response.headers))
        error = kind(message)
        error.locations = _locations(response)  # type: ignore[attr-defined]
        return error

    def _detail(self, response: Any) -> str:
        """What the service says about it; an HTML page of a proxy says nothing."""
        try:
            detail = response.json()["detail"]
        except (ValueError, KeyError, TypeError):
            return ""
        if isinstance(detail, list):
            parts = [
                f"{'.'.join(map(str, item.get('loc', ())))}: {item.get('msg', '')}"
                for item in detail[:3]
                if isinstance(item, dict)
            ]
            detail = "; ".join(parts)
        return ": " + str(detail)[:300].replace(self._key, "…")


def segment(value: str) -> str:
    """One segment of a path, percent-encoded once."""
    return quote(value, safe="")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from ``retry-after-ms`` or ``Retry-After`` (seconds or an HTTP date); never negative."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        text = headers.get("retry-after")
        if text is None:
            return None
        if text.strip().replace(".", "", 1).isdigit():
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (TypeError, ValueError):
        return None


def _locations(response: Any) -> list[list[Any]]:
    """The ``loc`` lists of a 422: ``["body", 3, "text"]`` names the fourth document."""
    try:
        return [item["loc"] for item in response.json()["detail"]]
    except (ValueError, KeyError, TypeError):
        return []


def _custom_headers() -> dict[str, str]:
    lines = os.environ.get("LLAMA_CLOUD_CUSTOM_HEADERS", "").splitlines()
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}
