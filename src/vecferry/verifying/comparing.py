"""`compare`: what should be there against what is there, in memory bounded by the batch.

Three ways, chosen by themselves:

* **merge**: both sides come in one order; pairs are compared as they pass (a merge join).
* **hash**: the orders differ, or something is missing or surplus. The expected records become hashes in an
  on-disk index, and every record of the target is looked up in it (a hash join). Vectors that must be equal
  bit for bit are hashed with the record, those compared within a tolerance are kept in a flat file. Exact
  in every case, also with ids that come twice. Only when something differs are both sides looked at once
  more, to name it.
* **fetch**: the target may hold more than is expected (``allow_extra``) and can fetch by id: only the
  expected records are asked for, in their order.

In each of them the distinct ids of both sides are counted. The target is read ahead in threads of its own
(`vecferry.verifying.reading`): one in a merge, ``workers`` in the other two. One thread compares, so that
what it finds does not depend on how many read.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from vecferry.errors import ConfigurationError, JobStopped
from vecferry.model import CollectionSchema, RecordBatch, RecordId, VectorField, encode_id
from vecferry.model.equality import LOSSY, Tolerance, tolerance_of
from vecferry.model.vectors import Array
from vecferry.ports import Fetchable, Fields, Kept, Searchable, ShouldStop, Sink, Source, never_stop
from vecferry.verifying import reading
from vecferry.verifying.digest import key_halves
from vecferry.verifying.hash_join import KEY_FIELDS, HashIndex, Runs, add_keys
from vecferry.verifying.reading import Reader, Share, side_by_side
from vecferry.verifying.result import Verification
from vecferry.verifying.search import SearchCheck
from vecferry.verifying.verifier import Differing, FieldRule, Overtaken, Verifier

_STRATEGIES = ("auto", "merge", "hash", "fetch")
_FORMER = {"lockstep": "merge", "spool": "hash"}

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
    kept: Kept | None = None,
    sample_queries: int = 10,
    k: int = 10,
    min_overlap: float = 0.5,
    reference: Source | None = None,
    limit: int = 100,
    strategy: str = "auto",
    workers: int = 1,
    on_progress: Callable[[int], None] = lambda _: None,
    should_stop: ShouldStop = never_stop,
    state: Mapping[str, Any] | None = None,
    on_state: Callable[[dict[str, Any]], None] | None = None,
    state_every: float = 0.0,
    folder: Path | None = None,
    on_account: Callable[[Verifier], None] = lambda _: None,
) -> Verification:
    """Compare the records that ``expected()`` yields with those of ``target``.

    Args:
        expected: begins the stream anew at each call. It is called again when the orders differ, and once
            more to name what differs. Of an id that comes twice the last counts in a hash join, and the
            comparison fails: a store keeps one of them.
        expected_schema: the vector fields that count, with the dtype the stream brings.
        target: read with `scan`; with `fetch` and `search` where it can.
        tolerance: by field, instead of what `tolerance_of` says from both schemas.
        directions: fields of which only the directions count, because the expected side lost the lengths.
        fields: whether texts and metadata count, and which vector fields.
        allow_extra: records that nobody expects are no difference (after an upsert).
        kept: what an upsert left as it was: keys of the target that the expected record lacks are then no
            difference. Asked by id or in one order only.
        sample_queries, k: searches on the target compared with exact ones; 0 for none.
        min_overlap: a mean overlap below this fails, unless an exact search on the target, or
            ``reference``, shows that the index is to blame: none is held to more than it can.
        reference: a collection that holds the same vectors, asked the same where the target finds little.
        limit: how many ids and differences are named, of each kind.
        strategy: ``auto``, ``merge``, ``hash`` or ``fetch``.
        workers: threads that read the target at once, in a hash join (each a partition of it) and when it
            is asked by id. The result is the same for any number.
        on_progress: called with the number of expected records done.
        should_stop: asked after every batch; the result is then partial, with ``ok`` false.
        state, on_state: ``on_state`` gets a JSON value now and then; given back as ``state`` the
            comparison goes on there with the target. The expected stream begins anew in any case.
        state_every: seconds between two such points.
        folder: for the files of a hash join, removed at the end. A hash join goes on only with the same
            folder; by default it is a temporary one.
        on_account: told the account of it at its end, from which a `Receipt` is made.

    Raises:
        ConfigurationError: for an unknown strategy, or no worker.
        RetryableError, CorruptDataError: as the two sides raise them.
    """
    if strategy in _FORMER:
        warnings.warn(
            f"strategy={strategy!r} is now called {_FORMER[strategy]!r}", DeprecationWarning, stacklevel=2
        )
        strategy = _FORMER[strategy]
    if strategy not in _STRATEGIES:
        raise ConfigurationError(f"strategy is one of {', '.join(_STRATEGIES)}, not {strategy!r}")
    if workers < 1:
        raise ConfigurationError(f"workers={workers}: at least one thread has to read")
    rules = field_rules(expected_schema, target, fields, directions, tolerance or {})
    with ExitStack() as stack:
        if folder is None:
            made = tempfile.TemporaryDirectory(prefix="vecferry-verify-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
        comparison = _Comparison(
            expected=expected,
            schema=expected_schema,
            target=target,
            rules=rules,
            fields=fields,
            allow_extra=allow_extra,
            kept=kept,
            search=(sample_queries, k, min_overlap),
            reference=reference if isinstance(reference, Searchable) else None,
            limit=limit,
            workers=workers,
            on_progress=on_progress,
            should_stop=should_stop,
            on_state=on_state,
            state_every=state_every,
            folder=folder,
        )
        result = comparison.run(strategy, state)
        on_account(comparison.verifier)
        return result


class _Comparison:
    """One call of `compare`."""

    def __init__(
        self,
        *,
        expected: Expected,
        schema: CollectionSchema,
        target: Source,
        rules: dict[str, FieldRule],
        fields: Fields,
        allow_extra: bool,
        kept: Kept | None,
        search: tuple[int, int, float],
        reference: Searchable | None,
        limit: int,
        workers: int,
        on_progress: Callable[[int], None],
        should_stop: ShouldStop,
        on_state: Callable[[dict[str, Any]], None] | None,
        state_every: float,
        folder: Path,
    ) -> None:
        self.expected, self.schema, self.target, self.rules = expected, schema, target, rules
        self.fields = Fields(tuple(rules), fields.text, fields.metadata)
        self.allow_extra, self.limit, self.folder = allow_extra, limit, folder
        self.state_every = state_every
        self.saved = time.monotonic()
        self.search, self.reference, self.kept = search, reference, kept
        self.on_progress, self.should_stop, self.on_state = on_progress, should_stop, on_state
        self.reader = Reader(target, self.fields, workers, self.should_stop)
        self.start = time.monotonic()
        self.stopped = False
        queries, k, _ = search
        self.check = SearchCheck(schema, target, queries=queries, k=k, sees_all=not allow_extra)
        self._fresh()

    def _fresh(self) -> None:
        self.verifier = Verifier(
            self.schema, self.rules, fields=self.fields, limit=self.limit, kept=self.kept
        )
        self.check.begin()
        self.done = 0
        self.collided: tuple[int, list[int]] = (0, [])
        self.target_ids = 0

    def _emptied(self) -> Path:
        """The folder, without what another comparison left there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder

    def run(self, strategy: str, state: Mapping[str, Any] | None) -> Verification:
        if strategy == "fetch" or (strategy == "auto" and self.allow_extra):
            if not self.allow_extra:
                raise ConfigurationError("strategy='fetch' cannot see surplus records; use 'hash'")
            strategy = "fetch" if isinstance(self.target, Fetchable) else "hash"
        begun = state.get("strategy") if state is not None else None
        if strategy == "auto":
            strategy = "hash" if begun == "hash" else "merge"
            try:
                return self._run(strategy, state)
            except _OutOfStep:
                self._fresh()
                self._save({"strategy": "hash"})
                return self._run("hash", None)
        try:
            return self._run(strategy, state if begun == strategy else None)
        except _OutOfStep:
            self._fresh()
            return self._run("hash", None)

    def _run(self, strategy: str, state: Mapping[str, Any] | None) -> Verification:
        ways = {"merge": self._merge, "hash": self._hash, "fetch": self._fetch}
        try:
            ways[strategy](state)
        except JobStopped as stop:
            # A stop that ends a wait for a store is as good as one between two batches.
            if type(stop) is not JobStopped or not self.should_stop():
                raise
            self.stopped = True
        result = self._result(strategy)
        if not self.stopped:
            shutil.rmtree(self.folder, ignore_errors=True)
        return result

    def _result(self, strategy: str) -> Verification:
        proofs, notes = ([], ["stopped before the end"]) if self.stopped else self.check.proofs()
        _, _, least = self.search
        enough = True
        for proof in proofs if not self.stopped else ():
            if proof.overlap < least:
                excuse = self.check.excuse(proof, least, self.reference)
                enough &= excuse is not None
                notes += [excuse] if excuse else []
        notes += [f"{n or 'vectors'}: {r.tolerance}" for n, r in self.rules.items() if not r.exact]
        count, rows = self.collided
        if count:
            notes.append(
                f"{count:,} expected record(s) have the id of another, and a store keeps one of each: give "
                "each its own id, or pass dedupe='id' to keep the first of each"
            )
        return self.verifier.result(
            strategy,
            ok=enough and not self.stopped and not count,
            expected_ids=self.verifier.expected.documents.count - count,
            target_ids=self.target_ids,
            collided=tuple(map(encode_id, self._ids_at(rows))),
            collided_count=count,
            search=tuple(proofs),
            notes=tuple(notes),
            seconds=time.monotonic() - self.start,
        )

    # -- streams and states -------------------------------------------------------------------

    def _stream(self, skip: int, runs: Runs) -> Generator[RecordBatch, None, None]:
        """The expected records behind the first ``skip``, whose ids are counted all the same."""
        with _closing(self.expected()) as stream:
            for batch in stream:
                passed = min(skip, len(batch))
                skip -= passed
                add_keys(runs, key_halves(batch.ids[:passed]))
                if passed < len(batch):
                    yield batch.slice(passed, len(batch))

    def _ids_at(self, rows: Sequence[int]) -> list[RecordId]:
        """The ids of the given rows of the expected stream."""
        return [id_ for _, batch in self._batches_at(rows) for id_ in batch.id_list]

    def _batches_at(self, rows: Sequence[int]) -> Iterator[tuple[Array, RecordBatch]]:
        """A second look at the expected stream: the given rows, ascending, with their records."""
        wanted, start = np.array(rows, np.int64), 0
        if not len(wanted):
            return
        with _closing(self.expected()) as stream:
            for batch in stream:
                end = start + len(batch)
                some = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, end)]
                if len(some):
                    yield some, batch.take(some - start)
                start = end
                if start > wanted[-1]:
                    return

    def _stop(self, rows: int) -> bool:
        self.done += rows
        self.on_progress(self.done)
        self.stopped = self.stopped or self.should_stop()
        return self.stopped

    def _due(self) -> bool:
        return self.stopped or time.monotonic() - self.saved >= self.state_every

    def _save(self, value: Mapping[str, Any]) -> None:
        if self.on_state is not None:
            self.on_state(dict(value))
        self.saved = time.monotonic()

    def _state(self, strategy: str) -> dict[str, Any]:
        account = {"verifier": self.verifier.state(), "search": self.check.state(), "done": self.done}
        return {"strategy": strategy, "target_ids": self.target_ids, **account}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.verifier.restore(state["verifier"])
        self.check.restore(state["search"])
        self.done, self.target_ids = state["done"], state["target_ids"]

    # -- merge join ---------------------------------------------------------------------------

    def _merge(self, state: Mapping[str, Any] | None) -> None:
        if state is not None:
            self._restore(state)
        runs = Runs(KEY_FIELDS, self._emptied() / "ids")
        found = self.reader.whole(state["after"] if state is not None else None)
        with closing(self._stream(self.done, runs)) as expected, closing(found):
            for a, b in side_by_side(expected, found):
                if a is None or b is None or a.ids != b.ids:
                    raise _OutOfStep
                self.check.observe(a)
                add_keys(runs, self.verifier.pair(a, b).keys)
                stopped = self._stop(len(a))
                # The cursor of the target stands behind the batch that `b` is the end of.
                if self.on_state is not None and b.cursor is not None and self._due():
                    self._save({**self._state("merge"), "after": b.cursor})
                if stopped:
                    return
        self.collided = runs.collided(self.limit)
        self.target_ids = len(runs) - self.collided[0]

    # -- hash join ----------------------------------------------------------------------------

    def _hash(self, state: Mapping[str, Any] | None) -> None:
        index = self._reopened(state)
        if index is None:
            index = self._filled()
            state = None
        if self.stopped:
            index.close()
            return
        surplus = Runs(KEY_FIELDS, self.folder / "surplus", state["surplus"] if state else ())
        saved = state["shares"] if state else None
        shares = [Share.restore(s) for s in saved] if saved else self.reader.split(self.done)
        try:
            self._look_up(index, shares, surplus)
        except Overtaken:
            # Which of two copies came first is known only by the order of the whole.
            self.verifier.forget_target()
            index.forget()
            surplus = Runs(KEY_FIELDS, self.folder / "surplus")
            self._look_up(index, [Share()], surplus)
        if not self.stopped:
            self._account(index, surplus)
            index.remove()

    def _reopened(self, state: Mapping[str, Any] | None) -> HashIndex | None:
        """The index of a comparison that was stopped or killed, if all of it is there."""
        if state is None or "index" not in state:
            return None
        try:
            index = self._index(state["index"])
        except (OSError, ValueError):
            return None
        self._restore(state)
        self.collided = (state["collided"][0], list(state["collided"][1]))
        index.forget([share["rows"] for share in state["shares"]])
        return index

    def _index(self, token: Mapping[str, Any] | None = None) -> HashIndex:
        exact = [name for name, rule in self.rules.items() if rule.exact]
        tolerant = [name for name, rule in self.rules.items() if not rule.exact]
        return HashIndex(self.folder / "index", exact, tolerant, token=token)

    def _filled(self) -> HashIndex:
        """An index of all that is expected."""
        self._fresh()
        self._emptied()
        index = self._index()
        with _closing(self.expected()) as expected:
            for batch in expected:
                if not len(batch):
                    continue
                self.check.observe(batch)
                self.verifier.fill(batch, index)
                if self._stop(len(batch)):
                    return index
        self.collided = index.seal(self.limit)
        return index

    def _look_up(self, index: HashIndex, shares: Sequence[Share], surplus: Runs) -> None:
        """Look up every record of the target, several shares of it at once."""
        with closing(self.reader.shares(shares)) as batches:
            for number, batch in batches:
                share = shares[number]
                self.verifier.share = number
                new = self.verifier.look_up(batch, index, share.rows, allow_extra=self.allow_extra)
                add_keys(surplus, new)
                share.cursor, share.rows = batch.cursor, share.rows + len(batch)
                self._stop(0)
                if self.on_state is not None and self._due():
                    self._save_shares(index, shares, surplus)
                if self.stopped:
                    return
        self.verifier.share = 0

    def _save_shares(self, index: HashIndex, shares: Sequence[Share], surplus: Runs) -> None:
        index.flush()
        told = {"collided": self.collided, "surplus": surplus.spilled()}
        places = {"shares": [share.state() for share in shares], "index": index.token}
        self._save({**self._state("hash"), **told, **places})

    def _account(self, index: HashIndex, surplus: Runs) -> None:
        """What was found nowhere, the distinct ids, and a second look at what differs."""
        missing, rows = index.unmarked(self.limit)
        self.target_ids = len(index) - missing + len(surplus) - surplus.collided(0)[0]
        unexplained = self.verifier.unexplained()
        self.verifier.name_missing(missing, [])
        wanted = sorted({*rows, *unexplained})
        gone = set(rows)
        for some, batch in self._batches_at(wanted):
            ids = batch.id_list
            lost = [i for i, row in enumerate(some.tolist()) if row in gone]
            self.verifier.name_missing(0, [encode_id(ids[i]) for i in lost])
            other = [i for i, row in enumerate(some.tolist()) if row in unexplained]
            if other:
                self._explain(batch.take(other), [unexplained[row] for row in some[other].tolist()])

    def _explain(self, batch: RecordBatch, known: Sequence[Differing]) -> None:
        ids = batch.id_list
        found = self._found(ids)
        for row, differing in enumerate(known):
            if encode_id(ids[row]) != differing.id:
                continue  # the source has changed meanwhile
            copies = found.get(differing.id)
            self.verifier.explain(differing, batch.take([row]), copies[0] if copies else None)

    def _found(self, ids: Sequence[RecordId]) -> dict[str, list[RecordBatch]]:
        """What the target has of these ids, each record by itself."""
        wanted = set(map(encode_id, ids))
        found: dict[str, list[RecordBatch]] = {}
        for batch in self.reader.again(ids):
            for row, id_ in enumerate(batch.id_list):
                key = encode_id(id_)
                if key in wanted:
                    found.setdefault(key, []).append(batch.take([row]))
        return found

    # -- fetch --------------------------------------------------------------------------------

    def _fetch(self, state: Mapping[str, Any] | None) -> None:
        """Ask the target for every record that is expected, by id, several batches at once."""
        if state is not None:
            self._restore(state)
        runs = Runs(KEY_FIELDS, self._emptied() / "ids")
        expected = self._stream(self.done, runs)
        asked = _evenly(expected, reading.BATCH)
        with closing(expected), closing(self.reader.fetched(asked)) as answers:
            for batch, found in answers:
                self.check.observe(batch)
                add_keys(runs, key_halves(batch.ids))
                self._match(batch, found)
                self._stop(len(batch))
                if self.on_state is not None and self._due():
                    self._save(self._state("fetch"))
                if self.stopped:
                    return
        self.collided = runs.collided(self.limit)
        self.target_ids -= self.collided[0]

    def _match(self, batch: RecordBatch, found: RecordBatch) -> None:
        where: dict[str, int] = {}
        again: list[int] = []
        for row, id_ in enumerate(found.id_list):
            if where.setdefault(encode_id(id_), row) != row:
                again.append(row)
        rows = [where.get(encode_id(id_), -1) for id_ in batch.id_list]
        there = [i for i, row in enumerate(rows) if row >= 0]
        gone = [i for i, row in enumerate(rows) if row < 0]
        self.target_ids += len(there)
        if there:
            self.verifier.pair(batch.take(there), found.take([rows[i] for i in there]))
        if gone:
            self.verifier.missing(batch.take(gone))
        if again:
            self.verifier.doubled(found.take(again))


