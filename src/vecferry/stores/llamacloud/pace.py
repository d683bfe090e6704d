"""A polite client: a token bucket that slows down when the server says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Pace:
    """At most ``rate`` calls a second on average, ``burst`` at once. Thread-safe.

    A 429 halves the pace (`slow_down`), every call that succeeds gives a twentieth of it back
    (`recover`): additive increase, multiplicative decrease, after Chiu & Jain, 1989.

    Args:
        rate: calls a second; 0 means no limit.
    """

    def __init__(
        self,
        rate: float = 5.0,
        burst: int = 5,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._wanted = self._rate = rate
        self._burst = float(max(burst, 1))
        self._tokens = self._burst
        self._clock, self._sleep = clock, sleep
        self._last = clock()
        self._lock = threading.Lock()

    @property
    def rate(self) -> float:
        """Calls a second as of now."""
        return self._rate

    def wait(self) -> None:
        """Return when the next call may be made."""
        if not self._wanted:
            return
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
            self._last = now
            self._tokens -= 1
            due = max(0.0, -self._tokens / self._rate)
        if due:
            self._sleep(due)

    def slow_down(self) -> None:
        """The server answered 429."""
        with self._lock:
            self._rate = max(self._rate / 2, self._wanted / 32)

    def recover(self) -> None:
        """A call succeeded."""
        with self._lock:
            self._rate = min(self._wanted, self._rate + self._wanted / 20)
