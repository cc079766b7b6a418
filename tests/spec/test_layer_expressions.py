"""The expressions of a layer: what they are read into, which numbers they come to, and what is none."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flagen.diagnostics import Source
from flagen.spec.layer.expressions import parse_layer_expression
from flagen.spec.layer.model import Constant, Expr
from flagen.spec.layer.numbers import NoValue, Numbers
from flagen.spec.layer.printer import to_text
from flagen.spec.loader import Lines, Scalar
from flagen.spec.report import Report
from tests.spec.layer_trees import NUMBERS, TRUTHS, conditions, numbers, scope
from tests.tiers import examples


def as_scalar(text: str) -> Scalar:
    lines = Lines(Source("<tree>", text))
    return Scalar(text, True, lines.span(0, len(text)), 0, len(text), lines)


def parse(text: str) -> tuple[Expr | None, Report]:
    report = Report(Source("<tree>", text))
    return parse_layer_expression(as_scalar(text), 0, scope(report), report), report


@examples(150)
@given(st.one_of(numbers(), conditions()))
def test_reading_what_is_printed_gives_the_expression_again(expr: Expr) -> None:
    text = to_text(expr)
    found, report = parse(text)
    assert found == expr, (text, report.diagnostics)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@examples(150)
@given(st.one_of(numbers(), conditions()))
def test_a_number_is_what_python_says_it_is(expr: Expr) -> None:
    """Or there is none: where Python has no number, an infinite one that is none, or one larger than any size."""
    given: dict[str, Constant] = {**NUMBERS, **TRUTHS}
    functions = {"floor": math.floor, "ceil": math.ceil}
    try:
        value = Numbers(given).of(expr)
    except NoValue:
        return
    expected = eval(
        to_text(expr), {"__builtins__": {}, "max": max, "min": min, "abs": abs, "round": round}, given | functions
    )
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4 - 1", 13),
        ("2 ** 3 ** 2", 512),
        ("-2 ** 2", -4),
        ("7 // 2 + 7 % 4", 6),
        ("D ** 0.5", 8.0),
        ("none or a", 3),
        ("c or off or a", 3),
        ("a and text", "silu"),
        ("'x' if off else 'y' if off else 'z'", "z"),
        ("none is None and c is not None", True),
        ("not on == off", True),
        ("max(a, 1, D) + min(2, c)", 64),
        ("integer(a * 1.000001)", 3),
        ("round(2.5 * 7)", 18),
        ("item((4, 5, 6), a - 1)", 6),
        ("True if true else false", True),
    ],
)
def test_values(text: str, value: Constant) -> None:
    expr, report = parse(text)
    assert expr is not None, report.diagnostics
    assert Numbers({**NUMBERS, **TRUTHS}).of(expr) == value


@pytest.mark.parametrize(
    "text",
    [
        *("1 / c", "1 // c", "1 % c", "c ** -1", "b ** 0.5", "9 ** 99", "10 ** 9 ** 9", "text + 1", "none * 2"),
        *("exp(1000)", "log(c)", "sqrt(b)", "integer(b)", "integer(inf)", "round(inf)", "inf - inf", "inf * c"),
        *("item((1, 2), 2)", "item((1, 2), b)", "item(a, 0)", "text < 1", "2 ** 60", "-text", "item((1, (2, 3)), 0)"),
    ],
)
def test_what_is_no_number_is_none(text: str) -> None:
    expr, report = parse(text)
    assert expr is not None, report.diagnostics
    with pytest.raises(NoValue) as caught:
        Numbers({**NUMBERS, **TRUTHS}).of(expr)
    assert caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        *("a if on", "(a if on) else c", "a else c", "max(a if on, c)", "a if on else", "if on", "not", "a not b"),
        *("a == ", "a = b", "max(a = b = c)", "max(1)(2)", "(a)(b)", "'x' 'y'", "f'x'", "'x", "'x\\n'", "a is b"),
        *("a < b < c", "a in b", "a not in b", "[a]", "a[0]", "a.b", "a @ b", "a, b", "()", "(a,)", "*a", "max(*a)"),
        *("lambda: a", "a := b", "+a", "~a", "a & b", "a ? b : c", "a if on else b if off", "max(x=1)", "a!", "$a"),
        *(
            "__import__('os')",
            "exec('x')",
            "a.__class__",
            "{a}",
            "yield a",
            "await a",
            "1if on else 2",
            "\N{DEGREE SIGN}",
        ),
    ],
)
def test_what_is_not_of_the_language_is_told(text: str) -> None:
    expr, report = parse(text)
    assert expr is None and report.failed(), to_text(expr) if expr else ""


TOKENS = [*"abD(),.'=<>! +-*/%1_", " if ", " else ", " and ", " not ", " is ", "None", "max(", "on"]


@examples(150)
@given(st.lists(st.sampled_from(TOKENS), max_size=20).map("".join))
@example("a" + " if on else a" * 700)
@example("(" * 70 + "a" + ")" * 70)
@example("not " * 80 + "a")
@example("max(" * 63 + "a" + ")" * 63)
def test_no_text_is_anything_but_an_expression_or_a_diagnostic(text: str) -> None:
    expr, report = parse(text)
    assert (expr is None) == report.failed()
    if expr is not None:
        assert parse(to_text(expr))[0] == expr
