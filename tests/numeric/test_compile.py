"""torch.compile: one graph around every operator, whose results and gradients are those of the same call without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend

from tests.numeric.problems import (
    Problem,
    Shape,
    assert_close,
    evaluate,
    form,
    forms,
    make,
    named_results,
    package,
    spec_of,
    state_names,
)
from tests.numeric.test_calls import same
from tests.plans import adds_up_rows, is_staged, is_whole
from tests.tiers import each_form, exhaustive, represents, tiered

SHAPE = Shape(T=20, B=2, H=2, groups=2)
PACKED = Shape(lengths=(3, 0, 17), H=2, groups=2)
OPERATORS = forms("chunk", "fused_recurrent")
CHUNK, RECURRENT = ("chunk", "gated_delta_product"), ("fused_recurrent", "mamba2")
SEVERAL_STATES = ("fused_recurrent", "abc_attn")

every_operator = each_form(OPERATORS)
some_operators = pytest.mark.parametrize(("kind", "name"), [CHUNK, RECURRENT, SEVERAL_STATES])


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the interpreter operators run in PyTorch; compiled code of one test is none of another's business."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    torch.compiler.reset()


def problem_of(name: str, shape: Shape) -> Problem:
    return make(name, shape).to(torch.float32)


def compiled(function: Callable, backend: object = "aot_eager") -> Callable:
    return torch.compile(function, backend=backend, fullgraph=True)


def check(function: Callable, problem: Problem, wrt: Iterable[str] | None = None, backend: str = "aot_eager") -> None:
    expected = evaluate(function, problem, wrt=wrt)
    got = evaluate(compiled(function, backend), problem, wrt=wrt)
    if adds_up_rows(problem.name):
        assert_close(expected, got, 1e-6)  # What is traced is added up in another order.
        return
    if is_staged(problem.name) and function.__name__.startswith("chunk"):
        # So are gradients of what several stages take.
        of_stages = [name for name in expected if name.startswith("d ")]
        assert_close(
            {name: expected.pop(name) for name in of_stages}, {name: got.pop(name) for name in of_stages}, 1e-6
        )
    same(expected, got)


# ---------------------------------------------------------------------------------------------------------- one graph


@pytest.mark.parametrize("shape", [pytest.param(SHAPE, marks=exhaustive), PACKED], ids=str)
@every_operator
def test_results_and_gradients(kind, name, shape):
    if kind == "chunk" and (shape is PACKED or spec_of(name).levels is not None) and not is_whole(name):
        with pytest.raises(Unsupported, match="cu_seqlens" if shape is PACKED else "initial_state"):
            check(form(kind, name), problem_of(name, shape))
        return
    check(form(kind, name), problem_of(name, shape))


@tiered(("kind", "name"), OPERATORS, lambda kind, name: represents(name) and kind == "chunk")
def test_what_is_left_out(kind, name):
    """No state in or out, defaults for what has one, and no gradient."""
    problem = problem_of(name, replace(SHAPE, n=spec_of(name).steps.default if spec_of(name).steps else 1))
    required = [x for key, x in problem.tensors.items() if key not in problem.optional]
    scalars = {} if spec_of(name).steps else problem.scalars
    o, final_state = compiled(form(kind, name))(*required, **scalars)
    assert final_state is None
    assert not o.requires_grad
    assert torch.equal(o, form(kind, name)(*required, **scalars)[0])


@pytest.mark.parametrize(
    "shape", [Shape(T=0), Shape(T=1, B=2), Shape(lengths=(0, 0)), Shape(lengths=(7,), offsets=torch.int32)], ids=str
)
@some_operators
def test_edges(kind, name, shape):
    check(form(kind, name), problem_of(name, shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@some_operators
def test_dtypes(kind, name, dtype):
    check(form(kind, name), problem_of(name, SHAPE).to(dtype))


@pytest.mark.parametrize("shape", [pytest.param(SHAPE, marks=exhaustive), PACKED], ids=str)
@some_operators
def test_inductor(kind, name, shape):
    check(form(kind, name), problem_of(name, shape), backend="inductor")


@some_operators
def test_the_kernels_run_where_there_are_some(kind, name, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    problem, function = problem_of(name, Shape(T=5)), form(kind, name)
    check(function, problem, wrt=())
    assert_close(evaluate(function, problem), evaluate(compiled(function), problem), 1e-5)


@pytest.mark.parametrize("save_states", [False, True])
@pytest.mark.parametrize("shape", [Shape(T=5, groups=2), Shape(lengths=(3, 0, 2))], ids=str)
def test_what_is_kept_for_a_gradient(shape, save_states, monkeypatch):
    """A graph hands on what the forward kernels keep: what the fake said of it has to hold."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    problem, function = problem_of(CHUNK[1], shape), form(*CHUNK)
    expected = evaluate(form("naive_recurrent", CHUNK[1]), problem.to(torch.float64))
    got = evaluate(compiled(function), problem, save_states=save_states)
    assert_close(expected, got, 1e-5, gradients=1e-4)


@some_operators
def test_autocast_does_not_reach_into_an_operator(kind, name):
    """Neither forward nor backward, where its PyTorch form runs."""
    problem, function = problem_of(name, SHAPE), compiled(form(kind, name))
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = evaluate(function, problem)
    assert_close(expected, got, 1e-5, gradients=1e-4)


# ---------------------------------------------------------------------------------------------------------- gradients


@tiered(("kind", "name"), [CHUNK, RECURRENT, SEVERAL_STATES], lambda *case: case != RECURRENT)
def test_gradients_of_a_subset(kind, name):
    problem = problem_of(name, Shape(T=5, groups=2))
    for leaf in problem.leaves:
        torch.compiler.reset()
        check(form(kind, name), problem, wrt=[leaf])


