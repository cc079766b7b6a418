"""The modules: they own the params, survive a checkpoint, and carry the state from call to call where that is asked."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flagen.spec import parse_spec
from flagen.spec.model import Spec, dims_in
from tests.algebra.cases import SPECS
from tests.fuzz import packages
from tests.fuzz.packages import imported
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
from tests.tiers import exhaustive, variants

SHAPE = Shape(T=12, B=2, groups=2)
SMALL = Shape(T=6)
"""For what differentiates, of a single head."""
PARAMETRIC = [name for name in NAMES if any(param.is_tensor for param in spec_of(name).params)]

# One of each: a state, a state and micro-steps, several states, one of which starts at -inf, and params.
SOME = ["gated_delta_rule", "gated_delta_product", "abc_attn", "rwkv4", "mamba"]

every_variant = variants(NAMES)
some_variants = pytest.mark.parametrize("name", SOME)


def problem_of(name: str, shape: Shape = SHAPE) -> Problem:
    return replace(make(name, shape).to(torch.float32), initial_state=None)


def build(problem: Problem, **settings: object) -> nn.Module:
    """The variant's module, of the problem's sizes and scalars, holding the problem's params."""
    spec = spec_of(problem.name)
    sizes = {}
    for param in (p for p in spec.params if p.is_tensor):
        axes = ("HV", *param.dims) if param.per_head else param.dims
        sizes |= dict(zip(axes, problem.tensors[param.name].shape, strict=True))
    sizes |= {dim: size for dim, size in SHAPE.sizes(spec).items() if dim in sources_of(spec, sizes)}
    sizes = {name: size for name, size in sizes.items() if name not in {entry.name for entry in spec.following}}
    module = getattr(package(problem.name), spec.class_name)(**sizes, **problem.scalars, **settings)
    with torch.no_grad():
        for name, param in module.named_parameters():
            param.copy_(problem.tensors[name])
    return module


def sources_of(spec: Spec, sizes: Collection[str]) -> set[str]:
    """The dims that those of `sizes` follow from."""
    return {dim for entry in spec.following if entry.name in sizes for dim in dims_in(entry.value)}


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


# ---------------------------------------------------------------------------------------------------- the carried state


@every_variant
def test_starts_afresh_unless_asked(name):
    problem = problem_of(name)
    module = build(problem)
    with torch.no_grad():
        first, _ = module(*inputs(problem))
        second, _ = module(*inputs(problem))
    assert module.state is None
    assert torch.equal(first, second)


@every_variant
def test_carries_the_state_from_call_to_call(name):
    problem = problem_of(name)
    module, cuts = build(problem, carry_state=True), (0, 7, 8, 9, 12)
    outputs = []
    with torch.no_grad():
        for start, end in pairwise(cuts):
            o, final_state = module(*inputs(problem, start, end))
            assert final_state is None
            outputs.append(o)
    assert_close(reference(problem), named_results(name, torch.cat(outputs, dim=1), module.state), 1e-5)


@some_variants
def test_a_call_says_whether_it_carries(name):
    """A call that does not carry leaves the state alone, in the middle of a sequence too."""
    problem = problem_of(name)
    module = build(problem)
    with torch.no_grad():
        head, _ = module(*inputs(problem, 0, 5), carry_state=True)
        module.carry_state = True
        fresh, _ = module(*inputs(problem), carry_state=False)
        tail, _ = module(*inputs(problem, 5, 12))
    expected = reference(problem)
    assert_close(expected, named_results(name, fresh, module.state), 1e-5)
    assert_close(expected, named_results(name, torch.cat((head, tail), dim=1), module.state), 1e-5)


@some_variants
def test_starts_afresh_when_told_to(name):
    problem = problem_of(name)
    module = build(problem, carry_state=True)
    with torch.no_grad():
        first, _ = module(*inputs(problem))
        second, _ = module(*inputs(problem))
        assert not torch.equal(first, second)
        module.reset_state()
        assert module.state is None
        assert torch.equal(first, module(*inputs(problem))[0])


