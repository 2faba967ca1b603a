"""exp in float32 without a call, so that loops over it become vector instructions."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np

from engine.model.kernels.declare import exactly_rounded
from engine.model.kernels.storage import bits_to_float32, float32_to_bits

_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH = np.float32(0.693359375)  # few bits, so that its multiples are exact
_LN2_LOW = np.float32(-2.12194440e-4)
_ROUNDER = np.float32(12582912)  # 1.5 * 2^23: adding it leaves the nearest integer in the lowest bits
_LARGEST = np.float32(88.3762626647949)
_SMALLEST = np.float32(-87.3365478515625)
_COEFFICIENTS = tuple(
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)


@exactly_rounded
def exp(x):
    """exp(x) to 2 units in the last place; below -87.3 zero, above 88.3 infinity, NaN stays NaN.

    Cephes' method: x = n ln 2 + r, a polynomial for exp(r), and n added to the exponent.
    """
    bounded = min(max(x, _SMALLEST), _LARGEST)
    shifted = bounded * _LOG2_E + _ROUNDER
    n = shifted - _ROUNDER
    r = bounded - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    polynomial = _COEFFICIENTS[0]
    polynomial = polynomial * r + _COEFFICIENTS[1]
    polynomial = polynomial * r + _COEFFICIENTS[2]
    polynomial = polynomial * r + _COEFFICIENTS[3]
    polynomial = polynomial * r + _COEFFICIENTS[4]
    polynomial = polynomial * r + _COEFFICIENTS[5]
    value = polynomial * (r * r) + r + np.float32(1)
    exponent = np.uint32(np.uint32(float32_to_bits(shifted) << np.uint32(23)) + np.uint32(0x3F800000))
    value = value * bits_to_float32(exponent)
    value = np.float32(0) if x < _SMALLEST else value
    value = np.float32(np.inf) if x > _LARGEST else value
    return value if x == x else x
