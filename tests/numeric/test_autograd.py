"""chunk_* in a training step: checkpointed, under autocast, differentiated for some arguments or through one result.

Each test runs where operators run in PyTorch, for every variant, and where they have kernels, for a few. What is right
is the recurrence in float64, on the same float32 numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from tests.numeric.problems import (
    Problem,
    Shape,
    assert_close,
    cotangent,
    evaluate,
    form,
    make,
    named_results,
    spec_of,
    state_names,
    with_form,
)
from tests.tiers import represents, tiered

OPERATORS = with_form("chunk")
KERNELS = [name for name in ("gated_delta_product", "mamba2", "kda", "gsa", "rwkv4") if name in OPERATORS]
SHAPE = Shape(T=70, groups=2)
SHORT = Shape(T=5, groups=2)
BOUNDS = {"bound": 1e-5, "gradients": 1e-4}


def always(name: str, kernels: bool) -> bool:
    return kernels or represents(name)


in_pytorch_and_in_kernels = tiered(
    ("name", "kernels"), [*((name, False) for name in OPERATORS), *((name, True) for name in KERNELS)], always
)


@pytest.fixture(autouse=True)
def _where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the interpreter, operators run in PyTorch."""
    if not getattr(request.node, "callspec", None) or not request.node.callspec.params.get("kernels"):
        monkeypatch.delenv("TRITON_INTERPRET")


def single(name: str, shape: Shape) -> Problem:
    return make(name, shape).to(torch.float32)


def chunk(name: str) -> Callable:
    return form("chunk", name)


def right(problem: Problem) -> dict[str, Tensor]:
    return evaluate(form("naive_recurrent", problem.name), problem.to(torch.float64))


@in_pytorch_and_in_kernels
def test_checkpointed(name: str, kernels: bool) -> None:
    """Nothing is kept of the forward pass, which runs again."""
    problem, calls = single(name, SHORT if kernels else SHAPE), []

    def counted(*args: object, **keywords: object):
        calls.append(name)
        return chunk(name)(*args, **keywords)

    def checkpointed(*args: object, **keywords: object):
        return checkpoint(counted, *args, use_reentrant=False, **keywords)

    assert_close(right(problem), evaluate(checkpointed, problem), **BOUNDS)
    assert len(calls) == 2


