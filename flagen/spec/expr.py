"""Expressions: the syntax tree walked over a whitelist into the model's tree, with names resolved and dims checked.

A mistake is reported once. The expression around it becomes None and stays silent, while its other operands are still
checked.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from flagen.diagnostics import Span
from flagen.functions import FUNCTIONS
from flagen.spec.constants import Constants
from flagen.spec.grammar import node_span, parse_number, parse_python
from flagen.spec.idioms import PREVIOUS, attribute_hint, function_hint, index_hint, name_hint
from flagen.spec.loader import Scalar
from flagen.spec.model import (
    REDUCTIONS,
    ROTATIONS,
    ROW_MAPS,
    Binary,
    Call,
    Contract,
    Dims,
    Expr,
    Index,
    Negate,
    Number,
    Outer,
    Over,
    Reduce,
    Rotate,
    RowMap,
    Solution,
    Transpose,
)
from flagen.spec.names import did_you_mean, functions, later_hint, listed
from flagen.spec.printer import to_source
from flagen.spec.report import Report
from flagen.spec.shapes import (
    Misfit,
    Ratio,
    call_misfit,
    contract_misfit,
    dot_misfit,
    over_misfit,
    product_misfit,
    reduce_misfit,
    repeated_dim,
    rotate_misfit,
    row_misfit,
    solve_misfit,
    sum_misfit,
)

__all__ = ["Resolve", "parse_expression", "to_source"]

Resolve = Callable[[str, Span], Expr | None]
"""What a name means where the expression stands; None after a diagnostic, or where its declaration had one."""

Before = Callable[[Expr, int, Span], Expr | None]
"""What a value was some tokens ago, `prev(x, n)`; None after a diagnostic."""

First = Callable[[Expr, Span], Expr | None]
"""Whether a token begins a mini-batch of so many, `first(n)`; None after a diagnostic."""

ByLevels = Callable[[Expr, Expr, Span], Expr | None]
"""A state with its levels weighed, `levels(S, x)`; None after a diagnostic."""

_OPERATORS: dict[type[ast.operator], Literal["+", "-", "*", "/", "**"]] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
}

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(ROW_MAPS, ("x",)),
    **dict.fromkeys(("outer", "dot"), ("a", "b")),
    **dict.fromkeys(ROTATIONS, ("x", "angle")),
}
"""The arguments of functions that are neither elementwise nor reductions, which take `(x)` or `(x, dim)`."""


Describe = Callable[[str], str | None]
"""What kind of thing a declared name is, in words; None for any other."""


def parse_expression(
    scalar: Scalar,
    start: int,
    resolve: Resolve,
    report: Report,
    describe: Describe = lambda _: None,
    ratio: Ratio | None = lambda *_: None,
    before: Before = lambda *_: None,
    first: First = lambda *_: None,
    by_levels: ByLevels = lambda *_: None,
) -> Expr | None:
    """The expression `scalar.text[start:]`; None after a diagnostic. Without `ratio` sizes could not be read."""
    tree = parse_python(scalar, start, report)
    if tree is None:
        report.unread = True
        return None
    return _Elaborator(scalar, start, resolve, report, describe, ratio, before, first, by_levels).expr(tree)


class _Elaborator:
    """Walks one expression's syntax tree."""

    def __init__(
        self,
        scalar: Scalar,
        start: int,
        resolve: Resolve,
        report: Report,
        describe: Describe,
        ratio: Ratio | None,
        before: Before,
        first: First,
        by_levels: ByLevels,
    ) -> None:
        self.describe, self.ratio = describe, ratio
        self.before, self.first, self.by_levels = before, first, by_levels
        self.scalar = scalar
        self.start = start
        self.resolve = resolve
        self.report = report
        self.constants = Constants()
        self.functions = functions(report.version)

    def expr(self, node: ast.expr) -> Expr | None:
        match node:
            case ast.Constant():
                return self.number(node)
            case ast.Name(id=name):
                return self.resolve(name, self.span(node))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                value = self.expr(operand)
                return None if value is None else self.fitted(node, None, Negate(value, self.span(node)))
            case ast.UnaryOp(operand=operand):
                self.refuse("E403", node, "`+` before a value is not part of the language", "leave it out")
                self.expr(operand)
                return None
            case ast.BinOp():
                return self.binary(node)
            case ast.Call():
                return self.call(node)
            case ast.Attribute():
                return self.transpose(node)
            case _:
                self.refuse("E402", node, "this is not part of the language")
                return None

    def number(self, node: ast.Constant) -> Expr | None:
        text = self.scalar.text[self.start + node.col_offset : self.start + (node.end_col_offset or 0)]
        value = parse_number(text)
        if isinstance(value, Fraction):
            return Number(value, self.span(node))
        self.refuse("E402", node, f"`{text}` is not part of the language", value)
        return None

    def binary(self, node: ast.BinOp) -> Expr | None:
        if isinstance(node.op, ast.FloorDiv):
            self.refuse("E403", node, "`//` is not part of the language", "a quotient is written `/`")
            return None
        if self.is_identity(node.left):
            # What is taken from the identity is written otherwise as a whole: nothing to say of it here.
            return self.expr(node.left)
        left, right = self.expr(node.left), self.expr(node.right)
        if isinstance(node.op, ast.MatMult):
            return self.contract(node, left, right, contract_misfit)
        operator = _OPERATORS[type(node.op)]
        if left is None or right is None:
            return None
        rule = sum_misfit if operator in "+-" else product_misfit
        misfit = rule(left.dims, right.dims)
        if misfit is not None and operator in "+-":
            meant = _contraction(left, right.dims) or _contraction(right, left.dims)
            misfit = replace(misfit, hint=f"a contraction is written `{meant}`") if meant else misfit
        return self.fitted(node, misfit, Binary(operator, left, right, self.span(node)))

    def is_identity(self, node: ast.expr) -> bool:
        match node:
            case ast.Name(id="I"):
                return self.describe("I") is None
            case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
                return name in ("eye", "identity")
            case _:
                return False

    def contract(
        self,
        node: ast.expr,
        left: Expr | None,
        right: Expr | None,
        rule: Callable[[tuple[str, ...], tuple[str, ...]], Misfit | None],
    ) -> Expr | None:
        if left is None or right is None:
            return None
        return self.fitted(node, rule(left.dims, right.dims), Contract(left, right, self.span(node)))

    def transpose(self, node: ast.Attribute) -> Expr | None:
        if node.attr != "T":
            names = (
                part.id for part in ast.walk(node) if isinstance(part, ast.Name) and self.describe(part.id) is None
            )
            of_module = next((known for name in names if (known := name_hint(name))), "")
            hint = (
                of_module
                or attribute_hint(node.attr, self.report.version)
                or "the only attribute is `.T`, the transpose"
            )
            self.refuse("E409", node, f"`.{node.attr}` is not part of the language", hint)
            return None
        value = self.expr(node.value)
        # Reversing fewer than two dims changes nothing, so there is nothing to record.
        return value if value is None or len(value.dims) < 2 else Transpose(value, self.span(node))

    def call(self, node: ast.Call) -> Expr | None:
        function = node.func.id if isinstance(node.func, ast.Name) else None
        if function not in self.functions:
            self.unknown_function(node)
            return None
        if function in REDUCTIONS:
            return self.reduce(node, function)
        if function == "over":
            return self.over(node)
        if function == "index":
            return self.index(node)
        if function == "prev":
            return self.prev(node)
        if function == "first":
            return self.begins(node)
        if function == "levels":
            return self.levels(node)
        if function == "solve":
            return self.solve(node)
        names = FUNCTIONS[function].arguments if function in FUNCTIONS else _ARGUMENTS[function]
        args = [self.expr(arg) for arg in node.args]
        if len(args) != len(names):
            rows = "it runs over the only dim of a vector" if function in ROW_MAPS else ""
            self.wrong_count(node, f"{function}({', '.join(names)})", rows)
            return None
        present = [arg for arg in args if arg is not None]
        return self.applied(node, function, present) if len(present) == len(args) else None

    def applied(self, node: ast.Call, function: str, args: list[Expr]) -> Expr | None:
        span = self.span(node)
        match function:
            case "dot":
                return self.contract(node, args[0], args[1], dot_misfit)
            case "outer":
                outer = Outer(args[0], args[1], span)
                return self.fitted(node, repeated_dim(outer.dims, "this outer product"), outer)
            case "l2norm" | "softmax":
                return self.fitted(node, row_misfit(function, args[0].dims), RowMap(function, args[0], span))
            case "rotate" | "rotate_half":
                if self.ratio is None:
                    return None
                rotated = Rotate(args[0], args[1], function == "rotate_half", span)
                return self.fitted(node, rotate_misfit(function, args[0].dims, args[1].dims, self.ratio), rotated)
            case _:
                call = Call(function, tuple(args), span)
                return self.fitted(node, call_misfit(function, [arg.dims for arg in args]), call)

    def reduce(self, node: ast.Call, function: str) -> Expr | None:
        if not 1 <= len(node.args) <= 2:
            self.wrong_count(node, f"{function}(x)` or `{function}(x, K)")
            return None
        value = self.expr(node.args[0])
        dim = None
        if len(node.args) == 2:
            over = node.args[1]
            if not isinstance(over, ast.Name):
                known = value.dims if value is not None else ()
                hint = f"its dims are {listed(known)}" if known else ""
                self.refuse("E407", over, f"the second argument of `{function}` is the name of a dim", hint)
                return None
            dim = over.id
            if value is not None and value.dims and dim not in value.dims:
                hint = did_you_mean(dim, value.dims, f"its dims are {listed(value.dims)}")
                self.refuse("E506", over, f"`{function}` over `{dim}`, which is no dim of its argument", hint)
                return None
        if value is None:
            return None
        return self.fitted(node, reduce_misfit(function, value.dims), Reduce(function, value, dim, self.span(node)))

    def over(self, node: ast.Call) -> Expr | None:
        if not 2 <= len(node.args) <= 3:
            self.wrong_count(node, "over(x, K2)` or `over(x, K, K2)")
            return None
        value = self.expr(node.args[0])
        known = () if value is None else value.dims
        same = f"`dims: {{{ast.unparse(node.args[-1])}: {known[0]}}}` declares it" if known else ""
        hints = ("", same) if len(node.args) == 3 else (same,)
        named = [self.dim(argument, "over", hint) for argument, hint in zip(node.args[1:], hints, strict=True)]
        if value is None or None in named or self.ratio is None:
            return None
        source, target = named if len(named) == 2 else (value.dims[0] if len(value.dims) == 1 else None, *named)
        misfit = over_misfit(value.dims, source, str(target), self.ratio)
        return self.fitted(node, misfit, Over(value, source or "", str(target), self.span(node)))

    def index(self, node: ast.Call) -> Expr | None:
        if len(node.args) != 1:
            self.wrong_count(node, "index(K)")
            return None
        dim = self.dim(node.args[0], "index")
        return None if dim is None else Index(dim, self.span(node))

    def prev(self, node: ast.Call) -> Expr | None:
        if not 1 <= len(node.args) <= 2:
            self.wrong_count(node, "prev(x)` or `prev(x, 2)")
            return None
        value = self.expr(node.args[0])
        tokens = self.tokens(node.args[1]) if len(node.args) == 2 else 1
        return None if value is None or tokens is None else self.before(value, tokens, self.span(node))

    def begins(self, node: ast.Call) -> Expr | None:
        if len(node.args) != 1:
            self.wrong_count(node, "first(16)` or `first(n)")
            return None
        (argument,) = node.args
        if isinstance(argument, ast.Name) and self.describe(argument.id) == "a param":
            every = self.resolve(argument.id, self.span(argument))
        else:
            message = "`first` takes how many tokens a mini-batch has: a whole number, at least 1, or a param"
            every = self.whole(argument, message, "for example `first(16)`")
        return None if every is None else self.first(every, self.span(node))

    def levels(self, node: ast.Call) -> Expr | None:
        args = [self.expr(arg) for arg in node.args]
        if len(args) != 2:
            self.wrong_count(node, "levels(S, x)", "the state with each of its levels multiplied by that of `x`")
            return None
        state, scales = args
        return None if state is None or scales is None else self.by_levels(state, scales, self.span(node))

    def solve(self, node: ast.Call) -> Expr | None:
        args = [self.expr(arg) for arg in node.args]
        if not 2 <= len(args) <= 3:
            self.wrong_count(node, "solve(A, q)` or `solve(A, q, d)", "the x for which `A @ x + d * x` is `q`")
            return None
        matrix, right, *shifts = args
        if matrix is None or right is None or None in shifts or self.ratio is None:
            return None
        shift = shifts[0] if shifts else None
        misfit = solve_misfit(matrix, right.dims, None if shift is None else shift.dims, self.ratio)
        return self.fitted(node, misfit, Solution(matrix, right, shift, self.span(node)))

    def tokens(self, node: ast.expr) -> int | None:
        """How many tokens ago, which an argument says."""
        message = "the second argument of `prev` is how many tokens ago: a whole number, at least 1"
        value = self.whole(node, message, "of this token the value is `x` itself, of the one before `prev(x)`")
        return None if value is None else int(value.value)

    def whole(self, node: ast.expr, message: str, hint: str) -> Number | None:
        """The whole number, at least 1, that an argument is; None after a diagnostic."""
        value = self.number(node) if isinstance(node, ast.Constant) else None
        if isinstance(value, Number) and isinstance(value.value, Fraction):
            if value.value >= 1 and value.value.denominator == 1:
                return value
        elif isinstance(node, ast.Constant):
            return None  # Reported as no number.
        self.refuse("E407", node, message, hint)
        return None

    def dim(self, node: ast.expr, function: str, unknown: str = "") -> str | None:
        """The dim that an argument names; `unknown` is a hint where it names nothing."""
        if isinstance(node, ast.Name) and self.describe(node.id) == "a dim":
            self.resolve(node.id, self.span(node))  # It is used.
            return node.id
        shown = f"`{node.id}` is none" if isinstance(node, ast.Name) else "this is none"
        nothing = isinstance(node, ast.Name) and self.describe(node.id) is None
        self.refuse("E407", node, f"`{function}` takes the name of a dim here, and {shown}", unknown if nothing else "")
        return None

    def wrong_count(self, node: ast.Call, signature: str, hint: str = "") -> None:
        count = len(node.args)
        given = "one argument" if count == 1 else f"{count or 'no'} arguments"
        self.report.obscured = True
        self.refuse("E407", node, f"`{signature}` is given {given}", hint)

    def unknown_function(self, node: ast.Call) -> None:
        match node.func:
            case ast.Name(id=name) if name in PREVIOUS and _is_state(node, self.describe):
                hint = f"the value of a state before the token is `{ast.unparse(node.args[0])}_prev`"
                self.refuse("E408", node.func, f"`{name}` is not a function of the language", hint)
            case ast.Name(id=name) if (kind := self.describe(name)) is not None:
                argument = ast.unparse(node.args[0]) if len(node.args) == 1 else ""
                hint = (
                    index_hint(name, argument)
                    if argument in ("t", "t - 1")
                    else f"a product is written `{name} * (...)`"
                )
                self.refuse("E408", node.func, f"`{name}` is {kind}, not a function", hint)
            case ast.Name(id=name) if name in PREVIOUS - self.functions and "prev" in self.functions:
                self.refuse(
                    "E408", node.func, f"`{name}` is not a function of the language", "n tokens ago is `prev(x, n)`"
                )
            case ast.Name(id=name):
                hint = later_hint(name, self.report.version) or function_hint(name, self.report.version)
                otherwise = f"the functions are {', '.join(sorted(self.functions))}"
                hint = hint or did_you_mean(name, self.functions, otherwise)
                self.refuse("E408", node.func, f"`{name}` is not a function of the language", hint)
            case ast.Attribute(attr=name) if name in self.functions:
                self.refuse("E408", node.func, "a function is called by its name alone", f"write `{name}(...)`")
            case ast.Attribute(attr=name):
                hint = attribute_hint(name, self.report.version) or did_you_mean(
                    name, self.functions, "a function is called by its name alone"
                )
                self.refuse("E408", node.func, f"`.{name}(...)` is not part of the language", hint)
            case _:
                self.refuse("E408", node.func, "this is not a function of the language", "a product is written `*`")

    def fitted(self, node: ast.expr, misfit: Misfit | None, expr: Expr) -> Expr | None:
        """`expr`, unless its operands do not fit or it is a constant that has no value."""
        if misfit is not None:
            self.refuse(misfit.code, node, misfit.message, misfit.hint)
            return None
        if (problem := self.constants.problem(expr)) is not None:
            self.refuse("E412", node, problem)
            return None
        return expr

    def refuse(self, code: str, node: ast.expr, message: str, hint: str = "") -> None:
        self.report.error(code, self.span(node), message, hint)

    def span(self, node: ast.expr) -> Span:
        return node_span(self.scalar, self.start, node)


def _is_state(node: ast.Call, describe: Describe) -> bool:
    """Whether what a call is given is one state."""
    return len(node.args) == 1 and isinstance(name := node.args[0], ast.Name) and describe(name.id) == "a state"


def _contraction(value: Expr, wanted: Dims) -> str:
    """A product `a * b` written `a @ b`, where that has the dims that are wanted; else nothing."""
    if not isinstance(value, Binary) or value.op != "*":
        return ""
    left, right = value.left, value.right
    fits = contract_misfit(left.dims, right.dims) is None and left.dims[:-1] + right.dims[1:] == wanted
    return to_source(Contract(left, right, value.span)) if fits else ""
