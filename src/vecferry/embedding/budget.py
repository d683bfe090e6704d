"""The ledger of what embedding costs, and the budget that stops a job before it costs too much."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vecferry.core.home import home
from vecferry.embedding.base import Matrix, Part, assemble, parts_of
from vecferry.embedding.cache import shared_database, sqlite_errors
from vecferry.embedding.prices import PriceTable, model_of, name_of
from vecferry.embedding.tokens import byte_bound
from vecferry.errors import BudgetExceeded, ConfigurationError
from vecferry.model import EmbeddingSpace
from vecferry.ports import Embedder

_MILLION = 1_000_000
_CALLS = """
CREATE TABLE IF NOT EXISTS calls (id INTEGER PRIMARY KEY, at REAL, month TEXT, provider TEXT, model TEXT,
    job TEXT, texts INTEGER, tokens INTEGER, usd REAL, settled INTEGER)
"""
# A limit of exactly the cost is kept: sums of small amounts are off by rounding.
_ROUNDING = 1 + 1e-9
# Rough, and only for providers that charge nothing and count nothing.
_BYTES_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits in US dollars. A job stops, resumable, before the call that would exceed one.

    Attributes:
        usd_per_month: all jobs of this ledger, by calendar month (UTC).
        usd_per_job: one job, all its runs together.
        prices: a price table file, laid over the shipped one.
        ledger: the ledger's file; else one in `vecferry.core.home.home`.
    """

    usd_per_month: float | None = None
    usd_per_job: float | None = None
    prices: str | Path | None = None
    ledger: str | Path | None = None

    def __post_init__(self) -> None:
        for limit in (self.usd_per_month, self.usd_per_job):
            if limit is not None and not limit >= 0:
                raise ConfigurationError(f"a budget is 0 or more US dollars, not {limit}")


def dollars(amount: float) -> str:
    """An amount for people: whole cents, four places below a dollar, two digits below a cent."""
    if amount == 0 or amount >= 1:
        return f"${amount:,.2f}"
    return f"${amount:.4f}" if amount >= 0.01 else f"${amount:.2g}"


@dataclass(frozen=True, slots=True)
class Spent:
    """One line of the ledger: a month (``"2026-01"``), a provider, a model, a job."""

    month: str
    provider: str
    model: str
    job: str
    calls: int
    texts: int
    tokens: int
    usd: float


class Ledger:
    """A SQLite file, shared between processes. A reservation counts as spent until it is settled.

    A process that dies in a call leaves its reservation: the call may have been billed.

    Raises:
        ConfigurationError: if there can be no such file, or it is another kind of file.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path).expanduser() if path else home() / "ledger.sqlite"
        self._lock = threading.Lock()
        try:
            self._connection = shared_database(self.path)
            self._connection.execute(_CALLS)
            self._connection.execute("CREATE INDEX IF NOT EXISTS calls_month ON calls (month, job)")
        except (OSError, sqlite3.DatabaseError) as error:
            raise ConfigurationError(
                f"the ledger {self.path} cannot be opened ({error}); move it away or name another file"
            ) from error

    def reserve(
        self, provider: str, model: str, job: str, texts: int, tokens: int, usd: float, budget: Budget
    ) -> int:
        """Book an upper bound of a call that is about to be made; its number.

        Raises:
            BudgetExceeded: if the booking would exceed the budget; nothing is booked then.
        """
        month = _month()
        with self._lock, sqlite_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:
                self._check(month, job, usd, budget)
                cursor = self._connection.execute(
                    "INSERT INTO calls (at, month, provider, model, job, texts, tokens, usd, settled) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
                    (time.time(), month, provider, model, job, texts, tokens, usd),
                )
                return int(cursor.lastrowid or 0)

    def settle(self, number: int, texts: int, tokens: int, usd: float) -> None:
        """Replace the bound by what was really used."""
        with self._lock, sqlite_errors(self.path):
            self._connection.execute(
                "UPDATE calls SET texts = ?, tokens = ?, usd = ?, settled = 1 WHERE id = ?",
                (texts, tokens, usd, number),
            )

    def spent(self, *, month: str | None = None, job: str | None = None) -> float:
        """US dollars of a month, of a job, or of both."""
        with self._lock:
            return self._sum(month, job)

    def lines(self, since: str = "") -> list[Spent]:
        """Sums by month, provider, model and job, oldest first, from month ``since`` on."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT month, provider, model, job, count(*), sum(texts), sum(tokens), sum(usd) "
                "FROM calls WHERE month >= ? GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
                (since,),
            ).fetchall()
        return [Spent(*row) for row in rows]

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _check(self, month: str, job: str, usd: float, budget: Budget) -> None:
        limits = (
            (budget.usd_per_month, self._sum(month, None), f"month {month}"),
            (budget.usd_per_job, self._sum(None, job), "job"),
        )
        for limit, spent, what in limits:
            if usd > 0 and limit is not None and spent + usd > limit * _ROUNDING:
                raise BudgetExceeded(
                    f"the next call may cost {dollars(usd)}; with {dollars(spent)} spent "
                    f"that exceeds {dollars(limit)} "
                    f"for this {what}. It was not made: raise the budget and run the same call again"
                )

    def _sum(self, month: str | None, job: str | None) -> float:
        value = self._connection.execute(
            "SELECT total(usd) FROM calls WHERE (?1 IS NULL OR month = ?1) AND (?2 IS NULL OR job = ?2)",
            (month, job),
        ).fetchone()[0]
        return float(value)


