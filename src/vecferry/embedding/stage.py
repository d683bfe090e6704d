"""The embed stage of a stream: what lacks a vector of the target's space gets one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

import numpy as np

from vecferry.core.concurrency import ShouldStop, never_stop
from vecferry.embedding.base import BaseEmbedder, Listener, Matrix, listen, parts_of
from vecferry.embedding.budget import Budget, Ledger, MeteredEmbedder, PriceTable
from vecferry.embedding.cache import CachedEmbedder, EmbeddingCache, KeepsProbes, SqliteCache, open_cache
from vecferry.embedding.chain import EmbedderChain, Switch, name_of, probe_of
from vecferry.embedding.chunking import LongText, Splitter, TextLimit, as_splitter, split_rows
from vecferry.embedding.providers.sentence_transformers import SentenceTransformersEmbedder
from vecferry.embedding.requests import is_about_length
from vecferry.embedding.resolve import resolve
from vecferry.embedding.space import KNOWN, check_same_space
from vecferry.embedding.tokens import count_tokens, counts_exactly
from vecferry.errors import (
    ConfigurationError,
    EmbedderExhausted,
    FatalStoreError,
    LocalStateError,
    LossRefusedError,
    PlanError,
    RetryableError,
    SpaceMismatchError,
)
from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    EmbeddingSpace,
    Kind,
    Metric,
    RecordBatch,
    RecordId,
    VectorField,
    probe_cosine,
    same_model,
    signature,
)
from vecferry.ports import Embedder

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


@dataclass(frozen=True, slots=True)
class SampleCounts:
    """What a sample of records asks of the stage.

    Attributes:
        records, to_embed, no_text: counts of records.
        too_long: records whose text is longer than the model reads; ``maybe_too_long``: that may be, where
            no tokenizer of the model is at hand.
        tokens: of the texts to embed; an upper bound without a tokenizer.
    """

    records: int = 0
    to_embed: int = 0
    no_text: int = 0
    too_long: int = 0
    tokens: int = 0
    maybe_too_long: int = 0

    def __add__(self, other: SampleCounts) -> SampleCounts:
        return SampleCounts(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def scaled(self, factor: float) -> SampleCounts:
        """For a collection ``factor`` times as large."""
        return SampleCounts(*(round(getattr(self, name) * factor) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What embedding a collection takes.

    Attributes:
        counts: the counts, for the whole collection.
        exact: whether every record was counted, with the model's own tokenizer; else the tokens
            are extrapolated or an upper bound.
        usd: US dollars, of the dearest host; ``None`` if a price is not known.
        prices_as_of: the date of the price table.
        seconds: ``None`` if not measured.
    """

    counts: SampleCounts
    exact: bool
    usd: float | None
    prices_as_of: str
    seconds: float | None

    @property
    def survey(self) -> SampleCounts:
        """The former name of ``counts``."""
        return self.counts

    @classmethod
    def of(
        cls,
        counts: SampleCounts,
        total: int | None,
        *,
        exact: bool,
        prices: Sequence[float | None],
        as_of: str,
        seconds_a_text: float | None,
    ) -> Estimate:
        """For ``total`` records of which ``counts`` is a sample; ``prices``: of every host."""
        scale = (total or counts.records) / max(1, counts.records)
        whole = counts.scaled(scale)
        known = [price for price in prices if price is not None]
        return cls(
            counts=whole,
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
        cache: ``True``, a path, a Redis URL, a cache, or ``False``: nothing of an earlier job is used, and
            nothing is left.
        job_cache_path: with ``cache=False``, a file for the vectors of this job alone, so that its proof
            does not pay for them again; `discard_private` removes it.
        budget, ledger, job: limits, the ledger's file or object, and the job's name in it.
        should_stop, on_event: asked during waits; told of retries and switches.

    Raises:
        ConfigurationError: for an unknown choice, or a budget without a known price.
        SpaceMismatchError: with ``reembed="never"`` if the source is known to be of another space; or if
            the embedder's answer to a probe text is not what a model of its name once answered.
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
        self._probe: Matrix | None = None
        self.source_space = source_space
        self._private = job_cache_path if cache is False else None  # an empty cache is falsy, too
        self._identity = threading.Lock()
        self._identified = self._kept = False
        self._meters: list[MeteredEmbedder] = []
        metered = self._metered(self.embedder, budget or Budget(), ledger, job)
        self._metered_embedder = metered
        self.listen(should_stop, on_event)
        store = open_cache(cache, job_cache_path)
        self._own: list[Any] = [x for x in (store, self._ledger) if x not in (None, cache, ledger)]
        if store is not None:
            store.pin()
        self._cached = CachedEmbedder(metered, store)
        self._probe = getattr(self.embedder, "probe", None)
        if self._probe is not None:  # it has just been asked
            self._forget_probe()
            self._compare(self._probe)

    # -- the stage ----------------------------------------------------------------------------

    @property
    def space(self) -> EmbeddingSpace:
        """Of every vector in the field after this stage, with the answer to the probe once it is known."""
        space = self.embedder.space
        if self._probe is None:
            return space
        return space.model_copy(update={"probe": signature(self._probe)})

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
        shorten = self._long_text == "truncate"
        listen(self._metered_embedder, Listener(should_stop, on_event, shorten))

    def identify(self) -> None:
        """Ask the embedder for its vector of a probe text, and compare it with what its name once answered.

        One call at the start of a job; cache, ledger and target keep the answer. Idempotent.

        Raises:
            SpaceMismatchError: if another model answers under the name.
        """
        with self._identity:
            if self._identified:
                return
            with self._failures():
                vector = self._probe if self._probe is not None else probe_of(self.embedder)
            self._compare(vector)
            self._probe = vector
            self._forget_probe()
            self._identified = True

    def _keep_probe(self) -> None:
        """Remember the answer, from the first vector on that is computed."""
        if self._kept or self._probe is None:
            return
        space, cache = self.embedder.space, self._cached.cache
        self._ledger.keep_probe(space, self._probe, name_of(self.embedder))
        if isinstance(cache, KeepsProbes):
            cache.keep_probe(space, self._probe)
        self._kept = True

    def _forget_probe(self) -> None:
        """The embedder may serve another job, which asks it again."""
        if isinstance(self.embedder, BaseEmbedder):
            self.embedder.probe = None

    def _compare(self, vector: Matrix) -> None:
        space, cache = self.embedder.space, self._cached.cache
        kept = cache.probe(space) if isinstance(cache, KeepsProbes) else None
        noted = self._ledger.probe(space)
        for before, where in (
            (kept, "the embedding cache holds vectors of another model under that name"),
            (noted and noted[0], f"another model answered under that name before ({noted and noted[1]})"),
        ):
            if before is not None and not same_model(before, vector):
                raise SpaceMismatchError(
                    f"{name_of(self.embedder)} says it serves {space}, but {where}: their vectors of a "
                    f"probe text have cosine {probe_cosine(before, vector):.4f}. Give this one a name "
                    f"of its own: space='{self._provider()}:{space.model}?dim={space.dim}&revision=2'"
                )

    def _provider(self) -> str:
        return str(getattr(self.embedder, "provider", "") or "mine")

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
        self.identify()
        self._keep_probe()
        vectors, refused = self._embed(self._texts(inflight.batch, rows))
        good = [place for place in range(len(rows)) if place not in refused]
        whole = filled(inflight.batch, self.field, [rows[place] for place in good], vectors[good])
        self._counts["embedded"] += len(good)
        if not refused:
            return inflight.carry(whole)
        reasons = {rows[place]: reason for place, reason in refused.items()}
        if self._long_text == "refuse":
            for row, reason in reasons.items():
                if is_about_length(reason):
                    self._refuse_long(inflight.batch.id_list[row], reason)
        rest = self._rejected(inflight, reasons)
        return rest.carry(whole.take([row for row in range(len(whole)) if row not in reasons]))

    def split(self, inflight: InFlightBatch) -> InFlightBatch:
        """What `apply` does to long texts before it embeds, and nothing else."""
        return self._with_long_texts_handled(inflight) if len(inflight.batch) else inflight

    def behind_split(self) -> EmbedStage:
        """The same stage for texts that `split` has seen: `apply` only embeds them."""
        other = copy(self)
        other._long_text = "truncate"
        return other

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

    def identified(self, schema: CollectionSchema) -> CollectionSchema:
        """A target's schema with the probe's answer beside the space that is filled; see `identify`."""
        if self.reembed == "never":
            return schema
        self.identify()
        space = self.space
        fields = tuple(
            field.model_copy(update={"space": space}) if field.space == space else field
            for field in schema.fields
        )
        return schema.model_copy(update={"fields": fields})

    def begin_anew(self) -> None:
        """A job with ``cache=False`` starts from its beginning: nothing computed earlier is used."""
        if self._private is not None and isinstance(self._cached.cache, SqliteCache):
            self._cached.cache.clear()

    def discard_private(self) -> None:
        """Remove the file of a job with ``cache=False``: it is done."""
        if self._private is not None and self._cached.cache is not None:
            self._cached.cache.close()
            for end in ("", "-wal", "-shm"):
                Path(f"{os.fspath(self._private)}{end}").unlink(missing_ok=True)

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

    def count(self, batch: RecordBatch) -> SampleCounts:
        """What this batch would ask of the stage; add the counts of several batches up."""
        if self.reembed == "never":
            return SampleCounts(records=len(batch))
        rows = self._to_embed(batch)
        texts = [text for row in rows if (text := batch.text_list[row]) and text.strip()]
        limit = self._text_limit()
        tokens = limit.count(texts) if texts else []
        too_long = len(limit.too_long(texts))
        return SampleCounts(
            records=len(batch),
            to_embed=len(texts),
            no_text=len(rows) - len(texts),
            too_long=too_long if limit.exact else 0,
            tokens=sum(tokens),
            maybe_too_long=0 if limit.exact else too_long,
        )

    survey = count  # its former name

    def estimate(
        self, counts: SampleCounts, total: int | None = None, sample: Sequence[str] = ()
    ) -> Estimate:
        """Cost and time of ``total`` records (else those counted) of which ``counts`` is a sample.

        The speed is measured with up to 64 texts of ``sample``, if that costs nothing and a cache keeps
        the vectors.
        """
        prices = [meter.price for meter in self._meters]
        free = not any(price is None or price > 0 for price in prices)
        return Estimate.of(
            counts,
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
        if not long or not limit.exact:  # a bound is no count: the provider decides
            return inflight
        reason = f"its text is longer than the {limit.tokens} tokens that {self.space.model} reads"
        if self._long_text == "refuse":
            self._refuse_long(inflight.batch.id_list[long[0]], reason)
        return self._rejected(inflight, dict.fromkeys(long, reason))

    def _refuse_long(self, id_: RecordId, reason: str) -> NoReturn:
        raise LossRefusedError(
            f"record {id_!r}: {reason}; long_text= takes 'truncate', 'split' or 'quarantine' as well"
        )

    def _split(self, inflight: InFlightBatch, rows: list[int]) -> InFlightBatch:
        if self._splitter is None:
            self._splitter = self._text_limit().splitter(self._chunks[1])
        return inflight.carry(split_rows(inflight.batch, rows, self._splitter)) if rows else inflight

    def _texts(self, batch: RecordBatch, rows: list[int]) -> list[str]:
        """The texts as they are sent: cut where the provider would refuse instead of cutting."""
        texts = [batch.text_list[row] or "" for row in rows]
        info, limit = KNOWN.get(self.space.model), self._text_limit()
        own = getattr(self.embedder, "cuts_itself", False)
        # Without the model's tokenizer nothing is cut here: the provider says what is too long.
        if own or info is None or info.tokenizer is None or not limit.exact:
            return texts
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
        with self._failures():
            for part in parts_of(self._cached, texts):
                if part.vectors is None:
                    refused.update(dict.fromkeys(part.rows, part.reason))
                else:
                    vectors[part.rows] = part.vectors
        return vectors, refused

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """What a provider says for good stops the job, which can go on later."""
        try:
            yield
        except (EmbedderExhausted, LocalStateError):
            raise
        except (FatalStoreError, RetryableError, PlanError) as error:
            raise EmbedderExhausted(
                f"embedding stopped: {error}. The same call goes on from here once that is solved"
            ) from error

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


# -- rows -----------------------------------------------------------------------------------------


def filled(batch: RecordBatch, field: str, rows: list[int], vectors: Matrix) -> RecordBatch:
    """The batch with ``vectors`` ``(len(rows), dim)`` in ``rows`` of ``field``.

    Other rows keep the vector they have, if it is as long; else they have none.
    """
    if len(rows) == len(batch):
        column = DenseColumn(vectors)
    else:
        old = batch.vectors.get(field)
        values = np.zeros((len(batch), vectors.shape[1]), dtype=np.float32)
        present = np.zeros(len(batch), dtype=np.bool_)
        if isinstance(old, DenseColumn) and old.values.shape == values.shape:
            values[:], present[:] = old.values, old.present
        values[rows], present[rows] = vectors, True
        column = DenseColumn(values, None if present.all() else present)
    return batch.replace(vectors={**batch.vectors, field: column})


def rejected(inflight: InFlightBatch, reasons: dict[int, str], stage: str) -> InFlightBatch:
    """Without the rows of ``reasons``, one rejection for each different reason."""
    left = list(range(len(inflight.batch)))
    for reason in dict.fromkeys(reasons.values()):
        gone = {row for row, why in reasons.items() if why == reason}
        inflight = inflight.reject([i for i, row in enumerate(left) if row in gone], stage, reason)
        left = [row for row in left if row not in gone]
    return inflight
