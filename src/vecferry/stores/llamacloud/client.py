"""The dozen HTTP calls of the LlamaCloud service.

Source: the service's own OpenAPI file, as shipped with its SDKs. Ids in a path are percent-encoded
once, slashes and dots included; where a server decodes twice, twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from vecferry.core.http import HttpClient, Kinds, header_lines
from vecferry.core.limiter import Limiter
from vecferry.core.redaction import hide
from vecferry.core.retry import RetryPolicy
from vecferry.errors import ConfigurationError, NotFoundError

BASE_URL = "https://api.cloud.llamaindex.ai"
RETRY = RetryPolicy(base=0.5, cap=8.0)
AHEAD = 4
"""Requests under way at once; the rate stays what ``rate`` says."""
_KINDS: Kinds = {
    401: (ConfigurationError, "refuses the key; check LLAMA_CLOUD_API_KEY and LLAMA_CLOUD_BASE_URL"),
}


class Client:
    """A thin JSON client with a rate limiter and a retry around each call.

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
        key = key or os.environ.get("LLAMA_CLOUD_API_KEY") or os.environ.get("LLAMA_PARSE_API_KEY")
        if not key:
            raise ConfigurationError("llamacloud: needs a key; set LLAMA_CLOUD_API_KEY=llx-…")
        hide(key)
        self.base_url = (base_url or os.environ.get("LLAMA_CLOUD_BASE_URL") or BASE_URL).rstrip("/")
        self.account = sha256(f"{self.base_url}\0{key}".encode()).hexdigest()[:12]
        self._limiter, self._retry = Limiter(AHEAD, start=AHEAD, rate=rate), retry
        own = header_lines(os.environ.get("LLAMA_CLOUD_CUSTOM_HEADERS", ""))
        self._http = HttpClient(
            self.base_url,
            headers={**own, "Authorization": f"Bearer {key}"},
            who=self.base_url,
            extra="llamacloud",
            timeout=timeout,
            key="the key; check LLAMA_CLOUD_API_KEY",
            kinds=_KINDS,
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

    def of_document(
        self,
        method: str,
        base: str,
        id_: str,
        tail: str = "",
        is_it: Callable[[Any], bool] = lambda _: True,
    ) -> Any:
        """A request about one document.

        Some servers and proxies decode a path twice, so that an id with ``/`` or ``%`` in it is not found;
        then it is encoded twice.

        Args:
            is_it: whether an answer to the second form is about this document.

        Raises:
            NotFoundError: if there is no such document, in either form.
        """
        try:
            return self.request(method, f"{base}/documents/{segment(id_)}{tail}")
        except NotFoundError:
            if not set(id_) & {"/", "%"}:
                raise
            answer = self.request(method, f"{base}/documents/{segment(segment(id_))}{tail}")
            if not is_it(answer):
                raise
            return answer

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
            VecferryError: by `vecferry.core.http.STATUS`; a refusal has the ``locations`` at fault.
        """

        def once() -> Any:
            with self._limiter.slot(patience=self._retry.max_seconds):
                answer = self._http.ask(method, path, params=params, body=body)
                if answer.ok:
                    return answer.json()
                error = answer.error(_KINDS, f"{method} {path}")
                error.locations = answer.locations  # type: ignore[attr-defined]
                raise error

        return self._retry.call(once)


def segment(value: str) -> str:
    """One segment of a path, percent-encoded once. Dots too, where they alone would be folded away."""
    return value.replace(".", "%2E") if value in (".", "..") else quote(value, safe="")
