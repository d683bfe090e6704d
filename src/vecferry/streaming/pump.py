"""Stages overlap: each runs ahead of the next through a small bounded queue.

The slowest stage sets the pace and memory stays flat. An error travels to the consumer; a consumer
that leaves stops the producer.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

T = TypeVar("T")
_END = object()
_POLL = 0.05  # seconds between looks at the stop flag while a queue is full


def prefetch(
    items: Callable[[], Iterator[T]],
    *,
    depth: int = 2,
    name: str = "stage",
    busy: Callable[[str, float], None] = lambda name, seconds: None,
) -> Generator[T, None, None]:
    """Run ``items()`` in a thread, at most ``depth`` items ahead.

    Args:
        items: makes the iterator; called in the thread.
        busy: told the seconds that each item took to make.
    """
    line: queue.Queue[object] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    failure: list[BaseException] = []

    def produce() -> None:
        iterator = items()
        try:
            while not stop.is_set():
                start = time.perf_counter()
                item = next(iterator, _END)
                busy(name, time.perf_counter() - start)
                if not _offer(line, item, stop) or item is _END:
                    return
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
            failure.append(error)
            _offer(line, _END, stop)
        finally:
            close = getattr(iterator, "close", None)
            if close:
                close()

    thread = threading.Thread(target=produce, name=f"vecferry-{name}", daemon=True)
    thread.start()
    try:
        while (item := line.get()) is not _END:
            yield item  # type: ignore[misc]
        if failure:
            raise failure[0]
    finally:
        stop.set()
        thread.join(timeout=10)


def _offer(line: queue.Queue[object], item: object, stop: threading.Event) -> bool:
    """Put, unless the consumer has left meanwhile."""
    while not stop.is_set():
        try:
            line.put(item, timeout=_POLL)
        except queue.Full:
            continue
        return True
    return False
