"""What the embed stage says before a job and after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vecferry.embedding.chain import Switch
from vecferry.model import EmbeddingSpace


@dataclass(frozen=True, slots=True)
class Survey:
    """What a sample of records asks of the stage: counts of records, and their tokens."""

    records: int = 0
    to_embed: int = 0
    no_text: int = 0
    too_long: int = 0
    tokens: int = 0

    def __add__(self, other: Survey) -> Survey:
        return Survey(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def scaled(self, factor: float) -> Survey:
        """For a collection ``factor`` times as large."""
        return Survey(*(round(getattr(self, name) * factor) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What embedding a collection takes.

    Attributes:
        survey: the counts, for the whole collection.
        exact: whether every record was counted, with the model's own tokenizer; else the tokens
            are extrapolated or an upper bound.
        usd: US dollars, of the dearest host; ``None`` if a price is not known.
        prices_as_of: the date of the price table.
        seconds: ``None`` if not measured.
    """

    survey: Survey
    exact: bool
    usd: float | None
    prices_as_of: str
    seconds: float | None

    @classmethod
    def of(
        cls,
        survey: Survey,
        total: int | None,
        *,
        exact: bool,
        prices: Sequence[float | None],
        as_of: str,
        seconds_a_text: float | None,
    ) -> Estimate:
        """For ``total`` records of which ``survey`` is a sample; ``prices``: of every host."""
        scale = (total or survey.records) / max(1, survey.records)
        whole = survey.scaled(scale)
        known = [price for price in prices if price is not None]
        return cls(
            survey=whole,
            exact=exact and scale == 1.0,
            usd=max(known) * whole.tokens / 1e6 if len(known) == len(prices) else None,
            prices_as_of=as_of,
            seconds=None if seconds_a_text is None else seconds_a_text * whole.to_embed,
        )


@dataclass(frozen=True, slots=True)
class EmbedReport:
    """What the stage has done so far.

    Attributes:
        space: of every vector that left the stage in its field.
        embedded: records that got a new vector; ``kept``: those that kept theirs.
        rejected: records that could not be embedded.
        hits, misses: texts found in the cache, texts computed; ``hit_rate`` between 0 and 1.
        tokens, usd: as booked in the ledger; ``None`` where a price is not known.
        switches: changes of host within a chain.
    """

    space: EmbeddingSpace
    embedded: int
    kept: int
    rejected: int
    hits: int
    misses: int
    hit_rate: float
    tokens: int
    usd: float | None
    switches: tuple[Switch, ...]
