"""The token shift of RWKV (Peng et al. 2023, https://arxiv.org/abs/2305.13048): the token before, less the token."""

from torch import Tensor

from ..shared.shift import shift


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
    before, last = _shift(x, cu_seqlens, cache, output_cache)
    return before - x if last is None else (before - x, last)


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
        before, last = _shift(x, cu_seqlens, cache, output_cache)
        return before - x, last


def _shift(
    x: Tensor, cu_seqlens: Tensor | None, cache: Tensor | None, output_cache: bool
) -> tuple[Tensor, Tensor | None]:
    if cache is not None and cache.ndim == 3:
        cache = cache.flatten(0, 1)
    return shift(x, cache, output_cache, cu_seqlens)


__all__ = ["TokenShift", "token_shift"]
