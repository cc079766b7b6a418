"""fla.ops.gsa: two memories of slots, the second read with what the first gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ....shared.forms import Form
from ...adapt import drop_in, forms, of_groups, run

__all__ = ["chunk_gsa", "fused_recurrent_gsa", "naive_recurrent_gsa"]

_gated = forms("gsa")
_softmax_over_time = forms("abc_attn")

States = Sequence[Tensor]


def _run(
    name: str,
    kind: str,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    initial_state: States | None,
    output_final_state: bool,
    **options: Any,
) -> tuple[Tensor, list[Tensor | None]]:
    """Run the operator with fla's groups, several query heads to a state, and its states, a list of two.

    Without `g` what is written to a slot is a softmax over time, so far: that is another operator.
    """
    q, k, v, s, g = inputs
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{name}: q: expected a multiple of k's {k.shape[2]} heads, got {q.shape[2]}")
    groups = q.shape[2] // k.shape[2]
    states = None if initial_state is None else of_groups(groups, *initial_state, dim=1)
    if g is None:
        if states is not None:
            raise NotImplementedError(
                f"{name}: initial_state is not supported without g: how much each slot has taken is not part of it"
            )
        form: Form = getattr(_softmax_over_time, kind)
        o, final = run(form, q, *of_groups(groups, k, v, s), like=q, output_final_state=output_final_state, **options)
        final = None if final is None else final[1:]
    else:
        form = getattr(_gated, kind)
        o, final = run(
            form,
            *(q, *of_groups(groups, k, v, s, g)),
            like=q,
            initial_state=states,
            output_final_state=output_final_state,
            **options,
        )
    return o, [None, None] if final is None else [state[:, ::groups].contiguous() for state in final]


@drop_in
def chunk_gsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    initial_state: States | None = None,
    output_final_state: bool = False,
    checkpoint_level: int = 2,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Gated slot attention in chunks.

    Args:
        q: [B, T, HQ, K]; HQ is a multiple of H.
        k: [B, T, H, K].
        v: [B, T, H, V].
        s: what the token writes to each slot, [B, T, H, M]; without `g` its logit.
        g: log decay of each slot, [B, T, H, M]; None for a softmax over time.
        scale: default K ** -0.5.
        initial_state: a pair of [N, H, K, M] and [N, H, M, V]; needs `g`.
        output_final_state: also return the states after the last token.
        checkpoint_level: taken, and not needed: nothing is kept that can be computed again.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        chunk_size: 16, 32 or 64.

    Returns:
        o, [B, T, HQ, V] in q's dtype; a list of the two final states in float32, or of None twice.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
        NotImplementedError: `initial_state` without `g`.
    """
    return _run(
        "chunk_gsa",
        "chunk",
        (q, k, v, s, g),
        initial_state,
        output_final_state,
        scale=scale,
        cu_seqlens=cu_seqlens,
        chunk_size=chunk_size,
    )


@drop_in
def fused_recurrent_gsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    initial_state: States | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Gated slot attention token by token; arguments as of `chunk_gsa`.

    With `reverse` it runs from the last token of each sequence to the first.
    """
    return _run(
        "fused_recurrent_gsa",
        "fused_recurrent",
        (q, k, v, s, g),
        initial_state,
        output_final_state,
        scale=scale,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def naive_recurrent_gsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    initial_state: States | None = None,
    output_final_state: bool | None = False,
) -> tuple[Tensor, tuple[Tensor | None, ...] | None]:
    """The recurrence as it is written, in PyTorch; the final states are a tuple, or None."""
    o, states = _run(
        "naive_recurrent_gsa",
        "naive_recurrent",
        (q, k, v, s, g),
        initial_state,
        bool(output_final_state),
        scale=scale,
    )
    return o, tuple(states) if output_final_state else None
