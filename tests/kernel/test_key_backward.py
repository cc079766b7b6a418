"""The kernels of the backward for decays of each key: what they are as data, and that mistakes in them are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from flagen import pipeline
from flagen.diagnostics import InternalError
from flagen.kernel import Programs
from flagen.kernel.ir import Add, Barrier, Loop, Program, Scale, Statement
from flagen.kernel.key_backward import KEEPING
from flagen.kernel.passes import live
from flagen.kernel.prove import prove_rows
from flagen.plan import Plan
from flagen.plan.right_backward import RightBackwardPlan
from flagen.spec import load_spec
from tests.kernel.changes import changed, made
from tests.specs import SPECS

CASES = ("kda", "gla", "rwkv7", "dplr", "gated_deltanet2", "oja")
"""Erasures and none, a decay in leaves, reads before the decay, sums over the keys, reads from the right."""


@cache
def plan_of(name: str) -> Plan:
    spec = load_spec(SPECS / f"{name}.yaml")
    return pipeline.make_plan(spec, pipeline.derive(spec))


@cache
def of(name: str) -> Programs:
    return pipeline.lower(plan_of(name))


def prove(name: str, backward: Program) -> None:
    programs = of(name)
    assert programs.chunk is not None
    prove_rows(programs.spec, programs.chunk, backward)


def backward_of(name: str) -> Program:
    program = of(name).chunk_backward
    assert program is not None
    return program


# ---------------------------------------------------------------------------------------------------------- as they are


@pytest.mark.parametrize("name", CASES)
def test_nothing_that_is_made_goes_unused(name):
    for kernel in backward_of(name).kernels:
        if kernel.name in ("reverse", "gradients"):
            assert live(kernel.body, ()) == kernel.body


@pytest.mark.parametrize("name", CASES)
def test_a_way_takes_what_no_kernel_of_it_makes_from_the_forward(name):
    forward, backward = of(name).chunk, backward_of(name)
    assert forward is not None
    left = {array.name for kernel in forward.kernels for array in kernel.arrays if array.life == "residual"}
    for way in backward.ways:
        kernels = [backward.kernel(kernel) for kernel in way]
        asked = {array.name for kernel in kernels for array in kernel.arrays if array.life == "residual"}
        assert asked - made(kernels) <= left
    first, *others = (made(map(backward.kernel, way)) for way in backward.ways)
    assert all(other < first or name == "oja" for other in others), "what was kept is not made again"


def test_only_a_call_that_folds_has_kernels_that_keep_what_is_not_folded():
    assert KEEPING in of("rwkv7").chunk.ways
    assert KEEPING not in of("kda").chunk.ways


# ------------------------------------------------------------------------------------------------------------- mistakes


def without_barrier(statement: Statement) -> Iterator[Statement]:
    yield from () if isinstance(statement, Barrier) else (statement,)


def without_decay(statement: Statement) -> Iterator[Statement]:
    """What rows that were written get does not decay to the end."""
    yield from () if isinstance(statement, Scale) and statement.target == "written_part" else (statement,)


def added(statement: Statement) -> Iterator[Statement]:
    """What should be subtracted from what rows have in common with their gradients."""
    yield replace(statement, subtracts=False) if isinstance(statement, Add) else statement


def forward(statement: Statement) -> Iterator[Statement]:
    yield replace(statement, reverse=False) if isinstance(statement, Loop) and statement.over == "chunk" else statement


def in_blocks(statement: Statement) -> Iterator[Statement]:
    """Keys that something sums over."""
    yield replace(statement, whole=False) if isinstance(statement, Loop) else statement


@pytest.mark.parametrize(
    ("name", "kernel", "mistake", "told"),
    [
        ("kda", "gradients", without_barrier, "without a barrier"),
        ("kda", "gradients", without_decay, "gradient of k"),
        ("gla", "gradients", added, "gradient of g"),
        ("gla", "reverse", forward, "gradient of"),
        ("gated_deltanet2", "gradients", in_blocks, "gradient of"),
    ],
)
def test_mistakes_are_refused(name, kernel, mistake, told):
    program = changed(backward_of(name), kernel, mistake)
    assert program != backward_of(name)
    with pytest.raises(InternalError, match=told):
        prove(name, program)


def test_what_a_right_read_is_of_the_turned_one():
    """What was read with and the gradient of the output are in each other's place, and what is read is a gradient."""
    backward = plan_of("oja").chunk_backward
    assert isinstance(backward, RightBackwardPlan)
    arrays = {array.name: (array.life, array.of) for kernel in backward_of("oja").kernels for array in kernel.arrays}
    assert arrays[backward.reader] == ("cotangent", "o")
    assert arrays["do"] == ("argument", backward.reads)
    assert arrays["o"] == ("gradient", backward.reads)
