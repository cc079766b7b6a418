"""Registers: matrix states of the same dims that use one another whole, mixed by numbers.

    M = mu * M - eta * outer(k, v - S_prev.T @ p)
    S = alpha * S - beta * M

Everything that a token does to them is written out in the states before it. What each state becomes is then a sum of

    a number times a state                      an entry of the mix, [[alpha, -beta mu], [0, mu]] here
    a vector times what a state is read by      a delta row w (S.T y).T
    a product of two vectors                    a write row

Rows along the same vector that several states get in fixed proportions are one row, and the proportions its numbers:
here w = k, u = eta v - S.T (eta p), of which (S, M) get (beta, -1).

A decay of each channel of a dim may stay beside the mix where all that is mixed has the same one, for then it commutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import sympy

from flagen.algebra.limits import Extent, extent
from flagen.algebra.logarithm import log_of
from flagen.algebra.monomials import (
    Element,
    Expansion,
    Monomial,
    OutsideNormalForm,
    components,
    product,
    scaled,
    total,
)
from flagen.algebra.normal_form import (
    Block,
    Decay,
    DeltaRow,
    MicroStep,
    NormalForm,
    Numbers,
    Position,
    Read,
    WriteRow,
)
from flagen.algebra.reads import ONE, Extraction, contracted_in, freed
from flagen.algebra.rewrite import map_children
from flagen.diagnostics import Span
from flagen.spec.model import (
    Assign,
    Binary,
    Expr,
    Interval,
    Name,
    Negate,
    Number,
    Repeat,
    Spec,
    StateRead,
)

ZERO = Number(Fraction(0))
BEFORE, AFTER = Position(0, 0), Position(1, 0)
"""Where the output may read registers: before the update of a token, and behind it."""

Vector = tuple[sympy.Expr, ...]
"""A number for each register, as a polynomial in the symbols of the expansion."""


def are_registers(spec: Spec) -> bool:
    """Whether the states of `spec` are such that they may be registers: several matrices of the same dims."""
    shapes = {state.dims for state in spec.states}
    return len(spec.states) > 1 and len(shapes) == 1 and len(spec.states[0].dims) == 2


def registers_form(spec: Spec) -> NormalForm:
    """The normal form of `spec`, whose states are registers.

    Raises:
        OutsideNormalForm: a state is mixed with others by more than numbers, or is not affine in them; says where.
    """
    if not are_registers(spec):
        raise OutsideNormalForm("registers are matrices of the same dims", spec.states[-1].span)
    for state in spec.states:
        if math.isinf(state.init):
            raise OutsideNormalForm("a matrix state that starts at infinity has no chunk form", state.span)
    return _Finder(spec).form()


@dataclass(frozen=True)
class _Row:
    """A row before orientation: along `w`, a vector over `acts_on`, what a state is read by y (`read`), or v."""

    acts_on: str
    w: Expr
    right: Expr
    register: int | None
    """Which register is read; None of a write."""
    span: Span = field(compare=False)


@dataclass
class _Rows:
    """Rows along one vector that registers get in the same proportions, `into`, each with a factor."""

    into: Vector
    rows: list[tuple[sympy.Expr, _Row]] = field(default_factory=list)


class _Finder:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.dims = spec.states[0].dims
        self.places = {state.name: place for place, state in enumerate(spec.states)}
        self.expansion = Expansion()
        self.derived = {decl.name: decl for decl in spec.derived}
        self.ranges: dict[str, Interval] = {decl.name: decl.range for decl in spec.inputs}
        self.ranges |= {decl.name: decl.range for decl in spec.params}
        self.ranges |= {decl.name: decl.range for decl in spec.derived}
        self.extents: dict[str, Extent] = {}
        self.locals: dict[str, Expr] = {}
        self.now: dict[str, Expr] = {s.name: StateRead(s.name, True, s.dims, s.span) for s in spec.states}
        """What each state is by now, of the states before the token."""

    def form(self) -> NormalForm:
        for statement in self.spec.update:
            if isinstance(statement, Repeat):
                raise OutsideNormalForm("states that numbers mix have no chunk form in micro-steps", statement.span)
            self._take(statement, self._written_out)
        mix, decay, rows = self._sorted()
        output = self._output()
        reads = _Reads(self.expansion, frozenset(self.ranges), self)
        o = reads.extract(output)
        key = self._key_dim(decay, rows, reads)
        deltas, writes = self._rows(rows, key)
        step = MicroStep(None if decay is None else self._decay(decay), deltas, writes, mix)
        return NormalForm(
            spec=self.spec,
            key=key,
            value=next(dim for dim in self.dims if dim != key),
            transposed=key != self.dims[0],
            blocks=(Block((step,), repeated=False),),
            reads=tuple(reads.found_along(key)),
            output=o,
            registers=self.spec.states,
        )

    # ------------------------------------------------------------------------------------------------------- statements

    def _take(self, statement: Assign, settled: Callable[[Expr], Expr]) -> None:
        size = extent(statement.value, self.extents)
        if size.problem:
            raise OutsideNormalForm(size.problem, statement.span)
        self.extents[statement.target] = size
        value = settled(statement.value)
        if problem := extent(value, {}).problem:
            raise OutsideNormalForm(problem, statement.span)
        (self.now if statement.to_state else self.locals)[statement.target] = value

    def _written_out(self, expr: Expr) -> Expr:
        """`expr` of the states before the token."""
        match expr:
            case StateRead(name, previous):
                return expr if previous else self.now[name]
            case Name(name, "local"):
                return self.locals[name]
        return map_children(expr, self._written_out)

    def _output(self) -> Expr:
        """The output, of the states before the token and of those behind the update."""

        def settled(expr: Expr) -> Expr:
            if isinstance(expr, Name) and expr.kind == "local":
                return self.locals[expr.name]
            return map_children(expr, settled)

        for statement in self.spec.output:
            self._take(statement, settled)
        return self.locals["o"]

    # ------------------------------------------------------------------------------------------------ what a token does

    def _sorted(self) -> tuple[tuple[Numbers, ...], Expr | None, list[_Rows]]:
        """The mix, the decay beside it, and the rows."""
        count = len(self.places)
        mix = [[sympy.Integer(0)] * count for _ in range(count)]
        decays: dict[Expr, Span] = {}
        written: dict[_Row, list[sympy.Expr]] = {}
        for name, place in self.places.items():
            for monomial in self._monomials(self.now[name]):
                if monomial.states and monomial.states[0].index == self.dims:
                    number, vector = self._mixed(monomial)
                    decays.setdefault(vector, monomial.span)
                    mix[place][self._register(monomial.states[0])] += number
                    continue
                number, row = self._row(monomial)
                written.setdefault(row, [sympy.Integer(0)] * count)[place] += number
        if len(decays) > 1:
            raise OutsideNormalForm(
                "states that are mixed decay alike; this one has a decay of its own", [*decays.values()][1]
            )
        decay = next((vector for vector in decays if vector != ONE), None)
        grouped: dict[tuple[str, Expr], dict[Vector, _Rows]] = {}
        for row, numbers in written.items():
            if any(sympy.expand(number) != 0 for number in numbers):
                factor, into = _proportions(numbers)
                grouped.setdefault((row.acts_on, row.w), {}).setdefault(into, _Rows(into)).rows.append((factor, row))
        return (
            tuple(tuple(self.expansion.expression(entry) for entry in row) for row in mix),
            decay,
            [rows for group in grouped.values() for rows in group.values()],
        )

    def _monomials(self, value: Expr) -> tuple[Monomial, ...]:
        rows, columns = self.dims
        return self.expansion.monomials(value, {rows: rows, columns: columns})

    def _register(self, read: Element) -> int:
        assert isinstance(read.tensor, StateRead)
        return self.places[read.tensor.name]

    def _mixed(self, monomial: Monomial) -> tuple[sympy.Expr, Expr]:
        """The number and the decay that a state is multiplied by."""
        over = {index for element in monomial.others() for index in element.index}
        if over == set(self.dims):
            raise OutsideNormalForm(
                "a decay that differs over both dims of the state is an elementwise scan", monomial.span
            )
        number, vectors = self._apart(monomial)
        return number, product(vectors) or ONE

    def _apart(self, monomial: Monomial) -> tuple[sympy.Expr, list[Element]]:
        """The number that a monomial's vectors, without the state, are multiplied by; and these."""
        number: sympy.Expr = sympy.Rational(monomial.coefficient.numerator, monomial.coefficient.denominator)
        vectors: list[Element] = []
        for indices, members in components(monomial.others()):
            if indices & set(self.dims) or any(set(e.index) & indices for e in monomial.states):
                vectors += members
            else:
                number *= self.expansion.number(members)
        return number, vectors

    def _row(self, monomial: Monomial) -> tuple[sympy.Expr, _Row]:
        number, vectors = self._apart(monomial)
        rows, columns = self.dims
        if not monomial.states:
            along: dict[str, Expr] = {rows: ONE, columns: ONE}
            for indices, members in components(vectors):
                if {rows, columns} <= indices:
                    raise OutsideNormalForm("this write is not a sum of outer products", monomial.span)
                dim = rows if rows in indices else columns
                along[dim] = product(members) or ONE
            return number, _Row(rows, along[rows], along[columns], None, monomial.span)
        (read,) = monomial.states
        acts_on, kept, contracted = (
            (rows, columns, read.index[0]) if read.index[1] == columns else (columns, rows, read.index[1])
        )
        if kept not in read.index:
            raise OutsideNormalForm("the state is read down to a scalar here and written back", monomial.span)
        w: Expr = ONE
        y: list[Element] = []
        for indices, members in components(vectors):
            if acts_on in indices and contracted in indices:
                raise OutsideNormalForm(
                    "the state is multiplied by a full matrix, which is not low rank", monomial.span
                )
            if kept in indices:
                raise OutsideNormalForm(
                    f"what is read from the state is scaled per {kept} before it is written", monomial.span
                )
            if acts_on in indices:
                w = product(members) or ONE
            else:
                y += members
        right = product(freed(y, contracted)) or ONE
        return number, _Row(acts_on, w, right, self._register(read), monomial.span)

    # ------------------------------------------------------------------------------------------------------ orientation

    def _key_dim(self, decay: Expr | None, rows: Sequence[_Rows], reads: _Reads) -> str:
        acting: dict[str, Span] = {} if decay is None else dict.fromkeys(decay.dims, decay.span)
        for group in rows:
            acting |= {row.acts_on: row.span for _, row in group.rows if row.register is not None}
        if len(acting) > 1:
            reason = "decay and erase act on {} and on {}; the chunk form has them on one side".format(*self.dims)
            raise OutsideNormalForm(reason, acting[self.dims[1]])
        return next(iter(acting), next(iter(reads.sides()), self.dims[0]))

    def _decay(self, factor: Expr) -> Decay:
        return Decay(factor, log_of(factor, self.derived, self.ranges), per_key=True)

    def _rows(self, groups: Sequence[_Rows], key: str) -> tuple[tuple[DeltaRow, ...], tuple[WriteRow, ...]]:
        """The rows along the key dim. Rows that read several vectors of several registers are a row for each vector,
        the first of which brings what is written."""
        deltas: list[DeltaRow] = []
        writes: list[WriteRow] = []
        oriented: dict[tuple[Expr, Vector], list[tuple[sympy.Expr, _Row]]] = {}
        for group in groups:
            for factor, row in group.rows:
                along = row if row.acts_on == key else replace(row, acts_on=key, w=row.right, right=row.w)
                oriented.setdefault((along.w, group.into), []).append((factor, along))
        for (w, into), members in oriented.items():
            numbers = tuple(self.expansion.expression(number) for number in into)
            z = total(self.times(factor, row.right) for factor, row in members if row.register is None)
            read = [(factor, row) for factor, row in members if row.register is not None]
            if not read:
                writes.append(WriteRow(w, z or ONE, numbers))
            for y, of in self._reads_of(read):
                deltas.append(DeltaRow(w, y, z, False, of, numbers))
                z = None
        return tuple(deltas), tuple(writes)

    def _reads_of(self, rows: Sequence[tuple[sympy.Expr, _Row]]) -> Iterator[tuple[Expr, Numbers]]:
        """What reads the registers, and each by which numbers."""
        registers = {row.register for _, row in rows}
        if len(registers) == 1:
            (register,) = registers
            y = total(self.times(factor, row.right) for factor, row in rows)
            yield y or ONE, tuple(ONE if place == register else ZERO for place in self.places.values())
            return
        vectors: dict[Expr, list[sympy.Expr]] = {}
        for factor, row in rows:
            assert row.register is not None
            vectors.setdefault(row.right, [sympy.Integer(0)] * len(self.places))[row.register] += factor
        for y, numbers in vectors.items():
            factor, of = _proportions(numbers)
            yield self.times(factor, y), tuple(map(self.expansion.expression, of))

    def times(self, factor: sympy.Expr, vector: Expr) -> Expr:
        if factor == 1:
            return vector
        if factor == -1:
            return Negate(vector, vector.span)
        number = self.expansion.expression(factor)
        return number if vector == ONE else Binary("*", number, vector, vector.span)