@in_pytorch_and_in_kernels
def test_backward_again(name: str, kernels: bool) -> None:
    """A graph that is retained gives the same gradients a second time: none of them zero but where the recurrence's is,
    as that of a copy which a mini-batch takes anew when it begins."""
    problem = single(name, SHORT)
    expected = right(problem)
    leaves = problem.map(lambda _, x: x.requires_grad_())
    loss = sum(x.square().sum() for x in named_results(name, *leaves.call(chunk(name))).values())
    tensors = list(leaves.leaves.values())
    first, second = (torch.autograd.grad(loss, tensors, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(x.any() == expected[f"d {leaf}"].any() for leaf, x in zip(leaves.leaves, first, strict=True))


@in_pytorch_and_in_kernels
def test_gradients_of_a_subset(name: str, kernels: bool) -> None:
    """Each argument alone gets its gradient, and the others get none; so do all others without it."""
    problem = single(name, SHORT)
    expected = right(problem)
    everything = list(problem.leaves)
    subsets = [[leaf] for leaf in everything] + [[leaf for leaf in everything if leaf != left] for left in everything]
    for subset in subsets:
        wanted = {key: x for key, x in expected.items() if not key.startswith("d ") or key[2:] in subset}
        assert_close(wanted, evaluate(chunk(name), problem, wrt=subset), **BOUNDS)


@in_pytorch_and_in_kernels
def test_gradients_through_one_result(name: str, kernels: bool) -> None:
    problem = single(name, SHORT)
    for used in ("o", *state_names(name, "final")):
        gradients = []
        for function, given in ((form("naive_recurrent", name), problem.to(torch.float64)), (chunk(name), problem)):
            given = given.map(lambda _, x: x.detach().requires_grad_())
            # The final state is not even asked for where only o is used.
            results = named_results(name, *given.call(function, output_final_state=used != "o"))
            (results[used] * cotangent(used, results[used])).sum().backward()
            leaves = given.leaves
            gradients.append({key: torch.zeros_like(x) if x.grad is None else x.grad for key, x in leaves.items()})
        assert_close(*gradients, 1e-4)


def alike(name: str) -> tuple[str, str] | None:
    """Two inputs of one shape and range, vectors that are projected side by side."""
    vectors = [decl for decl in spec_of(name).inputs if decl.dims]
    for one, other in combinations(vectors, 2):
        if (one.dims, one.heads, one.per, one.range) == (other.dims, other.heads, other.per, other.range):
            return one.name, other.name
    return None


two_alike = tiered(
    ("name", "kernels"),
    [
        *((name, False) for name in OPERATORS if alike(name)),
        *((name, True) for name in KERNELS if alike(name)),
    ],
    always,
)


def of_one_leaf(problem: Problem, function: Callable, x: Tensor, split: Callable) -> dict[str, Tensor]:
    """The output, and the gradient of `x`, of which `split` makes the two inputs that are alike."""
    leaf = x.detach().requires_grad_()
    one, other = alike(problem.name)
    first, second = split(leaf)
    o, _ = problem.with_tensors(**{one: first, other: second}).call(function)
    o.square().sum().backward()
    return {"o": o.detach(), "d x": leaf.grad}


@pytest.mark.parametrize("split", [lambda x: (x, x), lambda x: x.chunk(2, dim=-1)], ids=["same", "halves"])
@two_alike
def test_two_arguments_of_one_tensor(name: str, kernels: bool, split: Callable) -> None:
    """Keys that are queries as well; and both as views of one projection. Their gradients add up in it."""
    problem = single(name, SHORT)
    x = torch.cat([problem.tensors[key] for key in alike(name)], dim=-1)
    if split(x)[0] is x:
        x = normalize(x[..., : x.shape[-1] // 2], dim=-1)
    expected = of_one_leaf(problem.to(torch.float64), form("naive_recurrent", name), x.double(), split)
    assert_close(expected, of_one_leaf(problem, chunk(name), x, split), **BOUNDS)


def under_autocast(function: Callable, device: str = "cpu") -> Callable:
    def run(*args: object, **keywords: object):
        with torch.autocast(device, dtype=torch.bfloat16):
            return function(*args, **keywords)

    return run


@tiered(("name", "kernels"), [(name, True) for name in OPERATORS], lambda name, _: represents(name))
def test_autocast_does_not_reach_into_kernels(name: str, kernels: bool) -> None:
    problem = single(name, SHORT)
    assert_close(right(problem), evaluate(under_autocast(chunk(name)), problem), **BOUNDS)


@tiered(("name", "kernels"), [(name, False) for name in OPERATORS], always)
def test_autocast_does_not_reach_into_the_pytorch_form(name: str, kernels: bool) -> None:
    problem = single(name, SHAPE)
    assert_close(right(problem), evaluate(under_autocast(chunk(name)), problem), **BOUNDS)


@in_pytorch_and_in_kernels
def test_forward_mode_is_right_or_refused(name, kernels):
    """A kernel would leave tangents out without a word."""
    problem = single(name, SHORT)
    first = next(iter(problem.leaves))
    tangent = torch.ones_like(problem.leaves[first])

    def run(kind, x):
        return problem.with_tensors(**{first: x}).call(form(kind, name))[0]

    def along(kind):
        return torch.func.jvp(lambda x: run(kind, x), (problem.leaves[first],), (tangent,))[1]

    if kernels:
        with pytest.raises(RuntimeError, match="no forward-mode derivatives: call the naive_"):
            along("chunk")
    else:
        assert_close({"o": along("naive_chunk")}, {"o": along("chunk")}, 1e-5)
