"""Expressions: printing and parsing are inverse, and nothing but a diagnostic comes of what is not one."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flagen.diagnostics import Source
from flagen.spec import to_source
from flagen.spec.expr import parse_expression
from flagen.spec.loader import Lines, Scalar
from flagen.spec.model import Binary, Contract, Expr, Negate, Number, Reduce, Transpose
from flagen.spec.report import Report
from flagen.spec.sizes import ratio
from tests.spec.trees import expressions, scope
from tests.tiers import examples


def as_scalar(text: str) -> Scalar:
    lines = Lines(Source("<tree>", text))
    return Scalar(text, True, lines.span(0, len(text)), 0, len(text), lines)


def parse(text: str) -> tuple[Expr | None, Report]:
    names, report = scope()
    ratios = partial(ratio, names.symbols)
    return parse_expression(as_scalar(text), 0, names.resolve, report, names.describe, ratios), report


def parsed(text: str) -> Expr:
    expr, report = parse(text)
    assert expr is not None, report.diagnostics
    return expr


@examples(200)
@given(st.one_of(*(expressions(dims) for dims in ((), ("K",), ("V",), ("K", "V"), ("V", "K")))))
def test_parsing_what_is_printed_gives_the_expression_again(expr: Expr) -> None:
    text = to_source(expr)
    assert parsed(text) == expr
    assert to_source(parsed(text)) == text


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("((S))", "S"),
        ("(S.T) @ (q)", "S.T @ q"),
        ("(beta * S).T @ q", "(beta * S).T @ q"),
        ("beta * S.T @ q", "beta * S.T @ q"),
        ("beta * (S.T @ q)", "beta * (S.T @ q)"),
        ("dot(q, k)", "q @ k"),
        ("beta-(x-1)-x", "beta - (x - 1) - x"),
        ("beta/(x*2)/x", "beta / (x * 2) / x"),
        ("beta/x*2", "beta / x * 2"),
        ("-(-beta)", "--beta"),
        ("-beta**2", "-beta ** 2"),
        ("(-beta)**2", "(-beta) ** 2"),
        ("K**-0.5", "K ** -0.5"),
        ("2**x**3", "2 ** x ** 3"),
        ("(2**x)**3", "(2 ** x) ** 3"),
        ("2**(x+1)", "2 ** (x + 1)"),
        ("beta*-x", "beta * -x"),
        ("-(beta+x)", "-(beta + x)"),
        ("-(beta*x)", "-(beta * x)"),
        ("sum(S,K)", "sum(S, K)"),
        ("S_prev+S", "S_prev + S"),
        ("q.T", "q"),
        ("1e-10 + .5 + 2. + 64 + 0.0010", "1e-10 + 0.5 + 2 + 64 + 0.001"),
        ("1e300 + 123456789", "1e300 + 123456789"),
    ],
)
def test_printing_uses_as_few_parentheses_as_it_needs(text: str, printed: str) -> None:
    assert to_source(parsed(text)) == printed
    assert parsed(printed) == parsed(text)


def test_what_is_no_literal_still_prints_as_what_it_is() -> None:
    assert to_source(Negate(Number(Fraction(1, 3)))) == "-(1 / 3)"
    assert to_source(Binary("*", Number(Fraction(-2)), Number(Fraction(1, 3)))) == "-2 * (1 / 3)"
    assert to_source(Number(float("-inf"))) == "-inf"


@pytest.mark.parametrize("text", ["0.1", "1e-10", "3", "2.50", "1E3", "0.1e+2", "1e-300"])
def test_numbers_are_exact(text: str) -> None:
    assert parsed(text) == Number(Fraction(text))


def test_powers_of_zero_are_zero() -> None:
    assert to_source(parsed("0 ** 2 * beta")) == "0 ** 2 * beta"


def test_dims_follow_names() -> None:
    assert parsed("S.T @ k").dims == ("V",)
    assert parsed("k * S").dims == ("K", "V")
    assert parsed("S * v").dims == ("K", "V")
    assert parsed("beta / S").dims == ("K", "V")
    assert parsed("outer(v, k)").dims == ("V", "K")
    assert parsed("maximum(beta, S)").dims == ("K", "V")
    assert parsed("sum(S, K)").dims == ("V",)
    assert parsed("norm(S)").dims == ()
    assert isinstance(parsed("dot(q, k)"), Contract)
    assert isinstance(parsed("S.T"), Transpose)
    assert parsed("mean(S, V)") == Reduce("mean", parsed("S"), "V")


def test_a_literal_that_would_take_forever_is_not_computed() -> None:
    for text in ("9**9**9**9", "2 ** 99999999", "(9**900)**900", "1e300 ** 900", "exp(exp(exp(9)))"):
        expr, report = parse(text)
        assert expr is None
        assert [diagnostic.code for diagnostic in report.diagnostics] == ["E412"]


TOKENS = ("S", "q", "v", "beta", "K", "exp", "sum", "outer", "dot", "S_prev", "head", "lambda", "if", "__import__", "é")
MARKS = ("+", "-", "*", "/", "**", "//", "@", ".T", ".", ",", "(", ")", "[", "'", '"', "\\", "=", ":", "\n", " ", "\0")


@examples(300)
@given(st.lists(st.one_of(st.sampled_from(TOKENS + MARKS), st.sampled_from("0 1 2.5 1e9 .5 0x1".split())), max_size=40))
@example(["-"] * 1990 + ["q"])
@example(["("] * 1000)
@example(["q", "**"] * 600 + ["q"])
@example(["q", ".T"] * 600)
@example(["exp", "("] * 60 + ["q"] + [")"] * 60)
def test_any_text_is_an_expression_or_a_diagnostic(tokens: list[str]) -> None:
    expr, report = parse("".join(tokens))
    assert (expr is None) == bool(report.diagnostics)
    if expr is not None:
        assert parsed(to_source(expr)) == expr
