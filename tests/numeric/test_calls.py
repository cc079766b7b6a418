"""The contract of every generated function: what may be passed, what comes back, and in which dtype."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flagen.algebra.solved import solutions_in
from flagen.plan.reliance import has_range
from tests.numeric.problems import (
    FORMS,
    NAMES,
    Problem,
    Shape,
    assert_close,
    evaluate,
    form,
    forms,
    make,
    named_results,
    named_states,
    package,
    spec_of,
    state_names,
    with_form,
)
from tests.numeric.references import REFERENCES
from tests.tiers import each_form

KINDS = ("naive_recurrent", "naive_chunk", "fused_recurrent")
SHAPE = Shape(T=5, B=2, H=2, groups=2)

every_form = each_form(forms(*KINDS))


def same(expected: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    assert list(expected) == list(got)
    for name, x in expected.items():
        assert torch.equal(x, got[name]), name


def single(name: str, **scalars: float) -> Problem:
    return make(name, SHAPE, **scalars).to(torch.float32)


# ----------------------------------------------------------------------------------------------------------- signatures


@every_form
def test_signature(name, kind):
    spec = spec_of(name)
    signature = inspect.signature(form(kind, name)).parameters
    tensors = [p for p in spec.params if p.is_tensor]
    positional = [x.name for x in (*spec.inputs, *(p for p in tensors if p.default is None))]
    keywords = [
        *(p.name for p in tensors if p.default is not None),
        *(p.name for p in spec.params if not p.is_tensor),
        *([spec.steps.argument] if spec.steps else []),
        *("initial_state", "output_final_state", "cu_seqlens"),
    ]
    kinds = {n: p.kind for n, p in signature.items()}
    assert [n for n, k in kinds.items() if k is inspect.Parameter.POSITIONAL_OR_KEYWORD] == positional
    ranges = any(map(has_range, (*spec.inputs, *spec.params)))
    steps = ["max_iterations"] if any(solutions_in(spec)) else []
    extra = {"naive_chunk": ["chunk_size", *steps], "fused_recurrent": ["check_ranges"] if ranges else []}.get(kind, [])
    assert [n for n, k in kinds.items() if k is inspect.Parameter.KEYWORD_ONLY] == keywords + extra
    assert f"{kind}_{name}" in package(name).__all__


@every_form
def test_every_argument_goes_by_keyword(name, kind):
    problem = single(name)
    results = form(kind, name)(
        **problem.tensors, **problem.scalars, initial_state=problem.initial_state, output_final_state=True
    )
    same(evaluate(form(kind, name), problem, wrt=()), named_results(name, *results))


@each_form((kind, n) for kind, n in forms(*KINDS) if any(p.name == "scale" for p in spec_of(n).params))
def test_scale(name, kind):
    problem = make(name, SHAPE, scale=0.37)
    bound = 1e-5 if kind == "fused_recurrent" else 1e-9
    got = evaluate(form(kind, name), problem.to(torch.float32) if kind == "fused_recurrent" else problem, wrt=())
    assert_close(evaluate(REFERENCES[name], problem, wrt=()), got, bound)


@every_form
def test_what_is_left_out_takes_its_default(name, kind):
    spec, problem = spec_of(name), make(name, Shape(T=7, n=spec_of(name).steps.default if spec_of(name).steps else 1))
    required = [x for n, x in problem.tensors.items() if n not in problem.optional]
    scalars = {} if spec.steps else problem.scalars
    o, final_state = form(kind, name)(*required, **scalars)
    expected, _ = REFERENCES[name](*required, **scalars)
    assert final_state is None
    assert_close({"o": expected}, {"o": o}, 1e-9)


# -------------------------------------------------------------------------------------------------------------- results


@every_form
def test_dtypes(name, kind):
    """o follows the input that carries the output's dims; the state, and the arithmetic, are at least float32."""
    spec = spec_of(name)
    carrier = next((i.name for i in spec.inputs if set(spec.output_dims) <= set(i.dims)), spec.inputs[0].name)
    problem = single(name)
    problem = problem.with_tensors(**{carrier: problem.tensors[carrier].bfloat16()})
    o, final_state = problem.call(form(kind, name))
    assert {x.dtype for x in named_states(name, "final", final_state).values()} == {torch.float32}
    assert o.dtype == torch.bfloat16

    other = next(n for n in problem.tensors if n != carrier)
    problem = problem.with_tensors(**{other: problem.tensors[other].double()})
    o, final_state = problem.call(form(kind, name))
    assert {x.dtype for x in named_states(name, "final", final_state).values()} == {torch.float64}
    assert o.dtype == torch.bfloat16


@every_form
def test_low_precision_gates_and_state(name, kind):
    """Every tensor may have a dtype of its own, the state included."""
    kinds = [torch.float32, torch.bfloat16, torch.float16]
    problem = make(name, SHAPE)
    order = list(problem.tensors)
    mixed = problem.map(lambda n, x: x.to(kinds[order.index(n) % 3] if n in order else torch.bfloat16))
    expected = evaluate(REFERENCES[name], mixed.to(torch.float64), wrt=())
    assert_close(expected, evaluate(form(kind, name), mixed, wrt=()), 5e-3)


