"""What a kernel's docstring says of its work is what the plan has it do."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagen.backends.triton_.describe import ownership, traffic
from flagen.plan.fused import FusedPlan, plan_fused_recurrent
from flagen.spec import parse_spec
from tests.backends.triton_odd import ODD

SPECS = Path(__file__).parents[2] / "specs"


def plan(name: str) -> FusedPlan:
    text = ODD[name] if name in ODD else (SPECS / f"{name}.yaml").read_text()
    planned = plan_fused_recurrent(parse_spec(text))
    assert isinstance(planned, FusedPlan)
    return planned


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "gated_delta_product",
            "A program owns BLOCK_V indices of V of S, of one head of one sequence. Nothing sums over V, so programs"
            " need nothing of one another.",
        ),
        (
            "oja",
            "A program owns BLOCK_K indices of K of S, of one head of one sequence. Only the output sums over K: a"
            " program writes its own share of that sum, and the shares are added up after the launch.",
        ),
        (
            "slots",
            "A program owns BLOCK_V indices of V of Sv, of one head of one sequence. Beside it, each computes the whole"
            " of Sk and z. Nothing sums over V, so programs need nothing of one another.",
        ),
        (
            "whole_state",
            "A program owns S of one head of one sequence: there are sums over K and V, so no part of it can go on"
            " alone.",
        ),
        ("scalars", "A program owns s and m of one head of one sequence."),
    ],
)
def test_ownership(name: str, said: str) -> None:
    assert ownership(plan(name)) == said


@pytest.mark.parametrize("turned", ["S.T @ q", "S.T @ rotate(q, theta)"])
def test_a_program_that_turns_what_it_reads_owns_the_whole_state(turned: str) -> None:
    text = f"""
flagen: 2
name: turned
dims: {{R: V / 2, P: K / 2}}
state: {{S: [K, V]}}
inputs: {{q: [K], k: [K], v: [V], angle: [R], theta: [P]}}
update: S = S + outer(k, rotate(v - S.T @ k, angle))
output: o = {turned} * (1 + 0 * sum(theta))
"""
    planned = plan_fused_recurrent(parse_spec(text))
    assert isinstance(planned, FusedPlan)
    assert ownership(planned) == (
        "A program owns S of one head of one sequence: there are sums or rotations over K and V, so no part of it can"
        " go on alone."
    )


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("gated_delta_product", ("K + 1 + n*(K + V + 1) elements read", "V written", "4*K*V bytes of state")),
        ("oja", ("2*K + 2*V + 1 elements read", "4*V bytes written by each block", "4*K*V bytes of state")),
        ("elementwise", ("2*D elements read", "D written", "4*D + 4*D + 4*D bytes of state")),
        ("not_affine", ("2*K + V + V*K elements read", "V written", "4*K*V bytes of state")),
        ("scalars", ("2 elements read", "1 written", "4*1 + 4*1 bytes of state")),
    ],
)
def test_traffic(name: str, moved: tuple[str, ...]) -> None:
    said = traffic(plan(name))
    assert all(part in said for part in moved), said
