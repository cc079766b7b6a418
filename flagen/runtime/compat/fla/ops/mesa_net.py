"""fla.ops.mesa_net: queries through the inverse of the decayed second moment of the keys."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....shared.forms import Form
from ...adapt import computing, drop_in, forms, l2norm, run

__all__ = [
    "chunk_mesa_net",
    "mesa_net_decoding_one_step",
    "naive_mesa_net_CG",
    "naive_mesa_net_decoding_one_step",
    "naive_mesa_net_exact",
]

_mesa_net = forms("mesa_net")


@drop_in
def chunk_mesa_net(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    lamb: Tensor,
    h_kk_init: Tensor | None = None,
    h_kv_init: Tensor | None = None,
    output_final_state: bool = False,
    max_CG_iteration: int = 30,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """MesaNet in chunks. Keys and queries stay in their dtype, which fla rounds to float16; and nothing is added to the
    denominators of the conjugate gradients, to which fla adds 1e-5.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H.
        g: log decay, [B, T, HV].
        beta: write strength, [B, T, HV].
        lamb: what is added to the diagonal of the second moment, [HV, K], above 0.
        h_kk_init: second moment of the keys, [N, HV, K, K], symmetric and positive semidefinite.
        h_kv_init: [N, HV, K, V]; either state may be given alone, where fla's kernels fail or ignore it.
        output_final_state: also return the states after the last token.
        max_CG_iteration: steps of conjugate gradients for every token.
        use_qk_l2norm_in_kernel: divide q and k by their lengths first.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.

    Returns:
        o, [B, T, HV, V] in v's dtype; the two states in float32, or None twice.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    q, k = (l2norm(q), l2norm(k)) if use_qk_l2norm_in_kernel else (q, k)
    return _run(
        _mesa_net.chunk,
        *(q, k, v, g, beta, lamb),
        like=v,
        first=(h_kk_init, h_kv_init),
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        max_iterations=max_CG_iteration,
    )


@drop_in
def mesa_net_decoding_one_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    lamb: Tensor,
    beta: Tensor,
    prev_h_kk: Tensor,
    prev_h_kv: Tensor,
    max_CG_iteration: int = 30,
) -> tuple[Tensor, Tensor, Tensor]:
    """One token; `lamb` comes before `beta` here, as in fla. The system is solved by elimination, in PyTorch.

    Args:
        q: [B, H, K].
        k: [B, H, K].
        v: [B, HV, V]; HV is a multiple of H.
        g: log decay, [B, HV].
        lamb: what is added to the diagonal of the second moment, [HV, K], above 0.
        beta: write strength, [B, HV].
        prev_h_kk: second moment of the keys, [B, HV, K, K].
        prev_h_kv: [B, HV, K, V].
        max_CG_iteration: taken, and not needed: elimination is what these steps come near to.

    Returns:
        o, [B, HV, V] in q's dtype; the two states in the dtypes of those before.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    o, h_kk, h_kv = _one_step(q, k, v, g, lamb, beta, prev_h_kk, prev_h_kv)
    return o.to(q.dtype), h_kk.to(prev_h_kk.dtype), h_kv.to(prev_h_kv.dtype)


@drop_in
def naive_mesa_net_decoding_one_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    lamb: Tensor,
    beta: Tensor,
    prev_h_kk: Tensor,
    prev_h_kv: Tensor,
    max_CG_iteration: int = 30,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `mesa_net_decoding_one_step` gives, with its arguments, in float32."""
    return _one_step(q.to(computing(q)), k, v, g, lamb, beta, prev_h_kk, prev_h_kv)


@drop_in
def naive_mesa_net_exact(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    lamb: Tensor,
    beta: Tensor,
    h_kk_init: Tensor | None = None,
    h_kv_init: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The recurrence as it is written, in PyTorch and in float32; `lamb` comes before `beta` here, as in fla."""
    q = q.to(computing(q))
    first = (h_kk_init, h_kv_init)
    return _run(_mesa_net.naive_recurrent, q, k, v, g, beta, lamb, like=q, first=first, output_final_state=True)


@drop_in
def naive_mesa_net_CG(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    lamb: Tensor,
    beta: Tensor,
    chunk_size: int,
    max_CG_iteration: int = 30,
    h_kk_init: Tensor | None = None,
    h_kv_init: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The chunk form in PyTorch and in float32; `lamb` comes before `beta` here, as in fla."""
    q = q.to(computing(q))
    return _run(
        _mesa_net.naive_chunk,
        *(q, k, v, g, beta, lamb),
        like=q,
        first=(h_kk_init, h_kv_init),
        output_final_state=True,
        chunk_size=chunk_size,
        max_iterations=max_CG_iteration,
    )


def _one_step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, lamb: Tensor, beta: Tensor, h_kk: Tensor, h_kv: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One token by the recurrence."""
    rows = (x[:, None] for x in (q, k, v, g, beta))
    o, last = run(_mesa_net.naive_recurrent, *rows, lamb, like=q, initial_state=(h_kk, h_kv), output_final_state=True)
    return o[:, 0], *last


def _run(
    form: Form,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *inputs: Tensor,
    first: tuple[Tensor | None, Tensor | None],
    **options: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run the operator, of whose two states one may be given alone."""
    like = next((state for state in first if state is not None), None)
    initial_state = None
    if like is not None:
        rows, heads = like.shape[:2]
        shapes = ((rows, heads, k.shape[-1], k.shape[-1]), (rows, heads, k.shape[-1], v.shape[-1]))
        initial_state = tuple(
            like.new_zeros(shape) if state is None else state for state, shape in zip(first, shapes, strict=True)
        )
    o, last = run(form, q, k, v, *inputs, initial_state=initial_state, **options)
    h_kk, h_kv = (None, None) if last is None else last
    return o, h_kk, h_kv
