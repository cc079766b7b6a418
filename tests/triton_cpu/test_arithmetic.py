"""bfloat16 in kernels: what it computes is what torch computes, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

N = 1024


@triton.jit
def binary_kernel(x, y, out, OP: tl.constexpr, N: tl.constexpr):
    r = tl.arange(0, N)
    a = tl.load(x + r)
    b = tl.load(y + r)
    if OP == "add":
        c = a + b
    elif OP == "sub":
        c = a - b
    elif OP == "mul":
        c = a * b
    elif OP == "div":
        c = a / b
    elif OP == "neg":
        c = -a
    elif OP == "abs":
        c = tl.abs(a)
    elif OP == "max":
        c = tl.maximum(a, b)
    elif OP == "min":
        c = tl.minimum(a, b)
    elif OP == "clamp":
        c = tl.clamp(a, -tl.abs(b), tl.abs(b))
    elif OP == "where":
        c = tl.where(a < b, a, b * 2.0)
    elif OP == "lt":
        c = a < b
    elif OP == "ge":
        c = a >= b
    elif OP == "eq":
        c = a == b
    elif OP == "positive":
        c = a > 0
    elif OP == "constant":
        c = a + tl.full([N], 1.5, tl.bfloat16)
    elif OP == "weak scalar":
        c = a * 0.3
    elif OP == "chain":
        c = (a + b) * a - b
    tl.store(out + r, c)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a, b: -a,
    "max": torch.maximum,
    "min": torch.minimum,
    "clamp": lambda a, b: torch.minimum(torch.maximum(a, -b.abs()), b.abs()),
    "where": lambda a, b: torch.where(a < b, a, b * 2.0),
    "lt": lambda a, b: a < b,
    "ge": lambda a, b: a >= b,
    "positive": lambda a, b: a > 0,
    "constant": lambda a, b: a + 1.5,
    # Compiled, a literal takes the tensor's type before it multiplies.
    "weak scalar": lambda a, b: a * torch.tensor(0.3, dtype=torch.bfloat16),
    "chain": lambda a, b: (a + b) * a - b,
}


def _operands(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(N, generator=generator).to(torch.bfloat16) for _ in range(2))
    y[::7] = x[::7]
    return x, y


@pytest.mark.parametrize("op", OPERATIONS)
def test_bfloat16_arithmetic(op: str) -> None:
    x, y = _operands()
    expected = OPERATIONS[op](x, y)
    out = torch.empty_like(expected)
    binary_kernel[(1,)](x, y, out, op, N)
    assert torch.equal(out, expected)


def test_bfloat16_division_is_done_in_float32_or_rounded_once() -> None:
    x, y = _operands()
    out = torch.empty(N, dtype=torch.bfloat16)
    binary_kernel[(1,)](x, y, out, "div", N)
    assert torch.equal(out, (x.float() / y.float()).to(torch.bfloat16))


@triton.jit
def cast_kernel(x, out, N: tl.constexpr):
    r = tl.arange(0, N)
    tl.store(out + r, tl.load(x + r).to(out.dtype.element_ty))


@triton.jit
def truncating_cast_kernel(x, out, N: tl.constexpr):
    r = tl.arange(0, N)
    tl.store(out + r, tl.cast(tl.load(x + r), tl.bfloat16, fp_downcast_rounding="rtz"))


@pytest.mark.parametrize("source", [torch.float32, torch.float64, torch.float16, torch.int32, torch.int64, torch.int8])
def test_conversion_to_bfloat16_rounds_to_nearest_even(source: torch.dtype) -> None:
    x = (torch.randn(N, generator=torch.Generator().manual_seed(1)) * 100).to(source)
    out = torch.empty(N, dtype=torch.bfloat16)
    cast_kernel[(1,)](x, out, N)
    assert torch.equal(out, x.to(torch.bfloat16))


@pytest.mark.parametrize("target", [torch.float32, torch.float64])
def test_every_bfloat16_converts_exactly_to_wider_floats(target: torch.dtype) -> None:
    x = torch.arange(2**16).to(torch.int16).view(torch.bfloat16)
    x = torch.where(x.isnan(), 0.0, x)
    out = torch.empty(2**16, dtype=target)
    cast_kernel[(1,)](x, out, 2**16)
    assert torch.equal(out, x.to(target))


@pytest.mark.parametrize("target", [torch.float16, torch.int32, torch.int64, torch.int8])
def test_conversion_from_bfloat16_to_other_types(target: torch.dtype) -> None:
    x = (torch.randn(N, generator=torch.Generator().manual_seed(2)) * 30).to(torch.bfloat16)
    out = torch.empty(N, dtype=target)
    cast_kernel[(1,)](x, out, N)
    assert torch.equal(out, x.to(target))


def test_conversion_carries_into_the_exponent_and_keeps_what_is_not_finite() -> None:
    below_two = torch.tensor(2.0).nextafter(torch.tensor(0.0)).item()
    x = torch.tensor([below_two, -below_two, float("inf"), float("-inf"), float("nan"), 3.4e38, 1e-40, -0.0])
    out = torch.empty(8, dtype=torch.bfloat16)
    cast_kernel[(1,)](x, out, 8)
    assert out[:4].tolist() == [2.0, -2.0, float("inf"), float("-inf")]
    assert out[4].isnan()
    assert torch.equal(out[5:], x[5:].to(torch.bfloat16))


def test_conversion_toward_zero_truncates() -> None:
    x = torch.tensor([1 + 2**-8 + 2**-20, -1.999, float("inf"), float("nan")])
    x[3:].view(torch.int32).fill_(0x7F800001)  # a NaN whose upper half reads as infinity
    out = torch.empty(4, dtype=torch.bfloat16)
    truncating_cast_kernel[(1,)](x, out, 4)
    assert out[:3].tolist() == [1.0, -1.9921875, float("inf")]
    assert out[3].isnan()


@triton.jit
def fma_kernel(x, y, z, out, N: tl.constexpr):
    r = tl.arange(0, N)
    tl.store(out + r, tl.fma(tl.load(x + r), tl.load(y + r), tl.load(z + r)))


def test_bfloat16_fma_rounds_once() -> None:
    x, y = _operands()
    z = (-(x.double() * y.double()) * (1 + 2**-8)).to(torch.bfloat16)
    out = torch.empty_like(x)
    fma_kernel[(1,)](x, y, z, out, N)
    assert torch.equal(out, (x.double() * y.double() + z.double()).to(torch.bfloat16))


@triton.jit
def atomic_kernel(x):
    tl.atomic_add(x, tl.full([], 1.0, tl.bfloat16))


def test_bfloat16_atomic_addition_is_refused() -> None:
    x = torch.ones(1, dtype=torch.bfloat16)
    with pytest.raises(Exception, match="atomic arithmetic on bfloat16 is not simulated"):
        atomic_kernel[(1,)](x)
