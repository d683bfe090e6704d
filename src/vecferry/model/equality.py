"""When two vectors are equal: how far a stored one may be from the one that was written.

u is half the distance from 1 to the next number: 2⁻²⁴ for float32, 2⁻¹¹ for float16 (IEEE 754).

| the target stores | and | rule, for each component |
|---|---|---|
| the same dtype, or a wider one | as it comes | equal bit for bit |
| float16 | as it comes | ``|x − y| ≤ 2⁻¹¹ |x| + 2⁻²⁵``: one rounding, the last term for subnormals |
| int8, uint8 | rounded | ``|x − y| ≤ ½`` |
| float32 | at unit length | directions: ``|x̂ − ŷ| ≤ (d + 8) u |x̂|`` |
| float16 | at unit length | the sum of both rules |
| a lossy index | | nothing is demanded; the deviation is reported |

The rule for directions: the length of d components, summed in float32 in any order, has a relative error
of at most (d/2 + 1) u, the root and the division add 2 u (N. Higham, *Accuracy and Stability of Numerical
Algorithms*, sections 3.1 and 4.2); doubled, since some stores normalise again when they read. The lengths
taken for the comparison itself are computed in float64. A zero vector has no direction and must come back
as zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vecferry.model.schema import DType, Kind, VectorField
from vecferry.model.vectors import Array, Column, DenseColumn, MultiColumn, SparseColumn

_FLOAT16_RELATIVE, _FLOAT16_ABSOLUTE = 2.0**-11, 2.0**-25
_ORDER = (DType.FLOAT16, DType.FLOAT32)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """``|x − y| ≤ absolute + relative · |x|`` for each component.

    Attributes:
        exact: demand equal bits instead.
        direction: compare at unit length.
        lengths: with ``direction``, also compare the lengths, within ``relative``.
        lossy: demand nothing.
    """

    relative: float = 0.0
    absolute: float = 0.0
    exact: bool = False
    direction: bool = False
    lengths: bool = False
    lossy: bool = False

    def __str__(self) -> str:
        if self.exact:
            return "bit for bit"
        if self.lossy:
            return "lossy index, reported only"
        terms = [f"{self.relative:.2g}·|x|"] if self.relative else []
        terms += [f"{self.absolute:.2g}"] if self.absolute else []
        return f"{'directions ' if self.direction else ''}within {' + '.join(terms) or '0'}"


EXACT = Tolerance(exact=True)
LOSSY = Tolerance(lossy=True)


def tolerance_of(
    written: VectorField, stored: VectorField, *, normalizes: bool = False, keeps_norms: bool = False
) -> Tolerance:
    """The rule for one field.

    Args:
        written: as the vectors are before they are written.
        stored: as the target holds them.
        normalizes: the target stores this field at unit length.
        keeps_norms: and gives the length back.
    """
    relative, absolute = _rounding(written.dtype, stored.dtype)
    if normalizes and stored.kind is not Kind.SPARSE:
        width = stored.dim or written.dim or 4096
        relative += (width + 8) * 2.0**-24
        return Tolerance(relative, absolute, direction=True, lengths=keeps_norms)
    return Tolerance(relative, absolute) if relative or absolute else EXACT


def _rounding(written: DType, stored: DType) -> tuple[float, float]:
    if written == stored or DType.BIT in (written, stored):
        return 0.0, 0.0
    if stored is DType.FLOAT16 and written is DType.FLOAT32:
        return _FLOAT16_RELATIVE, _FLOAT16_ABSOLUTE
    if stored in (DType.INT8, DType.UINT8) and written in _ORDER:
        return 0.0, 0.5
    return 0.0, 0.0


# -- comparing ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """One vector field of some pairs: ``rows`` that differ with the reason, and every deviation."""

    faults: dict[int, tuple[str, float | None]]
    deviations: Array


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
    lengths = a.lengths
    fits = lengths == b.lengths
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
    return a.values, b.values, owner, np.asarray(fits[:n])


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
