"""Whatever fails when: one space in a target, every text computed once, the order kept."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servers.openai_faults import vector_of
from vecferry.core.retry import RetryPolicy
from vecferry.embedding import (
    BaseEmbedder,
    EmbedderChain,
    EmbedStage,
    Ledger,
    Part,
    SqliteCache,
    choose_alternative,
)
from vecferry.errors import EmbedderExhausted, FatalStoreError, JobStopped, RetryableError
from vecferry.model import EmbeddingSpace, RecordBatch
from vecferry.ports import Embedder, InFlightBatch, Partition

QUICK = RetryPolicy(attempts=2, max_seconds=1.0, base=0.0, cap=0.0)
DIM = 4
REFUSED = "refused"

kinds = st.sampled_from(["ok", "ok", "passing", "final", "stopped", "half"])
texts_of = st.lists(st.sampled_from([*"abcdefghijklmnop", REFUSED]), min_size=6, max_size=40)


class Flaky(BaseEmbedder):
    """Serves a space in parts of three texts; each part ends as the script says."""

    provider = "flaky"

    def __init__(self, model: str, script: Sequence[str], computed: Counter[tuple[str, str]]) -> None:
        super().__init__()
        self.name = model
        self._space = EmbeddingSpace(model=model, dim=DIM)
        self._script = list(script)
        self._computed = computed

    @property
    def space(self) -> EmbeddingSpace:
        return self._space

    def embed_parts(self, texts: Sequence[str]) -> Iterator[Part]:
        for start in range(0, len(texts), 3):
            rows = list(range(start, min(start + 3, len(texts))))
            fate = self._script.pop(0) if self._script else "ok"
            if fate == "passing":
                raise RetryableError("for now")
            if fate == "final":
                raise FatalStoreError("for good")
            if fate == "stopped":
                raise JobStopped("killed")
            # Answers come in any order.
            good = [row for row in rows if texts[row] != REFUSED][::-1]
            self._computed.update((self.name, texts[row]) for row in good)
            if good:
                yield Part(good, np.stack([vector_of(texts[row], self.name, DIM) for row in good]))
            if bad := [row for row in rows if texts[row] == REFUSED]:
                yield Part(bad, None, "refused")
            if fate == "half":
                raise RetryableError("after an answer")


def parcels(texts: list[str], size: int) -> list[InFlightBatch]:
    result = []
    for start in range(0, len(texts), size):
        rows = texts[start : start + size]
        ids = list(range(start, start + len(rows)))
        batch = RecordBatch(ids=ids, texts=rows, metadata=[{} for _ in rows])
        result.append(InFlightBatch(batch=batch, partition=Partition("0"), cursor=None, read=len(rows)))
    return result


def run(
    choices: list[Embedder],
    work: list[InFlightBatch],
    target: dict[int, np.ndarray],
    folder: Path,
    known: str | None,
) -> str:
    """One run of a job: choose, then write batch after batch; the space's fingerprint."""
    chosen = choose_alternative(choices, fingerprint=known, retry=QUICK).embedder
    cache, ledger = SqliteCache(folder / "c.sqlite"), Ledger(folder / "l.sqlite")
    stage = EmbedStage(chosen, cache=cache, ledger=ledger)
    run.fingerprint = chosen.space.fingerprint  # type: ignore[attr-defined]
    try:
        for parcel in work:
            out = stage.apply(parcel)
            column: Any = out.batch.vectors[""] if len(out.batch) else None
            for row, id_ in enumerate(out.batch.id_list):
                target[int(str(id_))] = column[row]
    finally:
        cache.close()
        ledger.close()
    return chosen.space.fingerprint


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=texts_of,
    size=st.integers(2, 20),
    first=st.lists(kinds, min_size=6, max_size=25),
    second=st.lists(kinds, max_size=25),
    other=st.lists(kinds, max_size=10),
)
def test_one_space_once_and_in_order(
    texts: list[str], size: int, first: list[str], second: list[str], other: list[str]
) -> None:
    computed: Counter[tuple[str, str]] = Counter()
    target: dict[int, np.ndarray] = {}
    known: str | None = None
    with tempfile.TemporaryDirectory() as folder:
        hosts = [Flaky("a", first, computed), Flaky("a", second, computed)]
        alternative = Flaky("b", other, computed)
        for _ in range(80):
            # A restart of the process: the hosts are tried afresh, their scripts go on.
            choices: list[Embedder] = [EmbedderChain(hosts, retry=QUICK), alternative]
            try:
                known = run(choices, parcels(texts, size), target, Path(folder), known)
                break
            except (EmbedderExhausted, JobStopped):
                if target:
                    known = run.fingerprint  # type: ignore[attr-defined]
        else:
            raise AssertionError("the scripts are finite, so some run must succeed")
    (model,) = [m for m in "ab" if EmbeddingSpace(model=m, dim=DIM).fingerprint == known]
    wanted = [row for row, text in enumerate(texts) if text != REFUSED]
    assert sorted(target) == wanted
    for row in wanted:
        assert np.array_equal(target[row], vector_of(texts[row], model, DIM)), (
            "another space, or order lost"
        )
    for text in set(texts) - {REFUSED}:
        assert computed[(model, text)] == 1, f"{text!r} was computed {computed[(model, text)]} times"


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(max_size=3), max_size=60), known=st.sets(st.text(max_size=3), max_size=10))
def test_the_cache_changes_nothing_but_the_calls(texts: list[str], known: set[str]) -> None:
    from vecferry.embedding import CachedEmbedder

    computed: Counter[tuple[str, str]] = Counter()
    plain = Flaky("a", [], Counter())
    with tempfile.TemporaryDirectory() as folder:
        cache = SqliteCache(Path(folder) / "c.sqlite")
        CachedEmbedder(Flaky("a", [], Counter()), cache).embed(sorted(known))
        cached = CachedEmbedder(Flaky("a", [], computed), cache)
        vectors = cached.embed(texts)
        cache.close()
    assert vectors.tobytes() == plain.embed(texts).tobytes()
    assert {text for _, text in computed} == set(texts) - known
    assert set(computed.values()) <= {1}
