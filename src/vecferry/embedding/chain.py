"""Several hosts of one space (a chain), and several spaces for one job (alternatives).

A chain may switch in the middle of a job, because every host serves the same space. An alternative is
another space: it is chosen once, before the first write, and never mixed with another one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vecferry.core.redaction import clean
from vecferry.core.retry import CircuitBreaker, RetryPolicy
from vecferry.embedding.base import BaseEmbedder, Listener, Matrix, Part, listen, parts_of
from vecferry.embedding.resolve import resolve
from vecferry.embedding.space import PROBE, check_same_space
from vecferry.errors import (
    BudgetExceeded,
    ConfigurationError,
    EmbedderExhausted,
    FatalStoreError,
    JobStopped,
    LocalStateError,
    PlanError,
    RetryableError,
    UnknownSchemeError,
    VecferryError,
)
from vecferry.model import EmbeddingSpace, probe_cosine, same_model
from vecferry.ports import Embedder, for_queries

QUICK = RetryPolicy(attempts=3, max_seconds=15.0, cap=5.0)


@dataclass(frozen=True, slots=True)
class Switch:
    """One change of host: from where, to where, and why."""

    source: str
    target: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source} → {self.target}: {self.reason}"


class EmbedderChain(BaseEmbedder):
    """Hosts of one space, tried in order.

    A host that fails for good is not asked again in this job; one that fails for now is asked again
    when its circuit breaker lets a call through. Before a host is used for the first time it embeds a
    probe, and the answer is compared with that of the first host.

    Args:
        hosts: embedders, or what `resolve` takes. Where there are several, those without a policy of their
            own retry only briefly.
        retry: for the chain as a whole, when no host answers for now.
        past_budget: go on with the next host where one's budget is used up, instead of stopping.

    Raises:
        SpaceMismatchError: if two hosts serve different spaces, saying in what they differ.
        ConfigurationError: for an empty list.
    """

    provider = "chain"

    def __init__(
        self, hosts: Sequence[Any], *, retry: RetryPolicy | None = None, past_budget: bool = False
    ) -> None:
        super().__init__()
        if not hosts:
            raise ConfigurationError("a chain needs at least one host")
        self.hosts = [resolve(host) for host in hosts]
        if len(hosts) > 1:
            self.hosts = [quick(host) for host in self.hosts]
        first = self.hosts[0].space
        for host in self.hosts[1:]:
            check_same_space(
                first, host.space, "the hosts of a chain must serve one space; use alternatives instead"
            )
        self._space = first
        self.retry = retry or RetryPolicy()
        self._past_budget = past_budget
        self.switches: list[Switch] = []
        self._lock = threading.Lock()
        self._current = 0
        self._gone: dict[int, str] = {}
        self._proved: set[int] = set()
        self._reference: Matrix | None = None
        self._breakers = [CircuitBreaker() for _ in self.hosts]

    @property
    def space(self) -> EmbeddingSpace:
        return self._space

    @property
    def cuts_itself(self) -> bool:  # type: ignore[override]
        """Only if every host does."""
        return all(getattr(host, "cuts_itself", False) for host in self.hosts)

    @property
    def name(self) -> str:  # type: ignore[override]
        return " → ".join(map(name_of, self.hosts))

    @property
    def current(self) -> Embedder:
        """The host that answered last."""
        return self.hosts[self._current]

    @property
    def max_tokens(self) -> int | None:
        limits = [getattr(host, "max_tokens", None) for host in self.hosts]
        known = [limit for limit in limits if limit is not None]
        return min(known) if known else None

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        first = self.hosts[0]
        return first.count_tokens(texts) if isinstance(first, BaseEmbedder) else super().count_tokens(texts)

    def over(self, wrap: Callable[[Embedder], Embedder]) -> EmbedderChain:
        """The same chain with every host wrapped (to meter it)."""
        wrapped = EmbedderChain(
            [wrap(host) for host in self.hosts], retry=self.retry, past_budget=self._past_budget
        )
        wrapped.listener = self.listener
        return wrapped

    def for_queries(self) -> Embedder:
        """The chain of the hosts' own embedders of questions."""
        same = all(for_queries(host) is host for host in self.hosts)
        return self if same else self.over(for_queries)

    def close(self) -> None:
        for host in self.hosts:
            if isinstance(host, BaseEmbedder):
                host.close()

    def embed_parts(self, texts: Sequence[str]) -> Iterator[Part]:
        """Parts of whichever host answers; what one host has answered is not asked again.

        Raises:
            RetryableError: if for now no host answers.
            EmbedderExhausted: if all failed for good.
        """
        left = list(range(len(texts)))

        def attempt() -> list[Part]:
            return self._attempt(texts, left)

        while left:
            # Retried as long as nothing comes; each success starts a new count.
            yield from self.retry.call(attempt, should_stop=self.listener.should_stop)

    def _attempt(self, texts: Sequence[str], left: list[int]) -> list[Part]:
        """What the first host that answers brings; ``left`` keeps what is still to be done."""
        wait: VecferryError | None = None
        for number in self._order():
            parts, error = self._ask(number, texts, left)
            if parts:
                self._use(number)
                return parts
            if isinstance(error, RetryableError) or (wait is None and isinstance(error, BudgetExceeded)):
                wait = error
        if wait is not None:
            raise wait
        reasons = "; ".join(f"{name_of(self.hosts[i])}: {why}" for i, why in self._gone.items())
        raise EmbedderExhausted(f"no host of {self._space} answers any more ({reasons})")

    def _ask(
        self, number: int, texts: Sequence[str], left: list[int]
    ) -> tuple[list[Part], Exception | None]:
        parts: list[Part] = []

        def call() -> None:
            self._prove(number)
            asked = list(left)
            for part in parts_of(self.hosts[number], [texts[row] for row in asked]):
                rows = [asked[row] for row in part.rows]
                parts.append(Part(rows, part.vectors, part.reason, part.tokens))

        error: Exception | None = None
        try:
            self._breakers[number].call(call)
        except LocalStateError:  # no host is to blame, and no other one would help
            raise
        except JobStopped as stopped:
            if not parts and not (self._past_budget and isinstance(stopped, BudgetExceeded)):
                raise
            error = stopped
        except RetryableError as passing:
            error = passing
        except (FatalStoreError, PlanError) as final:
            error = final
            self._gone[number] = str(final)
        if error is not None:
            self.listener.on_event(f"{name_of(self.hosts[number])}: {error}")
            self._last_error = str(error)
        done = {row for part in parts for row in part.rows}
        left[:] = [row for row in left if row not in done]
        return parts, error

    def _prove(self, number: int) -> None:
        """Compare the host's probe with the first one seen.

        Raises:
            FatalStoreError: if this host serves another model than its name says.
        """
        with self._lock:
            if number in self._proved or len(self.hosts) == 1:
                return
            vector = probe_of(self.hosts[number])
            if self._reference is None:
                self._reference = vector
            if not same_model(self._reference, vector):
                raise FatalStoreError(
                    f"it says it serves {self._space}, but its vector of a probe text has cosine "
                    f"{probe_cosine(self._reference, vector):.4f} to that of the other host"
                )
            self.probe = self._reference
            self._proved.add(number)

    def _order(self) -> list[int]:
        """The first host first: it is used again as soon as its breaker lets a call through."""
        return [i for i in range(len(self.hosts)) if i not in self._gone]

    def _use(self, number: int) -> None:
        with self._lock:
            before, self._current = self._current, number
            if before == number:
                return
            switch = Switch(name_of(self.hosts[before]), name_of(self.hosts[number]), self._last_error)
            self.switches.append(switch)
        self.listener.on_event(f"switched from {switch.source} to {switch.target}: {switch.reason}")

    _last_error = "it answers again"


