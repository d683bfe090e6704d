"""OpenAI's embeddings endpoint and everything that speaks it: vLLM, TEI, infinity, LM Studio, Ollama's /v1.

Two ends speak it: our own HTTP, the fast default, and any client of the ``openai`` package that an
application already has (``client=``). Both go through one table of errors.

Limits (OpenAI API reference, "Create embeddings"): 2,048 inputs a request, 300,000 tokens a request,
8,192 tokens an input, no empty string.
"""

from __future__ import annotations

import inspect
import os
import threading
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from vecferry.core.http import Answer, HttpClient, header_lines
from vecferry.core.redaction import clean, hide
from vecferry.core.retry import RetryPolicy
from vecferry.embedding.base import Matrix
from vecferry.embedding.providers.callables import run_awaitable
from vecferry.embedding.requests import Reply, RequestEmbedder, answer_error, foreign_error
from vecferry.embedding.space import KnownModel, canonical, declared_space, known
from vecferry.embedding.tokens import byte_bound
from vecferry.errors import ConfigurationError, FatalStoreError, RetryableError, VecferryError
from vecferry.model import EmbeddingSpace

if TYPE_CHECKING:
    import httpx

OPENAI_URL = "https://api.openai.com/v1"
MAX_INPUTS = 2048
MAX_TOKENS = 300_000
SMALLEST_SHARE = 32
Headers: TypeAlias = Mapping[str, str] | Callable[[], Mapping[str, str]]


class _End(Protocol):
    """Where a request goes."""

    url: str
    who: str

    def ask(self, payload: dict[str, Any]) -> Answer: ...

    def close(self) -> None: ...


