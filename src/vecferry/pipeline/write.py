"""Write inflights to a sink: retry a passing fault, shrink what is too large, single out what is bad."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from vecferry.core.retry import Backoff, OnRetry, RetryDetails, RetryPolicy
from vecferry.errors import RejectedRecord, RequestTooLargeError, RetryableError, TimedOutError
from vecferry.model import RecordBatch
from vecferry.pipeline.stages import Rejection
from vecferry.ports import ShouldStop, Sink, never_stop

log = logging.getLogger("vecferry.job")

_GROW_AFTER = 16  # successful writes before a shrunken request may double again


@dataclass
class Writer:
    """Writes batches. After `write` every row is acknowledged, or among the rejections it returns.

    Args:
        sink: prepared.
        retry: bounds of the waits; they begin anew with every piece that is acknowledged.
        on_retry: told before each wait.
    """

    sink: Sink
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    should_stop: ShouldStop = never_stop
    on_retry: OnRetry = lambda _: None
    written: int = 0
    bytes: int = 0
    _limit: int | None = None
    _smooth: int = 0

    def write(self, batch: RecordBatch) -> list[Rejection]:
        """Write all rows, and return those the sink refuses, each with its own reason.

        Raises:
            RetryableError, FatalStoreError: when a bound of the retry is reached, or at once.
            JobStopped: if a wait was cut short.
        """
        rejections: list[Rejection] = []
        backoff = self.retry.backoff(should_stop=self.should_stop, on_retry=self._tell)
        queue = [batch]
        while queue:
            piece = queue.pop()
            if not len(piece):
                continue
            if self._limit and len(piece) > self._limit:
                queue += reversed(list(piece.split(self._limit)))
                continue
            queue += reversed(self._attempt(piece, rejections, backoff))
        return rejections

    def _attempt(
        self, piece: RecordBatch, rejections: list[Rejection], backoff: Backoff
    ) -> list[RecordBatch]:
        """Write one piece; return the pieces that remain to be written."""
        try:
            receipt = self.sink.write(piece)
        except RequestTooLargeError as error:
            backoff.reset()
            if len(piece) == 1:
                rejections.append(Rejection(piece, "write", f"too large by itself: {error}"))
                return []
            return self._halve(piece)
        except TimedOutError as error:
            backoff.wait(error)
            return self._halve(piece)
        except RetryableError as error:
            backoff.wait(error)
            return [piece]
        except RejectedRecord as error:
            backoff.reset()
            return self._single_out(piece, error, rejections)
        backoff.reset()
        self.written += receipt.written
        self.bytes += receipt.bytes or piece.nbytes
        self._grow()
        return []

    def _tell(self, details: RetryDetails) -> None:
        log.warning("writing failed, again in %.1f s: %s", details.wait, details.error)
        self.on_retry(details)

    def _single_out(
        self, piece: RecordBatch, error: RejectedRecord, rejections: list[Rejection]
    ) -> list[RecordBatch]:
        """Split until the bad record stands alone, or at once where the sink names it."""
        named = {*map(repr, error.ids)}
        bad = [i for i, id_ in enumerate(piece.id_list) if repr(id_) in named]
        if not bad and len(piece) > 1:
            return list(piece.split((len(piece) + 1) // 2))
        bad = bad or [0]
        rejections.append(Rejection(piece.take(bad), "write", str(error)))
        rest = set(bad)
        return [piece.take([i for i in range(len(piece)) if i not in rest])]

    def _halve(self, piece: RecordBatch) -> list[RecordBatch]:
        self._limit, self._smooth = max(1, len(piece) // 2), 0
        log.info("writing at most %d records at a time", self._limit)
        return list(piece.split(self._limit))

    def _grow(self) -> None:
        self._smooth += 1
        if self._limit and self._smooth >= _GROW_AFTER:
            self._limit, self._smooth = self._limit * 2, 0
