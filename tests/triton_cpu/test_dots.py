"""`tl.dot` on bfloat16, and on float32 as compiled."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from flagen.triton_cpu import dots_as_compiled

M, K, N = 16, 64, 32


@triton.jit
def dot_kernel(a, b, c, out, PRECISION: tl.constexpr, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    i, k, j = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    x = tl.load(a + i[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + j[None, :])
    z = tl.load(c + i[:, None] * N + j[None, :])
    tl.store(out + i[:, None] * N + j[None, :], tl.dot(x, y, acc=z, input_precision=PRECISION))


def _operands(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(shape, generator=generator) for shape in ((M, K), (K, N), (M, N)))
    return a.to(dtype), b.to(dtype), c


def _dot(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, precision: str) -> torch.Tensor:
    out = torch.empty(M, N)
    dot_kernel[(1,)](a, b, c, out, precision, M, K, N)
    return out


def _error(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, precision: str) -> float:
    exact = a.double() @ b.double() + c.double()
    return ((_dot(a, b, c, precision) - exact).norm() / exact.norm()).item()


def test_bfloat16_operands_accumulate_in_float32() -> None:
    a, b, c = _operands(torch.bfloat16)
    torch.testing.assert_close(_dot(a, b, c, "ieee"), a.float() @ b.float() + c, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "bf16x3", "bf16x6", "ieee"])
def test_float32_dots_are_exact_unless_asked(precision: str) -> None:
    assert _error(*_operands(torch.float32), precision) < 1e-6


def test_tf32_dots_as_compiled_drop_thirteen_bits_of_each_operand() -> None:
    a, b, c = _operands(torch.float32)
    low_bits = torch.tensor(-(2**13), dtype=torch.int32)
    short_a, short_b = ((x.view(torch.int32) & low_bits).view(torch.float32) for x in (a, b))
    with dots_as_compiled():
        torch.testing.assert_close(_dot(a, b, c, "tf32"), short_a @ short_b + c, rtol=1e-5, atol=1e-5)
        assert 1e-4 < _error(a, b, c, "tf32") < 2e-3
    assert _error(a, b, c, "tf32") < 1e-6


@pytest.mark.parametrize(
    ("precision", "least", "most"),
    [("bf16x3", 1e-6, 3e-5), ("bf16x6", 0, 1e-6), ("tf32x3", 0, 1e-6), ("ieee", 0, 1e-6)],
)
def test_split_dots_as_compiled_keep_the_bits_of_their_terms(precision: str, least: float, most: float) -> None:
    with dots_as_compiled():
        assert least <= _error(*_operands(torch.float32), precision) < most


def test_split_dots_pass_infinities_on() -> None:
    a, b, c = _operands(torch.float32)
    a[0, 0], b[0] = float("inf"), 1.0
    with dots_as_compiled():
        out = _dot(a, b, c, "bf16x3")
    assert torch.equal(out[0], torch.full((N,), float("inf")))
    assert out[1:].isfinite().all()
