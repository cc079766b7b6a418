"""Kernels that solve systems: mistakes in a step that the build refuses, and systems that have none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from flagen import pipeline
from flagen.diagnostics import InternalError
from flagen.kernel import Programs
from flagen.kernel.ir import Add, Kernel, Let, Loop, Program, Statement
from flagen.kernel.prove import prove_rows
from flagen.plan import Plan, SolvedPlan, StagedPlan
from flagen.plan.tiles import Product, Select
from flagen.spec import load_spec, parse_spec
from tests.specs import SPECS


@cache
def stage() -> Programs:
    """The programs of the stage of mesa_net that solves."""
    spec = load_spec(SPECS / "mesa_net.yaml")
    solving, _ = pipeline.lower(pipeline.make_plan(spec, pipeline.derive(spec))).stages
    return solving


def mistaken(change: dict[str, Statement | None]) -> Program:
    """The program with other statements, or none, in the place of those that give or change a name."""
    program = stage().chunk
    assert program is not None
    walk, solve = program.kernels

    def within(body: tuple[Statement, ...]) -> Iterator[Statement]:
        for statement in body:
            name = statement.target if isinstance(statement, Let | Add) else None
            if isinstance(statement, Loop):
                yield replace(statement, body=tuple(within(statement.body)))
            elif name not in change:
                yield statement
            elif (other := change[name]) is not None:
                yield other

    changed: Kernel = replace(solve, body=tuple(within(solve.body)))
    return replace(program, kernels=(walk, changed))


def given(name: str) -> Let:
    """The last statement of a step that gives a name."""
    program = stage().chunk
    assert program is not None
    (loop,) = (s for s in program.kernel("solve").body if isinstance(s, Loop))
    return next(s for s in reversed(loop.body) if isinstance(s, Let) and s.target == name)


def without_guard(name: str) -> Let:
    statement = given(name)
    assert isinstance(statement.value, Select)
    return replace(statement, value=statement.value.value)


def without_weights() -> Let:
    statement = given("scores")
    assert isinstance(statement.value, Product)
    return replace(statement, value=statement.value.factors[0])


MISTAKES = {
    "a direction where nothing is left": lambda: {"search": without_guard("search")},
    "no step": lambda: {"solution": None},
    "the residual of the step before": lambda: {"residual_square_before": None},
    "no weights": lambda: {"scores": without_weights()},
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_step_is_refused(mistake):
    with pytest.raises(InternalError):
        prove_rows(stage().spec, mistaken(mistake()), None)


def test_as_many_steps_as_dims_are_exact():
    assert prove_rows(stage().spec, mistaken({}), None)


WRITTEN = """\
flagen: 2
name: written
dims: {{K2: K}}
state: {{A: [K, K2]}}
inputs: {{{inputs}}}
let: {{unit: l2norm(k)}}
update:
  - A = A + outer({row}, over({row}, K2))
output: o = solve(A, {right}, {shift})
"""


def plan_of(dims: str = "[K]", row: str = "k", right: str = "q", shift: str = "d") -> Plan:
    declared = {"q": "[K]", "k": "[K]", "d": f"{{dims: {dims}, range: [0.5, .inf]}}", "s": "[]"}
    used = set(re.findall(r"\w+", f"{row} {right} {shift}")) | {"k"}
    inputs = ", ".join(f"{name}: {decl}" for name, decl in declared.items() if name in used)
    text = WRITTEN.format(inputs=inputs, row=row, right=right, shift=shift)
    spec = parse_spec(text if row == "unit" else text.replace("let: {unit: l2norm(k)}\n", ""))
    return pipeline.make_plan(spec, pipeline.derive(spec))


@pytest.mark.parametrize("given", [{}, {"dims": "[]"}, {"row": "s * k"}], ids=str)
def test_systems_with_kernels(given):
    plan = plan_of(**given)
    assert isinstance(plan.chunk_kernel, SolvedPlan)
    assert plan.chunk_backward is plan.chunk_kernel
    assert pipeline.prove_kernels(plan.spec, pipeline.lower(plan))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"right": "(2 * q)"}, "`2 * q`, the right side of a system, is no input"),
        ({"shift": "(1 + d)"}, "`1 + d`, the diagonal of a system, is no input"),
        ({"shift": "0.5"}, "`0.5`, the diagonal of a system, is no input"),
        ({"row": "unit"}, "`over(unit, K2)` is no input, nor one times numbers"),
    ],
    ids=str,
)
def test_what_keeps_a_system_out_of_the_kernels_is_said(given, reason):
    (remark, *_) = pipeline.remarks_on(plan_of(**given))
    assert remark.code == "no-kernel"
    assert reason in remark.message


def test_the_stage_that_reads_is_as_it_was():
    spec = load_spec(SPECS / "mesa_net.yaml")
    plan = pipeline.make_plan(spec, pipeline.derive(spec))
    assert isinstance(plan.chunk_kernel, StagedPlan)
    assert not any(plan.chunk_kernel.without_kernels())
