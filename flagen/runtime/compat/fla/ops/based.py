"""fla.ops.based: linear attention by the Taylor series of the exponential."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....shared.forms import Form
from ...adapt import drop_in, forms, run

__all__ = ["fused_chunk_based", "naive_chunk_based", "naive_parallel_based", "parallel_based"]

_based = forms("based")


@drop_in
def parallel_based(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    use_norm: bool = True,
) -> Tensor:
    """Based in chunks, for any number of key channels; fla has no more than 128.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H.
        scale: of the scores, default K ** -0.5.
        use_norm: divide by the sum of the weights, and 1e-6.

    Returns:
        o, [B, T, HV, V] in q's dtype.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    return _output(_based.chunk, q, k, v, scale=scale, use_norm=use_norm)


@drop_in
def fused_chunk_based(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    use_norm: bool = True,
) -> Tensor:
    """What `parallel_based` gives, with its arguments; fla's has no more than 16 key channels."""
    return _output(_based.chunk, q, k, v, scale=scale, use_norm=use_norm)


@drop_in
def naive_parallel_based(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    use_norm: bool = True,
) -> Tensor:
    """The recurrence as it is written, in PyTorch, of inputs [B, H, T, ...]."""
    given = (x.transpose(1, 2) for x in (q, k, v))
    return _output(_based.naive_recurrent, *given, scale=scale, use_norm=use_norm).transpose(1, 2)


@drop_in
def naive_chunk_based(q: Tensor, k: Tensor, v: Tensor, chunk_size: int = 256) -> Tensor:
    """The chunk form in PyTorch, normalized, of inputs [B, H, T, ...] of any length."""
    given = (x.transpose(1, 2) for x in (q, k, v))
    return _output(_based.naive_chunk, *given, scale=None, use_norm=True, chunk_size=chunk_size).transpose(1, 2)


def _output(form: Form, q: Tensor, k: Tensor, v: Tensor, *, use_norm: bool, **options: Any) -> Tensor:
    return run(form, q, k, v, like=q, normalize=1.0 if use_norm else 0.0, **options)[0]
