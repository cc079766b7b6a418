"""What the functions of `shared/device/chunks.py` make of tiles, in exact arithmetic.

They are written by hand, and tested where they stand; a kernel calls them by name. Here is what they say that they do,
and nothing of how: halves of halves of rounded numbers are one number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce

from gmpy2 import mpq

from flagen.kernel.elements import Element, add, apply, multiply
from flagen.kernel.registers import Data, Lanes, Registers
from flagen.kernel.sizes import Illegal
from flagen.plan.rows import MEMBER, TOKEN, WRITTEN
from flagen.plan.tiles import Tile

Arguments = tuple[Tile, ...]
Returned = tuple[Lanes, ...]

ZERO = mpq(0)


def _split_log_decay(registers: Registers, args: Arguments) -> Returned:
    """In powers of two, in two parts, of which the second is there for rounding."""
    log = registers.value(args[0])
    factor = registers.functions.log2_e
    return Lanes(log.dims, [multiply(x, factor) for x in log.data]), Lanes(log.dims, [ZERO for _ in log.data])


def _decay_over(registers: Registers, args: Arguments) -> Returned:
    """The exponential of the sum over the rows that a mask names."""
    rows, log = registers.value(args[0]), registers.value(args[1])
    axis, *_ = log.dims
    lines = registers.lines(rows, WRITTEN)
    columns = registers.lines(log, axis)
    data = [_exp(registers, _sum(x for x, here in zip(c, r, strict=True) if here)) for r in lines for c in columns]
    return (Lanes(log.dims, data),)


def _decay_to_cut(registers: Registers, args: Arguments) -> Returned:
    """A row of a lower half decays over the rows behind it, one of an upper half over those up to it."""
    _, level, log_decay, after, *_ = args
    half, own = 1 << _whole(registers, level), _whole(registers, after)
    log = registers.value(log_decay)
    columns = registers.lines(log, log.dims[0])
    data: Data = []
    for row in range(len(columns[0])):
        cut = row // half * half
        upper = row // half % 2 == 1
        first, end = (cut, row + own) if upper else (row + 1, cut + half)
        data += [_exp(registers, _sum(column[first:end])) for column in columns]
    return (Lanes(log.dims, data),)


def _seen_across_cut(registers: Registers, args: Arguments) -> Returned:
    """A row of an upper half sees those of its lower half."""
    rows, level = args
    half, (axis,) = 1 << _whole(registers, level), rows.dims
    places = range(registers.sizes.blocks[axis])
    seen = [row // half % 2 == 1 and column // half == row // half - 1 for row in places for column in places]
    return (Lanes((axis, WRITTEN), list(seen)),)


def _from_middle(registers: Registers, args: Arguments) -> Returned:
    """The sum from the middle of a block of rows up to each, in powers of two; before the middle what is lacking."""
    _, log_decay, leaf, *_ = args
    size, log = _whole(registers, leaf), registers.value(log_decay)
    columns = registers.lines(log, log.dims[0])
    data: Data = []
    for row in range(len(columns[0])):
        middle = row // size * size + size // 2
        for column in columns:
            between = _sum(column[middle + 1 : row + 1] if row > middle else column[row + 1 : middle + 1])
            data.append(multiply(between, registers.functions.log2_e if row > middle else -registers.functions.log2_e))
    return (Lanes(log.dims, data),)


def _invert(registers: Registers, args: Arguments) -> Returned:
    """(I - L)^-1 - I of a strictly lower triangular L."""
    lanes = registers.value(args[0])
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


def _put(registers: Registers, args: Arguments) -> Returned:
    """A number for each row as that of one member."""
    lanes, member = registers.value(args[0]), _whole(registers, args[1])
    members = range(registers.sizes.blocks[MEMBER])
    return (Lanes((*lanes.dims, MEMBER), [x if m == member else ZERO for x in lanes.data for m in members]),)


def _take(registers: Registers, args: Arguments) -> Returned:
    """The numbers that one member has."""
    lanes, member = registers.value(args[0]), _whole(registers, args[1])
    return (Lanes(lanes.dims[:1], registers.lines(lanes, lanes.dims[0])[member]),)


def _sum_of_earlier(registers: Registers, args: Arguments) -> Returned:
    return (_sums(registers, args[0], lambda row, place: row[:place]),)


def _sum_of_later(registers: Registers, args: Arguments) -> Returned:
    return (_sums(registers, args[0], lambda row, place: row[place + 1 :]),)


def _sums(registers: Registers, tile: Tile, part: Callable[[Data, int], Data]) -> Lanes:
    """For each row the sum of some of the others, along every other axis."""
    lanes = registers.value(tile)
    if len(lanes.dims) == 1:
        return Lanes(lanes.dims, [_sum(part(lanes.data, place)) for place in range(len(lanes.data))])
    columns = registers.lines(lanes, lanes.dims[0])
    return Lanes(lanes.dims, [_sum(part(column, place)) for place in range(len(columns[0])) for column in columns])


def _sum_of_pairs(registers: Registers, args: Arguments) -> Returned:
    """For each token the sum of those pairs that have its decay between them."""
    pairs, read, written, token = (registers.value(arg) for arg in args[:4])
    lines = registers.lines(pairs, pairs.dims[1])
    sums: Data = []
    for at in token.data:
        found = ZERO
        for line, reads in zip(lines, read.data, strict=True):
            if reads >= at:
                found = add(found, _sum(x for x, wrote in zip(line, written.data, strict=True) if wrote < at))
        sums.append(found)
    return (Lanes((TOKEN,), sums),)


def _sum_of_steps(registers: Registers, args: Arguments) -> Returned:
    """For each token the sum over its rows."""
    rows, steps = registers.value(args[0]), registers.steps
    tokens = range(registers.sizes.blocks[TOKEN])
    return (Lanes((TOKEN,), [_sum(rows.data[token * steps : (token + 1) * steps]) for token in tokens]),)


def _onto_row_before(registers: Registers, args: Arguments) -> Returned:
    """What each row has for the row after."""
    rows = registers.value(args[0])
    return (Lanes(rows.dims, [*rows.data[1:], ZERO]),)


def _whole(registers: Registers, tile: Tile) -> int:
    """A whole number that every lane has."""
    (found,) = registers.value(tile).data
    return int(found)


def _sum(elements: Iterable[Element]) -> Element:
    return reduce(add, elements, ZERO)


def _exp(registers: Registers, log: Element) -> Element:
    return apply(registers.functions, "exp", (log,))


DEVICE: Mapping[str, Callable[[Registers, Arguments], Returned]] = {
    "split_log_decay": _split_log_decay,
    "decay_over": _decay_over,
    "decay_to_cut": _decay_to_cut,
    "seen_across_cut": _seen_across_cut,
    "from_middle": _from_middle,
    "invert": _invert,
    "put": _put,
    "take": _take,
    "sum_of_earlier": _sum_of_earlier,
    "sum_of_later": _sum_of_later,
    "sum_of_pairs": _sum_of_pairs,
    "sum_of_steps": _sum_of_steps,
    "onto_row_before": _onto_row_before,
}
