"""Read parcels from a source: partition after partition, re-opened at the last good cursor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vecferry.errors import RetryableError
from vecferry.ports import Fields, ShouldStop, Source, never_stop
from vecferry.records import CollectionSchema, RecordBatch, Where
from vecferry.retry import RetryPolicy
from vecferry.streaming.checkpoint import Progressing
from vecferry.streaming.stage import Parcel

_BATCH_BYTES = 4 << 20
_SMALLEST, _LARGEST = 64, 8192


@dataclass(frozen=True)
class Reading:
    """How a source is read."""

    batch_size: int = 1024
    fields: Fields = Fields.ALL
    where: Where | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    should_stop: ShouldStop = never_stop


def batch_size_for(schema: CollectionSchema) -> int:
    """Rows that make about 4 MiB of vectors and text, between 64 and 8,192."""
    row = 512 + sum((f.dim or 256) * 4 for f in schema.fields)
    return max(_SMALLEST, min(_LARGEST, _BATCH_BYTES // row))


def read_parcels(source: Source, parts: Sequence[Progressing], reading: Reading) -> Iterator[Parcel]:
    """The parcels of all unfinished partitions, in order.

    A partition ends with an empty parcel whose cursor is that of its last batch, so that its end can
    be committed.
    """
    for part in parts:
        if not part.done:
            yield from _read_partition(source, part, reading)


def _read_partition(source: Source, part: Progressing, reading: Reading) -> Iterator[Parcel]:
    cursor = part.cursor
    while True:
        # Each turn is one opening of the stream. It may break after any batch; what was good is kept.
        before = cursor
        try:
            for parcel in _open(source, part, cursor, reading):
                cursor = parcel.cursor
                yield parcel
            yield Parcel(RecordBatch(ids=[]), part.partition, cursor, 0, last=True)
            return
        except RetryableError as error:
            if cursor == before:
                # No progress: wait, bounded, until the stream opens at all.
                _wait_for(source, part, cursor, reading, error)


def _open(source: Source, part: Progressing, after: object, reading: Reading) -> Iterator[Parcel]:
    batches = source.scan(
        partition=part.partition,
        after=after,
        batch_size=reading.batch_size,
        fields=reading.fields,
        where=reading.where,
    )
    for batch in batches:
        yield Parcel(batch, part.partition, batch.cursor, len(batch))


def _wait_for(
    source: Source, part: Progressing, after: object, reading: Reading, error: RetryableError
) -> None:
    first = [error]

    def probe() -> None:
        if first:
            raise first.pop()  # the failure that brought us here counts as the first attempt
        next(_open(source, part, after, reading), None)

    reading.retry.call(probe, should_stop=reading.should_stop)
