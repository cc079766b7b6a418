"""Expressions that multiply without end are refused at once, and what is as large as allowed still compiles."""

from __future__ import annotations

import pytest

from flagen import algebra
from flagen.algebra.limits import MAX_FACTORS, MAX_TERMS
from flagen.algebra.monomials import OutsideNormalForm
from flagen.algebra.orient import normal_form
from flagen.plan.chunk import plan_chunk
from tests.algebra.cases import recurrence
from tests.fuzz.packages import build


def doubled(times: int, first: str = "s + r", operator: str = "*") -> str:
    """Locals that each name the one before it twice, and a write that the last one scales."""
    lines = [f"- y0 = {first}", *(f"- y{n + 1} = y{n} {operator} y{n}" for n in range(times))]
    return "\n".join([*lines, f"- S = S + y{times} * outer(k, v)"])


REFUSED = {
    "40 locals, each twice the last": (doubled(40), "with its locals written out, this is too large an expression"),
    "a chain of locals": (
        "- y0 = s + r\n" + "".join(f"- y{n + 1} = tanh(y{n})\n" for n in range(130)) + "- S = S + y130 * outer(k, v)",
        "with its locals written out, this is too large an expression",
    ),
    "too many factors": (doubled(7), f"this is a product of more than {MAX_FACTORS} factors"),
    "too many terms": (
        "S = S + " + " * ".join(["(X + outer(k, v))"] * 10),
        f"this multiplies out to more than {MAX_TERMS} terms",
    ),
    "too many terms of a decay": (
        "S = S - " + " * ".join(["(half + exp(g))"] * 10) + " * S + outer(k, v)",
        f"this multiplies out to more than {MAX_TERMS} terms",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    update, reason = REFUSED[name]
    with pytest.raises(OutsideNormalForm) as refused:
        normal_form(recurrence(update))
    assert refused.value.reason == reason
    assert refused.value.span.line > 1


def test_as_large_as_allowed():
    spec = recurrence(doubled(5, first="s") + "\n" + "- S = S + outer(k, v) * " + " * ".join(["dot(k, p)"] * 20))
    derivation = algebra.derive(spec)
    algebra.prove(spec, derivation)
    assert "naive_chunk.py" in build(spec, kernels=False)


def test_a_sum_is_one_factor():
    """Scalars and vectors stay as they were written: their sums are not multiplied out."""
    spec = recurrence(doubled(5))
    derivation = algebra.derive(spec)
    assert derivation.chunk_form is not None
    assert plan_chunk(derivation.chunk_form).rows.fixed == 1
