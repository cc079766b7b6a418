"""Expressions as polynomials in tensor elements: the one place where SymPy works.

A tensor is written by a symbol for its element at a generic index (`S[K,V]`, `k[K]`, `g[]`), a contraction by a fresh
dummy index (`S[K'1,V] * k[K'1]`, the sum is implied), and the whole is expanded. What comes out is a list of monomials,
each a product of elements, that the normal form sorts by which indices the factors carry.

State-free parts that are not products stay whole as one element, with their definition at hand: the algebra is
polynomial in them, so nothing is lost and the front-end map stays as short as it was written.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import sympy

from flagen.algebra.limits import product_problem
from flagen.diagnostics import NOWHERE, InternalError, Span
from flagen.spec.model import (
    Binary,
    Contract,
    Expr,
    Name,
    Negate,
    Number,
    Outer,
    Over,
    Reduce,
    Rotate,
    StateRead,
    Transpose,
    walk,
)
from flagen.spec.printer import to_source

LONG = 100
"""Characters of an expression that a message shows."""

Index = str
Indices = Mapping[str, Index]


class OutsideNormalForm(Exception):
    """The spec is valid but its update is no row of the normal form; says which part, and where."""

    def __init__(self, reason: str, span: Span) -> None:
        super().__init__(reason)
        self.reason = reason
        self.span = span


def reads_state(expr: Expr) -> bool:
    """Whether a state occurs in `expr` (locals already inlined)."""
    return any(isinstance(node, StateRead) for node in walk(expr))


@dataclass(frozen=True)
class Element:
    """One tensor at a generic index; `tensor` is a state read or a state-free expression."""

    tensor: Expr
    index: tuple[Index, ...]

    @property
    def is_state(self) -> bool:
        return isinstance(self.tensor, StateRead)


@dataclass(frozen=True)
class Monomial:
    """A rational coefficient times elements, each repeated as often as its (positive) power says. `span` is the term of
    the source that it comes from."""

    coefficient: Fraction
    elements: tuple[Element, ...]
    span: Span

    @property
    def states(self) -> tuple[Element, ...]:
        return tuple(e for e in self.elements if e.is_state)

    def others(self) -> tuple[Element, ...]:
        return tuple(e for e in self.elements if not e.is_state)


@dataclass
class Expansion:
    """Turns expressions into monomials. Holds the symbol table of one derivation."""

    symbols: dict[Element, sympy.Symbol] = field(default_factory=dict)
    elements: dict[sympy.Symbol, Element] = field(default_factory=dict)
    fresh: Iterator[int] = field(default_factory=itertools.count)

    def cancelled(self, expr: Expr) -> Expr:
        """The state-free `expr` with its sums multiplied out and what cancels gone: `1 - (1 - a)` is `a`."""
        _check_product(expr, sums_stay=False)
        return self.expression(self._multiplied_out(expr, {dim: dim for dim in expr.dims}), expr.span)

    def expression(self, polynomial: sympy.Expr, span: Span = NOWHERE) -> Expr:
        """A polynomial in this expansion's symbols as an expression, its terms as they stand in the source."""
        ordered = sorted(self._expanded(polynomial, span), key=lambda m: [_position(e) for e in m.elements])
        return total(scaled(m.coefficient, product(m.elements)) for m in ordered) or Number(Fraction(0))

    def number(self, elements: Sequence[Element]) -> sympy.Expr:
        """A product of elements with no index left, as a polynomial in this expansion's symbols."""
        if all(not element.index for element in elements):
            return sympy.Mul(*(self.symbols[element] for element in elements))
        return self._element(product(elements) or Number(Fraction(1)), {})

    def _multiplied_out(self, expr: Expr, indices: Indices) -> sympy.Expr:
        match expr:
            case Negate(value):
                return -self._multiplied_out(value, indices)
            case Binary("+" | "-" | "*" as op, left, right):
                one, other = self._multiplied_out(left, indices), self._multiplied_out(right, indices)
                return one + other if op == "+" else one - other if op == "-" else one * other
        return self._polynomial(expr, indices)

    def monomials(self, expr: Expr, indices: Indices) -> tuple[Monomial, ...]:
        """`expr` at `indices` (dim → index), expanded; monomials in the order their factors stand in the source.

        Raises:
            OutsideNormalForm: the expression is not affine in the states.
        """
        _check_product(expr, sums_stay=True)
        found: dict[tuple[Element, ...], Monomial] = {}
        for sign, term in _terms(expr):
            for monomial in self._expanded(sign * self._polynomial(term, indices), term.span):
                other = found.get(monomial.elements, replace(monomial, coefficient=Fraction(0)))
                found[monomial.elements] = replace(other, coefficient=other.coefficient + monomial.coefficient)
        kept = [monomial for monomial in found.values() if monomial.coefficient]
        return tuple(sorted(kept, key=lambda m: ([_position(e) for e in m.elements], m.coefficient)))

    # ----------------------------------------------------------------------------------------------- expression → SymPy

    def _polynomial(self, expr: Expr, indices: Indices) -> sympy.Expr:
        match expr:
            case Number(value) if isinstance(value, Fraction):
                return sympy.Rational(value.numerator, value.denominator)
            case StateRead():
                return self._element(expr, indices)
            case Negate(value):
                return -self._polynomial(value, indices)
            case Transpose(value):
                return self._polynomial(value, indices)
            case Binary("*", left, right) | Outer(left, right):
                self._one_state(expr, left, right)
                return self._polynomial(left, indices) * self._polynomial(right, indices)
        if not reads_state(expr):
            return self._state_free(expr, indices)
        match expr:
            case Binary("+", left, right):
                return self._polynomial(left, indices) + self._polynomial(right, indices)
            case Binary("-", left, right):
                return self._polynomial(left, indices) - self._polynomial(right, indices)
            case Binary("/", left, right) if not reads_state(right):
                reciprocal = Binary("/", Number(Fraction(1)), right, right.span)
                return self._polynomial(left, indices) * self._element(reciprocal, indices)
            case Contract(left, right):
                self._one_state(expr, left, right)
                dummy = self._dummy(expr.dim)
                inner = {**indices, expr.dim: dummy}
                product = self._polynomial(left, inner) * self._polynomial(right, inner)
                return self._summed(product, {expr.dim: dummy})
            case Reduce("sum" | "mean", value, dim):
                dims = value.dims if dim is None else (dim,)
                dummies = {d: self._dummy(d) for d in dims}
                total = self._summed(self._polynomial(value, {**indices, **dummies}), dummies)
                if expr.function == "sum":
                    return total
                return total * sympy.Mul(*(self._element(_reciprocal_size(d), {}) for d in dims))
            case Rotate():
                raise OutsideNormalForm(f"`{shown(expr)}` turns what is read of the state", expr.span)
            case Over():
                raise OutsideNormalForm(f"`{shown(expr)}` names a dim of what is read of the state anew", expr.span)
        raise OutsideNormalForm(f"`{shown(expr)}` is not affine in the state", expr.span)

    def _state_free(self, expr: Expr, indices: Indices) -> sympy.Expr:
        """A matrix falls apart into outer products where it can; a vector or a scalar stays whole."""
        match expr:
            case Binary("+" | "-" as op, left, right) if len(expr.dims) > 1:
                sides = self._polynomial(left, indices), self._polynomial(right, indices)
                return sides[0] + sides[1] if op == "+" else sides[0] - sides[1]
            case Binary("/", left, right) if len(expr.dims) > len(right.dims):
                reciprocal = Binary("/", Number(Fraction(1)), right, right.span)
                return self._polynomial(left, indices) * self._element(reciprocal, indices)
        return self._element(expr, indices)

    def _one_state(self, expr: Expr, left: Expr, right: Expr) -> None:
        if reads_state(left) and reads_state(right):
            raise OutsideNormalForm(f"`{shown(expr)}` multiplies the state by the state", expr.span)

    def _element(self, tensor: Expr, indices: Indices) -> sympy.Expr:
        element = Element(tensor, tuple(indices[dim] for dim in tensor.dims))
        if element not in self.symbols:
            symbol = sympy.Symbol(f"e{len(self.symbols)}")
            self.symbols[element], self.elements[symbol] = symbol, element
        return self.symbols[element]

    def _dummy(self, dim: str) -> Index:
        return f"{dim}'{next(self.fresh)}"

    def _summed(self, polynomial: sympy.Expr, dummies: Indices) -> sympy.Expr:
        """Sum over `dummies`. The sum is implied where the dummy occurs; elsewhere it counts the dim's size."""
        total = sympy.Integer(0)
        for term in sympy.Add.make_args(sympy.expand(polynomial)):
            used = {index for symbol in term.free_symbols for index in self.elements[symbol].index}
            sizes = [self._element(Name(dim, "size"), {}) for dim, dummy in dummies.items() if dummy not in used]
            total += term * sympy.Mul(*sizes)
        return total

    # ------------------------------------------------------------------------------------------------ SymPy → monomials

    def _expanded(self, polynomial: sympy.Expr, span: Span) -> list[Monomial]:
        return [self._monomial(term, span) for term in sympy.Add.make_args(sympy.expand(polynomial)) if term != 0]

    def _monomial(self, term: sympy.Expr, span: Span) -> Monomial:
        coefficient = Fraction(1)
        elements: list[Element] = []
        for factor in sympy.Mul.make_args(term):
            base, power = factor.as_base_exp()
            if base.is_Rational and power.is_Integer:
                coefficient *= Fraction(int(base.p), int(base.q)) ** int(power)
            elif base.is_Symbol and power.is_Integer and power > 0:
                elements += [self.elements[base]] * int(power)
            else:
                raise InternalError(f"SymPy returned a node that is no monomial in tensor elements: {factor}")
        return Monomial(coefficient, tuple(sorted(elements, key=_position)), span)