@some_variants
def test_carries_on_from_a_first_state(name):
    problem = problem_of(name)
    module, whole = build(problem, carry_state=True), build(problem)
    with torch.no_grad():
        _, initial = whole(*inputs(problem), output_final_state=True)
        expected, final = whole(*inputs(problem), initial_state=initial, output_final_state=True)
        module(*inputs(problem, 0, 3))
        head, _ = module(*inputs(problem, 0, 5), initial_state=initial)
        tail, _ = module(*inputs(problem, 5, 12))
    results = named_results(name, torch.cat((head, tail), dim=1), module.state)
    assert_close(named_results(name, expected, final), results, 1e-5)


@some_variants
def test_packed_sequences_carry_a_state_each(name):
    """What one call packs, two calls may: the sequences are those of the call before, in its order."""
    problem = problem_of(name)
    module, offsets = build(problem, carry_state=True), torch.tensor([0, 5, 10])
    rows = {i.name: SHAPE.n if i.per == "step" else 1 for i in spec_of(name).inputs}
    given = zip(rows.values(), inputs(problem), strict=True)
    packed = [torch.cat((x[:1, : 5 * n], x[1:, : 5 * n]), dim=1) for n, x in given]
    with torch.no_grad():
        first, _ = module(*packed, cu_seqlens=offsets)
        rest, _ = module(*inputs(problem, 5, 12))
    o = torch.cat((torch.cat(first.split(5, dim=1)), rest), dim=1)
    assert_close(reference(problem), named_results(name, o, module.state), 1e-5)


@some_variants
def test_a_carried_state_of_another_batch_is_named(name):
    problem = problem_of(name)
    module = build(problem, carry_state=True)
    with torch.no_grad():
        module(*inputs(problem))
        expected = r"carried state.*\[(N|sequences), HV, .* = \(1, .*got \(2, .*reset_state\(\)"
        with pytest.raises(ValueError, match=expected):
            module(*(x[:1] for x in inputs(problem)))
        module.reset_state()
        module(*(x[:1] for x in inputs(problem)))


@every_variant
def test_refuses_to_carry_where_gradients_are_recorded(name):
    """A first state is what goes with gradients; the carried one is then left alone."""
    problem = problem_of(name, SMALL)
    module = build(problem, carry_state=True)
    with torch.no_grad():
        module(*inputs(problem, 0, 5))
    carried = module.state
    recorded = [x.requires_grad_() for x in inputs(problem)]
    with pytest.raises(RuntimeError, match=r"carry_state.*initial_state"):
        module(*recorded)
    with pytest.raises(RuntimeError, match=r"carry_state.*initial_state"):
        module(*recorded, initial_state=carried, carry_state=True)
    o, _ = module(*recorded, initial_state=carried)
    o.sum().backward()
    assert module.state is carried
    assert all(x.grad is not None for x in recorded)


@pytest.mark.parametrize("name", PARAMETRIC)
def test_gradients_of_params_are_recorded_too(name):
    problem = problem_of(name)
    with pytest.raises(RuntimeError, match="carry_state"):
        build(problem, carry_state=True)(*inputs(problem))


@some_variants
@pytest.mark.parametrize("reentrant", [False, pytest.param(True, marks=exhaustive)])
def test_checkpoints_have_the_same_gradients(name, reentrant):
    """A call under activation checkpointing, which runs it twice, has the gradients that it has without."""

    def gradients(run):
        problem = problem_of(name, SMALL)
        module, leaves = build(problem), [x.requires_grad_() for x in inputs(problem)]
        for _ in range(2):  # The second step meets whatever the first has left.
            run(lambda *given: module(*given)[0], *leaves).square().sum().backward()
        return [*(x.grad for x in leaves), *(p.grad for p in module.parameters())]

    plain = gradients(lambda function, *given: function(*given))
    twice = gradients(lambda function, *given: checkpoint(function, *given, use_reentrant=reentrant))
    assert all(torch.equal(a, b) for a, b in zip(plain, twice, strict=True))


@some_variants
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("around", [nullcontext, torch.no_grad])
def test_a_checkpoint_never_carries_on_from_its_first_run(name, reentrant, around):
    """Wherever the module is frozen and what follows it learns, the second run would meet the state of the first."""
    problem = problem_of(name)
    module = build(problem, carry_state=True).requires_grad_(False)
    weight = torch.ones((), requires_grad=True)

    def block(weight, *given):
        with around():
            o, _ = module(*given)
        return (weight * o).square().sum()

    loss = checkpoint(block, weight, *inputs(problem), use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="carry_state"):
        loss.backward()


