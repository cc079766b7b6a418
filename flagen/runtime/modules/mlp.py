"""The gated MLP between the layers of a model."""

from typing import Any

from torch import Tensor, nn

from .activations import powglu, powglu_linear, swiglu, swiglu_linear


def __getattr__(name: str) -> Any:
    """SwiGLULinearParallel, when it is asked for: importing torch's DTensor takes a second."""
    if name == "SwiGLULinearParallel":
        from .parallel import SwiGLULinearParallel

        return SwiGLULinearParallel
    raise AttributeError(f"module {__name__} has no attribute {name}")


class SwiGLULinear(nn.Module):
    """swiglu_linear as a module, which a parallel style can hold on to; it has no parameters."""

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x and y [..., I], weight [O, I], bias [O] or None, to [..., O]."""
        return swiglu_linear(x, y, weight, bias)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)). Shazeer 2020, https://arxiv.org/abs/2002.05202.

    Args:
        hidden_size: D.
        hidden_ratio: how many times D^2 the parameters are, about; 4 by default.
        intermediate_size: I; by default 2/3 of hidden_ratio * D, rounded up to a multiple of 256.
        hidden_act: `swish`, or `powlu` for powglu.
        fuse_swiglu: whether the gate is computed again in the backward pass instead of being kept.
        powglu_power: the power of powglu.

    Raises:
        ValueError: an unknown hidden_act.
    """

    def __init__(
        self,
        hidden_size: int,
        hidden_ratio: int | None = None,
        intermediate_size: int | None = None,
        hidden_act: str = "swish",
        fuse_swiglu: bool = True,
        powglu_power: float = 3.0,
    ) -> None:
        super().__init__()
        if hidden_act not in ("swish", "powlu"):
            raise ValueError(f"hidden_act: expected 'swish' or 'powlu', got {hidden_act!r}")
        self.hidden_size = hidden_size
        self.hidden_ratio = 4 if hidden_ratio is None else hidden_ratio
        if intermediate_size is None:
            intermediate_size = -(-int(hidden_size * self.hidden_ratio * 2 / 3) // 256) * 256
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.fuse_swiglu = fuse_swiglu
        self.powglu_power = powglu_power
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        if fuse_swiglu and hidden_act == "swish":
            self.swiglu_linear = SwiGLULinear()

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[..., D] to [..., D]. Keywords that a model hands to all its parts are taken and not used."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        weight, bias = self.down_proj.weight, self.down_proj.bias
        if not self.fuse_swiglu:
            gated = swiglu(gate, up) if self.hidden_act == "swish" else powglu(gate, up, self.powglu_power)
            out: Tensor = self.down_proj(gated)
        elif self.hidden_act == "swish":
            out = self.swiglu_linear(gate, up, weight, bias)
        else:
            out = powglu_linear(gate, up, weight, bias, self.powglu_power)
        return out


__all__ = ["GatedMLP", "SwiGLULinear"]
