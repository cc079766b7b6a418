"""What the planners of chunk kernels have in common: from the normal form's expressions to tiles over the rows of a
chunk, and from tiles to what a kernel has to load and evaluate for them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

from flagen.algebra.normal_form import DeltaRow, NormalForm
from flagen.diagnostics import NOWHERE, Span
from flagen.plan.lowering import Lowering, NoTile, TooManyDims
from flagen.plan.padding import PaddingRules
from flagen.plan.rows import ROW, TOKEN, Operand, RowAxis, TooWide, cleared, finite, values_in
from flagen.plan.schedule import Load, Set
from flagen.plan.split import crossed_here
from flagen.plan.tiles import Along, Head, Negative, Paired, Product, Rotated, Size, Tile, Value, tiles_in
from flagen.spec.model import Binary, Derived, Dims, Expr, Input, Interval, Name, Negate, Param, Spec, walk
from flagen.spec.ranges import interval_of


@dataclass(frozen=True)
class RowLoad:
    """Load an input for every row along `axis`."""

    source: Input
    axis: str


@dataclass(frozen=True)
class RowSet:
    """Evaluate a `let`, `decay` or `gate` name for every row along `axis`."""

    target: str
    axis: str
    value: Tile


@dataclass(frozen=True)
class Part:
    """What one kernel reads and evaluates before its matrix products: once, and for every chunk; `numbers` are the
    scalar params that it names, `sizes` the dims and counts."""

    once: tuple[Load | Set, ...]
    rows: tuple[RowLoad | RowSet, ...]
    reads_head: bool
    numbers: frozenset[str]
    sizes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Delta:
    """Rows u = z + S^T y, written along w."""

    w: Operand
    y: Operand
    z: Tile | None


class NoKernel(Exception):
    """What keeps a chunk form out of the kernels."""

    def __init__(self, reason: str, span: Span) -> None:
        super().__init__(reason)
        self.reason = reason
        self.span = span


class RowPlanner:
    """Lowers the expressions of `nf` to tiles; `row_axis` is the axis of the rows that write.

    `rows_first`: for kernels whose tiles have a chunk's rows as their first axis and hold a block of the keys. The
    scale of a row is then no sum over its channels, such as a norm: no block has all of them.
    """

    def __init__(self, nf: NormalForm, row_axis: str, *, rows_first: bool = False) -> None:
        self.nf, self.spec, self.row_axis, self.rows_first = nf, nf.spec, row_axis, rows_first
        rows, keys = (TOKEN, ROW), (*others_of(nf), *nf.spec.pairs.get(nf.key, ()), nf.key)
        self.order = (*rows, nf.value, *keys) if rows_first else (nf.value, *rows, *keys)
        self.fixed = _fixed_names(self.spec)
        self.lower = Lowering((nf.value, *keys))
        self.rules = PaddingRules(self.spec)
        self.derived: dict[str, Tile] = {}
        self.masks = PaddingRules(self.spec)
        for decl in self.spec.derived:
            self._derive(decl)

    def _derive(self, decl: Derived) -> None:
        """Note what a derived name stands for, and what it holds beyond the ends of its axes."""
        tile = self._tile(decl.value)
        self.derived[decl.name] = tile
        self.masks.assign(decl.name, tile)
        if decl.name in self.fixed:
            self.rules.assign(decl.name, tile)
            return
        for axis in dict.fromkeys((TOKEN, self.row_axis) if decl.per == "token" else (ROW,)):
            self.rules.assign(decl.name, self._lifted(decl.value, axis))

    def refuse(self, reason: str, span: Span) -> NoReturn:
        raise NoKernel(reason, span)

    def place(self, role: str) -> Span:
        """Where the spec has what stands in this role of a token's first row; the output otherwise."""
        (step, *_) = self.nf.steps
        rows: dict[str, Expr | None] = {"q": self.nf.reads[0].q}
        rows |= {name: expr for row in step.deltas[:1] for name, expr in (("w", row.w), ("y", row.y), ("z", row.z))}
        rows |= {name: expr for row in step.writes[:1] for name, expr in (("k", row.k), ("v", row.v))}
        found = rows.get(role)
        return self.spec.output[-1].span if found is None or found.span == NOWHERE else found.span

    def _contracts(self) -> bool:
        """Whether what scales an erasure's read lies within [-1, 1]; without a declared range it may be anything."""
        ranges = self._ranges()
        bounds = [
            interval_of(factor, ranges)
            for step in self.nf.steps
            for row in step.deltas
            for factor in scalar_factors(row.y)
        ]
        return bool(bounds) and math.prod(max(-bound.low, bound.high) for bound in bounds) <= 1

    def _ranges(self) -> dict[str, Interval]:
        spec = self.spec
        declared: tuple[Input | Param | Derived, ...] = (*spec.inputs, *spec.params, *spec.derived)
        return {decl.name: decl.range for decl in declared}

    # ------------------------------------------------------------------------------------------------------------ rows

    def _delta(self, row: DeltaRow) -> Delta:
        z = None if row.z is None else self._cleared(self._lifted(row.z, self.row_axis), self.row_axis)
        return Delta(self._operand(row.w, self.row_axis), self._operand(row.y, self.row_axis), z)

    def _output(self) -> Tile:
        """The output of a token, in terms of what it reads from the state."""
        output = self._lifted(self.nf.output, TOKEN)
        if TOKEN not in output.dims:
            self.refuse("no token changes the output", self.spec.output[-1].span)
        return output

    # ----------------------------------------------------------------------------------------------------------- tiles

    def _operand(self, expr: Expr, axis: str) -> Operand:
        if len(expr.dims) != 1:
            self.refuse("a row is the same for every channel", expr.span)
        tile, (dim,) = self._tile(expr), expr.dims
        if self.nf.column is None:  # Else a vector state is written along the same key, by its name.
            tile = self._with_numbers_apart(tile)
        try:
            operand = self.axis(axis).operand(tile)
        except TooWide as wide:
            self.refuse(f"needs {wide}", expr.span)
        lanes = (axis, dim) if dim == self.nf.key else (axis,)
        scale = None if operand.scale is None else finite(self.rules, operand.scale, axis)
        vector = operand.vector
        if isinstance(vector, Paired):  # Either side is multiplied alone, too.
            left, right = (self._cleared(side, axis, side.dims[-1]) for side in (vector.left, vector.right))
            vector = Paired(left, right, vector.dims)
        return Operand(self._cleared(vector, *lanes), scale)

    def _with_numbers_apart(self, tile: Tile) -> Tile:
        """`tile` with the products written out that a name stands for, where a number scales the vector in them."""
        match tile:
            case Negative(value):
                return replace(tile, value=self._with_numbers_apart(value))
            case Product(factors):
                return replace(tile, factors=tuple(map(self._with_numbers_apart, factors)))
            case Value(name, "derived"):
                definition = self._with_numbers_apart(self.derived[name])
                return definition if _has_a_number(definition) else tile
        return tile

    def _lifted(self, expr: Expr, axis: str) -> Tile:
        tile = self._tile(expr)
        try:
            return self.axis(axis)(tile)
        except TooWide as wide:
            self.refuse(f"needs {wide}", expr.span)

    def _tile(self, expr: Expr) -> Tile:
        tile = self.masks.mask(self._lowered(expr))
        for part in tiles_in(tile):
            if self.nf.value in crossed_here(part):
                what = "turns" if isinstance(part, Rotated) else "renames" if isinstance(part, Along) else "sums over"
                self.refuse(f"something {what} {self.nf.value}, of which a program owns a block", expr.span)
        return tile

    def _lowered(self, expr: Expr) -> Tile:
        try:
            return self.lower(expr)
        except TooManyDims as wide:
            self.refuse(f"needs an intermediate over [{', '.join(wide.dims)}]", wide.span)
        except NoTile as whole:
            self.refuse(whole.reason, whole.span)

    def _cleared(self, tile: Tile, *lanes: str) -> Tile:
        return cleared(self.rules, self.order, tile, *lanes)

    def axis(self, axis: str) -> RowAxis:
        return RowAxis(axis, self.order, self.fixed, splits_norms=not self.rows_first)

    # ----------------------------------------------------------------------------------------------------------- parts

    def part(self, tiles: Iterable[Tile | None], constant: Set | None) -> Part:
        """Everything that `tiles` need, directly or through derived names."""
        given = [tile for tile in tiles if tile is not None] + ([] if constant is None else [constant.value])
        needed = self._closure(given)
        params = [Load(param) for param in self.spec.params if param.is_tensor and (param.name, "") in needed]
        fixed = [
            Set(decl.name, self.derived[decl.name])
            for decl in self.spec.derived
            if decl.name in self.fixed and (decl.name, "") in needed
        ]
        if constant is not None:
            fixed.append(constant)
        loads = [
            RowLoad(decl, axis) for axis in (TOKEN, ROW) for decl in self.spec.inputs if (decl.name, axis) in needed
        ]
        sets = [
            RowSet(decl.name, axis, self.axis(axis)(self.derived[decl.name]))
            for axis in (TOKEN, ROW)
            for decl in self.spec.derived
            if (decl.name, axis) in needed
        ]
        every = (*given, *(action.value for action in fixed), *(action.value for action in sets))
        parts = [part for tile in every for part in tiles_in(tile)]
        reads_head = any(isinstance(part, Head) for part in parts)
        sizes = frozenset(part.name for part in parts if isinstance(part, Size))
        numbers = frozenset(param.name for param in self.spec.params if not param.is_tensor) & {x for x, _ in needed}
        return Part((*params, *fixed), (*loads, *sets), reads_head, numbers, sizes)

    def reads_heads(self, tile: Tile, names: Collection[str]) -> bool:
        """Whether `tile` reads the head's number or one of `names`, directly or through derived names."""
        read = {name for name, _ in self._closure([tile])}
        every = (tile, *(self.derived[name] for name in read if name in self.derived))
        return not read.isdisjoint(names) or any(isinstance(part, Head) for t in every for part in tiles_in(t))

    def _closure(self, tiles: Iterable[Tile]) -> set[tuple[str, str]]:
        """(name, axis) of all that `tiles` read, directly or through derived names; "" is the axis of what is fixed."""
        needed: set[tuple[str, str]] = set()
        waiting = list(tiles)
        while waiting:
            for value in values_in(waiting.pop()):
                axis = next((axis for axis in (TOKEN, ROW) if axis in value.dims), "")
                if value.kind == "local" or (value.name, axis) in needed:
                    continue
                needed.add((value.name, axis))
                if value.kind == "derived":
                    definition = self.derived[value.name]
                    waiting.append(self.axis(axis)(definition) if axis else definition)
        return needed


