"""Read inflights from a source: partition after partition, re-opened at the last good cursor."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vecferry.core.retry import RetryDetails, RetryPolicy, reopened
from vecferry.model import CollectionSchema, RecordBatch, Where
from vecferry.pipeline.checkpoint import Progressing
from vecferry.pipeline.stages import InFlightBatch
from vecferry.ports import Fields, ShouldStop, Source, never_stop

log = logging.getLogger("vecferry.job")

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


def read_parcels(source: Source, parts: Sequence[Progressing], reading: Reading) -> Iterator[InFlightBatch]:
    """The inflights of all unfinished partitions, in order.

    A partition ends with an empty in-flight batch whose cursor is that of its last batch, so that its
    end can be committed.
    """
    for part in parts:
        if not part.done:
            yield from _read_partition(source, part, reading)


def _read_partition(source: Source, part: Progressing, reading: Reading) -> Iterator[InFlightBatch]:
    cursor = part.cursor
    backoff = reading.retry.backoff(should_stop=reading.should_stop, on_retry=_log_retry)

    def open_stream(after: Any, size: int) -> Iterator[InFlightBatch]:
        batches = source.scan(
            partition=part.partition,
            after=after,
            batch_size=size,
            fields=reading.fields,
            where=reading.where,
        )
        for batch in batches:
            yield InFlightBatch(batch, part.partition, batch.cursor, len(batch))

    for inflight in reopened(open_stream, cursor, reading.batch_size, backoff):
        cursor = inflight.cursor
        yield inflight
    yield InFlightBatch(RecordBatch(ids=[]), part.partition, cursor, 0, last=True)


def _log_retry(details: RetryDetails) -> None:
    log.warning("reading failed, again in %.1f s: %s", details.wait, details.error)
