"""Stages overlap through bounded queues."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vecferry.streaming.pump import prefetch


def test_the_order_is_kept() -> None:
    assert list(prefetch(lambda: iter(range(100)))) == list(range(100))


def test_it_runs_at_most_depth_items_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    stream = prefetch(items, depth=3)
    next(stream)
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1 + 1  # taken, waiting, in the producer's hand, just begun
    stream.close()


def test_an_error_reaches_the_consumer_after_what_was_good() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    stream = prefetch(items)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        next(stream)


def test_a_consumer_that_leaves_stops_the_producer() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    stream = prefetch(items)
    next(stream)
    stream.close()
    assert closed.wait(5)
