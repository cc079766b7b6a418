"""Stages of calls without gradients: which rows are turned where they are taken, and that the proof sees mistakes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flagen import algebra
from flagen.algebra.rewrite import map_children
from flagen.algebra.staged import StagedForm
from flagen.algebra.staged_proof import prove_stages
from flagen.diagnostics import InternalError
from flagen.spec import parse_spec
from flagen.spec.model import Expr, Rotate
from tests.algebra.cases import variant

TEXT = """
flagen: 2
name: written
dims: {{R: K / 2}}
state: {{phi: [R], S: [K, V]}}
inputs:
  q: [K]
  k: [K]
  v: [V]
  g: {{dims: [], range: [-.inf, 0]}}
  s: []
  turn: [R]
update:
  - phi = phi + turn
  - turned = rotate(k, {angle})
  - S = exp(g) * S + outer(turned, v)
output: "{output}"
"""


def derived(angle: str = "phi", output: str = "o = S.T @ rotate(q, phi) + s * v") -> algebra.Derivation:
    """What is derived of a recurrence, proved."""
    spec = parse_spec(TEXT.format(angle=angle, output=output), "written.yaml")
    derivation = algebra.derive(spec)
    algebra.prove(spec, derivation)
    return derivation


def test_the_last_stage_turns_its_rows():
    inference = derived(output="o = S.T @ rotate(q, phi) + s * dot(rotate(q, phi), turned) * v").inference
    assert inference is not None
    assert inference.staged is not None
    assert [line.strip() for line in inference.staged.dump().splitlines()[1:]] == [
        "stage phi [R]",
        "phi = phi + turn",
        "phi_angle = phi",
        "stage S [K, V]",
        "given phi_angle [R] in [-inf, inf]",
        "S = exp(g) * S + outer(turned, v)",
        "o = S.T @ rotated_q_phi + s * rotated_q_phi_turned * v",
    ]
    (angle,) = (decl for decl in inference.staged.passed if decl.name == "phi_angle")
    assert angle.wide, "in bfloat16 ten turns are no angle"


@pytest.mark.parametrize(
    ("angle", "output"),
    [
        pytest.param("phi_prev", "o = S.T @ q + s * v", id="the angle before a token"),
        pytest.param("turn", "o = S.T @ q * (s + sum(phi))", id="no angle of a stage"),
        pytest.param("phi", "o = S.T @ rotate(q, phi) * (s + sum(phi))", id="an angle that is a number, too"),
    ],
)
def test_others_are_as_with_gradients(angle, output):
    assert derived(angle, output).inference is None


def _otherwise_turned(form: StagedForm) -> StagedForm:
    """Rows turned twice."""

    def change(expr: Expr) -> Expr:
        return replace(expr, value=expr) if isinstance(expr, Rotate) else map_children(expr, change)

    (*others, last) = form.stages
    rows = tuple(replace(decl, value=change(decl.value)) for decl in last.spec.derived)
    return replace(form, stages=(*others, replace(last, spec=replace(last.spec, derived=rows))))


def test_the_proof_sees_rows_that_are_turned_otherwise():
    inference = variant("mamba3").inference
    assert inference is not None
    assert inference.staged is not None
    prove_stages(inference.staged)
    with pytest.raises(InternalError, match="is not the recurrence's"):
        prove_stages(_otherwise_turned(inference.staged))
