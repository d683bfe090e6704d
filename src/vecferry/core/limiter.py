"""As many requests as a server likes: one limiter of requests under way and of requests a second.

Additive increase, multiplicative decrease (D. Chiu and R. Jain, "Analysis of the Increase and Decrease
Algorithms for Congestion Avoidance", 1989).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vecferry.core.concurrency import ShouldStop, never_stop
from vecferry.errors import JobStopped, RateLimitedError, TimedOutError


class Limiter:
    """Holds requests back. Thread-safe.

    | what came | requests under way | requests a second |
    |---|---|---|
    | 429 | halved, and none before ``Retry-After`` is over | halved, down to a 32nd |
    | no answer in time | halved for good: the most from now on | stays |
    | an answer | one more after as many answers as may be under way | a twentieth of the most back |

    Args:
        most: requests under way at most.
        start: requests under way at the beginning; half of ``most`` by default.
        rate: requests a second at most; 0 means no limit.
        burst: requests at once after a pause, with ``rate``.
    """

    def __init__(
        self,
        most: int = 64,
        *,
        start: int | None = None,
        rate: float = 0.0,
        burst: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self.most = max(1, most)
        self.value = max(1, min(self.most, (self.most + 1) // 2 if start is None else start))
        self._wanted = self.rate = rate
        self._burst = self._tokens = float(max(1, int(rate) if burst is None else burst))
        self._clock, self._sleep = clock, sleep
        self._last = clock()
        self._busy = self._successes = 0
        self._not_before = self._narrowed = self._last
        self._changed = threading.Condition()

    @contextmanager
    def slot(self, should_stop: ShouldStop = never_stop, patience: float = 1e9) -> Iterator[None]:
        """Wait for a place, and learn from how the call inside ends.

        Raises:
            JobStopped: if ``should_stop`` turns true while waiting.
            RateLimitedError: at once, if the server asked for a longer pause than ``patience`` seconds.
        """
        self._enter(should_stop, patience)
        begun = self._clock()
        try:
            yield
        except RateLimitedError as error:
            self.slower(error.retry_after or 0.0)
            raise
        except TimedOutError:
            self.narrower(begun)
            raise
        else:
            self.faster()
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify()

    def slower(self, pause: float = 0.0) -> None:
        """The server answered 429, and wants no request for ``pause`` seconds."""
        with self._changed:
            self.value = max(1, self.value // 2)
            self.rate = max(self.rate / 2, self._wanted / 32)
            self._successes = 0
            self._not_before = max(self._not_before, self._clock() + pause)

    def narrower(self, begun: float | None = None) -> None:
        """An answer did not come in time: the server cannot do as much at once, now or later.

        Requests that were under way together (``begun`` before the last halving) halve once.
        """
        with self._changed:
            if begun is None or begun >= self._narrowed:
                self.most = self.value = max(1, self.value // 2)
                self._narrowed = self._clock()
                self._successes = 0

    def faster(self) -> None:
        """An answer came."""
        with self._changed:
            self.rate = min(self._wanted, self.rate + self._wanted / 20)
            self._successes += 1
            if self._successes >= self.value and self.value < self.most:
                self._successes = 0
                self.value += 1
                self._changed.notify()

    def _enter(self, should_stop: ShouldStop, patience: float) -> None:
        with self._changed:
            while (wait := self._not_before - self._clock()) > 0 or self._busy >= self.value:
                if wait > patience:
                    raise RateLimitedError(
                        f"the server asked for a pause, still {wait:.0f} s", retry_after=wait
                    )
                if should_stop():
                    raise JobStopped("stopped while waiting for a server; run the same call again to go on")
                self._changed.wait(min(max(wait, 0.05), 0.2))
            self._busy += 1
            due = self._take_token()
        try:
            self._pause(due, should_stop)
        except BaseException:
            with self._changed:
                self._busy -= 1
                self._changed.notify()
            raise

    def _take_token(self) -> float:
        """Seconds until the next request may be made, with its token taken already."""
        if not self._wanted:
            return 0.0
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._last) * self.rate)
        self._last = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self.rate)

    def _pause(self, seconds: float, should_stop: ShouldStop) -> None:
        if self._sleep is not None:
            if seconds:
                self._sleep(seconds)
            return
        end = self._clock() + seconds
        while (left := end - self._clock()) > 0:
            if should_stop():
                raise JobStopped("stopped while waiting for a server; run the same call again to go on")
            time.sleep(min(left, 0.05))
