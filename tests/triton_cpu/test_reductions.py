"""Reductions and scans of bfloat16 tensors."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def _add(a, b):
    return a + b


@triton.jit
def _times(a, b):
    return a * b


@triton.jit
def rows_kernel(x, out, OP: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    rows, columns = tl.arange(0, M), tl.arange(0, N)
    a = tl.load(x + rows[:, None] * N + columns[None, :])
    if OP == "sum":
        b = tl.sum(a, axis=1)
    elif OP == "max":
        b = tl.reduce(a, 1, tl.standard._elementwise_max)
    elif OP == "min":
        b = tl.reduce(a, 1, tl.standard._elementwise_min)
    elif OP == "max with position":
        b, _ = tl.max(a, axis=1, return_indices=True)
    elif OP == "argmax":
        b = tl.argmax(a, axis=1)
    elif OP == "argmin":
        b = tl.argmin(a, axis=1)
    elif OP == "custom":
        b = tl.reduce(a, 1, _add)
    tl.store(out + rows, b)


@triton.jit
def scan_kernel(x, out, OP: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    rows, columns = tl.arange(0, M), tl.arange(0, N)
    at = rows[:, None] * N + columns[None, :]
    a = tl.load(x + at)
    if OP == "cumsum":
        b = tl.cumsum(a, axis=1)
    elif OP == "reverse":
        b = tl.cumsum(a, axis=1, reverse=True)
    elif OP == "cumprod":
        b = tl.cumprod(a, axis=1)
    elif OP == "associative":
        b = tl.associative_scan(a, 1, _add)
    elif OP == "associative product":
        b = tl.associative_scan(a, 1, _times)
    tl.store(out + at, b)


@triton.jit
def scalars_kernel(x, out, N: tl.constexpr):
    a = tl.load(x + tl.arange(0, N))
    tl.store(out, tl.sum(a))
    tl.store(out + 1, tl.max(a))
    kept = tl.sum(tl.reshape(a, [2, N // 2]), axis=1, keep_dims=True)
    tl.store(out + 2 + tl.arange(0, 2)[:, None], kept)


@triton.jit
def _maps(a1, b1, a2, b2):
    return a1 * a2, a2 * b1 + b2


@triton.jit
def recurrence_kernel(a, b, out, AXIS: tl.constexpr, REVERSE: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    _, x = tl.associative_scan((tl.load(a + at), tl.load(b + at)), AXIS, _maps, reverse=REVERSE)
    tl.store(out + at, x)


def _small_integers(rows: int, columns: int) -> torch.Tensor:
    """Numbers whose sums bfloat16 holds exactly, so that no order of adding them matters."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-3, 4, (rows, columns), generator=generator).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("sum", lambda x: x.sum(1)),
        ("custom", lambda x: x.sum(1)),
        ("max", lambda x: x.amax(1)),
        ("max with position", lambda x: x.amax(1)),
        ("min", lambda x: x.amin(1)),
    ],
)
def test_reductions(op, expected) -> None:
    x = _small_integers(8, 16)
    out = torch.empty(8, dtype=torch.bfloat16)
    rows_kernel[(1,)](x, out, op, 8, 16)
    assert torch.equal(out, expected(x))


@pytest.mark.parametrize("op", ["argmax", "argmin"])
def test_positions(op: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randperm(128, generator=generator).reshape(8, 16) - 64).to(torch.bfloat16)
    out = torch.empty(8, dtype=torch.int32)
    rows_kernel[(1,)](x, out, op, 8, 16)
    assert torch.equal(out, getattr(torch, op)(x.float(), 1).to(torch.int32))


def test_reductions_to_scalars_and_with_kept_axes() -> None:
    x = _small_integers(1, 32)[0]
    out = torch.empty(4, dtype=torch.bfloat16)
    scalars_kernel[(1,)](x, out, 32)
    assert out.tolist() == [x.sum().item(), x.max().item(), x[:16].sum().item(), x[16:].sum().item()]


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("cumsum", lambda x: x.cumsum(1)),
        ("associative", lambda x: x.cumsum(1)),
        ("reverse", lambda x: x.flip(1).cumsum(1).flip(1)),
        ("cumprod", lambda x: x.cumprod(1)),
        ("associative product", lambda x: x.cumprod(1)),
    ],
)
def test_scans(op, expected) -> None:
    x = _small_integers(4, 16)
    if "prod" in op:
        x = torch.where(x < 0, -0.5, 2.0).to(torch.bfloat16)
    out = torch.empty_like(x)
    scan_kernel[(1,)](x, out, op, 4, 16)
    assert torch.equal(out, expected(x.float()).to(torch.bfloat16))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_scans_of_several_tensors_keep_their_order(axis: int, reverse: bool) -> None:
    """x = a x + b along the axis, or against it; maps that do not commute, in integers that float32 holds."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(-2, 3, (2, 8, 4), generator=generator).float()
    out = torch.empty_like(a)
    recurrence_kernel[(1,)](a, b, out, axis, reverse, 8, 4)
    factors, terms = (list(x.unbind(axis)) for x in (a, b))
    state, states = torch.zeros_like(terms[0]), []
    for place in range(len(terms))[:: -1 if reverse else 1]:
        state = factors[place] * state + terms[place]
        states.append(state)
    assert torch.equal(out, torch.stack(states[:: -1 if reverse else 1], axis))


def test_a_bfloat16_sum_is_rounded_at_every_step() -> None:
    x = torch.tensor([256.0, 1.0, 1.0, 0.0], dtype=torch.bfloat16).expand(2, 4).contiguous()
    out = torch.empty(2, dtype=torch.bfloat16)
    rows_kernel[(1,)](x, out, "sum", 2, 4)
    # bfloat16 holds 258, but not the 257 on the way.
    assert out.tolist() == [256.0, 256.0]
