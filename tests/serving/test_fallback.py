"""Searching the first side that can answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecferry as vf
from vecferry.core.retry import CircuitBreaker
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    NotFoundError,
    RetryableError,
    SchemaMismatchError,
    SpaceMismatchError,
)
from vecferry.model.filters import matches
from vecferry.serving import FallbackCollection, Hits

from .conftest import DIM, Moody, WordEmbedder, fill

TEXT = "record number n5 about topic t5"


@pytest.fixture
def sides(words: WordEmbedder) -> tuple[Moody, Moody]:
    return fill(Moody(), words), fill(Moody(), words)


@pytest.fixture
def kb(sides: tuple[Moody, Moody], words: WordEmbedder) -> Iterator[FallbackCollection]:
    with FallbackCollection(*sides, names=("local", "cloud"), embedder=words) as collection:
        yield collection


def test_the_first_side_answers_and_hits_say_so(kb: FallbackCollection) -> None:
    hits = kb.search(TEXT, k=3)
    assert isinstance(hits, Hits)
    assert hits[0].id == 5
    assert (hits.origin, hits.fell_back, hits.attempts) == ("local", False, ())
    assert {h.origin for h in hits} == {"local"}
    assert "origin" not in hits[0].metadata
    assert kb.figures.get("searches", side="local") == 1
    assert kb.figures.latency("local").count == 1


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RetryableError("503"), "error"),
        (FatalStoreError("quota"), "error"),
        (NotFoundError("no such index"), "missing"),
        (ConfigurationError("no key"), "configuration"),
        (SchemaMismatchError("odd"), "schema"),
        (ValueError("a vendor's own"), "error"),
    ],
)
def test_any_error_falls_back_and_is_counted_by_cause(
    kb: FallbackCollection, sides: tuple[Moody, Moody], error: Exception, cause: str
) -> None:
    sides[0].error = error
    hits = kb.search(TEXT)
    assert (hits.origin, hits[0].id, hits[0].origin) == ("cloud", 5, "cloud")
    [attempt] = hits.attempts
    assert (attempt.side, attempt.cause) == ("local", cause)
    assert str(error) in attempt.reason
    assert kb.figures.get("fallbacks", side="local", cause=cause) == 1
    assert kb.figures.get("searches", side="cloud") == 1


def test_a_slow_side_is_left_in_time(sides: tuple[Moody, Moody], words: WordEmbedder) -> None:
    sides[0].pause = 1.0
    with FallbackCollection(*sides, embedder=words, timeout=0.05) as kb:
        start = time.monotonic()
        hits = kb.search(TEXT)
        assert time.monotonic() - start < 0.6
        assert (hits.origin, hits.attempts[0].cause) == ("secondary", "timeout")


def test_a_breaker_opens_and_lets_a_probe_through(sides: tuple[Moody, Moody], words: WordEmbedder) -> None:
    now = [0.0]
    kb = FallbackCollection(
        *sides, embedder=words, breaker=lambda: CircuitBreaker(3, 10.0, clock=lambda: now[0])
    )
    sides[0].error = RetryableError("down")
    causes = [kb.search(TEXT).attempts[0].cause for _ in range(6)]
    assert causes == ["error"] * 3 + ["breaker"] * 3
    assert sides[0].searches == 3
    sides[0].error = None
    now[0] = 11.0
    assert kb.search(TEXT).origin == "primary"


def test_too_few_hits_fall_back_only_when_asked_for(
    sides: tuple[Moody, Moody], words: WordEmbedder
) -> None:
    sides[0].delete(list(range(2, 30)))
    assert FallbackCollection(*sides, embedder=words).search(TEXT, k=5).origin == "primary"
    kb = FallbackCollection(*sides, embedder=words, min_hits=4)
    hits = kb.search(TEXT, k=5)
    assert (hits.origin, len(hits), hits.attempts[0].cause) == ("secondary", 5, "few_hits")
    assert kb.search(TEXT, k=2).origin == "primary"
    sides[1].error = RetryableError("down")
    best = kb.search(TEXT, k=5)
    assert (best.origin, len(best)) == ("primary", 2)


def test_each_side_embeds_in_its_own_space(words: WordEmbedder) -> None:
    other = WordEmbedder("other-words")
    local, cloud = fill(Moody(), words), fill(Moody(), other)
    kb = FallbackCollection(
        local, cloud, names=("local", "cloud"), embedders={"local": words, "cloud": other}
    )
    assert kb.search(TEXT).origin == "local"
    local.error = RetryableError("down")
    hits = kb.search(TEXT)
    assert (hits.origin, hits[0].id) == ("cloud", 5)
    assert hits[0].score == pytest.approx(1.0, abs=1e-5)


def test_a_vector_never_goes_to_another_space(words: WordEmbedder) -> None:
    other = WordEmbedder("other-words")
    local, cloud = fill(Moody(), words), fill(Moody(), other)
    kb = FallbackCollection(local, cloud)
    vector = words.embed([TEXT])[0]
    assert kb.search(vector)[0].id == 5
    local.error = RetryableError("down")
    with pytest.raises(RetryableError, match="no side could answer") as caught:
        kb.search(vector)
    assert "secondary holds vectors of other-words" in str(caught.value)
    assert kb.search(other.embed([TEXT])[0], space=other.space).origin == "secondary"
    assert cloud.searches == 1
    wrong = FallbackCollection(local, embedder=other)
    with pytest.raises(SpaceMismatchError):
        wrong.search(TEXT)


def test_one_text_is_embedded_once_for_sides_that_share_an_embedder(
    kb: FallbackCollection, sides: tuple[Moody, Moody], words: WordEmbedder
) -> None:
    before = words.calls
    sides[0].error = RetryableError("down")
    kb.search(TEXT)
    assert words.calls == before + 1


def test_when_nobody_answers_the_error_names_everybody(
    kb: FallbackCollection, sides: tuple[Moody, Moody]
) -> None:
    sides[0].error, sides[1].error = FatalStoreError("quota"), RetryableError("503")
    with pytest.raises(RetryableError, match="local: quota; cloud: 503"):
        kb.search(TEXT)
    sides[1].error = FatalStoreError("gone")
    with pytest.raises(FatalStoreError):
        kb.search(TEXT)
    assert kb.figures.get("unanswered") == 2


def test_a_wrong_call_is_the_callers_error(kb: FallbackCollection) -> None:
    with pytest.raises(SchemaMismatchError):
        kb.search(np.ones(DIM + 1))
    with pytest.raises(ConfigurationError, match="unknown operator"):
        kb.search(TEXT, where={"n": {"$like": 1}})
    for bad in ({"names": ("a",)}, {"names": ("a", "a")}, {"timeout": {"nobody": 1.0}}):
        with pytest.raises(ConfigurationError):
            FallbackCollection(Moody(), Moody(), **bad)


def test_a_side_that_is_missing_at_first_is_opened_later(words: WordEmbedder) -> None:
    there = fill(Moody(), words)
    shelf: dict[str, Moody] = {}

    def opener() -> Moody:
        if "kb" not in shelf:
            raise NotFoundError("no local index yet")
        return shelf["kb"]

    kb = FallbackCollection(opener, there, embedder=words, reopen_after=0.05)
    assert [kb.search(TEXT).attempts[0].cause for _ in range(3)] == ["missing"] * 3
    assert kb.figures.get("initialisations", side="primary", result="missing") == 1
    shelf["kb"] = fill(Moody(), words)
    time.sleep(0.06)
    assert kb.search(TEXT).origin == "primary"
    assert kb.figures.get("initialisations", side="primary", result="ok") == 1


def test_urls_open_at_the_first_search(words: WordEmbedder) -> None:
    fill(vf.connect("memory:fallback-by-url").store, words)
    kb = FallbackCollection("faiss:/nowhere/at/all", "memory:fallback-by-url", embedder=words)
    assert kb.search(TEXT).origin == "secondary"


# -- the switch ---------------------------------------------------------------------------------------


def test_the_environment_switches_at_once(kb: FallbackCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECFERRY_PRIMARY", "cloud")
    assert (kb.search(TEXT).origin, kb.primary) == ("cloud", "cloud")
    monkeypatch.setenv("VECFERRY_PRIMARY", "typo")
    assert kb.search(TEXT).origin == "local"
    monkeypatch.delenv("VECFERRY_PRIMARY")
    assert kb.search(TEXT).origin == "local"


def test_setting_file_and_callable_switch(
    sides: tuple[Moody, Moody], words: WordEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "primary"
    kb = FallbackCollection(*sides, embedder=words, switch=file)
    assert kb.search(TEXT).origin == "primary"
    file.write_text("secondary\n")
    assert kb.search(TEXT).origin == "secondary"
    monkeypatch.setenv("VECFERRY_PRIMARY", "primary")
    assert kb.search(TEXT).origin == "secondary"
    kb.primary = "primary"
    assert kb.search(TEXT).origin == "primary"
    with pytest.raises(ConfigurationError, match="there are primary, secondary"):
        kb.primary = "cloud"
    kb.primary = None
    assert kb.search(TEXT).origin == "secondary"
    choice = {"now": "secondary"}
    other = FallbackCollection(*sides, embedder=words, switch=lambda: choice["now"])
    assert other.search(TEXT).origin == "secondary"


# -- async --------------------------------------------------------------------------------------------


def test_async_searches_run_side_by_side(sides: tuple[Moody, Moody], words: WordEmbedder) -> None:
    sides[0].pause = 0.1

    async def many() -> list[Hits]:
        with FallbackCollection(*sides, embedder=words, timeout=2.0) as kb:
            return await asyncio.gather(*(kb.asearch(TEXT, k=2) for _ in range(8)))

    start = time.monotonic()
    answers = asyncio.run(many())
    assert time.monotonic() - start < 0.7
    assert {hits.origin for hits in answers} == {"primary"}


def test_async_falls_back_too(sides: tuple[Moody, Moody], words: WordEmbedder) -> None:
    sides[0].pause = 0.5

    async def one() -> Hits:
        with FallbackCollection(*sides, embedder=words, timeout=0.05) as kb:
            return await kb.asearch(TEXT, k=2, where={"n": {"$lt": 10}})

    hits = asyncio.run(one())
    assert (hits.origin, hits.attempts[0].cause, len(hits)) == ("secondary", "timeout", 2)


def test_listeners_hear_every_event(sides: tuple[Moody, Moody], words: WordEmbedder) -> None:
    heard: list[tuple[str, float, dict[str, str]]] = []
    kb = FallbackCollection(
        *sides, embedder=words, listeners=[lambda name, n, labels: heard.append((name, n, dict(labels)))]
    )
    sides[0].error = RetryableError("down")
    kb.search(TEXT)
    names = [name for name, _, _ in heard]
    assert names.count("initialisations") == 2
    assert names[2:] == ["errors", "fallbacks", "searches", "search_seconds"]
    assert kb.figures.to_dict()["fallbacks"] == {"cause=error,side=primary": 1}


def test_a_listener_that_fails_does_not_fail_the_search(
    sides: tuple[Moody, Moody], words: WordEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise OSError("no metrics server")

    assert FallbackCollection(*sides, embedder=words, listeners=[broken]).search(TEXT)[0].id == 5
    assert "no metrics server" in caplog.text


def test_a_closed_collection_says_so_also_to_those_who_wait(
    sides: tuple[Moody, Moody], words: WordEmbedder
) -> None:
    for side in sides:
        side.pause = 0.2
    kb = FallbackCollection(*sides, embedder=words, timeout=5.0, workers=1)
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(kb.search, TEXT) for _ in range(3)]
        time.sleep(0.05)
        kb.close()
        ends = [future.exception() or future.result() for future in waiting]
    assert sum(isinstance(end, Hits) for end in ends) == 1
    assert [type(end) for end in ends].count(FatalStoreError) == 2
    for search in (lambda: kb.search(TEXT), lambda: asyncio.run(kb.asearch(TEXT))):
        with pytest.raises(FatalStoreError, match="is closed"):
            search()


def test_a_switch_that_cannot_be_asked_stops_no_search(
    sides: tuple[Moody, Moody], words: WordEmbedder, tmp_path: Path
) -> None:
    file = tmp_path / "primary.txt"
    with FallbackCollection(*sides, embedder=words, switch=file) as kb:
        file.write_bytes(b"\xff\xfe\x00")
        assert kb.search(TEXT).origin == "primary"
        file.write_bytes("\ufeffsecondary\r\n".encode())  # as Windows' editor writes it
        assert kb.search(TEXT).origin == "secondary"
    with FallbackCollection(*sides, embedder=words, switch=lambda: str(1 / 0)) as kb:
        assert kb.search(TEXT).origin == "primary"


def test_a_field_that_is_not_there_is_the_caller_s_mistake(kb: FallbackCollection) -> None:
    for _ in range(6):
        with pytest.raises(SchemaMismatchError, match="no vector field 'nope'"):
            kb.search(TEXT, field="nope")
    assert kb.search(TEXT).attempts == ()  # and no circuit breaker has opened


def test_with_a_filter_more_is_asked_for_until_enough_have_passed(words: WordEmbedder) -> None:
    class FiltersLast(Moody):
        """Filters the k nearest, as a hosted index may."""

        asked: list[int]

        def search(self, vector: Any, k: int = 10, *, where: Any = None, **options: Any) -> Any:
            self.asked.append(k)
            return [
                h
                for h in super().search(vector, k, **options)
                if where is None or matches(where, h.metadata)
            ]

    store = fill(FiltersLast(), words, range(200))
    store.asked = []
    with FallbackCollection(store, embedder=words, min_hits=5) as kb:
        hits = kb.search("text 150", k=5, where={"n": {"$gte": 190}})
        assert len(hits) == 5 and not hits.fell_back and all(hit.metadata["n"] >= 190 for hit in hits)
        assert store.asked[0] == 5 and len(store.asked) > 1
        store.asked.clear()
        assert len(kb.search("text 150", k=5, where={"n": {"$gte": 198}})) == 2
        assert len(store.asked) <= 5, "it ends when there are no more"
