"""The modules: they own the params, survive a checkpoint, and carry the state from call to call."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tests.numeric.problems import (
    NAMES,
    Problem,
    Shape,
    assert_close,
    form,
    make,
    named_results,
    named_states,
    package,
    spec_of,
)
from tests.numeric.references import REFERENCES
from tests.tiers import variants

SHAPE = Shape(T=12, B=2, groups=2)
PARAMETRIC = [name for name in NAMES if any(param.is_tensor for param in spec_of(name).params)]

every_variant = variants(NAMES)


def problem_of(name: str, shape: Shape = SHAPE) -> Problem:
    return replace(make(name, shape).to(torch.float32), initial_state=None)


def build(problem: Problem, **settings: object) -> nn.Module:
    """The variant's module, of the problem's sizes and scalars, holding the problem's params."""
    spec = spec_of(problem.name)
    sizes = {}
    for param in (p for p in spec.params if p.is_tensor):
        axes = ("HV", *param.dims) if param.per_head else param.dims
        sizes |= dict(zip(axes, problem.tensors[param.name].shape, strict=True))
    module = getattr(package(problem.name), spec.class_name)(**sizes, **problem.scalars, **settings)
    with torch.no_grad():
        for name, param in module.named_parameters():
            param.copy_(problem.tensors[name])
    return module


def inputs(problem: Problem, start: int = 0, end: int | None = None) -> list[Tensor]:
    """What the module is called with: tokens start to end of every input."""
    spec = spec_of(problem.name)
    end = SHAPE.T if end is None else end
    rows = {i.name: SHAPE.n if i.per == "step" else 1 for i in spec.inputs}
    return [problem.tensors[name][:, start * n : end * n] for name, n in rows.items()]


def reference(problem: Problem) -> dict[str, Tensor]:
    return named_results(problem.name, *problem.call(REFERENCES[problem.name]))


@every_variant
def test_is_the_operator(name):
    problem = problem_of(name)
    results = build(problem)(*inputs(problem), output_final_state=True)
    assert_close(reference(problem), named_results(name, *results), 1e-5)


@every_variant
def test_passes_packed_sequences_and_a_first_state(name):
    shape = Shape(lengths=(3, 0, 20), H=2, groups=2)
    problem = make(name, shape).to(torch.float32)
    positional = [problem.tensors[i.name] for i in spec_of(name).inputs]
    carried = {"initial_state": problem.initial_state, "cu_seqlens": problem.cu_seqlens}
    results = build(problem)(*positional, output_final_state=True, **carried)
    assert_close(reference(problem), named_results(name, *results), 1e-5)


@every_variant
def test_carries_the_state_from_call_to_call(name):
    problem = problem_of(name).map(lambda _, x: x.requires_grad_())
    module, cuts = build(problem), (0, 7, 8, 9, 12)
    outputs = []
    for start, end in pairwise(cuts):
        o, final_state = module(*inputs(problem, start, end))
        assert final_state is None
        outputs.append(o)
    # Each call is a graph of its own: a cache that kept its past's would grow without end.
    assert outputs[-1].requires_grad
    assert not any(x.requires_grad for x in named_states(name, "final", module.state).values())
    assert_close(reference(problem), named_results(name, torch.cat(outputs, dim=1), module.state), 1e-5)


@every_variant
def test_starts_afresh_when_told_to(name):
    problem = problem_of(name)
    module = build(problem)
    first, _ = module(*inputs(problem))
    second, _ = module(*inputs(problem))
    assert not torch.equal(first, second)
    module.reset_state()
    assert module.state is None
    assert torch.equal(first, module(*inputs(problem))[0])


@every_variant
def test_carries_nothing_when_told_not_to(name):
    problem = problem_of(name)
    module = build(problem, carry_state=False)
    first, _ = module(*inputs(problem))
    second, _ = module(*inputs(problem))
    assert module.state is None
    assert torch.equal(first, second)


@every_variant
def test_a_carried_state_of_another_batch_is_refused(name):
    problem = problem_of(name)
    module = build(problem)
    module(*inputs(problem))
    with pytest.raises(ValueError, match="initial_state"):
        module(*(x[:1] for x in inputs(problem)))


@every_variant
def test_owns_the_params(name):
    problem = problem_of(name)
    module = build(problem)
    tensors = {p.name: problem.tensors[p.name] for p in spec_of(name).params if p.is_tensor}
    assert {n: p.shape for n, p in module.named_parameters()} == {n: x.shape for n, x in tensors.items()}
    assert set(module.state_dict()) == set(tensors)


@every_variant
def test_state_dict_round_trip(name):
    """Through a file, into a module that has already run."""
    problem, other = problem_of(name), problem_of(name, replace(SHAPE, T=13))
    module, restored = build(problem), build(other)
    module(*inputs(problem))
    restored(*inputs(other))

    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file))
    module.reset_state()
    restored.reset_state()
    assert torch.equal(module(*inputs(problem))[0], restored(*inputs(problem))[0])


@every_variant
def test_copies_are_apart(name):
    problem = problem_of(name)
    module = build(problem)
    module(*inputs(problem, 0, 5))
    twin = copy.deepcopy(module)
    o, _ = module(*inputs(problem, 5, 12))
    assert torch.equal(o, twin(*inputs(problem, 5, 12))[0])


@pytest.mark.parametrize("name", PARAMETRIC)
def test_trains_its_params(name):
    problem = problem_of(name)
    module = build(problem)
    module(*inputs(problem))[0].square().sum().backward()
    leaves = problem.map(lambda _, x: x.double().requires_grad_())
    leaves.call(form("naive_recurrent", name))[0].square().sum().backward()
    expected = {f"d {n}": leaves.tensors[n].grad for n, _ in module.named_parameters()}
    assert_close(expected, {f"d {n}": p.grad for n, p in module.named_parameters()}, 1e-4)


@pytest.mark.parametrize("name", PARAMETRIC)
def test_params_start_inside_their_range(name):
    """On poisoned memory: a param that nothing initializes is NaN."""
    spec = spec_of(name)
    module = build(problem_of(name))
    with torch.no_grad():
        for param in module.parameters():
            param.fill_(float("nan"))
    module.reset_parameters()
    for param in (p for p in spec.params if p.is_tensor):
        x = getattr(module, param.name)
        assert ((param.range.low <= x) & (x <= param.range.high)).all(), param.name
