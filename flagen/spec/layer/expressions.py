"""Expressions of a layer: the syntax tree walked over a whitelist into the model's tree, with names resolved.

As for the recurrence's expressions, a mistake is reported once, and the expression around it becomes None and stays
silent. What numbers and shapes come to is not looked at here.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from flagen.diagnostics import Span
from flagen.spec.grammar import node_span, parse_number, parse_python
from flagen.spec.layer.model import (
    Binary,
    Call,
    CallKind,
    Compare,
    Expr,
    IfElse,
    Logic,
    Name,
    Several,
    Unary,
    Value,
    walk,
)
from flagen.spec.layer.scope import LayerScope
from flagen.spec.layer.vocabulary import CONSTRUCTORS, FUNCTIONS, NUMBER_FUNCTIONS, RULES
from flagen.spec.layer.words import Parameter
from flagen.spec.loader import Scalar
from flagen.spec.names import did_you_mean
from flagen.spec.report import Report

_OPERATORS: dict[type[ast.operator], Literal["+", "-", "*", "/", "//", "%", "**"]] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
}
_COMPARISONS: dict[type[ast.cmpop], Literal["==", "!=", "<", "<=", ">", ">=", "is", "is not"]] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Is: "is",
    ast.IsNot: "is not",
}


def parse_layer_expression(scalar: Scalar, start: int, scope: LayerScope, report: Report) -> Expr | None:
    """The expression `scalar.text[start:]`; None after a diagnostic."""
    tree = parse_python(scalar, start, report, wide=True)
    if tree is None:
        scope.mention(scalar.text)
        return None
    value = _Elaborator(scalar, start, scope, report).expr(tree)
    if value is None:
        scope.mention(scalar.text)
    return value


def bind(
    args: Sequence[Expr], keywords: Sequence[tuple[str, Expr]], given: Sequence[Parameter]
) -> tuple[dict[str, Expr], str]:
    """Arguments by the names of the parameters that they are for, and what is wrong with them, or nothing."""
    if len(args) > len(given):
        return {}, f"takes {_count(len(given))}"
    bound = {parameter.name: arg for parameter, arg in zip(given, args, strict=False)}
    names = [parameter.name for parameter in given]
    for name, value in keywords:
        if name not in names:
            hint = did_you_mean(name, names)
            return {}, f"has no argument `{name}`" + (f"; {hint}" if hint else "")
        if name in bound:
            return {}, f"is given `{name}` twice"
        bound[name] = value
    missing = [parameter.name for parameter in given if not parameter.optional and parameter.name not in bound]
    return bound, f"is not given `{missing[0]}`" if missing else ""


def _count(number: int) -> str:
    return {0: "no arguments", 1: "one argument"}.get(number, f"at most {number} arguments")


class _Elaborator:
    """Walks one expression's syntax tree."""

    def __init__(self, scalar: Scalar, start: int, scope: LayerScope, report: Report) -> None:
        self.scalar = scalar
        self.start = start
        self.scope = scope
        self.report = report

    def expr(self, node: ast.expr) -> Expr | None:
        match node:
            case ast.Constant():
                return self.constant(node)
            case ast.Name(id=name):
                return self.scope.resolve(name, self.span(node))
            case ast.UnaryOp(op=ast.USub() | ast.Not() as op, operand=operand):
                value = self.expr(operand)
                sign: Literal["-", "not"] = "-" if isinstance(op, ast.USub) else "not"
                return None if value is None else self.folded(Unary(sign, value, self.span(node)))
            case ast.UnaryOp(operand=operand):
                self.refuse("E403", node, "`+` before a value is not part of the language", "leave it out")
                self.expr(operand)
                return None
            case ast.BinOp(left=left, op=operator, right=right):
                a, b = self.expr(left), self.expr(right)
                return None if a is None or b is None else Binary(_OPERATORS[type(operator)], a, b, self.span(node))
            case ast.Compare():
                return self.compare(node)
            case ast.BoolOp(op=op, values=values):
                parts = [self.expr(value) for value in values]
                present = tuple(part for part in parts if part is not None)
                word: Literal["and", "or"] = "and" if isinstance(op, ast.And) else "or"
                return Logic(word, present, self.span(node)) if len(present) == len(parts) else None
            case ast.IfExp(test=test, body=body, orelse=orelse):
                then, condition, otherwise = self.expr(body), self.expr(test), self.expr(orelse)
                if then is None or condition is None or otherwise is None:
                    return None
                return IfElse(condition, then, otherwise, self.span(node))
            case ast.Call():
                return self.call(node)
            case ast.Tuple(elts=items):
                found = [self.expr(item) for item in items]
                several = tuple(item for item in found if item is not None)
                return Several(several, self.span(node)) if len(several) == len(found) else None
            case _:
                self.refuse("E402", node, "this is not part of the language")
                return None

    def constant(self, node: ast.Constant) -> Expr | None:
        if node.value is None or isinstance(node.value, bool | str):
            return Value(node.value, self.span(node))
        text = self.scalar.text[self.start + node.col_offset : self.start + (node.end_col_offset or 0)]
        number = parse_number(text)
        if not isinstance(number, Fraction):
            self.refuse("E402", node, f"`{text}` is not part of the language", number)
            return None
        return Value(int(number) if text.isdigit() else float(number), self.span(node))

    def folded(self, unary: Unary) -> Expr:
        """`-1` as the number that it is."""
        if unary.op == "-" and isinstance(unary.value, Value) and type(unary.value.value) in (int, float):
            number = unary.value.value
            assert isinstance(number, int | float)
            return Value(-number, unary.span)
        return unary

    def compare(self, node: ast.Compare) -> Expr | None:
        if len(node.ops) > 1:
            self.refuse("E403", node, "comparisons are not chained", "write `a < b and b < c`")
            return None
        operator = _COMPARISONS[type(node.ops[0])]
        left, right = self.expr(node.left), self.expr(node.comparators[0])
        if left is None or right is None:
            return None
        if operator in ("is", "is not") and not (isinstance(right, Value) and right.value is None):
            shown = "==" if operator == "is" else "!="
            self.refuse("E403", node, f"`{operator}` compares with None", f"a comparison is written `{shown}`")
            return None
        return Compare(operator, left, right, self.span(node))

    def call(self, node: ast.Call) -> Expr | None:
        args = [self.expr(arg) for arg in node.args]
        keywords = [(keyword.arg or "", self.expr(keyword.value)) for keyword in node.keywords]
        if not isinstance(node.func, ast.Name):
            self.refuse("E408", node.func, "this is not a function of the language", "a product is written `*`")
            return None
        name = node.func.id
        kind = self.scope.called(name, self.span(node.func))
        if kind is None:
            return None
        given = tuple(arg for arg in args if arg is not None)
        named = tuple((key, value) for key, value in keywords if value is not None)
        if len(given) < len(args) or len(named) < len(keywords):
            return None
        if kind == "init" and name in NUMBER_FUNCTIONS and not any(map(draws, (*given, *dict(named).values()))):
            kind = "function"
        call = Call(name, kind, given, named, self.span(node))
        problem = self.misbound(call)
        if problem:
            self.refuse("E407", node, problem, f"it is `{_signature(call)}`" if _parameters(call) else "")
            return None
        return call

    def misbound(self, call: Call) -> str:
        """What is wrong with the arguments of a call; those of modules and operators are checked where these are."""
        if call.kind in ("module", "recurrence"):
            return ""
        if _parameters(call) is None:
            return f"`{call.name}` takes numbers, one after the other" if call.keywords or not call.args else ""
        _, problem = bind(call.args, call.keywords, _parameters(call) or ())
        return problem and f"`{call.name}` {problem}"

    def refuse(self, code: str, node: ast.expr, message: str, hint: str = "") -> None:
        self.report.error(code, self.span(node), message, hint)

    def span(self, node: ast.expr) -> Span:
        return node_span(self.scalar, self.start, node)


def _parameters(call: Call) -> tuple[Parameter, ...] | None:
    """The parameters of a word; None where it takes any number of arguments."""
    return given(call.name, call.kind)


def given(name: str, kind: CallKind) -> tuple[Parameter, ...] | None:
    """The parameters of a word of the vocabulary that is called as `kind`; None for any number of arguments."""
    if kind == "constructor":
        return CONSTRUCTORS[name].given
    if kind == "init":
        return RULES[name].given
    return FUNCTIONS[name].given if name in FUNCTIONS and name not in NUMBER_FUNCTIONS else _of_numbers(name)


def _of_numbers(name: str) -> tuple[Parameter, ...] | None:
    return NUMBER_FUNCTIONS[name][0]


def _signature(call: Call) -> str:
    return f"{call.name}({', '.join(map(str, _parameters(call) or ()))})"


def draws(expr: Expr) -> bool:
    """Whether an init has a rule or the index in it, and so is no number."""
    return any(
        (isinstance(node, Call) and node.kind == "init") or (isinstance(node, Name) and node.name == "index")
        for node in walk(expr)
    )