@some_variants
def test_state_follows_the_module(name):
    """To another device, and never to another dtype: a state is float32 whatever the params are."""
    problem = problem_of(name)
    module = build(problem, carry_state=True)
    with torch.no_grad():
        module(*inputs(problem, 0, 5))
        before = named_states(name, "final", module.state)
        for convert in (nn.Module.bfloat16, nn.Module.double, nn.Module.float):
            after = named_states(name, "final", convert(module).state)
            assert all(torch.equal(after[part], x) and after[part].dtype == torch.float32 for part, x in before.items())
    module.to(device="meta", dtype=torch.float16)
    for x in named_states(name, "final", module.state).values():
        assert (x.device.type, x.dtype) == ("meta", torch.float32)
    other = build(problem, carry_state=True)
    other.state = module.state
    with torch.no_grad(), pytest.raises(ValueError, match=r"carried state.* on cpu as the inputs, got .* on meta"):
        other(*inputs(problem, 5, 12))


@some_variants
def test_inference_mode_leaves_a_state_to_train_from(name):
    problem = problem_of(name, SMALL)
    module = build(problem, carry_state=True)
    with torch.inference_mode():
        module(*inputs(problem, 0, 5))
        module(*inputs(problem, 5, 6))
    module.carry_state = False
    leaves = [x.requires_grad_() for x in inputs(problem)]
    module(*leaves)[0].sum().backward()
    module(*leaves, initial_state=module.state)[0].sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves)


@some_variants
def test_a_replica_does_not_carry(name):
    """nn.DataParallel makes replicas for one call: a state kept in one is lost."""
    problem = problem_of(name)
    replica = build(problem, carry_state=True).requires_grad_(False)._replicate_for_data_parallel()
    with torch.no_grad(), pytest.raises(RuntimeError, match="replica"):
        replica(*inputs(problem))


@pytest.mark.parametrize("carry_state", [False, True])
def test_compiled(carry_state, monkeypatch):
    """In one graph where no state is carried; a call that carries breaks it, and is right."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    torch.compiler.reset()
    problem = problem_of("gated_delta_rule")
    module = build(problem, carry_state=carry_state)
    run = torch.compile(module, backend="aot_eager", fullgraph=not carry_state)
    with torch.no_grad():
        if carry_state:
            pieces = [run(*inputs(problem, start, end))[0] for start, end in pairwise((0, 4, 8, 12))]
            results = torch.cat(pieces, dim=1), module.state
        else:
            results = run(*inputs(problem), output_final_state=True)
    assert_close(reference(problem), named_results(problem.name, *results), 1e-5)


@every_variant
def test_repr_shows_the_arguments(name):
    module = build(problem_of(name))
    arguments = inspect.signature(type(module)).parameters
    shown = ", ".join(f"{argument}={getattr(module, argument)}" for argument in arguments)
    assert repr(module) == f"{type(module).__name__}({shown})"


def test_an_input_may_be_called_carry_state():
    """The argument gives way: it is the module's own name for it."""
    tree = yaml.safe_load((SPECS / "linear_attn.yaml").read_text().replace("v)", "carry_state)"))
    tree["inputs"]["carry_state"] = tree["inputs"].pop("v")
    with imported(packages.build(parse_spec(yaml.safe_dump(tree, sort_keys=False)), kernels=False)) as built:
        module = built.LinearAttn()
        x = torch.randn(1, 6, 1, 4)
        whole, _ = module(x, x, x)
        with torch.no_grad():
            pieces = [module(x[:, t : t + 3], x[:, t : t + 3], x[:, t : t + 3], carry_state_=True)[0] for t in (0, 3)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


# ------------------------------------------------------------------------------------------------ params and their file


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
    module, restored = build(problem, carry_state=True), build(other, carry_state=True)
    with torch.no_grad():
        module(*inputs(problem))
        restored(*inputs(other))

    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file))
    fresh = {"carry_state": False}
    assert torch.equal(module(*inputs(problem), **fresh)[0], restored(*inputs(problem), **fresh)[0])


@some_variants
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_copies_are_apart(name, around):
    problem = problem_of(name)
    module = build(problem, carry_state=True)
    with around():
        module(*inputs(problem, 0, 5))
    twin = copy.deepcopy(module)
    with around():
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
