"""Expressions as formulas of a derivation."""

from __future__ import annotations

import pytest

from flagen.backends.markdown_.printer import ExpressionPrinter
from flagen.spec import parse_spec

SPEC = """
flagen: 2
name: formulas
dims: {{R: K / 2, K2: K}}
state: {{S: [K, V]}}
inputs: {{q: [K], k: [K], v: [V], theta: [R], p: [K2]}}
update: S = S + outer(rotate(k + over(p, K), theta), v)
output: o = S.T @ (q + {})
"""


@pytest.mark.parametrize(
    ("expression", "formula"),
    [
        # R is a dim here, and no rotation.
        ("rotate(q, -theta)", r"\operatorname{rotate}\left(q, -\theta\right)"),
        ("rotate_half(q, theta)", r"\operatorname{rotate\_half}\left(q, \theta\right)"),
        ("over(p, K)", r"p^{(\mathrm{K2} \to K)}"),
        ("q * index(K)", r"q \odot \operatorname{index}_{K}"),
    ],
)
def test_a_formula_reads_as_the_spec_does(expression: str, formula: str) -> None:
    spec = parse_spec(SPEC.format(expression))
    product = spec.output[-1].value
    assert formula in ExpressionPrinter(lambda name: "").print(product)
