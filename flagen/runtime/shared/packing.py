"""Where the tokens of a batch are: everywhere, in packed sequences, or where a padding mask has them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .offsets import read_offsets, with_numbers


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

    The numbers of `cu_seqlens` are read from the device once and go with it.
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
        made: Packings | None = None,
    ) -> Packing:
        """The packing of `hidden_states`.

        Args:
            hidden_states: [B, T, ...].
            attention_mask: [B, S] with S >= T, not 0 where there is a token; its last T columns are those of this call.
                Ignored with `cu_seqlens`.
            cu_seqlens: [N + 1], int32 or int64, offsets of packed sequences in a batch of 1; a sequence may be empty.
            multiply: keep padding in its place.
            made: what is left here for other layers of the same call, which then read nothing from the device.

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
        made, key = {} if made is None else made, (multiply, hidden_states.device)
        if key not in made:
            made[key] = cls._found(hidden_states, attention_mask, cu_seqlens, multiply)
        return made[key]

    @classmethod
    def _found(
        cls, hidden_states: Tensor, attention_mask: Tensor | None, cu_seqlens: Tensor | None, multiply: bool
    ) -> Packing:
        batch, length = hidden_states.shape[:2]
        if cu_seqlens is not None:
            return cls(batch, length, _checked_offsets(cu_seqlens, hidden_states))
        if attention_mask is None:
            return cls(batch, length)
        _check_mask(attention_mask, hidden_states)
        there = attention_mask != 0
        before, present = there[:, : there.shape[1] - length], there[:, there.shape[1] - length :]
        earlier = before.sum(-1) if before.shape[1] else None
        if multiply:
            padding = None if bool(present.all()) else ~present
            return cls(batch, length, padding=padding, earlier=earlier)
        offsets = F.pad(present.sum(-1).cumsum(0), (1, 0))
        *_, tokens = read = tuple(offsets.tolist())
        if tokens == batch * length:
            return cls(batch, length, earlier=earlier)
        # Those that are there come first, in their order: unlike by `nonzero`, nothing is read from the device.
        places = present.logical_not().flatten().byte().argsort(stable=True)[:tokens]
        return cls(batch, length, with_numbers(offsets, read), places, earlier=earlier)

    @property
    def sequences(self) -> int:
        """How many there are, N."""
        return self.batch if self.cu_seqlens is None else len(self.cu_seqlens) - 1

    def pack(self, x: Tensor) -> Tensor:
        """The tokens of x, [B, T, ...]: [1, M, ...], or [B, T, ...] where they stay in their places."""
        if self.tokens is not None:
            return x.flatten(0, 1).index_select(0, self.tokens).unsqueeze(0)
        return x

    def pack_given(self, x: Tensor | None, name: str) -> Tensor | None:
        """The same of what else there is of each token, which may be None.

        Raises:
            ValueError: it has other rows or other tokens.
        """
        if x is None:
            return None
        if not isinstance(x, Tensor) or x.shape[:2] != (self.batch, self.length):
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{name}: expected a tensor [{self.batch}, {self.length}, ...] as hidden_states, got {found}"
            )
        return self.pack(x)

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

    def positions_after(self, first: int | Tensor) -> int | Tensor:
        """The position of the token that comes next in each sequence, where this call's begin at `first`."""
        if self.cu_seqlens is not None:
            return first + self.cu_seqlens.diff()
        if self.padding is not None:
            return first + self.padding.logical_not().sum(-1)
        return first + self.length


Packings = dict[tuple[bool, torch.device], Packing]
"""The packings of one mask or of the same offsets: those that keep padding in its place and those that do not."""


def _check_mask(mask: Tensor, hidden_states: Tensor) -> None:
    batch, length = hidden_states.shape[:2]
    if mask.ndim != 2 or mask.shape[0] != batch or mask.shape[1] < length:
        raise ValueError(
            f"attention_mask: expected [{batch}, S], 0 where there is no token, with S at least {length}, "
            f"got {tuple(mask.shape)}"
        )
    if mask.device != hidden_states.device:
        raise ValueError(f"attention_mask: expected device {hidden_states.device}, got {mask.device}")


def _checked_offsets(cu_seqlens: Tensor, hidden_states: Tensor) -> Tensor:
    """The same offsets, with their numbers."""
    batch, length = hidden_states.shape[:2]
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.numel() < 2:
        found = f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
        raise ValueError(f"cu_seqlens: expected [N + 1] token offsets in int32 or int64, got {found}")
    if batch != 1:
        raise ValueError(f"cu_seqlens: expected packed sequences in a batch of 1, got a batch of {batch}")
    if cu_seqlens.device != hidden_states.device:
        raise ValueError(f"cu_seqlens: expected device {hidden_states.device}, got {cu_seqlens.device}")
    if torch.compiler.is_compiling():
        return cu_seqlens  # Nothing can be read while tracing.
    offsets = read_offsets(cu_seqlens)
    if offsets[0] != 0 or offsets[-1] != length or any(a > b for a, b in pairwise(offsets)):
        raise ValueError(f"cu_seqlens: expected non-decreasing offsets from 0 to T = {length}, got {list(offsets)}")
    # A tensor of its own, on the same memory: the caller's may be written to before the next call.
    return with_numbers(cu_seqlens.view_as(cu_seqlens), offsets)
