"""Which dim of the state is cut into blocks, one for each program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from flagen.plan.schedule import OUTPUT, Schedule, Set
from flagen.plan.tiles import (
    Along,
    Arithmetic,
    MatMul,
    Negative,
    Normalize,
    OfAngles,
    OfPairs,
    Once,
    Paired,
    Product,
    Rotated,
    Sum,
    Tile,
    Value,
    tiles_in,
)
from flagen.spec.model import Dims, Spec


@dataclass(frozen=True)
class Split:
    """Programs own blocks of `dim`. With `partial` each has only its block's part of the output's sum, in an output of
    its own, and these are added up afterwards."""

    dim: str
    partial: bool


class NotASum(Exception):
    """The output is no sum of what each block contributes."""


def choose_split(spec: Spec, schedule: Schedule) -> tuple[Split | None, Schedule]:
    """The dim to cut, if there is one, and `schedule` for programs that own a block of it.

    A dim that no sum runs over is best. Next comes one that only the output sums over: two programs never need one
    another's state for that, only the sum of what they put out.
    """
    output_dims = set(spec.output_dims)
    candidates = [dim for dim in spec.dims if any(dim in state.dims for state in spec.states)]
    # Most states cut, then the output cut too, then the innermost dim, along which memory is contiguous.
    candidates.sort(key=lambda dim: (_states_with(spec, dim), dim in output_dims, spec.dims.index(dim)), reverse=True)
    outputs = {assign.target for assign in spec.output}
    for dim in candidates:
        if not any(dim in crossed_dims(action.value) for action in schedule.sets()):
            return Split(dim, partial=False), schedule
    for dim in candidates:
        updates = (action for action in schedule.sets() if action.target not in outputs)
        if any(dim in crossed_dims(action.value) for action in updates):
            continue
        try:
            return Split(dim, partial=True), _BlockSums(dim, frozenset(outputs)).of(schedule)
        except NotASum:
            continue
    return None, schedule


def crossed_dims(tile: Tile) -> Iterator[str]:
    """The dims that something in `tile` runs over from end to end."""
    for part in tiles_in(tile):
        yield from crossed_here(part)


def crossed_here(tile: Tile) -> Iterator[str]:
    """The dims that `tile` itself runs over, not what it is computed from."""
    match tile:
        case Sum(_, dim) | MatMul(_, _, dim):
            yield dim
        case Normalize(_, _, dims):
            yield from dims
        case Rotated():
            yield from (tile.channel, tile.pair)
        case OfAngles(_, turned, pair=pair):
            yield from (turned.dims[-1], pair)
        case Paired(left, right, dims):
            yield from (left.dims[-1], right.dims[-1], dims[-1])
        case OfPairs(gradient, other, dims=dims):
            yield from (gradient.dims[-1], other.dims[-1], dims[-1])
        case Along(value, dims):
            yield from (dim for pair in zip(value.dims, dims, strict=True) if pair[0] != pair[1] for dim in pair)


def _states_with(spec: Spec, dim: str) -> int:
    return sum(dim in state.dims for state in spec.states)


class _BlockSums:
    """Rewrites the output for programs that each sum over their own block of `dim` only."""

    def __init__(self, dim: str, outputs: frozenset[str]) -> None:
        self.dim = dim
        self.outputs = outputs
        self.partial: set[str] = set()

    def of(self, schedule: Schedule) -> Schedule:
        """`schedule` where the outputs of all blocks add up to the output.

        Raises:
            NotASum: they cannot.
        """
        rewritten = schedule.rewritten(self._rewrite)
        if OUTPUT not in self.partial:
            raise NotASum
        return rewritten

    def _rewrite(self, action: Set) -> Set:
        if action.target not in self.outputs:
            return action
        value, partial = self._split(action.value)
        if partial:
            self.partial.add(action.target)
        return replace(action, value=value)

    def _split(self, tile: Tile) -> tuple[Tile, bool]:
        """`tile` as each block evaluates it, and whether that is only the block's share of it."""
        match tile:
            case Value(name):
                return tile, name in self.partial
            case Sum(value, dim, dims):
                if dim == self.dim:
                    self._expect_whole(value)
                    return tile, True
                inner, partial = self._split(value)
                return Sum(inner, dim, dims), partial
            case Negative(value, dims):
                inner, partial = self._split(value)
                return Negative(inner, dims), partial
            case Product(factors, dims):
                split = [self._split(factor) for factor in factors]
                shares = sum(partial for _, partial in split)
                if shares > 1 or (shares and self.dim in dims):
                    raise NotASum
                return Product(tuple(factor for factor, _ in split), dims), bool(shares)
            case Arithmetic("/", left, right, dims):
                self._expect_whole(right)
                numerator, partial = self._split(left)
                if partial and self.dim in dims:
                    raise NotASum
                return Arithmetic("/", numerator, right, dims), partial
            case Arithmetic(("+" | "-") as op, left, right, dims):
                return self._split_terms(op, left, right, dims)
        self._expect_whole(tile)
        return tile, False

    def _split_terms(self, op: Literal["+", "-"], left: Tile, right: Tile, dims: Dims) -> tuple[Tile, bool]:
        """A sum is the blocks' sum where its terms are; a term that every block has whole counts in one of them."""
        terms = [self._split(left), self._split(right)]
        partial = any(share for _, share in terms)
        if partial and self.dim in dims:
            raise NotASum
        first, second = (term if share or not partial else Once(term, term.dims) for term, share in terms)
        return Arithmetic(op, first, second, dims), partial

    def _expect_whole(self, tile: Tile) -> None:
        """Every program can evaluate `tile` on its own."""
        shares = any(isinstance(part, Value) and part.name in self.partial for part in tiles_in(tile))
        if shares or self.dim in crossed_dims(tile):
            raise NotASum
