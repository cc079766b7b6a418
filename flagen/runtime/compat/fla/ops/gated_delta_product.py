"""fla.ops.gated_delta_product: several steps of the delta rule for each token, under a decay or none."""

from __future__ import annotations

from torch import Tensor

from ...adapt import EveryForm, drop_in, forms, l2norm, refuse, run

__all__ = ["chunk_gated_delta_product", "chunk_gated_delta_product_ref", "naive_recurrent_gated_delta_product"]

_gated = forms("gated_delta_product")
_plain = forms("delta_product")


def _operator(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor) -> tuple[EveryForm, tuple[Tensor, ...]]:
    """The operator with a decay or that without, and its inputs."""
    return (_plain, (q, k, v, beta)) if g is None else (_gated, (q, k, v, g, beta))


@drop_in
def chunk_gated_delta_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    num_householder: int,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    cp_context: object | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gated delta product in chunks; float32 too, which fla refuses.

    Args:
        q: [B, T, H, K].
        k: [B, T * num_householder, H, K].
        v: [B, T * num_householder, HV, V].
        g: log decay, [B, T, HV], or None for none.
        beta: write strength, [B, T * num_householder, HV].
        num_householder: steps of a token.
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        output_final_state: also return the state after the last token.
        use_qk_l2norm_in_kernel: divide q and k by their lengths first.
        cu_seqlens: [N + 1] offsets of packed sequences, in tokens; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        cp_context: refused.

    Returns:
        o, [B, T, HV, V] in q's dtype; the final state in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
        NotImplementedError: `cp_context`.
    """
    refuse("chunk_gated_delta_product", cp_context=cp_context)
    qk = (l2norm(q), l2norm(k)) if use_qk_l2norm_in_kernel else (q, k)
    operator, inputs = _operator(*qk, v, g, beta)
    return run(
        operator.chunk,
        *inputs,
        like=q,
        num_householder=num_householder,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def chunk_gated_delta_product_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    num_householder: int,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_gated_delta_product` with its last two arguments the other way round."""
    return chunk_gated_delta_product(
        *(q, k, v, g, beta, num_householder, scale, initial_state, output_final_state),
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def naive_recurrent_gated_delta_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    scale: float | None,
    cu_seqlens: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    num_householder: int = 1,
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, in PyTorch; the final state is always there, as in fla."""
    operator, inputs = _operator(q, k, v, g, beta)
    return run(
        operator.naive_recurrent,
        *inputs,
        like=q,
        num_householder=num_householder,
        scale=scale,
        initial_state=initial_state,
        output_final_state=True,
        cu_seqlens=cu_seqlens,
    )
