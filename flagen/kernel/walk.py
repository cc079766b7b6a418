"""The equations of a walk over chunks, lowered: one lowering for all families, which differ in where rows, scores and
decays come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flagen.kernel.ir import Bind, Let, Statement
from flagen.kernel.rows import local, rounded, times
from flagen.kernel.walks import Inverted, Product, Solved, Sum
from flagen.kernel.walks import Tile as Term
from flagen.plan.rows import WRITTEN
from flagen.plan.tiles import Along, Arithmetic, Dot, Tile
from flagen.spec.model import Dims


class Placement(Protocol):
    """Where a family's kernels have what the equations name."""

    def tile(self, tensor: str) -> Tile | None:
        """A tile over the values and rows, as a term of a sum; None where it is zero."""
        ...

    def values(self, tensor: str) -> Tile:
        """A tile over the values as an operand of a product: rounded."""
        ...

    def wide(self, tensor: str) -> Tile:
        """The same before it is rounded, where there is one."""
        ...

    def rows(self, tensor: str) -> Tile:
        """Rows, or a matrix of scores, as an operand of a product."""
        ...

    def factor(self, term: Product) -> Tile | None:
        """What multiplies each row, decay and all, where rows come without it."""
        ...

    def whole(self, term: Term) -> Tile:
        """A tile that is carried from chunk to chunk, decayed across this one."""
        ...


@dataclass(frozen=True)
class WalkLowering:
    """Lowers sums of products; `called`: what the tensors that are found are called; `value`, `row`: the axes of the
    values, and of rows that are solved for."""

    placement: Placement
    called: Mapping[str, str]
    value: str
    row: str

    def solved(self, found: Solved) -> Iterator[Statement]:
        """What is solved for: the right side in one line, then the solution."""
        right, solution = found
        yield self.flat(right)
        yield self.inverted(solution)

    def sum(self, step: Sum, before: Tile | None = None) -> Iterator[Statement]:
        """A sum whose terms are added up one by one, each product onto the one before."""
        name = self.called[step.target]
        for term in step.terms:
            if isinstance(term, Term):
                before = self.placement.whole(term)
                continue
            value = self.product(term, before)
            yield Let(name, value)
            before = local(name, value.dims)

    def states(self, steps: Sequence[Sum]) -> Iterator[Statement]:
        """What is carried from chunk to chunk; several tiles are mixed at once, and then products are added to each."""
        if len(steps) == 1:
            yield from self.sum(steps[0])
            return
        mixed = [self._mixed(step) for step in steps]
        names = [self.called[step.target] for step in steps]
        yield Bind(tuple(names), tuple(mixed))
        for name, step, tile in zip(names, steps, mixed, strict=True):
            products = tuple(term for term in step.terms if isinstance(term, Product))
            yield from self.sum(Sum(step.target, products), local(name, tile.dims))

    def _mixed(self, step: Sum) -> Tile:
        """The tiles of a sum as they stand, each times its number."""
        first, *rest = (self.placement.whole(term) for term in step.terms if isinstance(term, Term))
        for tile in rest:
            first = Arithmetic("+", first, tile, tile.dims)
        return first

    def flat(self, step: Sum) -> Let:
        """A sum in one line."""
        terms = [self.placement.tile(t.tensor) if isinstance(t, Term) else self.product(t) for t in step.terms]
        first, *rest = [term for term in terms if term is not None]
        dims = self._over(self.row)
        for term in rest:
            first = Arithmetic("+", first, term, dims)
        return Let(self.called[step.target], first)

    def inverted(self, step: Inverted) -> Let:
        """(I - L)^-1 times the right side, or its transpose: I, which the stored inverse lacks, is what it is added
        onto."""
        inverse = local("inverse", (self.row, WRITTEN))
        right = local(self.called[step.right], self._over(self.row))
        if step.transposed:
            return Let(self.called[step.target], self._onto_written(rounded(right), inverse, right))
        read = self._read(rounded(right))
        return Let(self.called[step.target], Dot(read, inverse, WRITTEN, right, right.dims))

    def product(self, term: Product, onto: Tile | None = None) -> Tile:
        """A product, added onto a tile; numbers of rows that read multiply what comes out, those of others what goes
        in."""
        placement = self.placement
        values, rows = placement.values(term.values), placement.rows(term.by)
        if term.matrix:
            if not term.reads:
                return self._onto_written(values, rows, onto)
            (reader, _) = rows.dims
            return Dot(self._read(values), rows, WRITTEN, onto, self._over(reader))
        factor = placement.factor(term)
        (axis, key) = rows.dims
        if term.reads:
            over = self._over(axis)
            if factor is None or onto is None:
                return times(Dot(values, rows, key, onto, over), factor)
            return Arithmetic("+", onto, times(Dot(values, rows, key, None, over), factor), over)
        if factor is not None:
            values = rounded(times(placement.wide(term.values), factor))
        return Dot(values, rows, axis, onto, self._over(key))

    def _over(self, axis: str) -> Dims:
        return (self.value, axis)

    def _read(self, values: Tile) -> Tile:
        """Values of rows that were written, as scores read them."""
        return Along(values, self._over(WRITTEN))

    def _onto_written(self, values: Tile, matrix: Tile, onto: Tile | None) -> Tile:
        """What a matrix gives to the rows that were written, from those that read."""
        before = None if onto is None else self._read(onto)
        (reader, _) = matrix.dims
        return Along(Dot(values, matrix, reader, before, self._over(WRITTEN)), self._over(self.row))
