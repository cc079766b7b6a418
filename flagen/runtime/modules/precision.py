"""What the modules compute in: float32 for half precisions, the input's own precision otherwise."""

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """x in float32 if it is narrower than that, x itself otherwise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def upcast_optional(x: Tensor | None) -> Tensor | None:
    """As upcast; None stays None."""
    return None if x is None else upcast(x)
