"""What kernels evaluate: expressions on tiles in registers, whose axes go by name, in one order for a whole kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from flagen.spec.model import Dims

LOG2_E = math.log2(math.e)
"""Between `exp` and `exp2`."""

MAX_DIMS = 2
"""A tile has at most this many axes; a state of three dims is a matrix over pairs of two of them."""


@dataclass(frozen=True)
class Constant:
    """A number."""

    value: Fraction | float
    dims: Dims = ()


@dataclass(frozen=True)
class Size:
    """A dim's size, `H`, `HV` or the step count: known when the kernel is compiled."""

    name: str
    dims: Dims = ()


@dataclass(frozen=True)
class Head:
    """The index of the value head."""

    dims: Dims = ()


ValueKind = Literal["input", "param", "derived", "local"]


@dataclass(frozen=True)
class Value:
    """A name that holds a tile: loaded, or assigned before."""

    name: str
    kind: ValueKind
    dims: Dims


@dataclass(frozen=True)
class StateTile:
    """A state as it stands, or (`previous`) as it was before this token."""

    name: str
    previous: bool
    dims: Dims


@dataclass(frozen=True)
class Negative:
    value: Tile
    dims: Dims


@dataclass(frozen=True)
class Product:
    """Factors multiplied from left to right, each spread over the dims it lacks; none of them is a product that could
    be written flat."""

    factors: tuple[Tile, ...]
    dims: Dims


@dataclass(frozen=True)
class Arithmetic:
    op: Literal["+", "-", "/", "**", "//", "%"]
    left: Tile
    right: Tile
    dims: Dims


@dataclass(frozen=True)
class Function:
    """An elementwise function of the language, one of `square`, `exp2`, `power`, which stand for `**`, or `part_of`, a
    slope of `logaddexp`."""

    name: str
    args: tuple[Tile, ...]
    dims: Dims


@dataclass(frozen=True)
class Sum:
    """`value` summed over `dim`."""

    value: Tile
    dim: str
    dims: Dims


@dataclass(frozen=True)
class MatMul:
    """The product of two matrices, summed over `dim`; broadcast into one product, they would have three dims."""

    left: Tile
    right: Tile
    dim: str
    dims: Dims


@dataclass(frozen=True)
class Normalize:
    """`l2norm` or `softmax` over the only dim."""

    function: str
    value: Tile
    dims: Dims


@dataclass(frozen=True)
class Rotated:
    """`value` with each pair of its last dim's channels turned by an angle; pairs without one stay. Pairs are
    neighbours, or with `half` as far apart as half the channels.

    size, pairs: how many channels there are, and how many angles.
    """

    value: Tile
    angle: Tile
    size: Tile
    pairs: Tile
    half: bool
    dims: Dims

    @property
    def channel(self) -> str:
        return self.value.dims[-1]

    @property
    def pair(self) -> str:
        return self.angle.dims[-1]


@dataclass(frozen=True)
class OfAngles:
    """The gradient of angles over the dim `pair`: of each pair (x, y), `turned` by one, with its gradient (dx, dy), it
    is x dy - y dx."""

    gradient: Tile
    turned: Tile
    size: Tile
    pairs: Tile
    half: bool
    pair: str
    dims: Dims


@dataclass(frozen=True)
class Paired:
    """Each lane of `left` along its last dim times each of `right`: along the last of `dims` are all pairs of them,
    those of one lane of `left` beside one another. Lanes that pad either make pairs that pad."""

    left: Tile
    right: Tile
    dims: Dims


@dataclass(frozen=True)
class OfPairs:
    """The gradient of one side of pairs: `gradient`, that of the pairs, times the `other` side, summed over the lanes
    of that. `second` tells that the other side is the second one."""

    gradient: Tile
    other: Tile
    second: bool
    dims: Dims

    @property
    def pairs(self) -> str:
        return self.gradient.dims[-1]

    @property
    def side(self) -> str:
        return self.dims[-1]


@dataclass(frozen=True)
class Masked:
    """`value`, and `fill` in the lanes that pad `dim` to a power of two."""

    value: Tile
    dim: str
    fill: float
    dims: Dims


@dataclass(frozen=True)
class Once:
    """`value` in the first of the programs whose results are summed, zero in the others."""

    value: Tile
    dims: Dims


