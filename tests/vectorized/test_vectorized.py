"""The second printer: kernels of every spec, run in PyTorch from what their launchers give them, are the recurrence.

Programs compute in float64, so that a bound hangs on what arrays in float32 lose, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from flagen.diagnostics import InternalError
from flagen.kernel.ir import Array, Given, If, Kernel, Let, Loop, Store, access
from flagen.plan.tiles import Constant, Function, Product, Value
from tests.kernel.equivalent import harmless
from tests.kernel.mutants import Mutant, mutants
from tests.kernel.numbering import Numbering
from tests.margins import beyond
from tests.numeric.problems import Problem, Shape, evaluate, form, make, package, rms_ratio
from tests.specs import FRONT_ENDS, OPERATORS
from tests.vectorized.known import kernels_of
from tests.vectorized.launches import launch, vectorized
from tests.vectorized.printer import print_kernel
from tests.vectorized.tiles import printed

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned_memory")

SHAPE = Shape(lengths=(0, 18, 1, 35), K=12, V=20, H=1, groups=2)
"""Packed, with an empty sequence, ragged chunks and segments, blocks that pad, and groups of value heads."""
BOUND, OF_GRADIENTS = 1e-6, 5e-6

CASES = [
    (kind, name)
    for name in (*OPERATORS, *FRONT_ENDS)
    for kind in ("fused_recurrent", "chunk")
    if hasattr(package(name), f"{kind}_{name}")
]


def expected(problem: Problem) -> dict[str, Tensor]:
    return evaluate(form("naive_recurrent", problem.name), problem.to(torch.float64))


def failures(kind: str, problem: Problem, reference: Mapping[str, Tensor], **keywords: object) -> list[str]:
    """The results and gradients of a form that are not those of the recurrence."""
    with vectorized(torch.float64):
        found = evaluate(form(kind, problem.name), problem, **keywords)
    return [
        failure
        for name, x in reference.items()
        for failure in beyond(name, rms_ratio(x, found[name]), OF_GRADIENTS if name.startswith("d ") else BOUND)
    ]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_kernels_are_the_recurrence(kind, name):
    problem = make(name, SHAPE).to(torch.float32)
    keywords = {"chunk_size": 16} if kind == "chunk" else {}
    assert not failures(kind, problem, expected(problem), **keywords)


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("kind", "function", "more"),
    [("chunk", "chunk_kda_kernel", {"save_states": True}), ("fused_recurrent", "fused_recurrent_kda_kernel", {})],
    ids=["chunk", "fused_recurrent"],
)
def test_a_mistake_in_a_kernel_is_seen(kind, function, more, monkeypatch):
    """What runs is the data, and memory that nobody wrote is no number."""
    kernels = kernels_of("kda")
    right = kernels[function]
    problems = [make("kda", SHAPE, state=state).to(torch.float32) for state in (True, False)]
    references = [expected(problem) for problem in problems]
    found = [*first_of_each_kind(right.kernel)]
    assert len(found) >= 4
    for mutant in found:
        monkeypatch.setitem(kernels, function, replace(right, kernel=mutant.kernel))
        try:
            seen = [failures(kind, *each, **more) for each in zip(problems, references, strict=True)]
        except (AssertionError, RuntimeError, IndexError, InternalError):
            continue
        assert any(seen), str(mutant)


def first_of_each_kind(kernel: Kernel) -> Iterable[Mutant]:
    """A mistake of each kind that a kernel has room for."""
    found, numbering = dict[str, Mutant](), Numbering(kernel)
    for mutant in mutants(kernel):
        if mutant.kind not in found and harmless(numbering, mutant) is None:
            found[mutant.kind] = mutant
    return found.values()


def test_a_grid_of_another_size_is_refused():
    kernel = kernels_of("simple_gla")["fused_recurrent_simple_gla_kernel"]
    values = dict.fromkeys(kernel.parameters)
    values |= {"T": 3, "H": 1, "HV": 2, "K": 16, "V": 16, "BLOCK_K": 16, "BLOCK_V": 16, "scale": 1.0}
    values |= {f"{name}_ptr": torch.zeros(96) for name in ("q", "k", "v", "g", "o")}
    launch(kernel.kernel, 2, values, torch.float32)
    with pytest.raises(AssertionError, match="3 programs are launched, and there are 2"):
        launch(kernel.kernel, 3, values, torch.float32)


# ------------------------------------------------------------------------------------------------- what nobody knows of


@dataclass(frozen=True)
class Unknown:
    """Neither a tile nor a statement nor a condition that anybody knows."""

    dims: tuple[str, ...] = ()


X, VALUE = Array("x", ("token", "head")), Value("y", "local", ())


def kernel(*body: object) -> Kernel:
    return Kernel("odd", "sequence", None, (), (X,), (), ("T",), ("HV",), frozenset(), body)


@pytest.mark.parametrize("tile", [Unknown(), Function("sinh", (VALUE,), ()), Product((VALUE, Unknown()), ())], ids=str)
def test_a_tile_that_the_printer_does_not_know(tile):
    with pytest.raises(InternalError, match="does not know"):
        printed(tile)


@pytest.mark.parametrize("statement", [Unknown(), Loop("page", ()), If((Unknown(),), ())], ids=str)
def test_a_statement_that_the_printer_does_not_know(statement):
    with pytest.raises(InternalError, match="does not know"):
        print_kernel(kernel(statement))


def test_a_kernel_is_python_to_read():
    body = (Let("y", Constant(2.0)), Loop("token", (If((Given(X),), (Store(access(X), VALUE),)),)))
    assert print_kernel(kernel(*body)).source == (
        "def kernel(here):\n"
        "    y_ = here.tensor((2.0))\n"
        "    for turn in here.tokens(reverse=False, but_last=False):\n"
        "        if here.is_given('x'):\n"
        "            here.store(at[0], 'x', y_)\n"
    )
