"""The token shift of RWKV (Peng et al. 2023, https://arxiv.org/abs/2305.13048): the token before, less the token."""

import torch
from torch import Tensor


def shift(x: Tensor, cu_seqlens: Tensor | None, cache: Tensor | None) -> tuple[Tensor, Tensor]:
    """The token before each token, and the last token of each sequence (of the cache, where a sequence is empty)."""
    batch, length, channels = x.shape
    if cu_seqlens is not None and batch != 1:
        raise ValueError(f"x has batch size {batch}, expected 1 with cu_seqlens")
    sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
    if cache is None:
        first = x.new_zeros(sequences, channels)
    elif cache.numel() == sequences * channels:
        first = cache.reshape(sequences, channels).to(x.dtype)
    else:
        raise ValueError(f"cache has shape {list(cache.shape)}, expected [N, D] = [{sequences}, {channels}]")
    if cu_seqlens is None:
        stream = torch.cat([first[:, None], x], dim=1)
        return stream[:, :-1], stream[:, -1]
    index = torch.arange(length, device=x.device)
    bounds = cu_seqlens.to(x.device)
    owner = torch.bucketize(index, bounds[1:], right=True)
    begins = (index == bounds[owner])[:, None]
    earlier = torch.cat([x[0, :1], x[0, :-1]]) if length else x[0]
    last = first
    if length:
        last = torch.where(bounds.diff()[:, None] > 0, x[0, (bounds[1:] - 1).clamp(min=0)], first)
    return torch.where(begins, first[owner], earlier)[None], last


def token_shift(
    x: Tensor,
    cu_seqlens: Tensor | None = None,
    cache: Tensor | None = None,
    output_cache: bool = False,
    chunk_indices: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """x_{t-1} - x_t: the difference, not the token before.

    Args:
        x: [B, T, D]; packed sequences have B = 1.
        cu_seqlens: [N + 1], where packed sequences begin and end. They may be empty.
        cache: [N, D], or [N, 1, D], the token before the first; zeros by default.
        output_cache: whether the last token is returned too.
        chunk_indices: taken for the signature's sake.

    Returns:
        [B, T, D]; with output_cache, that and [N, D] for the next call: of an empty sequence, what came in.

    Raises:
        ValueError: shapes do not fit.
    """
    before, last = shift(x, cu_seqlens, cache)
    return (before - x, last) if output_cache else before - x


class TokenShift:
    """token_shift under the name it has as an autograd function: `TokenShift.apply`."""

    @staticmethod
    def apply(
        x: Tensor,
        cu_seqlens: Tensor | None = None,
        cache: Tensor | None = None,
        output_cache: bool = False,
        chunk_indices: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The difference, and the last token or None; see token_shift."""
        before, last = shift(x, cu_seqlens, cache)
        return before - x, last if output_cache else None


__all__ = ["TokenShift", "token_shift"]
