"""The embed stage of a stream: what lacks a vector of the target's space gets one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from vecferry.embedding.base import BaseEmbedder, Listener, LocalStateError, Matrix, listen, parts_of
from vecferry.embedding.budget import Budget, Ledger, MeteredEmbedder
from vecferry.embedding.cache import EmbeddingCache, open_cache
from vecferry.embedding.cached import CachedEmbedder
from vecferry.embedding.chain import EmbedderChain
from vecferry.embedding.chunking import (
    LongText,
    Splitter,
    TextLimit,
    as_splitter,
    split_rows,
)
from vecferry.embedding.prices import PriceTable
from vecferry.embedding.reports import EmbedReport, Estimate, Survey
from vecferry.embedding.resolve import resolve
from vecferry.embedding.rows import filled, rejected
from vecferry.embedding.sentence_transformers import SentenceTransformersEmbedder
from vecferry.embedding.spaces import KNOWN, check_same_space
from vecferry.embedding.tokens import count_tokens, counts_exactly
from vecferry.errors import (
    ConfigurationError,
    EmbedderExhausted,
    FatalStoreError,
    LossRefusedError,
    RetryableError,
)
from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    EmbeddingSpace,
    Kind,
    Metric,
    RecordBatch,
    VectorField,
)
from vecferry.ports import Embedder, ShouldStop
from vecferry.ports.progress import never_stop

if TYPE_CHECKING:
    from vecferry.ports import InFlightBatch

_WARM_UP = 4
_CHOICES = {
    "reembed": ("auto", "always", "never"),
    "on_no_text": ("quarantine", "refuse"),
    "long_text": ("truncate", "split", "quarantine", "refuse"),
}
Reembed: TypeAlias = Literal["auto", "always", "never"]
OnNoText: TypeAlias = Literal["quarantine", "refuse"]


class EmbedStage:
    """Implements `vecferry.ports.Stage`.

    Args:
        embedder: what `vecferry.embedding.resolve` takes; one space for the whole job.
        field: the vector field to fill.
        reembed: ``auto`` embeds what has no vector, or has one of another or an unknown space;
            ``always`` everything; ``never`` only checks that the known spaces agree.
        source_space: of the vectors that come in; ``None`` if unknown.
        on_no_text: what happens to a record that needs a vector and has no text.
        long_text: texts longer than the model reads are cut for embedding (the record keeps its whole
            text), split into several records, set aside, or refused.
        chunk_size, chunk_overlap: tokens, for ``"split"``; the model's own limit and 0 by default.
        splitter: a function, a LlamaIndex node parser or a LangChain splitter, for ``"split"``.
        cache: ``True``, a path, a Redis URL, a cache, or ``False``.
        job_cache_path: the job's own cache file, used when ``cache`` is ``False``.
        budget, ledger, job: limits, the ledger's file or object, and the job's name in it.
        should_stop, on_event: asked during waits; told of retries and switches.

    Raises:
        ConfigurationError: for an unknown choice, or a budget without a known price.
        SpaceMismatchError: with ``reembed="never"`` if the source is known to be of another space.
    """

    name = "embed"
    ordered = False

    def __init__(
        self,
        embedder: Any,
        *,
        field: str = "",
        reembed: Reembed = "auto",
        source_space: EmbeddingSpace | None = None,
        on_no_text: OnNoText = "refuse",
        long_text: LongText = "truncate",
        chunk_size: int | None = None,
        chunk_overlap: int = 0,
        splitter: Any = None,
        cache: bool | str | os.PathLike[str] | EmbeddingCache = True,
        job_cache_path: str | os.PathLike[str] | None = None,
        budget: Budget | None = None,
        ledger: Ledger | str | os.PathLike[str] | None = None,
        job: str = "",
        should_stop: ShouldStop = never_stop,
        on_event: Callable[[str], None] = lambda _: None,
    ) -> None:
        _check_choices(reembed=reembed, on_no_text=on_no_text, long_text=long_text)
        self.embedder = resolve(embedder)
        self.field = field
        self.reembed: Reembed = reembed
        self._on_no_text = on_no_text
        self._long_text: LongText = long_text
        self._chunks = (chunk_size, chunk_overlap)
        self._splitter: Splitter | None = as_splitter(splitter) if splitter is not None else None
        self._limit: TextLimit | None = None
        self._counts = {"embedded": 0, "kept": 0, "rejected": 0}
        self.source_space = source_space
        self._meters: list[MeteredEmbedder] = []
        metered = self._metered(self.embedder, budget or Budget(), ledger, job)
        self._metered_embedder = metered
        self.listen(should_stop, on_event)
        store = open_cache(cache, job_cache_path)
        self._own: list[Any] = [x for x in (store, self._ledger) if x not in (None, cache, ledger)]
        if store is not None:
            store.pin()
        self._cached = CachedEmbedder(metered, store)

    # -- the stage ----------------------------------------------------------------------------

    @property
    def space(self) -> EmbeddingSpace:
        """Of every vector in the field after this stage."""
        return self.embedder.space

    @property
    def source_space(self) -> EmbeddingSpace | None:
        """Of the vectors that come in; ``None`` if unknown.

        Raises:
            SpaceMismatchError: when set to another space than the embedder's, with ``reembed="never"``.
        """
        return self._source_space

    @source_space.setter
    def source_space(self, space: EmbeddingSpace | None) -> None:
        if self.reembed == "never" and space is not None:
            check_same_space(space, self.space, "reembed='never' would mix two spaces; use 'auto'")
        self._source_space = space

    def listen(
        self, should_stop: ShouldStop = never_stop, on_event: Callable[[str], None] = lambda _: None
    ) -> None:
        """Ask ``should_stop`` during waits from now on, and tell ``on_event`` of retries and switches."""
        listen(self._metered_embedder, Listener(should_stop, on_event))

    def apply(self, inflight: InFlightBatch) -> InFlightBatch:
        """The batch with a vector of `space` in every row; rows that cannot have one are rejected.

        Raises:
            BudgetExceeded: before a call that would exceed the budget.
            EmbedderExhausted: if the provider failed for good, or for longer than its retries last.
            LossRefusedError: a row without text, or a text too long, that the settings refuse.
        """
        if self.reembed == "never":
            self._counts["kept"] += len(inflight.batch)
            return inflight
        inflight = self._without_textless(inflight)
        inflight = self._with_long_texts_handled(inflight)
        rows = self._to_embed(inflight.batch)
        self._counts["kept"] += len(inflight.batch) - len(rows)
        if not rows:
            return inflight
        vectors, refused = self._embed(self._texts(inflight.batch, rows))
        good = [place for place in range(len(rows)) if place not in refused]
        whole = filled(inflight.batch, self.field, [rows[place] for place in good], vectors[good])
        self._counts["embedded"] += len(good)
        if not refused:
            return inflight.carry(whole)
        reasons = {rows[place]: reason for place, reason in refused.items()}
        rest = self._rejected(inflight, reasons)
        return rest.carry(whole.take([row for row in range(len(whole)) if row not in reasons]))

    def replay_copy(self) -> EmbedStage:
        """The same decisions and vectors: through the cache, which holds what this stage computed."""
        other = copy(self)
        other._counts = dict.fromkeys(self._counts, 0)
        other._cached = CachedEmbedder(self._metered_embedder, self._cached.cache, self._cached.refused)
        return other

    def close(self) -> None:
        """Release processes and connections; cache and ledger too, unless the caller has opened them."""
        if isinstance(self.embedder, BaseEmbedder):
            self.embedder.close()
        for made in self._own:
            made.close()

    # -- planning -----------------------------------------------------------------------------

    def target_field(self, schema: CollectionSchema) -> VectorField:
        """The field as the target gets it, and from now on the name of the field that is filled.

        Metric and HNSW settings are those of the source's field. ``""`` also means its only field.
        """
        try:
            old = schema.field(self.field)
        except KeyError:
            old = VectorField(name=self.field)
        self.field = old.name
        usable = old.kind is Kind.DENSE and old.metric in (Metric.COSINE, Metric.IP, Metric.L2)
        index = {key: value for key, value in old.index.items() if key.startswith("hnsw_")}
        return VectorField(
            name=old.name,
            dim=self.space.dim,
            metric=old.metric if usable else Metric.COSINE,
            space=self.space,
            index=index if usable else {},
        )

    def survey(self, batch: RecordBatch) -> Survey:
        """What this batch would ask of the stage; add the surveys of several batches up."""
        if self.reembed == "never":
            return Survey(records=len(batch))
        rows = self._to_embed(batch)
        texts = [text for row in rows if (text := batch.text_list[row]) and text.strip()]
        tokens = self._text_limit().count(texts) if texts else []
        return Survey(
            records=len(batch),
            to_embed=len(texts),
            no_text=len(rows) - len(texts),
            too_long=len(self._text_limit().too_long(texts)),
            tokens=sum(tokens),
        )

    def estimate(self, survey: Survey, total: int | None = None, sample: Sequence[str] = ()) -> Estimate:
        """Cost and time of ``total`` records (else those surveyed) of which ``survey`` is a sample.

        The speed is measured with up to 64 texts of ``sample``, if that costs nothing and a cache keeps
        the vectors.
        """
        prices = [meter.price for meter in self._meters]
        free = not any(price is None or price > 0 for price in prices)
        return Estimate.of(
            survey,
            total,
            exact=self._counts_exactly,
            prices=prices,
            as_of=self._prices.as_of,
            seconds_a_text=self._seconds_a_text(sample[:64]) if free else None,
        )

    def report(self) -> EmbedReport:
        """What has been done so far."""
        usd = None if any(m.price is None for m in self._meters) else sum(m.usd for m in self._meters)
        chain = self._metered_embedder
        return EmbedReport(
            space=self.space,
            **self._counts,
            hits=self._cached.counts.hits,
            misses=self._cached.counts.misses,
            hit_rate=self._cached.counts.hit_rate,
            tokens=sum(meter.tokens for meter in self._meters),
            usd=usd,
            switches=tuple(chain.switches) if isinstance(chain, EmbedderChain) else (),
        )

    # -- rows ---------------------------------------------------------------------------------

    def _to_embed(self, batch: RecordBatch) -> list[int]:
        """Rows without a vector of the target's space."""
        column = batch.vectors.get(self.field)
        keeps = self.reembed == "auto" and self.source_space == self.space
        if not keeps or not isinstance(column, DenseColumn) or column.values.shape[1] != self.space.dim:
            return list(range(len(batch)))
        return np.flatnonzero(~column.present).tolist()

    def _without_textless(self, inflight: InFlightBatch) -> InFlightBatch:
        texts = inflight.batch.text_list
        bare = [row for row in self._to_embed(inflight.batch) if not (texts[row] or "").strip()]
        if not bare:
            return inflight
        if self._on_no_text == "refuse":
            raise LossRefusedError(
                f"record {inflight.batch.id_list[bare[0]]!r} needs a vector and has no text to embed; "
                "on_no_text='quarantine' sets such records aside"
            )
        return self._rejected(inflight, dict.fromkeys(bare, "it needs a vector and has no text to embed"))

    def _with_long_texts_handled(self, inflight: InFlightBatch) -> InFlightBatch:
        if self._long_text == "truncate":
            return inflight
        texts = [text or "" for text in inflight.batch.text_list]
        rows = self._to_embed(inflight.batch)
        limit = self._text_limit()
        long = [rows[place] for place in limit.too_long([texts[row] for row in rows])]
        if self._long_text == "split":
            return self._split(inflight, rows if limit.tokens is None else long)
        if not long:
            return inflight
        surely = "" if limit.exact else "perhaps "
        reason = f"its text is {surely}longer than the {limit.tokens} tokens that {self.space.model} reads"
        if self._long_text == "refuse":
            raise LossRefusedError(
                f"record {inflight.batch.id_list[long[0]]!r}: {reason}; "
                "long_text= takes 'truncate', 'split' or 'quarantine' as well"
            )
        return self._rejected(inflight, dict.fromkeys(long, reason))

    def _split(self, inflight: InFlightBatch, rows: list[int]) -> InFlightBatch:
        if self._splitter is None:
            self._splitter = self._text_limit().splitter(self._chunks[1])
        return inflight.carry(split_rows(inflight.batch, rows, self._splitter)) if rows else inflight

    def _texts(self, batch: RecordBatch, rows: list[int]) -> list[str]:
        """The texts as they are sent: cut where the provider would refuse instead of cutting."""
        texts = [batch.text_list[row] or "" for row in rows]
        card = KNOWN.get(self.space.model)
        if getattr(self.embedder, "cuts_itself", False) or card is None or card.tokenizer is None:
            return texts
        limit = self._text_limit()
        for place in limit.too_long(texts):
            texts[place] = limit.cut(texts[place])
        return texts

    def _rejected(self, inflight: InFlightBatch, reasons: dict[int, str]) -> InFlightBatch:
        self._counts["rejected"] += len(reasons)
        return rejected(inflight, reasons, self.name)

    # -- calls --------------------------------------------------------------------------------

    def _embed(self, texts: list[str]) -> tuple[Matrix, dict[int, str]]:
        """Vectors by position, and the positions that were refused with the reason."""
        vectors = np.zeros((len(texts), self.space.dim), dtype=np.float32)
        refused: dict[int, str] = {}
        try:
            for part in parts_of(self._cached, texts):
                if part.vectors is None:
                    refused.update(dict.fromkeys(part.rows, part.reason))
                else:
                    vectors[part.rows] = part.vectors
        except (EmbedderExhausted, LocalStateError):
            raise
        except (FatalStoreError, RetryableError) as error:
            raise EmbedderExhausted(
                f"embedding stopped: {error}. The same call goes on from here once that is solved"
            ) from error
        return vectors, refused

    def _metered(
        self, embedder: Embedder, budget: Budget, ledger: Ledger | str | os.PathLike[str] | None, job: str
    ) -> Embedder:
        self._ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger or budget.ledger)
        self._prices = PriceTable.load(budget.prices)

        def meter(host: Embedder) -> Embedder:
            metered = MeteredEmbedder(host, self._ledger, budget=budget, job=job, prices=self._prices)
            self._meters.append(metered)
            return metered

        return embedder.over(meter) if isinstance(embedder, EmbedderChain) else meter(embedder)

    @property
    def _counts_exactly(self) -> bool:
        return isinstance(self.embedder, SentenceTransformersEmbedder) or counts_exactly(self.space.model)

    def _text_limit(self) -> TextLimit:
        if self._limit is None:
            own = self.embedder if isinstance(self.embedder, BaseEmbedder) else None
            longest = own.max_tokens if own else None
            count = own.count_tokens if own else partial(count_tokens, model=self.space.model)
            size = self._chunks[0] if self._long_text == "split" else None
            tokens = min(size, longest) if size and longest else size or longest
            self._limit = TextLimit(tokens, count, count([""])[0], self.space.model, self._counts_exactly)
        return self._limit

    def _seconds_a_text(self, sample: Sequence[str]) -> float | None:
        """Measured with texts that are to be embedded anyway: the cache keeps them."""
        texts = list(dict.fromkeys(text for text in sample if text.strip()))
        if self._cached.cache is None or not texts:
            return None
        _, missing = self._cached.cache.get(self.space, texts)
        unknown = [texts[row] for row in missing]
        # The first call is slower: connections, caches of the model.
        first, rest = unknown[:_WARM_UP], unknown[_WARM_UP:]
        if len(rest) < _WARM_UP:
            return None
        self._embed(first)
        start = time.perf_counter()
        self._embed(rest)
        return (time.perf_counter() - start) / len(rest)


def _check_choices(**given: str) -> None:
    for option, value in given.items():
        if value not in _CHOICES[option]:
            raise ConfigurationError(f"{option}={value!r} is not one of {', '.join(_CHOICES[option])}")
