"""Retry, in one place. It wraps *one call* (one request, one batch), never a loop or an iterator.

Only `RetryableError` is retried; adapters translate their vendor's exceptions into it at their edge.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from vecferry.errors import FatalStoreError, JobStopped, RequestTooLargeError, RetryableError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryDetails:
    """What a hook is told before each wait."""

    attempt: int
    wait: float
    error: RetryableError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Full-jitter exponential backoff, bounded in attempts and in total seconds.

    A server's ``Retry-After`` is honoured as long as it fits into ``max_seconds``.
    Source of the formula: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Attributes:
        attempts: calls in all, the first included.
        max_seconds: from the first call to the last wait's end.
        base, cap: seconds; wait n is uniform in ``[0, min(cap, base · 2^n)]``.
    """

    attempts: int = 8
    max_seconds: float = 180.0
    base: float = 0.2
    cap: float = 20.0

    def call(
        self,
        function: Callable[[], T],
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_retry: Callable[[RetryDetails], None] = lambda _: None,
    ) -> T:
        """Call until it returns, an error is final, or a bound is reached.

        A `RequestTooLargeError` is handed on at once: the same request would fail again.

        Raises:
            JobStopped: if ``should_stop`` turns true during a wait.
            RetryableError: the last one, when the bounds are reached.
        """

        def sleep(seconds: float) -> None:
            if not _sleep_unless(seconds, should_stop):
                raise JobStopped("stopped while waiting for a retry")

        def before_sleep(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            assert isinstance(error, RetryableError)
            on_retry(RetryDetails(state.attempt_number, state.upcoming_sleep, error))

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_passing),
            stop=tenacity.stop_after_attempt(self.attempts) | tenacity.stop_before_delay(self.max_seconds),
            wait=self._wait,
            sleep=sleep,
            before_sleep=before_sleep,
            reraise=True,
        )
        return retrying(function)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = getattr(error, "retry_after", None)
        if asked is not None:
            return float(asked) + random.uniform(0, 0.1)
        return random.uniform(0, min(self.cap, self.base * 2.0**state.attempt_number))


NO_RETRY = RetryPolicy(attempts=1)


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, RetryableError) and not isinstance(error, RequestTooLargeError)


def _sleep_unless(seconds: float, should_stop: Callable[[], bool]) -> bool:
    """Sleep in short steps; false as soon as ``should_stop`` is true."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if should_stop():
            return False
        time.sleep(min(left, 0.05))
    return not should_stop()


class CircuitBreaker:
    """Opens after ``failures`` passing faults in a row; lets one call through after ``reset`` seconds.

    Source: M. Nygard, "Release It!", 2007. Thread-safe.
    """

    def __init__(
        self, failures: int = 5, reset: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.failures, self.reset, self._clock = failures, reset, clock
        self._count = 0
        self._opened: float | None = None
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether a call would be refused now."""
        with self._lock:
            return self._opened is not None and self._clock() - self._opened < self.reset

    def call(self, function: Callable[[], T]) -> T:
        """Call through the breaker.

        Raises:
            RetryableError: at once, without calling, while the breaker is open.
        """
        if not self._enter():
            raise RetryableError("circuit open: the last calls failed", retry_after=self.reset)
        try:
            result = function()
        except (RetryableError, FatalStoreError):
            self._record(ok=False)
            raise
        self._record(ok=True)
        return result

    def _enter(self) -> bool:
        with self._lock:
            if self._opened is None:
                return True
            if self._clock() - self._opened < self.reset:
                return False
            self._opened = self._clock()  # half open: this call is the probe, others wait on
            return True

    def _record(self, *, ok: bool) -> None:
        with self._lock:
            self._count = 0 if ok else self._count + 1
            if ok:
                self._opened = None
            elif self._count >= self.failures:
                self._opened = self._clock()