def _check_product(expr: Expr, *, sums_stay: bool) -> None:
    if problem := product_problem(expr, sums_stay=sums_stay):
        raise OutsideNormalForm(problem, expr.span)


def _terms(expr: Expr) -> Iterator[tuple[int, Expr]]:
    """The terms of a sum, each with its sign."""
    match expr:
        case Binary("+" | "-" as op, left, right) if left.dims == right.dims:
            yield from _terms(left)
            yield from ((sign if op == "+" else -sign, term) for sign, term in _terms(right))
        case Negate(value):
            yield from ((-sign, term) for sign, term in _terms(value))
        case _:
            yield 1, expr


def shown(expr: Expr) -> str:
    """`expr` as the spec has it: without the versions its state reads were tied to. Of one that is long, as where
    locals are written out, the beginning."""
    text = re.sub(r"@\d+", "", to_source(expr))
    return text if len(text) <= LONG else f"{text[:LONG]} ..."


def _reciprocal_size(dim: str) -> Expr:
    return Binary("/", Number(Fraction(1)), Name(dim, "size"))


def _position(element: Element) -> tuple[int, int, str, tuple[Index, ...]]:
    span = _first_span(element.tensor)
    return (span.line, span.column, type(element.tensor).__name__, element.index)


def _first_span(expr: Expr) -> Span:
    return min((node.span for node in walk(expr)), key=lambda span: (span.line, span.column))


