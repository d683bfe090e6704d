"""One limiter: requests under way, requests a second, and what answers teach it."""

from __future__ import annotations

import threading
import time

import pytest

from vecferry.core.limiter import Limiter
from vecferry.errors import JobStopped, RateLimitedError, RejectedRecord, TimedOutError


class Clock:
    def __init__(self) -> None:
        self.now, self.slept = 0.0, 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def test_the_rate_is_kept_halved_and_won_back() -> None:
    clock = Clock()
    limiter = Limiter(4, rate=5.0, clock=clock, sleep=clock.sleep)
    for _ in range(25):
        with limiter.slot():
            pass
    assert clock.now == pytest.approx(4.0)  # five at once, then five a second
    for _ in range(10):
        with pytest.raises(RateLimitedError), limiter.slot():
            raise RateLimitedError("slow down", retry_after=0.0)
    assert limiter.rate == pytest.approx(5.0 / 32)
    for _ in range(40):
        with limiter.slot():
            pass
    assert limiter.rate == pytest.approx(5.0)


def test_places_shrink_with_429_and_grow_with_answers() -> None:
    limiter = Limiter(8, start=8)
    for expected in (4, 2, 1, 1):
        with pytest.raises(RateLimitedError), limiter.slot():
            raise RateLimitedError("slow down")
        assert limiter.value == expected
    for _ in range(100):
        with limiter.slot():
            pass
    assert limiter.value == 8


def test_a_time_out_narrows_for_good_and_once_a_wave() -> None:
    limiter = Limiter(8, start=8)
    begun, all_in, go = [], threading.Barrier(9), threading.Event()

    def late() -> None:
        with pytest.raises(TimedOutError), limiter.slot():
            begun.append(1)
            all_in.wait()
            go.wait()
            raise TimedOutError("late")

    threads = [threading.Thread(target=late) for _ in range(8)]
    for thread in threads:
        thread.start()
    all_in.wait()
    go.set()
    for thread in threads:
        thread.join()
    assert limiter.value == limiter.most == 4
    for _ in range(100):
        with limiter.slot():
            pass
    assert limiter.value == 4


def test_a_refusal_teaches_nothing() -> None:
    limiter = Limiter(8, start=4)
    with pytest.raises(RejectedRecord), limiter.slot():
        raise RejectedRecord("bad text")
    assert limiter.value == 4


def test_a_pause_holds_all_and_can_be_stopped() -> None:
    limiter = Limiter(4)
    with pytest.raises(RateLimitedError), limiter.slot():
        raise RateLimitedError("slow down", retry_after=30.0)
    with pytest.raises(RateLimitedError, match="still"), limiter.slot(patience=5.0):
        raise AssertionError
    start = time.monotonic()
    with pytest.raises(JobStopped), limiter.slot(lambda: True):
        raise AssertionError
    slow = Limiter(4, rate=0.01, burst=1)
    with slow.slot():
        pass
    with pytest.raises(JobStopped), slow.slot(lambda: time.monotonic() > start + 0.1):
        raise AssertionError
    assert time.monotonic() - start < 10
    assert not slow._busy and not limiter._busy  # no place is lost
