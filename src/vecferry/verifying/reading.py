"""The streams of both sides: the target read ahead in threads (whole, in shares, or by ids), and how two
streams are laid side by side.

Every batch brings the cursor behind it, so that how far a thread has read ahead matters to nobody: a
comparison that is resumed goes on behind the last batch that was compared.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vecferry.core.concurrency import in_order, merged, prefetch
from vecferry.core.retry import RetryPolicy, reopened
from vecferry.errors import UnsupportedError
from vecferry.model import RecordBatch, RecordId
from vecferry.ports import Cursor, Fetchable, Fields, Partition, ShouldStop, Source

BATCH = 2048
SHARES_A_WORKER = 4
"""More shares than threads, so that unequal ones are evened out."""


@dataclass
class Share:
    """One partition of the target (``None``: all of it), and how far it was compared: to which cursor, and
    how many records."""

    partition: Partition | None = None
    cursor: Cursor | None = None
    rows: int = 0

    def state(self) -> dict[str, Any]:
        """As JSON."""
        part = self.partition
        place = None if part is None else {"key": part.key, "bounds": part.bounds, "count": part.count}
        return {"partition": place, "cursor": self.cursor, "rows": self.rows}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Share:
        place = state["partition"]
        return cls(None if place is None else Partition(**place), state["cursor"], state["rows"])


@dataclass(frozen=True)
class Reader:
    """Reads a target through faults that pass, in threads of its own.

    Args:
        workers: how many shares are scanned, or how many calls are under way, at once. Each scan is a
            stream of its own.
    """

    target: Source
    fields: Fields
    workers: int
    should_stop: ShouldStop
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def whole(self, after: Cursor | None) -> Generator[RecordBatch, None, None]:
        """Everything behind ``after`` in the target's order, read ahead."""
        share = Share(cursor=after)
        return prefetch(lambda: self._scan(share), name="verify", should_stop=self.should_stop)

    def split(self, rows: int) -> list[Share]:
        """Shares for ``workers`` threads, to be fixed once; a small collection is one."""
        want = min(self.workers * SHARES_A_WORKER, rows // BATCH) if self.workers > 1 else 1
        if want <= 1:
            return [Share()]
        parts = self.retry.call(lambda: self.target.partitions(want), should_stop=self.should_stop)
        return [Share(part) for part in parts] if len(parts) > 1 else [Share()]

    def shares(self, shares: Sequence[Share]) -> Generator[tuple[int, RecordBatch], None, None]:
        """What is left of all shares, side by side: batches with the number of their share.

        Those of one share come in its order.
        """
        streams = [partial(self._numbered, number, share) for number, share in enumerate(shares)]
        stop = self.should_stop
        return merged(
            streams, workers=self.workers, depth=1 + self.workers, name="verify", should_stop=stop
        )

    def _numbered(self, number: int, share: Share) -> Iterator[tuple[int, RecordBatch]]:
        return ((number, batch) for batch in self._scan(share))

    def _scan(self, share: Share) -> Iterator[RecordBatch]:
        def open_stream(cursor: Cursor | None, size: int) -> Iterator[RecordBatch]:
            return self.target.scan(
                partition=share.partition, after=cursor, batch_size=size, fields=self.fields
            )

        backoff = self.retry.backoff(should_stop=self.should_stop)
        return reopened(open_stream, share.cursor, BATCH, backoff)

    def fetched(
        self, batches: Iterable[RecordBatch]
    ) -> Generator[tuple[RecordBatch, RecordBatch], None, None]:
        """Each batch with what the target has of its ids, in the order of ``batches``.

        Raises:
            UnsupportedError: if the target cannot fetch by id.
        """
        target = self.target
        if not isinstance(target, Fetchable):
            raise UnsupportedError("the target cannot fetch by id; use strategy='hash'")

        def fetch(batch: RecordBatch) -> RecordBatch:
            ids = batch.id_list
            return self.retry.call(
                lambda: target.fetch(ids, fields=self.fields), should_stop=self.should_stop
            )

        return in_order(fetch, batches, workers=self.workers, name="verify", should_stop=self.should_stop)

    def again(self, ids: Sequence[RecordId]) -> Iterator[RecordBatch]:
        """What the target has of these ids, and maybe more: by asking, or else by reading all of it."""
        if not isinstance(self.target, Fetchable):
            yield from self._scan(Share())
            return
        target = self.target
        for start in range(0, len(ids), BATCH):
            some = ids[start : start + BATCH]
            yield self.retry.call(
                partial(target.fetch, some, fields=self.fields), should_stop=self.should_stop
            )


# -- two streams ------------------------------------------------------------------------------


def side_by_side(
    left: Iterator[RecordBatch], right: Iterator[RecordBatch]
) -> Iterator[tuple[RecordBatch | None, RecordBatch | None]]:
    """Both streams cut into pieces of equal length; ``None`` where one has ended before the other.

    The cursor of a right piece stands where its batch ends, and is ``None`` before.
    """
    a, b = _next(left), _next(right)
    while a is not None and b is not None:
        n = min(len(a), len(b))
        yield a.slice(0, n), b.slice(0, n).replace(cursor=b.cursor if n == len(b) else None)
        a = a.slice(n, len(a)) if n < len(a) else _next(left)
        b = b.slice(n, len(b)) if n < len(b) else _next(right)
    if a is not None or b is not None:
        yield a, b


def _next(stream: Iterator[RecordBatch]) -> RecordBatch | None:
    return next((batch for batch in stream if len(batch)), None)


__all__ = ["BATCH", "Reader", "Share", "side_by_side"]
