"""Similarity under each metric. Higher is better for all: distances are negated.

| metric | score |
|---|---|
| cosine | a·b / (‖a‖ ‖b‖), in [−1, 1]; 0 where a length is 0 |
| ip | a·b |
| l2 | −‖a − b‖₂ (not squared) |
| l1 | −‖a − b‖₁ |
| hamming | −(number of differing bits) |
| jaccard | −(1 − |a ∧ b| / |a ∨ b|) on bits |

A multi-vector scores as in ColBERT: the sum over query rows of the best document row (MaxSim,
Khattab & Zaharia 2020).
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from vecferry.model.schema import Kind, Metric
from vecferry.model.vectors import Array, SparseVector


def scores(metric: Metric, query: Array, matrix: Array) -> Array:
    """float32 ``(n,)``: the score of ``query`` ``(dim,)`` with every row of ``matrix`` ``(n, dim)``."""
    if metric in (Metric.HAMMING, Metric.JACCARD):
        return _bit_scores(metric, query, matrix)
    query = np.asarray(query, dtype=np.float32)
    matrix = np.asarray(matrix, dtype=np.float32)
    if metric is Metric.L2:
        distances: Array = np.linalg.norm(matrix - query, axis=1)
        return -distances
    if metric is Metric.L1:
        return cast(Array, -np.abs(matrix - query).sum(axis=1))
    products = matrix @ query
    if metric is Metric.IP:
        return products
    lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(query)
    return cast(Array, np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0))


def scores_many(metric: Metric, queries: Array, matrix: Array) -> Array:
    """float32 ``(q, n)``: `scores` of every query ``(q, dim)``, as one matrix product where possible."""
    if metric not in (Metric.COSINE, Metric.IP):
        return np.stack([scores(metric, query, matrix) for query in queries])
    queries, matrix = np.asarray(queries, np.float32), np.asarray(matrix, np.float32)
    products: Array = queries @ matrix.T
    if metric is Metric.IP:
        return products
    lengths = np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(matrix, axis=1))
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


def score(metric: Metric, kind: Kind, query: Any, stored: Any) -> float:
    """The score of one pair, dense, sparse or multi."""
    if kind is Kind.SPARSE:
        return sparse_score(metric, query, stored)
    if kind is Kind.MULTI:
        rows = np.atleast_2d(query)
        return float(sum(scores(metric, row, stored).max(initial=-np.inf) for row in rows))
    return float(scores(metric, query, np.asarray(stored)[None, :])[0])


def sparse_score(metric: Metric, a: SparseVector, b: SparseVector) -> float:
    """Inner product or cosine of two sparse vectors (l2 and l1 as negated distances)."""
    if metric in (Metric.L2, Metric.L1):
        indices = np.union1d(a.indices, b.indices)
        difference = _spread(a, indices) - _spread(b, indices)
        order = 2 if metric is Metric.L2 else 1
        return -float(np.linalg.norm(difference, ord=order))
    _, left, right = np.intersect1d(a.indices, b.indices, assume_unique=True, return_indices=True)
    product = float(a.values[left] @ b.values[right])
    if metric is Metric.COSINE:
        lengths = float(np.linalg.norm(a.values) * np.linalg.norm(b.values))
        return product / lengths if lengths else 0.0
    return product


def _spread(vector: SparseVector, indices: Array) -> Array:
    out = np.zeros(len(indices), dtype=np.float32)
    out[np.searchsorted(indices, vector.indices)] = vector.values
    return out


def _bit_scores(metric: Metric, query: Array, matrix: Array) -> Array:
    """On packed uint8 rows, or on 0/1 rows of any other dtype."""
    query, matrix = np.asarray(query, np.uint8), np.asarray(matrix, np.uint8)
    if metric is Metric.HAMMING:
        return cast(Array, -np.bitwise_count(matrix ^ query).sum(axis=1).astype(np.float32))
    both = np.bitwise_count(matrix & query).sum(axis=1)
    either = np.bitwise_count(matrix | query).sum(axis=1)
    shares = np.divide(both, either, out=np.ones(len(matrix)), where=either > 0)
    return cast(Array, (shares - 1.0).astype(np.float32))
