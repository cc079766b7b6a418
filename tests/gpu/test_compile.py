"""torch.compile around the kernels: the same bits forward, and the gradients of the same call without it."""

from __future__ import annotations

import pytest
import torch

from tests.numeric.problems import NAMES, Shape, assert_close, evaluate, form, make, package

OPERATORS = [
    (kind, name) for kind in ("chunk", "fused_recurrent") for name in NAMES if hasattr(package(name), f"{kind}_{name}")
]
SHAPES = (Shape(T=130, B=2, H=2, groups=2, K=64, V=32), Shape(lengths=(0, 1, 100, 29), H=2, groups=2, K=64, V=32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "name"), OPERATORS)
def test_one_graph(kind, name, shape):
    torch.compiler.reset()
    problem = make(name, shape).to(torch.float32).to("cuda")
    operator = form(kind, name)
    compiled = torch.compile(operator, fullgraph=True)
    forward = evaluate(operator, problem, wrt=())
    assert_close(forward, evaluate(compiled, problem, wrt=()), 0)
    assert_close(evaluate(operator, problem), evaluate(compiled, problem), 1e-5, gradients=1e-4)
