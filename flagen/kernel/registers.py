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
from flagen.plan.rows import L2NORM_EPSILON
from flagen.plan.tiles import (
    Arithmetic,
    Constant,
    Function,
    Head,
    Masked,
    MatMul,
    Negative,
    Normalize,
    Once,
    Product,
    Size,
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
    """The sizes of a launch: lengths of sequences, heads, dims and the blocks that hold them, micro-steps, and the
    tokens of a segment."""

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
            "token": self.borders[-1],
            "micro_step": steps,
            "head": self.HV,
            "key_head": self.H,
            "place": self.segment,
        }

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
    """

    order: Dims
    block_of: str | None
    sizes: Sizes
    functions: Elementary
    numbers: Mapping[str, Element]
    at: dict[Space, int] = field(default_factory=dict)
    values: dict[str, Lanes] = field(default_factory=dict)
    _known: dict[tuple[str, tuple[Element, ...]], Element] = field(default_factory=dict)

    def first(self, dim: str) -> int:
        """The index of a program's first lane along a dim."""
        return self.at["block"] * self.sizes.blocks[dim] if dim == self.block_of else 0

    def sorted(self, dims: Dims) -> Dims:
        return tuple(dim for dim in self.order if dim in dims)

    def points(self, dims: Dims) -> Iterator[tuple[int, ...]]:
        return itertools.product(*(range(self.sizes.blocks[dim]) for dim in dims))

    def inside(self, dims: Dims, ends: Dims) -> Iterator[bool]:
        """For each lane over `dims`, whether it lies within `ends`."""
        limits = [(dims.index(dim), self.sizes.dims[dim] - self.first(dim)) for dim in ends]
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
        raise InternalError(f"no exact value of {tile!r}")

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
        functions, known = self.functions, self._known

        def value(*args: Element) -> Element:
            if (name, args) not in known:
                known[name, args] = apply(functions, name, args)
            return known[name, args]

        return self.map(value, dims, [self.value(arg) for arg in args])

    def _normalized(self, function: str, row: Lanes) -> Lanes:
        """A row map over the only dim; what lies outside of a `softmax` has no part in it."""
        functions = self.functions
        if any(isinstance(x, Poison) for x in row.data):
            return Lanes(row.dims, [POISON for _ in row.data])
        if function == "softmax":
            weights = [apply(functions, "exp", (x,)) for x in row.data]
            whole = reduce(add, weights)
            return Lanes(row.dims, [divide(weight, whole) for weight in weights])
        squares = reduce(add, [multiply(x, x) for x in row.data], number(L2NORM_EPSILON))
        factor = apply(functions, "rsqrt", (squares,))
        return Lanes(row.dims, [multiply(x, factor) for x in row.data])


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
