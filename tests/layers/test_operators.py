"""The operators of layers, recurrences with a front end: a short ladder, for each recurrence alone has climbed it."""

from __future__ import annotations

import pytest
import torch

from tests.numeric.problems import Shape, assert_close, evaluate, form, make, package, spec_of
from tests.numeric.rates import SAID, says_so
from tests.numeric.references import REFERENCES
from tests.specs import FRONT_ENDS
from tests.tiers import tiered

SHAPES = (
    Shape(lengths=(0, 4, 1), K=6, V=10, groups=2),
    Shape(lengths=(0, 17, 1, 5), K=12, V=20, H=2, groups=2),
    Shape(T=65, K=20, V=12, B=2, n=1),
)
"""Packed, with an empty sequence and value heads, and the same with more of each; and more than a chunk."""

CASES = [(name, shape) for name in FRONT_ENDS for shape in SHAPES]


def with_form(kind: str) -> list[tuple[str, Shape]]:
    """The cases of the operators that have the form."""
    return [(name, shape) for name, shape in CASES if hasattr(package(name), f"{kind}_{name}")]


INTERPRETED = ("gated_deltanet", "hgrn2_attention")
"""Those whose kernels are interpreted each time: between them they have every function that layers have."""


def always(_: str, shape: Shape) -> bool:
    return shape is SHAPES[0]


def in_triton(name: str, shape: Shape) -> bool:
    return always(name, shape) and name in INTERPRETED


def check(name: str, shape: Shape, kind: str, bound: float, gradients: float, **keywords: object) -> None:
    """A form in the dtype of the problem against the recurrence in float64."""
    problem = make(name, shape)
    expected = evaluate(form("naive_recurrent", name), problem)
    low = problem if bound < 1e-8 else problem.to(torch.float32)
    got = evaluate(form(kind, name), low, **keywords)
    if says_so(form(kind, name)):  # Gradients of params, among which are rates of decay.
        rates = {f"d {param.name}" for param in spec_of(name).params if param.is_tensor}
        assert_close({key: expected.pop(key) for key in rates}, {key: got.pop(key) for key in rates}, SAID[kind])
    assert_close(expected, got, bound, gradients=gradients)


@tiered(("name", "shape"), CASES, always)
def test_the_recurrence_is_the_reference(name: str, shape: Shape) -> None:
    problem = make(name, shape)
    assert_close(evaluate(REFERENCES[name], problem), evaluate(form("naive_recurrent", name), problem), 1e-12)


@tiered(("name", "shape"), with_form("naive_chunk"), always)
def test_naive_chunk(name: str, shape: Shape) -> None:
    check(name, shape, "naive_chunk", 1e-9, 1e-9, chunk_size=8)


@pytest.mark.usefixtures("kernels", "poisoned_memory")
@tiered(("name", "shape"), with_form("fused_recurrent"), always, in_triton)
def test_fused_recurrent(name: str, shape: Shape) -> None:
    check(name, shape, "fused_recurrent", 1e-5, 1e-4)


@pytest.mark.usefixtures("kernels", "poisoned_memory")
@tiered(("name", "shape"), with_form("chunk"), always, in_triton)
def test_chunk(name: str, shape: Shape) -> None:
    check(name, shape, "chunk", 1e-5, 1e-4)
