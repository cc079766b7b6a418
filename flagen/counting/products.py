"""Flops of the products of matrices in an expression, for one program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from flagen.counting.located import Located
from flagen.plan.tiles import Call, Dot, MatMul, Size, Tile, Whole, tiles_in
from flagen.spec.model import Dims


def flops_of(tile: Tile, programs: Located) -> int:
    """Those of all products in it, as often as they stand there; functions of `shared/device` make some, too."""
    return sum(_of(part, programs) for part in tiles_in(tile))


def _of(tile: Tile, programs: Located) -> int:
    match tile:
        case Dot(left, right) | MatMul(left, right):
            return 2 * _lanes((*left.dims, *right.dims), programs)
        case Call(function, args) if function in OF_DEVICE:
            return OF_DEVICE[function](args, programs)
    return 0


def _lanes(dims: Dims, programs: Located) -> int:
    return math.prod(programs.launch.sizes.blocks[dim] for dim in dict.fromkeys(dims))


def _word(tile: Tile, programs: Located) -> int:
    """A whole number that a function is compiled for."""
    match tile:
        case Whole(value):
            return value
        case Size(name):
            return programs.word(name)
    raise AssertionError(tile)


def _decay_over(args: tuple[Tile, ...], programs: Located) -> int:
    rows, log_decay, terms = args
    return 2 * _lanes(rows.dims, programs) * _lanes(log_decay.dims[1:], programs) * _word(terms, programs)


def _decay_to_cut(args: tuple[Tile, ...], programs: Located) -> int:
    """No row decays over more than half a chunk."""
    _, _, log_decay, _, terms = args
    size = _lanes(log_decay.dims[:1], programs)
    reach = size // 2 if size > 16 else size
    return 2 * reach * _lanes(log_decay.dims, programs) * _word(terms, programs)


def _from_middle(args: tuple[Tile, ...], programs: Located) -> int:
    _, log_decay, _, terms = args
    rows = _lanes(log_decay.dims[:1], programs)
    return 2 * rows * _lanes(log_decay.dims, programs) * _word(terms, programs)


def _invert(args: tuple[Tile, ...], programs: Located) -> int:
    """Blocks of 16 rows are merged two by two, at most twice: two products of halves a pair."""
    size = _lanes(args[0].dims[:1], programs)
    return sum(size // (2 * half) * 2 * 2 * half**3 for half in (16, 32) if size > half)


def _sum_of_pairs(args: tuple[Tile, ...], programs: Located) -> int:
    pairs, _, _, token, *_ = args
    return 2 * _lanes(pairs.dims, programs) * _lanes(token.dims, programs)


OF_DEVICE: Mapping[str, Callable[[tuple[Tile, ...], Located], int]] = {
    "decay_over": _decay_over,
    "decay_to_cut": _decay_to_cut,
    "from_middle": _from_middle,
    "invert": _invert,
    "sum_of_pairs": _sum_of_pairs,
}
"""Of functions of `shared/device/chunks.py` that multiply matrices, given their arguments."""
