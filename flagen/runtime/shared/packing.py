"""Where the tokens of a batch are: everywhere, in packed sequences, or where a padding mask has them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """The tokens of one call, and how to get them out of the batch and back into it.

    Padded rows are packed into a batch of 1, one after another, so that a layer sees tokens alone; row n of the batch
    is sequence n. With `multiply` they stay where they are, and `masked` puts zeros in the place of padding.

    Attributes:
        batch: rows of the batch, B.
        length: tokens of a row, T, padding included.
        cu_seqlens: [N + 1], offsets of the packed sequences; None where each row is a sequence.
        tokens: [M], the places of the tokens in the flattened batch; None where none is padding.
        padding: [B, T], true where there is no token, with `multiply`; None where none is padding.
        earlier: [B], how many tokens the mask has before this call's, where it says.
    """

    batch: int
    length: int
    cu_seqlens: Tensor | None = None
    tokens: Tensor | None = None
    padding: Tensor | None = None
    earlier: Tensor | None = None

    @classmethod
    def of(
        cls,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        multiply: bool = False,
    ) -> Packing:
        """The packing of `hidden_states`.

        Args:
            hidden_states: [B, T, ...].
            attention_mask: [B, S] with S >= T, not 0 where there is a token; its last T columns are those of this call.
                Ignored with `cu_seqlens`.
            cu_seqlens: [N + 1], int32 or int64, offsets of packed sequences in a batch of 1; a sequence may be empty.
            multiply: keep padding in its place.

        Raises:
            TypeError: an argument is no tensor, or `hidden_states` are no floats.
            ValueError: an argument does not fit, named.
        """
        given = {"hidden_states": hidden_states, "attention_mask": attention_mask, "cu_seqlens": cu_seqlens}
        for name, tensor in given.items():
            if not (isinstance(tensor, Tensor) or (tensor is None and name != "hidden_states")):
                raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if not hidden_states.is_floating_point():
            raise TypeError(f"hidden_states: expected floats, got {hidden_states.dtype}")
        if hidden_states.ndim < 3:
            raise ValueError(f"hidden_states: expected [B, T, hidden_size], got {tuple(hidden_states.shape)}")
        batch, length = hidden_states.shape[:2]
        if cu_seqlens is not None:
            _check_offsets(cu_seqlens, hidden_states)
            return cls(batch, length, cu_seqlens)
        if attention_mask is None:
            return cls(batch, length)
        _check_mask(attention_mask, hidden_states)
        there = attention_mask != 0
        before, present = there[:, : there.shape[1] - length], there[:, there.shape[1] - length :]
        earlier = before.sum(-1) if before.shape[1] else None
        if bool(present.all()):
            return cls(batch, length, earlier=earlier)
        if multiply:
            return cls(batch, length, padding=~present, earlier=earlier)
        offsets = F.pad(present.sum(-1).cumsum(0), (1, 0))
        return cls(batch, length, offsets, present.flatten().nonzero().flatten(), earlier=earlier)

    def pack(self, x: Tensor) -> Tensor:
        """The tokens of x, [B, T, ...]: [1, M, ...], or [B, T, ...] where they stay in their places."""
        if self.tokens is not None:
            return x.flatten(0, 1).index_select(0, self.tokens).unsqueeze(0)
        return x

    def unpack(self, x: Tensor) -> Tensor:
        """What `pack` made, or a layer of it, back in its place, [B, T, ...]: exactly zero where there is no token."""
        if self.tokens is not None:
            rows = x.new_zeros(self.batch * self.length, *x.shape[2:])
            return rows.index_copy(0, self.tokens, x[0]).reshape(self.batch, self.length, *x.shape[2:])
        return self.masked(x)

    def masked(self, x: Tensor) -> Tensor:
        """x, [B, T, ...], with zeros in the place of padding that stays in its place."""
        if self.padding is None:
            return x
        return x.masked_fill(self.padding.reshape(self.batch, self.length, *[1] * (x.ndim - 2)), 0)

    def first_positions(self, seen: int) -> int | Tensor:
        """The position of each row's first token, after a cache that has seen `seen` columns: padding has none."""
        return seen if self.earlier is None or not seen else self.earlier


def _check_mask(mask: Tensor, hidden_states: Tensor) -> None:
    batch, length = hidden_states.shape[:2]
    if mask.ndim != 2 or mask.shape[0] != batch or mask.shape[1] < length:
        raise ValueError(
            f"attention_mask: expected [{batch}, S], 0 where there is no token, with S at least {length}, "
            f"got {tuple(mask.shape)}"
        )
    if mask.device != hidden_states.device:
        raise ValueError(f"attention_mask: expected device {hidden_states.device}, got {mask.device}")


def _check_offsets(cu_seqlens: Tensor, hidden_states: Tensor) -> None:
    batch, length = hidden_states.shape[:2]
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.numel() < 2:
        found = f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
        raise ValueError(f"cu_seqlens: expected [N + 1] token offsets in int32 or int64, got {found}")
    if batch != 1:
        raise ValueError(f"cu_seqlens: expected packed sequences in a batch of 1, got a batch of {batch}")
    if cu_seqlens.device != hidden_states.device:
        raise ValueError(f"cu_seqlens: expected device {hidden_states.device}, got {cu_seqlens.device}")
    if torch.compiler.is_compiling():
        return  # Nothing can be read while tracing.
    offsets = cu_seqlens.tolist()
    if offsets[0] != 0 or offsets[-1] != length or any(a > b for a, b in pairwise(offsets)):
        raise ValueError(f"cu_seqlens: expected non-decreasing offsets from 0 to T = {length}, got {offsets}")
