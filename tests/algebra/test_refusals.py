"""What has no normal form says why, and underlines the term that is the reason. Some of it is an elementwise scan."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from flagen import algebra
from flagen.algebra.monomials import OutsideNormalForm
from flagen.algebra.orient import normal_form
from flagen.diagnostics import Span
from flagen.spec import parse_spec
from tests.algebra.cases import recurrence, text_of


@dataclass(frozen=True)
class Refusal:
    """A recurrence, what is wrong with it between << and >>, and the reason."""

    update: str
    reason: str
    output: str = "o = S.T @ q"
    state: str = "S: [K, V]"


NOT_POSITIVE = "the decay is not proved positive by the declared ranges, so its log may not exist"
BOTH_SIDES = "decay and erase act on K and on V; the chunk form has them on one side"
ELEMENTWISE = "a decay that differs over both dims of the state is an elementwise scan"
EARLIER = "this update reads the state of an earlier micro-step, or of another token step"
FULL_READ = "the output reads the state through a full matrix"
FULL_WRITE = "this write is not a sum of outer products"

REFUSALS = {
    "several states": Refusal(
        "- S = S + outer(k, v)\n- z = z + k",
        "several states have no normal form together",
        output="o = S.T @ q / (1 + dot(z, q))",
        state="S: [K, V], <<z>>: [K]",
    ),
    "a vector state": Refusal(
        "S = exp(gk) * S + k",
        "only a matrix state has a normal form; S has 1 dims",
        output="o = S * q",
        state="<<S>>: [K]",
    ),
    "a scalar state": Refusal(
        "S = exp(g) * S + s",
        "only a matrix state has a normal form; S has 0 dims",
        output="o = S * q",
        state="<<S>>: []",
    ),
    "a state of three dims": Refusal(
        "S = exp(g) * S + outer(outer(k, v), x)",
        "only a matrix state has a normal form; S has 3 dims",
        output="o = (S @ x).T @ q",
        state="<<S>>: [K, V, M]",
    ),
    "a running log-sum-exp": Refusal(
        "S = exp(g) * S + outer(k, v)",
        "a matrix state that starts at infinity has no chunk form",
        state="<<S>>: {dims: [K, V], init: -.inf}",
    ),
    "a function of the state": Refusal(
        "S = exp(g) * S + 0.5 * <<tanh(S)>> + outer(k, v)",
        "`tanh(S)` is not affine in the state",
    ),
    "a function of the state, in a local": Refusal(
        "- y = <<tanh(S)>>\n- S = exp(g) * S + y + outer(k, v)",
        "`tanh(S)` is not affine in the state",
    ),
    "a function of a read": Refusal(
        "S = S + outer(k, v - <<silu(S.T @ k)>>)",
        "`silu(S.T @ k)` is not affine in the state",
    ),
    "the state times itself": Refusal(
        "S = S - s * (<<S * S>>) + outer(k, v)",
        "`S * S` multiplies the state by the state",
    ),
    "the state contracted with itself": Refusal(
        "S = exp(g) * S + outer(k, v - <<S.T @ (S @ v)>>)",
        "`S.T @ (S @ v)` multiplies the state by the state",
    ),
    "the state over its norm": Refusal(
        "S = <<S / (1 + norm(S))>> + outer(k, v)",
        "`S / (1 + norm(S))` is not affine in the state",
    ),
    "the state under a division": Refusal(
        "S = S + outer(k, <<v / (S.T @ k)>>)",
        "`v / (S.T @ k)` is not affine in the state",
    ),
    "a decay that reads the state": Refusal(
        "S = <<sigmoid(S.T @ k) * S>> + outer(k, v)",
        "`sigmoid(S.T @ k) * S` multiplies the state by the state",
    ),
    "a gate per value on what is read": Refusal(
        "S = exp(g) * S + <<outer(k, v - c * (S.T @ k))>>",
        "what is read from the state is scaled per V before it is written",
    ),
    "a gate per key on what is read, acting from the right": Refusal(
        "S = exp(g) * S + <<outer(k - p * (S @ v), v)>>",
        "what is read from the state is scaled per K before it is written",
    ),
    "a decay of rows and of columns": Refusal(
        "S = <<exp(gk) * S * exp(gv)>> + outer(k, v)",
        ELEMENTWISE,
    ),
    "a decay of rows, then one of columns": Refusal(
        "- S = exp(gk) * S\n- S = <<exp(gv)>> * S + outer(k, v)",
        BOTH_SIDES,
    ),
    "a decay of rows, a write, a decay of columns": Refusal(
        "- S = exp(gk) * S\n- S = S + outer(k, v)\n- S = <<exp(gv)>> * S",
        BOTH_SIDES,
    ),
    "a decay of rows, an erasure of columns": Refusal(
        "- S = exp(gk) * S\n- S = S + <<outer(k - S @ v, v)>>",
        BOTH_SIDES,
    ),
    "erasures of rows and of columns": Refusal(
        "- S = S - outer(k, S.T @ k)\n- S = S - <<s * outer(S @ v, v)>>",
        BOTH_SIDES,
    ),
    "a gate over both dims": Refusal(
        "S = <<sigmoid(X) * S>> + outer(k, v)",
        ELEMENTWISE,
    ),
    "one decay that sums rows and columns": Refusal(
        "S = 0.5 * exp(gk) * S + <<0.5 * S * exp(gv)>> + outer(k, v)",
        ELEMENTWISE,
    ),
    "a full transition": Refusal(
        "S = S - <<XM @ (XM.T @ S)>> + outer(k, v) + s * outer(XM @ x, v)",
        "the state is multiplied by a full matrix, which is not low rank",
    ),
    "a decay without a range": Refusal(
        "S = <<s>> * S + outer(k, v)",
        NOT_POSITIVE,
    ),
    "a decay that may be 0": Refusal(
        "S = (<<1 - beta>>) * S + outer(k, v)",
        NOT_POSITIVE,
    ),
    "a decay that is negative": Refusal(
        "S = outer(k, v) - <<S>>",
        NOT_POSITIVE,
    ),
    "the whole state read and written": Refusal(
        "S = S + <<sum(S) * outer(k, v)>>",
        "the state is read down to a scalar here and written back",
    ),
    "a bilinear read, written": Refusal(
        "S = S + <<dot(k, S @ v) * outer(k, v)>>",
        "the state is read down to a scalar here and written back",
    ),
    "a matrix input written": Refusal(
        "S = exp(g) * S + outer(k, v) + <<X>>",
        FULL_WRITE,
    ),
    "a product of matrices written": Refusal(
        "S = exp(g) * S + outer(k, v) + <<XM @ MV>>",
        FULL_WRITE,
    ),
    "a function of an outer product written": Refusal(
        "S = S + <<tanh(outer(k, v))>>",
        FULL_WRITE,
    ),
    "an older state carried on": Refusal(
        "- S = S + outer(k, v)\n- S = <<S_prev>> + outer(p, v)",
        "the update continues from an older state than the last statement left",
    ),
    "a read from two micro-steps ago": Refusal(
        "- S = S + outer(k, v - S.T @ k)\n- y = S.T @ p\n- S = exp(g) * S + outer(p, v)\n"
        "- S = S - outer(p, S.T @ p)\n- S = S + <<outer(k, y)>>",
        EARLIER,
    ),
    "a read of the token before it, in a repeat": Refusal(
        "- S = exp(g) * S\n- repeat: n\n  do:\n  - S = S + <<outer(kj, vj - S_prev.T @ kj)>>",
        EARLIER,
    ),
    "a local from before a repeat, in it": Refusal(
        "- y = S.T @ k\n- repeat: n\n  do:\n  - S = S + <<outer(kj, vj - y)>>",
        EARLIER,
    ),
    "the state put out": Refusal(
        "S = S + outer(k, v)",
        "the output uses the state itself, not a read of it",
        output="o = <<S>>",
    ),
    "a function of the state put out": Refusal(
        "S = S + outer(k, v)",
        "`tanh(S)` is not affine in the state",
        output="o = <<tanh(S)>>.T @ q",
    ),
    "the whole state read": Refusal(
        "S = S + outer(k, v)",
        "the output reads the state down to a scalar",
        output="o = <<sum(S)>> * q",
    ),
    "a read by a matrix": Refusal(
        "S = S + outer(k, v)",
        FULL_READ,
        output="o = (<<S.T @ XM>>).T",
    ),
    "a read through a matrix": Refusal(
        "S = S + outer(k, v)",
        FULL_READ,
        output="o = <<sum(S * X, K)>> + v",
    ),
    "a state that never changes": Refusal(
        "<<S = 1 * S>>",
        "the update leaves the state as it is",
        output="o = S.T @ q + v",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name):
    refusal = REFUSALS[name]
    marked = text_of(refusal.update, refusal.output, state=refusal.state)
    spec = parse_spec(marked.replace("<<", "").replace(">>", ""), "written.yaml")

    with pytest.raises(OutsideNormalForm) as refused:
        normal_form(spec)
    found = refused.value
    derivation = algebra.derive(spec)
    assert derivation.normal_form is derivation.chunk_form is derivation.adjoint is None
    others = (derivation.scan, derivation.staged, derivation.ranks)
    assert (derivation.no_chunk_form is None) == any(form is not None for form in others)
    assert found.reason == refusal.reason or found.reason.startswith(f"{refusal.reason} (")

    before, _, rest = marked.partition("<<")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    assert found.span == Span("written.yaml", line, column, rest.index(">>"))


def test_nothing_derived_is_nothing_proved():
    spec = recurrence("S = tanh(S) + outer(k, v)")
    proof = algebra.prove(spec, algebra.derive(spec))
    assert proof.lines == ("nothing derived: `tanh(S)` is not affine in the state",)
