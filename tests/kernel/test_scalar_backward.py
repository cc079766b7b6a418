"""The kernels of the backward for decays that are a scalar, or none: what they are as data, and that mistakes in them
are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from flagen import pipeline
from flagen.diagnostics import InternalError
from flagen.kernel import Programs
from flagen.kernel.ir import Let, Load, Loop, Program, Scale, Statement, routines_in
from flagen.kernel.passes import live
from flagen.kernel.prove import prove_rows
from flagen.plan.tiles import Select
from flagen.spec import load_spec
from tests.kernel.changes import changed, made
from tests.specs import SPECS

CASES = ("gated_delta_rule", "comba", "delta_net", "gated_delta_product", "mamba2", "linear_attn_normalized")
"""Erasures and none, reads before the decay, sums over the keys, micro-steps, a vector state that rides along."""


@cache
def of(name: str) -> Programs:
    spec = load_spec(SPECS / f"{name}.yaml")
    return pipeline.lower(pipeline.make_plan(spec, pipeline.derive(spec)))


def backward_of(name: str) -> Program:
    program = of(name).chunk_backward
    assert program is not None
    return program


def prove(name: str, backward: Program) -> None:
    programs = of(name)
    assert programs.chunk is not None
    prove_rows(programs.spec, programs.chunk, backward)


# ---------------------------------------------------------------------------------------------------------- as they are


@pytest.mark.parametrize("name", CASES)
def test_nothing_that_is_made_goes_unused(name):
    for kernel in backward_of(name).kernels:
        assert live(kernel.body, ()) == kernel.body
        for routine in routines_in(kernel.body):
            assert live(routine.body, routine.carried) == routine.body


@pytest.mark.parametrize("name", CASES)
def test_a_way_takes_what_no_kernel_of_it_makes_from_the_forward(name):
    forward, backward = of(name).chunk, backward_of(name)
    assert forward is not None
    lives = ("residual", "result")
    left = {array.name for kernel in forward.kernels for array in kernel.arrays if array.life in lives}
    for way in backward.ways:
        kernels = [backward.kernel(kernel) for kernel in way]
        asked = {array.name for kernel in kernels for array in kernel.arrays if array.life == "residual"}
        assert asked - made(kernels) <= left
    first, *_, last = (made(map(backward.kernel, way)) for way in backward.ways)
    assert last < first, "what was kept is not made again"


@pytest.mark.parametrize("name", CASES)
def test_routines_say_which_arrays_and_numbers_they_take(name):
    """A kernel has them, too: it passes them on."""
    for kernel in backward_of(name).kernels:
        for routine in routines_in(kernel.body):
            assert {array.name for array in routine.arrays} <= {array.name for array in kernel.arrays}
            assert {*routine.numbers} <= {*kernel.numbers}
            assert {*routine.sizes} - {"dtype"} <= {*kernel.sizes}


# ------------------------------------------------------------------------------------------------------------- mistakes


def without_earlier(statement: Statement) -> Iterator[Statement]:
    """The state that is stored for two chunks is not taken to the second of them."""
    yield from () if isinstance(statement, Loop) and statement.over == "earlier" else (statement,)


def without_later(statement: Statement) -> Iterator[Statement]:
    """The gradient that is stored for two chunks is not taken to the first of them."""
    yield from () if isinstance(statement, Loop) and statement.over == "later" else (statement,)


def forward(statement: Statement) -> Iterator[Statement]:
    yield replace(statement, reverse=False) if isinstance(statement, Loop) and statement.over == "chunk" else statement


def always_stored(statement: Statement) -> Iterator[Statement]:
    """The second of two chunks that share a slot stores its state there as well."""
    if isinstance(statement, Let) and statement.target == "rows_stored" and isinstance(statement.value, Select):
        yield replace(statement, value=statement.value.value)
        return
    yield statement


def of_one_block(statement: Statement) -> Iterator[Statement]:
    """The shares of the other blocks are left out."""
    yield replace(statement, shares=False) if isinstance(statement, Load) and statement.shares else statement


def without_decay(statement: Statement) -> Iterator[Statement]:
    """What values get from the gradient of the state does not decay."""
    yield from () if isinstance(statement, Scale) and statement.target == "v_gradient" else (statement,)


def in_blocks(statement: Statement) -> Iterator[Statement]:
    """Keys that something sums over."""
    yield replace(statement, whole=False) if isinstance(statement, Loop) else statement


@pytest.mark.parametrize(
    ("name", "kernel", "mistake", "told"),
    [
        ("gated_delta_rule", "gradients", without_earlier, "gradient of"),
        ("gated_delta_rule", "gradients", without_later, "gradient of"),
        ("gated_delta_rule", "reverse", forward, "gradient of"),
        ("gated_delta_product", "kept_states", always_stored, "written twice"),
        ("linear_attn_normalized", "gradients", of_one_block, "gradient of"),
        ("mamba2", "gradients", without_decay, "gradient of x"),
        ("delta_net", "gradients", in_blocks, "gradient of"),
    ],
)
def test_mistakes_are_refused(name, kernel, mistake, told):
    program = changed(backward_of(name), kernel, mistake)
    assert program != backward_of(name)
    with pytest.raises(InternalError, match=told):
        prove(name, program)