@dataclass(frozen=True, slots=True)
class Choice:
    """The alternative chosen for a job.

    Attributes:
        embedder: to be used for the whole job.
        index: its place in the list.
        skipped: (alternative, reason) of those before it.
    """

    embedder: Embedder
    index: int
    skipped: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        text = f"{name_of(self.embedder)} serves {self.embedder.space}"
        return text + "".join(f"; not {name}: {reason}" for name, reason in self.skipped)


def choose_alternative(
    choices: Any,
    *,
    fingerprint: str | None = None,
    start: int = 0,
    listener: Listener | None = None,
    retry: RetryPolicy = QUICK,
) -> Choice:
    """The first alternative that answers a probe.

    Args:
        choices: one or a list of what `resolve` takes.
        fingerprint: of the space the job began with: only that one is acceptable then.
        start: where to begin in the list; after the one that died, for a restart.
        listener: hears what is skipped and why.
        retry: for the probes, but of embedders with a policy of their own.

    Raises:
        UnknownSchemeError: for a provider nobody knows; that is a typing error, not an outage.
        EmbedderExhausted: if none answers, with every reason; or if the job's own does not.
    """
    entries = list(choices) if isinstance(choices, list | tuple) else [choices]
    skipped: list[tuple[str, str]] = []
    for index, entry in enumerate(entries[start:], start):
        try:
            embedder = resolve(entry)
            fits = _probe(embedder, fingerprint, retry, listener)
        except UnknownSchemeError:
            raise
        except JobStopped:
            raise
        except VecferryError as error:  # whatever it refuses with: the next one may do
            skipped.append((name_of(entry), str(error)))
        else:
            if fits:
                return Choice(embedder, index, tuple(skipped))
            skipped.append((name_of(entry), f"{embedder.space} is not the space this job began with"))
        if listener:
            listener.on_event(f"not {skipped[-1][0]}: {skipped[-1][1]}")
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped)
    what = "the embedding model this job began with" if fingerprint else "any embedding model"
    raise EmbedderExhausted(f"{what} does not answer ({reasons}); run the same call again later")


