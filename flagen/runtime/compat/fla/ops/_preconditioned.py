"""What the two preconditioned rules share: the second moment that their write keys are scaled by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....shared.forms import Form
from ...adapt import computing, of_groups, run

CENTER = -0.2
"""The log of the second moment that leaves a channel as it is, where none is given."""


@dataclass(frozen=True)
class Moment:
    """How the second moment of keys runs, with fla's names.

    Attributes:
        g_atk: its log decay, [B, T, H].
        beta_atk: the weight of a key in it, [B, T, H].
        x: bound on how much a channel is scaled.
        eps: what keeps its log finite.
        log_atk_scale: the log of it that leaves a channel as it is: a number, or one for each head, [H].
    """

    g_atk: Tensor
    beta_atk: Tensor
    x: float
    eps: float
    log_atk_scale: Tensor | float | None


def preconditioned(
    name: str,
    form: Form,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    moment: Moment,
    like: Tensor,
    states: tuple[Tensor | None, Tensor | None],
    output_final_state: bool,
    v_first: bool,
    **options: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run an operator whose second moment is of value heads with one of key heads, as fla has it.

    Args:
        name: who asks, for messages.
        form: the operator.
        inputs: q, k, v, g and beta.
        moment: how the second moment runs.
        like: whose dtype the output gets.
        states: [N, HV, K, V], and the second moment, [N, H, K]; each may be None.
        output_final_state: also return both after the last token.
        v_first: the first of them is [N, HV, V, K].
        options: what `run` takes.

    Returns:
        o; the final state or None; the second moment, [N, H, K], or None.
    """
    q, k, v, g, beta = inputs
    if v.shape[2] % k.shape[2]:
        raise ValueError(f"{name}: v: expected a multiple of k's {k.shape[2]} heads, got {v.shape[2]}")
    groups = v.shape[2] // k.shape[2]
    q, k, ga, ba = of_groups(groups, q, k, moment.g_atk, moment.beta_atk)
    settings = {**options, "x": moment.x, "eps": moment.eps, "output_final_state": output_final_state}
    heads = [q, k, v, g, beta, ga, ba]
    state = _first_state(k, v, groups, states, v_first)
    centers = _centers(name, moment.log_atk_scale, groups, v.shape[2])
    parts = []
    for center in sorted(set(centers)):  # The operator has one number for all heads.
        place = torch.tensor([head for head, own in enumerate(centers) if own == center], device=v.device)
        some = heads if len(place) == v.shape[2] else [x.index_select(2, place) for x in heads]
        first = None if state is None else tuple(x.index_select(1, place) for x in state)
        parts.append((place, run(form, *some, like=like, initial_state=first, center=center, **settings)))
    order = torch.cat([place for place, _ in parts]).argsort()
    o = torch.cat([o for _, (o, _) in parts], 2).index_select(2, order) if len(parts) > 1 else parts[0][1][0]
    if not output_final_state:
        return o, None, None
    finals = zip(*(final for _, (_, final) in parts), strict=True)
    S, A = (torch.cat(own, 1).index_select(1, order) for own in finals)
    return o, S.transpose(-1, -2).contiguous() if v_first else S, A[:, ::groups].contiguous()


def _first_state(
    k: Tensor, v: Tensor, groups: int, states: tuple[Tensor | None, Tensor | None], v_first: bool
) -> tuple[Tensor, Tensor] | None:
    """Both states, zeros for one that is missing, or None."""
    S, A = states
    given = A if S is None else S
    if given is None:
        return None
    shape = (given.shape[0], v.shape[2], k.shape[-1])
    if S is None:
        S = v.new_zeros(*shape, v.shape[-1], dtype=computing(given))
    elif v_first:
        S = S.transpose(-1, -2)
    return S, S.new_zeros(shape) if A is None else of_groups(groups, A, dim=1)[0]


def _centers(name: str, log_atk_scale: Tensor | float | None, groups: int, heads: int) -> list[float]:
    """The center of each value head."""
    if not isinstance(log_atk_scale, Tensor):
        return [CENTER if log_atk_scale is None else float(log_atk_scale)] * heads
    if log_atk_scale.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"{name}: log_atk_scale has no gradient here: detach it, or use the layer, whose operator has one"
        )
    return log_atk_scale.detach().reshape(-1).repeat_interleave(groups).tolist()
