"""A mini-batch in pieces: what all tokens of a piece are at once, where no piece has tokens of two mini-batches.

States that stand still are opened when a piece begins, by what its first token makes of them, and are the same for all
of its tokens. Any other matrix is, after token t, a sum of matrices before the piece and of what its tokens write:

    X_t = sum_b c_b,t B + sum_j C_t,j w_j u_j'        B: a matrix before the piece, or one that has been opened
    X_t' q_t = sum_b c_b,t B' q_t + sum_j C_t,j (w_j . q_t) u_j

The numbers c and C follow the statements that change X, with a number in the place of each matrix: they are elementwise
scans, which begin anew with every piece. So are the vectors among the states, which go on. What reads matrices is known
when the piece begins, or from rows before it; it may go through any function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from flagen.algebra.find_scan import Finder, OutsideScan, needs, ordered
from flagen.algebra.flow import Flow
from flagen.algebra.mini_batches import MiniBatchForm
from flagen.algebra.rewrite import map_children
from flagen.algebra.scan import ONE, ZERO, Scan, ScanForm
from flagen.algebra.stage_results import declared_in, fresh
from flagen.diagnostics import Span
from flagen.spec.model import (
    Assign,
    Binary,
    Contract,
    Dims,
    Expr,
    First,
    Name,
    Negate,
    Outer,
    Spec,
    State,
    StateRead,
    Transpose,
    walk,
)
from flagen.spec.printer import to_source

WRITTEN = "written row"
"""The tokens of a piece as those that have written; no dim of a spec has this name."""
UNIT = "unit"
"""1 where a token is the one that writes, else 0."""


class OutsidePieces(Exception):
    """A piece of a mini-batch is not known all at once; says why, and which part of the spec is the reason."""

    def __init__(self, reason: str, span: Span) -> None:
        super().__init__(reason)
        self.reason = reason
        self.span = span


@dataclass(frozen=True)
class Begun:
    """The name `target` of whether a piece begins a mini-batch: what `first` is for its first token."""

    target: str
    first: str
    value: Expr


@dataclass(frozen=True)
class Opened:
    """A state that stands still in a piece: `target` is what its first token makes of it."""

    target: str
    state: State
    value: Expr


@dataclass(frozen=True)
class Row:
    """Every token writes `outer(left, right)`, of two locals, which are over `dims`."""

    name: str
    left: str
    right: str
    dims: Dims


Weights = tuple[tuple[str, str | None], ...]
"""Matrices by their states, or rows by name, each with the name of its numbers; without one they are 1."""


@dataclass(frozen=True)
class Read:
    """What tokens read of matrices by the local `vector`, which is summed over `dim`: over `kept`."""

    target: str
    vector: str
    dim: str
    kept: str
    bases: Weights
    rows: Weights
    span: Span


@dataclass(frozen=True)
class Advanced:
    """What a piece makes of a matrix: each of `bases` and of `rows` times its numbers after the last token."""

    state: State
    bases: Weights
    rows: Weights


Part = Assign | Scan | Read | Begun | Opened


@dataclass(frozen=True)
class PieceForm(ScanForm):
    """The form of a piece: of `spec`, whose states are numbers of matrices and then the vectors of `whole`.

    `parts` has scans, locals and reads, each after what it reads; `anew` the states that begin anew with each piece.
    """

    whole: Spec
    first: First
    parts: tuple[Part, ...]
    rows: tuple[Row, ...]
    advanced: tuple[Advanced, ...]
    anew: frozenset[str]
    unit: str

    @property
    def opened(self) -> Mapping[str, Opened]:
        """The states that stand still."""
        return {part.state.name: part for part in self.parts if isinstance(part, Opened)}

    def dump(self) -> str:
        """The form as text, a line a statement."""
        return "\n".join(
            (f"{self.whole.name}, all tokens of a piece at once", *map(_line, (*self.parts, *self.advanced)))
        )


def piece_form(form: MiniBatchForm) -> PieceForm:
    """The pieces of the mini-batches of `form`.

    Raises:
        OutsidePieces: a token needs what others of its mini-batch have written, or more than numbers mix matrices.
    """
    return _Pieces(form).form()


class _Pieces:
    def __init__(self, form: MiniBatchForm) -> None:
        self.batches, self.spec, self.flow = form, form.spec, Flow(form.spec)
        self.taken = declared_in(self.spec) | {assign.target for assign in self.flow.statements.values()}
        self.states = {state.name: state for state in self.spec.states}
        self.firsts = {first.name for first in self.spec.firsts}
        self.still = {name: self._fresh(f"{name}_open") for name in form.still}
        self.moving = tuple(s for s in self.spec.states if len(s.dims) == 2 and s.name not in self.still)
        self.unit = Name(self._fresh(UNIT), "local", (WRITTEN,))
        self.rows: dict[Outer, Row] = {}
        self.reads: list[Read] = []
        self.begun: dict[str, Begun] = {}
        self.opened: dict[str, Opened] = {}
        self.update: list[Assign] = []
        self.reached = self._reached()
        self.numbers = {
            (name, of): State(
                self._fresh(_called(name, of)), () if of in self.states else (WRITTEN,), float(name == of)
            )
            for name, found in self.reached.items()
            for of in found
        }

    def form(self) -> PieceForm:
        for place, assign in self.flow.statements.items():
            self._statement(assign, place[0])
        vectors = tuple(s for s in self.spec.states if len(s.dims) < 2 and s.name not in self.still)
        *update, output = self.update
        rows = replace(
            self.spec,
            name=f"{self.spec.name}_piece",
            states=(*self.numbers.values(), *vectors),
            update=tuple(update),
            output=(output,),
            layer=None,
            used={},
        )
        try:
            return self._ordered(_Rows(rows, self._given()))
        except OutsideScan as outside:
            raise OutsidePieces(outside.reason, outside.span) from None

    def _given(self) -> Iterator[str]:
        """What rows are made of beside inputs and scans."""
        yield from (self.unit.name, *self.still.values())
        yield from (read.target for read in self.reads)
        yield from (begun.target for begun in self.begun.values())

    def _ordered(self, finder: _Rows) -> PieceForm:
        scans, outputs = finder.taken()
        parts: dict[str, Part] = {begun.target: begun for begun in self.begun.values()}
        parts |= {opened.target: opened for opened in self.opened.values()}
        parts |= {**scans, **{read.target: read for read in self.reads}}
        wanted = finder.wanted(outputs)
        wanted |= {name for row in self.rows.values() for name in (row.left, row.right)} | {*parts} & {
            *self.still.values()
        }
        found = ordered(parts, wanted, self._needs, finder.refuse_cycle)
        return PieceForm(
            spec=finder.spec,
            update=tuple(part for part in found if isinstance(part, Assign | Scan)),
            outputs=outputs,
            results=(outputs[-1].target,),
            whole=self.spec,
            first=self.batches.first,
            parts=found,
            rows=tuple(self.rows.values()),
            advanced=tuple(self._advanced(state) for state in self.moving),
            anew=frozenset(state.name for state in self.numbers.values()),
            unit=self.unit.name,
        )

    def _needs(self, part: Part) -> set[str]:
        match part:
            case Read(_, vector, _, _, bases, rows):
                named = {name for _, name in (*bases, *rows) if name is not None}
                opened = {self.still[base] for base, _ in bases if base in self.still}
                written = {row.name: {row.left, row.right} for row in self.rows.values()}
                return {vector} | named | opened | {name for row, _ in rows for name in written[row]}
            case Begun(_, _, value) | Opened(_, _, value):
                return {node.name for node in walk(value) if isinstance(node, Name) and node.kind == "local"}
        return needs(part)

    def _advanced(self, state: State) -> Advanced:
        of = {other: self.numbers[state.name, other].name for other in self.reached[state.name]}
        bases = tuple((other, name) for other, name in of.items() if other in self.states)
        return Advanced(state, bases, tuple((other, name) for other, name in of.items() if other not in self.states))

    def _fresh(self, name: str) -> str:
        return fresh(name, self.taken)

    def _refuse(self, reason: str, span: Span) -> NoReturn:
        raise OutsidePieces(reason, span)

    # ------------------------------------------------------------------------------------------------ what there is

    def _reached(self) -> dict[str, tuple[str, ...]]:
        """The matrices before the piece, and the rows, that each matrix is a sum of."""
        direct: dict[str, list[str]] = {state.name: [state.name] for state in self.moving}
        for assign in self.flow.statements.values():
            if assign.to_state and assign.target in direct:
                direct[assign.target] += self._terms(assign.value)
        found = {name: dict.fromkeys(terms) for name, terms in direct.items()}
        for _ in found:
            for name, terms in found.items():
                for term in tuple(terms):
                    found[name] |= found.get(term, {})
        return {name: tuple(terms) for name, terms in found.items()}

    def _terms(self, expr: Expr) -> Iterator[str]:
        """The matrices and rows in one that is a sum of such."""
        match expr:
            case StateRead(name):
                yield name
            case Outer(left, right) if left.dims and right.dims:
                yield self._row(expr).name
            case Negate(value) | Transpose(value):
                yield from self._terms(value)
            case Binary("+" | "-", left, right):
                yield from (*self._terms(left), *self._terms(right))
            case Binary("*" | "/", left, right) | Outer(left, right):
                matrices = [side for side in (left, right) if len(side.dims) == 2]
                if len(matrices) != 1 or (left.dims and right.dims):
                    self._refuse(f"`{to_source(expr)}` multiplies a matrix by more than a number", expr.span)
                yield from self._terms(matrices[0])
            case _:
                self._refuse(f"`{to_source(expr)}` is no sum of matrices and of outer products", expr.span)

    def _row(self, outer: Outer) -> Row:
        if outer not in self.rows:
            left, right = (self._name_of(side, "written") for side in (outer.left, outer.right))
            dims = (*outer.left.dims, *outer.right.dims)
            self.rows[outer] = Row(self._fresh("row"), left, right, dims)
        return self.rows[outer]

    def _name_of(self, expr: Expr, wanted: str) -> str:
        """The name that `expr` is, or a new one for it."""
        return expr.name if isinstance(expr, Name) else self._fresh(wanted)

    # --------------------------------------------------------------------------------------------------- statements

    def _statement(self, assign: Assign, number: int) -> None:
        """Add what a statement is for the rows of a piece."""
        target = assign.target
        if not assign.to_state:
            self._local(target, self._of_rows(assign.value), assign.span)
        elif target in self.still:
            if target in self.opened:
                self._refuse(f"`{target}` is changed twice at the first token of a mini-batch", assign.span)
            value = self._before(assign.value, number)
            self.opened[target] = Opened(self.still[target], self.states[target], value)
        elif len(self.states[target].dims) < 2:
            self.update.append(replace(assign, value=self._of_rows(assign.value)))
        else:
            self._write_rows(assign.value)
            for of in self.reached[target]:
                value = self._number(assign.value, of)
                self.update.append(Assign(self.numbers[target, of].name, value, True, "", assign.span))

    def _local(self, name: str, value: Expr, span: Span) -> None:
        """Have a local, unless it is there."""
        if not any(assign.target == name for assign in self.update):
            self.update.append(Assign(name, value, False, f"{name} = {to_source(value)}", span))

    def _write_rows(self, expr: Expr) -> None:
        """Evaluate the rows in a matrix."""
        for node in walk(expr):
            if isinstance(node, Outer) and (row := self.rows.get(node)) is not None:
                for name, side in ((row.left, node.left), (row.right, node.right)):
                    if not isinstance(side, Name):
                        self._local(name, self._of_rows(side), side.span)

    def _before(self, expr: Expr, number: int) -> Expr:
        """What the first token of a piece evaluates, of states before it, its locals written out."""
        definition = self.flow.definition(expr, (number,))
        if definition is not None:
            value = self._before(definition.value, definition.place[0])
            return self._begins(expr, value) if isinstance(expr, Name) and expr.name in self.firsts else value
        if isinstance(expr, StateRead):
            if expr.previous or expr.name not in self._changed_before(number):
                return replace(expr, previous=True)
            if expr.name not in self.still:
                self._refuse(f"a state that stands still takes what its token has made of `{expr.name}`", expr.span)
            return Name(self.still[expr.name], "local", expr.dims, expr.span)
        return map_children(expr, lambda part: self._before(part, number))

    def _begins(self, first: Name, value: Expr) -> Name:
        """Whether the first token of a piece begins a mini-batch, which has one name."""
        if first.name not in self.begun:
            self.begun[first.name] = Begun(self._fresh(f"{first.name}_begun"), first.name, value)
        return Name(self.begun[first.name].target, "local", (), first.span)

    def _changed_before(self, number: int) -> set[str]:
        return {a.target for place, a in self.flow.statements.items() if a.to_state and place[0] < number}

    def _of_rows(self, expr: Expr) -> Expr:
        """A vector or number of a token, with a name in the place of each read of a matrix."""
        match expr:
            case StateRead(name) if len(expr.dims) == 2:
                self._refuse(f"`{name}` is used as a whole, and not read by a vector", expr.span)
            case StateRead(name, previous) if name in self.still:
                if previous or name not in self.opened:
                    self._refuse(f"`{name}` is read as it was before its mini-batch", expr.span)
                return Name(self.still[name], "local", expr.dims, expr.span)
            case Contract(left, right) if len(expr.dims) == 1 and self._has_matrix(expr):
                matrix, vector = (left, right) if len(left.dims) == 2 else (right, left)
                if len(vector.dims) == 1 and self._has_matrix(matrix):
                    return self._read(matrix, vector, expr)
        return map_children(expr, self._of_rows)

    def _has_matrix(self, expr: Expr) -> bool:
        return any(isinstance(node, StateRead) and len(node.dims) == 2 for node in walk(expr))

    def _read(self, matrix: Expr, vector: Expr, expr: Contract) -> Name:
        target = self._fresh("read")
        for _ in self._terms(matrix):  # What is no sum of matrices is refused.
            pass
        self._write_rows(matrix)
        named = self._name_of(vector, f"{target}_by")
        if not isinstance(vector, Name):
            self._local(named, self._of_rows(vector), vector.span)
        of = {part: self._number(matrix, part) for part in (*self._matrices(), *(r.name for r in self.rows.values()))}
        weights = {part: self._weight(target, number, expr.span) for part, number in of.items() if number != ZERO}
        bases = tuple((part, name) for part, name in weights.items() if part in self.states)
        rows = tuple((part, name) for part, name in weights.items() if part not in self.states)
        (kept,) = expr.dims
        self.reads.append(Read(target, named, vector.dims[0], kept, bases, rows, expr.span))
        return Name(target, "local", expr.dims, expr.span)

    def _matrices(self) -> Iterator[str]:
        return (name for name, state in self.states.items() if len(state.dims) == 2)

    def _weight(self, target: str, number: Expr, span: Span) -> str | None:
        if number == ONE:
            return None
        if isinstance(number, Name):
            return number.name
        named = self._fresh(f"{target}_weight")
        self._local(named, number, span)
        return named

    # ------------------------------------------------------------------------------------------------------ numbers

    def _number(self, expr: Expr, of: str) -> Expr:
        """How often a matrix or row `of` is in a matrix: for rows, of each token that has written."""
        match expr:
            case StateRead(name) if name in self.still:
                if name not in self.opened:
                    self._refuse(f"`{name}` is read as it was before its mini-batch", expr.span)
                return ONE if name == of else ZERO
            case StateRead(name, previous):
                number = self.numbers.get((name, of))
                return ZERO if number is None else StateRead(number.name, previous, number.dims, expr.span)
            case Outer(left, right) if left.dims and right.dims:
                return self.unit if self.rows[expr].name == of else ZERO
            case Negate(value):
                inner = self._number(value, of)
                return ZERO if inner == ZERO else Negate(inner, expr.span)
            case Transpose(value):
                return self._number(value, of)
            case Binary("+" | "-" as op, left, right):
                return _sum(op, self._number(left, of), self._number(right, of), expr.span)
            case Binary(op, left, right) if len(left.dims) == 2:
                return self._scaled(op, self._number(left, of), right, expr.span)
            case Binary("*", left, right) | Outer(left, right):
                matrix, factor = (left, right) if len(left.dims) == 2 else (right, left)
                return self._scaled("*", self._number(matrix, of), factor, expr.span)
        self._refuse(f"`{to_source(expr)}` is no sum of matrices and of outer products", expr.span)

    def _scaled(self, op: str, number: Expr, factor: Expr, span: Span) -> Expr:
        if number == ZERO:
            return ZERO
        scaled = self._of_rows(factor)
        if op == "/":
            return Binary("/", number, scaled, span)
        return scaled if number == ONE else Binary("*", scaled, number, span)


class _Rows(Finder):
    """Finds the scans of a piece's rows, among reads of matrices and states that stand still, which it takes as they
    are."""

    def __init__(self, spec: Spec, given: Iterator[str]) -> None:
        super().__init__(spec)
        self.states_of |= {name: set() for name in given}

    def refuse_cycle(self, left: list[str], needs: Mapping[str, set[str]]) -> NoReturn:
        span = next(self.spans[name] for name in left if name in self.spans)
        raise OutsideScan("a token needs what others of its mini-batch have written, through a function", span)


def _sum(op: str, left: Expr, right: Expr, span: Span) -> Expr:
    if right == ZERO:
        return left
    if left == ZERO:
        return Negate(right, span) if op == "-" else right
    return Binary("-" if op == "-" else "+", left, right, span)


def _called(name: str, of: str) -> str:
    return f"{name}_decay" if name == of else f"{name}_of_{of}"


def _line(part: Part | Advanced) -> str:
    match part:
        case Begun(target, _, value) | Opened(target, _, value):
            return f"{target} = {to_source(value)}, of the first token"
        case Read(target, vector, _, _, bases, rows):
            return f"{target} = ({_weighted((*bases, *rows))}).T @ {vector}"
        case Advanced(state, bases, rows):
            return f"{state.name} after the piece = {_weighted((*bases, *rows))}"
        case Scan(state, _, factor, term):
            return f"{state.name} = scan({to_source(factor)}, {to_source(term)})"
    return f"{part.target} = {to_source(part.value)}"


def _weighted(weights: Weights) -> str:
    return " + ".join(of if number is None else f"{number} * {of}" for of, number in weights)
