"""Expressions back to the language's own notation, with as few parentheses as it needs."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

from flagen.spec.limits import MAX_DIGITS
from flagen.spec.model import (
    Binary,
    Call,
    Contract,
    Expr,
    Name,
    Negate,
    Number,
    Outer,
    Reduce,
    RowMap,
    StateRead,
    Transpose,
)

_SUM, _PRODUCT, _SIGN, _POWER, _ATOM = range(5)
_BINDING = {"+": _SUM, "-": _SUM, "*": _PRODUCT, "/": _PRODUCT, "**": _POWER}


def to_source(expr: Expr) -> str:
    """The expression as a spec writes it; parsing the text gives `expr` again."""
    return _print(expr)[0]


def _print(expr: Expr) -> tuple[str, int]:
    """The text, and how tightly its outermost operator binds."""
    match expr:
        case Number(value):
            return _number(value)
        case Name(name):
            return name, _ATOM
        case StateRead(name, previous):
            return f"{name}_prev" if previous else name, _ATOM
        case Negate(value):
            return f"-{_within(value, _SIGN)}", _SIGN
        case Binary("**", left, right):
            # A power binds its exponent from the right, and a sign in the exponent needs no parentheses.
            return f"{_within(left, _ATOM)} ** {_within(right, _SIGN)}", _POWER
        case Binary(op, left, right):
            level = _BINDING[op]
            return f"{_within(left, level)} {op} {_within(right, level + 1)}", level
        case Contract(left, right):
            return f"{_within(left, _PRODUCT)} @ {_within(right, _PRODUCT + 1)}", _PRODUCT
        case Transpose(value):
            return f"{_within(value, _ATOM)}.T", _ATOM
        case Outer(left, right):
            return f"outer({to_source(left)}, {to_source(right)})", _ATOM
        case Call(function, args):
            return f"{function}({', '.join(map(to_source, args))})", _ATOM
        case Reduce(function, value, dim):
            return f"{function}({to_source(value)}{'' if dim is None else f', {dim}'})", _ATOM
        case RowMap(function, value):
            return f"{function}({to_source(value)})", _ATOM


def _within(expr: Expr, level: int) -> str:
    text, binding = _print(expr)
    return text if binding >= level else f"({text})"


def _number(value: Fraction | float) -> tuple[str, int]:
    if isinstance(value, float):
        return f"{value:g}", _SIGN if value < 0 else _ATOM
    with localcontext() as context:
        context.prec = 1000  # The literals of the language have fewer digits: their decimals are exact.
        decimal = Decimal(value.numerator) / Decimal(value.denominator)
        if Fraction(decimal) != value:
            return f"{value.numerator} / {value.denominator}", _PRODUCT
        text = _decimal(decimal)
    return text, _SIGN if value < 0 else _ATOM


def _decimal(value: Decimal) -> str:
    """Plain digits where they are short, an exponent where they are not: `0.5`, `64`, `1e-10`."""
    plain = f"{value:f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    digits = "".join(map(str, value.normalize().as_tuple().digits))
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    scientific = f"{'-' if value < 0 else ''}{digits[0]}{fraction}e{value.adjusted()}"
    return plain if len(plain) <= max(8, min(len(scientific), MAX_DIGITS)) else scientific
