"""What a kernel is given: its arguments, loop variables, imported builtins, configurations."""

from __future__ import annotations

import builtins

import pytest
import torch
import triton
import triton.language as tl
from triton.language import exp, load, static_range, sum
from triton.language import store as put

from flagen.triton_cpu import autotune_choice


@triton.jit
def scaled_kernel(x, out, scale, N: tl.constexpr):
    r = tl.arange(0, N)
    tl.store(out + r, tl.load(x + r) * scale)


def test_a_float_argument_is_a_float32_scalar() -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    out = torch.empty(64)
    scaled_kernel[(1,)](x, out, 0.3, 64)
    assert torch.equal(out, x.float() * torch.tensor(0.3))


@triton.jit
def grid_kernel(out, n, BLOCK: tl.constexpr):
    tl.store(out + tl.program_id(0), tl.num_programs(0))


def test_a_grid_is_computed_from_the_arguments() -> None:
    out = torch.zeros(4, dtype=torch.int32)
    grid_kernel[lambda arguments: (triton.cdiv(arguments["n"], arguments["BLOCK"]),)](out, 50, 16)
    assert out.tolist() == [4, 4, 4, 4]


@triton.jit
def loop_kernel(out, n, m, STEPS: tl.constexpr):
    total = tl.zeros([1], tl.int64)
    for i in range(n):
        total += i.to(tl.int64)
    for i in tl.range(2, n, 3, num_stages=2):
        total += 100 * i.to(tl.int64)
    for i in tl.range(0, m, step=2):
        total += 10000 * i.to(tl.int64)
    for i in range(STEPS, 0, -1):
        total += 1000000 * i.to(tl.int64)
    for i in tl.static_range(1, STEPS):
        total += 100000000 * i
    for i in static_range(0, STEPS, step=2):
        total += 10000000000 * i
    tl.store(out + tl.arange(0, 1), total)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (1, 1), (7, 5)])
def test_loop_variables_are_tensors(n: int, m: int) -> None:
    out = torch.zeros(1, dtype=torch.int64)
    loop_kernel[(1,)](out, n, m, 4)
    runtime = builtins.sum(range(n)) + 100 * builtins.sum(range(2, n, 3)) + 10000 * builtins.sum(range(0, m, 2))
    assert out.item() == runtime + 1000000 * 10 + 100000000 * 6 + 10000000000 * 2


@triton.jit
def loop_types_kernel(narrow, wide, n):
    for i in range(n):
        # int32 wraps around; the stock interpreter's Python integer does not.
        tl.store(narrow + i, (i + 2147483647).to(tl.int64))
    for j in range(n.to(tl.int64)):
        tl.store(wide + j, j + 2147483647)


def test_a_loop_variable_has_the_type_of_its_bounds() -> None:
    narrow, wide = (torch.empty(2, dtype=torch.int64) for _ in range(2))
    loop_types_kernel[(1,)](narrow, wide, 2)
    assert narrow.tolist() == [2**31 - 1, -(2**31)]
    assert wide.tolist() == [2**31 - 1, 2**31]


@triton.jit
def by_name_kernel(x, out, N: tl.constexpr):
    r = tl.arange(0, N)
    put(out + r, exp(load(x + r)))
    put(out + N, sum(load(x + r), axis=0))


@triton.jit
def _doubled(x):
    return exp(x) + exp(x)


@triton.jit
def by_name_in_a_device_function_kernel(x, out, N: tl.constexpr):
    r = tl.arange(0, N)
    tl.store(out + r, _doubled(tl.load(x + r)))


def test_builtins_imported_by_name() -> None:
    x = torch.randn(16, generator=torch.Generator().manual_seed(0))
    out = torch.empty(17)
    by_name_kernel[(1,)](x, out, 16)
    torch.testing.assert_close(out, torch.cat([x.exp(), x.sum()[None]]))
    by_name_in_a_device_function_kernel[(1,)](x, out, 16)
    torch.testing.assert_close(out[:16], 2 * x.exp())


def _leave_a_mark(arguments) -> None:
    arguments["marks"].add_(arguments["N"])


@triton.autotune(
    configs=[
        triton.Config({"BLOCK": 4}, num_warps=2, pre_hook=_leave_a_mark),
        triton.Config({"BLOCK": 8}, num_warps=4),
        triton.Config({"BLOCK": 64}, num_warps=4),
    ],
    key=["N"],
    prune_configs_by={"early_config_prune": lambda configs, named, **_: [c for c in configs if c.kwargs["BLOCK"] < 64]},
)
@triton.jit
def autotuned_kernel(out, marks, N, BLOCK: tl.constexpr):
    r = tl.arange(0, BLOCK)
    tl.store(out + r, r + BLOCK, mask=r < N)


def test_an_autotuned_kernel_takes_its_first_configuration_with_its_hook() -> None:
    out, marks = torch.zeros(8, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    autotuned_kernel[(1,)](out, marks, 3)
    assert out.tolist() == [4, 5, 6, 0, 0, 0, 0, 0]
    assert marks.item() == 3


def test_another_configuration_can_be_chosen_from_those_pruning_leaves() -> None:
    out, marks = torch.zeros(8, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with autotune_choice(1):
        autotuned_kernel[(1,)](out, marks, 3)
    assert out[:3].tolist() == [8, 9, 10]
    assert marks.item() == 0
    with autotune_choice(2), pytest.raises(IndexError, match="autotuned_kernel has 2 configurations, and no number 2"):
        autotuned_kernel[(1,)](out, marks, 3)
