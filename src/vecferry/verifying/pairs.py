"""Comparing rows that belong together: texts and metadata typed and exact, vectors within a tolerance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vecferry.model import MultiColumn, RecordBatch, SparseColumn
from vecferry.model.vectors import Array, Column, DenseColumn
from vecferry.verifying.digest import parse_canonical
from vecferry.verifying.tolerance import Tolerance

_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Measured:
    """One vector field of some pairs: ``rows`` that differ with the reason, and every deviation."""

    faults: dict[int, tuple[str, float | None]]
    deviations: Array


def explain_documents(expected: bytes, found: bytes) -> tuple[str, str]:
    """Where two canonical forms differ first, and how: ``("metadata/page", "3 (int) became …")``."""
    _, text, metadata, types = parse_canonical(expected)
    _, other_text, other_metadata, other_types = parse_canonical(found)
    if text != other_text:
        return "text", f"{_show(text)} became {_show(other_text)}"
    for pointer, reason in _differences(metadata, other_metadata, types, other_types, ""):
        return f"metadata{pointer}", reason
    return "metadata", "the types of its values differ"


def _differences(
    a: Any, b: Any, a_types: Mapping[str, str], b_types: Mapping[str, str], pointer: str
) -> Iterator[tuple[str, str]]:
    kind, other = a_types.get(pointer) or _kind(a), b_types.get(pointer) or _kind(b)
    if kind != other:
        yield pointer, f"{_show(a)} ({kind}) became {_show(b)} ({other})"
        return
    if isinstance(a, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            place = f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"
            if key not in b:
                yield place, f"{_show(a[key])} is gone"
            elif key not in a:
                yield place, f"{_show(b[key])} was not there before"
            else:
                yield from _differences(a[key], b[key], a_types, b_types, place)
    elif isinstance(a, list):
        if len(a) != len(b):
            yield pointer, f"{len(a)} items became {len(b)}"
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from _differences(x, y, a_types, b_types, f"{pointer}/{i}")
    elif repr(a) != repr(b):
        yield pointer, f"{_show(a)} became {_show(b)}"


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


# -- vectors ----------------------------------------------------------------------------------


def columns(batch: RecordBatch, name: str) -> Column | None:
    """The column of a field, dense, multi or sparse."""
    return batch.vectors.get(name) or batch.sparse_vectors.get(name)


def compare_vectors(expected: Column | None, found: Column | None, rows: int, rule: Tolerance) -> Measured:
    """Compare ``rows`` vectors pairwise.

    Returns:
        The faults by row, and float64 deviations of the vectors that both sides have: the largest
        difference of a component.
    """
    have = np.zeros(rows, np.bool_) if expected is None else expected.present
    there = np.zeros(rows, np.bool_) if found is None else found.present
    faults: dict[int, tuple[str, float | None]] = {}
    for row in np.flatnonzero(have & ~there).tolist():
        faults[row] = ("the vector is missing", None)
    for row in np.flatnonzero(there & ~have).tolist():
        faults[row] = ("there is a vector where none was", None)
    both = np.flatnonzero(have & there)
    if expected is None or found is None or not len(both):
        return Measured(faults, np.empty(0))
    if len(both) < rows:
        expected, found = expected.take(both), found.take(both)
    a, b, owner, fits = _aligned(expected, found)
    for row in np.flatnonzero(~fits).tolist():
        faults[int(both[row])] = (_misfit(expected, found, row), None)
    good, deviations = _measure(a, b, rule)
    per_row = np.zeros(len(both))
    np.maximum.at(per_row, owner, deviations)
    for row in np.unique(owner[~good]).tolist():
        worst = float(per_row[row])
        faults[int(both[row])] = (_reason(worst, rule), worst)
    return Measured(faults, per_row[fits])


def _reason(worst: float, rule: Tolerance) -> str:
    if rule.exact:
        return f"a component differs by up to {worst:.3g} where it should be equal bit for bit"
    return f"a component differs by up to {worst:.3g}, more than {rule} allows"


def _aligned(a: Any, b: Any) -> tuple[Array, Array, Array, Array]:
    """Two matrices of equal shape, the row that owns each line of them, and which rows fit at all."""
    n = len(a)
    if isinstance(a, DenseColumn) and isinstance(b, DenseColumn):
        if a.values.shape[1] == b.values.shape[1]:
            return a.values, b.values, np.arange(n), np.ones(n, np.bool_)
    elif type(a) is type(b):
        return _aligned_ragged(a, b)
    nothing = np.empty((0, 1), np.float32)
    return nothing, nothing, np.empty(0, np.int64), np.zeros(n, np.bool_)


def _aligned_ragged(
    a: MultiColumn | SparseColumn, b: MultiColumn | SparseColumn
) -> tuple[Array, Array, Array, Array]:
    n = len(a)
    lengths = np.diff(_offsets(a))
    fits = lengths == np.diff(_offsets(b))
    if a.values.ndim == 2 and a.values.shape[1] != b.values.shape[1]:
        fits[:] = False
    rows = np.flatnonzero(fits)
    a, b = a.take(rows), b.take(rows)
    owner = np.repeat(rows, lengths[rows])
    if isinstance(a, SparseColumn) and isinstance(b, SparseColumn):
        wrong = np.unique(owner[a.indices != b.indices])
        fits[wrong] = False
        keep = fits[owner]
        return a.values[keep, None], b.values[keep, None], owner[keep], fits
    return a.values.reshape(len(owner), -1), b.values.reshape(len(owner), -1), owner, np.asarray(fits[:n])


def _offsets(column: MultiColumn | SparseColumn) -> Array:
    return column.indptr if isinstance(column, SparseColumn) else column.offsets


def _misfit(a: Any, b: Any, row: int) -> str:
    if type(a) is not type(b):
        return f"the vector is {type(b).__name__} where {type(a).__name__} was written"
    x, y = a[row], b[row]
    if isinstance(a, SparseColumn) and len(x) == len(y):
        return "the indices of the sparse vector differ"
    return f"the vector has {len(y)} entries where {len(x)} were written"


def _measure(a: Array, b: Array, rule: Tolerance) -> tuple[Array, Array]:
    """Which lines are within the rule, and float64 ``(lines,)``: the largest difference in each."""
    same = _same_bits(a, b)
    good, deviations = same.copy(), np.zeros(len(a))
    left = np.flatnonzero(~same)
    if not len(left):
        return good, deviations
    with np.errstate(invalid="ignore"):  # a signalling NaN
        x, y = a[left].astype(np.float64), b[left].astype(np.float64)
    fine = np.ones(len(left), np.bool_)
    if rule.direction:
        x_length, y_length = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
        if rule.lengths:
            fine = np.abs(x_length - y_length) <= rule.relative * x_length
        zero = (x_length == 0) | (y_length == 0)
        x /= np.where(zero, 1, x_length)[:, None]
        y /= np.where(zero, 1, y_length)[:, None]
    with np.errstate(invalid="ignore"):
        difference = np.abs(x - y)
        allowed = rule.absolute + rule.relative * np.abs(x)
        # A NaN on one side makes the comparison false, as it should.
        fine &= ((difference <= allowed) | (x == y)).all(axis=1)
    if rule.exact:
        fine = _same_bits(x, y) if a.dtype != b.dtype else np.zeros(len(left), np.bool_)
    good[left] = fine | rule.lossy
    worst = np.nan_to_num(difference, nan=np.inf).max(axis=1, initial=0.0)
    deviations[left] = worst
    return good, deviations


def _same_bits(a: Array, b: Array) -> Array:
    """bool ``(lines,)``: equal dtype and bits."""
    if a.dtype != b.dtype:
        return np.zeros(len(a), np.bool_)
    bits = np.dtype(f"u{a.dtype.itemsize}")
    same: Array = (np.ascontiguousarray(a).view(bits) == np.ascontiguousarray(b).view(bits)).all(axis=1)
    return same
