"""The pairs that are found through bounds are those of an exhaustive comparison."""

import numpy as np
import pytest

from vecferry.dedupe.similar import Nearby


def unit(values):
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def some(kind, n):
    """Unit vectors with near pairs among them: most length in few directions, in all, or no variety."""
    random = np.random.default_rng(4)
    values = random.normal(size=(n, 256))
    if kind == "few directions":
        values = random.normal(size=(n, 20)) @ random.normal(size=(20, 256)) + 0.3 * values
    if kind == "all alike":
        values = random.normal(size=256) + 0.05 * values
    values[n // 2 :: 3] = values[: len(values[n // 2 :: 3])] + 0.02 * random.normal(size=256)
    return unit(values)


@pytest.mark.parametrize("threshold", [0.6, 0.98])
@pytest.mark.parametrize("kind", ["few directions", "all directions", "all alike"])
@pytest.mark.parametrize("step", [300, 1500])
def test_near_pairs_are_those_of_an_exhaustive_comparison(kind, step, threshold):
    vectors = some(kind, 1500)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    nearby, kept = Nearby(256, threshold), np.empty(0, np.int64)
    for start in range(0, len(vectors), step):
        block = np.arange(start, min(start + step, len(vectors)))
        before = np.concatenate([kept, block])
        rows, columns, alike = nearby.near(vectors[block])
        assert list(zip(rows, columns, strict=True)) == sorted(zip(rows, columns, strict=True))
        here = exact[np.ix_(block, before)]
        earlier = np.arange(len(before))[None, :] < len(kept) + np.arange(len(block))[:, None]
        assert np.allclose(alike, here[rows, columns], atol=2e-6)
        found = np.zeros_like(earlier)
        found[rows, columns] = True
        close = np.abs(here - threshold) < 3e-6
        assert ((found == (earlier & (here >= threshold))) | close).all()
        stay = np.arange(0, len(block), 2)
        nearby.keep(stay)
        kept = np.concatenate([kept, block[stay]])
        assert np.array_equal(nearby.vectors, vectors[kept])
