"""Vectors kept lately, compared with everything that comes next: exactly, but most pairs by a bound only.

Write a unit vector x as its part in a subspace, p = Qᵀx with orthonormal columns Q, and the length r of the
rest. By Cauchy and Schwarz x·y ≤ p·p' + r r', which is the product of the two *sketches* (p, r). A
pair whose sketches multiply to less than the threshold is not near, and needs no look at all components.
Where the subspace holds much of the vectors' length, hardly any other pairs remain. It is found by
subspace iteration (N. Halko, P. Martinsson, J. Tropp, "Finding structure with randomness", 2011).
"""

from __future__ import annotations

import numpy as np

from vecferry.model.vectors import Array

ROUNDING = 1e-6
"""Cosines closer to each other than this are equal: the rounding of float32 vectors."""
UNSURE = 1e-5
"""Products closer to the threshold than this are computed again in float64, free of BLAS's order."""
_WIDTH = 64
_LEAST_DIM = 2 * _WIDTH
_LEARN_FROM = 512
_ROWS_AT_ONCE = 256
_WORTH_IT = 4


class Nearby:
    """A list of unit vectors, ``(n, dim)`` float32, to which some of each block looked at are added."""

    def __init__(self, dim: int, threshold: float) -> None:
        self._threshold = threshold
        self._count = 0
        self._vectors = np.empty((0, dim), np.float32)
        self._sketches = np.empty((0, _WIDTH), np.float32)
        self._basis: Array | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def vectors(self) -> Array:
        """Those in the list, ``(n, dim)``."""
        return self._vectors[: self._count]

    def near(self, block: Array) -> tuple[Array, Array, Array]:
        """Pairs of a row of ``block`` and something earlier whose cosine is at least the threshold.

        Returns:
            row, column and cosine of each pair, by row and then by column. Columns below ``len(self)``
            are vectors of the list, those from there on are rows of the block itself.
        """
        self._append(block)
        parts = [
            self._pairs(start, min(start + _ROWS_AT_ONCE, len(block)))
            for start in range(0, len(block), _ROWS_AT_ONCE)
        ]
        rows, columns, alike = (np.concatenate(part) for part in zip(*parts, strict=True))
        certain = self._settle(rows, columns, alike)
        return rows[certain], columns[certain], alike[certain]

    def keep(self, rows: Array) -> None:
        """Add these rows of the block that `near` was given last."""
        at = slice(self._count, self._count + len(rows))
        self._vectors[at] = self._vectors[self._count + rows]
        self._sketches[at] = self._sketches[self._count + rows]
        self._count += len(rows)

    def add(self, vectors: Array) -> None:
        """Add vectors that were kept before."""
        self._append(vectors)
        self._count += len(vectors)

    def clear(self) -> None:
        """Empty the list."""
        self._count = 0

    # -- helpers ------------------------------------------------------------------------------

    def _append(self, block: Array) -> None:
        """Put the block behind the list, without counting it."""
        stop = self._count + len(block)
        if stop > len(self._vectors):
            self._vectors = _grown(self._vectors, self._count, stop)
            self._sketches = _grown(self._sketches, self._count, stop)
        self._vectors[self._count : stop] = block
        if self._basis is None and stop >= _LEARN_FROM and block.shape[1] >= _LEAST_DIM:
            self._basis = _main_directions(self._vectors[:stop], _WIDTH - 1)
            self._sketches[: self._count] = _sketches(self.vectors, self._basis)
        if self._basis is not None:
            self._sketches[self._count : stop] = _sketches(block, self._basis)

    def _pairs(self, start: int, stop: int) -> tuple[Array, Array, Array]:
        """Row, column and rough cosine of the pairs of some rows of the block that may be near."""
        mine, all_before = slice(self._count + start, self._count + stop), self._count + stop
        if self._basis is not None:
            bounds = self._sketches[mine] @ self._sketches[:all_before].T
            rows, columns = self._earlier(bounds, start)
            if len(rows) <= _WORTH_IT * (stop - start):
                left, right = self._vectors[self._count + rows], self._vectors[columns]
                return rows, columns, np.einsum("ij,ij->i", left, right)
            self._basis = None  # it says too little here: learn another one from what comes next
        products = self._vectors[mine] @ self._vectors[:all_before].T
        rows, columns = self._earlier(products, start)
        return rows, columns, products[rows - start, columns]

    def _earlier(self, products: Array, start: int) -> tuple[Array, Array]:
        found = np.flatnonzero(products >= self._threshold - UNSURE)
        rows, columns = np.divmod(found, products.shape[1])
        rows += start
        earlier = columns < self._count + rows
        return rows[earlier], columns[earlier]

    def _settle(self, rows: Array, columns: Array, alike: Array) -> Array:
        certain = alike >= self._threshold
        unsure = np.flatnonzero(np.abs(alike - self._threshold) < UNSURE)
        left, right = self._vectors[self._count + rows[unsure]], self._vectors[columns[unsure]]
        certain[unsure] = near_enough(left, right, self._threshold)
        return certain


def near_enough(left: Array, right: Array, threshold: float) -> Array:
    """Whether the cosine of each row of two matrices of unit vectors reaches the threshold."""
    products = (left.astype(np.float64) * right.astype(np.float64)).sum(axis=1)
    enough: Array = products >= threshold - ROUNDING
    return enough


def _grown(rows: Array, count: int, least: int) -> Array:
    grown = np.empty((max(least, 2 * len(rows)), rows.shape[1]), rows.dtype)
    grown[:count] = rows[:count]
    return grown


def _main_directions(vectors: Array, width: int) -> Array:
    """Orthonormal columns ``(dim, width)`` that span about what the vectors have most of."""
    basis = np.random.default_rng(1).normal(size=(vectors.shape[1], width)).astype(np.float32)
    for _ in range(3):
        basis = np.linalg.qr(vectors.T @ (vectors @ basis))[0]
    return basis


def _sketches(vectors: Array, basis: Array) -> Array:
    parts = vectors @ basis
    rest = 1 - np.einsum("ij,ij->i", parts, parts)
    return np.concatenate([parts, np.sqrt(np.maximum(rest, 0))[:, None]], axis=1)