def _probe(
    embedder: Embedder, fingerprint: str | None, retry: RetryPolicy, listener: Listener | None
) -> bool:
    """Whether it serves the space ``fingerprint``; raises if it does not answer within ``retry``."""
    if listener is not None:
        listen(embedder, listener)
    patient = getattr(embedder, "retry", None)
    patient = patient if patient == RetryPolicy() else None
    if patient is not None:
        embedder.retry = retry  # type: ignore[attr-defined]
    try:
        if fingerprint is not None and embedder.space.fingerprint != fingerprint:
            return False
        probe_of(embedder)
        return True
    finally:
        if patient is not None:
            embedder.retry = patient  # type: ignore[attr-defined]


def probe_of(embedder: Any) -> Matrix:
    """What an embedder answers to the probe text ``(1, dim)``, as a document; kept as its ``probe``.

    Raises:
        FatalStoreError: if it refuses a plain text.
    """
    for part in parts_of(embedder, [PROBE]):
        if part.vectors is None:
            raise FatalStoreError(f"{name_of(embedder)} refuses a plain text: {part.reason}")
        if isinstance(embedder, BaseEmbedder):
            embedder.probe = part.vectors
        return part.vectors
    raise FatalStoreError(f"{name_of(embedder)} answered nothing to a plain text")


def quick(embedder: Embedder) -> Embedder:
    """The embedder, giving up early: where there is another one, that is better than a long wait."""
    if getattr(embedder, "retry", None) == RetryPolicy():  # else somebody has chosen it
        embedder.retry = QUICK  # type: ignore[attr-defined]
    return embedder


def name_of(entry: Any) -> str:
    """An embedder, or what names one, for people."""
    if isinstance(entry, str):
        return clean(entry)
    inner = getattr(entry, "inner", entry)
    provider, name = getattr(inner, "provider", ""), getattr(inner, "name", "")
    url = getattr(inner, "url", "")
    return clean(f"{provider}:{name}{f' at {url}' if url else ''}" if provider else type(inner).__name__)
