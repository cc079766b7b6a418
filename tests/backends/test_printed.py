"""Factors and terms are joined by what knows how tightly they bind."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest

import flagen
from flagen.backends.printed import (
    PRODUCT,
    SIGN,
    SUM,
    Printed,
    common_factor,
    expression,
    product,
    product_of,
    total,
    total_of,
)
from flagen.diagnostics import InternalError
from flagen.printing import BINDING, choice, joined, negative, opposite

FLAGEN = Path(flagen.__file__).parent
MODULES = [path for layer in ("backends", "plan", "spec") for path in sorted((FLAGEN / layer).rglob("*.py"))]
A, SUM_OF, NEGATIVE, PAIR = Printed("a"), Printed("b + c", SUM), Printed("-d", SIGN), Printed("e * f", PRODUCT)


@pytest.mark.parametrize(
    ("printed", "text"),
    [
        (product(A, SUM_OF), "a * (b + c)"),
        (product(SUM_OF, A), "(b + c) * a"),
        (product(PAIR, A), "e * f * a"),
        (product(A, PAIR), "a * (e * f)"),
        (product(NEGATIVE, A), "-d * a"),
        (product(A, None), "a"),
        (product(SUM_OF), "b + c"),
        (product(A, SUM_OF).of_rows(), "(a * (b + c))[:, None]"),
        (NEGATIVE.of_columns(), "(-d)[None, :]"),
        (total(PAIR, NEGATIVE), "e * f + -d"),
        (total(A, SUM_OF), "a + (b + c)"),
        (expression("x"), "x"),
        (product(expression("x + y"), A), "(x + y) * a"),
    ],
)
def test_parentheses_are_where_they_have_to_be(printed, text):
    assert printed.text == text


def test_what_there_is_of_factors():
    assert common_factor(None, None) is None
    assert common_factor(None, SUM_OF, None) == SUM_OF
    assert common_factor(A, None, SUM_OF) == product(A, SUM_OF)


def test_products_and_sums_of_names():
    assert product_of("args.runs", "args.HV") == "args.runs * args.HV"
    assert product_of() == "1"
    assert total_of(product_of("row", "K"), "K_index") == "row * K + K_index"


def test_no_string_takes_an_expression_as_it_is():
    with pytest.raises(InternalError, match="how tightly"):
        f"{A} * x"


def _joined_by_operators(path: Path) -> list[int]:
    """The lines on which strings are joined by an operator of Python."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr == "join"
        and isinstance(node.value, ast.Constant)
        and str(node.value.value).strip() in {"+", "-", "*", "/", "//", "**", "@"}
    ]


@pytest.mark.parametrize("path", MODULES, ids=[path.relative_to(FLAGEN).as_posix() for path in MODULES])
def test_nothing_else_joins_factors_or_terms(path):
    """Docstrings have equations, too, which nobody evaluates."""
    if path.stem != "printing" and not path.stem.endswith("describe"):
        assert not _joined_by_operators(path)


def test_python_reads_every_operator_inside_every_other_as_it_was_meant():
    """Joined, negated and chosen from: the text parses to what its fully bracketed form parses to."""
    operators = [op for op in BINDING if op != "@"]
    one, other, third = (Printed(name) for name in "xyz")
    for outer, inner in itertools.product(operators, repeat=2):
        for text, meant in (
            (joined(outer, joined(inner, one, other), third).text, f"(x {inner} y) {outer} z"),
            (joined(outer, one, joined(inner, other, third)).text, f"x {outer} (y {inner} z)"),
        ):
            assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(meant)), text
    for op, (prefix, word) in itertools.product(operators, ((negative, "-"), (opposite, "not "))):
        for text, meant in (
            (prefix(joined(op, one, other)).text, f"{word}(x {op} y)"),
            (joined(op, prefix(one), other).text, f"({word}x) {op} y"),
            (joined(op, one, prefix(other)).text, f"x {op} ({word}y)"),
            (
                choice(joined(op, one, other), prefix(one), choice(one, other, third)).text,
                f"(x {op} y) if ({word}x) else (x if y else z)",
            ),
            (joined(op, choice(one, other, third), one).text, f"(x if y else z) {op} x"),
            (
                choice(choice(one, other, third), choice(third, one, other), one).text,
                "(x if y else z) if (z if x else y) else x",
            ),
        ):
            assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(meant)), text


def test_sums_and_products_can_be_regrouped_and_nothing_else():
    one, other, third = (Printed(name) for name in "xyz")
    for outer, inner in itertools.product("+-*/", repeat=2):
        text = joined(outer, one, joined(inner, other, third), regrouped=True).text
        kept = (BINDING[inner] < BINDING[outer] or outer in "-/") and BINDING[inner] <= BINDING[outer]
        assert ("(" in text) == kept, text
