"""A package written by hand, for what the generated ones do not do yet: several kernels, chosen by size and GPU."""

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
    from .kernels import product_kernel, rows_kernel

    B, T, H, K = k.shape
    V = v.shape[-1]
    scratch, o = torch.empty_like(k, dtype=torch.float32), torch.zeros_like(v)
    S_final = torch.empty(B, H, K, V) if output_final_state else None
    modern = not torch.cuda.is_available() or torch.cuda.get_device_capability(k.device)[0] >= 9
    runs = B if cu_seqlens is None else len(cu_seqlens) - 1
    block = 128 if modern and runs > 32 else 64
    rows_kernel[(-(-k.numel() // block),)](k, scratch, k.numel(), BLOCK=block, num_warps=1)
    product_kernel[(1,)](scratch, v, o, S_final, 16, K=K, V=V, BLOCK=64)
    return o + 0, S_final
"""


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Package:
    root = tmp_path_factory.mktemp("toy")
    spec, folder = root / "specs" / "toy.yaml", root / "generated" / "toy"
    spec.parent.mkdir()
    folder.mkdir(parents=True)
    spec.write_text(SPEC)
    (folder / "__init__.py").write_text("from .launcher import chunk_toy, naive_recurrent_toy\n")
    (folder / "launcher.py").write_text(LAUNCHER)
    (folder / "kernels.py").write_text(KERNELS)
    return Package("toy", str(spec), str(folder))


def edited(package: Package, to: Path, file: str, old: str, new: str) -> Package:
    """A copy of a package with one file changed."""
    to.mkdir(parents=True)
    for path in Path(package.folder).glob("*.py"):
        text = path.read_text()
        assert path.name != file or old in text
        (to / path.name).write_text(text.replace(old, new) if path.name == file else text)
    return Package(package.name, package.spec, str(to))
