"""The kernels of the backward for decays of each key: what they are as data."""

from __future__ import annotations

from functools import cache

import pytest

from flagen import pipeline
from flagen.kernel import Programs
from flagen.kernel.ir import Program
from flagen.kernel.key_backward import KEEPING
from flagen.kernel.passes import live
from flagen.plan import Plan
from flagen.plan.right_backward import RightBackwardPlan
from flagen.spec import load_spec
from tests.kernel.arrays import made
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


def backward_of(name: str) -> Program:
    program = of(name).chunk_backward
    assert program is not None
    return program


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


def test_what_a_right_read_is_of_the_turned_one():
    """What was read with and the gradient of the output are in each other's place, and what is read is a gradient."""
    backward = plan_of("oja").chunk_backward
    assert isinstance(backward, RightBackwardPlan)
    arrays = {array.name: (array.life, array.of) for kernel in backward_of("oja").kernels for array in kernel.arrays}
    assert arrays[backward.reader] == ("cotangent", "o")
    assert arrays["do"] == ("argument", backward.reads)
    assert arrays["o"] == ("gradient", backward.reads)
