"""`tl.dot` in the interpreter.

Stock Triton multiplies the bit patterns of bfloat16 operands, and refuses the input precisions bf16x3 and bf16x6, which
the compilers know. It also computes every float32 dot in full float32, whatever its input precision: that is left as it
is, since tests compare algorithms, unless `dots_as_compiled` asks for the operands a tensor core would see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from flagen.triton_cpu.arithmetic import is_bfloat16, widened
from flagen.triton_cpu.border import Patch, UnsupportedTritonError, interpreter, ir, stock, tl
from flagen.triton_cpu.rounding import Float32, rounded_to_bfloat16, truncated_to_tf32

_as_compiled: ContextVar[bool] = ContextVar("dots_as_compiled", default=False)

# Input precision: how an operand is rounded to a term, and how many terms it is split into. Of the products of terms
# those are kept whose indices sum to less than the number of terms. Triton converts no operand of a tf32 dot: its PTX
# gives mma and wgmma the float32 bits, of which tf32 has the upper 19. Dropping the rest is the worst they can do.
_SPLITS: dict[str, tuple[Callable[[Float32], Float32], int]] = {
    "TF32": (truncated_to_tf32, 1),
    "TF32x3": (truncated_to_tf32, 2),
    "BF16x3": (rounded_to_bfloat16, 2),
    "BF16x6": (rounded_to_bfloat16, 3),
}


@contextmanager
def dots_as_compiled() -> Iterator[None]:
    """Within it, float32 dots see their operands as the compiled kernel's `input_precision` does.

    tf32, the default of `tl.dot`, keeps 10 bits of each operand; tf32x3, bf16x3 and bf16x6 split operands into terms;
    ieee changes nothing. What it shows is a bound to plan with, not the bits of a device.
    """
    token = _as_compiled.set(True)
    try:
        yield
    finally:
        _as_compiled.reset(token)


def patches() -> list[Patch]:
    """The dot of the interpreter's builder, and the input precisions it accepts."""
    builder = stock(interpreter, "InterpreterBuilder")
    return [
        Patch(builder, "create_dot", _dot(stock(builder, "create_dot"))),
        Patch(stock(interpreter, "interpreter_builder"), "options", _options()),
    ]


def _options() -> Any:
    options = stock(stock(interpreter, "interpreter_builder"), "options")
    allowed = (*stock(options, "allowed_dot_input_precisions"), "bf16x3", "bf16x6")
    return dataclasses.replace(options, allowed_dot_input_precisions=tuple(dict.fromkeys(allowed)))


def _dot(stock_dot: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(self: Any, a: Any, b: Any, accumulator: Any, precision: Any, *rest: Any) -> Any:
        if is_bfloat16(a) or is_bfloat16(b):
            a, b = (interpreter.TensorHandle(widened(operand), tl.float32) for operand in (a, b))
        elif _as_compiled.get() and a.data.dtype == np.float32 and b.data.dtype == np.float32:
            product = _split_product(a.data, b.data, precision)
            return interpreter.TensorHandle(product + accumulator.data, accumulator.dtype.scalar)
        return stock_dot(self, a, b, accumulator, precision, *rest)

    return create_dot


def _split_product(a: Float32, b: Float32, precision: Any) -> Float32:
    if precision == ir.INPUT_PRECISION.IEEE:
        return np.asarray(np.matmul(a, b))
    name = getattr(precision, "name", str(precision))
    if name not in _SPLITS:
        raise UnsupportedTritonError(f"input precision {name} is not simulated; {', '.join(_SPLITS)} are")
    rounded, count = _SPLITS[name]
    left, right = _terms(a, rounded, count), _terms(b, rounded, count)
    # As the compilers do: the smallest first, and an infinity's correction, infinity times zero, dropped.
    with np.errstate(invalid="ignore"):
        main, *corrections = [np.matmul(x, y) for i, x in enumerate(left) for y in right[: count - i]]
    correction = sum(reversed(corrections), np.zeros_like(main))
    product: Float32 = main + np.where(np.isnan(correction), np.float32(0), correction)
    return product


def _terms(values: Float32, rounded: Callable[[Float32], Float32], count: int) -> list[Float32]:
    """Terms of decreasing size whose sum approaches `values`; what is not finite stays in the first."""
    terms = []
    for _ in range(count):
        term = rounded(values)
        terms.append(term)
        values = np.subtract(values, term, where=np.isfinite(term), out=np.zeros_like(values))
    return terms
