"""What is counted from kernels as data is what the interpreter moves and computes, to the byte and the launch."""

from __future__ import annotations

import pytest
import torch

from flagen.counting import NotCountedError, counted, known
from flagen.triton_cpu.meter import Report, metered
from flagen.triton_cpu.shapes import NumberDecidesError, without_numbers
from tests.numeric.problems import Problem, Shape, evaluate, form, make, package
from tests.specs import LAYERS, OPERATORS
from tests.tiers import tiered
from tests.vectorized.known import kernels_of

pytestmark = pytest.mark.usefixtures("interpreter")

PACKED = Shape(lengths=(0, 18, 1, 5), K=12, V=20, H=1, groups=2)
"""Packed, with an empty sequence, ragged chunks and segments, blocks that pad, and groups of value heads."""
BATCH = Shape(T=19, B=2, K=16, V=16)

SHOWN = {
    "fused_recurrent": ("gated_delta_product",),
    "chunk": (
        "simple_gla",
        "kda",
        "oja",
        "hgrn",
        "token_shift",
        "gsa",
        "gated_delta_product",
        "ttt_linear",
        "log_linear_mamba2",
        "mesa_net",
    ),
}
"""Segments and micro-steps; chunks of either decay, of a state that is read from the right, of scans and of windows; in
stages, of rows, of mini-batches, of levels, and of systems."""

CASES = [
    (kind, name)
    for name in (*OPERATORS, *LAYERS)
    for kind in ("fused_recurrent", "chunk")
    if hasattr(package(name), f"{kind}_{name}")
]


def moved(meter, kind: str, problem: Problem, **keywords: object) -> Report:
    with meter() as report:
        evaluate(form(kind, problem.name), problem, **keywords)
    return report


@tiered(("kind", "name"), CASES, lambda kind, name: name in SHOWN[kind])
def test_counts_are_those_of_the_interpreter(kind, name):
    kernels_of(name)
    keywords = {"chunk_size": 16} if kind == "chunk" else {}
    for made in (make(name, PACKED), make(name, BATCH, state=False)):
        problem = made.to(torch.float32)
        report = moved(counted, kind, problem, **keywords)
        assert report == moved(metered, kind, problem, **keywords)
        assert report.kernels or name not in SHOWN[kind]  # Some have none for dims like these.


def test_a_kernel_that_is_not_what_is_printed_is_not_counted(monkeypatch):
    kernels = kernels_of("gla")
    name = "fused_recurrent_gla_kernel"
    other = kernels_of("simple_gla")["fused_recurrent_simple_gla_kernel"]
    monkeypatch.setitem(known.KNOWN[_sha256("gla")], name, other)
    with pytest.raises(NotCountedError, match="fused_recurrent_gla_kernel is not what is printed"):
        moved(counted, "fused_recurrent", make("gla", BATCH).to(torch.float32))
    assert kernels[name] is other


def _sha256(name: str) -> str:
    return next(sha256 for sha256, kernels in known.KNOWN.items() if kernels is kernels_of(name))


# --------------------------------------------------------------------------------------------------- without numbers


def test_operators_have_shapes_and_no_numbers():
    x = torch.ones(300, 4, requires_grad=True)
    with without_numbers():
        y = (x.T.contiguous() @ x).softmax(-1).to(torch.bfloat16)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        offsets = torch.arange(5).cumsum(0)
    assert (y.shape, y.stride(), y.dtype, y.device.type) == ((4, 4), (4, 1), torch.bfloat16, "cpu")
    assert (gradient.shape, gradient.dtype) == ((300, 4), torch.float32)
    assert offsets.tolist() == [0, 1, 3, 6, 10]  # Of whole numbers they have them.


def test_views_are_views_and_what_is_written_over_stays():
    x, y = torch.ones(300, 4), torch.zeros(300, 4)
    with without_numbers():
        assert x[1:].data_ptr() == x.data_ptr() + 16
        assert x.copy_(y) is x
        product = torch.ones(2, 300, 4) @ x.T
        assert product.is_contiguous()
    assert x.sum() == 1200  # Nobody wrote it.


def test_a_number_that_is_asked_for_is_an_error():
    with without_numbers(), pytest.raises(NumberDecidesError, match="asks for a number"):
        float((torch.ones(3000) + 1)[0])
    with without_numbers(), pytest.raises(NumberDecidesError, match="makes whole numbers"):
        (torch.ones(3000) + 1).long()


def test_a_few_numbers_are_computed():
    """How many tokens came before each sequence is a state, and of floating point."""
    with without_numbers():
        assert (torch.full((4, 2), 3.0) + 1).long()[:, 0].tolist() == [4] * 4
        assert torch.arange(3000).float().frexp().exponent[-1] == 12  # Many, that were whole.
