"""Work overlaps: streams run ahead of their consumer in threads, through small bounded queues.

The slowest sets the pace and memory stays flat. An error travels to the consumer; a consumer that leaves
stops the producers, and each iterator is closed in the thread that runs it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from vecferry.errors import JobStopped

T = TypeVar("T")
R = TypeVar("R")

Busy = Callable[[str, float], None]
ShouldStop: TypeAlias = Callable[[], bool]
"""Asked now and then; true stops the work at the next point from which it can go on."""

_END = object()
_POLL = 0.05  # seconds between looks at the stop flag while a queue is full or empty
_PATIENCE = 10.0  # seconds that a consumer that leaves waits for the producers


def never_stop() -> bool:
    """The default answer to `ShouldStop`."""
    return False


@dataclass(frozen=True, slots=True)
class _Failure:
    """What ended a producer; raised again in the consumer's thread, behind what was good."""

    error: BaseException


def prefetch(
    items: Callable[[], Iterator[T]],
    *,
    depth: int = 2,
    name: str = "stage",
    busy: Busy = lambda name, seconds: None,
    should_stop: ShouldStop = never_stop,
) -> Generator[T, None, None]:
    """Run ``items()`` in a thread, at most ``depth`` items ahead. See `merged`."""
    return merged([items], depth=depth, name=name, busy=busy, should_stop=should_stop)


def merged(
    streams: Sequence[Callable[[], Iterator[T]]],
    *,
    workers: int = 1,
    depth: int = 2,
    name: str = "stage",
    busy: Busy = lambda name, seconds: None,
    should_stop: ShouldStop = never_stop,
) -> Generator[T, None, None]:
    """Run several streams in ``workers`` threads, and yield what they make as it comes.

    A thread runs one stream from its beginning to its end, then the next that nobody has begun: the items
    of one stream keep their order.

    Args:
        streams: each makes its iterator; called in the thread.
        depth: how many items wait for the consumer at most, beside one in the hand of each thread.
        busy: told the seconds that each item took to make.
        should_stop: asked while nothing comes, so that a stop need not wait for a server.

    Raises:
        JobStopped: when ``should_stop`` turned true while nothing came.
    """
    left: deque[Callable[[], Iterator[T]]] = deque(streams)
    line: queue.Queue[object] = queue.Queue(maxsize=depth)
    stop, turn = threading.Event(), threading.Lock()

    def next_stream() -> Callable[[], Iterator[T]] | None:
        with turn:
            return left.popleft() if left and not stop.is_set() else None

    def produce() -> None:
        end: object = _END
        try:
            while (stream := next_stream()) is not None:
                _run(stream(), line, stop, lambda seconds: busy(name, seconds))
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
            end = _Failure(error)
        _offer(line, end, stop)

    threads = [_start(produce, name) for _ in range(min(workers, len(left)))]
    try:
        running = len(threads)
        while running:
            item = _take(line, should_stop)
            if isinstance(item, _Failure):
                raise item.error
            if item is _END:
                running -= 1
            else:
                yield item  # type: ignore[misc]
    finally:
        stop.set()
        # A producer that waits for a server is left alone; it is a daemon and ends with its next item.
        deadline = time.monotonic() + (_POLL if should_stop() else _PATIENCE)
        for thread in threads:
            thread.join(timeout=max(deadline - time.monotonic(), 0))


def in_order(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int = 1,
    name: str = "calls",
    should_stop: ShouldStop = never_stop,
) -> Generator[tuple[T, R], None, None]:
    """Call ``function`` for ``workers`` items at once, and yield each item with its result, in order.

    ``items`` is read in the consumer's thread, at most ``workers + 1`` ahead.

    Raises:
        JobStopped: when ``should_stop`` turned true while nothing came.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix=f"vecferry-{name}")
    under_way: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            under_way.append((item, pool.submit(copy_context().run, function, item)))
            if len(under_way) > workers:
                yield _settled(*under_way.popleft(), should_stop)
        while under_way:
            yield _settled(*under_way.popleft(), should_stop)
    finally:
        pool.shutdown(wait=not should_stop(), cancel_futures=True)


def _settled(item: T, future: Future[R], should_stop: ShouldStop) -> tuple[T, R]:
    while not wait([future], timeout=_POLL).done:
        if should_stop():
            raise _stopped()
    return item, future.result()


def _start(target: Callable[[], None], name: str) -> threading.Thread:
    context = copy_context()  # so that a log knows whose thread this is
    thread = threading.Thread(target=context.run, args=(target,), name=f"vecferry-{name}", daemon=True)
    thread.start()
    return thread


def _run(
    iterator: Iterator[object],
    line: queue.Queue[object],
    stop: threading.Event,
    busy: Callable[[float], None],
) -> None:
    try:
        while not stop.is_set():
            start = time.perf_counter()
            item = next(iterator, _END)
            busy(time.perf_counter() - start)
            if item is _END or not _offer(line, item, stop):
                return
    finally:
        close = getattr(iterator, "close", None)
        if close:
            close()


def _take(line: queue.Queue[object], should_stop: ShouldStop) -> object:
    while True:
        try:
            return line.get(timeout=_POLL)
        except queue.Empty:
            if should_stop():
                raise _stopped() from None


def _stopped() -> JobStopped:
    return JobStopped("stopped; run the same call again to go on")


def _offer(line: queue.Queue[object], item: object, stop: threading.Event) -> bool:
    """Put, unless the consumer has left meanwhile."""
    while not stop.is_set():
        try:
            line.put(item, timeout=_POLL)
        except queue.Full:
            continue
        return True
    return False


__all__ = ["in_order", "merged", "prefetch"]
