"""Expressions back to the language's own notation, with as few parentheses as it needs."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

from flagen.printing import ATOM, PRODUCT, SIGN, Printed, joined, negative
from flagen.spec.limits import MAX_DIGITS
from flagen.spec.model import (
    Binary,
    Call,
    Contract,
    Expr,
    Index,
    Name,
    Negate,
    Number,
    Outer,
    Over,
    Pairs,
    Reduce,
    Rotate,
    RowMap,
    Solution,
    StateRead,
    Transpose,
)


def to_source(expr: Expr) -> str:
    """The expression as a spec writes it; parsing the text gives `expr` again."""
    return _printed(expr).text


def _printed(expr: Expr) -> Printed:
    match expr:
        case Number(value):
            return _number(value)
        case Name(name):
            return Printed(name)
        case StateRead(name, previous):
            return Printed(f"{name}_prev" if previous else name)
        case Negate(value):
            return negative(_printed(value))
        case Binary(op, left, right):
            return joined(op, _printed(left), _printed(right))
        case Contract(left, right):
            return joined("@", _printed(left), _printed(right))
        case Transpose(value):
            return Printed(f"{_printed(value).atom}.T")
        case Outer(left, right):
            return Printed(f"outer({to_source(left)}, {to_source(right)})")
        case Call(function, args):
            return Printed(f"{function}({', '.join(map(to_source, args))})")
        case Reduce(function, value, dim):
            return Printed(f"{function}({to_source(value)}{'' if dim is None else f', {dim}'})")
        case RowMap(function, value):
            return Printed(f"{function}({to_source(value)})")
        case Rotate(value, angle, half):
            return Printed(f"{'rotate_half' if half else 'rotate'}({to_source(value)}, {to_source(angle)})")
        case Over(value, source, target):
            renamed = target if len(value.dims) == 1 else f"{source}, {target}"
            return Printed(f"over({to_source(value)}, {renamed})")
        case Pairs(left, right):
            return Printed(f"pairs({to_source(left)}, {to_source(right)})")
        case Index(dim):
            return Printed(f"index({dim})")
        case Solution(matrix, right, shift):
            given = (matrix, right) if shift is None else (matrix, right, shift)
            return Printed(f"solve({', '.join(map(to_source, given))})")


def _number(value: Fraction | float) -> Printed:
    if isinstance(value, float):
        return Printed(f"{value:g}", SIGN if value < 0 else ATOM)
    with localcontext() as context:
        context.prec = 1000  # The literals of the language have fewer digits: their decimals are exact.
        decimal = Decimal(value.numerator) / Decimal(value.denominator)
        if Fraction(decimal) != value:
            return Printed(f"{value.numerator} / {value.denominator}", PRODUCT)
        text = _decimal(decimal)
    return Printed(text, SIGN if value < 0 else ATOM)


def _decimal(value: Decimal) -> str:
    """Plain digits where they are short, an exponent where they are not: `0.5`, `64`, `1e-10`."""
    plain = f"{value:f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    digits = "".join(map(str, value.normalize().as_tuple().digits))
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    scientific = f"{'-' if value < 0 else ''}{digits[0]}{fraction}e{value.adjusted()}"
    return plain if len(plain) <= max(8, min(len(scientific), MAX_DIGITS)) else scientific
