"""mamba_ssm.ops.triton.selective_state_update: one token of Mamba or Mamba-2, its state in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .....shared.inference import write_in_place
from ....adapt import computing, drop_in
from ..step_size import step_size

__all__ = ["selective_state_update"]


@drop_in
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """The next token of each sequence; its state is written to.

    Args:
        state: [B, P, N], or [B, H, P, N]; written to.
        x: [B, P], or [B, H, P].
        dt: what the time step is made from, as x.
        A: rate of decay, [P, N], or [H, P, N].
        B: how a channel is written, [B, N], or [B, G, N] for G groups of heads.
        C: how a channel is read, as B.
        D: skip connection, [P], or [H, P].
        z: gate, as x: the result is multiplied by silu(z).
        dt_bias: [P], or [H, P].
        dt_softplus: the time step is softplus(dt + dt_bias).
        state_batch_indices: which row of `state` is whose, [B]; it may then have more rows.

    Returns:
        as x, in its dtype, computed in float32.

    Raises:
        ValueError: a shape that does not fit.
    """
    rows = None if state_batch_indices is None else state_batch_indices.long()
    old = state if rows is None else state[rows]
    if old.shape[:-1] != x.shape:
        raise ValueError(
            f"selective_state_update: state: expected [{', '.join(map(str, x.shape))}, N] as x, got {tuple(old.shape)}"
        )
    wide = computing(x, old, A)
    step = step_size(dt, dt_bias, dt_softplus).to(wide).unsqueeze(-1)
    write, read = (_for_each_head(name, given.to(wide), x) for name, given in (("B", B), ("C", C)))
    token = x.to(wide)
    new = torch.exp(step * A.to(wide)) * old.to(wide) + step * write * token.unsqueeze(-1)
    with torch.no_grad():
        write_in_place(state, new, rows)
    y = (new * read).sum(-1)
    if D is not None:
        y = y + D.to(wide) * token
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(x.dtype)


def _for_each_head(name: str, given: Tensor, x: Tensor) -> Tensor:
    """B or C such that it can be multiplied by a state."""
    if given.ndim != x.ndim:
        raise ValueError(f"selective_state_update: {name}: expected {x.ndim} dims as x has, got {tuple(given.shape)}")
    if x.ndim == 2:
        return given.unsqueeze(1)
    heads = x.shape[1]
    if heads % given.shape[1]:
        raise ValueError(f"selective_state_update: {name}: {given.shape[1]} groups do not divide {heads} heads")
    return given.repeat_interleave(heads // given.shape[1], dim=1).unsqueeze(2)
