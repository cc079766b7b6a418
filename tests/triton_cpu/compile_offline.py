"""Run in a process of its own, without the interpreter: compiles small kernels and prints what came of them as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import triton
import triton.language as tl

from flagen.triton_cpu.offline import CompiledReport, inspect_kernel


@triton.autotune(configs=[triton.Config({"BLOCK": 64})], key=["n"])
@triton.heuristics({"MASKED": lambda arguments: arguments["n"] % 64 != 0})
@triton.jit
def matmul_kernel(a, b, bias, out, n, scale, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for step in range(n):
        x = tl.load(a + step * BLOCK * BLOCK + i[:, None] * BLOCK + i[None, :])
        y = tl.load(b + step * BLOCK * BLOCK + i[:, None] * BLOCK + i[None, :])
        total = tl.dot(x, y, total)
    if bias is not None:
        total += tl.load(bias + i[None, :])
    tl.store(out + i[:, None] * BLOCK + i[None, :], total * scale, mask=i[:, None] < (n if MASKED else BLOCK))


@triton.jit
def crowded_kernel(a, b, out, N: tl.constexpr):
    """Two accumulators too large for the registers it is given."""
    i, j = tl.arange(0, 64), tl.arange(0, N)
    x = tl.load(a + i[:, None] * 64 + i[None, :])
    y = tl.load(b + i[:, None] * N + j[None, :])
    first = tl.zeros([64, N], tl.float32)
    second = tl.zeros([64, N], tl.float32)
    for _ in range(4):
        first = tl.dot(x, y, first)
        second = tl.dot(x, y + 1, second)
    tl.store(out + i[:, None] * N + j[None, :], first * second)


TYPES = {"a": "*bf16", "b": "*bf16", "out": "*fp32", "n": "i32", "scale": "fp32"}
CONSTANTS = {"bias": None, "MASKED": False, "BLOCK": 64}
CROWDED = {"a": "*bf16", "b": "*bf16", "out": "*fp32"}


def matmul(arch: str, **options: object) -> CompiledReport:
    return inspect_kernel(matmul_kernel, TYPES, CONSTANTS, arch, **options)


def crowded(arch: str, columns: int, **options: object) -> CompiledReport:
    return inspect_kernel(crowded_kernel, CROWDED, {"N": columns}, arch, **options)


JOBS: dict[str, Callable[[], CompiledReport]] = {
    "sm_80": lambda: matmul("sm_80"),
    "sm_90": lambda: matmul("sm_90"),
    "sm_90, two warps": lambda: matmul("sm_90", num_warps=2),
    "sm_90, nothing divisible": lambda: matmul("sm_90", divisible_by_16=()),
    "sm_100": lambda: matmul("sm_100"),
    "gfx942": lambda: matmul("gfx942"),
    "crowded sm_90": lambda: crowded("sm_90", 128, maxnreg=104),
    "crowded gfx942": lambda: crowded("gfx942", 256, num_warps=1),
    "no such architecture": lambda: matmul("h100"),
    "unknown argument": lambda: inspect_kernel(crowded_kernel, {**CROWDED, "c": "i32"}, {"N": 128}, "sm_80"),
    "missing argument": lambda: inspect_kernel(crowded_kernel, CROWDED, {}, "sm_80"),
    "not a kernel": lambda: inspect_kernel(print, {}, {}, "sm_80"),
}


def outcome(job: Callable[[], CompiledReport]) -> dict[str, object]:
    try:
        return asdict(job())
    except (ValueError, TypeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    print(json.dumps({name: outcome(job) for name, job in JOBS.items()}))