def others_of(nf: NormalForm) -> Dims:
    """The dims that are none of the state's, nor of its pairs of keys: of what rows are made of."""
    known = {nf.key, nf.value, *nf.spec.pairs.get(nf.key, ())}
    return tuple(dim for dim in nf.spec.axes if dim not in known)


def _fixed_names(spec: Spec) -> frozenset[str]:
    """Params, and what is derived from them and `head` alone: the same for every token."""
    fixed = {param.name for param in spec.params}
    for decl in spec.derived:
        if all(node.name in fixed for node in walk(decl.value) if isinstance(node, Name) and node.kind in _VARYING):
            fixed.add(decl.name)
    return frozenset(fixed)


_VARYING = ("input", "param", "derived")


def _has_a_number(tile: Tile) -> bool:
    """Whether a factor of a product has no dims."""
    match tile:
        case Negative(value):
            return _has_a_number(value)
        case Product(factors):
            return any(not factor.dims or _has_a_number(factor) for factor in factors)
    return False


def scalar_factors(expr: Expr) -> Iterator[Expr]:
    """The factors of a product that have no dims."""
    match expr:
        case Negate(value):
            yield from scalar_factors(value)
        case Binary("*", left, right):
            yield from scalar_factors(left)
            yield from scalar_factors(right)
        case _ if not expr.dims:
            yield expr


def without(part: Part, *others: Part) -> Part:
    """What of `part` is in none of `others`."""
    once = tuple(action for action in part.once if all(action not in other.once for other in others))
    rows = tuple(row for row in part.rows if all(row not in other.rows for other in others))
    return replace(part, once=once, rows=rows)
