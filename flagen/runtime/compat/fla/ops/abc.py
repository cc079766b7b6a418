"""fla.ops.abc: attention over slots that are written with a softmax over time."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...adapt import drop_in, forms, run
from .gsa import naive_recurrent_gsa

__all__ = ["chunk_abc", "naive_recurrent_abc"]

_abc = forms("abc_attn")


@drop_in
def chunk_abc(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    initial_state: tuple[Tensor, Tensor, Tensor] | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Attention with bounded-memory control, in chunks.

    The states are three, where fla has the last two: without the first it cannot go on where a call ended.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        s: logit of what the token writes to each slot, [B, T, H, M].
        initial_state: what a call before gave: log weight of each slot, [N, H, M], keys, [N, H, K, M], and values,
            [N, H, M, V].
        output_final_state: also return the states after the last token.

    Returns:
        o, [B, T, H, V] in q's dtype; the three states in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named; states without their log weights.
    """
    if initial_state is not None and len(initial_state) != 3:
        raise ValueError(
            f"chunk_abc: initial_state: expected (log weights [N, H, M], keys [N, H, K, M], values [N, H, M, V]), "
            f"got {len(initial_state)} tensors"
        )
    return run(
        _abc.chunk,
        *(q, k, v, s),
        like=q,
        initial_state=initial_state,
        output_final_state=output_final_state,
    )


@drop_in
def naive_recurrent_abc(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    initial_state: tuple[Tensor, Tensor] | None = None,
    output_final_state: bool | None = False,
) -> tuple[Tensor, Any]:
    """`naive_recurrent_gsa` of inputs [B, H, T, ...]."""
    q, k, v, s = (x.transpose(1, 2) for x in (q, k, v, s))
    gate = None if g is None else g.transpose(1, 2)
    o, states = naive_recurrent_gsa(q, k, v, s, gate, scale, initial_state, output_final_state)
    return o.transpose(1, 2), states
