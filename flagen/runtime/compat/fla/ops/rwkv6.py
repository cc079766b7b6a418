"""fla.ops.rwkv6: a log decay of each key channel, and a bonus for the current token."""

from __future__ import annotations

from torch import Tensor

from ...adapt import drop_in, forms, run

__all__ = ["chunk_rwkv6", "fused_recurrent_rwkv6", "naive_chunk_rwkv6", "naive_recurrent_rwkv6"]

_rwkv6 = forms("rwkv6")


@drop_in
def chunk_rwkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """RWKV-6 in chunks.

    Args:
        r: receptance, [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V].
        w: log decay of each key channel, [B, T, HV, K].
        u: bonus of the current token, [HV, K].
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        output_final_state: also return the state after the last token.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        chunk_size: 16, 32 or 64.

    Returns:
        o, [B, T, HV, V] in r's dtype; the final state in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    return run(
        _rwkv6.chunk,
        *(r, k, v, w),
        like=r,
        u=u,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        chunk_size=chunk_size,
    )


@drop_in
def fused_recurrent_rwkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """RWKV-6 token by token; arguments as of `chunk_rwkv6`.

    With `reverse` it runs from the last token of each sequence to the first.
    """
    return run(
        _rwkv6.fused_recurrent,
        *(r, k, v, w),
        like=r,
        u=u,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def naive_recurrent_rwkv6(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool | None = False,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence as it is written, in PyTorch, of inputs [B, H, T, ...]; `q` is `r`."""
    o, state = run(
        _rwkv6.naive_recurrent,
        *(x.transpose(1, 2) for x in (q, k, v, w)),
        like=q,
        u=u,
        scale=scale,
        initial_state=initial_state,
        output_final_state=bool(output_final_state),
    )
    return o.transpose(1, 2), state


@drop_in
def naive_chunk_rwkv6(q: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, chunk_size: int = 32) -> Tensor:
    """The output of the chunk form in PyTorch, unscaled, of inputs [B, H, T, ...]; `q` is `r`."""
    o, _ = run(
        _rwkv6.naive_chunk, *(x.transpose(1, 2) for x in (q, k, v, w)), like=q, u=u, scale=1.0, chunk_size=chunk_size
    )
    return o.transpose(1, 2)
