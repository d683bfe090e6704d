"""Stages overlap through bounded queues."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vecferry.core.concurrency import in_order, merged, prefetch
from vecferry.errors import JobStopped


def test_the_order_is_kept() -> None:
    assert list(prefetch(lambda: iter(range(100)))) == list(range(100))


def test_it_runs_at_most_depth_items_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    stream = prefetch(items, depth=3)
    next(stream)
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1 + 1  # taken, waiting, in the producer's hand, just begun
    stream.close()


def test_an_error_reaches_the_consumer_after_what_was_good() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    stream = prefetch(items)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        next(stream)


def test_a_consumer_that_leaves_stops_the_producer() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    stream = prefetch(items)
    next(stream)
    stream.close()
    assert closed.wait(5)


def test_several_streams_run_at_the_same_time_and_each_keeps_its_order() -> None:
    meeting = threading.Barrier(3)

    def stream(number: int) -> Iterator[tuple[int, int]]:
        meeting.wait(10)  # nobody goes on before all three are here
        yield from ((number, i) for i in range(50))

    made = list(merged([lambda n=n: stream(n) for n in range(3)], workers=3))  # type: ignore[misc]
    assert sorted(made) == [(n, i) for n in range(3) for i in range(50)]
    for number in range(3):
        assert [i for n, i in made if n == number] == list(range(50))


def test_more_streams_than_threads_take_turns() -> None:
    most, here = [0], set[int]()

    def stream(number: int) -> Iterator[int]:
        here.add(number)
        most.append(len(here))
        yield number
        here.discard(number)

    made = list(merged([lambda n=n: stream(n) for n in range(20)], workers=2))  # type: ignore[misc]
    assert sorted(made) == list(range(20)) and max(most) <= 2
    assert list(merged([], workers=2)) == []


@pytest.mark.parametrize("leave", ["error", "close"])
def test_all_streams_end_in_their_own_threads(leave: str) -> None:
    ended: list[tuple[int, int]] = []

    def stream(number: int) -> Iterator[int]:
        mine = threading.get_ident()
        try:
            yield from range(1_000_000)
        finally:
            ended.append((mine, threading.get_ident()))

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    streams = [lambda: stream(0), lambda: stream(1), *([broken] if leave == "error" else [])]
    made = merged(streams, workers=3, name="leaving")
    if leave == "error":
        with pytest.raises(ValueError, match="broken"):
            list(made)
    else:
        next(made)
        made.close()
    assert ended and all(begun == closed for begun, closed in ended)
    assert not [t for t in threading.enumerate() if "leaving" in t.name]


def test_calls_overlap_and_come_back_in_order() -> None:
    meeting = threading.Barrier(2)

    def call(i: int) -> int:
        if i < 2:
            meeting.wait(10)
        time.sleep(0.001 * (i % 3))
        return i * i

    assert list(in_order(call, range(40), workers=2)) == [(i, i * i) for i in range(40)]


def test_few_calls_are_under_way() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            asked.append(i)
            yield i

    calls = in_order(lambda i: i, items(), workers=3)
    next(calls)
    assert len(asked) <= 4
    calls.close()


def test_a_call_that_fails_is_raised_where_it_stands() -> None:
    def call(i: int) -> int:
        if i == 5:
            raise TimeoutError("5")
        return i

    seen = []
    with pytest.raises(TimeoutError, match="5"):
        for i, _ in in_order(call, range(100), workers=3, name="failing"):
            seen.append(i)
    assert seen == [0, 1, 2, 3, 4]
    assert not [t for t in threading.enumerate() if "failing" in t.name]


@pytest.mark.parametrize("how", ["merged", "in_order"])
def test_a_stop_does_not_wait_for_a_server(how: str) -> None:
    stop, answer = threading.Event(), threading.Event()

    def hang(_: int = 0) -> Iterator[int]:
        stop.set()
        answer.wait(30)
        return iter([1])

    try:
        with pytest.raises(JobStopped):
            if how == "merged":
                list(merged([hang, hang], workers=2, should_stop=stop.is_set))
            else:
                list(in_order(hang, range(2), workers=2, should_stop=stop.is_set))
    finally:
        answer.set()
