"""What a store promises when it is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from vecferry.model import CollectionSchema, RecordBatch, Where

Cursor: TypeAlias = Any
"""A JSON value that only the store that made it understands."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A fixed, disjoint share of a collection.

    ``bounds`` is a JSON value: written to the job's state at the first start and handed back, equal,
    at every resume. ``count`` is a guess for progress bars.
    """

    key: str
    bounds: Any = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Fields:
    """Which columns a scan reads. ``vectors`` is true (all), false (none) or the names wanted."""

    vectors: bool | tuple[str, ...] = True
    text: bool = True
    metadata: bool = True

    ALL: ClassVar[Fields]
    IDS: ClassVar[Fields]
    NO_VECTORS: ClassVar[Fields]

    def wants(self, name: str) -> bool:
        """Whether the vector field ``name`` is wanted."""
        return self.vectors if isinstance(self.vectors, bool) else name in self.vectors


Fields.ALL = Fields()
Fields.IDS = Fields(vectors=False, text=False, metadata=False)
Fields.NO_VECTORS = Fields(vectors=False)


@runtime_checkable
class Source(Protocol):
    """A store that can be read from beginning to end, and again from any cursor."""

    def describe(self) -> CollectionSchema:
        """What the collection looks like, with its count where that is cheap.

        Raises:
            NotFoundError: if there is no such collection.
            CorruptDataError: if what is there cannot be read.
        """
        ...

    def count(self) -> int:
        """The exact number of records now."""
        ...

    def partitions(self, want: int) -> Sequence[Partition]:
        """About ``want`` disjoint shares that together hold every record; at least one.

        A record that exists throughout the scan is in exactly one share, also when the call is
        repeated later and gives other bounds: the *bounds handed to* `scan` decide. Several shares may
        be scanned at the same time, each in a thread of its own.
        """
        ...

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | None = None,
    ) -> Iterator[RecordBatch]:
        """Batches of at most ``batch_size`` records, each with its ``cursor`` set.

        ``after`` is the cursor of a batch of an earlier scan with the same ``partition`` and
        ``where``: the scan goes on with the record behind it, and skips and repeats none. Memory
        stays bounded by the batch. ``partition=None`` reads everything. A batch owns its arrays: the
        next one does not overwrite them.

        Raises:
            RetryableError: on a passing fault; a new scan ``after`` the last good cursor goes on.
            CorruptDataError: where the source is damaged.
        """
        ...
