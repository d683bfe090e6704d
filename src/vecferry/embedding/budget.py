"""What embedding costs: prices, the ledger, and the budget that stops a job before it costs too much.

Prices are a dated table that a user can override, never a number in the code: ``prices.json`` beside this
file, and a file of the same form at ``VECFERRY_PRICES``, or ``prices.json`` in
`vecferry.core.home.home`, laid over it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson

from vecferry.core.home import home
from vecferry.core.state import StateFile
from vecferry.embedding.base import Matrix, Part, assemble, parts_of
from vecferry.embedding.tokens import byte_bound
from vecferry.errors import BudgetExceeded, ConfigurationError
from vecferry.model import EmbeddingSpace
from vecferry.ports import Embedder, for_queries

_MILLION = 1_000_000
_SCHEMA = (
    """
    CREATE TABLE IF NOT EXISTS calls (id INTEGER PRIMARY KEY, at REAL, month TEXT, provider TEXT,
        model TEXT, job TEXT, texts INTEGER, tokens INTEGER, usd REAL, settled INTEGER);
    CREATE INDEX IF NOT EXISTS calls_month ON calls (month, job);
    """,
    "CREATE TABLE IF NOT EXISTS probes (space TEXT PRIMARY KEY, vector BLOB, provider TEXT, at REAL)",
)
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
        self._state = StateFile(
            self.path,
            _SCHEMA,
            what="the ledger",
            hint="move it away or name another file",
            durability="normal",
            timeout=60.0,
        )

    def reserve(
        self,
        provider: str,
        model: str,
        job: str,
        texts: int,
        tokens: int,
        usd: float,
        budget: Budget,
        own_month: bool = False,
    ) -> int:
        """Book an upper bound of a call that is about to be made; its number.

        Raises:
            BudgetExceeded: if the booking would exceed the budget; nothing is booked then.
        """
        month = _month()
        with self._state.transaction():
            self._check(month, job, usd, budget, own_month)
            cursor = self._state.execute(
                "INSERT INTO calls (at, month, provider, model, job, texts, tokens, usd, settled) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
                (time.time(), month, provider, model, job, texts, tokens, usd),
            )
            return int(cursor.lastrowid or 0)

    def settle(self, number: int, texts: int, tokens: int, usd: float) -> None:
        """Replace the bound by what was really used."""
        self._state.execute(
            "UPDATE calls SET texts = ?, tokens = ?, usd = ?, settled = 1 WHERE id = ?",
            (texts, tokens, usd, number),
        )

    def spent(self, *, month: str | None = None, job: str | None = None) -> float:
        """US dollars of a month, of a job, or of both."""
        return self._sum(month, job)

    def lines(self, since: str = "") -> list[Spent]:
        """Sums by month, provider, model and job, oldest first, from month ``since`` on."""
        rows: list[Any] = self._state.rows(
            "SELECT month, provider, model, job, count(*), sum(texts), sum(tokens), sum(usd) "
            "FROM calls WHERE month >= ? GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
            (since,),
        )
        return [Spent(*row) for row in rows]

    def probe(self, space: EmbeddingSpace) -> tuple[Matrix, str] | None:
        """What a space's model answered to the probe text when it was first used, and who served it."""
        rows: list[Any] = self._state.rows(
            "SELECT vector, provider FROM probes WHERE space = ?", (space.fingerprint,)
        )
        return (np.frombuffer(rows[0][0], "<f4"), str(rows[0][1])) if rows else None

    def keep_probe(self, space: EmbeddingSpace, vector: Matrix, provider: str) -> None:
        """Keep an answer, if there is none yet."""
        value = np.ascontiguousarray(vector, "<f4").tobytes()
        row = (space.fingerprint, value, provider, time.time())
        self._state.execute("INSERT OR IGNORE INTO probes VALUES (?, ?, ?, ?)", row)

    def close(self) -> None:
        self._state.close()

    def _check(self, month: str, job: str, usd: float, budget: Budget, own_month: bool) -> None:
        limits = (
            (budget.usd_per_month, self._sum(month, job if own_month else None), f"month {month}"),
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
        value = self._state.value(
            "SELECT total(usd) FROM calls WHERE (?1 IS NULL OR month = ?1) AND (?2 IS NULL OR job = ?2)",
            (month, job),
        )
        return float(value or 0.0)


class MeteredEmbedder:
    """An embedder whose calls are booked before they are made, and settled after.

    Args:
        inner: the provider.
        ledger: where to book.
        budget: the limits.
        job: the job's name in the ledger.
        prices: the table; tokens of an unknown price count 0, and a budget refuses them.
        price: US dollars for a million tokens, instead of the table's.
        own_month: the limit of a month is that of this job's calls, not of all.

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
        price: float | None = None,
        own_month: bool = False,
    ) -> None:
        self.inner = inner
        self.tokens = 0
        self.usd = 0.0
        self._ledger = ledger
        self._budget = budget or Budget()
        self._job, self._own_month = job, own_month
        known = price if price is not None else (prices or PriceTable.load(self._budget.prices)).of(inner)
        self._price = known
        self.tell: Callable[[int, float], None] = lambda tokens, usd: None
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

    def for_queries(self) -> Embedder:
        """The inner embedder of questions, metered as well."""
        asking = for_queries(self.inner)
        if asking is self.inner:
            return self
        other = MeteredEmbedder(
            asking,
            self._ledger,
            budget=self._budget,
            job=self._job,
            price=self._price,
            own_month=self._own_month,
        )
        other.tell = self.tell
        return other

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
        return self._ledger.reserve(
            self.provider, model, self._job, len(texts), tokens, usd, self._budget, self._own_month
        )

    def _settle(self, number: int, texts: int, tokens: int) -> None:
        usd = (self._price or 0.0) * tokens / _MILLION
        self._ledger.settle(number, texts, tokens, usd)
        with self._lock:
            self.tokens += tokens
            self.usd += usd
        self.tell(tokens, usd)


def _estimate(texts: Sequence[str], part: Part) -> int:
    if part.vectors is None:
        return 0
    return sum(max(1, byte_bound(texts[row]) // _BYTES_A_TOKEN) for row in part.rows)


def _month() -> str:
    return datetime.now(UTC).strftime("%Y-%m")


# -- prices ---------------------------------------------------------------------------------------

_LOCAL = {"sentence-transformers", "ollama", "callable", "llamaindex", ""}
_OWN_NAMES = (".local", ".internal", ".lan", ".localhost")


@dataclass(frozen=True, slots=True)
class PriceTable:
    """US dollars for a million input tokens, by ``"provider:model"``.

    Attributes:
        as_of: the date of the newest entry, as the file says.
        prices: see above.
    """

    as_of: str
    prices: dict[str, float]

    @classmethod
    def load(cls, path: str | Path | None = None) -> PriceTable:
        """The shipped table with the user's own entries laid over it.

        Raises:
            ConfigurationError: if a file is malformed.
        """
        table = _read(Path(__file__).with_name("prices.json"))
        override = path or os.environ.get("VECFERRY_PRICES") or home() / "prices.json"
        if not Path(override).expanduser().is_file():
            if path or os.environ.get("VECFERRY_PRICES"):
                raise ConfigurationError(f"the price table {override} is not there")
            return table
        own = _read(Path(override).expanduser())
        return cls(max(table.as_of, own.as_of), table.prices | own.prices)

    def of(self, embedder: Any) -> float | None:
        """The price of an embedder's tokens; 0 for what runs on your own machines, ``None`` if unknown."""
        provider = getattr(embedder, "provider", "")
        host = urlsplit(getattr(embedder, "url", "")).hostname or ""
        for name in (name_of(embedder), f"{host}:{model_of(embedder)}"):
            if name in self.prices:
                return self.prices[name]
        return 0.0 if provider in _LOCAL or _is_own(host) else None


def model_of(embedder: Any) -> str:
    """The model an embedder is billed for."""
    return str(getattr(embedder, "model", None) or embedder.space.model)


def name_of(embedder: Any) -> str:
    """The name in the table: ``provider:model``, or ``host:model`` for others with OpenAI's interface."""
    provider, url = getattr(embedder, "provider", ""), getattr(embedder, "url", "")
    if provider == "openai" and not url.startswith("https://api.openai.com"):
        return f"{urlsplit(url).hostname}:{model_of(embedder)}"
    return f"{provider or type(embedder).__name__}:{model_of(embedder)}"


def _is_own(host: str) -> bool:
    """Whether a host is this machine or lies in a private network."""
    try:
        return ip_address(host).is_private or ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(_OWN_NAMES) or (bool(host) and "." not in host)


def _read(path: Path) -> PriceTable:
    try:
        value = orjson.loads(path.read_bytes())
        prices = {str(name): float(price) for name, price in value["prices"].items()}
        return PriceTable(str(value["as_of"]), prices)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f'{path} is no price table; write {{"as_of": "2026-01-31", "prices": {{"openai:MODEL": 0.02}}}}'
        ) from error