@every_form
def test_the_final_state_is_returned_only_when_asked_for(name, kind):
    problem = single(name)
    o, final_state = problem.call(form(kind, name), output_final_state=False)
    assert final_state is None
    same(evaluate(form(kind, name), problem, wrt=()) | {"o": o}, evaluate(form(kind, name), problem, wrt=()))


@every_form
def test_arguments_are_left_alone(name, kind):
    problem = single(name)
    before = {n: x.clone() for n, x in problem.leaves.items()}
    _, final_state = problem.call(form(kind, name))
    for x in named_states(name, "final", final_state).values():
        x.fill_(7)
    same(before, problem.leaves)


@every_form
def test_a_state_handed_through_is_a_copy(name, kind):
    """Where no token is run, too: a cache that is updated in place must not reach back into its past."""
    problem = make(name, Shape(T=0)).to(torch.float32)
    before = [x.clone() for x in named_states(name, "initial", problem.initial_state).values()]
    _, final_state = problem.call(form(kind, name))
    for x, was in zip(named_states(name, "final", final_state).values(), before, strict=True):
        assert torch.equal(x, was)
        x.fill_(7)
    for x, was in zip(named_states(name, "initial", problem.initial_state).values(), before, strict=True):
        assert torch.equal(x, was)


@every_form
def test_the_state_after_no_token_is_the_one_to_start_from(name, kind):
    """Values and gradients of a call that is given it are those of a call without a state."""
    problem = make(name, SHAPE, state=False).to(torch.float32)
    _, state = make(name, Shape(T=0, B=2, H=2, groups=2), state=False).to(torch.float32).call(form(kind, name))
    expected = evaluate(form(kind, name), problem)
    begun = evaluate(form(kind, name), replace(problem, initial_state=state), wrt=problem.tensors)
    assert_close(expected, begun, 1e-6)


# ------------------------------------------------------------------------------------------------------------ gradients


@every_form
def test_gradients_of_a_subset(name, kind):
    """Each tensor alone gets the gradient it gets among all, and the others get none."""
    problem = make(name, Shape(T=5, groups=2))
    whole = evaluate(form(kind, name), problem)
    for leaf in problem.leaves:
        alone = evaluate(form(kind, name), problem, wrt=[leaf])
        assert list(alone) == ["o", *state_names(name, "final"), f"d {leaf}"]
        assert_close({n: whole[n] for n in alone}, alone, 1e-12)


@every_form
def test_gradients_through_one_output(name, kind):
    problem = make(name, Shape(T=5, groups=2))
    for used in ("o", *state_names(name, "final")):
        gradients = []
        for function in (REFERENCES[name], form(kind, name)):
            leaves = problem.map(lambda _, x: x.clone().requires_grad_())
            named_results(name, *leaves.call(function))[used].square().sum().backward()
            gradients.append({n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in leaves.leaves.items()})
        assert_close(*gradients, 1e-9)


@every_form
def test_no_graph_where_none_is_wanted(name, kind):
    problem = single(name).map(lambda _, x: x.requires_grad_())
    with torch.no_grad():
        results = named_results(name, *problem.call(form(kind, name)))
    assert not any(x.requires_grad for x in results.values())


# -------------------------------------------------------------------------------------------------------------- strides


def channels_first(_: str, x: Tensor) -> Tensor:
    return x.mT.contiguous().mT if x.ndim > 1 else x


def heads_first(_: str, x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def every_other(_: str, x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, float("nan"))], dim=-1)[..., 0]


@pytest.mark.parametrize("layout", [channels_first, heads_first, every_other])
@every_form
def test_strides_do_not_matter(name, kind, layout):
    problem = single(name)
    expected = evaluate(form(kind, name), problem, wrt=())
    assert_close(expected, evaluate(form(kind, name), problem.map(layout), wrt=()), 1e-6)


@every_form
def test_expanded_inputs(name, kind):
    """One sequence seen B times through a stride of zero."""
    problem = make(name, Shape(T=7, groups=2)).to(torch.float32)
    params = {p.name for p in spec_of(name).params}
    thrice = problem.map(lambda n, x: x if n in params else x.expand(3, *x.shape[1:]))
    expected = {n: x.expand(3, *x.shape[1:]) for n, x in evaluate(form(kind, name), problem, wrt=()).items()}
    assert_close(expected, evaluate(form(kind, name), thrice, wrt=()), 1e-6)


# ---------------------------------------------------------------------------------------------------------------- forms


def test_which_variant_lacks_which_form():
    assert {kind: set(NAMES) - set(with_form(kind)) for kind in FORMS} == {
        "naive_recurrent": set(),
        "naive_chunk": {"slstm"},
        "chunk": {"slstm", "titans_linear", "ttt_linear"},
        "fused_recurrent": {"cyfa", "log_linear_attn", "log_linear_gated_delta_rule", "mesa_net", "slstm"},
    }
