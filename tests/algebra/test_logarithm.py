"""The log of a decay: which expression it is, that it is the log, and what has none."""

from __future__ import annotations

import math
import re

import pytest
import torch

from flagen.algebra.logarithm import log_of
from flagen.algebra.monomials import OutsideNormalForm
from flagen.spec import to_source
from flagen.spec.model import Expr, Interval, Spec
from tests.algebra.cases import recurrence
from tests.fuzz.interpreter import Scope

LET = {"e": "exp(g)", "twice": "e * e", "kept": "1 - half", "third": "half / 3", "plain": "half + 0.25"}

# The decay as written, and its log.
LOGS = {
    "exp(g)": "g",
    "exp(s)": "s",
    "exp(-s * s)": "-s * s",
    "1": "0",
    "0": "-inf",
    "0.9": "log(0.9)",
    "sigmoid(s)": "logsigmoid(s)",
    "exp(g) * sigmoid(s)": "g + logsigmoid(s)",
    "0.5 * exp(g)": "log(0.5) + g",
    "exp(g) / 2": "g - log(2)",
    "exp(g) ** 3": "3 * g",
    "half ** s": "s * log(half)",
    "e ** s": "s * g",
    "sqrt(exp(g))": "0.5 * g",
    "rsqrt(2 + half)": "-0.5 * log(2 + half)",
    "half": "log(half)",
    "1 - half": "log1p(-half)",
    "1 - 2 ** (-5 - head)": "log1p(-2 ** (-5 - head))",
    "1 + half": "log1p(half)",
    "half + half": "log(half + half)",
    "e": "g",
    "twice": "g + g",
    "kept": "log1p(-half)",
    "third": "log(half) - log(3)",
    "plain": "log(plain)",
    "e * kept": "g + log1p(-half)",
    "clamp(s, 0.1, 0.9)": "log(clamp(s, 0.1, 0.9))",
    "2 - half": "log(2 - half)",
}

NONE = (
    "s",
    "beta",
    "1 - beta",
    "-half",
    "s * s",
    "half - 1",
    "exp(g) - half",
    "exp(g) * s",
    "sqrt(beta)",
    "beta ** 2",
    "tanh(s)",
)


def log(decay: str) -> tuple[Spec, Expr, Expr]:
    """A spec with `decay` as its decay, that decay as an expression, and its log."""
    words = set(re.findall(r"\w+", decay))
    words |= {"e"} if "twice" in words else set()
    let = ", ".join(f"{name}: {value}" for name, value in LET.items() if name in words)
    spec = recurrence(f"S = ({decay}) * S + outer(k, v)", more=f"let: {{{let}}}" if let else "")
    (statement,) = spec.update
    expr = statement.value.left.left
    ranges = {decl.name: decl.range for decl in (*spec.inputs, *spec.params, *spec.derived)}
    return spec, expr, log_of(expr, {d.name: d for d in spec.derived}, ranges)


@pytest.mark.parametrize("decay", LOGS)
def test_which_log(decay):
    _, _, found = log(decay)
    assert to_source(found) == LOGS[decay]


@pytest.mark.parametrize("decay", LOGS)
def test_is_the_log(decay):
    spec, expr, found = log(decay)
    scope = numbers(spec)
    assert torch.allclose(scope.evaluate(found).exp(), scope.evaluate(expr), rtol=1e-14, atol=0)


def test_stays_accurate_near_one():
    """1 - 1e-20 is 1 in floating point; its log is not 0."""
    _, _, found = log("1 - 2 ** (-70 - head)")
    scope = Scope({"head": torch.zeros(1, 1, dtype=torch.float64)}, {}, {}, (1, 1))
    assert scope.evaluate(found).item() == pytest.approx(-(2.0**-70), rel=1e-12)


@pytest.mark.parametrize("decay", NONE)
def test_no_log(decay):
    with pytest.raises(OutsideNormalForm, match="not proved positive") as refused:
        log(decay)
    assert refused.value.span.line > 1


def numbers(spec: Spec) -> Scope:
    """Random numbers for every name of `spec`, inside its range."""
    random = torch.Generator().manual_seed(0)
    names = {
        decl.name: within(decl.range, torch.rand(3, 4, generator=random, dtype=torch.float64)) for decl in spec.inputs
    }
    names["head"] = torch.arange(4, dtype=torch.float64).expand(3, 4)
    scope = Scope(names, {}, {}, (3, 4))
    for derived in spec.derived:
        scope.names[derived.name] = scope.evaluate(derived.value)
    return scope


def within(interval: Interval, x: torch.Tensor) -> torch.Tensor:
    low = interval.low if math.isfinite(interval.low) else -3.0
    high = interval.high if math.isfinite(interval.high) else 3.0
    return low + (high - low) * x
