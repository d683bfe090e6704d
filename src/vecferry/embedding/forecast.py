"""What embedding will cost: documents once, changes and questions month by month, for several models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vecferry.embedding.budget import PriceTable, dollars
from vecferry.embedding.resolve import resolve
from vecferry.embedding.space import known, model_name, split_name
from vecferry.errors import ConfigurationError, VecferryError

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class ModelForecast:
    """One model's line; ``None`` where its price is not known, ``note`` says how to give one.

    Attributes:
        model: ``"provider:model"``.
        usd_per_million: tokens.
        once: US dollars for all documents.
        monthly: for changed documents and questions.
        total: over all months.
        gigabytes: of float32 vectors, without an index; ``None`` for a model that is not known.
    """

    model: str
    usd_per_million: float | None
    once: float | None
    monthly: float | None
    total: float | None
    gigabytes: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class CostForecast:
    """What embedding will cost, as far as numbers of today tell.

    Attributes:
        lines: one a model, in the order given.
        documents, document_tokens, queries, query_tokens: what was assumed; queries a month.
        changed: share of the documents that changes in a month.
        cached: share of the questions that a query cache answers.
        months: how many are summed up.
        prices_as_of: the date of the price table.
    """

    lines: tuple[ModelForecast, ...]
    documents: int
    document_tokens: float
    queries: float
    query_tokens: float
    changed: float
    cached: float
    months: int
    prices_as_of: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        head = (
            "model",
            "$/M tokens",
            "documents once",
            "a month",
            f"{self.months} months",
            "GB of vectors",
        )
        rows = [head, *(_cells(line) for line in self.lines)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        notes = [f"{line.model}: {line.note}" for line in self.lines if line.note]
        foot = (
            f"{self.documents:,} documents of {self.document_tokens:,.0f} tokens, {self.changed:.0%} "
            f"changed a month; {self.queries:,.0f} queries a month of {self.query_tokens:,.0f} tokens, "
            f"{self.cached:.0%} from a cache; prices of {self.prices_as_of}"
        )
        return "\n".join([*lines, *notes, foot])


def forecast_costs(
    models: Sequence[str],
    *,
    documents: int,
    document_tokens: float = 300,
    queries: float = 0,
    query_tokens: float = 20,
    changed: float = 0.0,
    cached: float = 0.0,
    months: int = 12,
    prices: PriceTable | None = None,
) -> CostForecast:
    """What ``models`` would cost.

    Args:
        models: ``"provider:model"``, priced by the table or your own ``prices.json``.
        documents: how many; ``document_tokens`` each on average.
        queries: a month; ``query_tokens`` each on average.
        changed: share of the documents that changes, and is embedded again, in a month.
        cached: share of the questions that come again, see `vecferry.embedding.QueryEmbedder`.
        months: to sum up.

    Raises:
        ConfigurationError: for numbers that cannot be.
    """
    shares_fit = 0 <= changed <= 1 and 0 <= cached <= 1
    if min(documents, document_tokens, queries, query_tokens, months) < 0 or not shares_fit:
        raise ConfigurationError("counts are 0 or more, and shares (changed, cached) lie between 0 and 1")
    table = prices or PriceTable.load()
    tokens_once = documents * document_tokens
    tokens_monthly = tokens_once * changed + queries * (1 - cached) * query_tokens
    lines = tuple(_line(model, documents, tokens_once, tokens_monthly, months, table) for model in models)
    return CostForecast(
        lines, documents, document_tokens, queries, query_tokens, changed, cached, months, table.as_of
    )


def _line(
    model: str, documents: int, once: float, monthly: float, months: int, table: PriceTable
) -> ModelForecast:
    provider, name, options = split_name(model)
    info = known(model_name(provider, name))
    dim = int(options.get("dimensions") or options.get("dim") or (info.dim if info else 0))
    size = documents * dim * 4 / 1e9 if dim else None
    price, note = _price(model, table)
    if price is None:
        return ModelForecast(model, None, None, None, None, size, note)
    usd = price / _MILLION
    return ModelForecast(
        model, price, usd * once, usd * monthly, usd * (once + monthly * months), size, note
    )


def _price(model: str, table: PriceTable) -> tuple[float | None, str]:
    """The price of a million tokens; a key that is not set is no reason to know none."""
    provider, name, _ = split_name(model)
    for key in (f"{provider}:{name}", f"openai:{name}" if provider == "azure" else ""):
        if key in table.prices:
            return table.prices[key], ""
    try:
        price = table.of(resolve(model, api_key="none") if provider == "openai" else resolve(model))
    except VecferryError as error:
        return None, f"no price is known ({error})"
    note = "" if price is not None else f'add "{provider}:{name}" to prices.json'
    return price, note or ("runs on your own machines" if price == 0 else "")


def _cells(line: ModelForecast) -> tuple[str, ...]:
    amounts = (line.once, line.monthly, line.total)
    return (
        line.model,
        "–" if line.usd_per_million is None else f"{line.usd_per_million:g}",
        *("–" if amount is None else dollars(amount) for amount in amounts),
        "–" if line.gigabytes is None else f"{line.gigabytes:,.2f}",
    )
