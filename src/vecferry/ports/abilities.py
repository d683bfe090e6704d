"""Further abilities. Each is a protocol of its own: ask with ``isinstance``, never by a flag."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from vecferry.model import (
    CollectionSchema,
    Json,
    Loss,
    QueryVector,
    RecordBatch,
    RecordId,
    VectorRecord,
    Where,
)
from vecferry.model.vectors import Array
from vecferry.ports.sink import Sink, WriteMode
from vecferry.ports.source import Cursor, Fields, Source


@runtime_checkable
class Store(Source, Sink, Protocol):
    """A store that can be read and written: most are."""


@runtime_checkable
class Fetchable(Protocol):
    """Reads records by id."""

    def fetch(self, ids: Sequence[RecordId], *, fields: Fields = Fields.ALL) -> RecordBatch:
        """The records found, in the order of ``ids``; unknown ids are left out.

        May be called from several threads at once, and while a scan is open.
        """
        ...


@runtime_checkable
class Searchable(Protocol):
    """Finds the nearest records to a vector."""

    def search(
        self, vector: QueryVector, k: int = 10, *, field: str = "", where: Where | None = None
    ) -> list[VectorRecord]:
        """At most ``k`` records, best first, ``score`` set (higher is better, see `VectorRecord`).

        Args:
            vector: of the kind of the field.

        Raises:
            SchemaMismatchError: if the dimension is not that of the field.
        """
        ...


@runtime_checkable
class BatchSearchable(Searchable, Protocol):
    """Answers several queries at once for less than one by one (a file is read once for all)."""

    def search_many(
        self,
        vectors: Sequence[QueryVector],
        k: int = 10,
        *,
        field: str = "",
        where: Where | None = None,
        fields: Fields = Fields.ALL,
    ) -> list[list[VectorRecord]]:
        """What `search` returns for each of ``vectors``, in their order, with ``fields`` of each record."""
        ...


@runtime_checkable
class ExactSearchable(Searchable, Protocol):
    """Has an approximate index, and can search without it."""

    def search_exact(
        self, vectors: Sequence[QueryVector], k: int = 10, *, field: str = ""
    ) -> list[list[VectorRecord]]:
        """What `search` would return for each of ``vectors`` if the index were exact; only the ids and
        scores count."""
        ...


@runtime_checkable
class TextSearchable(Protocol):
    """Finds records to a text, embedding it by itself (a hosted index)."""

    def search_text(self, text: str, k: int = 10, *, where: Where | None = None) -> list[VectorRecord]:
        """At most ``k`` records, best first, ``score`` set."""
        ...


@runtime_checkable
class Deletable(Protocol):
    """Deletes records by id."""

    def delete(self, ids: Sequence[RecordId]) -> int:
        """Delete and return how many there were; unknown ids are no error."""
        ...


@runtime_checkable
class Rewindable(Protocol):
    """A sink that appends: it cannot upsert cheaply, but it can forget what came after a mark.

    The job keeps the mark beside the source's cursor, so that a resume rewinds the target to exactly
    the records the cursor stands behind.
    """

    def mark(self) -> Json:
        """Make all that was written durable (fsync) and name this point, as a JSON value."""
        ...

    def rewind(self, mark: Any) -> None:
        """Forget what was written after ``mark``; ``None`` forgets everything.

        Raises:
            CorruptDataError: if the staged data is shorter than the mark says.
        """
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """What an upsert leaves as it is in a record that does not bring it.

    ``text`` says so of the text, where a whole source has none; ``metadata`` of a key of the metadata.
    """

    text: bool = False
    metadata: Callable[[str], bool] = lambda _: False


@runtime_checkable
class KeepsOwn(Protocol):
    """Updates records in place: what the application keeps beside the source's data stays."""

    def kept(self, schema: CollectionSchema) -> Kept:
        """What an upsert of records of ``schema`` does not touch. Works before and after `prepare`."""
        ...


@runtime_checkable
class ChecksFilters(Protocol):
    """Knows which filters cannot match anything."""

    def check_filter(self, where: Any) -> None:
        """Look at a filter before a long job begins with it.

        Raises:
            PlanError: for a key that no record has, or a value that no value of the key compares with.
        """
        ...


@dataclass(frozen=True, slots=True)
class Version:
    """One state of a published collection. ``tag`` names it; ``live`` is the one that is seen.

    ``published`` is false for one that was built and never was live: its proof failed, or it is not ready.
    """

    tag: str
    live: bool
    created: str = ""
    count: int | None = None
    published: bool = True


