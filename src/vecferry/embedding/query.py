"""Questions of a running backend: one object with a cache, a monthly budget, and hosts to fall back to.

    model = vf.QueryEmbedder(
        ["openai:text-embedding-3-small", "azure:embed?model=text-embedding-3-small"],
        cache="redis://localhost/0", usd_per_month=20, listeners=[PrometheusMetrics()],
    )
    kb = vf.connect("qdrant://localhost/kb")
    hits = kb.search(model.embed_query("refund policy"), k=5)

or, switched by the environment (``EMBEDDING_PROVIDER=openai``):

    model = vf.QueryEmbedder.from_environment({
        "openai": ["openai:text-embedding-3-small"],
        "local": ["openai:text-embedding-3-small?base_url=http://models.internal/v1"],
    }, space=kb.describe().field("").space)
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from vecferry.core.home import home
from vecferry.core.retry import RetryPolicy
from vecferry.embedding.base import BaseEmbedder, Matrix, TextsRejected, parts_of
from vecferry.embedding.budget import Budget, Ledger, MeteredEmbedder, PriceTable
from vecferry.embedding.cache import CachedEmbedder, EmbeddingCache, RedisCache, SqliteCache
from vecferry.embedding.chain import EmbedderChain, name_of
from vecferry.embedding.space import check_same_space, declared_space
from vecferry.errors import ConfigurationError, VecferryError
from vecferry.model import EmbeddingSpace
from vecferry.ports import Embedder

Listener: TypeAlias = Callable[[str, float, Mapping[str, str]], None]
"""``(event, amount, labels)``, as `vecferry.contrib.prometheus.PrometheusMetrics` takes it."""

PATIENCE = RetryPolicy(attempts=2, max_seconds=5.0, cap=1.0)
"""A person waits for the answer: give up early, and let the next host try."""


@dataclass(frozen=True, slots=True)
class QueryFigures:
    """What a `QueryEmbedder` has done since it was made.

    Attributes:
        asked: questions.
        hits: those found in the cache; ``hit_rate`` between 0 and 1.
        failed: those without an answer.
        tokens, usd: used by the others; ``usd`` counts 0 where no price is known.
        seconds: spent in `embed`, cache included; ``seconds_a_call`` on average.
        provider: the host that answered last.
        switches: changes of host.
    """

    asked: int = 0
    hits: int = 0
    failed: int = 0
    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    calls: int = 0
    provider: str = ""
    switches: int = 0

    @property
    def hit_rate(self) -> float:
        return self.hits / self.asked if self.asked else 0.0

    @property
    def seconds_a_call(self) -> float:
        return self.seconds / self.calls if self.calls else 0.0


class QueryEmbedder:
    """An `Embedder` of questions, to be held by a backend. Thread-safe.

    Args:
        hosts: one or several of what `vecferry.embedding.resolve` takes, all of one space, in the order in
            which they are tried. The next one is asked when one does not answer, refuses, or its budget of
            the month is used up.
        space: the space of the collection that is searched; refused if the hosts serve another one.
        cache: ``True`` for a file of its own, a path, a Redis URL, a cache, or ``False``.
        usd_per_month: for all questions of this ledger, by calendar month (UTC). Hosts that cost nothing
            go on when it is used up; else `BudgetExceeded` is raised, before the call.
        ledger: a file or a `Ledger`; else the one of all jobs.
        job: the name in the ledger.
        prices: a price table file, laid over the shipped one.
        retry: of each host, kept short by default.
        listeners: told ``query_embeddings`` (labels ``provider``, ``result``: hit, computed, failed),
            ``query_embedding_seconds`` (``provider``), ``query_embedding_usd`` (``provider``).

    Raises:
        SpaceMismatchError: if the hosts serve two spaces, or another one than ``space``.
        ConfigurationError: for a budget without a known price.
    """

    def __init__(
        self,
        hosts: Any,
        *,
        space: EmbeddingSpace | str | None = None,
        cache: bool | str | os.PathLike[str] | EmbeddingCache = True,
        usd_per_month: float | None = None,
        ledger: Ledger | str | os.PathLike[str] | None = None,
        job: str = "queries",
        prices: str | os.PathLike[str] | None = None,
        retry: RetryPolicy = PATIENCE,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self._listeners = tuple(listeners)
        self._lock = threading.Lock()
        self._figures = QueryFigures()
        entries = list(hosts) if isinstance(hosts, list | tuple) else [hosts]
        chain = EmbedderChain(entries, retry=retry, past_budget=True)
        for entry, host in zip(entries, chain.hosts, strict=True):
            if isinstance(entry, str) and hasattr(host, "retry"):
                host.retry = retry
        if space is not None:
            wanted = declared_space(space)
            check_same_space(wanted, chain.space, "questions would not be comparable with the collection")
        self._space = chain.space
        self._ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
        table = PriceTable.load(os.fspath(prices) if prices is not None else None)
        budget = Budget(usd_per_month=usd_per_month)

        def metered(host: Embedder) -> Embedder:
            meter = MeteredEmbedder(
                host, self._ledger, budget=budget, job=job, prices=table, own_month=True
            )
            meter.tell = lambda tokens, usd: self._spent(name_of(host), tokens, usd)
            return meter

        self._chain = chain.over(metered).for_queries()
        store = _open_cache(cache)
        self._own: list[Any] = [made for made in (store, self._ledger) if made not in (None, cache, ledger)]
        self._cached = CachedEmbedder(_Questions(self._chain, self._space), store)
        self._hosts = chain

    @classmethod
    def from_environment(
        cls,
        choices: Mapping[str, Any] | None = None,
        *,
        variable: str = "EMBEDDING_PROVIDER",
        **options: Any,
    ) -> QueryEmbedder:
        """The hosts that an environment variable names.

        Args:
            choices: value → hosts. A value that is none of them is taken as it is: ``PROVIDER:MODEL``, or
                several with commas between; ``PROVIDER`` alone goes with ``EMBEDDING_MODEL``.
            variable: the variable.
            options: as for `QueryEmbedder`.

        Raises:
            ConfigurationError: if it is not set, or names nothing.
        """
        value = os.environ.get(variable, "").strip()
        known = ", ".join(choices or ()) or "PROVIDER:MODEL"
        if not value:
            raise ConfigurationError(f"{variable} is not set; it takes {known}")
        if choices and value in choices:
            return cls(choices[value], **options)
        model = os.environ.get("EMBEDDING_MODEL", "").strip()
        if ":" not in value and model and not choices:
            value = f"{value}:{model}"
        if ":" not in value:
            raise ConfigurationError(f"{variable}={value!r} is not one of {known}")
        return cls([one.strip() for one in value.split(",") if one.strip()], **options)

    @property
    def space(self) -> EmbeddingSpace:
        return self._space

    @property
    def figures(self) -> QueryFigures:
        """Counts, latency, cost and provider so far."""
        with self._lock:
            figures = self._figures
        return replace(figures, provider=self._provider(), switches=len(self._switches()))

    def embed(self, texts: Sequence[str]) -> Matrix:
        """float32 ``(len(texts), dim)``.

        Raises:
            TextsRejected, RetryableError, FatalStoreError: as `vecferry.ports.Embedder.embed`.
            BudgetExceeded: if every host would cost more than the month allows; nothing was sent.
        """
        start = time.perf_counter()
        before = self._cached.counts.hits
        result, reasons = np.zeros((len(texts), self._space.dim), np.float32), {}
        failed = len(texts)
        try:
            for part in parts_of(self._cached, texts):
                if part.vectors is None:
                    reasons.update(dict.fromkeys(part.rows, part.reason))
                else:
                    result[part.rows] = part.vectors
            failed = len(reasons)
        finally:
            hits = min(self._cached.counts.hits - before, len(texts))
            self._count(len(texts), hits, failed, time.perf_counter() - start)
        if reasons:
            raise TextsRejected(reasons, result)
        return result

    async def aembed(self, texts: Sequence[str]) -> Matrix:
        """As `embed`, for event loops: the waiting happens in a thread."""
        return await asyncio.to_thread(self.embed, texts)

    def embed_query(self, text: str) -> Matrix:
        """One question: float32 ``(dim,)``."""
        vector: Matrix = self.embed([text])[0]
        return vector

    def for_queries(self) -> QueryEmbedder:
        """Itself: it embeds questions only."""
        return self

    def close(self) -> None:
        """Close hosts and what was opened here."""
        self._hosts.close()
        for made in self._own:
            made.close()

    # -- figures ------------------------------------------------------------------------------

    def _provider(self) -> str:
        chain = self._chain
        return name_of(chain.current if isinstance(chain, EmbedderChain) else chain)

    def _switches(self) -> Sequence[object]:
        return self._chain.switches if isinstance(self._chain, EmbedderChain) else ()

    def _spent(self, provider: str, tokens: int, usd: float) -> None:
        with self._lock:
            now = self._figures
            self._figures = replace(now, tokens=now.tokens + tokens, usd=now.usd + usd)
        if usd:
            self._tell("query_embedding_usd", usd, {"provider": provider})

    def _count(self, asked: int, hits: int, failed: int, seconds: float) -> None:
        with self._lock:
            now = self._figures
            self._figures = replace(
                now,
                asked=now.asked + asked,
                hits=now.hits + hits,
                failed=now.failed + failed,
                seconds=now.seconds + seconds,
                calls=now.calls + 1,
            )
        provider = self._provider()
        counts = {"hit": hits, "failed": failed, "computed": asked - hits - failed}
        for result, count in counts.items():
            if count > 0:
                self._tell("query_embeddings", count, {"provider": provider, "result": result})
        self._tell("query_embedding_seconds", seconds, {"provider": provider})

    def _tell(self, name: str, amount: float, labels: Mapping[str, str]) -> None:
        for listener in self._listeners:
            try:
                listener(name, amount, labels)
            except VecferryError:
                raise
            except Exception:  # noqa: BLE001, S112 - a broken meter must not break the search
                continue


class _Questions(BaseEmbedder):
    """The hosts under a space of their own: a question's vector is not that of a document's same text."""

    def __init__(self, inner: Embedder, space: EmbeddingSpace) -> None:
        super().__init__()
        self.inner = inner
        prompt = getattr(_first(inner), "prompt", "") or ""
        self._space = space.model_copy(update={"prompt": f"question: {prompt}", "probe": None})

    @property
    def space(self) -> EmbeddingSpace:
        return self._space

    def embed_parts(self, texts: Sequence[str]) -> Any:
        return parts_of(self.inner, texts)


def _first(embedder: Any) -> Any:
    """The innermost first host, which knows its prompt."""
    while True:
        hosts = getattr(embedder, "hosts", None)
        following = hosts[0] if hosts else getattr(embedder, "inner", None)
        if following is None or isinstance(getattr(embedder, "prompt", None), str):
            return embedder
        embedder = following


def _open_cache(cache: bool | str | os.PathLike[str] | EmbeddingCache) -> EmbeddingCache | None:
    if cache is False or cache is None:
        return None
    if cache is True:
        return SqliteCache(home() / "queries.sqlite", max_bytes=2**28)
    if isinstance(cache, str) and cache.startswith(("redis://", "rediss://", "unix://")):
        return RedisCache(cache, retry=RetryPolicy(attempts=2, max_seconds=2.0))
    if isinstance(cache, str | os.PathLike):
        return SqliteCache(cache, max_bytes=2**28)
    return cache


__all__ = ["QueryEmbedder", "QueryFigures"]
