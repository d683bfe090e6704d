"""Stages overlap: each runs ahead of the next through a small bounded queue.

The slowest stage sets the pace and memory stays flat. An error travels to the consumer; a consumer
that leaves stops the producer.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextvars import copy_context
from typing import TypeVar

from vecferry.errors import JobStopped
from vecferry.ports import ShouldStop, never_stop

T = TypeVar("T")
_END = object()
_POLL = 0.05  # seconds between looks at the stop flag while a queue is full


def prefetch(
    items: Callable[[], Iterator[T]],
    *,
    depth: int = 2,
    name: str = "stage",
    busy: Callable[[str, float], None] = lambda name, seconds: None,
    should_stop: ShouldStop = never_stop,
) -> Generator[T, None, None]:
    """Run ``items()`` in a thread, at most ``depth`` items ahead.

    Args:
        items: makes the iterator; called in the thread.
        busy: told the seconds that each item took to make.
        should_stop: asked while nothing comes, so that a stop need not wait for a server.

    Raises:
        JobStopped: when ``should_stop`` turned true while nothing came.
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

    context = copy_context()  # so that a log knows whose thread this is
    thread = threading.Thread(target=context.run, args=(produce,), name=f"vecferry-{name}", daemon=True)
    thread.start()
    try:
        while (item := _take(line, should_stop)) is not _END:
            yield item  # type: ignore[misc]
        if failure:
            raise failure[0]
    finally:
        stop.set()
        # A producer that waits for a server is left alone; it is a daemon and ends with its next item.
        thread.join(timeout=_POLL if should_stop() else 10)


def _take(line: queue.Queue[object], should_stop: ShouldStop) -> object:
    while True:
        try:
            return line.get(timeout=_POLL)
        except queue.Empty:
            if should_stop():
                raise JobStopped("stopped; run the same call again to go on") from None


def _offer(line: queue.Queue[object], item: object, stop: threading.Event) -> bool:
    """Put, unless the consumer has left meanwhile."""
    while not stop.is_set():
        try:
            line.put(item, timeout=_POLL)
        except queue.Full:
            continue
        return True
    return False
