"""The kernels of the backward for decays that are a scalar, or none: what they are as data."""

from __future__ import annotations

from functools import cache

import pytest

from flagen import pipeline
from flagen.kernel import Programs
from flagen.kernel.ir import Program, routines_in
from flagen.kernel.passes import live
from flagen.spec import load_spec
from tests.kernel.arrays import made
from tests.specs import SPECS

CASES = ("gated_delta_rule", "comba", "delta_net", "gated_delta_product", "mamba2", "linear_attn_normalized")
CASES += ("momentum_delta_rule",)
"""Erasures and none, reads before the decay, sums over the keys, micro-steps, a vector state that rides along, and
several states."""


@cache
def of(name: str) -> Programs:
    spec = load_spec(SPECS / f"{name}.yaml")
    return pipeline.lower(pipeline.make_plan(spec, pipeline.derive(spec)))


def backward_of(name: str) -> Program:
    program = of(name).chunk_backward
    assert program is not None
    return program


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
