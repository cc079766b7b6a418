"""The formulas of the table of functions as expressions."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from fractions import Fraction
from functools import cache

from flagen.diagnostics import NOWHERE, InternalError, Span
from flagen.functions import FUNCTIONS
from flagen.spec.model import Binary, Call, Expr, Name, Negate, Number

_OPERATORS: Mapping[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}


@cache
def formula(text: str) -> Expr:
    """A formula over names of arguments, which are locals of no dims; the functions of kernels may be among its
    calls."""
    return _read(ast.parse(text, mode="eval").body)


def filled(pattern: Expr, values: Mapping[str, Expr], span: Span = NOWHERE) -> Expr:
    """A formula with `values` for its names; what is new stands at `span`."""
    match pattern:
        case Name(name):
            return values[name]
        case Number(value):
            return Number(value, span)
        case Negate(value):
            return Negate(filled(value, values, span), span)
        case Binary(op, left, right):
            return Binary(op, filled(left, values, span), filled(right, values, span), span)
        case Call(function, args):
            return Call(function, tuple(filled(arg, values, span) for arg in args), span)
    raise InternalError(f"no formula has {pattern!r}")


def definition_of(call: Call) -> Expr | None:
    """What `call` is in terms of other functions, where the table says so."""
    row = FUNCTIONS.get(call.function)
    if row is None or not row.definition:
        return None
    return filled(formula(row.definition), dict(zip(row.arguments, call.args, strict=True)), call.span)


def _read(node: ast.expr) -> Expr:
    match node:
        case ast.Constant(int() | float() as value):
            return Number(Fraction(repr(value)))
        case ast.Name(name):
            return Name(name, "local")
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return Number(-Fraction(repr(value)))
        case ast.UnaryOp(ast.USub(), operand):
            return Negate(_read(operand))
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
            return Binary(_OPERATORS[type(op)], _read(left), _read(right))  # type: ignore[arg-type]
        case ast.Call(ast.Name(function), args):
            return Call(function, tuple(map(_read, args)))
    raise InternalError(f"a formula with {ast.unparse(node)}")