@contextmanager
def _closing(stream: Iterator[RecordBatch]) -> Generator[Iterator[RecordBatch], None, None]:
    try:
        yield stream
    finally:
        close = getattr(stream, "close", None)
        if close is not None:
            close()


def _evenly(stream: Iterator[RecordBatch], size: int) -> Iterator[RecordBatch]:
    """The records in batches of ``size``, the last one smaller."""
    held: list[RecordBatch] = []
    for batch in stream:
        held.append(batch)
        while sum(map(len, held)) >= size:
            whole = RecordBatch.concat(held)
            yield whole.slice(0, size)
            held = [whole.slice(size, len(whole))] if len(whole) > size else []
    if held:
        yield RecordBatch.concat(held)


def differing(
    expected: RecordBatch,
    found: RecordBatch,
    rules: Mapping[str, FieldRule],
    *,
    kept: Kept | None = None,
    text: bool = True,
) -> list[int]:
    """The rows in which two batches of the same ids in the same order differ, ascending."""
    verifier = Verifier(CollectionSchema(), rules, fields=Fields(text=text), kept=kept, limit=0)
    return verifier.differing(expected, found)


def field_rules(
    schema: CollectionSchema,
    target: Source,
    fields: Fields = Fields.ALL,
    directions: Collection[str] = (),
    given: Mapping[str, Tolerance] = MappingProxyType({}),
) -> dict[str, FieldRule]:
    """By field name: the tolerance that both schemas and the target's abilities imply."""
    have = target.describe()
    stored = {f.name: f for f in have.fields}
    able = target.capabilities() if isinstance(target, Sink) else None
    lossy = any(loss.kind == "vector" for loss in have.losses)
    rules: dict[str, FieldRule] = {}
    for f in schema.fields:
        if not fields.wants(f.name):
            continue
        other: VectorField = stored.get(f.name, f)
        rule = (
            LOSSY
            if lossy
            else tolerance_of(
                f,
                other,
                normalizes=f.name in directions or (able is not None and other.metric in able.normalizes),
                keeps_norms=f.name not in directions and able is not None and able.keeps_norms,
            )
        )
        rule = given.get(f.name, rule)
        same = f.dtype == other.dtype or not rule.exact
        rules[f.name] = FieldRule(rule, other.dtype.numpy if same else "float32")
    return rules


__all__ = ["Expected", "compare", "differing", "field_rules"]
