"""`sync`: what was added, changed and deleted in the source since the last run, into the target."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vecferry.connecting import connect
from vecferry.core.home import home
from vecferry.core.retry import RetryPolicy, reopened
from vecferry.errors import ConfigurationError, JobStopped, PlanError, UnsupportedError
from vecferry.model import RecordBatch, RecordId, Where, encode_id, from_json, id_key, to_json
from vecferry.model.filters import lookup, predicate
from vecferry.ports import (
    ChangeTracking,
    Cursor,
    Embedder,
    Fetchable,
    Fields,
    OnProgress,
    Progress,
    ShouldStop,
    ignore_progress,
    never_stop,
)
from vecferry.serving.applying import Change, Target
from vecferry.serving.counters import Counters, Listener
from vecferry.serving.dual import DualWriter
from vecferry.serving.syncstate import SyncState, content_digests


@runtime_checkable
class Announcing(Protocol):
    """A source with a journal that can be waited for, and that forgets what has been read."""

    def wait_for_changes(self, seconds: float) -> bool:
        """Wait until something changes; false after ``seconds``."""
        ...

    def forget_changes(self, before: Cursor) -> int:
        """Forget the entries before the cursor; returns how many."""
        ...


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a run did. ``changed`` counts new and changed records together where ``by`` cannot tell."""

    by: str
    added: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    seconds: float = 0.0

    @property
    def quiet(self) -> bool:
        """Whether there was nothing to do."""
        return not (self.added or self.changed or self.deleted)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.added:,} added, {self.changed:,} changed, {self.deleted:,} deleted, "
            f"{self.unchanged:,} unchanged, by {self.by} in {self.seconds:.1f} s"
        )


def sync(
    source: Any,
    target: Any,
    *,
    by: str = "digest",
    state: Path | str | None = None,
    where: Where | None = None,
    transform: Change | None = None,
    embed: Any = None,
    long_text: str | None = None,
    chunk_size: int | None = None,
    chunk_overlap: int | None = None,
    embedder: Embedder | None = None,
    writer: DualWriter | None = None,
    deletes: bool = True,
    max_deletes: float = 0.5,
    overlap: float = 0.0,
    forget: bool = False,
    batch_size: int = 1024,
    retry: RetryPolicy | None = None,
    should_stop: ShouldStop = never_stop,
    on_progress: OnProgress = ignore_progress,
    listeners: Sequence[Listener] = (),
) -> SyncReport:
    """Bring the target up to the source. Run it again and again; a run that was killed is made up for.

    Args:
        source, target: collections, stores or URLs. The target exists (migrate first) and can delete.
        by: how changes are found:

            - ``"digest"``: the whole source is read, and what differs from the last run is written. The
              first run compares with the target itself, so that after a migration it writes little.
            - ``"column:NAME"``: only records whose metadata ``NAME`` (a time or a number that grows with
              every change) is not below the highest seen. Ids are read in full to find deletions.
            - ``"journal"``: the source tells (`ChangeTracking`). The first run begins to track and compares
              once; `untrack` ends it.
        state: the file that remembers; by default one for this pair below `vecferry.core.home.home`.
        where, transform, embed, long_text, chunk_size, chunk_overlap: as the migration had them. A target
            that holds split texts is only brought up by a call that splits, too.
        embedder: another name for ``embed``.
        writer: a `DualWriter` on the two: then live writes through it are never overtaken by this copy.
        deletes: whether what is gone from the source goes from the target too.
        max_deletes: refuse to delete a greater share of the target than this. (A journal is followed.)
        overlap: how far below the highest value a column is read again, in its unit (seconds for times),
            for changes that were committed late.
        forget: let the source's journal forget what this target has read. Only for its one reader.

    Raises:
        PlanError: if the two do not fit, or ``max_deletes`` is exceeded (the rest is done then).
        JobLockedError: if another process syncs the two.
        JobStopped: when ``should_stop`` said so.
    """
    origin, goal = _store(source), _store(target)
    path = state if state is not None else _state_path(source, target, where, by)
    retry = retry or RetryPolicy()
    options = {"long_text": long_text, "chunk_size": chunk_size, "chunk_overlap": chunk_overlap}
    sink = Target(
        goal,
        origin.describe(),
        embed=embed if embed is not None else embedder,
        options={name: value for name, value in options.items() if value is not None},
        writer=writer,
        retry=retry,
        should_stop=should_stop,
    )
    with closing(sink), SyncState(path) as memory:
        job = _Job(origin, sink, memory, retry, where, transform, batch_size, should_stop, on_progress)
        job.deletes, job.max_deletes, job.overlap, job.forget = deletes, max_deletes, overlap, forget
        report = job.run(by)
    figures = Counters(*listeners)
    for action in ("added", "changed", "deleted"):
        if getattr(report, action):
            figures.count("synced", getattr(report, action), action=action)
    return report


