"""The low-rank maps of RWKV (Peng et al. 2024, https://arxiv.org/abs/2404.05892)."""

import math

import torch
from torch import Tensor, nn

from ..shared.functional import activate, check_activation

ACTIVATIONS = (None, "sigmoid", "tanh", "relu")


class Activation(nn.Module):
    """The activation of a name, or of none, as a module."""

    def __init__(self, name: str | None) -> None:
        super().__init__()
        self.name = "identity" if name is None else name

    def extra_repr(self) -> str:
        return self.name

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape, in its dtype."""
        return activate(x, self.name)


class LoRA(nn.Module):
    """x @ A, an activation, @ B + bias, A of rank low_rank_dim and without a bias.

    The parameters are lora.0.weight [low_rank_dim, input_dim], zero at first, lora.2.weight [output_dim, low_rank_dim],
    a tenth of an orthogonal matrix at first, and lora.2.bias [output_dim], zero at first.

    Args:
        input_dim: size of the last dim of what comes in.
        output_dim: size of the last dim of what goes out.
        low_rank_dim: the rank.
        bias: whether B has a bias.
        activation: `tanh`, `sigmoid`, `relu` or None.

    Raises:
        ValueError: an unknown activation.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        low_rank_dim: int,
        bias: bool | None = True,
        activation: str | None = "tanh",
    ) -> None:
        super().__init__()
        check_activation(ACTIVATIONS, activation=activation)
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.low_rank_dim = low_rank_dim
        self.bias = bool(bias)
        self.activation = Activation(activation)
        down = nn.Linear(input_dim, low_rank_dim, bias=False)
        up = nn.Linear(low_rank_dim, output_dim, bias=self.bias)
        self.lora = nn.Sequential(down, self.activation, up)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A zero, B a tenth of an orthogonal matrix (larger where it is wide), the bias zero."""
        gain = 0.1 * math.sqrt(max(self.low_rank_dim / self.output_dim, 1))
        with torch.no_grad():
            self.get_parameter("lora.0.weight").zero_()
            up = self.get_parameter("lora.2.weight")
            up.copy_(nn.init.orthogonal_(torch.empty_like(up, dtype=torch.float32), gain=gain))
        self.set_bias_value(0.0)

    def set_bias_value(self, value: Tensor | float) -> None:
        """Sets the bias of B, where it has one, to a number or to a tensor [output_dim]."""
        if self.bias:
            with torch.no_grad():
                bias = self.get_parameter("lora.2.bias")
                bias.copy_(torch.as_tensor(value, dtype=bias.dtype, device=bias.device).expand_as(bias))

    def extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"input_dim={self.input_dim}, low_rank_dim={self.low_rank_dim}, output_dim={self.output_dim}{bias}"

    def forward(self, x: Tensor) -> Tensor:
        """[..., input_dim] to [..., output_dim]."""
        out: Tensor = self.lora(x)
        return out


__all__ = ["LoRA"]