# What kernels of whole chunks do besides, along an axis on which tokens lie.


@dataclass(frozen=True)
class Spread:
    """`value`, the same along the dims that it lacks."""

    value: Tile
    dims: Dims


@dataclass(frozen=True)
class Scan:
    """X after each row along `axis`, from `first` before the first of them:

        affine       X = factor * X + term
        logaddexp    X = logaddexp(X + factor, term), and maximum likewise
        phase        X = fraction(X + term), with no factor

    In reverse from the last row to the first. The operation is associative, and rows are not taken one by one.
    """

    combine: Literal["affine", "logaddexp", "maximum", "phase"]
    factor: Tile | None
    term: Tile
    first: Tile
    axis: str
    reverse: bool
    dims: Dims


@dataclass(frozen=True)
class Shifted:
    """The row of `value` before each along `axis`, and `first` for the first; in reverse that behind each."""

    value: Tile
    first: Tile
    axis: str
    reverse: bool
    dims: Dims


@dataclass(frozen=True)
class Edge:
    """The last row of `value` along `axis`; in reverse the first."""

    value: Tile
    axis: str
    reverse: bool
    dims: Dims


@dataclass(frozen=True)
class InSequence:
    """Which tokens along an axis have one in their sequence that is `ago` tokens before them, or behind them where that
    is negative; or which of them is the sequence's first place, or the place behind its last token: where there is no
    token, the two are one.
    """

    place: Literal["token", "start", "end"]
    ago: int
    dims: Dims


# What kernels that multiply rows of a chunk do besides.


@dataclass(frozen=True)
class Whole:
    """A whole number, among others that count."""

    value: int
    dims: Dims = ()


@dataclass(frozen=True)
class Coordinate:
    """Where a program stands: the number of its block; the number of the chunk in its sequence, and of how many."""

    of: Literal["block", "chunk of sequence", "chunks of sequence"]
    dims: Dims = ()


@dataclass(frozen=True)
class Lane:
    """The place of each lane along an axis: of a row in its chunk, of an index in its dim."""

    axis: str
    dims: Dims


Comparison = Literal["==", "<", "<=", ">", ">="]


@dataclass(frozen=True)
class Compare:
    """Where this holds between two tiles."""

    op: Comparison
    left: Tile
    right: Tile
    dims: Dims


@dataclass(frozen=True)
class Both:
    """Where both of two tiles hold."""

    left: Tile
    right: Tile
    dims: Dims


@dataclass(frozen=True)
class Either:
    """Where one of two tiles holds, or both do."""

    left: Tile
    right: Tile
    dims: Dims


@dataclass(frozen=True)
class Select:
    """`value` where `where` holds, and `other` elsewhere."""

    where: Tile
    value: Tile
    other: Tile
    dims: Dims


@dataclass(frozen=True)
class Dot:
    """The matrix product of two tiles, summed over `dim`, added onto a third one: on tensor cores, so that both are
    operands, of the dtype of the call's products. `few_rows`: where that is better on a device, it is the transpose of
    a product that has many."""

    left: Tile
    right: Tile
    dim: str
    onto: Tile | None
    dims: Dims
    few_rows: bool = False


@dataclass(frozen=True)
class Rounded:
    """`value` as an operand of matrix products, in their dtype."""

    value: Tile
    dims: Dims


@dataclass(frozen=True)
class Widened:
    """`value`, which has been loaded, or rounded, as an operand of products, in float32."""

    value: Tile
    dims: Dims


@dataclass(frozen=True)
class AtLeast:
    """`value`, or a number where that is less; what no number is stays that."""

    value: Tile
    least: float
    dims: Dims


@dataclass(frozen=True)
class Along:
    """`value`, whose axes are called `dims` here: a row that was solved for is read as a column of scores, say."""

    value: Tile
    dims: Dims


@dataclass(frozen=True)
class Cumulative:
    """Sums of `value` along `axis` up to each lane, itself too; in reverse from each lane on."""

    value: Tile
    axis: str
    reverse: bool
    dims: Dims


@dataclass(frozen=True)
class Call:
    """What a function of `shared/device` makes of tiles; sizes and words that it is compiled for are among its
    arguments."""

    function: str
    args: tuple[Tile, ...]
    dims: Dims


