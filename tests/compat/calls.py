"""What tests of adaptations call, fla's functions and flagen's own operators, and what they give them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

B, T, H, HV, K, V, M = 2, 21, 2, 4, 8, 6, 5
OFFSETS = torch.tensor([0, 5, 5, 16, T])
CLOSE = 1e-10
KINDS = ["chunk", "fused_recurrent"]


def fla(name: str) -> Callable[..., Any]:
    module, function = name.split(".")
    found: Callable[..., Any] = getattr(import_module(f"generated.compat.fla.ops.{module}"), function)
    return found


def ours(package: str) -> Callable[..., Any]:
    """The recurrence of a package, as it is written."""
    form: Callable[..., Any] = getattr(import_module(f"generated.{package}"), f"naive_recurrent_{package}")
    return form


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def decay(*shape: int, seed: int = 1) -> Tensor:
    return -0.3 * normal(*shape, seed=seed).abs()


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


def same(got: Any, expected: Any) -> None:
    """Compare results that may be nested, or None."""
    if isinstance(expected, Tensor):
        assert got.shape == expected.shape
        assert (got - expected).abs().max() < CLOSE * expected.abs().max().clamp(min=1)
    elif expected is None:
        assert got is None
    else:
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            same(a, b)


def qkv(heads: int = HV, rows: int = B, tokens: int = T) -> tuple[Tensor, Tensor, Tensor]:
    return (
        normal(rows, tokens, H, K, seed=2),
        unit(normal(rows, tokens, H, K, seed=3)),
        normal(rows, tokens, heads, V, seed=4),
    )


def beta(rows: int = B, heads: int = HV, tokens: int = T) -> Tensor:
    return normal(rows, tokens, heads, seed=5).sigmoid()


def state(rows: int = B, heads: int = HV) -> Tensor:
    return normal(rows, heads, K, V, seed=6)
