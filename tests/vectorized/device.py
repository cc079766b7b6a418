"""What kernels call, of tiles of many programs at once: the functions of `shared/device`, of whole tensors.

The first argument of those that kernels name is the programs; sizes and words that Triton's are compiled for are among
the others, and not all are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from flagen.functions import FUNCTIONS, Function
from flagen.plan.rows import L2NORM_EPSILON
from flagen.plan.tiles import LOG2_E

if TYPE_CHECKING:
    from tests.vectorized.programs import Programs

# ------------------------------------------------------------------------------------------------ one or several rows


def l2norm(x: Tensor) -> Tensor:
    return x * (x.square().sum(-1, keepdim=True) + float(L2NORM_EPSILON)).rsqrt()


def softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def rotated(x: Tensor, angle: Tensor, size: int, pairs: int, *, half: bool) -> Tensor:
    first, second = _channels(size, pairs, half=half)
    cos, sin = angle[..., :pairs].cos(), angle[..., :pairs].sin()
    turned = x.expand(max(len(x), len(angle)), *x.shape[1:]).clone()
    turned[..., first] = x[..., first] * cos - x[..., second] * sin
    turned[..., second] = x[..., first] * sin + x[..., second] * cos
    return turned


def of_angles(gradient: Tensor, x: Tensor, size: int, pairs: int, lanes: int, *, half: bool) -> Tensor:
    first, second = _channels(size, pairs, half=half)
    twisted = x[..., first] * gradient[..., second] - x[..., second] * gradient[..., first]
    return functional.pad(twisted, (0, lanes - pairs))


def _channels(size: int, pairs: int, *, half: bool) -> tuple[Tensor, Tensor]:
    """The first channel of each pair, and the second."""
    pair = torch.arange(pairs)
    return (pair, pair + size // 2) if half else (2 * pair, 2 * pair + 1)


def all_pairs(x: Tensor, y: Tensor) -> Tensor:
    return (x[..., :, None] * y[..., None, :]).flatten(-2)


def of_pairs(gradient: Tensor, other: Tensor, *, second: bool) -> Tensor:
    size = other.shape[-1]
    if second:
        return (gradient.unflatten(-1, (-1, size)) * other[..., None, :]).sum(-1)
    return (gradient.unflatten(-1, (size, -1)) * other[..., :, None]).sum(-2)


def scan_affine(factor: Tensor, term: Tensor, first: Tensor, *, reverse: bool) -> Tensor:
    return _scan(lambda x, place: factor[:, place] * x + term[:, place], first, factor.shape[1], reverse=reverse)


def scan_logaddexp(factor: Tensor, term: Tensor, first: Tensor, *, reverse: bool) -> Tensor:
    def after(x: Tensor, place: int) -> Tensor:
        return torch.logaddexp(x + factor[:, place], term[:, place])

    return _scan(after, first, factor.shape[1], reverse=reverse)


def scan_maximum(factor: Tensor, term: Tensor, first: Tensor, *, reverse: bool) -> Tensor:
    def after(x: Tensor, place: int) -> Tensor:
        return torch.maximum(x + factor[:, place], term[:, place])

    return _scan(after, first, factor.shape[1], reverse=reverse)


def scan_phase(term: Tensor, first: Tensor, *, reverse: bool) -> Tensor:
    def after(x: Tensor, place: int) -> Tensor:
        return (x + term[:, place]).remainder(1.0)

    return _scan(after, first, term.shape[1], reverse=reverse)


def _scan(after: Any, first: Tensor, rows: int, *, reverse: bool) -> Tensor:
    row, found = first, []
    for place in reversed(range(rows)) if reverse else range(rows):
        row = after(row, place)
        found.append(row)
    return torch.stack(found[::-1] if reverse else found, 1)


def shifted(x: Tensor, first: Tensor, *, reverse: bool) -> Tensor:
    """The row before each, or behind it; either may be the same for all programs."""
    x = x.expand(max(len(x), len(first)), *x.shape[1:])
    edge = first[:, None].expand(len(x), -1, *x.shape[2:])
    return torch.cat([x[:, 1:], edge] if reverse else [edge, x[:, :-1]], 1)


def cumulative(x: Tensor, axis: int, *, reverse: bool) -> Tensor:
    return x.flip(axis).cumsum(axis).flip(axis) if reverse else x.cumsum(axis)


# --------------------------------------------------------------------------------------- elementwise, of kernels alone


def exp2(x: Tensor) -> Tensor:
    return torch.exp2(x)


def square(x: Tensor) -> Tensor:
    return x * x


def power(x: Tensor, n: Tensor) -> Tensor:
    return torch.pow(x, n)


def power_slope(x: Tensor, n: Tensor) -> Tensor:
    return torch.where(n == 0, 0.0, n * torch.pow(x, n - 1))


def exponent_slope(x: Tensor, n: Tensor) -> Tensor:
    slope = torch.pow(x, n) * x.log()
    return torch.where(x == 0, torch.where(n >= 0, 0.0, slope), slope)


def part_of(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(torch.maximum(a, b) == -math.inf, 0.0, torch.sigmoid(a - b))


@cache
def defined(name: str) -> Callable[..., Tensor]:
    """A function of the language that the table defines by others."""
    row = FUNCTIONS[name]
    called = {other: _function(FUNCTIONS[other]) for other in FUNCTIONS if f"{other}(" in row.definition}
    return lambda *args: eval(row.definition, called | dict(zip(row.arguments, args, strict=True)))


def _function(row: Function) -> Callable[..., Tensor]:
    module, _, name = row.torch.partition(".")
    return getattr({"torch": torch, "functional": functional}[module], name) if row.torch else defined(row.name)


# -------------------------------------------------------------------------------------------------- decays of a chunk


def split_log_decay(here: Programs, g: Tensor) -> tuple[Tensor, Tensor]:
    """In powers of two, as multiples of 2^-10 and what is left of them; a reset counts as -160."""
    log2_decay = (g * LOG2_E).clamp(min=-160.0)
    coarse = (log2_decay * 1024).floor() / 1024
    return coarse, log2_decay - coarse


def decay_over(here: Programs, rows: Tensor, log_decay: Tensor, *_: object) -> Tensor:
    """The exponential of the sum over the rows that a mask names."""
    return (rows.to(log_decay.dtype) @ log_decay).exp()


def decay_to_cut(here: Programs, row: Tensor, level: Tensor, log_decay: Tensor, after: int, *_: object) -> Tensor:
    """A row of a lower half decays over the rows behind it, one of an upper half over those up to it."""
    half = 1 << int(level)
    cut, upper = row // half * half, row // half % 2 == 1
    first, end = torch.where(upper, cut, row + 1), torch.where(upper, row + after, cut + half)
    return decay_over(here, _between(first, end, row), log_decay)


def seen_across_cut(here: Programs, row: Tensor, level: Tensor) -> Tensor:
    """A row of an upper half sees those of its lower half."""
    half = 1 << int(level)
    cut, upper = row // half * half, row // half % 2 == 1
    return _between(torch.where(upper, cut - half, 0), torch.where(upper, cut, 0), row)


def is_upper(here: Programs, row: Tensor, level: Tensor) -> Tensor:
    return row // (1 << int(level)) % 2 == 1


def of_other_half(here: Programs, x: Tensor, row: Tensor, level: Tensor) -> Tensor:
    """What is in the same place of the other half of a block."""
    return x[:, torch.arange(x.shape[1]) ^ (1 << int(level))]


def from_middle(here: Programs, row: Tensor, log_decay: Tensor, leaf: int, *_: object) -> Tensor:
    """The sum from the middle of a block of rows up to each, in powers of two; before the middle what is lacking."""
    middle = row // leaf * leaf + leaf // 2
    above, below = _between(middle + 1, row + 1, row), _between(row + 1, middle + 1, row)
    return (above.to(log_decay.dtype) - below.to(log_decay.dtype)) @ log_decay * LOG2_E


def _between(first: Tensor, end: Tensor, row: Tensor) -> Tensor:
    """Of each row of a square, the columns from first to before end."""
    column = row[:, None, :]
    return (column >= first[:, :, None]) & (column < end[:, :, None])


def invert(here: Programs, L: Tensor, *_: object) -> Tensor:
    """(I - L)^-1 - I of a strictly lower triangular L."""
    unit = torch.eye(L.shape[-1], dtype=L.dtype)
    return torch.linalg.solve_triangular(unit - L, unit.expand_as(L), upper=False, unitriangular=True) - unit


# --------------------------------------------------------------------------------------------------------------- sums


def put(here: Programs, x: Tensor, member: Tensor, members: int) -> Tensor:
    """A number for each row as that of one member."""
    return torch.where(torch.arange(members) == member, x[:, :, None], 0.0)


def take(here: Programs, sums: Tensor, member: Tensor, *_: object) -> Tensor:
    """The numbers that one member has."""
    return sums[:, :, int(member)]


def sum_of_earlier(here: Programs, x: Tensor) -> Tensor:
    """For each row the sum of those before it, which is subtracted from nothing."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1].cumsum(1)], 1)


def sum_of_later(here: Programs, x: Tensor) -> Tensor:
    return sum_of_earlier(here, x.flip(1)).flip(1)


def sum_of_pairs(here: Programs, pairs: Tensor, read: Tensor, written: Tensor, token: Tensor, *_: object) -> Tensor:
    """For each token the sum of those pairs that have its decay between them."""
    before = (written[:, :, None] < token[:, None, :]).to(pairs.dtype)
    sums = here.rounded(pairs) @ before
    return torch.where(read[:, :, None] >= token[:, None, :], sums, 0.0).sum(1)


def sum_of_steps(here: Programs, x: Tensor, steps: int, tokens: int) -> Tensor:
    """For each token the sum over its rows."""
    row, token = torch.arange(x.shape[1]), torch.arange(tokens)
    return x @ (row[:, None] // steps == token).to(x.dtype)


def onto_row_before(here: Programs, x: Tensor, *_: object) -> Tensor:
    """What each row has for the row after."""
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
