"""fla.ops.simple_gla: a log decay for each head and token, a constant one for each head, or none."""

from __future__ import annotations

from torch import Tensor

from ...adapt import EveryForm, computing, drop_in, forms, refuse, run, v_first

__all__ = [
    "chunk_simple_gla",
    "fused_chunk_simple_gla",
    "fused_recurrent_simple_gla",
    "naive_chunk_simple_gla",
    "naive_parallel_simple_gla",
    "naive_recurrent_simple_gla",
    "parallel_simple_gla",
]

_decayed = forms("simple_gla")
_plain = forms("linear_attn")


def _inputs(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, g_gamma: Tensor | None
) -> tuple[EveryForm, list[Tensor]]:
    """The operator for the decays that there are, and its inputs."""
    if g_gamma is not None:
        # No gradient for it: it is a constant in fla.
        constant = g_gamma.detach().to(computing(q, g_gamma)).expand(*v.shape[:3])
        g = constant if g is None else g + constant
    return (_plain, [q, k, v]) if g is None else (_decayed, [q, k, v, g])


@drop_in
def chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Simple GLA in chunks.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V].
        g: log decay, [B, T, HV].
        g_gamma: constant log decay, [HV], on top of g; without a gradient.
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        output_final_state: also return the state after the last token.
        state_v_first: states are [N, HV, V, K].
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        chunk_size: 16, 32 or 64.

    Returns:
        o, [B, T, HV, V] in q's dtype; the final state in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    operator, inputs = _inputs(q, k, v, g, g_gamma)
    return run(
        operator.chunk,
        *inputs,
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        chunk_size=chunk_size,
    )


@drop_in
def fused_chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_simple_gla` under another name."""
    return chunk_simple_gla(q, k, v, g, g_gamma, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens)


@drop_in
def fused_recurrent_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    transpose_state_layout: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Simple GLA token by token; arguments as of `chunk_simple_gla`.

    With `reverse` it runs from the last token of each sequence to the first.
    """
    operator, inputs = _inputs(q, k, v, g, g_gamma)
    return run(
        operator.fused_recurrent,
        *inputs,
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        v_first=v_first("fused_recurrent_simple_gla", state_v_first, transpose_state_layout),
        reverse=reverse,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def parallel_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    output_attentions: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> tuple[Tensor, None]:
    """The output of `chunk_simple_gla`, and None for the attention, which is never formed."""
    refuse("parallel_simple_gla", output_attentions=output_attentions)
    return chunk_simple_gla(q, k, v, g, None, scale, cu_seqlens=cu_seqlens)[0], None


@drop_in
def naive_recurrent_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence as it is written, in PyTorch; arguments as of `chunk_simple_gla`."""
    return run(
        _decayed.naive_recurrent,
        *(q, k, v, g),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
    )


@drop_in
def naive_chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    chunk_size: int = 64,
    scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The chunk form in PyTorch; arguments as of `chunk_simple_gla`."""
    return run(
        _decayed.naive_chunk,
        *(q, k, v, g),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        chunk_size=chunk_size,
    )


@drop_in
def naive_parallel_simple_gla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float | None = None
) -> tuple[Tensor, None]:
    """The output of `naive_chunk_simple_gla`, and None for the attention, which is never formed."""
    return naive_chunk_simple_gla(q, k, v, g, scale=scale)[0], None
