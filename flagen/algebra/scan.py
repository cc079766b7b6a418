"""The scan form: states each of whose elements is a recurrence of its own, so that all tokens are taken at once.

    affine       X_t = a_t X_{t-1} + b_t                  (a1, b1) then (a2, b2) is (a1 a2, a2 b1 + b2)
    logaddexp    X_t = logaddexp(X_{t-1} + w_t, c_t)      (w1, c1) then (w2, c2) is (w1 + w2, logaddexp(c1 + w2, c2))

Elements of an associative operation, whose products up to each token are the states; `double` takes those of C tokens
in log2 C steps. a, b, w and c may use states that are earlier in the form, before the token (`Z_prev`) or after it.

The adjoint is a scan, too, whatever the kind. With D the gradient that reaches X_t from the results and from later
states, P the one that reaches X_{t-1} there, and s_t = dX_t / dX_{t-1} (a_t, or exp(X_{t-1} + w_t - X_t)):

    mu_t = P_t + s_t (D_t + mu_{t+1})            lambda_t = D_t + mu_{t+1}

from the last token to the first; mu after the last is the final state's gradient, mu of the first the initial state's,
and lambda_t is what the update's own expression is transposed with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, NoReturn, TypeVar

from flagen.algebra.limits import Extent, extent
from flagen.algebra.rewrite import map_children
from flagen.diagnostics import Span
from flagen.spec.model import (
    Assign,
    Binary,
    Call,
    Contract,
    Dims,
    Expr,
    Name,
    Negate,
    Number,
    Outer,
    Reduce,
    Repeat,
    Spec,
    State,
    StateRead,
    Transpose,
    walk,
)
from flagen.spec.printer import to_source

ZERO, ONE = Number(Fraction(0)), Number(Fraction(1))
Kind = Literal["affine", "logaddexp"]
E = TypeVar("E")


class OutsideScan(Exception):
    """The spec is valid, but a state of it is no elementwise scan; says which part of it, and where."""

    def __init__(self, reason: str, span: Span) -> None:
        super().__init__(reason)
        self.reason = reason
        self.span = span


# ------------------------------------------------------------------------------------------------------------ the form


@dataclass(frozen=True)
class Scan:
    """What a token does to one state.

    affine: X = factor * X_prev + term. logaddexp: X = logaddexp(X_prev + factor, term). Neither reads X; their dims are
    dims of the state, some perhaps missing.
    """

    state: State
    kind: Kind
    factor: Expr
    term: Expr

    @property
    def update(self) -> Expr:
        """The new state in terms of `X_prev`."""
        before = StateRead(self.state.name, True, self.state.dims)
        if self.kind == "logaddexp":
            decayed = before if self.factor == ZERO else Binary("+", before, self.factor)
            return Call("logaddexp", (decayed, self.term))
        kept = before if self.factor == ONE else Binary("*", self.factor, before)
        if self.factor == ZERO:
            return self.term
        return kept if self.term == ZERO else Binary("+", kept, self.term)

    @property
    def slope(self) -> Expr:
        """dX / dX_prev."""
        if self.kind == "affine":
            return self.factor
        before, after = (StateRead(self.state.name, previous, self.state.dims) for previous in (True, False))
        decayed = before if self.factor == ZERO else Binary("+", before, self.factor)
        return Call("exp", (Binary("-", decayed, after),))

    @property
    def low_rank(self) -> bool:
        """Whether the state is a matrix that outer products are written to, decayed along at most one dim: matrix
        products serve it better than a scan of every element."""
        return len(self.state.dims) > 1 and len(self.factor.dims) < 2 and _separable(self.term)


@dataclass(frozen=True)
class ScanForm:
    """A recurrence of elementwise scans.

    `update` has the scans, and the locals that are read, each after all that it reads; `outputs` are the statements of
    the output, of which `results` names those that are returned. In all of them a state is read as it was before the
    token (`previous`) or as it is after the whole update.
    """

    spec: Spec
    update: tuple[Assign | Scan, ...]
    outputs: tuple[Assign, ...]
    results: tuple[str, ...]

    @property
    def scans(self) -> tuple[Scan, ...]:
        """The scans, in the order in which they are taken."""
        return tuple(part for part in self.update if isinstance(part, Scan))

    @property
    def previous(self) -> frozenset[str]:
        """The states of which someone but their own update reads what they were before a token."""
        reads = (node for expr in self.expressions() for node in walk(expr))
        return frozenset(node.name for node in reads if isinstance(node, StateRead) and node.previous)

    def dims(self, result: str) -> Dims:
        """The dims of a result."""
        return next(assign.value.dims for assign in self.outputs if assign.target == result)

    def expressions(self) -> Iterator[Expr]:
        """Every expression that is evaluated beside the scans themselves."""
        for part in self.update:
            yield from (part.factor, part.term) if isinstance(part, Scan) else (part.value,)
        yield from (assign.value for assign in self.outputs)

    def dump(self) -> str:
        """The form as text, a line a statement."""
        lines = [f"scan form of {self.spec.name}: {len(self.scans)} elementwise, all tokens at once"]
        for part in self.update:
            if isinstance(part, Scan):
                letters = ("a", "b") if part.kind == "affine" else ("w", "c")
                sources = f"{letters[0]} = {to_source(part.factor)}, {letters[1]} = {to_source(part.term)}"
                lines.append(f"{_scanned(part)}     {sources}")
            else:
                lines.append(f"{part.target} = {to_source(part.value)}")
        lines += [f"{assign.target} = {to_source(assign.value)}" for assign in self.outputs]
        return "\n".join(lines)

    def dump_chunk(self) -> str:
        """How all tokens of a chunk are taken at once, as text."""
        lines = [
            f"chunk form of {self.spec.name}: states by doubling, n = 1, 2, 4 ... below the chunk's length",
            "the state before the chunk joins the first token's element",
        ]
        for scan in self.scans:
            x = scan.state.name
            if scan.kind == "affine":
                lines.append(f"{x}: b_t = a_t * b_(t-n) + b_t, then a_t = a_t * a_(t-n); in the end {x}_t = b_t")
            else:
                step = "c_t = logaddexp(c_(t-n) + w_t, c_t), then w_t = w_t + w_(t-n)"
                lines.append(f"{x}: {step}; in the end {x}_t = c_t")
        return "\n".join(lines)

    def dump_adjoint(self) -> str:
        """How gradients go back through the scans, as text."""
        lines = [
            f"adjoint of the scan form of {self.spec.name}, a state after the other from the last to the first",
            "D_t: gradient of X_t from results and later states; P_t: of X_(t-1), likewise",
            "mu_t = P_t + s_t * (D_t + mu_(t+1)), lambda_t = D_t + mu_(t+1), from the last token to the first",
        ]
        lines += [f"{scan.state.name}: s = {to_source(scan.slope)}" for scan in reversed(self.scans)]
        return "\n".join(lines)


def _separable(expr: Expr) -> bool:
    """Whether `expr` is a sum of outer products."""
    match expr:
        case Outer():
            return True
        case Negate(value) | Transpose(value):
            return _separable(value)
        case Binary("+" | "-", left, right):
            return _separable(left) and _separable(right)
        case Binary("*", left, right):
            return any(_separable(one) and len(other.dims) < 2 for one, other in ((left, right), (right, left)))
        case Binary("/", left, right):
            return _separable(left) and len(right.dims) < 2
    return len(expr.dims) < 2


def _scanned(scan: Scan) -> str:
    x = scan.state.name
    return f"{x} = a * {x}_prev + b" if scan.kind == "affine" else f"{x} = logaddexp({x}_prev + w, c)"


def double(elements: Sequence[E], join: Callable[[E, E], E]) -> list[E]:
    """The products of `elements` up to each of them, by doubling: what generated code does with tensors."""
    products, shift = list(elements), 1
    while shift < len(products):
        products = [
            *products[:shift],
            *(join(products[i - shift], products[i]) for i in range(shift, len(products))),
        ]
        shift *= 2
    return products


# -------------------------------------------------------------------------------------------------------- finding it


def scan_form(spec: Spec, results: Sequence[str] = ("o",)) -> ScanForm:
    """The scan form of `spec`, whose functions return `results`: targets of its output, each [B, T, HV, *dims].

    Raises:
        OutsideScan: a state is no elementwise scan, or two states need one another; says which part, and where.
    """
    return _Finder(spec).form(tuple(results))


@dataclass(frozen=True)
class _Map:
    """What an expression is of X_prev: a scan that has not got its state yet."""

    kind: Kind
    factor: Expr
    term: Expr


class _Finder:
    """Walks the statements of a token, and writes states out that are read between two statements that change them."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.states = {state.name: state for state in spec.states}
        self.values: dict[str, Expr] = {}
        """What each local, and each state so far, is: states before the token, or after all of it."""
        self.spans: dict[str, Span] = {}
        self.waiting: dict[str, int] = {}
        """How many statements are still to change each state."""
        self.locals: dict[str, Expr] = {}
        self.extents: dict[str, Extent] = {}
        self.states_of: dict[str, set[str]] = {}
        """The states that each local depends on, through other locals, too."""

    def form(self, results: tuple[str, ...]) -> ScanForm:
        statements = list(self._statements())
        for statement in statements:
            self.waiting[statement.target] = self.waiting.get(statement.target, 0) + statement.to_state
        for statement in statements:
            self._take(statement)
        parts: dict[str, Assign | Scan] = {}
        for statement in statements:
            name, value = statement.target, self.values[statement.target]
            parts[name] = self._scan(name, value) if statement.to_state else replace(statement, value=value)
        for state in self.spec.states:  # one that no statement changes
            parts.setdefault(state.name, Scan(state, "affine", ONE, ZERO))
        outputs = tuple(replace(assign, value=self._settled(assign.value)) for assign in self.spec.output)
        return ScanForm(self.spec, self._ordered(parts, outputs), outputs, results)

    def _statements(self) -> Iterator[Assign]:
        for statement in self.spec.update:
            if isinstance(statement, Repeat):
                raise OutsideScan("an update in micro-steps has no scan form", statement.span)
            yield statement

    def _take(self, statement: Assign) -> None:
        value = self._settled(statement.value)
        if problem := extent(value, {}).problem:
            raise OutsideScan(problem, statement.span)
        self.values[statement.target] = value
        self.spans[statement.target] = statement.span
        if statement.to_state:
            self.waiting[statement.target] -= 1
        else:
            self.locals[statement.target] = value
            self.extents[statement.target] = extent(value, self.extents)
            self.states_of[statement.target] = {
                state for name in _read(value) for state in self.states_of.get(name, {name})
            }

    def _settled(self, expr: Expr) -> Expr:
        """`expr` with states as they were before the token or are after it: what lies between is written out."""
        if not isinstance(expr, StateRead) or expr.previous:
            return map_children(expr, self._settled)
        if expr.name not in self.values:
            changes = self.waiting.get(expr.name, 0)
            return replace(expr, previous=True) if changes else expr
        return expr if self.waiting[expr.name] == 0 else self.values[expr.name]

    # ------------------------------------------------------------------------------------------------------ one state

    def _scan(self, name: str, value: Expr) -> Scan:
        within = {local: extent for local, extent in self.extents.items() if name in self.states_of[local]}
        if problem := extent(value, within).problem:
            raise OutsideScan(problem, self.spans[name])
        found = _Element(self.states[name]).map(self._written(value, name))
        return Scan(self.states[name], found.kind, found.factor, found.term)

    def _written(self, expr: Expr, state: str) -> Expr:
        """`expr` with the locals written out that depend on `state`."""
        if isinstance(expr, Name) and expr.kind == "local" and state in self.states_of[expr.name]:
            return self._written(self.locals[expr.name], state)
        return map_children(expr, lambda part: self._written(part, state))

    # ---------------------------------------------------------------------------------------------------------- order

    def _ordered(self, parts: dict[str, Assign | Scan], outputs: tuple[Assign, ...]) -> tuple[Assign | Scan, ...]:
        """The parts that are needed, each after what it reads."""
        needs = {name: _needs(part) & parts.keys() for name, part in parts.items()}
        wanted = set(self.states)
        pending = [*(name for name in parts if name in self.states), *(n for o in outputs for n in _read(o.value))]
        while pending:
            name = pending.pop()
            if name in parts:
                new = needs[name] - wanted | ({name} - wanted)
                wanted |= new
                pending += sorted(new)
        ordered: list[Assign | Scan] = []
        left = [name for name in parts if name in wanted]
        while left:
            ready = next((name for name in left if not needs[name] & set(left)), None)
            if ready is None:
                self._refuse_cycle(left, needs)
            ordered.append(parts[ready])
            left.remove(ready)
        return tuple(ordered)

    def _refuse_cycle(self, left: list[str], needs: dict[str, set[str]]) -> NoReturn:
        states = [name for name in left if name in self.states and name in _reached(name, needs)]
        named = " and ".join(f"`{name}`" for name in states)
        raise OutsideScan(f"the updates of {named} need one another", self.spans[states[-1]])


