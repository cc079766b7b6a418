"""The operators that torch knows: what they promise to return without running, and that they keep to torch's rules."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from tests.numeric import shapes
from tests.numeric.problems import ROOT, Problem, Shape, forms, make, named_states, spec_of
from tests.tiers import each_form, represents, tiered


def launcher(kind: str, name: str) -> ModuleType:
    return importlib.import_module(f"generated.{name}.{kind}")


# Where a spec runs in stages, each stage has operators, and the whole has none of its own.
OPERATORS = [
    (kind, name) for kind, name in forms("chunk", "fused_recurrent") if hasattr(launcher(kind, name), f"_{kind}")
]
SHAPES = (shapes.EMPTY, Shape(T=20, B=2, H=2, groups=2), Shape(lengths=(0, 3, 17), groups=2), shapes.PACKED_EMPTY)

every_operator = each_form(OPERATORS)
some_operators = pytest.mark.parametrize(
    ("kind", "name"), [("chunk", "gated_delta_product"), ("fused_recurrent", "mamba2"), ("fused_recurrent", "abc_attn")]
)


def modes(kind: str, name: str) -> int:
    """How many modes the operator has: what it keeps for its gradient."""
    operator = getattr(launcher(kind, name), f"_{kind}")
    return 1 if not operator.kept else 2 if operator.needs_kept else 3


def arguments(kind: str, problem: Problem, *, final_state: bool = True, keep: int = 0) -> tuple[object, ...]:
    """What the operator takes: tensors, the initial state and the offsets, then what is no tensor."""
    spec = spec_of(problem.name)
    scalars = [problem.scalars.get(p.name) for p in spec.params if not p.is_tensor]
    steps = [problem.scalars[spec.steps.argument]] if spec.steps else []
    size = [64] if kind == "chunk" else []
    states = named_states(problem.name, "initial", problem.initial_state).values()
    tensors = (*problem.tensors.values(), *(states or [None] * len(spec.states)), problem.cu_seqlens)
    kept = [keep] if modes(kind, problem.name) > 1 else []
    return (*tensors, *scalars, *steps, final_state, *size, *kept)


def layout(results: tuple[Tensor, ...]) -> list[tuple[object, ...]]:
    return [(x.shape, x.dtype, x.device, x.stride()) for x in results]


def promised(operator, given: tuple[object, ...]) -> list[tuple[object, ...]]:
    """What the operator says of its results when it is not run."""
    with FakeTensorMode() as mode:
        return layout(operator(*(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in given)))


def check_promise(kind: str, problem: Problem) -> None:
    module = launcher(kind, problem.name)
    operator = getattr(module, f"_{kind}")
    forward, backward = operator.forward, operator.gradient
    without_state = arguments(kind, problem, final_state=False)
    assert layout(forward(*without_state)) == promised(forward, without_state)
    states = spec_of(problem.name).states
    tensors = arguments(kind, problem)[: len(problem.tensors) + len(states)]
    every, some = [x is not None for x in tensors], [place == 1 for place in range(len(tensors))]
    for keep in range(modes(kind, problem.name)):
        given = arguments(kind, problem, keep=keep)
        found = forward(*given)
        assert layout(found) == promised(forward, given)
        o, *final = found[: 1 + len(states)]
        kept = found[1 + len(states) :]
        if operator.outputs:
            kept = (o, *kept)  # What is read of a state that rides along has a gradient by the output.
        for cotangents, wanted in (((o, *final), every), ((None, *final), some)):
            asked = (*given, *cotangents, *kept, wanted)
            assert layout(backward(*asked)) == promised(backward, asked)


# --------------------------------------------------------------------------------------------- results without numbers


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_operator
def test_what_pytorch_returns_is_what_was_promised(kind, name, shape, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    check_promise(kind, make(name, shape).to(torch.float32))


@tiered(("kind", "name"), OPERATORS, lambda kind, name: represents(name) and kind == "chunk")
def test_what_kernels_return_is_what_was_promised(kind, name):
    check_promise(kind, make(name, Shape(lengths=(3, 0, 2), groups=2), state=False).to(torch.bfloat16))


@every_operator
def test_strides_and_dtypes_of_arguments_do_not_show(kind, name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    problem = make(name, Shape(T=5, B=2, H=2, groups=2))
    first = next(iter(problem.tensors))
    problem = problem.map(lambda key, x: x.to(torch.float64 if key == first else torch.bfloat16))
    check_promise(kind, problem.map(lambda _, x: x.transpose(0, -1).contiguous().transpose(0, -1)))


@some_operators
def test_keeps_to_the_rules_of_torch(kind, name, monkeypatch):
    """Schema, fake results, registration of gradients, and all of it with dynamic shapes."""
    monkeypatch.delenv("TRITON_INTERPRET")
    operator = getattr(launcher(kind, name), f"_{kind}")
    for shape in (Shape(T=6, B=2, groups=2), Shape(lengths=(2, 4), groups=2)):
        problem = make(name, shape).to(torch.float32).map(lambda _, x: x.requires_grad_())
        torch.library.opcheck(operator.forward, arguments(kind, problem))


@pytest.mark.parametrize("used", [0, 1], ids=["o", "final_state"])
@some_operators
def test_gradients_through_one_result(kind, name, used, monkeypatch):
    """Called as it is, outside of torch.compile: of the other result there is no cotangent at all."""
    monkeypatch.delenv("TRITON_INTERPRET")
    module = launcher(kind, name)
    gradients = []
    operator = getattr(module, f"_{kind}")
    for function in (operator.in_pytorch, operator.forward):
        problem = make(name, Shape(T=5, groups=2)).to(torch.float32).map(lambda _, x: x.requires_grad_())
        function(*arguments(kind, problem))[used].square().sum().backward()
        leaves = problem.leaves.values()
        gradients.append([torch.zeros_like(x) if x.grad is None else x.grad for x in leaves])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


# ------------------------------------------------------------------------------------------------------------- copies


@dataclass(frozen=True)
class Copies:
    """Two copies of one package, the second of which returns twice the output."""

    one: ModuleType
    two: ModuleType


TWICE = """