@some_operators
def test_gradients_through_one_output(kind, name):
    for used in ("o", *state_names(name, "final")):
        gradients = []
        for function in (form(kind, name), compiled(form(kind, name))):
            given = problem_of(name, PACKED).map(lambda _, x: x.detach().requires_grad_())
            named_results(name, *given.call(function))[used].square().sum().backward()
            leaves = given.leaves
            gradients.append({key: torch.zeros_like(x) if x.grad is None else x.grad for key, x in leaves.items()})
        same(*gradients)


def test_one_tensor_in_two_roles():
    """Keys that are values as well."""
    problem = problem_of("linear_attn", Shape(T=5, V=16))
    q, k, _ = problem.tensors.values()
    operator = form("fused_recurrent", "linear_attn")

    def shared(k):
        o, _ = operator(q, k, k, initial_state=problem.initial_state)
        return o

    gradients = []
    for function in (shared, compiled(shared)):
        leaf = k.clone().requires_grad_()
        function(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("kind", ["chunk", "fused_recurrent"])
def test_without_compile_gradients_have_gradients(kind):
    problem = make("gated_delta_rule", Shape(T=3, K=3, V=2)).map(lambda _, x: x.requires_grad_())

    def function(*tensors):
        return problem.call(lambda *_, **keywords: form(kind, "gated_delta_rule")(*tensors, **keywords))

    assert torch.autograd.gradgradcheck(function, tuple(problem.tensors.values()))


# ------------------------------------------------------------------------------------------------- what may change


def frames(kind: str, name: str, problems: Iterable[Problem]) -> int:
    """How often the operator is compiled for calls with `problems`, one after the other."""
    counter = CompileCounterWithBackend("aot_eager")
    function = compiled(form(kind, name), counter)
    for problem in problems:
        wrt = None if problem.cu_seqlens is None else ()
        same(evaluate(form(kind, name), problem, wrt=wrt), evaluate(function, problem, wrt=wrt))
    return counter.frame_count


@some_operators
def test_lengths_are_dynamic(kind, name):
    problems = [problem_of(name, Shape(T=T, B=2, groups=2)) for T in (5, 9, 17, 66)]
    assert frames(kind, name, problems) == 2


@some_operators
def test_offsets_are_dynamic(kind, name):
    lengths = ((3, 4), (5, 0, 6), (1, 2, 3, 4), (2, 2, 9, 1, 1))
    assert frames(kind, name, [problem_of(name, Shape(lengths=each, groups=2)) for each in lengths]) == 2


def test_steps_are_dynamic():
    assert frames("chunk", "gated_delta_product", [problem_of(CHUNK[1], Shape(T=6, n=n)) for n in (2, 3, 5, 7)]) == 2


def test_scalars_may_change():
    problem = problem_of("lightning_attn", Shape(T=6))
    layers = [replace(problem, scalars={**problem.scalars, "layer_idx": layer}) for layer in (0, 3, 2.5)]
    frames("chunk", "lightning_attn", [*layers, replace(problem, scalars={**problem.scalars, "scale": 0.3})])


# ---------------------------------------------------------------------------------------------- what is not possible


@some_operators
def test_wrong_offsets_are_found_when_it_runs(kind, name):
    problem = problem_of(name, PACKED)
    function = compiled(form(kind, name))
    problem.call(function)
    for wrong in ((0, 3, 2, 20), (1, 3, 3, 20), (0, 3, 3, 19)):
        with pytest.raises(ValueError, match=r"cu_seqlens: expected non-decreasing offsets from 0 to T = 20, got"):
            replace(problem, cu_seqlens=torch.tensor(wrong)).call(function)


@some_operators
def test_wrong_shapes_are_found_when_it_compiles(kind, name):
    problem = problem_of(name, SHAPE)
    with pytest.raises(Unsupported, match=r"initial_state( \(z\))?: expected shape"):
        problem.with_leaves(
            problem.tensors | {key: x[1:] for key, x in problem.leaves.items() if key not in problem.tensors}
        ).call(compiled(form(kind, name)))


@pytest.mark.parametrize("kind", ["naive_recurrent", "naive_chunk"])
def test_the_naive_forms_are_traced(kind):
    check(form(kind, "gated_delta_product"), problem_of("gated_delta_product", Shape(T=3, groups=2)))


@pytest.mark.parametrize("kind", ["naive_recurrent", "naive_chunk"])
def test_packed_sequences_break_the_graph_of_a_naive_form(kind):
    problem = problem_of("gla", Shape(lengths=(2, 0, 3), groups=2))
    with pytest.raises(Unsupported, match=r"cu_seqlens: torch\.compile cannot trace reading it"):
        problem.call(compiled(form(kind, "gla")))
    broken = torch.compile(form(kind, "gla"), backend="eager")
    same(evaluate(form(kind, "gla"), problem), evaluate(broken, problem))


# ------------------------------------------------------------------------------------------------------------ modules


@pytest.mark.parametrize("length", [5, 40])
def test_a_module_is_one_graph(length):
    """Packed sequences and the state it carries included."""
    problem = problem_of("gated_delta_rule", Shape(lengths=(length, 0, 3), groups=2))
    outputs = []
    for wrap in (lambda module: module, compiled):
        module = wrap(package("gated_delta_rule").GatedDeltaRule())
        calls = [module(*problem.tensors.values(), cu_seqlens=problem.cu_seqlens)[0] for _ in range(3)]
        outputs.append({str(call): o for call, o in enumerate(calls)})
    same(*outputs)
