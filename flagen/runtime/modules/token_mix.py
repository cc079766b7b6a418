"""RWKV-6's mixing of each token with the one before (Peng et al. 2024, https://arxiv.org/abs/2404.05892)."""

import torch
from torch import Tensor, nn

from .lora import LoRA


class DDLerpLinear(nn.Module):
    """A linear map of tokens that have gone part of the way to the token before, as far as the data say.

    The parameters are linear.weight [output_dim, input_dim], or those of `LoRA` below linear.

    Args:
        input_dim: size of the last dim of what comes in.
        output_dim: size of the last dim of what goes out.
        low_rank_dim: the rank of the map; a full one without it.
    """

    def __init__(self, input_dim: int, output_dim: int, low_rank_dim: int | None = None) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.low_rank_dim = low_rank_dim
        self.linear: nn.Module = (
            nn.Linear(input_dim, output_dim, bias=False)
            if low_rank_dim is None
            else LoRA(input_dim, output_dim, low_rank_dim, activation="tanh")
        )

    def extra_repr(self) -> str:
        return f"{self.input_dim}, {self.output_dim}, low_rank_dim={self.low_rank_dim}"

    def forward(self, x: Tensor, mu: Tensor, delta: Tensor) -> Tensor:
        """[..., output_dim] of x, of delta, the token before less x, and of mu, how far to go, [..., input_dim]."""
        mixed: Tensor = self.linear(torch.addcmul(x, delta, mu))
        return mixed


class LerpLinear(nn.Module):
    """`DDLerpLinear` for which how far to go is learned, mu [input_dim], 0 at first, and the same for all tokens.

    Args:
        input_dim: size of the last dim of what comes in.
        output_dim: size of the last dim of what goes out.
    """

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(input_dim))
        self.linear = nn.Linear(input_dim, output_dim, bias=False)

    def forward(self, x: Tensor, delta: Tensor) -> Tensor:
        """[..., output_dim] of x and delta, [..., input_dim]."""
        mixed: Tensor = self.linear(torch.addcmul(x, delta, self.mu))
        return mixed


class TokenMix(nn.Sequential):
    """How far each of several maps is to go to the token before, told from both tokens by a tanh of low rank.

    The parameters are 0.mu [hidden_size] and 0.linear.weight [count * low_rank_dim, hidden_size], of the first map, and
    2.weight [hidden_size, count * low_rank_dim], of the second, whose columns are those of one mix after the other.

    Args:
        hidden_size: the number of channels.
        low_rank_dim: the rank of each mix.
        count: how many mixes there are.
    """

    def __init__(self, hidden_size: int, low_rank_dim: int, count: int) -> None:
        inner = count * low_rank_dim
        super().__init__(LerpLinear(hidden_size, inner), nn.Tanh(), nn.Linear(inner, hidden_size, bias=False))
        self.count = count

    def forward(self, x: Tensor, delta: Tensor) -> Tensor:  # type: ignore[override]
        """The mixes, [..., count, hidden_size], of x and delta, [..., hidden_size], the token before less the token."""
        lerp, tanh, up = self
        inner = torch.unflatten(tanh(lerp(x, delta)), -1, (self.count, -1))
        columns = torch.unflatten(up.get_parameter("weight"), -1, (self.count, -1))
        return torch.einsum("...nr,hnr->...nh", inner, columns)
