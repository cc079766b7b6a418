"""Rotary position embeddings. Su et al. 2021, https://arxiv.org/abs/2104.09864.

With a `scale_base`, xPos: Sun et al. 2022, https://arxiv.org/abs/2212.10554.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from .precision import upcast


def token_positions(x: Tensor, seqlen_offsets: int | Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The position of each token in its sequence: [T], or [B, T] if sequences have offsets of their own.

    Raises:
        ValueError: packed sequences with a batch size that is not 1, or offsets of another number of sequences.
    """
    batch, length = x.shape[:2]
    index = torch.arange(length, device=x.device)
    offset = seqlen_offsets
    if isinstance(offset, Tensor):
        sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
        if tuple(offset.shape) != (sequences,):
            raise ValueError(f"seqlen_offsets: expected [N] = [{sequences}], got {list(offset.shape)}")
        offset = offset.to(x.device)
    if cu_seqlens is None:
        return index + (offset[:, None] if isinstance(offset, Tensor) else offset)
    if batch != 1:
        raise ValueError(f"x: expected packed sequences in a batch of 1, got a batch of {batch}")
    starts = cu_seqlens.to(x.device)
    owner = torch.bucketize(index, starts[1:], right=True)
    return index - starts[owner] + (offset[owner] if isinstance(offset, Tensor) else offset)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Pairs of channels of [B, T, H, D] turned by the angles whose cos and sin are [T, R] or [B, T, R], 2 R <= D.

    Channels from 2 R on stay as they are. Raises ValueError if there are fewer than 2 R.
    """
    half = cos.shape[-1]
    if 2 * half > x.shape[-1]:
        raise ValueError(f"x: expected at least the {2 * half} channels that are rotated, got {x.shape[-1]}")
    cos, sin = upcast(cos).unsqueeze(-2), upcast(sin).unsqueeze(-2)
    turned = upcast(x[..., : 2 * half])
    if interleaved:
        first, second = turned[..., ::2], turned[..., 1::2]
    else:
        first, second = turned[..., :half], turned[..., half:]
    pair = (first * cos - second * sin, first * sin + second * cos)
    turned = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return torch.cat([turned.to(x.dtype), x[..., 2 * half :]], dim=-1)


def hide_before_start(x: Tensor, positions: Tensor, rotated: int) -> Tensor:
    """x with zeros in its first `rotated` channels where the position is below zero: the padding on the left."""
    hidden = (positions < 0)[..., None, None]
    return torch.cat([x[..., :rotated].masked_fill(hidden, 0), x[..., rotated:]], dim=-1)


def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    chunk_indices: Tensor | None = None,
) -> Tensor:
    """x turned by the angles of its tokens' positions, in float32, in x's dtype at the end.

    Args:
        x: [B, T, H, D]; packed sequences have B = 1.
        cos: [P, R], by position, 2 R <= D.
        sin: [P, R].
        interleaved: whether pairs are channels 2 i and 2 i + 1, not i and i + R.
        inplace: whether x is overwritten.
        seqlen_offsets: what is added to positions, a number or one a sequence, [N]. Where a position is below zero, the
            channels that are rotated are zero.
        cu_seqlens: [N + 1], where packed sequences begin and end.
        chunk_indices: taken for the signature's sake.

    Returns:
        [B, T, H, D].

    Raises:
        ValueError: shapes do not fit, or there are more positions than P.
    """
    positions = token_positions(x, seqlen_offsets, cu_seqlens)
    if isinstance(seqlen_offsets, int) and cu_seqlens is None:
        last = seqlen_offsets + x.shape[1]
        if last > cos.shape[0] or seqlen_offsets < 0:
            there = f"0 to {cos.shape[0] - 1}"
            raise ValueError(f"seqlen_offsets: expected positions of cos, {there}, got {seqlen_offsets} to {last - 1}")
    places = positions.clamp(min=0)
    y = hide_before_start(rotate(x, cos[places], sin[places], interleaved), positions, 2 * cos.shape[-1])
    return x.copy_(y) if inplace else y


class RotaryEmbedding(nn.Module):
    """Turns queries and keys by angles that grow with their positions.

    Angles, cosines and sines are float32, whatever the dtype of queries and keys.

    Args:
        dim: how many channels of each head are rotated, an even number.
        base: of the frequencies, which are base^(-2 i / dim).
        scale_base: for xPos, the base of the growth of queries and the decay of keys; None for none.
        interleaved: whether pairs are channels 2 i and 2 i + 1, not i and i + dim / 2.
        pos_idx_in_fp32: whether positions are float32 even where the module is in half precision; False is for models
            that were trained that way.
        device: of the frequencies.

    Raises:
        ValueError: dim is odd.
    """

    inv_freq: Tensor
    scale: Tensor | None

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        scale_base: float | None = None,
        interleaved: bool = False,
        pos_idx_in_fp32: bool = True,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if dim % 2 != 0:
            raise ValueError(f"dim: expected an even number, got {dim}")
        self.dim = dim
        self.base = float(base)
        self.scale_base = scale_base
        self.interleaved = interleaved
        self.pos_idx_in_fp32 = pos_idx_in_fp32
        self.register_buffer("inv_freq", torch.empty(dim // 2, device=device), persistent=False)
        scale = None if scale_base is None else torch.empty(dim // 2, device=device)
        self.register_buffer("scale", scale, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Frequencies and scales as the arguments say."""
        with torch.no_grad():
            self.inv_freq.copy_(self.frequencies(self.inv_freq.device))
            if self.scale is not None:
                self.scale.copy_(self.scales(self.scale.device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Frequencies are in no state_dict: those that come from the meta device, by `to_empty`, are made here."""
        without_values = self.inv_freq.is_meta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if without_values and not self.inv_freq.is_meta:
            self.reset_parameters()
        return self

    def frequencies(self, device: torch.device) -> Tensor:
        """[dim / 2], float32."""
        even = torch.arange(0, self.dim, 2, device=device, dtype=torch.float32)
        return 1.0 / self.base ** (even / self.dim)

    def scales(self, device: torch.device) -> Tensor:
        """[dim / 2], float32: what xPos raises to the power of the position."""
        even = torch.arange(0, self.dim, 2, device=device, dtype=torch.float32)
        return (even + 0.4 * self.dim) / (1.4 * self.dim)

    def extra_repr(self) -> str:
        scale = "" if self.scale_base is None else f", scale_base={self.scale_base}"
        return (
            f"dim={self.dim}, base={self.base}, interleaved={self.interleaved}{scale}, "
            f"pos_idx_in_fp32={self.pos_idx_in_fp32}"
        )

    def angles(self, positions: Tensor) -> Tensor:
        """[..., T] to [..., T, dim / 2], float32 unless pos_idx_in_fp32 is False."""
        frequencies = self.inv_freq
        if self.pos_idx_in_fp32 and frequencies.dtype != torch.float32:
            frequencies = self.frequencies(frequencies.device)
        return positions[..., None].to(frequencies.dtype) * frequencies

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        seqlen_offset: int | Tensor = 0,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        chunk_indices: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys, turned.

        Args:
            q: [B, T, H, D]; packed sequences have B = 1.
            k: [B, T, H_k, D].
            seqlen_offset: what is added to positions, a number or one a sequence, [N]. Where a position is below zero,
                the channels that are rotated are zero.
            cu_seqlens: [N + 1], where packed sequences begin and end.
            max_seqlen: with a scale_base, the length in whose middle the scale is one; T and the offset by default.
                Keys that are kept from call to call need the same one in all of them. Not used otherwise.
            chunk_indices: taken for the signature's sake.

        Returns:
            Both, in the dtypes they came in.

        Raises:
            ValueError: shapes do not fit, or a scale_base, offsets that are a tensor and no max_seqlen.
        """
        positions = token_positions(q, seqlen_offset, cu_seqlens)
        angles = self.angles(positions)
        cos, sin = angles.cos(), angles.sin()
        cos_k, sin_k = cos, sin
        if self.scale is not None and self.scale_base is not None:
            if max_seqlen is None:
                if isinstance(seqlen_offset, Tensor):
                    raise ValueError("max_seqlen: expected a number with a scale_base and offsets [N], got None")
                max_seqlen = q.shape[1] + seqlen_offset
            scale = self.scale
            if self.pos_idx_in_fp32 and scale.dtype != torch.float32:
                scale = self.scales(scale.device)
            power = (positions - max_seqlen // 2).to(scale.dtype) / self.scale_base
            growth = scale ** power[..., None]
            cos, sin, cos_k, sin_k = cos * growth, sin * growth, cos / growth, sin / growth
        q = rotate(q, cos, sin, self.interleaved)
        k = rotate(k, cos_k, sin_k, self.interleaved)
        if isinstance(seqlen_offset, Tensor):
            q, k = hide_before_start(q, positions, self.dim), hide_before_start(k, positions, self.dim)
        return q, k


__all__ = ["RotaryEmbedding", "rotary_embedding"]
