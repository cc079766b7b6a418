"""Tiles in registers, evaluated in exact arithmetic.

A tile is turned into a function once, which finds out all that is the same each time: what it lies over, which lanes of
its operands it takes, and where tiles do not fit together.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import NamedTuple

from gmpy2 import mpq

from flagen.diagnostics import InternalError
from flagen.kernel.device import DEVICE
from flagen.kernel.elementary import number
from flagen.kernel.elements import (
    ARITHMETIC,
    COMPARISONS,
    MINUS_INFINITY,
    POISON,
    ZERO,
    Element,
    Poison,
    add,
    apply,
    both,
    chosen,
    divide,
    either,
    multiply,
    negative,
)
from flagen.kernel.pairs import Pairs, of_last, paired, side_of_pairs
from flagen.kernel.registers import Data, Lanes, Registers
from flagen.kernel.sizes import Illegal
from flagen.plan.rows import L2NORM_EPSILON, TOKEN
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
    InSequence,
    Lane,
    Masked,
    MatMul,
    Negative,
    Normalize,
    OfAngles,
    OfPairs,
    Once,
    Paired,
    Product,
    Rotated,
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
    operands,
)
from flagen.spec.model import Dims

Operation = Callable[..., Element]


class Evaluator(NamedTuple):
    """A tile, ready to be evaluated: what it lies over, its elements, and whether they are the same each time."""

    dims: Dims
    data: Callable[[], Data]
    fixed: bool = False


class TileValues:
    """Evaluates tiles of a kernel in its registers."""

    def __init__(self, registers: Registers) -> None:
        self.registers = registers
        self.sizes, self.functions = registers.sizes, registers.functions
        self._evaluators: dict[int, tuple[Evaluator, Tile]] = {}  # By identity, which stays theirs while they are here.
        self._known: dict[tuple[str, tuple[Element, ...]], Element] = {}
        self._inside: dict[tuple[object, ...], list[bool]] = {}

    def value(self, tile: Tile) -> Lanes:
        """What a tile is now."""
        found = self.evaluator(tile)
        return Lanes(found.dims, found.data())

    def called(self, call: Call) -> Callable[[], tuple[Lanes, ...]]:
        """What a function of `shared/device` returns, program by program."""
        if call.function not in DEVICE:
            raise InternalError(f"nobody knows what {call.function} makes of numbers")
        function, takes = DEVICE[call.function]
        args = [self.evaluator(call.args[place]) for place in takes]
        registers = self.registers

        def evaluate() -> tuple[Lanes, ...]:
            given = [registers.each(Lanes(arg.dims, arg.data())) for arg in args]
            returned = [function(registers, *of_program) for of_program in zip(*given, strict=True)]
            return tuple(Lanes(one[0].dims, _flat(x.data for x in one)) for one in zip(*returned, strict=True))

        return evaluate

    def evaluator(self, tile: Tile) -> Evaluator:
        found = self._evaluators.get(id(tile))
        if found is None:
            found = self._evaluators[id(tile)] = (self._evaluator(tile), tile)
        return found[0]

    def spread(self, tile: Tile, dims: Dims) -> Callable[[], Data]:
        """A tile in the lanes of one over `dims`."""
        return self._spread(self.evaluator(tile), dims)

    def inside(self, dims: Dims, ends: Dims) -> list[bool]:
        """For each lane over `dims`, whether it lies within `ends`."""
        registers, sizes = self.registers, self.sizes
        limits = [(dims.index(d), registers.end(d) - registers.first(d), d) for d in ends]
        key = (dims, *limits)
        if key not in self._inside:
            points = registers.points(dims)
            of_program = [all(sizes.is_inside(dim, at[i], limit) for i, limit, dim in limits) for at in points]
            self._inside[key] = of_program * self.registers.programs
        return self._inside[key]

    # ---------------------------------------------------------------------------------------------------- lane by lane

    def _evaluator(self, tile: Tile) -> Evaluator:
        match tile:
            case Value(name, _, dims):
                if name in self.registers.numbers:
                    return self._always(self.registers.numbers[name])
                return self._named(name, dims)
            case StateTile(name, previous, dims):
                return self._named(f"{name}_prev" if previous else name, dims)
            case Constant(value):
                return self._always(self.functions.log2_e if value == LOG2_E else number(value))
            case Size(name):
                return self._always(mpq(self.sizes.named(name)))
            case Whole(value):
                return self._always(mpq(value))
            case Negative(value, dims):
                return self._mapped(operator.neg, negative, dims, (value,))
            case Product(factors, dims):
                return reduce(partial(self._multiplied, dims=dims), factors[1:], self.evaluator(factors[0]))
            case Arithmetic("**", left, right, dims):
                return self._function("power", dims, (left, right))
            case Arithmetic(op, left, right, dims):
                return self._mapped(_RATIONAL.get(op), ARITHMETIC[op], dims, (left, right))
            case Function(name, args, dims):
                return self._function(name, dims, args)
            case Compare(op, left, right, dims):
                return self._mapped(None, COMPARISONS[op], dims, (left, right))
            case Both(left, right, dims):
                return self._mapped(None, both, dims, (left, right))
            case Either(left, right, dims):
                return self._mapped(None, either, dims, (left, right))
            case Select(where, value, other, dims):
                return self._mapped(None, chosen, dims, (where, value, other))
            case Spread(value, dims):
                inner = self.evaluator(value)
                return Evaluator(dims, self._spread(inner, dims), inner.fixed)
            case Rounded(value) | Widened(value):
                return self.evaluator(value)
            case AtLeast(value, least, dims):
                return self._function("maximum", dims, (value, Constant(least)))
            case Along(value, dims):
                return self._renamed(self.evaluator(value), dims)
        return self._of_rows(tile)

    def _always(self, x: Element) -> Evaluator:
        found = [x] * self.registers.programs
        return Evaluator((), lambda: found, fixed=True)

    def _named(self, name: str, dims: Dims) -> Evaluator:
        registers = self.registers

        def evaluate() -> Data:
            found = registers.named(name)
            if found.dims != dims:
                raise Illegal(f"{name} is over {found.dims}, and is taken for a tile over {dims}")
            return found.data

        return Evaluator(dims, evaluate)

    def _spread(self, evaluator: Evaluator, dims: Dims) -> Callable[[], Data]:
        if evaluator.dims == dims:
            return evaluator.data
        if not set(evaluator.dims) <= set(dims):
            raise Illegal(f"a tile over {evaluator.dims} makes one over {dims}")
        places, inner = self.registers.places(evaluator.dims, dims), evaluator.data

        def evaluate() -> Data:
            data = inner()
            return [data[place] for place in places]

        return _once(evaluate) if evaluator.fixed else evaluate

    def _multiplied(self, left: Evaluator, right: Tile, dims: Dims) -> Evaluator:
        return self._joined(operator.mul, multiply, dims, (left, self.evaluator(right)))

    def _mapped(self, quick: Operation | None, every: Operation, dims: Dims, operands: tuple[Tile, ...]) -> Evaluator:
        return self._joined(quick, every, dims, tuple(map(self.evaluator, operands)))

    def _joined(
        self, quick: Operation | None, every: Operation, dims: Dims, operands: tuple[Evaluator, ...]
    ) -> Evaluator:
        """`every` operation, lane by lane; if all lanes are numbers, the `quick` one does."""
        columns = [self._spread(operand, dims) for operand in operands]

        def evaluate() -> Data:
            found = [column() for column in columns]
            if quick is not None:
                try:
                    return list(map(quick, *found))
                except TypeError:
                    pass
            return list(map(every, *found))

        fixed = all(operand.fixed for operand in operands)
        return Evaluator(dims, _once(evaluate) if fixed else evaluate, fixed)

    def _function(self, name: str, dims: Dims, args: Sequence[Tile]) -> Evaluator:
        def value(*args: Element) -> Element:
            return self._applied(name, args)

        return self._mapped(None, value, dims, tuple(args))

    def _applied(self, name: str, args: tuple[Element, ...]) -> Element:
        if (name, args) not in self._known:
            self._known[name, args] = apply(self.functions, name, args)
        return self._known[name, args]

    def _renamed(self, inner: Evaluator, dims: Dims) -> Evaluator:
        if [self.sizes.blocks[d] for d in inner.dims] != [self.sizes.blocks[d] for d in dims]:
            raise Illegal(f"a tile over {inner.dims} is read as one over {dims}")
        return Evaluator(dims, inner.data, inner.fixed)

    # ------------------------------------------------------------------------------------------ sums, rows, and places

    def _of_rows(self, tile: Tile) -> Evaluator:
        """What is not made lane by lane."""
        registers = self.registers
        match tile:
            case Head():
                return Evaluator((), lambda: list(map(mpq, registers.heads["head"])))
            case Coordinate(of):
                return Evaluator((), lambda: registers.everywhere(mpq(self._coordinate(of))).data)
            case Lane(axis):
                return self._lane(axis)
            case InSequence(place, ago, dims):
                return Evaluator(dims, lambda: self._in_sequence(place, ago))
            case Once(value):
                return self._in_first_block(self.evaluator(value))
            case Masked(value, dim, fill, dims):
                return self._masked(self.spread(value, dims), dim, fill, dims)
            case Sum(value, dim):
                return self._sum(self.evaluator(value), dim)
            case MatMul(left, right, dim, dims):
                over = registers.sorted((*dims, dim))
                return self._sum(self._mapped(operator.mul, multiply, over, (left, right)), dim)
            case Dot():
                return self._dot(tile)
            case Normalize(function, value, dims):
                return self._by_program(dims, lambda lanes: self._normalized(function, lanes), value)
            case Rotated(value, angle, _, _, half, dims):
                by = (*(dim for dim in dims if dim != tile.channel), tile.pair)
                pairs = Pairs(self.sizes, tile.channel, tile.pair, half)
                return self._by_program(
                    dims, partial(pairs.turned, self._applied), Spread(value, dims), Spread(angle, by)
                )
            case OfAngles(gradient, turned, _, _, half, pair, dims):
                over = (*(dim for dim in dims if dim != pair), turned.dims[-1])
                pairs = Pairs(self.sizes, turned.dims[-1], pair, half)
                return self._by_program(dims, pairs.twisted, Spread(gradient, over), Spread(turned, over))
            case Paired(left, right, dims):
                return self._by_program(dims, partial(paired, self.sizes), *of_last(dims[:-1], left, right))
            case OfPairs(gradient, other, second, dims):
                sides = of_last(dims[:-1], gradient, other)
                return self._by_program(dims, partial(side_of_pairs, self.sizes, second), *sides)
            case Cumulative(value, axis, reverse, dims):
                self._has_to_lie(value, dims)
                return self._by_program(dims, lambda lanes: self._cumulative(lanes, axis, reverse), value)
            case Scan(_, _, _, first, _, _, dims):
                parts = operands(tile)
                for each in parts[:-1]:
                    self._has_to_lie(each, dims)
                self._has_to_lie(first, dims[1:])
                return self._by_program(dims, partial(self._scan, tile), *parts)
            case Shifted(value, first, axis, reverse, dims):
                self._has_to_lie(value, dims)
                self._has_to_lie(first, dims[1:])

                def shifted(lanes: Lanes, start: Lanes) -> Data:
                    rows = registers.rows(lanes, axis)
                    return _flat([*rows[1:], start.data] if reverse else [start.data, *rows[:-1]])

                return self._by_program(dims, shifted, value, first)
            case Edge(value, axis, reverse, dims):
                self._has_to_lie(value, (axis, *dims))
                return self._by_program(dims, lambda lanes: registers.rows(lanes, axis)[0 if reverse else -1], value)
            case Call(_, _, dims):
                return self._call(tile, dims)
        raise InternalError(f"no exact value of {tile!r}")

    def _by_program(self, dims: Dims, function: Callable[..., Data], *operands: Tile) -> Evaluator:
        """What a function makes of what each program has."""
        inner = tuple(map(self.evaluator, operands))

        def evaluate() -> Data:
            given = [self.registers.each(Lanes(each.dims, each.data())) for each in inner]
            return _flat(itertools.starmap(function, zip(*given, strict=True)))

        return Evaluator(dims, evaluate)

    def _has_to_lie(self, tile: Tile, dims: Dims) -> None:
        found = self.evaluator(tile).dims
        if found != dims:
            raise Illegal(f"{tile} is over {found}, where it has to be over {dims}")

    def _coordinate(self, of: str) -> int:
        at = self.registers.at
        if of == "block":
            return at["block"]
        first, end = self.sizes.first_chunks[at["sequence"] :][:2]
        return at["counted_chunk"] - first if of == "chunk of sequence" else end - first

    def _lane(self, axis: str) -> Evaluator:
        """The place of each lane: of a row in its chunk, of an index in its dim."""
        lanes = range(self.sizes.blocks[axis])
        if axis not in self.sizes.dims:
            places = list(map(mpq, lanes)) * self.registers.programs
            return Evaluator((axis,), lambda: places, fixed=True)

        def evaluate() -> Data:
            first = self.registers.first(axis)
            return [mpq(first + lane) for lane in lanes] * self.registers.programs

        return Evaluator((axis,), evaluate)

    def _in_sequence(self, place: str, ago: int) -> Data:
        whole, first = self.registers.sequence, self.registers.tokens.start - ago
        places = {"token": whole, "start": (whole.start,), "end": (whole.stop,)}[place]
        return [lane in places for lane in range(first, first + self.sizes.blocks[TOKEN])] * self.registers.programs

    def _in_first_block(self, inner: Evaluator) -> Evaluator:
        def evaluate() -> Data:
            data = inner.data()
            return data if self.registers.at["block"] == 0 else [ZERO] * len(data)

        return Evaluator(inner.dims, evaluate)

    def _masked(self, inner: Callable[[], Data], dim: str, fill: float, dims: Dims) -> Evaluator:
        outside = MINUS_INFINITY if fill == -math.inf else number(fill)

        def evaluate() -> Data:
            inside = self.inside(dims, (dim,))
            return [x if within else outside for x, within in zip(inner(), inside, strict=True)]

        return Evaluator(dims, evaluate)

    def _sum(self, inner: Evaluator, dim: str) -> Evaluator:
        if dim not in inner.dims:
            raise Illegal(f"a sum over {dim} of a tile over {inner.dims}")
        place = inner.dims.index(dim)
        step = self.registers.lanes(inner.dims[place + 1 :])
        length = step * self.sizes.blocks[dim]

        def evaluate() -> Data:
            data = inner.data()
            starts = range(0, len(data), length)
            return [_total(data[at : start + length : step]) for start in starts for at in range(start, start + step)]

        return Evaluator((*inner.dims[:place], *inner.dims[place + 1 :]), evaluate)

    def _dot(self, dot: Dot) -> Evaluator:
        left, right = self.evaluator(dot.left), self.evaluator(dot.right)
        ((row,), (column,)) = ([d for d in each.dims if d != dot.dim] for each in (left, right))
        if dot.dims != (row, column):
            raise Illegal(f"a product over {(row, column)} is taken for one over {dot.dims}")

        def product(one: Lanes, other: Lanes) -> Data:
            columns = self.registers.lines(other, dot.dim)
            return [_inner(x, y) for x in self.registers.lines(one, dot.dim) for y in columns]

        found = self._by_program(dot.dims, product, dot.left, dot.right)
        return (
            found if dot.onto is None else self._joined(operator.add, add, dot.dims, (self.evaluator(dot.onto), found))
        )

    def _cumulative(self, lanes: Lanes, axis: str, reverse: bool) -> Data:
        rows = self.registers.rows(lanes, axis)
        sums = list(itertools.accumulate(reversed(rows) if reverse else rows, lambda x, y: list(map(add, x, y))))
        return _flat(reversed(sums) if reverse else sums)

    def _scan(self, scan: Scan, *parts: Lanes) -> Data:
        """Row after row: the operation is associative. The last of `parts` is the row before the first."""
        *elements, first = parts
        by_row = list(zip(*(self.registers.rows(each, scan.axis) for each in elements), strict=True))
        row, rows = first.data, []
        for element in reversed(by_row) if scan.reverse else by_row:
            row = [self._combined(scan.combine, x, each) for x, *each in zip(row, *element, strict=True)]
            rows.append(row)
        return _flat(reversed(rows) if scan.reverse else rows)

    def _combined(self, combine: str, x: Element, element: Sequence[Element]) -> Element:
        match combine, element:
            case "affine", (factor, term):
                return add(multiply(factor, x), term)
            case "logaddexp" | "maximum", (factor, term):
                return self._applied(combine, (add(x, factor), term))
            case "phase", (term,):
                return self._applied("fraction", (add(x, term),))
        raise InternalError(f"no {combine} scan has elements of {len(element)}")

    def _normalized(self, function: str, lanes: Lanes) -> Data:
        """A row map along the last dim."""
        width = self.sizes.blocks[lanes.dims[-1]]
        rows = (lanes.data[at : at + width] for at in range(0, len(lanes.data), width))
        return _flat(self._normalized_row(function, row) for row in rows)

    def _normalized_row(self, function: str, row: Data) -> Data:
        """What lies outside of a `softmax` has no part in it."""
        if any(isinstance(x, Poison) for x in row):
            return [POISON for _ in row]
        if function == "softmax":
            weights = [self._applied("exp", (x,)) for x in row]
            whole = reduce(add, weights)
            return [divide(weight, whole) for weight in weights]
        squares = reduce(add, [multiply(x, x) for x in row], number(L2NORM_EPSILON))
        factor = self._applied("rsqrt", (squares,))
        return [multiply(x, factor) for x in row]

    def _call(self, call: Call, dims: Dims) -> Evaluator:
        function = self.called(call)

        def evaluate() -> Data:
            (found,) = function()
            if found.dims != dims:
                raise Illegal(f"{call.function} gives a tile over {found.dims}, not over {dims}")
            return found.data

        return Evaluator(dims, evaluate)


def _once(evaluate: Callable[[], Data]) -> Callable[[], Data]:
    """What is always the same, evaluated when it is first asked for."""
    known: list[Data] = []

    def found() -> Data:
        if not known:
            known.append(evaluate())
        return known[0]

    return found


def _flat(parts: Iterable[Data]) -> Data:
    return list(itertools.chain.from_iterable(parts))


_RATIONAL: Mapping[str, Operation] = {"+": operator.add, "-": operator.sub}
"""What lanes without infinities and poison are joined by."""


def _total(x: Data) -> Element:
    try:
        return sum(x, ZERO)
    except TypeError:
        return reduce(add, x, ZERO)


def _inner(x: Data, y: Data) -> Element:
    try:
        return sum(map(operator.mul, x, y), ZERO)
    except TypeError:
        return reduce(add, map(multiply, x, y), ZERO)
