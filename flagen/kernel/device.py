"""What the functions of `shared/device/chunks.py` make of tiles, in exact arithmetic.

They are written by hand, and tested where they stand; a kernel calls them by name. Here is what they say that they do,
and nothing of how: halves of halves of rounded numbers are one number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import NamedTuple

from gmpy2 import mpq

from flagen.kernel.elements import Element, add, apply, multiply
from flagen.kernel.registers import Data, Lanes, Registers, whole
from flagen.kernel.sizes import Illegal
from flagen.plan.rows import MEMBER, TOKEN, WRITTEN

Returned = tuple[Lanes, ...]

ZERO = mpq(0)


def _split_log_decay(registers: Registers, log: Lanes) -> Returned:
    """In powers of two, in two parts: what is in which is rounding, so any two do that add up, and are not zero."""
    coarse, fine = (registers.functions.log2_e * mpq(share, 5) for share in (3, 2))
    return tuple(Lanes(log.dims, [multiply(x, factor) for x in log.data]) for factor in (coarse, fine))


def _decay_over(registers: Registers, rows: Lanes, log: Lanes) -> Returned:
    """The exponential of the sum over the rows that a mask names."""
    axis, *_ = log.dims
    lines = registers.lines(rows, WRITTEN)
    columns = registers.lines(log, axis)
    data = [_exp(registers, _sum(x for x, here in zip(c, r, strict=True) if here)) for r in lines for c in columns]
    return (Lanes(log.dims, data),)


def _decay_to_cut(registers: Registers, level: Lanes, log: Lanes, after: Lanes) -> Returned:
    """A row of a lower half decays over the rows behind it, one of an upper half over those up to it."""
    half, own = 1 << _whole(level), _whole(after)
    columns = registers.lines(log, log.dims[0])
    data: Data = []
    for row in range(len(columns[0])):
        cut = row // half * half
        upper = row // half % 2 == 1
        first, end = (cut, row + own) if upper else (row + 1, cut + half)
        data += [_exp(registers, _sum(column[first:end])) for column in columns]
    return (Lanes(log.dims, data),)


def _seen_across_cut(registers: Registers, rows: Lanes, level: Lanes) -> Returned:
    """A row of an upper half sees those of its lower half."""
    half, (axis,) = 1 << _whole(level), rows.dims
    places = range(registers.sizes.blocks[axis])
    seen = [row // half % 2 == 1 and column // half == row // half - 1 for row in places for column in places]
    return (Lanes((axis, WRITTEN), list(seen)),)


def _is_upper(registers: Registers, rows: Lanes, level: Lanes) -> Returned:
    half, (axis,) = 1 << _whole(level), rows.dims
    return (Lanes((axis,), [row // half % 2 == 1 for row in range(registers.sizes.blocks[axis])]),)


def _of_other_half(registers: Registers, lanes: Lanes, rows: Lanes, level: Lanes) -> Returned:
    """What is in the same place of the other half."""
    half = 1 << _whole(level)
    return (
        Lanes(
            lanes.dims, [lanes.data[row + (half if row // half % 2 == 0 else -half)] for row in range(len(lanes.data))]
        ),
    )


def _from_middle(registers: Registers, log: Lanes, leaf: Lanes) -> Returned:
    """The sum from the middle of a block of rows up to each, in powers of two; before the middle what is lacking."""
    size = _whole(leaf)
    columns = registers.lines(log, log.dims[0])
    data: Data = []
    for row in range(len(columns[0])):
        middle = row // size * size + size // 2
        for column in columns:
            between = _sum(column[middle + 1 : row + 1] if row > middle else column[row + 1 : middle + 1])
            data.append(multiply(between, registers.functions.log2_e if row > middle else -registers.functions.log2_e))
    return (Lanes(log.dims, data),)


def _invert(registers: Registers, lanes: Lanes) -> Returned:
    """(I - L)^-1 - I of a strictly lower triangular L."""
    rows = registers.lines(lanes, lanes.dims[1])
    inverse: list[Data] = []
    for i, row in enumerate(rows):
        if any(x != 0 for x in row[i:]):
            raise Illegal("a matrix to be inverted is not strictly lower triangular")
        solved = list(row)
        for j, factor in enumerate(row[:i]):
            solved = [add(x, multiply(factor, y)) for x, y in zip(solved, inverse[j], strict=True)]
        inverse.append(solved)
    return (Lanes(lanes.dims, [x for row in inverse for x in row]),)


def _put(registers: Registers, lanes: Lanes, number: Lanes) -> Returned:
    """A number for each row as that of one member."""
    member, members = _whole(number), range(registers.sizes.blocks[MEMBER])
    return (Lanes((*lanes.dims, MEMBER), [x if m == member else ZERO for x in lanes.data for m in members]),)


def _take(registers: Registers, lanes: Lanes, member: Lanes) -> Returned:
    """The numbers that one member has."""
    columns, number = registers.lines(lanes, lanes.dims[0]), _whole(member)
    if not 0 <= number < len(columns):
        raise Illegal(f"member {number} of {len(columns)}")
    return (Lanes(lanes.dims[:1], columns[number]),)


def _sum_of_earlier(registers: Registers, lanes: Lanes) -> Returned:
    return (_sums(registers, lanes, lambda row, place: row[:place]),)


def _sum_of_later(registers: Registers, lanes: Lanes) -> Returned:
    return (_sums(registers, lanes, lambda row, place: row[place + 1 :]),)


def _sums(registers: Registers, lanes: Lanes, part: Callable[[Data, int], Data]) -> Lanes:
    """For each row the sum of some of the others, along every other axis."""
    if len(lanes.dims) == 1:
        return Lanes(lanes.dims, [_sum(part(lanes.data, place)) for place in range(len(lanes.data))])
    columns = registers.lines(lanes, lanes.dims[0])
    return Lanes(lanes.dims, [_sum(part(column, place)) for place in range(len(columns[0])) for column in columns])


def _sum_of_pairs(registers: Registers, pairs: Lanes, read: Lanes, written: Lanes, token: Lanes) -> Returned:
    """For each token the sum of those pairs that have its decay between them."""
    lines = registers.lines(pairs, pairs.dims[1])
    sums: Data = []
    for at in token.data:
        found = ZERO
        for line, reads in zip(lines, read.data, strict=True):
            if reads >= at:
                found = add(found, _sum(x for x, wrote in zip(line, written.data, strict=True) if wrote < at))
        sums.append(found)
    return (Lanes((TOKEN,), sums),)


def _sum_of_steps(registers: Registers, rows: Lanes) -> Returned:
    """For each token the sum over its rows."""
    steps = registers.steps
    tokens = range(registers.sizes.blocks[TOKEN])
    return (Lanes((TOKEN,), [_sum(rows.data[token * steps : (token + 1) * steps]) for token in tokens]),)


def _onto_row_before(registers: Registers, rows: Lanes) -> Returned:
    """What each row has for the row after."""
    return (Lanes(rows.dims, [*rows.data[1:], ZERO]),)


def _whole(lanes: Lanes) -> int:
    """A whole number that every lane has."""
    if lanes.dims:
        raise Illegal(f"a tile over {lanes.dims} is taken for one number")
    (found,) = lanes.data
    return whole(found)


def _sum(elements: Iterable[Element]) -> Element:
    return reduce(add, elements, ZERO)


def _exp(registers: Registers, log: Element) -> Element:
    return apply(registers.functions, "exp", (log,))


class Function(NamedTuple):
    """What a function returns, of which of its arguments: others say how it computes."""

    of: Callable[..., Returned]
    takes: tuple[int, ...]


DEVICE: Mapping[str, Function] = {
    "split_log_decay": Function(_split_log_decay, (0,)),
    "decay_over": Function(_decay_over, (0, 1)),
    "decay_to_cut": Function(_decay_to_cut, (1, 2, 3)),
    "seen_across_cut": Function(_seen_across_cut, (0, 1)),
    "is_upper": Function(_is_upper, (0, 1)),
    "of_other_half": Function(_of_other_half, (0, 1, 2)),
    "from_middle": Function(_from_middle, (1, 2)),
    "invert": Function(_invert, (0,)),
    "put": Function(_put, (0, 1)),
    "take": Function(_take, (0, 1)),
    "sum_of_earlier": Function(_sum_of_earlier, (0,)),
    "sum_of_later": Function(_sum_of_later, (0,)),
    "sum_of_pairs": Function(_sum_of_pairs, (0, 1, 2, 3)),
    "sum_of_steps": Function(_sum_of_steps, (0,)),
    "onto_row_before": Function(_onto_row_before, (0,)),
}