@runtime_checkable
class Publishable(Protocol):
    """Builds a collection beside the one that is seen, and swaps the two in one step."""

    def stages(self, mode: WriteMode) -> bool:
        """Whether a job in this mode writes to a shadow (always for ``REPLACE``)."""
        ...

    def shadow(self, tag: str) -> Store:
        """The collection under construction for ``tag``: the same for the same tag, unseen by name."""
        ...

    def publish(self, tag: str) -> Version:
        """Let the shadow be the collection, atomically; the previous one is kept. Idempotent."""
        ...

    def discard(self, tag: str) -> None:
        """Delete an unpublished shadow. No error if there is none."""
        ...

    def versions(self) -> list[Version]:
        """The live version and those kept, newest first."""
        ...

    def rollback(self) -> Version:
        """Let the version before the live one be the collection again, atomically.

        Raises:
            NotFoundError: if none is kept.
        """
        ...

    def prune(self, keep: int = 0) -> list[str]:
        """Delete all but the live version and ``keep`` before it; returns the tags deleted."""
        ...


@runtime_checkable
class RollsTo(Publishable, Protocol):
    """Makes any version that is kept the collection again, an earlier or a later one."""

    def roll_to(self, tag: str) -> Version:
        """Let the version ``tag`` be the collection, atomically; the others are kept. Idempotent.

        Raises:
            NotFoundError: if it is not kept.
        """
        ...


@runtime_checkable
class Stamped(Protocol):
    """Tells one state of a collection from another without reading its records."""

    def stamp(self) -> dict[str, Any]:
        """What is known of the present state, as JSON values; equal stamps mean that nothing has changed.

        ``kind`` is ``"files"`` (number of files, bytes, newest modification time, inodes, a hash of
        the tail, over all files that the collection is made of) or ``"store"`` (whatever is cheap to
        ask). ``count`` is the store's own count where it is cheap. Raises nothing for a collection that is
        not there: ``{"kind": …, "absent": True}``.
        """
        ...


@runtime_checkable
class ConcurrentSink(Protocol):
    """A sink that takes records from several threads at once, each through a writer of its own."""

    def writers(self, want: int) -> Sequence[Sink]:
        """At most ``want`` further writers of the prepared collection; only `Sink.write` is called.

        Writes are idempotent and may overlap. A writer that has ``close()`` is closed before ``finish()``
        is called on the sink itself. An empty answer means that one writer is all there is.
        """
        ...


@runtime_checkable
class Placed(Protocol):
    """Knows the one name behind all names of its collection (an alias, ``localhost``, another URL)."""

    def place(self) -> str | None:
        """Equal for two stores exactly if they are the same collection; ``None`` where that is not
        known.
        """
        ...


@runtime_checkable
class ForeseesChanges(Protocol):
    """A sink that knows what it will change in given records."""

    def foresee(self, batch: RecordBatch) -> Iterable[Loss]:
        """What writing these records would change, each with a count and an example; the plan adds them up
        by kind and detail. The batch may lack its vectors."""
        ...


@runtime_checkable
class MapsIds(Protocol):
    """A sink that gives some ids another form, which the application sees."""

    def stored_ids(self, ids: Sequence[RecordId]) -> list[RecordId]:
        """The form that each id has in the target; the id itself where it is kept."""
        ...


@runtime_checkable
class Settling(Protocol):
    """A sink whose indexes are built by somebody else after the records were acknowledged."""

    def settle(self, seconds: float | None = None) -> float | None:
        """Wait until they are complete, for at most ``seconds``; returns the seconds waited, or ``None`` if
        they are not complete yet."""
        ...


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened after a cursor: records to upsert, ids to delete, and the cursor to go on from."""

    cursor: Cursor
    upserted: RecordBatch | None = None
    deleted: Sequence[RecordId] = field(default_factory=tuple)


@runtime_checkable
class ChangeTracking(Protocol):
    """Tells what was added, changed and deleted since a cursor."""

    def track(self) -> Cursor:
        """Begin to track (install what is needed) and return where the log stands now. Idempotent."""
        ...

    def changes(self, after: Cursor, *, batch_size: int = 1024) -> Iterator[Changes]:
        """All changes committed so far after the cursor, in order; ends when there are no more."""
        ...

    def untrack(self) -> None:
        """Remove what `track` installed. Idempotent."""
        ...


__all__ = [
    "Array",
    "BatchSearchable",
    "ChangeTracking",
    "Changes",
    "ChecksFilters",
    "ConcurrentSink",
    "Deletable",
    "ExactSearchable",
    "Fetchable",
    "ForeseesChanges",
    "KeepsOwn",
    "Kept",
    "MapsIds",
    "Placed",
    "Publishable",
    "Rewindable",
    "RollsTo",
    "Searchable",
    "Settling",
    "Stamped",
    "Store",
    "TextSearchable",
    "Version",
]