_Leaf = Constant | Size | Head | Value | StateTile | Whole | Coordinate | Lane | InSequence
_OfOne = Negative | Sum | Normalize | Masked | Once | Spread | Edge | Rounded | Widened | AtLeast | Along | Cumulative
_OfTwo = Arithmetic | MatMul | Compare | Both | Either | Shifted | Paired | OfPairs
_OfMore = Product | Function | Call | Rotated | OfAngles | Scan | Select | Dot
Tile = _Leaf | _OfOne | _OfTwo | _OfMore


def operands(tile: Tile) -> tuple[Tile, ...]:
    """What `tile` is computed from, left to right."""
    match tile:
        case Constant() | Size() | Head() | Value() | StateTile() | Whole() | Coordinate() | Lane() | InSequence():
            return ()
        case Negative(value) | Sum(value) | Normalize(_, value) | Masked(value) | Once(value) | Spread(value):
            return (value,)
        case Edge(value) | Rounded(value) | Widened(value) | AtLeast(value) | Along(value) | Cumulative(value):
            return (value,)
        case Rotated(first, second, size, pairs) | OfAngles(first, second, size, pairs):
            return (first, second, size, pairs)
        case Select(where, value, other):
            return (where, value, other)
        case Dot(left, right, _, onto):
            return (left, right) if onto is None else (left, right, onto)
        case Scan(_, factor, term, first):
            return (term, first) if factor is None else (factor, term, first)
        case Product(factors):
            return factors
        case Function(_, args) | Call(_, args):
            return args
        case Arithmetic(_, left, right) | Compare(_, left, right):
            return (left, right)
        case MatMul(left, right) | Both(left, right) | Either(left, right) | Shifted(left, right):
            return (left, right)
        case Paired(left, right) | OfPairs(left, right):
            return (left, right)


def rebuild(tile: Tile, change: Callable[[Tile], Tile]) -> Tile:
    """`tile` with `change` applied to each of its operands."""
    match tile:
        case Constant() | Size() | Head() | Value() | StateTile() | Whole() | Coordinate() | Lane() | InSequence():
            return tile
        case Negative(value) | Sum(value) | Normalize(_, value) | Masked(value) | Once(value) | Spread(value):
            return replace(tile, value=change(value))
        case Edge(value) | Rounded(value) | Widened(value) | AtLeast(value) | Along(value) | Cumulative(value):
            return replace(tile, value=change(value))
        case Arithmetic(_, left, right) | Compare(_, left, right) | MatMul(left, right) | Paired(left, right):
            return replace(tile, left=change(left), right=change(right))
        case Both(left, right) | Either(left, right):
            return replace(tile, left=change(left), right=change(right))
        case Product(factors, dims):
            return Product(tuple(map(change, factors)), dims)
        case Function(_, args) | Call(_, args):
            return replace(tile, args=tuple(map(change, args)))
        case Rotated(value, angle, size, pairs, half, dims):
            return Rotated(change(value), change(angle), change(size), change(pairs), half, dims)
        case OfAngles(gradient, turned, size, pairs, half, pair, dims):
            return OfAngles(change(gradient), change(turned), change(size), change(pairs), half, pair, dims)
        case OfPairs(gradient, other):
            return replace(tile, gradient=change(gradient), other=change(other))
        case Scan(combine, factor, term, first, axis, reverse, dims):
            changed = None if factor is None else change(factor)
            return Scan(combine, changed, change(term), change(first), axis, reverse, dims)
        case Shifted(value, first):
            return replace(tile, value=change(value), first=change(first))
        case Select(where, value, other, dims):
            return Select(change(where), change(value), change(other), dims)
        case Dot(left, right, _, onto):
            changed = None if onto is None else change(onto)
            return replace(tile, left=change(left), right=change(right), onto=changed)


def tiles_in(tile: Tile) -> Iterator[Tile]:
    """`tile` and everything it is computed from, itself first."""
    yield tile
    for operand in operands(tile):
        yield from tiles_in(operand)


def is_static(tile: Tile) -> bool:
    """Whether a tile is arithmetic on numbers and sizes alone: a Python number to whoever compiles the kernel."""
    return all(isinstance(part, Constant | Size | Negative | Product | Arithmetic) for part in tiles_in(tile))
