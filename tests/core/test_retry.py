"""Retry: jitter, bounds, the server's own wish, cancelling, the breaker, streams that break."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecferry.core.retry import CircuitBreaker, RetryDetails, RetryPolicy, reopened
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    JobStopped,
    RejectedRecord,
    RequestTooLargeError,
    RetryableError,
    TimedOutError,
)


@pytest.fixture(autouse=True)
def _usual_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VECFERRY_RETRY_SECONDS", raising=False)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been slept; a clock that moves by them alone."""
    slept: list[float] = []

    def sleep(seconds: float, should_stop: Any) -> bool:
        slept.append(seconds)
        return not should_stop()

    monkeypatch.setattr("vecferry.core.retry._sleep_unless", sleep)
    monkeypatch.setattr("vecferry.core.retry.time.monotonic", lambda: sum(slept))
    return slept


def failing(times: int, error: Exception) -> Any:
    left = [times]

    def call() -> str:
        if left[0]:
            left[0] -= 1
            raise error
        return "done"

    return call


def test_waits_grow_and_are_spread(waits: list[float]) -> None:
    policy = RetryPolicy(attempts=9, base=1.0, cap=20.0, max_seconds=1e9)
    rounds = []
    for _ in range(200):
        waits.clear()
        assert policy.call(failing(8, RetryableError("busy"))) == "done"
        rounds.append(list(waits))
    for n in range(8):
        column = [r[n] for r in rounds]
        ceiling = min(20.0, 2.0 ** (n + 1))
        assert 0 <= min(column) < ceiling * 0.2 and ceiling * 0.8 < max(column) <= ceiling


def test_the_attempts_are_bounded(waits: list[float]) -> None:
    with pytest.raises(RetryableError):
        RetryPolicy(attempts=5).call(failing(9, RetryableError("busy")))
    assert len(waits) == 4


def test_the_time_is_bounded(waits: list[float]) -> None:
    with pytest.raises(RetryableError):
        RetryPolicy(attempts=1000, max_seconds=30.0).call(failing(999, RetryableError("busy")))
    assert 0 < sum(waits) <= 30.0


def test_a_server_that_is_away_is_waited_for_as_long_as_promised(waits: list[float]) -> None:
    """The time is the bound and not a number of attempts: 45 s away ended every run once."""
    for _ in range(100):
        waits.clear()
        with pytest.raises(RetryableError, match=r"tried \d+ times in 180 s.*goes on") as caught:
            RetryPolicy().call(failing(10_000, RetryableError("away")))
        assert sum(waits) == pytest.approx(180.0)
        assert caught.value.given_up


