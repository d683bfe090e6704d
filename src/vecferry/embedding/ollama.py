"""Ollama's own endpoint, ``/api/embed`` (Ollama API reference, "Generate Embeddings")."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vecferry.core.retry import RetryPolicy
from vecferry.embedding.base import BaseEmbedder, Matrix, Part, sendable, with_prompt
from vecferry.embedding.http import Endpoint
from vecferry.embedding.pool import AdaptiveLimit, RequestPool
from vecferry.embedding.spaces import declared_space, known, model_name
from vecferry.errors import FatalStoreError, RejectedRecord, RetryableError
from vecferry.model import EmbeddingSpace
from vecferry.ports import ShouldStop

DEFAULT_URL = "http://localhost:11434"
_PROBE = "A short text to see how long the vectors are."


@dataclass(frozen=True, slots=True)
class _Loaded:
    space: EmbeddingSpace
    max_tokens: int | None


class OllamaEmbedder(BaseEmbedder):
    """``"ollama:nomic-embed-text"``.

    Ollama's conversions are models of their own here (``ollama/nomic-embed-text``, with the digest as the
    revision): their numbers differ a little from the original's. Say ``space=`` where that is close enough.

    Args:
        name: the model as ``ollama list`` shows it.
        base_url: else ``OLLAMA_HOST``, else ``http://localhost:11434``.
        dimensions: shorter vectors, for models that can.
        space, prompt, query_prompt: as for `vecferry.embedding.OpenAIEmbedder`.
        batch_size: texts a request. concurrency: requests under way.
        timeout: seconds for one whole answer; loading the model is part of the first.
    """

    provider = "ollama"
    cuts_itself = True

    def __init__(
        self,
        name: str,
        *,
        base_url: str | None = None,
        dimensions: int | str | None = None,
        space: str | EmbeddingSpace | None = None,
        prompt: str | None = None,
        query_prompt: str | None = None,
        batch_size: int | str = 64,
        concurrency: int | str = 2,
        timeout: float | str = 120.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.retry = retry or RetryPolicy()
        self._batch_size = max(1, int(batch_size))
        self._dimensions = int(dimensions) if dimensions else None
        self._declared = declared_space(space) if space is not None else None
        card = known(self._declared.model if self._declared else model_name("ollama", name))
        usual = (self._declared.prompt or "") if self._declared else card.prompt if card else ""
        self.prompt = usual if prompt is None else prompt
        self.query_prompt = (card.query_prompt if card else "") if query_prompt is None else query_prompt
        self._limit = AdaptiveLimit(int(concurrency), int(concurrency))
        self._pool = RequestPool(int(concurrency))
        self._endpoint = Endpoint(
            _address(base_url), dict, who="ollama", extra="ollama", timeout=float(timeout)
        )
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None

    @property
    def space(self) -> EmbeddingSpace:
        """Asks the server once: for the model's digest, its length, and one vector."""
        return self._load().space

    @property
    def max_tokens(self) -> int | None:
        return self._load().max_tokens

    @property
    def model(self) -> str:
        return model_name("ollama", self.name)

    @property
    def url(self) -> str:
        return self._endpoint.url

    def close(self) -> None:
        self._pool.close()
        self._endpoint.close()

    def embed_parts(self, texts: Sequence[str]) -> Iterator[Part]:
        full = with_prompt(self.prompt, texts)
        refused, rows = sendable(full)
        yield from refused
        slices = [rows[i : i + self._batch_size] for i in range(0, len(rows), self._batch_size)]
        yield from self._pool.run([partial(self._parts_of, some, full) for some in slices])

    def _parts_of(self, rows: list[int], texts: list[str], failed: ShouldStop) -> list[Part]:
        try:
            vectors, tokens = self._send([texts[row] for row in rows], failed)
            return [Part(rows, vectors, tokens=tokens)]
        except RejectedRecord as error:
            if len(rows) == 1:
                return [Part(rows, None, str(error))]
        middle = len(rows) // 2
        halves = [self._parts_of(half, texts, failed) for half in (rows[:middle], rows[middle:])]
        return [part for half in halves for part in half]

    def _send(self, texts: list[str], failed: ShouldStop) -> tuple[Matrix, int | None]:
        def stop() -> bool:
            return failed() or self.listener.should_stop()

        payload: dict[str, Any] = {"model": self.name, "input": texts, "truncate": True}
        if self._dimensions:
            payload["dimensions"] = self._dimensions

        def once() -> tuple[Matrix, int | None]:
            with self._limit.slot(stop, self.retry.max_seconds):
                return _read(self._endpoint.post("/api/embed", payload), len(texts))

        return self.retry.call(once, should_stop=stop)

    def _load(self) -> _Loaded:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._ask()
            return self._loaded

    def _ask(self) -> _Loaded:
        answer, _ = self._send([_PROBE], lambda: False)
        length = self._context_length()
        unit = bool(abs(float(np.linalg.norm(answer[0])) - 1.0) < 1e-3)
        space = self._declared or EmbeddingSpace(
            model=model_name("ollama", self.name),
            dim=answer.shape[1],
            normalized=unit,
            revision=self._digest(),
            prompt=self.prompt or None,
        )
        return _Loaded(space, length)

    def _digest(self) -> str | None:
        """The first 12 digits of the model's digest, as ``ollama list`` shows it."""
        wanted = {self.name, f"{self.name}:latest"}
        for model in self._endpoint.get("/api/tags").get("models") or ():
            if wanted & {model.get("name"), model.get("model")} and model.get("digest"):
                return str(model["digest"]).removeprefix("sha256:")[:12]
        return None

    def _context_length(self) -> int | None:
        details = self._endpoint.post("/api/show", {"model": self.name}).get("model_info") or {}
        lengths = [value for key, value in details.items() if key.endswith(".context_length")]
        return int(lengths[0]) if lengths else None


def _address(base_url: str | None) -> str:
    """``OLLAMA_HOST`` may lack the scheme, the port, or both. With a scheme, the port is the scheme's."""
    address = base_url or os.environ.get("OLLAMA_HOST") or DEFAULT_URL
    address = address if "://" in address else f"http://{address}"
    scheme, _, host = address.partition("://")
    host = host.rstrip("/").replace("0.0.0.0", "localhost")  # noqa: S104 - what a server binds to
    whole = "://" in (base_url or os.environ.get("OLLAMA_HOST") or DEFAULT_URL)
    return f"{scheme}://{host if ':' in host or whole or base_url else f'{host}:11434'}"


def _read(answer: dict[str, Any], count: int) -> tuple[Matrix, int | None]:
    vectors = answer.get("embeddings")
    if not isinstance(vectors, list) or len(vectors) != count:
        got = len(vectors) if isinstance(vectors, list) else "no"
        raise RetryableError(f"ollama answered {got} vectors for {count} texts")
    try:
        matrix = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise FatalStoreError("ollama answered vectors of several lengths, or of no numbers") from error
    if matrix.ndim != 2:
        raise FatalStoreError("ollama answered numbers where vectors are due")
    tokens = answer.get("prompt_eval_count")
    return matrix, int(tokens) if isinstance(tokens, int) else None
