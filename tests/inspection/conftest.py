"""Packages written by hand, whose figures are known: several kernels, chosen by size and GPU; kernels of gradients."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagen.inspection import Package

SPEC = """\
flagen: 1
name: toy
title: Toy
state: {S: [K, V]}
inputs: {k: [K], v: [V]}
update: S = S + outer(k, v)
output: o = S.T @ k
"""

KERNELS = '''\
"""Kernels."""

import triton
import triton.language as tl


def warps():
    return 1


@triton.jit
def rows_kernel(k, scratch, n, BLOCK: tl.constexpr):
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(scratch + r, tl.load(k + r, mask=r < n, other=0.0), mask=r < n)


@triton.autotune(configs=[triton.Config({}, num_warps=4), triton.Config({}, num_warps=2)], key=["n"])
@triton.jit
def product_kernel(scratch, v, o, S_final, n, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr):
    i, j = tl.arange(0, BLOCK), tl.arange(0, 64)
    x = tl.load(scratch + i[:, None] * K + j[None, :])
    y = tl.load(v + j[:, None] * V + i[None, :])
    product = tl.dot(x.to(tl.bfloat16), y)
    tl.store(o + i[:, None] * V + i[None, :], product.to(o.dtype.element_ty))
    if S_final is not None:
        tl.store(S_final + i[:, None] * V + i[None, :], product)
'''

LAUNCHER = """\
import os

import torch


def naive_recurrent_toy(*arguments, **named):
    raise AssertionError("has no kernel, and is not to be called")


def chunk_toy(k, v, *, initial_state=None, output_final_state=False, cu_seqlens=None):
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise AssertionError("tensors on the CPU take the PyTorch form")
    from .kernels import product_kernel, rows_kernel, warps

    B, T, H, K = k.shape
    V = v.shape[-1]
    scratch, o = torch.empty_like(k, dtype=torch.float32), torch.zeros_like(v)
    S_final = torch.empty(B, H, K, V) if output_final_state else None
    modern = not torch.cuda.is_available() or torch.cuda.get_device_capability(k.device)[0] >= 9
    runs = B if cu_seqlens is None else len(cu_seqlens) - 1
    block = 128 if modern and runs > 32 else 64
    rows_kernel[(-(-k.numel() // block),)](k, scratch, k.numel(), BLOCK=block, num_warps=warps())
    product_kernel[(1,)](scratch, v, o, S_final, 16, K=K, V=V, BLOCK=64)
    return o + 0, S_final
"""


KERNELS_OF_BOTH_WAYS = '''\
"""Kernels."""

import triton
import triton.language as tl


@triton.jit
def copy_kernel(x, o, states, n, BLOCK: tl.constexpr):
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + r, mask=r < n, other=0.0)
    tl.store(o + r, value, mask=r < n)
    if states is not None:
        tl.store(states + r, value.to(tl.float32), mask=r < n)


@triton.jit
def copy_back_kernel(do, dx, n, BLOCK: tl.constexpr):
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(dx + r, tl.load(do + r, mask=r < n, other=0.0), mask=r < n)
'''

LAUNCHER_OF_BOTH_WAYS = """\
import torch


class Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, v, initial_state, save_states):
        from .kernels import copy_kernel

        o, states = torch.empty_like(v), torch.empty_like(v, dtype=torch.float32) if save_states else None
        ctx.save_for_backward(k, v, initial_state, states)
        copy_kernel[(-(-v.numel() // 64),)](v, o, states, v.numel(), BLOCK=64, num_warps=1)
        return o

    @staticmethod
    def backward(ctx, do):
        from .kernels import copy_back_kernel

        k, v, initial_state, _ = ctx.saved_tensors
        dv = torch.empty_like(v)
        copy_back_kernel[(-(-v.numel() // 64),)](do, dv, v.numel(), BLOCK=64, num_warps=1)
        return torch.zeros_like(k), dv, None if initial_state is None else torch.zeros_like(initial_state), None


def chunk_copying(k, v, *, initial_state=None, output_final_state=False, cu_seqlens=None, save_states=False):
    return Copy.apply(k, v, initial_state, save_states), None


def fused_recurrent_copying(k, v, *, initial_state=None, output_final_state=False, cu_seqlens=None):
    if not v.requires_grad:
        return chunk_copying(k, v)
    o = v + 0 * k.sum()
    return (o if initial_state is None else o + 0 * initial_state.sum()), None
"""


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Several kernels, and no gradients."""
    return _written(tmp_path_factory, "toy", LAUNCHER, KERNELS, "chunk_toy, naive_recurrent_toy")


@pytest.fixture(scope="session")
def copying(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """An operator with kernels for its gradients, and one whose gradients are those of PyTorch."""
    operators = "chunk_copying, fused_recurrent_copying"
    return _written(tmp_path_factory, "copying", LAUNCHER_OF_BOTH_WAYS, KERNELS_OF_BOTH_WAYS, operators)


def _written(factory: pytest.TempPathFactory, name: str, launcher: str, kernels: str, operators: str) -> Package:
    root = factory.mktemp(name)
    spec, folder = root / "specs" / f"{name}.yaml", root / "generated" / name
    spec.parent.mkdir()
    folder.mkdir(parents=True)
    spec.write_text(SPEC.replace("name: toy", f"name: {name}"))
    (folder / "__init__.py").write_text(f"from .launcher import {operators}\n")
    (folder / "launcher.py").write_text(launcher)
    (folder / "kernels.py").write_text(kernels)
    return Package(name, str(spec), str(folder))


def edited(package: Package, to: Path, file: str, old: str, new: str) -> Package:
    """A copy of a package with one file changed."""
    to.mkdir(parents=True)
    for path in Path(package.folder).glob("*.py"):
        text = path.read_text()
        assert path.name != file or old in text
        (to / path.name).write_text(text.replace(old, new) if path.name == file else text)
    return Package(package.name, package.spec, str(to))
