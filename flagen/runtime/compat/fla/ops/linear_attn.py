"""fla.ops.linear_attn: no decay, with or without a normalizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....shared.forms import Form
from ...adapt import drop_in, forms, run

__all__ = [
    "chunk_linear_attn",
    "fused_chunk_linear_attn",
    "fused_recurrent_linear_attn",
    "naive_chunk_linear_attn",
    "naive_recurrent_linear_attn",
]

State = Tensor | tuple[Tensor, Tensor | None]

_plain = forms("linear_attn")
_normalized = forms("linear_attn_normalized")


def _run_normalized(
    form: Form, q: Tensor, k: Tensor, v: Tensor, initial_state: State | None, output_final_state: bool, **options: Any
) -> tuple[Tensor, tuple[Tensor | None, Tensor]]:
    """Run the normalized operator with fla's states: S, [N, H, K, V], and z, [N, 1, H, K], which always comes back."""
    state = None
    if initial_state is not None:
        S, z = (initial_state, None) if isinstance(initial_state, Tensor) else initial_state
        state = (S, S.new_zeros(S.shape[:-1]) if z is None else z.squeeze(1))
    o, (S, z) = run(form, q, k, v, like=q, initial_state=state, output_final_state=True, **options)
    return o, (S if output_final_state else None, z.unsqueeze(1))


@drop_in
def chunk_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: State | None = None,
    output_final_state: bool = False,
    normalize: bool = True,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """Linear attention in chunks.

    Args:
        q: [B, T, H, K]; with `normalize` a feature map, at least 0.
        k: [B, T, H, K]; with `normalize` a feature map, at least 0.
        v: [B, T, H, V].
        scale: default K ** -0.5.
        initial_state: [N, H, K, V]; with `normalize` a pair of that and the sum of keys, [N, 1, H, K], or that alone.
        output_final_state: also return the state after the last token.
        normalize: divide by the dot product of the query with the sum of keys.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.

    Returns:
        o, [B, T, H, V] in q's dtype; the final state in float32, or None. With `normalize` a pair of that and of the
        sum of keys, which is there always.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    if normalize:
        return _run_normalized(
            _normalized.chunk, q, k, v, initial_state, output_final_state, scale=scale, cu_seqlens=cu_seqlens
        )
    return run(
        _plain.chunk,
        *(q, k, v),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def fused_chunk_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: State | None = None,
    output_final_state: bool = False,
    normalize: bool = True,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """`chunk_linear_attn` under another name."""
    return chunk_linear_attn(q, k, v, scale, initial_state, output_final_state, normalize, cu_seqlens)


@drop_in
def fused_recurrent_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: State | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    normalize: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """Linear attention token by token; arguments as of `chunk_linear_attn`, but not normalized by default.

    With `reverse` it runs from the last token of each sequence to the first.
    """
    if normalize:
        return _run_normalized(
            _normalized.fused_recurrent,
            *(q, k, v),
            initial_state,
            output_final_state,
            scale=scale,
            cu_seqlens=cu_seqlens,
            reverse=reverse,
        )
    return run(
        _plain.fused_recurrent,
        *(q, k, v),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def naive_recurrent_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: State | None = None,
    output_final_state: bool = False,
    normalize: bool = False,
) -> tuple[Tensor, Any]:
    """The recurrence as it is written, in PyTorch; without `output_final_state` None in the place of any state."""
    if normalize:
        o, states = _run_normalized(
            _normalized.naive_recurrent, q, k, v, initial_state, output_final_state, scale=scale
        )
        return o, states if output_final_state else None
    return run(
        _plain.naive_recurrent,
        *(q, k, v),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
    )


@drop_in
def naive_chunk_linear_attn(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, normalize: bool = False
) -> Tensor:
    """The output of the chunk form in PyTorch."""
    operator = _normalized if normalize else _plain
    return run(operator.naive_chunk, q, k, v, like=q, scale=scale)[0]
