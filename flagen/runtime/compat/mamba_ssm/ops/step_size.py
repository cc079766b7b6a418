"""The time step of a state space model, from what is projected from the token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...adapt import computing


def step_size(
    dt: Tensor, bias: Tensor | None, softplus: bool, limit: tuple[float, float] = (0.0, float("inf"))
) -> Tensor:
    """softplus(dt + bias), within `limit`, in float32; `bias` is made to fit, and may be None."""
    wide = computing(dt, bias)
    step = dt.to(wide) if bias is None else dt.to(wide) + bias.to(wide)
    step = F.softplus(step) if softplus else step
    return step if limit == (0.0, float("inf")) else step.clamp(*limit)
