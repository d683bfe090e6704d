"""Ollama's own endpoint, ``/api/embed`` (Ollama API reference, "Generate Embeddings")."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from vecferry.core.http import Answer, HttpClient
from vecferry.core.retry import RetryPolicy
from vecferry.embedding.requests import Reply, RequestEmbedder, answer_error
from vecferry.embedding.space import declared_space, known, model_name
from vecferry.errors import ConfigurationError, FatalStoreError, RetryableError
from vecferry.model import EmbeddingSpace

DEFAULT_URL = "http://localhost:11434"


@dataclass(frozen=True, slots=True)
class _Loaded:
    space: EmbeddingSpace
    max_tokens: int | None


class OllamaEmbedder(RequestEmbedder):
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
        super().__init__(
            concurrency=int(concurrency), start=int(concurrency), batch_size=int(batch_size), retry=retry
        )
        self.name = name
        self._dimensions = int(dimensions) if dimensions else None
        self._declared = declared_space(space) if space is not None else None
        info = known(self._declared.model if self._declared else model_name("ollama", name))
        usual = (self._declared.prompt or "") if self._declared else info.prompt if info else ""
        self.prompt = usual if prompt is None else prompt
        self.query_prompt = (info.query_prompt if info else "") if query_prompt is None else query_prompt
        self._http = HttpClient(_address(base_url), who="ollama", extra="ollama", timeout=float(timeout))
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
        return self._http.url

    def close(self) -> None:
        super().close()
        self._http.close()

    def request(self, texts: list[str], prompt: str) -> Reply:
        payload: dict[str, Any] = {
            "model": self.name,
            "input": [prompt + text for text in texts],
            "truncate": self.listener.shorten is not False,
        }
        if self._dimensions:
            payload["dimensions"] = self._dimensions
        return _read(self._asked("POST", "/api/embed", payload), len(texts))

    def _asked(self, method: str, path: str, payload: dict[str, Any] | None = None) -> Answer:
        answer = self._http.ask(method, path, body=payload)
        if not answer.ok:
            raise answer_error(answer)
        return answer

    def _load(self) -> _Loaded:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._ask()
            return self._loaded

    def _ask(self) -> _Loaded:
        answer = self.measure()
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
        for model in (self._asked("GET", "/api/tags").json() or {}).get("models") or ():
            if wanted & {model.get("name"), model.get("model")} and model.get("digest"):
                return str(model["digest"]).removeprefix("sha256:")[:12]
        return None

    def _context_length(self) -> int | None:
        details = (self._asked("POST", "/api/show", {"model": self.name}).json() or {}).get(
            "model_info"
        ) or {}
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


def _read(answer: Answer, count: int) -> Reply:
    body = answer.json()
    if isinstance(body, dict) and "embeddings" not in body and answer.message:
        raise ConfigurationError(
            f"ollama answers an error: {answer.message}; check the address and the model"
        )
    vectors = body.get("embeddings") if isinstance(body, dict) else None
    if not isinstance(vectors, list) or len(vectors) != count:
        got = len(vectors) if isinstance(vectors, list) else "no"
        raise RetryableError(f"ollama answered {got} vectors for {count} texts")
    nulls = [place for place, vector in enumerate(vectors) if vector is None]
    width = next((len(vector) for vector in vectors if isinstance(vector, list)), 0)
    try:
        matrix = np.asarray([[0.0] * width if v is None else v for v in vectors], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise FatalStoreError("ollama answered vectors of several lengths, or of no numbers") from error
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise FatalStoreError("ollama answered numbers or nothing where vectors are due")
    tokens = body.get("prompt_eval_count")
    refused = dict.fromkeys(nulls, "ollama answered null instead of a vector")
    return Reply(matrix, int(tokens) if isinstance(tokens, int) else None, refused)
