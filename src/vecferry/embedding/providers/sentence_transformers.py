"""Local models through sentence-transformers, in processes of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from vecferry.embedding.base import Part, PromptedEmbedder, sendable
from vecferry.embedding.hub import LocalModel, find_model
from vecferry.embedding.requests import RequestPool
from vecferry.embedding.space import declared_space, known
from vecferry.embedding.workers import ModelSettings, WorkerPool, cores
from vecferry.errors import ConfigurationError, RetryableError
from vecferry.model import EmbeddingSpace
from vecferry.ports import Embedder, ShouldStop

SLICE = 8
"""Batches that go to a worker at once: enough to keep it busy, few enough to share among workers."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    space: EmbeddingSpace
    pool: WorkerPool
    max_tokens: int | None


class SentenceTransformersEmbedder(PromptedEmbedder):
    """``"sentence-transformers:NAME"`` or ``"sentence-transformers:/a/folder"``.

    A model that is on this machine is never asked for on the network. Texts are sorted by length, so
    that little is padded. The model lives in ``workers`` processes; each has its share of the cores.

    Args:
        name: a Hugging Face name or a folder.
        revision: a commit, tag or branch; becomes part of the space.
        device: such as ``"cuda"``; else what sentence-transformers chooses.
        token: else ``HF_TOKEN`` or ``HUGGINGFACE_API_TOKEN``.
        prompt, query_prompt: put before documents and questions; else what the model's own configuration
            says, or it is known to want (E5: ``"passage: "`` and ``"query: "``). It goes to the model as
            its ``prompt``, since some leave it out of the mean of the tokens.
        normalize: scale to unit length even if the model does not.
        dimensions, truncate_dim: keep only the first components (Matryoshka models).
        space: the space it serves, if the folder's own name must not count.
        workers: processes. One with all cores is best on a CPU.
        batch_size: texts in one forward pass.
        threads: of each worker; else the cores divided by the workers.
    """

    provider = "sentence-transformers"
    cuts_itself = True

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        device: str | None = None,
        token: str | None = None,
        prompt: str | None = None,
        query_prompt: str | None = None,
        normalize: bool | str = False,
        dimensions: int | str | None = None,
        truncate_dim: int | str | None = None,
        space: str | EmbeddingSpace | None = None,
        workers: int | str = 1,
        batch_size: int | str = 32,
        threads: int | str | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.batch_size = max(1, int(batch_size))
        self._revision = revision
        self._device = device
        self._token = token
        self._prompts = (prompt, query_prompt)
        self._normalize = str(normalize).lower() in ("true", "1", "yes")
        if dimensions and truncate_dim and int(dimensions) != int(truncate_dim):
            raise ConfigurationError("sentence-transformers: say dimensions or truncate_dim, not both")
        self._dimensions = int(dimensions or truncate_dim or 0) or None
        self._declared = declared_space(space) if space is not None else None
        self._workers = max(1, int(workers))
        self._threads = int(threads) if threads else max(1, cores() // self._workers)
        self._requests = RequestPool(self._workers)
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None

    @property
    def space(self) -> EmbeddingSpace:
        """Loads the model: what it really gives is measured."""
        return self._load().space

    @property
    def max_tokens(self) -> int | None:
        return self._load().max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Exact, by the model's own tokenizer."""
        with self._load().pool.borrow() as worker:
            return worker.count([self.prompt + text for text in texts])

    def embed_parts(self, texts: Sequence[str]) -> Iterator[Part]:
        self._load()  # which tells the prompt
        return super().embed_parts(texts)

    def for_queries(self) -> Embedder:
        self._load()
        return super().for_queries()

    def prompted_parts(self, texts: Sequence[str], prompt: str) -> Iterator[Part]:
        """Slices of a few batches, longest texts first."""
        pool = self._load().pool
        refused, rows = sendable(texts)
        yield from refused
        order = sorted(rows, key=lambda row: -len(texts[row]))
        size = self._slice_size(len(order))
        slices = [order[start : start + size] for start in range(0, len(order), size)]
        jobs: list[Callable[[ShouldStop], list[Part]]] = [
            partial(self._encode, pool, rows, texts, prompt) for rows in slices
        ]
        yield from self._requests.run(jobs)

    def close(self) -> None:
        self._requests.close()
        if self._loaded is not None:
            self._loaded.pool.close()

    def _slice_size(self, count: int) -> int:
        share = -(-count // self._workers)
        batches = max(1, min(SLICE, -(-share // self.batch_size)))
        return batches * self.batch_size

    def _encode(
        self, pool: WorkerPool, rows: list[int], texts: Sequence[str], prompt: str, _: ShouldStop
    ) -> list[Part]:
        asked = [texts[row] for row in rows]
        try:
            with pool.borrow() as worker:
                vectors = worker.encode(asked, prompt, self.batch_size, self._normalize)
        except RetryableError as error:  # the process died (out of memory?): once more in a new one
            self.listener.on_event(f"{error}; starting it again")
            with pool.borrow() as worker:
                vectors = worker.encode(asked, prompt, self.batch_size, self._normalize)
        return [Part(rows, vectors)]

    def _load(self) -> _Loaded:
        with self._lock:
            if self._loaded is None:
                local = find_model(self.name, self._revision, self._token)
                self._loaded = self._start(local)
            return self._loaded

    def _start(self, local: LocalModel) -> _Loaded:
        settings = ModelSettings(local.path, None, self._device, self._dimensions, self._threads)
        pool = WorkerPool(settings, self._workers)
        facts = pool.facts
        info = known(self._declared.model if self._declared else local.name)
        own = facts["prompts"]
        names = ("document", "passage", "corpus")  # in the order of the library's encode_document
        document = next(filter(None, map(own.get, names)), info.prompt if info else "")
        question = own.get("query") or (info.query_prompt if info else "")
        prompt, query_prompt = self._prompts
        self.prompt = document if prompt is None else prompt
        self.query_prompt = question if query_prompt is None else query_prompt
        space = self._declared or EmbeddingSpace(
            model=local.name,
            dim=facts["dim"],
            normalized=facts["normalized"] or self._normalize,
            revision=local.revision,
            prompt=self.prompt or None,
        )
        return _Loaded(space, pool, facts["max_tokens"])
