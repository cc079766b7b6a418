"""fla.ops.lightnet: keys that are a softmax over time, so far."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....shared.forms import Form
from ...adapt import drop_in, forms, run

__all__ = ["chunk_lightnet", "fused_recurrent_lightnet"]

_lightnet = forms("lightnet")

States = tuple[Tensor | None, Tensor | None]


def _run(
    form: Form,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial_state: States | None,
    output_final_state: bool,
    state_v_first: bool,
    **options: Any,
) -> tuple[Tensor, tuple[Tensor | None, Tensor]]:
    """Run the operator with fla's states: S, and z, [N, 1, H, K], which always comes back."""
    state = None
    if initial_state is not None and any(part is not None for part in initial_state):
        S, z = initial_state
        if S is None or z is None:
            raise ValueError("initial_state: expected both its parts or neither, got one of them")
        state = (S.transpose(-1, -2) if state_v_first else S, z.squeeze(1))
    o, (S, z) = run(form, q, k, v, like=q, initial_state=state, output_final_state=True, **options)
    if state_v_first:
        S = S.transpose(-1, -2).contiguous()
    return o, (S if output_final_state else None, z.unsqueeze(1))


@drop_in
def chunk_lightnet(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: States | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor | None, Tensor]]:
    """LightNet's attention in chunks.

    Args:
        q: [B, T, H, K].
        k: log weight, [B, T, H, K].
        v: [B, T, H, V].
        scale: default K ** -0.5.
        initial_state: [N, H, K, V], and the log of the sum of weights, [N, 1, H, K].
        output_final_state: also return the first of them after the last token.
        state_v_first: it is [N, H, V, K].
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.

    Returns:
        o, [B, T, H, V] in q's dtype; the final state in float32, or None, with the log of the sum of weights.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    return _run(
        _lightnet.chunk,
        *(q, k, v, initial_state, output_final_state, state_v_first),
        scale=scale,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def fused_recurrent_lightnet(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: States | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor | None, Tensor]]:
    """LightNet's attention token by token; arguments as of `chunk_lightnet`."""
    return _run(
        _lightnet.fused_recurrent,
        *(q, k, v, initial_state, output_final_state, state_v_first),
        scale=scale,
        cu_seqlens=cu_seqlens,
    )
