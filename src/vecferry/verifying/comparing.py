"""`compare`: what should be there against what is there, in memory bounded by the batch.

Three ways, chosen by themselves:

* **lockstep**: both sides come in one order; pairs are compared as they pass. Nothing is kept.
* **spool**: the orders differ, or something is missing or surplus. The expected records go to a temporary
  file on disk, and the target is looked up in it. Exact in every case, also with ids that come twice.
* **fetch**: the target may hold more than is expected (``allow_extra``) and can fetch by id: only the
  expected records are asked for.

The target is read ahead in threads of its own (`vecferry.verifying.reading`): one in lockstep, ``workers``
in the other two. One thread compares, so that what it finds does not depend on how many read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from vecferry.errors import ConfigurationError, JobStopped
from vecferry.model import CollectionSchema, RecordBatch, VectorField, encode_id
from vecferry.model.equality import LOSSY, Tolerance, tolerance_of
from vecferry.ports import Fetchable, Fields, ShouldStop, Sink, Source, never_stop
from vecferry.verifying import reading
from vecferry.verifying.reading import Reader, Share, side_by_side, skip
from vecferry.verifying.result import Verification
from vecferry.verifying.search import SearchCheck
from vecferry.verifying.spool import Overtaken, Spool
from vecferry.verifying.verifier import Verifier

_STRATEGIES = ("auto", "lockstep", "spool", "fetch")

Expected = Callable[[], Iterator[RecordBatch]]


class _OutOfStep(Exception):
    """The two sides do not come in one order."""


def compare(
    expected: Expected,
    expected_schema: CollectionSchema,
    target: Source,
    *,
    tolerance: Mapping[str, Tolerance] | None = None,
    directions: Collection[str] = (),
    fields: Fields = Fields.ALL,
    allow_extra: bool = False,
    sample_queries: int = 10,
    k: int = 10,
    min_overlap: float = 0.5,
    limit: int = 100,
    strategy: str = "auto",
    workers: int = 1,
    on_progress: Callable[[int], None] = lambda _: None,
    should_stop: ShouldStop = never_stop,
    state: Mapping[str, Any] | None = None,
    on_state: Callable[[dict[str, Any]], None] | None = None,
    state_every: float = 0.0,
    spool_folder: Path | None = None,
    spool_path: Path | None = None,
) -> Verification:
    """Compare the records that ``expected()`` yields with those of ``target``.

    Args:
        expected: begins the stream anew at each call; it may be called twice. Of an id that comes twice
            the last counts, as it does in a store.
        expected_schema: the vector fields that count, with the dtype the stream brings.
        target: read with `scan`; with `fetch` and `search` where it can.
        tolerance: by field, instead of what `tolerance_of` says from both schemas.
        directions: fields of which only the directions count, because the expected side lost the lengths.
        fields: whether texts and metadata count, and which vector fields.
        allow_extra: records that nobody expects are no difference (after an upsert).
        sample_queries, k: searches on the target compared with exact ones; 0 for none.
        min_overlap: a mean overlap below this fails. Approximate indexes are not held to more.
        limit: how many ids and differences are named, of each kind.
        strategy: ``auto``, ``lockstep``, ``spool`` or ``fetch``.
        workers: threads that read the target at once, in a spool (each a partition of it) and when it is
            asked by id. The result is the same for any number.
        on_progress: called with the number of expected records done.
        should_stop: asked after every batch; the result is then partial, with ``ok`` false.
        state, on_state: ``on_state`` gets a JSON value now and then; given back as ``state`` the
            comparison goes on there. Only a lockstep has such points; the others go on by the spool's file.
        state_every: seconds between two such points.
        spool_folder: for the temporary file; by default the system's.
        spool_path: a file that survives a killed process; with the same path again a comparison that was
            in the middle of a spool or of asking goes on there. It is removed at the end.

    Raises:
        ConfigurationError: for an unknown strategy, or no worker.
        RetryableError, CorruptDataError: as the two sides raise them.
    """
    if strategy not in _STRATEGIES:
        raise ConfigurationError(f"strategy is one of {', '.join(_STRATEGIES)}, not {strategy!r}")
    if workers < 1:
        raise ConfigurationError(f"workers={workers}: at least one thread has to read")
    return _Comparison(
        expected=expected,
        schema=expected_schema,
        target=target,
        rules=_rules(expected_schema, target, fields, directions) | dict(tolerance or {}),
        fields=fields,
        allow_extra=allow_extra,
        search=(sample_queries, k, min_overlap),
        limit=limit,
        workers=workers,
        hooks=(on_progress, should_stop, on_state),
        state_every=state_every,
        spool=(spool_folder, spool_path),
    ).run(strategy, state)


class _Comparison:
    """One call of `compare`."""

    def __init__(
        self,
        *,
        expected: Expected,
        schema: CollectionSchema,
        target: Source,
        rules: dict[str, Tolerance],
        fields: Fields,
        allow_extra: bool,
        search: tuple[int, int, float],
        limit: int,
        workers: int,
        hooks: tuple[Any, ...],
        state_every: float,
        spool: tuple[Path | None, Path | None],
    ) -> None:
        self.expected, self.schema, self.target, self.rules = expected, schema, target, rules
        self.fields = Fields(tuple(rules), fields.text, fields.metadata)
        self.allow_extra, self.limit = allow_extra, limit
        self.spool_folder, self.spool_path = spool
        self.state_every = state_every
        self.saved = time.monotonic()
        self.search = search
        self.on_progress, self.should_stop, self.on_state = hooks
        self.reader = Reader(target, self.fields, workers, self.should_stop)
        self.start = time.monotonic()
        self.stopped = False
        self._fresh()

    def _fresh(self) -> None:
        self.verifier = self._verifier()
        queries, k, _ = self.search
        whole = not self.allow_extra
        self.check = SearchCheck(self.schema, self.target, queries=queries, k=k, sees_all=whole)
        self.done = 0

    def _verifier(self) -> Verifier:
        return Verifier(self.schema, self.rules, fields=self.fields, limit=self.limit)

    def run(self, strategy: str, state: Mapping[str, Any] | None) -> Verification:
        if strategy == "fetch" or (strategy == "auto" and self.allow_extra):
            if not self.allow_extra:
                raise ConfigurationError("strategy='fetch' cannot see surplus records; use 'spool'")
            strategy = "fetch" if isinstance(self.target, Fetchable) else "spool"
        spooled = self.spool_path is not None and self.spool_path.exists()
        if strategy in ("auto", "lockstep") and not spooled:
            try:
                self._until_stopped(lambda: self._lockstep(state))
                return self._result("lockstep")
            except _OutOfStep:
                self._fresh()
        strategy = "fetch" if strategy == "fetch" else "spool"
        with Spool(self.schema, list(self.rules), self.spool_folder, path=self.spool_path) as spool:
            look = self._fetch if strategy == "fetch" else self._look_up
            for step in (self._fill, look):
                if not self.stopped:
                    self._until_stopped(partial(step, spool))
            spool.keep = self.stopped
        return self._result(strategy)

    def _until_stopped(self, step: Callable[[], None]) -> None:
        """A stop that ends a wait for a store is as good as one between two batches."""
        try:
            step()
        except JobStopped as stop:
            if type(stop) is not JobStopped or not self.should_stop():
                raise
            self.stopped = True

    def _result(self, strategy: str) -> Verification:
        proofs, notes = ([], ["stopped before the end"]) if self.stopped else self.check.proofs()
        _, _, least = self.search
        enough = all(proof.overlap >= least for proof in proofs)
        notes += [f"{n or 'vectors'}: {rule}" for n, rule in self.rules.items() if not rule.exact]
        return self.verifier.result(
            strategy,
            ok=enough and not self.stopped,
            search=tuple(proofs),
            notes=tuple(notes),
            seconds=time.monotonic() - self.start,
        )

    def _stop(self, rows: int) -> bool:
        self.done += rows
        self.on_progress(self.done)
        self.stopped = self.stopped or self.should_stop()
        return self.stopped

    # -- where to go on -----------------------------------------------------------------------

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self.saved < self.state_every:
            return False
        self.saved = now
        return True

    def _state(self) -> dict[str, Any]:
        return {"verifier": self.verifier.state(), "search": self.check.state(), "done": self.done}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.verifier.restore(state["verifier"])
        self.check.restore(state.get("search", {}))
        self.done = state["done"]

    # -- lockstep -----------------------------------------------------------------------------

    def _lockstep(self, state: Mapping[str, Any] | None) -> None:
        if state is not None:
            self._restore(state)
        found = self.reader.whole(state["after"] if state is not None else None)
        with closing(skip(self.expected(), self.done)) as expected, closing(found):
            for a, b in side_by_side(expected, found):
                if a is None or b is None or not _same_ids(a, b):
                    raise _OutOfStep
                self.check.observe(a)
                self.verifier.pair(a, b)
                stopped = self._stop(len(a))
                # The cursor of the target stands behind the batch that `b` is the end of.
                if self.on_state is not None and b.cursor is not None and (stopped or self._due()):
                    self.on_state({**self._state(), "after": b.cursor})
                if stopped:
                    return

    # -- spool --------------------------------------------------------------------------------

    def _fill(self, spool: Spool) -> None:
        """Put all that is expected into the spool, going on with what is there."""
        saved = spool.saved()
        if saved is not None:
            self._restore(saved)
            if saved["filled"]:
                return
        with closing(skip(self.expected(), self.done)) as expected:
            for batch in expected:
                self.check.observe(batch)
                spool.put(batch, text=self.fields.text, metadata=self.fields.metadata)
                if self._stop(len(batch)) or self._due():
                    self._save(spool, filled=False)
                if self.stopped:
                    return
        spool.index()
        self._save(spool)

    def _save(self, spool: Spool, *, filled: bool = True, **more: Any) -> None:
        spool.save({**self._state(), "filled": filled, **more})

    def _look_up(self, spool: Spool) -> None:
        """Look up every record of the target, several shares of it at once."""
        saved = (spool.saved() or {}).get("shares")
        shares = [Share.restore(s) for s in saved] if saved else self.reader.split(self.done)
        try:
            self._look_up_shares(spool, shares)
        except Overtaken:
            # Which of two copies came first is known only by the order of the whole.
            self.verifier = self._verifier()
            spool.forget()
            self._look_up_shares(spool, [Share()])
        for batch in () if self.stopped else spool.unseen(reading.BATCH):
            self.verifier.missing(batch)

    def _look_up_shares(self, spool: Spool, shares: Sequence[Share]) -> None:
        self._save_shares(spool, shares)
        with closing(self.reader.shares(shares)) as batches:
            for number, batch in batches:
                self._look_up_batch(spool, number, batch)
                shares[number].cursor = batch.cursor
                if self._stop(0) or self._due():
                    self._save_shares(spool, shares)
                if self.stopped:
                    return
        self.verifier.share = 0

    def _save_shares(self, spool: Spool, shares: Sequence[Share]) -> None:
        self._save(spool, shares=[share.state() for share in shares])

    def _look_up_batch(self, spool: Spool, share: int, batch: RecordBatch) -> None:
        taken = spool.take(batch, share)
        self.verifier.share = share
        if taken.first:
            whole = len(taken.first) == len(batch)
            found = batch if whole else batch.take(taken.first)
            self.verifier.pair(taken.kept, found, taken.forms)
        if taken.unknown and not self.allow_extra:
            self.verifier.surplus(batch.take(taken.unknown))
        if taken.again:
            self.verifier.doubled(batch.take(taken.again))

    # -- fetch --------------------------------------------------------------------------------

    def _fetch(self, spool: Spool) -> None:
        """Ask the target for every record that is expected, by id, several batches at once."""
        saved = spool.saved() or {}
        asked = spool.unseen(reading.BATCH, saved.get("after"))
        with closing(self.reader.fetched(asked)) as answers:
            for batch, found in answers:
                self._match(batch, found)
                if self._stop(0) or self._due():
                    self._save(spool, after=batch.cursor)
                if self.stopped:
                    return

    def _match(self, batch: RecordBatch, found: RecordBatch) -> None:
        where: dict[str, int] = {}
        again: list[int] = []
        for row, id_ in enumerate(found.id_list):
            if where.setdefault(encode_id(id_), row) != row:
                again.append(row)
        rows = [where.get(encode_id(id_), -1) for id_ in batch.id_list]
        there = [i for i, row in enumerate(rows) if row >= 0]
        gone = [i for i, row in enumerate(rows) if row < 0]
        if there:
            self.verifier.pair(batch.take(there), found.take([rows[i] for i in there]))
        if gone:
            self.verifier.missing(batch.take(gone))
        if again:
            self.verifier.doubled(found.take(again))


def _rules(
    schema: CollectionSchema, target: Source, fields: Fields, directions: Collection[str]
) -> dict[str, Tolerance]:
    """By field name: the tolerance that both schemas and the target's abilities imply."""
    have = target.describe()
    stored = {f.name: f for f in have.fields}
    able = target.capabilities() if isinstance(target, Sink) else None
    lossy = any(loss.kind == "vector" for loss in have.losses)
    rules: dict[str, Tolerance] = {}
    for f in schema.fields:
        if not fields.wants(f.name):
            continue
        other: VectorField = stored.get(f.name, f)
        rules[f.name] = (
            LOSSY
            if lossy
            else tolerance_of(
                f,
                other,
                normalizes=f.name in directions or (able is not None and other.metric in able.normalizes),
                keeps_norms=f.name not in directions and able is not None and able.keeps_norms,
            )
        )
    return rules


def _same_ids(a: RecordBatch, b: RecordBatch) -> bool:
    return a.ids == b.ids


__all__ = ["Expected", "compare"]
