"""How far a stored vector may be from the one that was written.

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

from vecferry.model import DType, Kind, VectorField

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