def twice(*tensors, **keywords):
    o, state = naive_recurrent_gla(*tensors, **keywords)
    return 2 * o, state
"""


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET")
    torch.compiler.reset()
    for vendor in ("one", "two"):
        for folder in ("gla", "shared"):
            shutil.copytree(ROOT / "generated" / folder, tmp_path / f"vendor_{vendor}" / folder)
    launcher = tmp_path / "vendor_two" / "gla" / "fused_recurrent.py"
    text = launcher.read_text()
    assert text.count("form=naive_recurrent_gla,\n") == 1
    head, tail = text.replace("form=naive_recurrent_gla,\n", "form=twice,\n").split("\n\n_fused_recurrent = ")
    launcher.write_text(f"{head}{TWICE}\n\n_fused_recurrent = {tail}")
    yield Copies(*(importlib.import_module(f"vendor_{vendor}.gla") for vendor in ("one", "two")))
    for name in set(sys.modules) - before:
        if name.startswith("vendor_"):
            del sys.modules[name]


def compiled(module: ModuleType, problem: Problem) -> Tensor:
    function = torch.compile(module.fused_recurrent_gla, backend="aot_eager", fullgraph=True)
    leaves = problem.map(lambda _, x: x.detach().requires_grad_())
    o, _ = leaves.call(function)
    o.sum().backward()
    return torch.cat([o.flatten(), leaves.tensors["q"].grad.flatten()]).detach()


def test_two_copies_keep_apart(copies):
    problem = make("gla", Shape(T=4)).to(torch.float32)
    one, two = compiled(copies.one, problem), compiled(copies.two, problem)
    assert torch.equal(2 * one, two)
    assert torch.equal(one, compiled(copies.one, problem))


def test_a_reloaded_package_is_what_it_is_now(copies, tmp_path):
    problem = make("gla", Shape(T=4)).to(torch.float32)
    before = compiled(copies.one, problem)
    launcher = importlib.import_module("vendor_one.gla.fused_recurrent")
    shutil.copy(tmp_path / "vendor_two" / "gla" / "fused_recurrent.py", tmp_path / "vendor_one" / "gla")
    importlib.reload(launcher)
    assert torch.equal(2 * before, compiled(launcher, problem))
    # What was imported by name before the reload still runs: its globals are those of the module.
    assert torch.equal(2 * before, compiled(copies.one, problem))


def test_operators_are_named_after_the_place_of_their_package(copies):
    for vendor, module in (("one", copies.one), ("two", copies.two)):
        launcher = importlib.import_module(f"{module.__name__}.fused_recurrent")
        assert launcher._fused_recurrent.forward._namespace == f"flagen_vendor_{vendor}_gla"
        assert hasattr(getattr(torch.ops, f"flagen_vendor_{vendor}_gla"), "fused_recurrent")
