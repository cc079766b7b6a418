"""Products of tiles, taken apart: the one whole, or what is left of one when another is taken out."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.plan.gradients import ONE, Transposition
from flagen.plan.split import crossed_dims
from flagen.plan.tiles import Arithmetic, Negative, Product, Sum, Tile


class NotAFactor(Exception):
    """A product does not have the factors of another."""


@dataclass(frozen=True)
class _Factors:
    """A quotient of products, with its sign; `summed` over a dim, or not."""

    negative: bool
    above: tuple[Tile, ...]
    below: tuple[Tile, ...]
    summed: bool


@dataclass(frozen=True)
class Factored:
    """Takes products apart whose sums, if any, are over `dim`."""

    arithmetic: Transposition
    dim: str

    def replaced(self, tile: Tile, part: Tile, name: Tile) -> Tile:
        """`tile`, a product or a sum of such, with `name` in the place of the factors of `part`.

        Raises:
            NotAFactor: a term of it does not have them.
        """
        match tile:
            case Arithmetic("+", left, right):
                return self.arithmetic.plus(self.replaced(left, part, name), self.replaced(right, part, name))
            case Arithmetic("-", left, right):
                return self.arithmetic.minus(self.replaced(left, part, name), self.replaced(right, part, name))
        whole, taken = self._factors(tile), self._factors(part)
        above, below = _without(whole.above, taken.above), _without(whole.below, taken.below)
        if taken.summed or any(self.dim in divisor.dims for divisor in below):
            raise NotAFactor
        found: Tile = self.arithmetic.times(*above, name)
        if whole.summed:
            found = self.arithmetic.summed(found, self.dim)
        if below:
            found = self.arithmetic.over(found, self.arithmetic.times(*below))
        return self.arithmetic.negative(found) if whole.negative != taken.negative else found

    def _factors(self, tile: Tile) -> _Factors:
        match tile:
            case Negative(value):
                inner = self._factors(value)
                return _Factors(not inner.negative, inner.above, inner.below, inner.summed)
            case Sum(value, self.dim):
                inner = self._factors(value)
                if inner.summed:
                    raise NotAFactor
                return _Factors(inner.negative, inner.above, inner.below, True)
            case Product(factors):
                parts = [self._factors(factor) for factor in factors]
                if sum(part.summed for part in parts) > 1:
                    raise NotAFactor
                return _Factors(
                    sum(part.negative for part in parts) % 2 == 1,
                    tuple(factor for part in parts for factor in part.above),
                    tuple(factor for part in parts for factor in part.below),
                    any(part.summed for part in parts),
                )
            case Arithmetic("/", left, right):
                one, other = self._factors(left), self._factors(right)
                if other.summed:
                    raise NotAFactor
                negative = one.negative != other.negative
                return _Factors(negative, (*one.above, *other.below), (*one.below, *other.above), one.summed)
        if self.dim in crossed_dims(tile):
            raise NotAFactor
        return _Factors(False, () if tile == ONE else (tile,), (), False)


def _without(factors: tuple[Tile, ...], taken: tuple[Tile, ...]) -> list[Tile]:
    """`factors` but for those of `taken`, each as often as it is there.

    Raises:
        NotAFactor: one of these is not among them.
    """
    left = list(factors)
    for factor in taken:
        if factor not in left:
            raise NotAFactor
        left.remove(factor)
    return left