@dataclass
class _Reads(Extraction[tuple[str, bool, Expr, Vector]]):
    """The reads of registers: (contracted dim, before the token or after it, q, proportions) → name."""

    finder: _Finder

    def sides(self) -> Iterator[str]:
        return (side for side, *_ in self.found)

    def found_along(self, key: str) -> Iterator[Read]:
        for (side, previous, q, of), name in self.found.items():
            numbers = tuple(map(self.expansion.expression, of))
            yield Read(name, q, "left" if side == key else "right", BEFORE if previous else AFTER, numbers)

    def _may_be_read(self, expr: Expr) -> bool:
        """A sum of reads, too: several registers that one vector reads are one read."""
        sums = isinstance(expr, Negate) or (isinstance(expr, Binary) and expr.op in ("+", "-"))
        return len(expr.dims) < 2 and (sums or super()._may_be_read(expr))

    def _expanded(self, expr: Expr) -> Expr:
        """`expr` as a sum of reads, one for all registers that the same vector reads, and of what no state is in."""
        finder = self.finder
        terms: list[Expr] = []
        sums: dict[tuple[str, bool, Expr, Expr], list[sympy.Expr]] = {}
        for monomial in self.expansion.monomials(expr, {dim: dim for dim in expr.dims}):
            if not monomial.states:
                terms.append(scaled(monomial.coefficient, product(monomial.elements)))
                continue
            side, q, number, beside = self._read(monomial, expr)
            (read,) = monomial.states
            assert isinstance(read.tensor, StateRead)
            key = (side, read.tensor.previous, q, beside)
            numbers = sums.setdefault(key, [sympy.Integer(0)] * len(finder.places))
            numbers[finder.places[read.tensor.name]] += number
        read_terms = []
        for (side, previous, q, beside), numbers in sums.items():
            factor, of = _proportions(numbers)
            name = self.found.setdefault((side, previous, q, of), self._free_name())
            kept = next(dim for dim in finder.dims if dim != side)
            whole: Expr = Name(name, "local", (kept,), expr.span)
            if beside != ONE:
                whole = Binary("*", beside, whole, expr.span)
            read_terms.append(finder.times(factor, whole))
        return total([*read_terms, *terms]) or ZERO

    def _read(self, monomial: Monomial, expr: Expr) -> tuple[str, Expr, sympy.Expr, Expr]:
        """Which dim is summed over, by what vector, times what number, beside what vector over the other dim."""
        (read,) = monomial.states
        rows, columns = self.finder.dims
        contracted, side = contracted_in(read, self.finder.dims, expr.span)
        inner: list[Element] = []
        outer: list[Element] = []
        number: sympy.Expr = sympy.Rational(monomial.coefficient.numerator, monomial.coefficient.denominator)
        for indices, members in components(monomial.others()):
            if contracted in indices and indices & {rows, columns}:
                raise OutsideNormalForm("the output reads the state through a full matrix", expr.span)
            if contracted in indices:
                inner += members
            elif indices & {rows, columns}:
                outer += members
            else:
                number *= self.expansion.number(members)
        q = product(freed(inner, contracted)) or ONE
        return side, q, number, product(outer) or ONE


def _proportions(numbers: Iterable[sympy.Expr]) -> tuple[sympy.Expr, Vector]:
    """A factor and numbers without a common one: what all have in common, of the sign of the first."""
    found = [sympy.expand(number) for number in numbers]
    present = [number for number in found if number != 0]
    factor = sympy.gcd_list(present)
    first = sympy.Add.make_args(sympy.expand(sympy.cancel(present[0] / factor)))[0]
    if first.could_extract_minus_sign():
        factor = -factor
    return sympy.expand(factor), tuple(sympy.expand(sympy.cancel(number / factor)) for number in found)
