"""Tiles in registers, evaluated in exact arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, reduce

from gmpy2 import mpq

from flagen.diagnostics import InternalError
from flagen.kernel.elementary import Elementary, number
from flagen.kernel.elements import (
    ARITHMETIC,
    MINUS_INFINITY,
    POISON,
    Element,
    Poison,
    add,
    apply,
    divide,
    multiply,
    negative,
    product,
)
from flagen.kernel.ir import Array, Space
from flagen.plan.rows import L2NORM_EPSILON, TOKEN
from flagen.plan.tiles import (
    Arithmetic,
    Constant,
    Edge,
    Function,
    Head,
    Masked,
    MatMul,
    Negative,
    Normalize,
    Once,
    Product,
    Scan,
    Shifted,
    Size,
    Spread,
    StateTile,
    Sum,
    Tile,
    Value,
)
from flagen.spec.model import Dims


class Illegal(Exception):
    """A program does what none may: it leaves an array, meets another program, or takes a name that has no value."""


Data = list[Element]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a launch: lengths of sequences, heads, dims, micro-steps, the tokens of a segment, and the lanes of
    tiles, by dim; by `TOKEN` those of a chunk."""

    lengths: tuple[int, ...]
    H: int
    HV: int
    dims: Mapping[str, int]
    blocks: Mapping[str, int]
    steps: Mapping[str, int]
    segment: int

    @cached_property
    def borders(self) -> tuple[int, ...]:
        return (0, *itertools.accumulate(self.lengths))

    @cached_property
    def segments(self) -> tuple[int, ...]:
        """How many segments each sequence has."""
        return tuple(-(-length // self.segment) for length in self.lengths)

    def blocks_of(self, dim: str | None) -> int:
        return 1 if dim is None else -(-self.dims[dim] // self.blocks[dim])

    def extents(self, array: Array, block_of: str | None) -> tuple[int, ...]:
        """How many coordinates there are in each space of an array of programs that have a block of a dim."""
        own = {"block": self.blocks_of(block_of), "loop": array.loops}
        return tuple([own[space] if space in own else self._extents[space] for space in array.spaces])

    @cached_property
    def _extents(self) -> dict[str, int]:
        """Those that are the same for all arrays."""
        (steps,) = self.steps.values() or (1,)
        return {
            "sequence": len(self.lengths),
            "segment": sum(self.segments),
            "chunk": self.borders[-1] // self.blocks.get(TOKEN, 1) + len(self.lengths),
            "token": self.borders[-1],
            "micro_step": steps,
            "head": self.HV,
            "key_head": self.H,
            "place": self.segment,
        }

    def chunk_at(self, sequence: int, start: int) -> int:
        """Which chunk it is that starts at a token of a sequence: each sequence has room for one that is not full."""
        chunk, first = self.blocks[TOKEN], self.borders[sequence]
        return first // chunk + sequence + (start - first) // chunk

    def named(self, name: str) -> int:
        """A size by the name that expressions have for it."""
        return {"H": self.H, "HV": self.HV, **self.dims, **self.steps}[name]


@dataclass(frozen=True)
class Lanes:
    """A tile in registers: an element for each point of its dims, the last of which runs fastest."""

    dims: Dims
    data: Data


@dataclass
class Registers:
    """What a program has in registers: tiles by name.

    order: that of a tile's axes.
    block_of: the dim of which it has a block.
    numbers: params that are numbers, by name.
    at: where the program stands.
    chunk: the tokens that lie along the axis of tokens.
    """

    order: Dims
    block_of: str | None
    sizes: Sizes
    functions: Elementary
    numbers: Mapping[str, Element]
    at: dict[Space, int] = field(default_factory=dict)
    chunk: range | None = None
    values: dict[str, Lanes] = field(default_factory=dict)
    _known: dict[tuple[str, tuple[Element, ...]], Element] = field(default_factory=dict)

    def first(self, dim: str) -> int:
        """The index of a program's first lane along a dim, or the chunk's first token."""
        if dim == TOKEN:
            return self.tokens.start
        return self.at["block"] * self.sizes.blocks[dim] if dim == self.block_of else 0

    def end(self, dim: str) -> int:
        """That behind the last one which is no padding."""
        return self.tokens.stop if dim == TOKEN else self.sizes.dims[dim]

    @property
    def tokens(self) -> range:
        if self.chunk is None:
            raise Illegal("no chunk here")
        return self.chunk

    def sorted(self, dims: Dims) -> Dims:
        return tuple(dim for dim in self.order if dim in dims)

    def points(self, dims: Dims) -> Iterator[tuple[int, ...]]:
        return itertools.product(*(range(self.sizes.blocks[dim]) for dim in dims))

    def inside(self, dims: Dims, ends: Dims) -> Iterator[bool]:
        """For each lane over `dims`, whether it lies within `ends`."""
        limits = [(dims.index(dim), self.end(dim) - self.first(dim)) for dim in ends]
        for point in self.points(dims):
            yield all(point[place] < limit for place, limit in limits)

    def places(self, dims: Dims, over: Dims) -> tuple[int, ...]:
        """For each lane over `over`, that of a tile over `dims`."""
        return _spread(tuple([(dim, self.sizes.blocks[dim]) for dim in over]), dims)

    def named(self, name: str) -> Lanes:
        if name not in self.values:
            raise Illegal(f"{name} has no value")
        return self.values[name]

    def map(self, f: Callable[..., Element], dims: Dims, operands: Sequence[Lanes]) -> Lanes:
        columns = []
        for operand in operands:
            if operand.dims == dims:
                columns.append(operand.data)
            elif set(operand.dims) <= set(dims):
                columns.append([operand.data[place] for place in self.places(operand.dims, dims)])
            else:
                raise Illegal(f"tiles over {[operand.dims for operand in operands]} make one over {dims}")
        return Lanes(dims, list(map(f, *columns)))

    def value(self, tile: Tile) -> Lanes:
        match tile:
            case Value(name):
                if name in self.numbers:
                    return Lanes((), [self.numbers[name]])
                return self._is_over(tile, self.named(name))
            case StateTile(name, previous):
                return self._is_over(tile, self.named(f"{name}_prev" if previous else name))
            case Constant(value):
                return Lanes((), [number(value)])
            case Size(name):
                return Lanes((), [mpq(self.sizes.named(name))])
            case Head():
                return Lanes((), [mpq(self.at["head"])])
            case Negative(value, dims):
                return self.map(negative, dims, (self.value(value),))
            case Product(factors, dims):
                multiplied = multiply if len(factors) == 2 else _multiplied
                return self.map(multiplied, dims, [self.value(factor) for factor in factors])
            case Arithmetic("**", left, right, dims):
                return self._function("power", dims, (left, right))
            case Arithmetic(op, left, right, dims):
                return self.map(ARITHMETIC[op], dims, (self.value(left), self.value(right)))
            case Function(name, args, dims):
                return self._function(name, dims, args)
            case Sum(value, dim):
                return self._sum(self.value(value), dim)
            case MatMul(left, right, dim, dims):
                over = self.sorted((*dims, dim))
                return self._sum(self.map(multiply, over, (self.value(left), self.value(right))), dim)
            case Normalize(function, value):
                return self._normalized(function, self.value(value))
            case Masked(value, dim, fill, dims):
                inner = self.map(_same, dims, (self.value(value),))
                inside = self.inside(dims, (dim,))
                outside = MINUS_INFINITY if fill == -math.inf else number(fill)
                return Lanes(dims, [x if within else outside for x, within in zip(inner.data, inside, strict=True)])
            case Once(value):
                found = self.value(value)
                return found if self.at["block"] == 0 else Lanes(found.dims, [mpq(0) for _ in found.data])
            case Spread(value, dims):
                return self.map(_same, dims, (self.value(value),))
            case Scan():
                return self._scan(tile)
            case Shifted(value, first, axis, reverse, dims):
                rows = self._rows(self._over(value, dims), axis)
                start = [self._over(first, dims[1:]).data]
                shifted = [*rows[1:], *start] if reverse else [*start, *rows[:-1]]
                return Lanes(dims, [x for row in shifted for x in row])
            case Edge(value, axis, reverse, dims):
                return Lanes(dims, self._rows(self._over(value, (axis, *dims)), axis)[0 if reverse else -1])
        raise InternalError(f"no exact value of {tile!r}")

    def _scan(self, scan: Scan) -> Lanes:
        """Row after row: the operation is associative."""
        factor, term = (self._rows(self._over(tile, scan.dims), scan.axis) for tile in (scan.factor, scan.term))
        row, rows = self._over(scan.first, scan.dims[1:]).data, []
        for place in reversed(range(len(term))) if scan.reverse else range(len(term)):
            row = [self._joined(scan.combine, *parts) for parts in zip(row, factor[place], term[place], strict=True)]
            rows.append(row)
        return Lanes(scan.dims, [x for row in (reversed(rows) if scan.reverse else rows) for x in row])

    def _joined(self, combine: str, x: Element, factor: Element, term: Element) -> Element:
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

    def _is_over(self, tile: Tile, found: Lanes) -> Lanes:
        if found.dims != tile.dims:
            raise Illegal(f"{tile} is over {found.dims}")
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

    def _function(self, name: str, dims: Dims, args: Sequence[Tile]) -> Lanes:
        def value(*args: Element) -> Element:
            return self._applied(name, args)

        return self.map(value, dims, [self.value(arg) for arg in args])

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


def _same(x: Element) -> Element:
    return x


def _multiplied(*factors: Element) -> Element:
    return product(factors)
