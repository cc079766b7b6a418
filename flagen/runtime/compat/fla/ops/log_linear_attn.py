"""fla.ops.log_linear_attn: linear attention whose memory keeps the past in levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...adapt import computing, drop_in, forms, run

__all__ = ["LogLinearAttentionState", "chunk_log_linear_attn", "naive_log_linear_attn"]

_log_linear_attn = forms("log_linear_attn")

CHUNK = 64
"""Tokens of a chunk of fla's states."""
INSIDE = CHUNK.bit_length()
"""The levels that the tokens of a chunk have among themselves; further ones are of whole chunks."""


@dataclass
class LogLinearAttentionState:
    """What fla keeps of N sequences: whole chunks of 64 tokens, by their levels, and the tokens behind them.

    ht: [N, M, HV, K, V]: what 2^m chunks have written, where the bit m of the number of whole chunks is 1; else zero.
    offsets: [N], int32: how many tokens there were.
    q_prev, k_prev: [N, 64, H, K] of the tokens behind the last whole chunk, zero behind these.
    v_prev, g_prev, level_scales_prev: the same, [N, 64, HV, V], [N, 64, HV] and [N, 64, HV, L].
    """

    ht: Tensor
    offsets: Tensor
    q_prev: Tensor
    k_prev: Tensor
    v_prev: Tensor
    g_prev: Tensor
    level_scales_prev: Tensor


@drop_in
def chunk_log_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    level_scales: Tensor,
    initial_state: LogLinearAttentionState | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    scale: float | None = 1.0,
) -> tuple[Tensor, LogLinearAttentionState | None]:
    """Log-linear attention in chunks, of any number of key channels.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H.
        g: log decay, [B, T, HV].
        level_scales: how much each level counts, that of the token itself first, [B, T, HV, L].
        initial_state: what an earlier call, or fla's, left of these sequences, of any lengths. Unlike there, gradients
            go through it.
        output_final_state: also return what is kept after the last token.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        scale: of what is read, or None for K ** -0.5.

    Returns:
        o, [B, T, HV, V] in q's dtype; the final state, or None.

    Raises:
        TypeError: initial_state is none of fla's.
        ValueError: a shape, dtype or device that does not fit, named; with states, level_scales of fewer levels than
            the chunks have.
    """
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    inputs = (q, k, v, g, level_scales)
    if initial_state is None and not output_final_state:
        return run(_log_linear_attn.chunk, *inputs, like=q, scale=scale, cu_seqlens=cu_seqlens)[0], None
    if cu_seqlens is None:
        new: list[Sequence[Tensor]] = [[x[i] for x in inputs] for i in range(q.shape[0])]
    else:
        new = list(zip(*(torch.split(x[0], cu_seqlens.diff().tolist()) for x in inputs), strict=True))
    sequences = _Sequences(new, initial_state)
    outputs, final_state = sequences.run(scale, output_final_state)
    return torch.stack(outputs) if cu_seqlens is None else torch.cat(outputs)[None], final_state


