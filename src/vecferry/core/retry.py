"""Retry, in one place. It wraps *one call* (one request, one batch), never a loop or an iterator.

Only `RetryableError` is retried; adapters translate their vendor's exceptions into it at their edge.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    JobStopped,
    RequestTooLargeError,
    RetryableError,
    TimedOutError,
)

T = TypeVar("T")

PATIENCE = 180.0


@dataclass(frozen=True, slots=True)
class RetryDetails:
    """What a hook is told before each wait."""

    attempt: int
    wait: float
    error: RetryableError


OnRetry: TypeAlias = Callable[[RetryDetails], None]


def patience() -> float:
    """Seconds that a server that is away is waited for: ``VECFERRY_RETRY_SECONDS``, else 180."""
    chosen = os.environ.get("VECFERRY_RETRY_SECONDS")
    try:
        seconds = float(chosen) if chosen else PATIENCE
    except ValueError:
        seconds = -1.0
    if seconds < 0:
        raise ConfigurationError(f"VECFERRY_RETRY_SECONDS={chosen!r} is no number of seconds; set 180")
    return seconds


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Full-jitter exponential backoff, bounded in time.

    A server's ``Retry-After`` is honoured as long as it fits into ``max_seconds``. All times are monotonic:
    a clock that is set forward or back changes nothing.
    Source of the formula: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Attributes:
        attempts: calls in all, the first included; ``None`` for as many as fit into the time.
        max_seconds: from the first failure to the last wait's end; see `patience`.
        base, cap: seconds; wait n is uniform in ``[0, min(cap, base · 2^n)]``.
    """

    attempts: int | None = None
    max_seconds: float = field(default_factory=patience)
    base: float = 0.2
    cap: float = 20.0

    def call(
        self,
        function: Callable[[], T],
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_retry: OnRetry = lambda _: None,
    ) -> T:
        """Call until it returns, an error is final, or a bound is reached.

        A `RequestTooLargeError` is handed on at once: the same request would fail again.

        Raises:
            JobStopped: if ``should_stop`` turns true during a wait.
            RetryableError: the last one, when a bound is reached; it says how long was waited.
        """
        backoff = self.backoff(should_stop=should_stop, on_retry=on_retry)
        while True:
            try:
                return function()
            except RequestTooLargeError:
                raise
            except RetryableError as error:
                backoff.wait(error)

    def backoff(
        self, *, should_stop: Callable[[], bool] = lambda: False, on_retry: OnRetry = lambda _: None
    ) -> Backoff:
        """For a loop whose calls are not all the same: see `Backoff`."""
        return Backoff(self, should_stop, on_retry)


class Backoff:
    """The waits between the failures of one thing that is tried again.

    The time bound counts from the first failure since the last `reset`, so that a call that takes long
    before it fails does not use up the patience that the server is owed.

    Attributes:
        failures: since the last `reset`.
    """

    def __init__(self, policy: RetryPolicy, should_stop: Callable[[], bool], on_retry: OnRetry) -> None:
        self._policy, self._should_stop, self._on_retry = policy, should_stop, on_retry
        self.reset()

    def reset(self) -> None:
        """It worked: the bounds begin anew."""
        self.failures = 0
        self._waited = 0.0
        self._start: float | None = None

    def wait(self, error: RetryableError) -> None:
        """Wait before the next attempt.

        Raises:
            RetryableError: ``error`` itself, if no attempt or no time is left.
            JobStopped: if the wait was ended by ``should_stop``.
        """
        now = time.monotonic()
        self._start = now if self._start is None else self._start
        self.failures += 1
        policy, spent = self._policy, max(now - self._start, self._waited)
        asked = error.retry_after
        ceiling = min(policy.cap, policy.base * 2.0 ** min(self.failures, 60))
        left = policy.max_seconds - spent
        # A wait that would overstep the bound is cut to it, so that the time promised is really waited.
        seconds = min(random.uniform(0, ceiling), max(left, 0.0))
        if asked is not None:
            seconds = float(asked) + random.uniform(0, 0.1)
        if self._used_up() or seconds > left or left <= 0:
            raise _given_up(error, spent, self.failures)
        self._waited += seconds
        self._on_retry(RetryDetails(self.failures, seconds, error))
        if not _sleep_unless(seconds, self._should_stop):
            raise JobStopped(
                "stopped while waiting for a retry; run the same call again to go on"
            ) from error

    def _used_up(self) -> bool:
        return self._policy.attempts is not None and self.failures >= self._policy.attempts


def _given_up(error: RetryableError, spent: float, failures: int) -> RetryableError:
    """The error, telling once how long it was waited out and what to do."""
    if failures > 1 and not error.given_up:
        error.given_up = True
        error.args = (
            f"{error} (tried {failures} times in {spent:.0f} s); once that is over, the same call goes on "
            "from where it stood",
        )
    return error


NO_RETRY = RetryPolicy(attempts=1)


def _sleep_unless(seconds: float, should_stop: Callable[[], bool]) -> bool:
    """Sleep in short steps; false as soon as ``should_stop`` is true."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if should_stop():
            return False
        time.sleep(min(left, 0.05))
    return not should_stop()


class Resumable(Protocol):
    """What a stream brings: ``cursor`` is where to go on after it."""

    @property
    def cursor(self) -> Any: ...


R = TypeVar("R", bound=Resumable)


def reopened(
    open_stream: Callable[[Any, int], Iterator[R]], after: Any, size: int, backoff: Backoff
) -> Iterator[R]:
    """A stream that is opened again at its last good cursor when it breaks.

    Each turn is one opening; it may break after any item, and what was good is kept. A break is waited
    out, also one after progress: a source that says "in 5 s" means it. The bounds of ``backoff`` count
    from the last item that came through. What is too large or late is asked for in halves.

    Args:
        open_stream: called with a cursor and a batch size.
        after: the cursor to begin behind; ``None`` for the beginning.
        size: the batch size to begin with.
    """
    while True:
        try:
            for item in open_stream(after, size):
                backoff.reset()
                after = item.cursor
                yield item
            return
        except RequestTooLargeError:
            if size == 1:
                raise
            size //= 2
        except RetryableError as error:
            backoff.wait(error)
            if isinstance(error, TimedOutError):
                size = max(1, size // 2)


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
            RetryableError: at once, without calling, while the breaker is open; ``retry_after`` says for
                how long.
        """
        left = self._enter()
        if left > 0:
            raise RetryableError("circuit open: the last calls failed", retry_after=left)
        try:
            result = function()
        except (RetryableError, FatalStoreError):
            self._record(ok=False)
            raise
        except Exception:
            self._record(ok=True)  # a refusal is an answer: somebody is there
            raise
        self._record(ok=True)
        return result

    def _enter(self) -> float:
        """Seconds until the next call may pass; 0 lets this one through."""
        with self._lock:
            if self._opened is None:
                return 0.0
            left = self.reset - (self._clock() - self._opened)
            if left <= 0:
                self._opened = self._clock()  # half open: this call is the probe, others wait on
            return max(left, 0.0)

    def _record(self, *, ok: bool) -> None:
        with self._lock:
            self._count = 0 if ok else self._count + 1
            if ok:
                self._opened = None
            elif self._count >= self.failures:
                self._opened = self._clock()