# ------------------------------------------------------------------------------------------------ elements → expression


def components(elements: Iterable[Element]) -> tuple[tuple[frozenset[Index], tuple[Element, ...]], ...]:
    """The factors of a monomial, grouped by the indices that tie them together."""
    groups: list[tuple[set[Index], list[Element]]] = []
    for element in elements:
        touching = [group for group in groups if group[0] & set(element.index)]
        merged: tuple[set[Index], list[Element]] = (set(element.index), [])
        for group in touching:
            merged[0].update(group[0])
            merged[1].extend(group[1])
            groups.remove(group)
        merged[1].append(element)
        groups.append(merged)
    return tuple((frozenset(indices), tuple(sorted(members, key=_position))) for indices, members in groups)


def product(elements: Iterable[Element]) -> Expr | None:
    """The product of `elements` as an expression, summed over every dummy index; None for an empty product.

    Raises:
        OutsideNormalForm: two indices run over one dim, which named dims cannot say.
    """
    remaining = list(elements)
    while dummies := {i for e in remaining for i in e.index if "'" in i}:
        # Vectors before matrices: `A @ (B @ x)` rather than `(A @ B) @ x`.
        dummy = min(dummies, key=lambda dummy: (len(_indices_beside(dummy, remaining)), dummy))
        inside = [e for e in remaining if dummy in e.index]
        remaining = [e for e in remaining if dummy not in e.index]
        remaining.append(_contracted(inside, dummy))
    result: Expr | None = None
    for element in sorted(remaining, key=lambda e: (len(e.index), _position(e))):
        result = element.tensor if result is None else Binary("*", result, element.tensor, element.tensor.span)
    return result


def _indices_beside(dummy: Index, elements: Iterable[Element]) -> tuple[Index, ...]:
    """The other indices of the elements that have `dummy`: those of what is left when it is summed over."""
    return tuple(dict.fromkeys(i for e in elements if dummy in e.index for i in e.index if i != dummy))


def _contracted(inside: list[Element], dummy: Index) -> Element:
    dim = dummy.split("'")[0]
    kept = _indices_beside(dummy, inside)
    span = inside[0].tensor.span
    if dim in (i.split("'")[0] for i in kept):
        raise OutsideNormalForm(f"two indices over {dim} meet here", span)
    if len(inside) == 2 and all(len(e.index) == 1 for e in inside):
        return Element(Contract(inside[0].tensor, inside[1].tensor, span), ())
    total: Expr = inside[0].tensor
    for element in inside[1:]:
        wide, narrow = set(total.dims), set(element.tensor.dims)
        if not (wide <= narrow or narrow <= wide):
            raise OutsideNormalForm("this product of tensors is not a sum of outer products", span)
        total = Binary("*", total, element.tensor, span)
    summed = Reduce("sum", total, dim, span)
    order = {i.split("'")[0]: i for i in kept}
    return Element(summed, tuple(order[d] for d in summed.dims))


def scaled(coefficient: Fraction, expr: Expr | None, span: Span = NOWHERE) -> Expr:
    """`coefficient * expr`, written as a person would; a bare coefficient stands at `span`."""
    if expr is None:
        number = Number(abs(coefficient), span)
        return Negate(number, span) if coefficient < 0 else number
    if coefficient == 1:
        return expr
    if coefficient == -1:
        return Negate(expr, expr.span)
    return Binary("*", scaled(coefficient, None), expr, expr.span)


def total(terms: Iterable[Expr]) -> Expr | None:
    """The sum of `terms`, with minus signs where a term is negated; None for an empty sum."""
    result: Expr | None = None
    for term in terms:
        if result is None:
            result = term
        elif isinstance(term, Negate):
            result = Binary("-", result, term.value, term.span)
        else:
            result = Binary("+", result, term, term.span)
    return result
