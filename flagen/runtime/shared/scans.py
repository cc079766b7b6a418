"""What the PyTorch forms of elementwise scans have in common: all tokens of a chunk at once, by doubling."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .arguments import Arguments


def chunks(tokens: slice, size: int) -> Iterator[slice]:
    """The chunks of a sequence; the last one may be shorter."""
    for start in range(tokens.start, tokens.stop, size):
        yield slice(start, min(start + size, tokens.stop))


def joined(args: Arguments, chunks: list[Tensor], *dims: int) -> Tensor:
    """A result's chunks as one tensor, which has no tokens where there are none."""
    empty = torch.zeros(args.batch, 0, args.HV, *dims, dtype=args.dtype, device=args.device)
    return torch.cat([empty, *chunks], dim=1)


def before(states: Tensor, first: Tensor) -> Tensor:
    """The state before each token, [batch, tokens, ...], from those after them and the one before the chunk."""
    return torch.cat([first[:, None], states[:, :-1]], dim=1)


def affine_scan(state: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The states X_t = a_t X_(t-1) + b_t of a chunk, [batch, tokens, HV, ...], after `state`, [batch, HV, ...].

    After each doubling, a and b are those of twice as many tokens as before, up to each token.
    """
    a = a.expand(b.shape)
    b = torch.cat([a[:, :1] * state[:, None] + b[:, :1], b[:, 1:]], dim=1)
    shift = 1
    while shift < b.shape[1]:
        b = torch.cat([b[:, :shift], a[:, shift:] * b[:, :-shift] + b[:, shift:]], dim=1)
        a = torch.cat([a[:, :shift], a[:, shift:] * a[:, :-shift]], dim=1)
        shift *= 2
    return b


def sum_scan(state: Tensor, b: Tensor) -> Tensor:
    """The states X_t = X_(t-1) + b_t of a chunk, [batch, tokens, HV, ...], after `state`, [batch, HV, ...]."""
    return state[:, None] + b.cumsum(1)


def phase_scan(state: Tensor, b: Tensor) -> Tensor:
    """The states X_t = X_(t-1) + b_t of a chunk without their whole parts, [batch, tokens, HV, ...], after `state`,
    [batch, HV, ...].

    After each doubling, b is what twice as many tokens as before, up to each token, add; no sum exceeds 2.
    """
    b = torch.cat([state[:, None] + b[:, :1], b[:, 1:]], dim=1).remainder(1.0)
    shift = 1
    while shift < b.shape[1]:
        b = torch.cat([b[:, :shift], (b[:, :-shift] + b[:, shift:]).remainder(1.0)], dim=1)
        shift *= 2
    return b


def logaddexp_scan(state: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """The states X_t = logaddexp(X_(t-1) + w_t, c_t) of a chunk, [batch, tokens, HV, ...], after `state`,
    [batch, HV, ...].

    After each doubling, w and c are those of twice as many tokens as before, up to each token.
    """
    w = w.expand(c.shape)
    c = torch.cat([logaddexp(state[:, None] + w[:, :1], c[:, :1]), c[:, 1:]], dim=1)
    shift = 1
    while shift < c.shape[1]:
        c = torch.cat([c[:, :shift], logaddexp(c[:, :-shift] + w[:, shift:], c[:, shift:])], dim=1)
        w = torch.cat([w[:, :shift], w[:, :-shift] + w[:, shift:]], dim=1)
        shift *= 2
    return c


def maximum_scan(state: Tensor, w: Tensor, c: Tensor, tied: float = 0.5) -> Tensor:
    """The states X_t = maximum(X_(t-1) + w_t, c_t) of a chunk, [batch, tokens, HV, ...], after `state`,
    [batch, HV, ...]. Where both sides are equal, `tied` is the part of the gradient that X_(t-1) + w_t gets.

    Doubling tells which side is the larger at each token. With that known a state is affine in the one before, and has
    the gradients of the recurrence where several are equal, too, which those of a tree of maxima would not be.
    """
    w = w.expand(c.shape)
    with torch.no_grad():
        decayed = before(_maxima(state, w, c), state) + w
        larger = ~((decayed < c) | c.isnan())  # Whatever is NaN, is what the maximum is.
        a = torch.where(decayed == c, tied, larger.to(c.dtype))
    b = _part(a, w) + _part(1 - a, c)
    b = torch.cat([_part(a[:, :1], state[:, None]) + b[:, :1], b[:, 1:]], dim=1)
    shift = 1
    while shift < b.shape[1]:
        b = torch.cat([b[:, :shift], _part(a[:, shift:], b[:, :-shift]) + b[:, shift:]], dim=1)
        a = torch.cat([a[:, :shift], a[:, shift:] * a[:, :-shift]], dim=1)
        shift *= 2
    return b


def _maxima(state: Tensor, w: Tensor, c: Tensor) -> Tensor:
    c = torch.cat([torch.maximum(state[:, None] + w[:, :1], c[:, :1]), c[:, 1:]], dim=1)
    shift = 1
    while shift < c.shape[1]:
        c = torch.cat([c[:, :shift], torch.maximum(c[:, :-shift] + w[:, shift:], c[:, shift:])], dim=1)
        w = torch.cat([w[:, :shift], w[:, :-shift] + w[:, shift:]], dim=1)
        shift *= 2
    return c


def _part(a: Tensor, x: Tensor) -> Tensor:
    """a times x, and nothing of an x that is infinite where a is zero."""
    return torch.where(a > 0, a * x, 0.0)


def logaddexp(x: Tensor, y: Tensor) -> Tensor:
    """logaddexp whose gradient is zero, and not NaN, where both sides are -inf."""
    nothing = torch.maximum(x, y) == -math.inf
    return torch.logaddexp(x.masked_fill(nothing, 0), y.masked_fill(nothing, 0)).masked_fill(nothing, -math.inf)
