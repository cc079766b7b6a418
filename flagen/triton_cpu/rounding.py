"""bfloat16 and tf32 in numpy, which has neither.

The interpreter keeps a bfloat16 tensor as its bit patterns in a uint16 array; that convention is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint16]
Float32 = npt.NDArray[np.float32]

_NAN = np.uint16(0x7FC0)
_HALF_BELOW = np.uint32(0x7FFF)
_TF32_MASK = np.uint32(0xFFFFE000)


def from_bfloat16(bits: Bits) -> Float32:
    """The values of bfloat16 bit patterns; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(values: npt.NDArray[Any], *, toward_zero: bool = False) -> Bits:
    """Bit patterns of numbers of any type, rounded once: to nearest, ties to even, or toward zero."""
    single = _to_odd_float32(values)
    bits = single.view(np.uint32)
    if not toward_zero:
        bits = bits + (_HALF_BELOW + ((bits >> np.uint32(16)) & np.uint32(1)))
    return np.where(np.isnan(single), _NAN, (bits >> np.uint32(16)).astype(np.uint16))


def rounded_to_bfloat16(values: Float32) -> Float32:
    """float32 numbers rounded to bfloat16 and back."""
    return from_bfloat16(to_bfloat16(values))


def truncated_to_tf32(values: Float32) -> Float32:
    """float32 numbers without their low 13 bits: what a tensor core sees of an operand that nothing rounded."""
    return (np.ascontiguousarray(values).view(np.uint32) & _TF32_MASK).view(np.float32).reshape(values.shape)


def _to_odd_float32(values: npt.NDArray[Any]) -> Float32:
    """float32 numbers that round to bfloat16 as `values` do.

    Rounding twice, to float32 and then to bfloat16, can cross a tie. Rounding the first time to odd cannot: an inexact
    result is truncated and keeps a one in its last bit, far below bfloat16's.
    """
    values = np.asarray(values)
    if values.dtype in (np.float32, np.float16):
        return np.ascontiguousarray(values, dtype=np.float32).reshape(values.shape)
    double = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        single = np.ascontiguousarray(double, dtype=np.float32).reshape(values.shape)
    overshoot = np.abs(single.astype(np.float64)) > np.abs(double)
    single = np.where(overshoot, np.nextafter(single, np.float32(0)), single)
    inexact = single.astype(np.float64) != double
    odd: Float32 = (single.view(np.uint32) | (inexact & ~np.isnan(double))).view(np.float32)
    return odd
