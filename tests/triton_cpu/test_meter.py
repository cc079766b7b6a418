"""The meter's numbers against counts by hand."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from flagen.triton_cpu.meter import Traffic, kept_for_gradients, metered


@triton.jit
def copy_kernel(x, out, n, BLOCK: tl.constexpr):
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + r, tl.load(x + r, mask=r < n, other=0.0), mask=r < n)


def test_a_masked_copy_moves_each_element_once() -> None:
    x, out = torch.ones(100, dtype=torch.bfloat16), torch.empty(100)
    with metered() as report:
        copy_kernel[(4,)](x, out, 100, 32)
        copy_kernel[lambda meta: (triton.cdiv(meta["n"], meta["BLOCK"]),)](x, out, 50, 32)
    # 2 bytes read and 4 written for each of 100 elements, then of 50.
    assert report.kernels == {
        "copy_kernel": Traffic(launches=2, programs=4 + 2, read=300, written=600, requested=900, flops=0)
    }
    assert report.kernels["copy_kernel"].moved == 900


@triton.jit
def matmul_kernel(a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr):
    i, k = tl.arange(0, M), tl.arange(0, K)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    x = tl.load(a + i[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + j[None, :])
    tl.store(out + i[:, None] * N + j[None, :], tl.dot(x, y))


def test_programs_that_share_an_operand_read_it_once_and_request_it_each() -> None:
    m, n, k = 16, 64, 32
    a, b, out = torch.ones(m, k), torch.ones(k, n), torch.empty(m, n)
    with metered() as report:
        matmul_kernel[(1, 4)](a, b, out, m, n, k, 16)
    assert report.kernels["matmul_kernel"] == Traffic(
        launches=1,
        programs=4,
        read=4 * (m * k + k * n),
        written=4 * m * n,
        requested=4 * (4 * m * k + k * n + m * n),
        flops=2 * m * n * k,
    )


@triton.jit
def batched_dot_kernel(a, out):
    b, i, j = tl.arange(0, 4)[:, None, None], tl.arange(0, 16)[None, :, None], tl.arange(0, 16)[None, None, :]
    x = tl.load(a + b * 256 + i * 16 + j)
    tl.store(out + b * 256 + i * 16 + j, tl.dot(x, x))


def test_flops_of_a_batched_dot() -> None:
    a, out = torch.ones(4, 16, 16, dtype=torch.float16), torch.empty(4, 16, 16)
    with metered() as report:
        batched_dot_kernel[(1,)](a, out)
    assert report.kernels["batched_dot_kernel"].flops == 4 * 2 * 16**3


@triton.jit
def reread_kernel(x, out, TIMES: tl.constexpr):
    r = tl.arange(0, 16)
    total = tl.zeros([16], tl.float32)
    for _ in range(TIMES):
        total += tl.load(x + r)
    tl.store(out + r, total)


def test_reading_again_within_a_launch_is_requested_but_not_moved() -> None:
    x, out = torch.ones(16), torch.empty(16)
    with metered() as report:
        reread_kernel[(1,)](x, out, 3)
        reread_kernel[(1,)](x, out, 3)
    assert report.kernels["reread_kernel"] == Traffic(2, 2, read=128, written=128, requested=2 * (3 * 64 + 64))


@triton.jit
def atomic_kernel(x, lock):
    tl.atomic_add(x + tl.arange(0, 8), 1.0, mask=tl.arange(0, 8) < 5)
    tl.atomic_cas(lock, 0, 1)


def test_atomics_read_and_write() -> None:
    x, lock = torch.zeros(8), torch.zeros(1, dtype=torch.int64)
    with metered() as report:
        atomic_kernel[(2,)](x, lock)
    assert report.kernels["atomic_kernel"] == Traffic(1, 2, read=28, written=28, requested=2 * 2 * 28)


def test_operators_between_kernels_are_counted_beside_them() -> None:
    x = torch.ones(32)
    with metered() as report:
        out = torch.zeros(32)
        copy_kernel[(1,)](x, out, 32, 32)
        view = out.view(4, 8).transpose(0, 1)
        half = view.to(torch.bfloat16)
        half.add_(half)
        torch.empty(32).copy_(x)
    assert report.operators == {
        "zeros": Traffic(launches=1, written=128, requested=128),
        "_to_copy": Traffic(launches=1, read=128, written=64, requested=192),
        "add_": Traffic(launches=1, read=64, written=64, requested=128),
        "copy_": Traffic(launches=1, read=128, written=128, requested=256),
    }
    assert list(report.kernels) == ["copy_kernel"]
    assert report.total.launches == 5
    assert report.total.moved == 128 + 192 + 128 + 256 + 256


@torch.library.custom_op("flagen_test_meter::negated_copy", mutates_args=())
def negated_copy(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    copy_kernel[(1,)](x, out, 32, 32)
    return out.neg()


def test_an_operator_written_in_python_is_what_it_runs() -> None:
    with metered() as report:
        negated_copy(torch.ones(32))
    assert report.kernels.keys() == {"copy_kernel"}
    assert report.operators == {
        "ones": Traffic(launches=1, written=128, requested=128),
        "neg": Traffic(launches=1, read=128, written=128, requested=256),
    }


def test_what_is_kept_counts_once_and_as_a_whole() -> None:
    x, y = torch.ones(32, requires_grad=True), torch.ones(8, requires_grad=True)
    with kept_for_gradients() as kept:
        some = x[:8]
        product = some * y
        result = product * some
    # All of x, y, and the product.
    assert (result.requires_grad, kept.bytes) == (True, 128 + 32 + 32)


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    x = torch.ones(32, requires_grad=True)
    with torch.no_grad(), kept_for_gradients() as kept:
        x * x
    assert kept.bytes == 0


def test_the_table_has_a_row_for_every_name() -> None:
    x, out = torch.ones(32), torch.empty(32)
    with metered() as report:
        copy_kernel[(1,)](x, out, 32, 32)
        torch.neg(x)
    head, *rows = report.table(per=8).splitlines()
    assert head.split() == ["kernel", "launches", "programs", "read", "written", "requested", "flops"]
    assert [row.split() for row in rows] == [
        ["copy_kernel", "1", "1", "16", "16", "32", "0"],
        ["torch.neg", "1", "0", "16", "16", "32", "0"],
        ["total", "2", "1", "32", "32", "64", "0"],
    ]


@triton.jit
def failing_kernel(x):
    tl.static_assert(False, "no")


def test_nothing_is_counted_outside_and_a_failed_launch_leaves_the_interpreter_whole() -> None:
    x, out = torch.ones(32), torch.empty(32)
    with metered() as outer:
        with metered() as inner:
            copy_kernel[(1,)](x, out, 32, 32)
            with pytest.raises(Exception, match="no"):
                failing_kernel[(1,)](x)
        copy_kernel[(1,)](x, out, 32, 32)
    copy_kernel[(1,)](x, out, 32, 32)
    assert (inner.total.launches, outer.total.launches) == (1, 2)
    assert list(inner.kernels) == ["copy_kernel"]