def _needs(part: Assign | Scan) -> set[str]:
    if isinstance(part, Assign):
        return _read(part.value)
    return (_read(part.factor) | _read(part.term)) - {part.state.name}


def _read(expr: Expr) -> set[str]:
    """The states and locals that `expr` names."""
    return {
        node.name
        for node in walk(expr)
        if isinstance(node, StateRead) or (isinstance(node, Name) and node.kind == "local")
    }


def _reached(name: str, needs: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    pending = sorted(needs[name])
    while pending:
        other = pending.pop()
        if other not in found:
            found.add(other)
            pending += sorted(needs[other])
    return found


@dataclass(frozen=True)
class _Element:
    """Finds what an expression is of one state before the token."""

    state: State

    def map(self, expr: Expr) -> _Map:
        """`expr`, a new value of the state, as a map of the old one."""
        if not self._reads(expr):
            return _Map("affine", ZERO, expr)
        return self._of(expr)

    def _of(self, expr: Expr) -> _Map:
        """`expr`, in which the state occurs."""
        name = self.state.name
        if isinstance(expr, StateRead):
            if not expr.previous:
                raise OutsideScan(f"the update of `{name}` needs `{name}` as it is after it", expr.span)
            return _Map("affine", ONE, ZERO)
        if set(expr.dims) != set(self.state.dims):
            reductions: list[Expr] = [node for node in walk(expr) if isinstance(node, Contract | Reduce)]
            mixing = [node for node in reductions if self._reads(node)] or [expr]
            raise OutsideScan(f"the update mixes elements of `{name}`", mixing[0].span)
        match expr:
            case Negate(value):
                return self._affine(self._of(value), _negated, expr)
            case Transpose(value):
                return self._of(value)
            case Binary("+" | "-" as op, left, right):
                return self._sum(op, left, right, expr)
            case Binary("*", left, right) | Outer(left, right):
                if self._reads(left) and self._reads(right):
                    raise OutsideScan(f"`{name}` is multiplied by itself", expr.span)
                scaled, other = (left, right) if self._reads(left) else (right, left)
                return self._affine(self._of(scaled), lambda part: self._times(part, other, expr), expr)
            case Binary("/", left, right):
                if self._reads(right):
                    raise OutsideScan(f"the update divides by `{name}`", right.span)
                return self._affine(self._of(left), lambda part: self._over(part, right, expr), expr)
            case Call("logaddexp", (left, right)):
                return self._logaddexp(left, right, expr)
            case Call(function) | Reduce(function):
                raise OutsideScan(f"the update of `{name}` is not affine in it: `{function}`", expr.span)
            case Binary(op):
                raise OutsideScan(f"the update of `{name}` is not affine in it: `{op}`", expr.span)
        raise OutsideScan(f"the update mixes elements of `{name}`", expr.span)

    def _affine(self, of: _Map, change: Callable[[Expr], Expr], expr: Expr) -> _Map:
        if of.kind != "affine":
            raise OutsideScan(f"a logaddexp of `{self.state.name}` may be shifted, and nothing else", expr.span)
        return _Map("affine", change(of.factor), change(of.term))

    def _sum(self, op: Literal["+", "-"], left: Expr, right: Expr, expr: Expr) -> _Map:
        if self._reads(left) and self._reads(right):
            one, other = self._of(left), self._of(right)
            for part, side in ((one, left), (other, right)):
                if part.kind != "affine":
                    raise OutsideScan(f"a logaddexp of `{self.state.name}` may be shifted, and nothing else", side.span)
            factor = self._plus(op, one.factor, other.factor, expr)
            return _Map("affine", factor, self._plus(op, one.term, other.term, expr))
        if self._reads(left):
            one = self._of(left)
            factor = one.factor if one.kind == "affine" else self._plus(op, one.factor, right, expr)
            return _Map(one.kind, factor, self._plus(op, one.term, right, expr))
        other = self._of(right)
        if op == "-":
            other = self._affine(other, _negated, expr)
        factor = other.factor if other.kind == "affine" else self._plus("+", left, other.factor, expr)
        return _Map(other.kind, factor, self._plus("+", left, other.term, expr))

    def _logaddexp(self, left: Expr, right: Expr, expr: Expr) -> _Map:
        if self._reads(left) and self._reads(right):
            raise OutsideScan(f"both sides of the logaddexp read `{self.state.name}`", expr.span)
        inner, other = (left, right) if self._reads(left) else (right, left)
        of = self._of(inner)
        if of.kind == "logaddexp":
            return _Map("logaddexp", of.factor, Call("logaddexp", (of.term, other), expr.span))
        if of.factor != ONE:
            raise OutsideScan(f"`{self.state.name}` is scaled inside a logaddexp", inner.span)
        return _Map("logaddexp", of.term, other)

    # ----------------------------------------------------------------------------------------------------- arithmetic

    def _times(self, part: Expr, other: Expr, expr: Expr) -> Expr:
        if part == ZERO or other == ONE:
            return part
        if part == ONE:
            return other
        if _nested(part, other):
            return Binary("*", other, part, expr.span)
        if set(part.dims) & set(other.dims):
            self._refuse(part, other, expr)
        return Outer(other, part, expr.span)

    def _over(self, part: Expr, other: Expr, expr: Expr) -> Expr:
        if part == ZERO:
            return part
        if _nested(part, other):
            return Binary("/", part, other, expr.span)
        return self._times(part, Binary("/", ONE, other, expr.span), expr)

    def _plus(self, op: Literal["+", "-"], left: Expr, right: Expr, expr: Expr) -> Expr:
        if right == ZERO:
            return left
        if left == ZERO:
            return right if op == "+" else _negated(right)
        if not _nested(left, right):
            self._refuse(left, right, expr)
        return Binary(op, left, right, expr.span)

    def _refuse(self, left: Expr, right: Expr, expr: Expr) -> NoReturn:
        over = " and ".join(f"[{', '.join(part.dims)}]" for part in (left, right))
        raise OutsideScan(f"the update of `{self.state.name}` brings tensors over {over} together", expr.span)

    def _reads(self, expr: Expr) -> bool:
        return any(isinstance(node, StateRead) and node.name == self.state.name for node in walk(expr))


def _negated(part: Expr) -> Expr:
    if isinstance(part, Negate):
        return part.value
    return part if part == ZERO else Negate(part, part.span)


def _nested(one: Expr, other: Expr) -> bool:
    return set(one.dims) <= set(other.dims) or set(other.dims) <= set(one.dims)