def test_the_patience_is_a_setting(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECFERRY_RETRY_SECONDS", "12.5")
    with pytest.raises(RetryableError, match="in 12 s"):
        RetryPolicy().call(failing(10_000, RetryableError("away")))
    assert sum(waits) == pytest.approx(12.5)
    for wrong in ("soon", "-1"):
        monkeypatch.setenv("VECFERRY_RETRY_SECONDS", wrong)
        with pytest.raises(ConfigurationError, match="VECFERRY_RETRY_SECONDS"):
            RetryPolicy()


def test_a_slow_failure_does_not_use_up_the_patience(waits: list[float]) -> None:
    """A request that takes two minutes to time out is still tried again."""

    def slow() -> str:
        waits.append(120.0)  # the clock of these tests
        raise TimedOutError("no answer")

    with pytest.raises(TimedOutError):
        RetryPolicy().call(slow)
    assert waits.count(120.0) >= 2


def test_a_reset_begins_anew(waits: list[float]) -> None:
    """Both bounds: the count, and the clock."""
    backoff = RetryPolicy(max_seconds=60, base=50.0, cap=50.0).backoff()
    for _ in range(100):
        backoff.wait(RetryableError("again", retry_after=40.0))
        backoff.reset()
    assert sum(waits) > 4000
    backoff.wait(RetryableError("again", retry_after=40.0))
    with pytest.raises(RetryableError):
        backoff.wait(RetryableError("again", retry_after=40.0))
    counted = RetryPolicy(attempts=2).backoff()
    for _ in range(10):
        counted.wait(RetryableError("again"))
        counted.reset()
    assert counted.failures == 0


@given(asked=st.floats(0, 50))
def test_the_servers_wish_is_honoured(asked: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        slept: list[float] = []

        def sleep(seconds: float, should_stop: object) -> bool:
            slept.append(seconds)
            return True

        patch.setattr("vecferry.core.retry._sleep_unless", sleep)
        told: list[RetryDetails] = []
        policy = RetryPolicy(max_seconds=60)
        assert (
            policy.call(failing(1, RetryableError("x", retry_after=asked)), on_retry=told.append) == "done"
        )
        assert asked <= slept[0] <= asked + 0.1 and told[0].wait == slept[0]


def test_a_wish_beyond_the_bound_is_an_error_at_once(waits: list[float]) -> None:
    with pytest.raises(RetryableError):
        RetryPolicy(max_seconds=60).call(failing(1, RetryableError("x", retry_after=3600)))
    assert not waits


def test_a_wait_can_be_cancelled() -> None:
    begin = time.monotonic()
    stop = iter([False] * 3 + [True] * 100)
    with pytest.raises(JobStopped):
        RetryPolicy().call(failing(1, RetryableError("x", retry_after=60)), should_stop=lambda: next(stop))
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("kind", [FatalStoreError, RejectedRecord, RequestTooLargeError])
def test_what_would_fail_again_is_not_tried_again(kind: type[Exception], waits: list[float]) -> None:
    with pytest.raises(kind):
        RetryPolicy().call(failing(1, kind("no")))
    assert not waits


# -- the breaker ------------------------------------------------------------------------------


def test_the_breaker_opens_probes_and_closes() -> None:
    now = [0.0]
    breaker = CircuitBreaker(failures=3, reset=10.0, clock=lambda: now[0])
    calls: list[float] = []

    def call(error: Exception | None) -> None:
        calls.append(now[0])
        if error:
            raise error

    for _ in range(3):
        with pytest.raises(RetryableError, match="busy"):
            breaker.call(lambda: call(RetryableError("busy")))
    assert breaker.open
    now[0] = 4.0
    with pytest.raises(RetryableError, match="circuit open") as refused:
        breaker.call(lambda: call(None))
    assert refused.value.retry_after == 6.0 and len(calls) == 3
    now[0] = 10.0  # half open: one probe, which fails
    with pytest.raises(RetryableError, match="busy"):
        breaker.call(lambda: call(RetryableError("busy")))
    assert breaker.open
    now[0] = 20.0
    breaker.call(lambda: call(None))
    assert not breaker.open
    breaker.call(lambda: call(None))
    assert calls == [0.0, 0.0, 0.0, 10.0, 20.0, 20.0]


def test_a_refusal_shows_that_somebody_is_there() -> None:
    breaker = CircuitBreaker(failures=2, reset=10.0)
    for error in (RetryableError("busy"), RejectedRecord("bad"), RetryableError("busy")):
        with pytest.raises(type(error)):
            breaker.call(failing(1, error))
    assert not breaker.open


# -- streams ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    cursor: int
    size: int


class Broken:
    """Counts to ``end`` and breaks where it is told to."""

    def __init__(self, end: int, faults: dict[int, list[Exception]]) -> None:
        self.end, self.faults, self.opened = end, faults, 0

    def open(self, after: Any, size: int) -> Iterator[Item]:
        self.opened += 1
        at = after or 0
        while at < self.end:
            due = self.faults.get(at)
            if due:
                raise due.pop(0)
            at = min(at + size, self.end)
            yield Item(at, size)


def test_a_fault_at_every_item_is_survived(waits: list[float]) -> None:
    stream = Broken(50, {n: [RetryableError("again")] * 3 for n in range(50)})
    found = [i.cursor for i in reopened(stream.open, None, 1, RetryPolicy(attempts=4).backoff())]
    assert found == list(range(1, 51)) and stream.opened == 151


def test_a_fault_without_progress_is_bounded(waits: list[float]) -> None:
    stream = Broken(50, {7: [RetryableError("again")] * 99})
    found: list[int] = []
    items = reopened(stream.open, None, 1, RetryPolicy(attempts=4).backoff())
    with pytest.raises(RetryableError):
        found.extend(item.cursor for item in items)
    assert found[-1] == 7 and len(stream.faults[7]) == 95


def test_a_break_waits_as_long_as_the_source_says(waits: list[float]) -> None:
    stream = Broken(4, {2: [RetryableError("later", retry_after=7.0)]})
    assert [i.cursor for i in reopened(stream.open, None, 1, RetryPolicy().backoff())] == [1, 2, 3, 4]
    assert 7.0 <= waits[0] <= 7.1


def test_what_is_too_large_or_late_is_asked_for_in_halves(waits: list[float]) -> None:
    stream = Broken(16, {0: [RequestTooLargeError("big")], 4: [TimedOutError("late")]})
    assert [i.size for i in reopened(stream.open, None, 8, RetryPolicy().backoff())][:2] == [4, 2]
    stuck = Broken(4, {0: [RequestTooLargeError("big")] * 9})
    with pytest.raises(RequestTooLargeError):
        list(reopened(stuck.open, None, 8, RetryPolicy().backoff()))
