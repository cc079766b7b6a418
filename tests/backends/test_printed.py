"""Factors and terms are joined by what knows how tightly they bind."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from flagen import backends
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

MODULES = sorted(Path(backends.__file__).parent.rglob("*.py"))
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


@pytest.mark.parametrize("path", MODULES, ids=[path.stem for path in MODULES])
def test_nothing_else_joins_factors_or_terms(path):
    """Docstrings have equations, too, which nobody evaluates."""
    if path.stem != "printed" and not path.stem.endswith("describe"):
        assert not _joined_by_operators(path)
