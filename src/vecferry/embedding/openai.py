"""OpenAI's embeddings endpoint and everything that speaks it: Azure, vLLM, TEI, infinity, Ollama's /v1.

Limits (OpenAI API reference, "Create embeddings"): 2,048 inputs a request, 300,000 tokens a request,
8,192 tokens an input, no empty string.
"""

from __future__ import annotations

import os
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from vecferry.core.retry import RetryDetails, RetryPolicy
from vecferry.embedding.base import BaseEmbedder, Matrix, Part, clean, sendable, with_prompt
from vecferry.embedding.http import Endpoint
from vecferry.embedding.pool import AdaptiveLimit, RequestPool
from vecferry.embedding.spaces import KnownModel, canonical, declared_space, known
from vecferry.embedding.tokens import byte_bound
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    RejectedRecord,
    RequestTooLargeError,
    RetryableError,
)
from vecferry.model import EmbeddingSpace
from vecferry.ports import ShouldStop

OPENAI_URL = "https://api.openai.com/v1"
MAX_INPUTS = 2048
MAX_TOKENS = 300_000
SMALLEST_SHARE = 32
PROBE = "A short text to see whether the embedding model answers."


class OpenAIEmbedder(BaseEmbedder):
    """``"openai:MODEL"``: many requests at once, packed up to the limits.

    Args:
        name: the model as the server calls it.
        api_key: else ``OPENAI_API_KEY``; servers of your own may need none.
        base_url: else ``OPENAI_BASE_URL``, else OpenAI itself.
        dimensions: shorter vectors, for models that can.
        space: what the server really serves, if ``name`` does not say it, such as
            ``"sentence-transformers:all-MiniLM-L6-v2"``.
        prompt, query_prompt: put before documents and questions; else what the model is known to want.
        concurrency: the most requests under way; half of it at the start, less after a 429.
        max_inputs, max_request_tokens: limits of one request.
        timeout: seconds for one whole answer.
        retry: waits between attempts; ``insufficient_quota`` is never tried again.

    Raises:
        ConfigurationError: without a key for OpenAI itself, or with ``dimensions`` a model lacks.
    """

    provider = "openai"

    def __init__(
        self,
        name: str,
        *,
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
    ) -> None:
        super().__init__()
        self.name = name
        self.retry = retry or RetryPolicy()
        self._dimensions = int(dimensions) if dimensions else None
        self._max_inputs = min(int(max_inputs), MAX_INPUTS)
        self._max_request_tokens = int(max_request_tokens)
        self._concurrency = int(concurrency)
        self._limit = AdaptiveLimit((self._concurrency + 1) // 2, self._concurrency)
        self._pool = RequestPool(self._concurrency)
        self._endpoint = self._make_endpoint(api_key, base_url, float(timeout))
        declared = declared_space(space, self._dimensions) if space is not None else None
        card = known(declared.model if declared else self.model)
        usual = (declared.prompt or "") if declared else card.prompt if card else ""
        self.prompt = usual if prompt is None else prompt
        self.query_prompt = (card.query_prompt if card else "") if query_prompt is None else query_prompt
        self._space = declared or (self._space_of(card) if card else None)
        self._space_lock = threading.Lock()
        self._answers_as: str | None = None

    # -- what it is ---------------------------------------------------------------------------

    @property
    def space(self) -> EmbeddingSpace:
        """Known at once for known models; asks the server once for others."""
        with self._space_lock:
            if self._space is None:
                self._space = self._asked_space()
            return self._space

    @property
    def url(self) -> str:
        """Where it sends its requests."""
        return self._endpoint.url

    @property
    def model(self) -> str:
        return canonical(self.name)

    def close(self) -> None:
        self._pool.close()
        self._endpoint.close()

    def _make_endpoint(self, api_key: str | None, base_url: str | None, timeout: float) -> Endpoint:
        url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        key = api_key or os.environ.get("OPENAI_API_KEY")
        if not key and url == OPENAI_URL:
            raise ConfigurationError("openai: needs a key: set OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        who = "openai" if url == OPENAI_URL else f"openai-compatible server {clean(url)}"
        return Endpoint(
            url,
            lambda: headers,
            who=who,
            extra="openai",
            timeout=timeout,
            key_hint="the API key; check OPENAI_API_KEY",
        )

    def _space_of(self, card: KnownModel) -> EmbeddingSpace:
        dim = self._dimensions or card.dim
        if dim != card.dim and not (card.shortens and dim < card.dim):
            raise ConfigurationError(f"{card.name} cannot give {dim} dimensions; it has {card.dim}")
        return EmbeddingSpace(
            model=card.name, dim=dim, normalized=card.normalized, prompt=self.prompt or None
        )

    def _asked_space(self) -> EmbeddingSpace:
        # The space is not known yet, so this one answer cannot be checked against it.
        answer, _ = self._send([0], [self.prompt + PROBE], lambda: False)
        return EmbeddingSpace(
            model=canonical(self.name),
            dim=answer.shape[1],
            normalized=bool(abs(float(np.linalg.norm(answer[0])) - 1.0) < 1e-3),
            prompt=self.prompt or None,
        )

    # -- embedding ----------------------------------------------------------------------------

    def embed_parts(self, texts: Sequence[str]) -> Iterator[Part]:
        """One part a request, in the order of the answers."""
        full = with_prompt(self.prompt, texts)
        refused, rows = sendable(full)
        yield from refused
        yield from (Part([row], None, "an empty text") for row in rows if not full[row])
        rows = [row for row in rows if full[row]]
        share = max(SMALLEST_SHARE, -(-len(rows) // max(1, self._concurrency)))
        packs = pack(rows, full, min(self._max_inputs, share), self._max_request_tokens)
        yield from self._pool.run([partial(self._parts_of, pack, full) for pack in packs])

    def _parts_of(self, rows: list[int], texts: list[str], failed: ShouldStop) -> list[Part]:
        """One request; if it is refused, in halves until the text at fault stands alone."""
        try:
            vectors, tokens = self._send(rows, [texts[row] for row in rows], failed)
            return [Part(rows, vectors, tokens=tokens)]
        except (RejectedRecord, RequestTooLargeError) as error:
            if len(rows) == 1:
                return [Part(rows, None, str(error))]
            middle = len(rows) // 2
            halves = [self._parts_of(half, texts, failed) for half in (rows[:middle], rows[middle:])]
            parts = [part for half in halves for part in half]
            if all(part.vectors is None for part in parts):
                self._blame_the_request(error, failed)
            return parts

    def _blame_the_request(self, error: Exception, failed: ShouldStop) -> None:
        """When every text was refused, see whether a harmless one is refused as well."""
        try:
            self._send([0], [PROBE], failed)
        except (RejectedRecord, RequestTooLargeError):
            raise FatalStoreError(f"every text is refused, also a plain one: {error}") from error

    def _send(self, rows: list[int], texts: list[str], failed: ShouldStop) -> tuple[Matrix, int | None]:
        listener = self.listener

        def stop() -> bool:
            return failed() or listener.should_stop()

        def once() -> tuple[Matrix, int | None]:
            with self._limit.slot(stop, self.retry.max_seconds):
                answer = self._endpoint.post(self._path(), self._payload(texts))
                return self._read(answer, len(rows))

        def tell(details: RetryDetails) -> None:
            listener.on_event(f"{details.error}; attempt {details.attempt + 1} in {details.wait:.1f} s")

        return self.retry.call(once, should_stop=stop, on_retry=tell)

    def _path(self) -> str:
        return "/embeddings"

    def _payload(self, texts: list[str]) -> dict[str, Any]:
        payload = {"model": self.name, "input": texts, "encoding_format": "base64"}
        return payload | ({"dimensions": self._dimensions} if self._dimensions else {})

    def _read(self, answer: dict[str, Any], count: int) -> tuple[Matrix, int | None]:
        """The vectors of an answer in the order of the texts, and its token count.

        Raises:
            RetryableError: if items are missing, doubled or unreadable.
            FatalStoreError: if the dimension is wrong, or the server has changed its model.
        """
        self._check_model(answer.get("model"))
        items = answer.get("data")
        if not isinstance(items, list) or len(items) != count:
            got = len(items) if isinstance(items, list) else "no"
            raise RetryableError(f"{self._endpoint.who} answered {got} vectors for {count} texts")
        try:
            ordered = sorted(items, key=lambda item: item["index"])
            vectors = [_vector(item["embedding"]) for item in ordered]
            indices = [item["index"] for item in ordered]
        except (KeyError, TypeError, ValueError) as error:
            raise RetryableError(f"{self._endpoint.who} answered an unreadable vector") from error
        if indices != list(range(count)):
            raise RetryableError(f"{self._endpoint.who} answered the wrong positions")
        self._check_widths(vectors)
        usage = answer.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        return np.stack(vectors), int(tokens) if isinstance(tokens, int) else None

    def _check_widths(self, vectors: list[Matrix]) -> None:
        widths = {len(vector) for vector in vectors}
        due = self._space.dim if self._space else next(iter(widths))
        if widths != {due}:
            raise FatalStoreError(
                f"{self._endpoint.who} answered {sorted(widths)} dimensions for {self.name}, "
                f"where {due} are due; it serves another model"
            )

    def _check_model(self, model: object) -> None:
        """A server that begins to answer as another model must not go on filling a collection."""
        if not isinstance(model, str) or not model:
            return
        if self._answers_as is None:
            self._answers_as = model
        elif model != self._answers_as:
            raise FatalStoreError(
                f"{self._endpoint.who} now answers as {model!r}, before as {self._answers_as!r}"
            )


class AzureEmbedder(OpenAIEmbedder):
    """``"azure:DEPLOYMENT?model=text-embedding-3-small"``: OpenAI's models on Azure.

    Args:
        name: the deployment.
        model: the model behind it, since a deployment may have any name.
        endpoint: else ``AZURE_OPENAI_ENDPOINT``.
        api_key: else ``AZURE_OPENAI_API_KEY``; or ``token``, a function that returns an Entra ID token.
        api_version: else ``OPENAI_API_VERSION``, else ``2024-10-21``.
        options: as for `OpenAIEmbedder`.
    """

    provider = "azure"

    def __init__(
        self,
        name: str,
        *,
        model: str | None = None,
        endpoint: str | None = None,
        api_key: str | None = None,
        token: Callable[[], str] | None = None,
        api_version: str | None = None,
        **options: Any,
    ) -> None:
        if options.get("space") is None and known(model or name) is None:
            raise ConfigurationError(
                f"azure: which model is behind the deployment {name!r}? Add ?model=text-embedding-3-small"
            )
        self._model = model or name
        self._token = token
        self._api_version = api_version or os.environ.get("OPENAI_API_VERSION") or "2024-10-21"
        base = endpoint or os.environ.get("AZURE_OPENAI_ENDPOINT")
        if not base:
            raise ConfigurationError("azure: needs an address: set AZURE_OPENAI_ENDPOINT")
        super().__init__(name, api_key=api_key, base_url=base, **options)

    @property
    def model(self) -> str:
        return canonical(self._model)

    def _make_endpoint(self, api_key: str | None, base_url: str | None, timeout: float) -> Endpoint:
        key, token = api_key or os.environ.get("AZURE_OPENAI_API_KEY"), self._token
        if not key and token is None:
            raise ConfigurationError("azure: needs a key: set AZURE_OPENAI_API_KEY")

        def headers() -> dict[str, str]:
            return {"Authorization": f"Bearer {token()}"} if token else {"api-key": str(key)}

        assert base_url
        return Endpoint(
            base_url,
            headers,
            who=f"azure deployment {self.name!r}",
            extra="openai",
            timeout=timeout,
            key_hint="the API key; check AZURE_OPENAI_API_KEY",
        )

    def _path(self) -> str:
        return f"/openai/deployments/{self.name}/embeddings?api-version={self._api_version}"


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


def _vector(value: Any) -> Matrix:
    """From base64 of little-endian float32, or from a list of numbers."""
    if isinstance(value, str):
        return np.frombuffer(b64decode(value, validate=True), dtype="<f4").astype(np.float32, copy=False)
    vector = np.asarray(value, dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError("not a vector")
    return vector


__all__ = ["AzureEmbedder", "OpenAIEmbedder", "pack"]
