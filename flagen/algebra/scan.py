"""The scan form: states each of whose elements is a recurrence of its own, so that all tokens are taken at once.

    affine       X_t = a_t X_{t-1} + b_t                  (a1, b1) then (a2, b2) is (a1 a2, a2 b1 + b2)
    logaddexp    X_t = logaddexp(X_{t-1} + w_t, c_t)      (w1, c1) then (w2, c2) is (w1 + w2, logaddexp(c1 + w2, c2))
    maximum      X_t = maximum(X_{t-1} + w_t, c_t)        (w1, c1) then (w2, c2) is (w1 + w2, maximum(c1 + w2, c2))
    phase        X_t = fraction(X_{t-1} + b_t)            b1 then b2 is fraction(b1 + b2)

Elements of an associative operation, whose products up to each token are the states; `double` takes those of C tokens
in log2 C steps. a, b, w and c may use states that are earlier in the form, before the token (`Z_prev`) or after it.

A phase is an angle in turns: a sum in R/Z, the reals modulo 1. As fraction(fraction(x) + y) = fraction(x + y), whole
turns may be dropped after every addition, so nothing that is added up ever exceeds 2, however many tokens there are.

The adjoint is a scan, too, whatever the kind. With D the gradient that reaches X_t from the results and from later
states, P the one that reaches X_{t-1} there, and s_t = dX_t / dX_{t-1} (a_t; exp(X_{t-1} + w_t - X_t); of a maximum 1
or 0, and a half where both sides are equal; of a phase 1):

    mu_t = P_t + s_t (D_t + mu_{t+1})            lambda_t = D_t + mu_{t+1}

from the last token to the first; mu after the last is the final state's gradient, mu of the first the initial state's,
and lambda_t is what the update's own expression is transposed with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeVar

from flagen.spec.model import (
    Assign,
    Binary,
    Call,
    Dims,
    Expr,
    Negate,
    Number,
    Outer,
    Spec,
    State,
    StateRead,
    Transpose,
    walk,
)
from flagen.spec.printer import to_source

ZERO, ONE = Number(Fraction(0)), Number(Fraction(1))
Kind = Literal["affine", "logaddexp", "maximum", "phase"]
E = TypeVar("E")


@dataclass(frozen=True)
class Scan:
    """What a token does to one state.

    affine: X = factor * X_prev + term. logaddexp: X = logaddexp(X_prev + factor, term), and maximum likewise. phase:
    X = fraction(X_prev + term), with a factor of 1. Neither reads X; their dims are dims of the state, some perhaps
    missing.
    """

    state: State
    kind: Kind
    factor: Expr
    term: Expr

    @property
    def update(self) -> Expr:
        """The new state in terms of `X_prev`."""
        before = StateRead(self.state.name, True, self.state.dims)
        if self.kind in SHIFTED:
            return Call(self.kind, (self.decayed, self.term))
        if self.kind == "phase":
            return Call("fraction", (before if self.term == ZERO else Binary("+", before, self.term),))
        kept = before if self.factor == ONE else Binary("*", self.factor, before)
        if self.factor == ZERO:
            return self.term
        return kept if self.term == ZERO else Binary("+", kept, self.term)

    @property
    def decayed(self) -> Expr:
        """`X_prev + factor`, which the term is brought together with in a logaddexp or a maximum."""
        before = StateRead(self.state.name, True, self.state.dims)
        return before if self.factor == ZERO else Binary("+", before, self.factor)

    @property
    def element(self) -> tuple[tuple[str, Expr], ...]:
        """The parts of its element, each under its letter."""
        parts = (self.term,) if self.kind == "phase" else (self.factor, self.term)
        return tuple(zip(LETTERS[self.kind], parts, strict=True))

    @property
    def is_shift(self) -> bool:
        """Whether the state is nothing of what it was: nothing is scanned, and before a token it is the row before."""
        return self.kind == "affine" and self.factor == ZERO

    @property
    def slope(self) -> Expr:
        """dX / dX_prev."""
        match self.kind:
            case "logaddexp":
                after = StateRead(self.state.name, False, self.state.dims)
                return Call("exp", (Binary("-", self.decayed, after),))
            case "maximum":
                larger = Call("sign", (Binary("-", self.decayed, self.term),))
                return Binary("*", Number(Fraction(1, 2)), Binary("+", ONE, larger))
        return self.factor

    @property
    def low_rank(self) -> bool:
        """Whether the state is a matrix that outer products are written to, decayed along at most one dim: matrix
        products serve it better than a scan of every element. No product adds up phases."""
        matrix = len(self.state.dims) > 1 and self.kind != "phase"
        return matrix and len(self.factor.dims) < 2 and _separable(self.term)


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
                sources = ", ".join(f"{letter} = {to_source(value)}" for letter, value in part.element)
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
            doubled = f"{_STEP[scan.kind]}; in the end {x}_t = {LETTERS[scan.kind][-1]}_t"
            lines.append(f"{x}: {f'{x}_t = b_t, no scan' if scan.is_shift else doubled}")
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


SHIFTED: frozenset[Kind] = frozenset(("logaddexp", "maximum"))
"""The kinds that are a function of the state, to which the factor is added, and of the term."""

LETTERS: dict[Kind, tuple[str, ...]] = {
    "affine": ("a", "b"),
    "logaddexp": ("w", "c"),
    "maximum": ("w", "c"),
    "phase": ("b",),
}
"""What the parts of an element are called: factor and term, or the term alone."""

_STEP: dict[Kind, str] = {
    "affine": "b_t = a_t * b_(t-n) + b_t, then a_t = a_t * a_(t-n)",
    "logaddexp": "c_t = logaddexp(c_(t-n) + w_t, c_t), then w_t = w_t + w_(t-n)",
    "maximum": "c_t = maximum(c_(t-n) + w_t, c_t), then w_t = w_t + w_(t-n)",
    "phase": "b_t = fraction(b_(t-n) + b_t)",
}
"""What doubling does to the elements."""


def _scanned(scan: Scan) -> str:
    x = scan.state.name
    match scan.kind:
        case "affine":
            return f"{x} = a * {x}_prev + b"
        case "logaddexp" | "maximum" as function:
            return f"{x} = {function}({x}_prev + w, c)"
        case "phase":
            return f"{x} = fraction({x}_prev + b)"


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
