"""A layer's expression as text, in the language."""

from __future__ import annotations

from flagen.spec.layer.model import Binary, Call, Compare, Expr, IfElse, Logic, Name, Several, Unary, Value

_CHOICE, _OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _MINUS, _POWER, _ATOM = range(10)
_BINARY = {"+": _SUM, "-": _SUM, "*": _PRODUCT, "/": _PRODUCT, "//": _PRODUCT, "%": _PRODUCT, "**": _POWER}


def to_text(expr: Expr) -> str:
    """`expr` as one would write it."""
    return _text(expr)[0]


def _text(expr: Expr) -> tuple[str, int]:
    match expr:
        case Value(value):
            return repr(value), _MINUS if repr(value).startswith("-") else _ATOM
        case Name(name):
            return name, _ATOM
        case Unary("not", value):
            return f"not {_within(value, _NOT)}", _NOT
        case Unary(_, value):
            return f"-{_within(value, _MINUS)}", _MINUS
        case Binary("**", left, right):
            return f"{_within(left, _ATOM)} ** {_within(right, _MINUS)}", _POWER
        case Binary(op, left, right):
            level = _BINARY[op]
            return f"{_within(left, level)} {op} {_within(right, level + 1)}", level
        case Compare(op, left, right):
            return f"{_within(left, _SUM)} {op} {_within(right, _SUM)}", _COMPARE
        case Logic(op, values):
            level = _OR if op == "or" else _AND
            return f" {op} ".join(_within(value, level + 1) for value in values), level
        case IfElse(condition, then, otherwise):
            parts = _within(then, _OR), _within(condition, _OR), _within(otherwise, _CHOICE)
            return f"{parts[0]} if {parts[1]} else {parts[2]}", _CHOICE
        case Call(name, _, args, keywords):
            given = [to_text(arg) for arg in args] + [f"{key}={to_text(value)}" for key, value in keywords]
            return f"{name}({', '.join(given)})", _ATOM
        case Several(items):
            return f"({', '.join(map(to_text, items))})", _ATOM


def _within(expr: Expr, level: int) -> str:
    text, own = _text(expr)
    return text if own >= level else f"({text})"
