"""A layer's expression as text, in the language."""

from __future__ import annotations

from flagen.printing import ATOM, SIGN, Printed, choice, joined, negative, opposite
from flagen.spec.layer.model import Binary, Call, Compare, Expr, IfElse, Logic, Name, Several, Unary, Value


def to_text(expr: Expr) -> str:
    """`expr` as one would write it."""
    return _printed(expr).text


def _printed(expr: Expr) -> Printed:
    match expr:
        case Value(value):
            return Printed(repr(value), SIGN if repr(value).startswith("-") else ATOM)
        case Name(name):
            return Printed(name)
        case Unary("not", value):
            return opposite(_printed(value))
        case Unary(_, value):
            return negative(_printed(value))
        case Binary(op, left, right) | Compare(op, left, right):
            return joined(op, _printed(left), _printed(right))
        case Logic(op, values):
            return joined(op, *map(_printed, values))
        case IfElse(condition, then, otherwise):
            return choice(_printed(then), _printed(condition), _printed(otherwise))
        case Call(name, _, args, keywords):
            given = [to_text(arg) for arg in args] + [f"{key}={to_text(value)}" for key, value in keywords]
            return Printed(f"{name}({', '.join(given)})")
        case Several(items):
            return Printed(f"({', '.join(map(to_text, items))})")