class MeteredEmbedder:
    """An embedder whose calls are booked before they are made, and settled after.

    Args:
        inner: the provider.
        ledger: where to book.
        budget: the limits.
        job: the job's name in the ledger.
        prices: the table; tokens of an unknown price count 0, and a budget refuses them.

    Raises:
        ConfigurationError: if there is a limit and the provider's price is unknown.
    """

    def __init__(
        self,
        inner: Embedder,
        ledger: Ledger,
        *,
        budget: Budget | None = None,
        job: str = "",
        prices: PriceTable | None = None,
    ) -> None:
        self.inner = inner
        self.tokens = 0
        self.usd = 0.0
        self._ledger = ledger
        self._budget = budget or Budget()
        self._job = job
        self._price = (prices or PriceTable.load(self._budget.prices)).of(inner)
        self._lock = threading.Lock()
        limited = (self._budget.usd_per_month, self._budget.usd_per_job) != (None, None)
        if self._price is None and limited:
            raise ConfigurationError(
                f"a budget needs a price: no price is known for {name_of(inner)}; "
                "add it to prices.json (see the page on embedding)"
            )

    @property
    def space(self) -> EmbeddingSpace:
        return self.inner.space

    @property
    def provider(self) -> str:
        return str(getattr(self.inner, "provider", "") or type(self.inner).__name__)

    @property
    def price(self) -> float | None:
        """US dollars for a million tokens."""
        return self._price

    def embed_parts(self, texts: Sequence[str]) -> Iterator[Part]:
        """The inner embedder's parts.

        Raises:
            BudgetExceeded: before the call.
        """
        number = self._reserve(texts)
        used, done = 0, 0
        try:
            for part in parts_of(self.inner, texts):
                used += part.tokens if part.tokens is not None else _estimate(texts, part)
                done += len(part.rows) if part.vectors is not None else 0
                yield part
        finally:
            self._settle(number, done, used)

    def embed(self, texts: Sequence[str]) -> Matrix:
        """As the inner embedder does; see `embed_parts`."""
        return assemble(self, texts)

    async def aembed(self, texts: Sequence[str]) -> Matrix:
        """As `embed`, for event loops."""
        return await asyncio.to_thread(self.embed, texts)

    def _reserve(self, texts: Sequence[str]) -> int:
        bound = sum(map(byte_bound, texts))
        try:
            return self._book(texts, bound)
        except BudgetExceeded:
            # The bound was the quick one. Count before giving up.
            count = getattr(self.inner, "count_tokens", None)
            exact = sum(count(list(texts))) if count else bound
            if exact >= bound:
                raise
            return self._book(texts, exact)

    def _book(self, texts: Sequence[str], tokens: int) -> int:
        usd = (self._price or 0.0) * tokens / _MILLION
        model = model_of(self.inner)
        return self._ledger.reserve(self.provider, model, self._job, len(texts), tokens, usd, self._budget)

    def _settle(self, number: int, texts: int, tokens: int) -> None:
        usd = (self._price or 0.0) * tokens / _MILLION
        self._ledger.settle(number, texts, tokens, usd)
        with self._lock:
            self.tokens += tokens
            self.usd += usd


def _estimate(texts: Sequence[str], part: Part) -> int:
    if part.vectors is None:
        return 0
    return sum(max(1, byte_bound(texts[row]) // _BYTES_A_TOKEN) for row in part.rows)


def _month() -> str:
    return datetime.now(UTC).strftime("%Y-%m")
