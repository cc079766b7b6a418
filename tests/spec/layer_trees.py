"""Expressions of layers over a few numbers, drawn so that they can be written, and read, and have a value."""

from __future__ import annotations

from hypothesis import strategies as st

from flagen.diagnostics import NOWHERE
from flagen.spec.layer.model import Binary, Call, Compare, Constant, Expr, IfElse, Logic, Name, Unary, Value
from flagen.spec.layer.scope import LayerScope
from flagen.spec.report import Report

NUMBERS: dict[str, Constant] = {"a": 3, "b": -2.5, "c": 0, "D": 64}
TRUTHS: dict[str, Constant] = {"on": True, "off": False, "text": "silu", "none": None}


def scope(report: Report) -> LayerScope:
    """A scope in which all of the names are config."""
    names = LayerScope(report)
    for name in (*NUMBERS, *TRUTHS):
        names.declare(name, "config", NOWHERE)
    return names


def literals() -> st.SearchStrategy[Expr]:
    numbers = st.one_of(st.integers(-20, 20), st.floats(-4, 4, width=16).map(lambda x: round(x, 4)))
    return st.one_of(numbers.map(Value), st.sampled_from([*NUMBERS]).map(lambda name: Name(name, "config")))


@st.composite
def numbers(draw: st.DrawFn, depth: int = 3) -> Expr:
    """An expression that is a number, where it has a value."""
    if depth == 0:
        return draw(literals())
    inner = numbers(depth - 1)
    kind = draw(st.sampled_from(("literal", "binary", "minus", "choice", "call")))
    match kind:
        case "binary":
            op = draw(st.sampled_from(("+", "-", "*", "/", "//", "%", "**")))
            return Binary(op, draw(inner), draw(inner))
        case "minus":
            value = draw(inner)
            # The minus of a literal is read as a literal.
            return value if isinstance(value, Value) else Unary("-", value)
        case "choice":
            return IfElse(draw(conditions(depth - 1)), draw(inner), draw(inner))
        case "call":
            name = draw(st.sampled_from(("max", "min", "abs", "round", "floor", "ceil")))
            args = (draw(inner), draw(inner)) if name in ("max", "min") else (draw(inner),)
            return Call(name, "function", args)
        case _:
            return draw(literals())


@st.composite
def conditions(draw: st.DrawFn, depth: int = 2) -> Expr:
    if depth == 0:
        return draw(st.sampled_from([*TRUTHS]).map(lambda name: Name(name, "config")))
    inner = conditions(depth - 1)
    match draw(st.sampled_from(("name", "not", "logic", "compare", "is"))):
        case "not":
            return Unary("not", draw(inner))
        case "logic":
            op = draw(st.sampled_from(("and", "or")))
            parts = draw(st.lists(inner, min_size=2, max_size=3))
            return Logic(op, tuple(parts))
        case "compare":
            op = draw(st.sampled_from(("==", "!=", "<", "<=", ">", ">=")))
            return Compare(op, draw(numbers(depth - 1)), draw(numbers(depth - 1)))
        case "is":
            op = draw(st.sampled_from(("is", "is not")))
            return Compare(op, draw(numbers(depth - 1)), Value(None))
        case _:
            return draw(conditions(0))
