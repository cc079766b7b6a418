"""Systems of equations with a matrix state, solved without the matrix: `solve(A, q, d)` from products `A @ p`.

    A = alpha * A + beta * outer(k, over(k, K2))
    o = solve(A, q, d)

`A @ p` is a read like any other, and the chunk form has it for all tokens at once without any of their matrices. So the
*operator* of the system, the spec with `A @ p` where it has the solution, for any p, has a chunk form and an adjoint;
x is what conjugate gradients make of such reads. Gradients need nothing else. With s for which (A + Diag(d))^T s = dx,
they are those of the residual `q - A @ x - d * x` for a fixed x, whose own gradient is s: q gets s, and all that is
read of gets what it gets from a read of x whose output has the gradient -s.

Conjugate gradients want a symmetric positive definite matrix. That it is one for every token follows from the
statements and the declared ranges, or there is no such form. A first state has to be symmetric and positive
semidefinite: that is for the caller to see to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from flagen.algebra.flow import Flow, Place
from flagen.algebra.monomials import OutsideNormalForm
from flagen.algebra.normal_form import NormalForm
from flagen.algebra.orient import normal_form
from flagen.algebra.rewrite import map_children
from flagen.algebra.stage_results import declared_in, fresh
from flagen.algebra.staged import flat
from flagen.diagnostics import InternalError, Span
from flagen.spec.model import (
    Assign,
    Binary,
    Contract,
    Derived,
    Expr,
    Input,
    Interval,
    Name,
    Negate,
    Number,
    Outer,
    Over,
    Param,
    Solution,
    Spec,
    State,
    Statement,
    StateRead,
    walk,
)
from flagen.spec.printer import to_source
from flagen.spec.ranges import interval_of

ZERO = Number(Fraction(0))


@dataclass(frozen=True)
class SolvedForm:
    """A spec whose output is the solution of a system with its state.

    operator: the normal form of the spec with `A @ p` for its output; direction: the input that p is;
    right, shift: the system's right side, and what is added to the diagonal, in terms of a token's inputs.
    """

    spec: Spec
    operator: NormalForm
    direction: str
    right: Expr
    shift: Expr
    span: Span
    """Where the system stands."""

    @property
    def residual(self) -> Expr:
        """What is 0 where the direction is the solution, in terms of a token's inputs and of the operator's read."""
        rows, columns = self.operator.value, self.operator.key
        p = Over(Name(self.direction, "input", (columns,)), columns, rows)
        applied = Binary("+", self.operator.output, Binary("*", self.shift, p))
        return Binary("-", self.right, applied)

    def dump(self) -> str:
        """The system as text, then the normal form of its operator."""
        added = f" + Diag({to_source(self.shift)})"
        first = f"o = x, where ({self.operator.state.name}{added}) x = {to_source(self.right)}; its operator:"
        return f"{first}\n{self.operator.dump()}"


def solutions_in(spec: Spec) -> Iterator[Solution]:
    """Every solution that the statements of `spec` name."""
    for assign in (*flat(spec.update), *spec.output):
        yield from (node for node in walk(assign.value) if isinstance(node, Solution))


def is_solution(spec: Spec) -> bool:
    """Whether the output of `spec`, which has one state, is a solution and nothing else."""
    flow = Flow(spec)
    return len(spec.states) == 1 and flow.solution(spec.output[-1].value, flow.end) is not None


def solved_form(spec: Spec) -> SolvedForm:
    """The operator of the system that the output of `spec` solves.

    Raises:
        OutsideNormalForm: the matrix is not known to be symmetric and positive definite, or has no normal form.
    """
    flow = Flow(spec)
    found = flow.solution(spec.output[-1].value, flow.end)
    assert found is not None
    solution, place = found
    (state,) = spec.states
    right = _inlined(flow, solution.right, place)
    shift = ZERO if solution.shift is None else _inlined(flow, solution.shift, place)
    for part in (solution.right, solution.shift or ZERO):
        if flow.states_in(part, place):
            raise OutsideNormalForm(f"`{to_source(part)}` reads the state that the system is of", part.span)
    for at, assign in flow.statements.items():
        if assign.to_state and (inner := _solution_in(_inlined(flow, assign.value, at))) is not None:
            raise OutsideNormalForm(f"`{to_source(inner)}` is not affine in the state", inner.span)
    _Definite(spec, flow, state).check(solution, shift)
    direction = _direction(spec, state, solution)
    operator = normal_form(_operator(spec, flow, place, solution.matrix, direction))
    if (operator.value, operator.key) != state.dims:
        raise InternalError(f"the product of {state.name} with a vector is no read of it: {operator.dump()}")
    return SolvedForm(spec, operator, direction.name, right, shift, solution.span)


def _solution_in(expr: Expr) -> Solution | None:
    return next((node for node in walk(expr) if isinstance(node, Solution)), None)


def _direction(spec: Spec, state: State, solution: Solution) -> Input:
    """What the matrix of the system is multiplied by, as an input."""
    name = fresh("direction", declared_in(spec) | {assign.target for assign in flat(spec.update)})
    heads: Literal["H", "HV"] = "HV" if spec.has_value_heads else "H"
    return Input(name, state.dims[1:], heads, "token", Interval(), "", solution.span)


def _operator(spec: Spec, flow: Flow, place: Place, matrix: Expr, direction: Input) -> Spec:
    """`spec` with what the matrix of the system, as it stands at `place`, makes of a vector for its output."""
    span = matrix.span
    value: Expr = Contract(matrix, Name(direction.name, "input", direction.dims, span), span)
    update: list[Statement] = []
    for number, statement in enumerate(spec.update):
        if isinstance(statement, Assign) and _solution_in(_inlined(flow, statement.value, (number,))) is not None:
            if (number,) != place:
                continue  # Another name of the solution.
            update.append(_assign(statement.target, value))
            value = Name(statement.target, "local", value.dims, span)
        else:
            update.append(statement)
    return replace(spec, inputs=(*spec.inputs, direction), update=tuple(update), output=(_assign("o", value),))


def _assign(target: str, value: Expr) -> Assign:
    return Assign(target, value, False, f"{target} = {to_source(value)}", value.span)


def _inlined(flow: Flow, expr: Expr, place: Place) -> Expr:
    expr, place = flow.opened(expr, place)
    return map_children(expr, lambda child: _inlined(flow, child, place))


class _Definite:
    """Whether a matrix is symmetric positive semidefinite after every statement, by what the ranges say of its factors,
    and with what a system adds to its diagonal positive definite."""

    def __init__(self, spec: Spec, flow: Flow, state: State) -> None:
        self.spec, self.flow, self.state = spec, flow, state
        declared: tuple[Input | Param | Derived, ...] = (*spec.inputs, *spec.params, *spec.derived)
        self.ranges: Mapping[str, Interval] = {decl.name: decl.range for decl in declared}

    def check(self, solution: Solution, shift: Expr) -> None:
        """Raises OutsideNormalForm where it is not known."""
        if self.state.init < 0:
            raise OutsideNormalForm(f"{self.state.name} starts from a negative matrix", self.state.span)
        if solution.shift is None:
            reason = f"`{to_source(solution)}` may have no solution: nothing is added to the diagonal of the matrix"
            raise OutsideNormalForm(reason, solution.span)
        if not interval_of(shift, self.ranges).low > 0:
            where = solution.shift
            reason = f"`{to_source(where)}` on the diagonal is not above 0 by the declared ranges"
            raise OutsideNormalForm(reason, where.span)
        for place, assign in self.flow.statements.items():
            if assign.to_state:
                self._semidefinite(assign.value, place)

    def _semidefinite(self, expr: Expr, place: Place) -> None:
        """Raises OutsideNormalForm for the first term that is not known to be symmetric positive semidefinite."""
        expr, place = self.flow.opened(expr, place)
        match expr:
            case StateRead():
                return
            case Binary("+", left, right) if left.dims and right.dims:
                self._semidefinite(left, place)
                self._semidefinite(right, place)
                return
            case Binary("*", left, right) if not left.dims or not right.dims:
                number, matrix = (left, right) if not left.dims else (right, left)
                self._not_negative(number, place, expr)
                self._semidefinite(matrix, place)
                return
            case Binary("/", left, right) if not right.dims:
                self._not_negative(right, place, expr)
                self._semidefinite(left, place)
                return
            case Outer(left, right):
                self._square(left, right, place, expr)
                return
        raise self._unknown(expr, "is no `A`, no `outer(k, over(k, K2))`, and no sum of these")

    def _square(self, left: Expr, right: Expr, place: Place, outer: Outer) -> None:
        """An outer product of a vector with itself, times numbers that are not negative together."""
        numbers, vector = self._apart(_inlined(self.flow, left, place))
        others, other = self._apart(_inlined(self.flow, right, place))
        if self._back(other) != vector:
            rows, columns = self.state.dims
            raise self._unknown(outer, f"is not symmetric: no `outer(k, over(k, {columns}))` of one `k` over {rows}")
        left_over = [*others]
        for number in numbers:
            if number in left_over:
                left_over.remove(number)
            else:
                left_over.append(number)
        for number in left_over:
            self._not_negative(number, place, outer)

    def _apart(self, expr: Expr) -> tuple[list[Expr], Expr]:
        """The numbers that a vector is multiplied by, and the vector. A number of a quotient stays what it is: only its
        sign counts."""
        match expr:
            case Over(Binary(op, left, right, span), source, target):

                def moved(side: Expr) -> Expr:
                    return Over(side, source, target, span) if side.dims else side

                return self._apart(Binary(op, moved(left), moved(right), span))
            case Over(Negate(value, span), source, target):
                return self._apart(Negate(Over(value, source, target, span), span))
            case Negate(value):
                numbers, vector = self._apart(value)
                return [Number(Fraction(-1)), *numbers], vector
            case Binary("*", left, right) if not left.dims or not right.dims:
                number, scaled = (left, right) if not left.dims else (right, left)
                numbers, vector = self._apart(scaled)
                return [number, *numbers], vector
            case Binary("/", left, right) if not right.dims:
                numbers, vector = self._apart(left)
                return [right, *numbers], vector
        return [], expr

    def _back(self, expr: Expr) -> Expr | None:
        """What over the second dim of the state has another name for the first; None where it is anything else."""
        rows, columns = self.state.dims
        match expr:
            case Over(value, source, target) if (source, target) == (rows, columns):
                return value
            case Binary(op, left, right, span):
                one = self._back(left) if left.dims else left
                other = self._back(right) if right.dims else right
                return None if one is None or other is None else Binary(op, one, other, span)
        return None

    def _not_negative(self, number: Expr, place: Place, term: Expr) -> None:
        low = interval_of(_inlined(self.flow, number, place), self.ranges).low
        if not low >= 0:
            raise self._unknown(term, f"has the factor `{to_source(number)}`, which may be negative")

    def _unknown(self, term: Expr, why: str) -> OutsideNormalForm:
        reason = f"{self.state.name} is not known to be symmetric and positive: `{to_source(term)}` {why}"
        return OutsideNormalForm(reason, term.span)
