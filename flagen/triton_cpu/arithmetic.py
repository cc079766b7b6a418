"""bfloat16 arithmetic in the interpreter.

Stock Triton hands the uint16 bit patterns of bfloat16 tensors to numpy as if they were numbers: `+ - * /`, comparisons
and conversions to and from integers and float64 are silently wrong, and float32 is truncated where it should be rounded
to nearest even. Here operands are widened to float32, which is exact, and results are rounded once. (Float32's 24 bits
are more than twice bfloat16's 8 and two, so a sum, product, quotient or root rounded to float32 and then to bfloat16 is
the correctly rounded one.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flagen.triton_cpu.border import Patch, interpreter, ir, stock, tl
from flagen.triton_cpu.rounding import from_bfloat16, to_bfloat16

_PATTERNS = np.dtype(np.uint16)
"""What numpy is told that bfloat16 is, which it does not know."""


def is_bfloat16(handle: Any) -> bool:
    """Whether a handle holds bfloat16 bit patterns. (Pointers to bfloat16 and comparisons' results do not.)"""
    return bool(handle.data.dtype == _PATTERNS and handle.dtype.scalar == tl.bfloat16)


def widened(handle: Any) -> Any:
    """The numbers in a handle: float32 for bfloat16, the array as it is for everything else."""
    return from_bfloat16(handle.data) if is_bfloat16(handle) else handle.data


def narrowed(values: Any) -> Any:
    """A bfloat16 handle of numbers, rounded; comparisons stay what they are."""
    if values.dtype == np.bool_:
        return interpreter.TensorHandle(values, tl.int1)
    return interpreter.TensorHandle(to_bfloat16(values), tl.bfloat16)


def patches() -> list[Patch]:
    """The arithmetic and the conversions of the interpreter's builder."""
    builder = stock(interpreter, "InterpreterBuilder")
    replacements = {
        "cast_impl": _cast(stock(builder, "cast_impl")),
        "create_fp_to_fp": _convert(stock(builder, "create_fp_to_fp")),
        "binary_op": _elementwise(stock(builder, "binary_op")),
        "unary_op": _elementwise(stock(builder, "unary_op")),
        "ternary_op": _ternary(stock(builder, "ternary_op")),
        "create_fma": _fma(stock(builder, "create_fma")),
        "create_atomic_rmw": _atomic(stock(builder, "create_atomic_rmw")),
        # Triton before 3.9 has no get_bf16 at all, and fails on a bfloat16 constant other than zero.
        "get_bf16": lambda _, value: narrowed(np.array([value])),
    }
    return [Patch(builder, name, replacement) for name, replacement in replacements.items()]


def _cast(stock_cast: Callable[..., Any]) -> Callable[..., Any]:
    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        scalar = target.scalar
        if source.dtype.scalar == scalar:
            return interpreter.TensorHandle(source.data, scalar)
        if scalar == tl.bfloat16:
            return narrowed(source.data)
        if is_bfloat16(source):
            return stock_cast(self, interpreter.TensorHandle(widened(source), tl.float32), target)
        return stock_cast(self, source, target)

    return cast_impl


def _convert(stock_convert: Callable[..., Any]) -> Callable[..., Any]:
    """Conversions with a rounding mode. Those to and from 8-bit floats are left to Triton, which reads them right."""

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        wide = source.dtype.primitive_bitwidth > 8
        if wide and target.scalar == tl.bfloat16:
            toward_zero = rounding == ir.ROUNDING_MODE.RTZ
            return interpreter.TensorHandle(to_bfloat16(widened(source), toward_zero=toward_zero), tl.bfloat16)
        if is_bfloat16(source) and target.scalar in (tl.float32, tl.float64):
            return self.cast_impl(source, target)
        return stock_convert(self, source, target, rounding)

    return create_fp_to_fp


def _elementwise(stock_op: Callable[..., Any]) -> Callable[..., Any]:
    """`binary_op` and `unary_op` on bfloat16."""

    def elementwise(self: Any, *arguments: Any) -> Any:
        if is_bfloat16(arguments[0]) or is_bfloat16(arguments[-2]):
            *operands, op = arguments
            return narrowed(op(*map(widened, operands)))
        return stock_op(self, *arguments)

    return elementwise


def _ternary(stock_op: Callable[..., Any]) -> Callable[..., Any]:
    def ternary_op(self: Any, first: Any, second: Any, third: Any, op: Any) -> Any:
        # A selection copies bit patterns, which stock Triton does right.
        if is_bfloat16(third) and op is not np.where:
            return narrowed(op(widened(first), widened(second), widened(third)))
        return stock_op(self, first, second, third, op)

    return ternary_op


def _fma(stock_fma: Callable[..., Any]) -> Callable[..., Any]:
    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if not is_bfloat16(z):
            return stock_fma(self, x, y, z)
        # The product is exact in float64, so that only the sum is rounded, and then the result once.
        return narrowed(widened(x).astype(np.float64) * widened(y) + widened(z))

    return create_fma


def _atomic(stock_atomic: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse what stock Triton does as an integer operation on bit patterns."""

    def create_atomic_rmw(self: Any, operation: Any, pointer: Any, value: Any, *rest: Any) -> Any:
        if is_bfloat16(value) and operation != ir.ATOMIC_OP.XCHG:
            raise NotImplementedError("atomic arithmetic on bfloat16 is not simulated; accumulate in float32")
        return stock_atomic(self, operation, pointer, value, *rest)

    return create_atomic_rmw