class _Sequences:
    """Sequences from the beginning of a chunk on: the tokens that are kept of it, then the new ones."""

    def __init__(self, new: Sequence[Sequence[Tensor]], past: LogLinearAttentionState | None) -> None:
        if past is not None and not hasattr(past, "ht"):
            raise TypeError(f"initial_state: expected a LogLinearAttentionState, got {type(past).__name__}")
        seen = [0] * len(new) if past is None else past.offsets.tolist()
        if len(seen) != len(new):
            raise ValueError(f"initial_state: expected states of {len(new)} sequences, got {len(seen)}")
        self.kept = [tokens % CHUNK for tokens in seen]
        self.begun = [tokens // CHUNK for tokens in seen]
        """Whole chunks before."""
        self.past = past
        self.tokens = [self._joined(i, tokens) for i, tokens in enumerate(new)]
        self.whole = [len(tokens[0]) // CHUNK for tokens in self.tokens]
        """Whole chunks here."""

    def _joined(self, i: int, new: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self.past is None:
            return tuple(new)
        kept = (x[i, : self.kept[i]].to(y.dtype) for x, y in zip(_behind(self.past), new, strict=True))
        return tuple(torch.cat(both) for both in zip(kept, new, strict=True))

    def run(self, scale: float, keep: bool) -> tuple[list[Tensor], LogLinearAttentionState | None]:
        """The outputs of the new tokens, and what is kept, if that is wanted."""
        given = self.tokens[0][-1].shape[-1]
        most = max(begun + whole for begun, whole in zip(self.begun, self.whole, strict=True))
        if INSIDE + most.bit_length() > given:
            expected = f"expected at least {INSIDE + most.bit_length()} levels of {most} chunks with states"
            raise ValueError(f"level_scales: {expected}, got {given}")
        state = self._levels()
        if not keep:
            outputs, _ = _packed(self.tokens, state, scale)
            return [o[kept:] for o, kept in zip(outputs, self.kept, strict=True)], None
        cuts = [CHUNK * chunks for chunks in self.whole]
        first, state = _packed([[x[:cut] for x in of] for of, cut in zip(self.tokens, cuts, strict=True)], state, scale)
        rest = [[x[cut:] for x in of] for of, cut in zip(self.tokens, cuts, strict=True)]
        second, _ = _packed(rest, state, scale)
        outputs = [torch.cat(both)[kept:] for *both, kept in zip(first, second, self.kept, strict=True)]
        return outputs, self._state(state[0], rest)

    def _levels(self) -> tuple[Tensor, Tensor]:
        """The operator's states at the beginning of a chunk: by levels, [N, HV, L, K, V]; tokens before, [N, HV]."""
        q, _, v, _, level_scales = self.tokens[0]
        heads, levels = level_scales.shape[1:]
        like = torch.empty(0, dtype=computing(*self.tokens[0]), device=q.device)
        position = like.new_tensor([[CHUNK * begun] * heads for begun in self.begun])
        S = [like.new_zeros(heads, q.shape[-1], v.shape[-1]).expand(levels, -1, -1, -1) for _ in self.begun]
        if self.past is not None:
            S = [self._of_levels(i, S[i]) for i in range(len(S))]
        return torch.stack(S).transpose(1, 2), position

    def _of_levels(self, i: int, zeros: Tensor) -> Tensor:
        """[L, HV, K, V]: what a sequence has at each level."""
        assert self.past is not None
        chunks = self.begun[i]
        above = [self.past.ht[i, m].to(zeros) if chunks >> m & 1 else zeros[0] for m in range(chunks.bit_length())]
        return torch.cat([zeros[:INSIDE], *(x[None] for x in above), zeros[INSIDE + len(above) :]])

    def _state(self, S: Tensor, rest: Sequence[Sequence[Tensor]]) -> LogLinearAttentionState:
        """What fla keeps, of levels [N, HV, L, K, V] at the end of whole chunks and the tokens behind them."""
        chunks = [begun + whole for begun, whole in zip(self.begun, self.whole, strict=True)]
        tokens = [CHUNK * n + len(of[0]) for n, of in zip(chunks, rest, strict=True)]
        blocks = max(1, -(-max(tokens) // CHUNK))
        levels = max((blocks - 1).bit_length(), max(chunks).bit_length()) + 1
        ht = torch.stack([_of_whole_chunks(S[i].transpose(0, 1), n, levels) for i, n in enumerate(chunks)])
        behind = [
            torch.stack([pad(x, (0, 0) * (x.ndim - 1) + (0, CHUNK - len(x))) for x in each])
            for each in zip(*rest, strict=True)
        ]
        return LogLinearAttentionState(ht, torch.tensor(tokens, dtype=torch.int32, device=S.device), *behind)


def _behind(state: LogLinearAttentionState) -> tuple[Tensor, ...]:
    """The tokens behind the last whole chunk, as the operator takes them."""
    return state.q_prev, state.k_prev, state.v_prev, state.g_prev, state.level_scales_prev


def _of_whole_chunks(S: Tensor, chunks: int, levels: int) -> Tensor:
    """[M, HV, K, V] of [L, HV, K, V] after so many whole chunks: the levels that are full are the one above them."""
    lowest = (chunks & -chunks).bit_length() - 1
    nothing = torch.zeros_like(S[0])

    def of(m: int) -> Tensor:
        if not chunks >> m & 1:
            return nothing
        return S[: INSIDE + m + 1].sum(0) if m == lowest else S[INSIDE + m]

    return torch.stack([of(m) for m in range(levels)])


def _packed(
    sequences: Sequence[Sequence[Tensor]], state: tuple[Tensor, Tensor], scale: float
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """The operator on sequences side by side: their outputs, and their states."""
    lengths = [len(tokens[0]) for tokens in sequences]
    inputs = [torch.cat(each)[None] for each in zip(*sequences, strict=True)]
    offsets = torch.tensor([0, *lengths], device=inputs[0].device).cumsum(0)
    o, state = run(
        _log_linear_attn.chunk,
        *inputs,
        like=inputs[0],
        initial_state=state,
        cu_seqlens=offsets,
        scale=scale,
        output_final_state=True,
    )
    return list(torch.split(o[0], lengths)), state


@drop_in
def naive_log_linear_attn(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, level_scales: Tensor, scale: float | None = 1.0
) -> Tensor:
    """The recurrence as it is written, in PyTorch and in float32."""
    wide = q.to(computing(q))
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    return run(_log_linear_attn.naive_recurrent, wide, k, v, g, level_scales, like=wide, scale=scale)[0]
