"""Tiles in registers, evaluated in exact arithmetic."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial, reduce
from typing import NamedTuple

from gmpy2 import mpq

from flagen.diagnostics import InternalError
from flagen.kernel.elementary import Elementary, number
from flagen.kernel.elements import (
    ARITHMETIC,
    COMPARISONS,
    MINUS_INFINITY,
    POISON,
    Element,
    Poison,
    add,
    apply,
    divide,
    multiply,
    negative,
)
from flagen.kernel.ir import Space
from flagen.kernel.sizes import Illegal, Sizes
from flagen.plan.rows import L2NORM_EPSILON
from flagen.plan.tiles import (
    LOG2_E,
    Along,
    Arithmetic,
    AtLeast,
    Both,
    Call,
    Compare,
    Constant,
    Coordinate,
    Cumulative,
    Dot,
    Edge,
    Either,
    Function,
    Head,
    Lane,
    Masked,
    MatMul,
    Negative,
    Normalize,
    Once,
    Product,
    Rounded,
    Scan,
    Select,
    Shifted,
    Size,
    Spread,
    StateTile,
    Sum,
    Tile,
    Value,
    Whole,
    Widened,
)
from flagen.spec.model import Dims

Data = list[Element]
Operation = Callable[..., Element]


class Lanes(NamedTuple):
    """A tile in registers: an element for each point of its dims, the last of which runs fastest."""

    dims: Dims
    data: Data


Evaluator = Callable[[], Lanes]
"""A tile, ready to be evaluated: what is the same each time has been found out once."""


@dataclass
class Registers:
    """What a program has in registers: tiles by name.

    order: that of a tile's axes.
    block_of: the dim of which it has a block.
    numbers: params that are numbers, by name.
    device: what functions of `shared/device` make of tiles, by name.
    at: where the program stands.
    chunk: the tokens that lie along the axis of tokens.
    """

    order: Dims
    block_of: str | None
    sizes: Sizes
    functions: Elementary
    numbers: Mapping[str, Element]
    device: Mapping[str, Callable[[Registers, tuple[Tile, ...]], tuple[Lanes, ...]]] = field(default_factory=dict)
    at: dict[Space, int] = field(default_factory=dict)
    chunk: range | None = None
    values: dict[str, Lanes] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    """Of which block of a dim a loop has its turn."""
    _evaluators: dict[int, tuple[Evaluator, Tile]] = field(default_factory=dict)
    """Those of tiles by identity, which stays theirs for as long as they are here."""
    _sorted: dict[Dims, Dims] = field(default_factory=dict)
    _places_of: dict[tuple[Dims, Dims], tuple[int, ...]] = field(default_factory=dict)
    _known: dict[tuple[str, tuple[Element, ...]], Element] = field(default_factory=dict)

    def first(self, dim: str) -> int:
        """The index of a program's first lane along a dim, or the chunk's first token."""
        match dim:
            case "token":
                return self.tokens.start
            case "row":
                return self.tokens.start * self.steps
        block = self.at["block"] if dim == self.block_of else self.turns.get(dim, 0)
        return block * self.sizes.blocks[dim]

    def end(self, dim: str) -> int:
        """That behind the last one which is no padding."""
        match dim:
            case "token":
                return self.tokens.stop
            case "row":
                return self.tokens.stop * self.steps
        return self.sizes.of(dim)

    @property
    def steps(self) -> int:
        """The micro-steps of a token."""
        return next(iter(self.sizes.steps.values()), 1)

    @property
    def tokens(self) -> range:
        if self.chunk is None:
            raise Illegal("no chunk here")
        return self.chunk

    def sorted(self, dims: Dims) -> Dims:
        if dims not in self._sorted:
            self._sorted[dims] = tuple(dim for dim in self.order if dim in dims)
        return self._sorted[dims]

    def points(self, dims: Dims) -> Iterator[tuple[int, ...]]:
        return itertools.product(*(range(self.sizes.blocks[dim]) for dim in dims))

    def inside(self, dims: Dims, ends: Dims) -> Iterator[bool]:
        """For each lane over `dims`, whether it lies within `ends`."""
        limits = [(dims.index(dim), self.end(dim) - self.first(dim)) for dim in ends]
        for point in self.points(dims):
            yield all(point[place] < limit for place, limit in limits)

    def places(self, dims: Dims, over: Dims) -> tuple[int, ...]:
        """For each lane over `over`, that of a tile over `dims`."""
        if (dims, over) not in self._places_of:
            self._places_of[dims, over] = _spread(tuple([(dim, self.sizes.blocks[dim]) for dim in over]), dims)
        return self._places_of[dims, over]

    def named(self, name: str) -> Lanes:
        if name not in self.values:
            raise Illegal(f"{name} has no value")
        return self.values[name]

    def map(self, f: Operation, dims: Dims, operands: Sequence[Lanes]) -> Lanes:
        return Lanes(dims, list(map(f, *self.columns(dims, operands))))

    def columns(self, dims: Dims, operands: Sequence[Lanes]) -> list[Data]:
        """The elements of each operand in the lanes of a tile over `dims`."""
        columns = []
        for operand in operands:
            if operand.dims == dims:
                columns.append(operand.data)
                continue
            if not set(operand.dims) <= set(dims):
                raise Illegal(f"tiles over {[operand.dims for operand in operands]} make one over {dims}")
            columns.append([operand.data[place] for place in self.places(operand.dims, dims)])
        return columns

    def value(self, tile: Tile) -> Lanes:
        found = self._evaluators.get(id(tile))
        if found is None:
            found = self._evaluators[id(tile)] = (self._evaluator(tile), tile)
        return found[0]()

    def _evaluator(self, tile: Tile) -> Evaluator:
        match tile:
            case Value(name, _, dims):
                if name in self.numbers:
                    return self._always(self.numbers[name])
                return lambda: self._is_over(name, dims)
            case StateTile(name, previous, dims):
                called = f"{name}_prev" if previous else name
                return lambda: self._is_over(called, dims)
            case Constant(value):
                return self._always(self.functions.log2_e if value == LOG2_E else number(value))
            case Size(name):
                return self._always(mpq(self.sizes.named(name)))
            case Whole(value):
                return self._always(mpq(value))
            case Negative(value, dims):
                return self._mapped(operator.neg, negative, dims, (value,))
            case Product(factors, dims):
                return reduce(partial(self._multiplied, dims=dims), factors[1:], self._bound(factors[0]))
            case Arithmetic("**", left, right, dims):
                return self._function("power", dims, (left, right))
            case Arithmetic(op, left, right, dims):
                return self._mapped(_RATIONAL.get(op), ARITHMETIC[op], dims, (left, right))
            case Function(name, args, dims):
                return self._function(name, dims, args)
            case Compare(op, left, right, dims):
                return self._mapped(None, COMPARISONS[op], dims, (left, right))
            case Both(left, right, dims):
                return self._mapped(None, _both, dims, (left, right))
            case Either(left, right, dims):
                return self._mapped(None, _either, dims, (left, right))
            case Select(where, value, other, dims):
                return self._mapped(None, _chosen, dims, (where, value, other))
            case Spread(value, dims):
                return self._mapped(None, _same, dims, (value,))
            case Rounded(value) | Widened(value):
                return self._bound(value)
            case AtLeast(value, least, dims):
                return self._function("maximum", dims, (value, Constant(least)))
            case Along(value, dims):
                return self._renamed(value, dims)
        return partial(self._evaluate, tile)

    def _bound(self, tile: Tile) -> Evaluator:
        return partial(self.value, tile)

    def _always(self, x: Element) -> Evaluator:
        found = Lanes((), [x])
        return lambda: found

    def _multiplied(self, left: Evaluator, right: Tile, dims: Dims) -> Evaluator:
        return self._joined(operator.mul, multiply, dims, (left, self._bound(right)))

    def _mapped(
        self, rational: Operation | None, every: Operation, dims: Dims, operands: tuple[Tile, ...]
    ) -> Evaluator:
        return self._joined(rational, every, dims, tuple(map(self._bound, operands)))

    def _joined(
        self, rational: Operation | None, every: Operation, dims: Dims, operands: tuple[Evaluator, ...]
    ) -> Evaluator:
        """`every` operation, lane by lane; if all lanes are numbers, the `rational` one does, and is quicker."""

        def evaluate() -> Lanes:
            columns = self.columns(dims, [operand() for operand in operands])
            if rational is not None:
                try:
                    return Lanes(dims, list(map(rational, *columns)))
                except TypeError:
                    pass
            return Lanes(dims, list(map(every, *columns)))

        return evaluate

    def _function(self, name: str, dims: Dims, args: Sequence[Tile]) -> Evaluator:
        def value(*args: Element) -> Element:
            return self._applied(name, args)

        return self._mapped(None, value, dims, tuple(args))

    def _renamed(self, value: Tile, dims: Dims) -> Evaluator:
        def evaluate() -> Lanes:
            found = self.value(value)
            if [self.sizes.blocks[d] for d in found.dims] != [self.sizes.blocks[d] for d in dims]:
                raise Illegal(f"a tile over {found.dims} is read as one over {dims}")
            return Lanes(dims, found.data)

        return evaluate

    def _evaluate(self, tile: Tile) -> Lanes:
        """The value of what is not made lane by lane."""
        match tile:
            case Head():
                return Lanes((), [mpq(self.at["head"])])
            case Sum(value, dim):
                return self._sum(self.value(value), dim)
            case MatMul(left, right, dim, dims):
                over = self.sorted((*dims, dim))
                return self._sum(self.map(multiply, over, (self.value(left), self.value(right))), dim)
            case Normalize(function, value):
                return self._normalized(function, self.value(value))
            case Masked(value, dim, fill, dims):
                (inner,) = self.columns(dims, (self.value(value),))
                inside = self.inside(dims, (dim,))
                outside = MINUS_INFINITY if fill == -math.inf else number(fill)
                return Lanes(dims, [x if within else outside for x, within in zip(inner, inside, strict=True)])
            case Once(value):
                found = self.value(value)
                return found if self.at["block"] == 0 else Lanes(found.dims, [mpq(0) for _ in found.data])
            case Scan():
                return self._scan(tile)
            case Shifted(value, first, axis, reverse, dims):
                rows = self._rows(self._over(value, dims), axis)
                start = [self._over(first, dims[1:]).data]
                shifted = [*rows[1:], *start] if reverse else [*start, *rows[:-1]]
                return Lanes(dims, [x for row in shifted for x in row])
            case Edge(value, axis, reverse, dims):
                return Lanes(dims, self._rows(self._over(value, (axis, *dims)), axis)[0 if reverse else -1])
            case Coordinate(of):
                return Lanes((), [mpq(self._coordinate(of))])
            case Lane(axis):
                return Lanes((axis,), list(map(mpq, self._places(axis))))
            case Dot():
                return self._dot(tile)
            case Cumulative(value, axis, reverse, dims):
                return self._cumulative(self._over(value, dims), axis, reverse)
            case Call():
                (found,) = self.called(tile)
                if found.dims != tile.dims:
                    raise Illegal(f"{tile.function} gives a tile over {found.dims}, not over {tile.dims}")
                return found
        raise InternalError(f"no exact value of {tile!r}")

    def _places(self, axis: str) -> range:
        """The place of each lane: of a row in its chunk, of an index in its dim."""
        first = self.first(axis) if axis in self.sizes.dims else 0
        return range(first, first + self.sizes.blocks[axis])

    def _coordinate(self, of: str) -> int:
        if of == "block":
            return self.at["block"]
        first, end = self.sizes.first_chunks[self.at["sequence"] :][:2]
        return self.at["counted_chunk"] - first if of == "chunk of sequence" else end - first

    def called(self, call: Call) -> tuple[Lanes, ...]:
        """What a function of `shared/device` returns."""
        if call.function not in self.device:
            raise InternalError(f"nobody knows what {call.function} makes of numbers")
        return self.device[call.function](self, call.args)

    def _dot(self, dot: Dot) -> Lanes:
        left, right = self.value(dot.left), self.value(dot.right)
        rows, columns = self.lines(left, dot.dim), self.lines(right, dot.dim)
        ((row,), (column,)) = ([d for d in lanes.dims if d != dot.dim] for lanes in (left, right))
        if dot.dims != (row, column):
            raise Illegal(f"a product over {(row, column)} is taken for one over {dot.dims}")
        data = [_inner(x, y) for x in rows for y in columns]
        return (
            Lanes(dot.dims, data)
            if dot.onto is None
            else self.map(add, dot.dims, (self.value(dot.onto), Lanes(dot.dims, data)))
        )

    def lines(self, lanes: Lanes, along: str) -> list[Data]:
        """The lines of a matrix along one of its axes, in the order of the other."""
        if len(lanes.dims) != 2 or along not in lanes.dims:
            raise Illegal(f"no matrix with {along}: a tile over {lanes.dims}")
        width = self.sizes.blocks[lanes.dims[1]]
        rows = [lanes.data[at : at + width] for at in range(0, len(lanes.data), width)]
        return rows if lanes.dims[1] == along else [list(column) for column in zip(*rows, strict=True)]

    def _cumulative(self, lanes: Lanes, axis: str, reverse: bool) -> Lanes:
        rows = self._rows(lanes, axis)
        sums = list(itertools.accumulate(reversed(rows) if reverse else rows, lambda x, y: list(map(add, x, y))))
        return Lanes(lanes.dims, [x for row in (reversed(sums) if reverse else sums) for x in row])

    def _scan(self, scan: Scan) -> Lanes:
        """Row after row: the operation is associative."""
        factor, term = (self._rows(self._over(tile, scan.dims), scan.axis) for tile in (scan.factor, scan.term))
        row, rows = self._over(scan.first, scan.dims[1:]).data, []
        for place in reversed(range(len(term))) if scan.reverse else range(len(term)):
            row = [self._combined(scan.combine, *parts) for parts in zip(row, factor[place], term[place], strict=True)]
            rows.append(row)
        return Lanes(scan.dims, [x for row in (reversed(rows) if scan.reverse else rows) for x in row])

    def _combined(self, combine: str, x: Element, factor: Element, term: Element) -> Element:
        if combine == "affine":
            return add(multiply(factor, x), term)
        return self._applied(combine, (add(x, factor), term))

    def _rows(self, lanes: Lanes, axis: str) -> list[Data]:
        """The rows along the first axis of a tile."""
        if lanes.dims[:1] != (axis,):
            raise Illegal(f"rows along {axis} of a tile over {lanes.dims}")
        width = len(lanes.data) // self.sizes.blocks[axis]
        return [lanes.data[at : at + width] for at in range(0, len(lanes.data), width)]

    def _over(self, tile: Tile, dims: Dims) -> Lanes:
        """A tile that lies over all of `dims`."""
        found = self.value(tile)
        if found.dims != dims:
            raise Illegal(f"{tile} is over {found.dims}, where it has to be over {dims}")
        return found

    def _is_over(self, name: str, dims: Dims) -> Lanes:
        found = self.values.get(name)
        if found is None:
            raise Illegal(f"{name} has no value")
        if found.dims != dims:
            raise Illegal(f"{name} is over {found.dims}, and is taken for a tile over {dims}")
        return found

    def _sum(self, lanes: Lanes, dim: str) -> Lanes:
        if dim not in lanes.dims:
            raise Illegal(f"a sum over {dim} of a tile over {lanes.dims}")
        kept = tuple(d for d in lanes.dims if d != dim)
        sums: Data = [mpq(0) for _ in self.points(kept)]
        for place, x in zip(
            _spread(tuple((d, self.sizes.blocks[d]) for d in lanes.dims), kept), lanes.data, strict=True
        ):
            sums[place] = add(sums[place], x)
        return Lanes(kept, sums)

    def _applied(self, name: str, args: tuple[Element, ...]) -> Element:
        if (name, args) not in self._known:
            self._known[name, args] = apply(self.functions, name, args)
        return self._known[name, args]

    def _normalized(self, function: str, lanes: Lanes) -> Lanes:
        """A row map along the last dim."""
        width = self.sizes.blocks[lanes.dims[-1]]
        rows = [lanes.data[at : at + width] for at in range(0, len(lanes.data), width)]
        return Lanes(lanes.dims, [x for row in rows for x in self._normalized_row(function, row)])

    def _normalized_row(self, function: str, row: Data) -> Data:
        """What lies outside of a `softmax` has no part in it."""
        functions = self.functions
        if any(isinstance(x, Poison) for x in row):
            return [POISON for _ in row]
        if function == "softmax":
            weights = [apply(functions, "exp", (x,)) for x in row]
            whole = reduce(add, weights)
            return [divide(weight, whole) for weight in weights]
        squares = reduce(add, [multiply(x, x) for x in row], number(L2NORM_EPSILON))
        factor = apply(functions, "rsqrt", (squares,))
        return [multiply(x, factor) for x in row]


@cache
def _spread(over: tuple[tuple[str, int], ...], dims: Dims) -> tuple[int, ...]:
    """For each lane over `over`, that of a tile over `dims`, in their own order."""
    extent = dict(over)
    strides = {dim: math.prod(extent[d] for d in dims[place + 1 :]) for place, dim in enumerate(dims)}
    steps = [strides.get(dim, 0) for dim in extent]
    points = itertools.product(*(range(size) for size in extent.values()))
    return tuple(sum(at * step for at, step in zip(point, steps, strict=True)) for point in points)


_RATIONAL: Mapping[str, Operation] = {"+": operator.add, "-": operator.sub}
"""What lanes without infinities and poison are joined by."""


def _same(x: Element) -> Element:
    return x


def _both(x: Element, y: Element) -> Element:
    return POISON if isinstance(x, Poison) or isinstance(y, Poison) else x and y


def _either(x: Element, y: Element) -> Element:
    return POISON if isinstance(x, Poison) or isinstance(y, Poison) else x or y


def _chosen(where: Element, value: Element, other: Element) -> Element:
    return POISON if isinstance(where, Poison) else value if where else other


def _inner(x: Data, y: Data) -> Element:
    try:
        return sum(map(operator.mul, x, y), mpq(0))
    except TypeError:
        return reduce(add, map(multiply, x, y), mpq(0))