def untrack(
    source: Any, target: Any, *, state: Path | str | None = None, where: Where | None = None
) -> None:
    """Remove from the source what ``by="journal"`` installed, and forget its cursor. Twice is as once."""
    origin = _store(source)
    if not isinstance(origin, ChangeTracking):
        raise UnsupportedError("the source tracks no changes, so there is nothing to remove")
    origin.untrack()
    path = Path(state if state is not None else _state_path(source, target, where, "journal"))
    for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        name.unlink(missing_ok=True)


@dataclass
class _Job:
    """One run."""

    source: Any
    target: Target
    state: SyncState
    retry: RetryPolicy
    where: Where | None
    transform: Change | None
    batch_size: int
    should_stop: ShouldStop
    on_progress: OnProgress
    deletes: bool = True
    max_deletes: float = 0.5
    overlap: float = 0.0
    forget: bool = False
    report: SyncReport = field(default_factory=lambda: SyncReport(""))
    start: float = field(default_factory=time.monotonic)

    @property
    def makes_ids(self) -> bool:
        """Whether a transform or a splitter gives the target other ids than the source has."""
        return self.transform is not None or self.target.splits

    def run(self, by: str) -> SyncReport:
        kind, _, name = by.partition(":")
        self.report = SyncReport(by)
        if kind not in ("digest", "column", "journal") or (kind == "column") is not bool(name):
            raise ConfigurationError(f'by={by!r}: choose "digest", "column:NAME" or "journal"')
        if not self.state.get("complete"):
            self.target.check_chunks()
        self.state.unmark()
        if self.target.store.count() < self.state.known() / 2:  # emptied, or made anew
            self.state.start_over()
        if kind == "digest":
            self.by_digest()
        elif kind == "column":
            self.by_column(name)
        else:
            self.by_journal()
        self.target.finish()
        return replace(self.report, seconds=time.monotonic() - self.start)

    # -- by content -----------------------------------------------------------------------------

    def by_digest(self) -> None:
        run = self.next_run()
        first = not self.state.get("complete")
        for batch in self.batches(self.where):
            keys = [id_key(i) for i in batch.id_list]
            digests = content_digests(batch)
            self.write_differing(batch, self.state.digests(keys), digests, first=first)
            self.state.saw(batch.id_list, keys, digests, run)
        if self.deletes:
            self.delete_missing(run, strangers=first and self.where is None)
        self.target.finish()
        self.state.purge()
        self.state.set("finished", run)
        self.state.set("complete", True)

    def next_run(self) -> int:
        """This run's number. What an unfinished one wrote may not have lasted: it is compared again."""
        run = int(self.state.get("run") or 0) + 1
        self.state.set("run", run)
        self.state.distrust(int(self.state.get("finished") or 0))
        return run

    def write_differing(
        self, batch: RecordBatch, known: Sequence[bytes | None], digests: Sequence[bytes], *, first: bool
    ) -> None:
        rows = [row for row, digest in enumerate(digests) if known[row] != digest]
        unsure = [row for row in rows if known[row] == b"" or (first and known[row] is None)]
        lacking, other = self.target.differing(batch.take(unsure)) if unsure else ([], [])
        sure = [row for row in rows if row not in set(unsure)]
        added = [unsure[i] for i in lacking] + [row for row in sure if known[row] is None]
        changed = [unsure[i] for i in other] + [row for row in sure if known[row] is not None]
        self.target.upsert(batch.take(sorted(added + changed)))
        unchanged = len(batch) - len(added) - len(changed)
        self.tell(added=len(added), changed=len(changed), unchanged=unchanged)

    def delete_missing(self, run: int, *, strangers: bool) -> None:
        """Delete what is remembered but was not met; with ``strangers`` also what only the target has."""
        for ids in self.state.unseen(run):
            self.state.mark_deleted(self.really_gone(ids))
        if strangers:
            for batch in self.scan(self.target.store, Fields.IDS):
                known = self.state.digests([id_key(i) for i in batch.id_list])
                unknown = [id_ for id_, digest in zip(batch.id_list, known, strict=True) if digest is None]
                self.state.mark_deleted(self.really_gone(unknown))
        self.target.finish()  # if the deletions are refused, the rest is done
        total = self.target.store.count() if strangers else self.state.known()
        self.refuse_many(self.state.count_marked(), total)
        for ids in self.state.marked():
            self.remove(ids)

    # -- by a column ----------------------------------------------------------------------------

    def by_column(self, name: str) -> None:
        kept = self.state.get(f"high:{name}")
        high = from_json(*kept)["value"] if kept else None
        where = self.where
        if high is not None:
            since: Where = {name: {"$gte": _earlier(name, high, self.overlap)}}
            where = {"$and": [where, since]} if where else since
        top = high
        for batch in self.batches(where):
            values = [lookup(metadata, name, None) for metadata in batch.metadata_list]
            if any(value is None for value in values):
                raise PlanError(f"a record has no {name!r}, so a sync by it would miss it; use by='digest'")
            self.target.upsert(batch)
            self.tell(changed=len(batch))
            top = _highest(name, [top, *values] if top is not None else values)
        if self.deletes:
            self.delete_by_ids()
        self.target.finish()
        self.state.purge()
        if top is not None:
            self.state.set(f"high:{name}", to_json({"value": top}))

    def delete_by_ids(self) -> None:
        """Read the ids of both sides; delete what only the target has.

        With a filter the target may hold others' records too: only what came from here is deleted.
        """
        run = self.next_run()
        fields = Fields.IDS if self.where is None else Fields.NO_VECTORS
        if self.makes_ids:  # out of whole records
            fields = Fields.ALL
        for batch in self.batches(self.where, fields=fields):
            self.remember(batch, run)
        self.delete_missing(run, strangers=self.where is None)

    # -- by journal -----------------------------------------------------------------------------

    def by_journal(self) -> None:
        if not isinstance(self.source, ChangeTracking):
            raise UnsupportedError("the source does not track changes; use by='digest' or by='column:NAME'")
        # The cursor is kept before anything is compared: what happens meanwhile comes again below.
        cursor = self.state.get("cursor")
        if cursor is None:
            cursor = self.source.track()
            self.state.set("cursor", cursor)
        if not self.state.get("complete"):
            self.by_digest()
        run = int(self.state.get("finished"))
        for changes in self.source.changes(cursor, batch_size=self.batch_size):
            gone = list(changes.deleted)
            if changes.upserted is not None and len(changes.upserted):
                passing, filtered = self.filtered(changes.upserted)
                batch = self.prepared(passing)
                self.target.upsert(batch)
                self.remember(batch, run)
                self.tell(changed=len(batch))
                gone += filtered
            if gone and self.deletes:
                self.remove(gone)
                self.state.forget(gone)
            self.target.finish()
            self.state.set("cursor", changes.cursor)
            self.check_stop()
        if self.forget and isinstance(self.source, Announcing):
            self.source.forget_changes(self.state.get("cursor"))

    def filtered(self, batch: RecordBatch) -> tuple[RecordBatch, list[RecordId]]:
        """What passes the filter, and the ids of what did so before and does not any more."""
        where = self.where
        if where is None:
            return batch, []
        holds = predicate(where)
        passes = [holds(metadata) for metadata in batch.metadata_list]
        others = batch.take([row for row, passed in enumerate(passes) if not passed]).id_list
        known = self.state.digests([id_key(i) for i in others])
        left = [id_ for id_, digest in zip(others, known, strict=True) if digest is not None]
        return batch.take([row for row, passed in enumerate(passes) if passed]), left

    # -- common ---------------------------------------------------------------------------------

    def batches(self, where: Where | None, fields: Fields = Fields.ALL) -> Iterator[RecordBatch]:
        for batch in self.scan(self.source, fields, where):
            self.check_stop()
            if len(batch):
                yield self.prepared(batch)

    def scan(self, store: Any, fields: Fields, where: Where | None = None) -> Iterator[RecordBatch]:
        """All batches, the scan opened again at its last good cursor after a passing fault."""

        def open_stream(after: Cursor | None, size: int) -> Iterator[RecordBatch]:
            batches: Iterator[RecordBatch] = store.scan(
                after=after, batch_size=size, fields=fields, where=where
            )
            return batches

        backoff = self.retry.backoff(should_stop=self.should_stop)
        return reopened(open_stream, None, self.batch_size, backoff)

    def prepared(self, batch: RecordBatch) -> RecordBatch:
        changed = self.transform(batch) if self.transform else batch
        return self.target.adapt(changed)

    def remember(self, batch: RecordBatch, run: int) -> None:
        """That these ids were there, whatever they hold."""
        keys = [id_key(i) for i in batch.id_list]
        self.state.saw(batch.id_list, keys, [b""] * len(keys), run)

    def really_gone(self, ids: list[RecordId]) -> list[RecordId]:
        """Without those that came while the source was read. (A transform makes ids of its own.)"""
        if not ids or self.makes_ids or self.where or not isinstance(self.source, Fetchable):
            return ids
        source = self.source
        found = self.retry.call(lambda: source.fetch(ids, fields=Fields.IDS))
        there = {encode_id(id_) for id_ in found.id_list}
        return [id_ for id_ in ids if encode_id(id_) not in there]

    def remove(self, ids: list[RecordId]) -> None:
        self.target.delete(ids)
        self.tell(deleted=len(ids))

    def refuse_many(self, n: int, total: int) -> None:
        if n > (max(1, self.max_deletes * total) if self.max_deletes else 0):
            raise PlanError(
                f"{n:,} of {total:,} records would be deleted from the target, which is more than "
                f"max_deletes={self.max_deletes}; look at the source; if it is right pass max_deletes=1.0"
            )

    def tell(self, **more: int) -> None:
        sums = {name: getattr(self.report, name) + n for name, n in more.items()}
        self.report = replace(self.report, **sums)
        done = self.report.added + self.report.changed + self.report.unchanged
        seconds = time.monotonic() - self.start
        written = self.report.added + self.report.changed
        self.on_progress(Progress("sync", done, None, written, seconds=seconds))

    def check_stop(self) -> None:
        if self.should_stop():
            raise JobStopped("stopped; the same call goes on")


def _earlier(name: str, value: Any, overlap: float) -> Any:
    if not overlap:
        return value
    try:
        return value - timedelta(seconds=overlap) if hasattr(value, "isoformat") else value - overlap
    except TypeError:
        raise PlanError(
            f"{name!r} holds {type(value).__name__} values such as {value!r}, which overlap= cannot go "
            "back from; leave it out, or use a column of times or numbers"
        ) from None


def _highest(name: str, values: Sequence[Any]) -> Any:
    try:
        return max(values, default=None)
    except TypeError as error:
        raise PlanError(f"values of {name!r} do not compare ({error}); use by='digest'") from None


def _store(what: Any) -> Any:
    collection = connect(what)
    return collection.store


def _state_path(source: Any, target: Any, where: Where | None, by: str) -> Path:
    names = [side if isinstance(side, str) else connect(side).url for side in (source, target)]
    text = repr([*names, where, by.partition(":")[0]])
    return home() / "sync" / f"{blake2b(text.encode(), digest_size=12).hexdigest()}.sqlite3"
