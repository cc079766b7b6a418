"""Gradients of specs that run in stages: every stage's kernels, and what passes between them."""

from __future__ import annotations

import inspect

import pytest
import torch

from flagen.algebra import derive
from tests.margins import beyond
from tests.numeric import shapes
from tests.numeric.problems import (
    NAMES,
    VARIANTS,
    Problem,
    Shape,
    assert_close,
    evaluate,
    form,
    make,
    rms_ratio,
    spec_of,
)
from tests.tiers import ladder, variants

STAGED = [name for name in NAMES if derive(spec_of(name)).staged is not None]
SHAPES = (
    shapes.PACKED,
    Shape(T=0),
    Shape(T=1, groups=2),
    Shape(T=65, K=60, V=20, groups=2),
    Shape(T=70, K=16, V=36, groups=4),
)
FLOAT32, LOW, LOW_GATES = 1e-4, 8e-3, 2e-2

every_variant = variants(STAGED)


def check(problem: Problem, bound: float, gates: float, **keywords: object) -> None:
    """Results and gradients of all arguments and first states; what has no channels, and decays, within `gates`."""
    name = problem.name
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64))
    got = evaluate(form("chunk", name), problem, **keywords)
    assert expected.keys() == got.keys()
    failures = []
    for key, reference in expected.items():
        argument = key.removeprefix("d ")
        of_gates = key != argument and (reference.dim() < 4 or argument in VARIANTS[name].gates)
        failures += beyond(key, rms_ratio(reference, got[key], 1e-6), gates if of_gates else bound)
    assert not failures, "; ".join(failures)


def test_there_are_some():
    assert len(STAGED) >= 6


@ladder(STAGED, SHAPES, few=(SHAPES[0], SHAPES[3]))
def test_float32(name, shape):
    check(make(name, shape).to(torch.float32), FLOAT32, FLOAT32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_variant
def test_low_precision(name, dtype):
    check(make(name, Shape(T=70, K=64, V=32, groups=2)).to(dtype), LOW, LOW_GATES)


@every_variant
def test_states_are_saved_where_a_stage_can(name):
    saves = "save_states" in inspect.signature(form("chunk", name)).parameters
    keywords = {"save_states": True} if saves else {}
    check(make(name, Shape(T=70, K=32, V=20)).to(torch.float32), FLOAT32, FLOAT32, **keywords)


@every_variant
def test_only_what_is_asked_for(name):
    """A gradient of the first input alone, and of the first states alone."""
    problem = make(name, Shape(T=20, K=16, V=20)).to(torch.float32)
    first, *_ = problem.leaves
    states = [key for key in problem.leaves if key not in problem.tensors]
    for wrt in ([first], states):
        expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64), wrt=wrt)
        got = evaluate(form("chunk", name), problem, wrt=wrt)
        assert_close(expected, got, FLOAT32)
