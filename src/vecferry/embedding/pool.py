"""Many requests at once, as many as the provider likes: additive increase, multiplicative decrease."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager

from vecferry.embedding.base import Part
from vecferry.embedding.http import RateLimited
from vecferry.errors import JobStopped
from vecferry.ports import ShouldStop


class AdaptiveLimit:
    """How many requests may be under way.

    A 429 halves it and holds all requests until the server's ``Retry-After`` is over; as many
    successes in a row as requests may be under way raise it by one. (D. Chiu and R. Jain, "Analysis of
    the Increase and Decrease Algorithms", 1989.)
    """

    def __init__(self, start: int, maximum: int) -> None:
        self.maximum = max(1, maximum)
        self.value = max(1, min(start, self.maximum))
        self._busy = 0
        self._successes = 0
        self._not_before = 0.0
        self._changed = threading.Condition()

    @contextmanager
    def slot(self, should_stop: ShouldStop, patience: float) -> Iterator[None]:
        """Wait for a place, and learn from how the call inside ends.

        Raises:
            JobStopped: if ``should_stop`` turns true while waiting.
            RateLimited: at once, if the server asked for a longer pause than ``patience`` seconds.
        """
        self._enter(should_stop, patience)
        try:
            yield
        except RateLimited as error:
            self._slower(error.retry_after or 0.0)
            raise
        else:
            self._faster()
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify()

    def _enter(self, should_stop: ShouldStop, patience: float) -> None:
        with self._changed:
            while (wait := self._not_before - time.monotonic()) > 0 or self._busy >= self.value:
                if wait > patience:
                    raise RateLimited(
                        f"the provider asked for a pause, still {wait:.0f} s", retry_after=wait
                    )
                if should_stop():
                    raise JobStopped("stopped while waiting for the embedding provider")
                self._changed.wait(min(max(wait, 0.05), 0.2))
            self._busy += 1

    def _slower(self, wait: float) -> None:
        with self._changed:
            self.value = max(1, self.value // 2)
            self._successes = 0
            self._not_before = max(self._not_before, time.monotonic() + wait)

    def _faster(self) -> None:
        with self._changed:
            self._successes += 1
            if self._successes >= self.value and self.value < self.maximum:
                self._successes = 0
                self.value += 1
                self._changed.notify()


class RequestPool:
    """Threads that send requests; made at first use."""

    def __init__(self, workers: int) -> None:
        self._workers = max(1, workers)
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def run(self, jobs: Sequence[Callable[[ShouldStop], list[Part]]]) -> Iterator[Part]:
        """The parts of all jobs, as they come.

        After a failure no further job starts, those under way end, and what they brought is
        yielded before the failure is raised: it has been paid for.
        """
        failed = threading.Event()
        threads = self._open()
        futures: list[Future[list[Part]]] = [threads.submit(_guarded, job, failed) for job in jobs]
        failure: BaseException | None = None
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                if error := future.exception():
                    # Jobs that were only interrupted by the failure do not hide it.
                    failure = error if failure is None or isinstance(failure, JobStopped) else failure
                    _cancel(futures)
                    continue
                yield from future.result()
        finally:
            failed.set()
            _cancel(futures)
        if failure is not None:
            raise failure

    def close(self) -> None:
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    def _open(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="vecferry-embed")
            return self._threads


def _guarded(job: Callable[[ShouldStop], list[Part]], failed: threading.Event) -> list[Part]:
    """The job, unless another one has failed; its own failure is known before the next job starts."""
    if failed.is_set():
        return []
    try:
        return job(failed.is_set)
    except BaseException:
        failed.set()
        raise


def _cancel(futures: Sequence[Future[list[Part]]]) -> None:
    for future in futures:
        future.cancel()
