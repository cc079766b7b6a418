"""Activations and gates, computed in float32 where the input is narrower, in the input's dtype at the end."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..shared.functional import ACTIVATIONS, activate
from .precision import upcast


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return activate(x, "sigmoid")


def swish(x: Tensor) -> Tensor:
    """x * sigmoid(x). Ramachandran et al. 2017, https://arxiv.org/abs/1710.05941."""
    return activate(x, "swish")


def logsigmoid(x: Tensor, temperature: float = 1.0) -> Tensor:
    """log(sigmoid(x)) / temperature, the decays of GLA (https://arxiv.org/abs/2312.06635)."""
    return (F.logsigmoid(upcast(x)) / temperature).to(x.dtype)


def elu_p1(x: Tensor) -> Tensor:
    """elu(x) + 1, without what a sum loses where x is far below zero: x + 1 for x >= 0, exp(x) for the rest."""
    wide = upcast(x)
    return torch.where(wide >= 0, wide + 1, wide.clamp(max=0).exp()).to(x.dtype)


def sqrelu(input: Tensor) -> Tensor:
    """relu(x)^2. So et al. 2021, https://arxiv.org/abs/2109.08668."""
    return activate(input, "sqrelu")


def fast_gelu_impl(input: Tensor) -> Tensor:
    """gelu by its tanh approximation. Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415."""
    return activate(input, "gelu")


def bias_gelu_impl(input: Tensor, bias: Tensor) -> Tensor:
    """fast_gelu_impl(input + bias), in input's dtype: [..., D] and [D] to [..., D]."""
    return activate(input + bias, "gelu").to(input.dtype)


def check_gate(x: Tensor, y: Tensor) -> None:
    """Raises ValueError if the two sides of a gate have different shapes."""
    if x.shape != y.shape:
        raise ValueError(f"y: expected shape {list(x.shape)} as x, got {list(y.shape)}")


def swiglu(x: Tensor, y: Tensor) -> Tensor:
    """swish(x) * y, both of one shape. Shazeer 2020, https://arxiv.org/abs/2002.05202."""
    check_gate(x, y)
    return (F.silu(upcast(x)) * upcast(y)).to(x.dtype)


def sigmoidglu(x: Tensor, y: Tensor) -> Tensor:
    """sigmoid(x) * y, both of one shape. Dauphin et al. 2016, https://arxiv.org/abs/1612.08083."""
    check_gate(x, y)
    return (torch.sigmoid(upcast(x)) * upcast(y)).to(x.dtype)


def powglu(x: Tensor, y: Tensor, power: float = 3.0) -> Tensor:
    """g(x) * y, where g(x) = x^(power / (sqrt(x) + 1)) * sigmoid(x) for x > 0, and swish(x) for the rest.

    For large x the gate grows no longer, where swish's goes on. Power linear unit, https://arxiv.org/abs/2605.25704.
    """
    check_gate(x, y)
    wide = upcast(x)
    positive = torch.where(wide > 0, wide, 1.0)
    grown = (power / (positive.sqrt() + 1) * positive.log()).exp()
    gate = torch.where(wide > 0, grown, wide) * torch.sigmoid(wide)
    return (gate * upcast(y)).to(x.dtype)


def gate_linear(
    gate: Callable[..., Tensor], x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, *args: Any
) -> Tensor:
    """linear(gate(x, y)); for the backward pass x and y are kept, and the gate is computed again."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        return F.linear(gate(x, y, *args), weight, bias)

    if not torch.is_grad_enabled():
        return run(x, y)
    out: Tensor = checkpoint(run, x, y, use_reentrant=False, preserve_rng_state=False)
    return out


def swiglu_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """linear(swiglu(x, y)): x and y [..., I], weight [O, I], bias [O] or None, to [..., O]."""
    return gate_linear(swiglu, x, y, weight, bias)


def sigmoidglu_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """linear(sigmoidglu(x, y)): x and y [..., I], weight [O, I], bias [O] or None, to [..., O]."""
    return gate_linear(sigmoidglu, x, y, weight, bias)


def powglu_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, power: float = 3.0) -> Tensor:
    """linear(powglu(x, y, power)): x and y [..., I], weight [O, I], bias [O] or None, to [..., O]."""
    return gate_linear(powglu, x, y, weight, bias, power)


ACT2FN: dict[str, Callable[..., Tensor]] = {
    "relu": ACTIVATIONS["relu"],
    "sigmoid": sigmoid,
    "logsigmoid": logsigmoid,
    "silu": swish,
    "swish": swish,
    "sqrelu": sqrelu,
    "gelu": fast_gelu_impl,
    "bias_gelu": bias_gelu_impl,
}
"""The peer's table of names."""

__all__ = [
    "ACT2FN",
    "bias_gelu_impl",
    "elu_p1",
    "fast_gelu_impl",
    "logsigmoid",
    "powglu",
    "powglu_linear",
    "sigmoid",
    "sigmoidglu",
    "sigmoidglu_linear",
    "sqrelu",
    "swiglu",
    "swiglu_linear",
    "swish",
]