class OpenAIEmbedder(RequestEmbedder):
    """``"openai:MODEL"``: many requests at once, packed up to the limits.

    Args:
        name: the model as the server calls it.
        client: an ``OpenAI``, ``AsyncOpenAI``, ``AzureOpenAI`` or ``AsyncAzureOpenAI`` of the
            application's, used with its key, proxy, headers and transport; its retries are ours.
            ``api_key``, ``base_url``, ``headers`` and ``http_client`` are its own matter then.
        api_key: else ``OPENAI_API_KEY``; servers of your own may need none.
        base_url: else ``OPENAI_BASE_URL``, else OpenAI itself.
        dimensions: shorter vectors, for models that can.
        space: what the server really serves, if ``name`` does not say it, such as
            ``"sentence-transformers:all-MiniLM-L6-v2"``.
        prompt, query_prompt: put before documents and questions; else what the model is known to want.
        concurrency: the most requests under way; half of it at the start, less after a 429 or a time-out.
        max_inputs, max_request_tokens: limits of one request.
        timeout: seconds for one whole answer.
        retry: waits between attempts; ``insufficient_quota`` is never tried again.
        headers: sent with every request, beside those of ``OPENAI_ORG_ID``, ``OPENAI_PROJECT_ID`` and
            ``OPENAI_CUSTOM_HEADERS``.
        body: fields laid over every request's JSON, such as ``{"truncate_prompt_tokens": 512}``.
        http_client: an ``httpx.Client`` of your own (proxy, certificates, transport).

    Raises:
        ConfigurationError: without a key for OpenAI itself, or with ``dimensions`` a model lacks.
    """

    provider = "openai"
    takes_empty_texts = False

    def __init__(
        self,
        name: str,
        *,
        client: Any = None,
        api_key: str | None = None,
        base_url: str | None = None,
        dimensions: int | str | None = None,
        space: str | EmbeddingSpace | None = None,
        prompt: str | None = None,
        query_prompt: str | None = None,
        concurrency: int | str = 8,
        max_inputs: int | str = MAX_INPUTS,
        max_request_tokens: int | str = MAX_TOKENS,
        timeout: float | str = 60.0,
        retry: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        http_client: httpx.Client | None = None,
    ) -> None:
        super().__init__(
            concurrency=int(concurrency), batch_size=min(int(max_inputs), MAX_INPUTS), retry=retry
        )
        self.name = name
        self._dimensions = int(dimensions) if dimensions else None
        self._max_request_tokens = int(max_request_tokens)
        self._body = dict(body or {})
        if client is not None:
            self._end: _End = ClientEnd(client, float(timeout))
        else:
            self._end = self._own_end(api_key, base_url, float(timeout), headers or {}, http_client)
        declared = declared_space(space, self._dimensions) if space is not None else None
        info = known(declared.model if declared else self.model)
        usual = (declared.prompt or "") if declared else info.prompt if info else ""
        self.prompt = usual if prompt is None else prompt
        self.query_prompt = (info.query_prompt if info else "") if query_prompt is None else query_prompt
        self._space = declared or (self._space_of(info) if info else None)
        self._space_lock = threading.Lock()
        self._answers_as: str | None = None
        self._format = "base64"

    # -- what it is ---------------------------------------------------------------------------

    @property
    def space(self) -> EmbeddingSpace:
        """Known at once for known models; asks the server once for others."""
        with self._space_lock:
            if self._space is None:
                vector = self.measure()
                self._space = EmbeddingSpace(
                    model=canonical(self.name),
                    dim=vector.shape[1],
                    normalized=bool(abs(float(np.linalg.norm(vector[0])) - 1.0) < 1e-3),
                    prompt=self.prompt or None,
                )
            return self._space

    @property
    def url(self) -> str:
        """Where it sends its requests."""
        return self._end.url

    @property
    def model(self) -> str:
        return canonical(self.name)

    def close(self) -> None:
        super().close()
        self._end.close()

    def _own_end(
        self,
        api_key: str | None,
        base_url: str | None,
        timeout: float,
        headers: Mapping[str, str],
        http_client: httpx.Client | None,
    ) -> _End:
        url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        key = api_key or os.environ.get("OPENAI_API_KEY")
        if not key and url == OPENAI_URL:
            raise ConfigurationError("openai: needs a key: set OPENAI_API_KEY")
        own = {"Authorization": f"Bearer {key}"} if key else {}
        return HttpEnd(
            url,
            "/embeddings",
            {**own, **environment_headers(), **headers},
            who="openai" if url == OPENAI_URL else f"openai-compatible server {clean(url)}",
            timeout=timeout,
            key="the API key; check OPENAI_API_KEY",
            http_client=http_client,
        )

    def _space_of(self, info: KnownModel) -> EmbeddingSpace:
        dim = self._dimensions or info.dim
        if dim != info.dim and not (info.shortens and dim < info.dim):
            raise ConfigurationError(f"{info.name} cannot give {dim} dimensions; it has {info.dim}")
        return EmbeddingSpace(
            model=info.name, dim=dim, normalized=info.normalized, prompt=self.prompt or None
        )

    # -- requests -----------------------------------------------------------------------------

    def packs(self, rows: list[int], texts: Sequence[str]) -> list[list[int]]:
        share = max(SMALLEST_SHARE, -(-len(rows) // self.concurrency))
        return pack(rows, texts, min(self.batch_size, share), self._max_request_tokens)

    def request(self, texts: list[str], prompt: str) -> Reply:
        payload: dict[str, Any] = {"model": self.name, "input": [prompt + text for text in texts]}
        form = self._format
        payload["encoding_format"] = form
        if self._dimensions:
            payload["dimensions"] = self._dimensions
        answer = self._end.ask(payload | self._body)
        if not answer.ok:
            if form == "base64" and 400 <= answer.status < 500 and _about_base64(answer):
                return self._with_floats(texts, prompt)
            raise answer_error(answer)
        try:
            return self._read(answer, len(texts))
        except NoVectors:
            if form == "base64":  # some answer it with nothing
                return self._with_floats(texts, prompt)
            raise

    def _with_floats(self, texts: list[str], prompt: str) -> Reply:
        """The same, and from now on, without base64."""
        self._format = "float"
        return self.request(texts, prompt)

    def _read(self, answer: Answer, count: int) -> Reply:
        """The vectors of an answer in the order of the texts.

        Raises:
            RetryableError: if items are missing, doubled or unreadable.
            FatalStoreError: if the dimension is wrong, or the server has changed its model.
            ConfigurationError: if it is an answer of something else.
        """
        body = answer.json()
        if not isinstance(body, dict):
            raise RetryableError(f"{self._end.who} answered something that is not a JSON object")
        if "data" not in body:
            if answer.message:  # 200, and an error inside: LM Studio does so for a wrong path
                raise ConfigurationError(
                    f"{self._end.who} answers an error: {answer.message}; check the address and the model"
                )
            raise RetryableError(f"{self._end.who} answered no vectors for {count} texts")
        self._check_model(body.get("model"))
        items = body["data"]
        if not isinstance(items, list) or len(items) != count:
            got = len(items) if isinstance(items, list) else "no"
            kind = RetryableError if items else NoVectors
            raise kind(f"{self._end.who} answered {got} vectors for {count} texts")
        vectors, refused = self._vectors(items)
        usage = body.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        return Reply(vectors, tokens if type(tokens) is int else None, refused)

    def _vectors(self, items: list[Any]) -> tuple[Matrix, dict[int, str]]:
        read: list[Matrix | None] = [None] * len(items)
        try:
            places = [item.get("index") for item in items]
            if all(place is None for place in places):  # the order is that of the texts then
                places = list(range(len(items)))
            if sorted(places) != list(range(len(items))):
                raise RetryableError(f"{self._end.who} answered the wrong positions")
            for place, item in zip(places, items, strict=True):
                value = item["embedding"]
                read[place] = None if value is None else _vector(value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RetryableError(f"{self._end.who} answered an unreadable vector") from error
        lengths = {len(vector) for vector in read if vector is not None}
        if lengths == {0}:
            raise NoVectors(f"{self._end.who} answered vectors of no dimensions for {self.name}")
        dim = self._checked_width(lengths) if lengths else self._space.dim if self._space else 1
        matrix = np.zeros((len(items), dim), np.float32)
        for place, vector in enumerate(read):
            if vector is not None:
                matrix[place] = vector
        nulls = [place for place, vector in enumerate(read) if vector is None]
        return matrix, dict.fromkeys(nulls, f"{self._end.who} answered null instead of a vector")

    def _checked_width(self, lengths: set[int]) -> int:
        if self._dimensions and self._dimensions not in lengths and len(lengths) == 1:
            raise FatalStoreError(
                f"{self._end.who} ignores dimensions={self._dimensions} and answers {lengths.pop()}; "
                "leave dimensions out, or take a model and a server that can shorten"
            )
        due = self._space.dim if self._space else next(iter(lengths))
        if lengths != {due}:
            raise FatalStoreError(
                f"{self._end.who} answered {sorted(lengths)} dimensions for {self.name}, "
                f"where {due} are due; it serves another model"
            )
        return due

    def _check_model(self, model: object) -> None:
        """A server that begins to answer as another model must not go on filling a collection."""
        if not isinstance(model, str) or not model:
            return
        if self._answers_as is None:
            self._answers_as = model
        elif model != self._answers_as:
            raise FatalStoreError(
                f"{self._end.who} now answers as {model!r}, before as {self._answers_as!r}"
            )


class NoVectors(RetryableError):
    """An answer without vectors, as servers give that cannot do base64."""


class HttpEnd:
    """Our own HTTP: vectors as base64, straight into numpy."""

    def __init__(
        self,
        url: str,
        path: str,
        headers: Headers,
        *,
        who: str,
        timeout: float,
        key: str,
        http_client: httpx.Client | None = None,
    ) -> None:
        self._http = HttpClient(
            url, headers=headers, who=who, extra="openai", timeout=timeout, key=key, http_client=http_client
        )
        self.url, self.who, self._path = self._http.url, who, path

    def ask(self, payload: dict[str, Any]) -> Answer:
        return self._http.ask("POST", self._path, body=payload)

    def close(self) -> None:
        self._http.close()


class ClientEnd:
    """A client of the ``openai`` package: its transport and its manners, our retries and our errors."""

    def __init__(self, client: Any, timeout: float) -> None:
        if not hasattr(client, "embeddings") or not hasattr(client, "with_options"):
            raise ConfigurationError(
                f"client= takes a client of the openai package, such as openai.OpenAI(), not "
                f"{type(client).__name__}"
            )
        key = getattr(client, "api_key", None)
        if isinstance(key, str) and key:
            hide(key)
        self._client = client.with_options(max_retries=0, timeout=timeout)
        self.url = str(getattr(client, "base_url", "")).rstrip("/")
        self.who = f"{type(client).__name__} at {clean(self.url)}"

    def ask(self, payload: dict[str, Any]) -> Answer:
        known = {"model", "input", "encoding_format", "dimensions", "user"}
        asked = {name: value for name, value in payload.items() if name in known}
        more = {name: value for name, value in payload.items() if name not in known}
        try:
            raw = self._client.embeddings.with_raw_response.create(**asked, extra_body=more or None)
            if inspect.isawaitable(raw):
                raw = run_awaitable(raw)
            response = raw.http_response
            self._check_origin(str(response.url))
            return self._answer(response.status_code, response.headers, response.content)
        except VecferryError:
            raise
        except Exception as error:  # the package's, its transport's, a token provider's
            response = getattr(error, "response", None)
            if response is not None and hasattr(response, "status_code"):
                self._check_origin(str(getattr(response, "url", self.url)))
                return self._answer(response.status_code, response.headers, response.content)
            raise self._raised(error) from error

    def _check_origin(self, answered: str) -> None:
        """The package follows redirects; what a stranger answers is not taken."""
        if self.url and urlsplit(answered)[:2] != urlsplit(self.url)[:2]:
            there = clean(answered.partition("?")[0])
            raise ConfigurationError(
                f"{self.who} was redirected to another origin, {there}; give the client that address as "
                "its base_url if it is the right one"
            )

    def close(self) -> None:
        """The client is the application's: it stays open."""

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> Answer:
        found = {str(name).lower(): str(value) for name, value in dict(headers).items()}
        return Answer(status, found, content, self.who, "its API key")

    def _raised(self, error: Exception) -> VecferryError:
        translated = foreign_error(error, self.who)
        # Nothing was answered: no text is at fault, and waiting does not mend a credential.
        blamed = type(translated).__name__ == "RejectedRecord"
        return ConfigurationError(str(translated)) if blamed else translated


def environment_headers() -> dict[str, str]:
    """What ``OPENAI_ORG_ID``, ``OPENAI_PROJECT_ID`` and ``OPENAI_CUSTOM_HEADERS`` ask for."""
    named = (("OpenAI-Organization", "OPENAI_ORG_ID"), ("OpenAI-Project", "OPENAI_PROJECT_ID"))
    found = {header: os.environ[name] for header, name in named if os.environ.get(name)}
    return found | header_lines(os.environ.get("OPENAI_CUSTOM_HEADERS", ""))


def pack(rows: Sequence[int], texts: Sequence[str], inputs: int, tokens: int) -> list[list[int]]:
    """Rows in groups of at most ``inputs`` texts and ``tokens`` UTF-8 bytes (never fewer than tokens)."""
    packs: list[list[int]] = []
    room = 0
    for row in rows:
        size = byte_bound(texts[row])
        if not packs or len(packs[-1]) >= inputs or size > room:
            packs.append([])
            room = tokens
        packs[-1].append(row)
        room -= size
    return packs


def _about_base64(answer: Answer) -> bool:
    return answer.parameter == "encoding_format" or any(
        word in answer.message.lower() for word in ("base64", "encoding_format", "encoding format")
    )


def _vector(value: Any) -> Matrix:
    """From base64 of little-endian float32, or from a list of numbers."""
    if isinstance(value, str):
        return np.frombuffer(b64decode(value, validate=True), dtype="<f4").astype(np.float32, copy=False)
    vector = np.asarray(value, dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError("not a vector")
    return vector


__all__ = ["OpenAIEmbedder", "environment_headers", "pack"]
