"""The log of a decay, as an expression that stays accurate where the decay nears 0 or 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from flagen.algebra.monomials import OutsideNormalForm
from flagen.diagnostics import Span
from flagen.functions import FUNCTIONS
from flagen.spec.formulas import filled, formula
from flagen.spec.model import Binary, Call, Derived, Expr, Interval, Name, Negate, Number
from flagen.spec.ranges import interval_of

MINUS_INFINITY = Number(-math.inf)


def log_of(expr: Expr, derived: Mapping[str, Derived], ranges: Mapping[str, Interval]) -> Expr:
    """`log(expr)`, through the definitions of `let`, `decay` and `gate` names.

    Raises:
        OutsideNormalForm: the declared ranges do not prove `expr` positive, so that it has no log.
    """
    match expr:
        case Number(value) if value == 1:
            return Number(Fraction(0))
        case Number(value) if value == 0:
            return MINUS_INFINITY
        case Name(name, "derived"):
            definition = derived[name].value
            found = log_of(definition, derived, ranges)
            return Call("log", (expr,), expr.span) if found == Call("log", (definition,)) else found
        case Binary("*", left, right):
            return Binary("+", log_of(left, derived, ranges), log_of(right, derived, ranges), expr.span)
        case Binary("/", left, right):
            return Binary("-", log_of(left, derived, ranges), log_of(right, derived, ranges), expr.span)
        case Binary("**", base, exponent) if interval_of(base, ranges).low > 0 or _is_exp(base, derived):
            return Binary("*", exponent, log_of(base, derived, ranges), expr.span)
        case Call(function, (x,)) if FUNCTIONS[function].log:
            return _by_formula(formula(FUNCTIONS[function].log), x, lambda: log_of(x, derived, ranges), expr.span)
    if not interval_of(expr, ranges).low > 0:
        raise OutsideNormalForm(
            "the decay is not proved positive by the declared ranges, so its log may not exist "
            "(write it as exp(g), or declare a range that keeps it above 0)",
            expr.span,
        )
    match expr:
        case Binary("-", Number(value), rest) if value == 1:
            return Call("log1p", (Negate(rest, rest.span),), expr.span)
        case Binary("+", Number(value), rest) if value == 1:
            return Call("log1p", (rest,), expr.span)
    return Call("log", (expr,), expr.span)


def _by_formula(pattern: Expr, x: Expr, log: Callable[[], Expr], span: Span) -> Expr:
    """The formula of a function's log, at `x`, of which `log` is the log."""
    match pattern:
        case Call("log"):
            return log()
        case Binary(op, left, right):
            return Binary(op, _by_formula(left, x, log, span), _by_formula(right, x, log, span), span)
        case Number():
            return pattern
    return filled(pattern, {"x": x}, span)


def _is_exp(expr: Expr, derived: Mapping[str, Derived]) -> bool:
    match expr:
        case Name(name, "derived"):
            return _is_exp(derived[name].value, derived)
        case Call("exp", _):
            return True
    return False
