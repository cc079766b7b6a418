"""The plans of elementwise scans: what programs own, what is scanned again, what is made to change nothing."""

from __future__ import annotations

import pytest

from flagen import algebra
from flagen.algebra.find_scan import scan_form
from flagen.plan import Unavailable, make_plan
from flagen.plan.scan import plan_scan
from flagen.plan.scan_backward import ScanBackwardPlan, plan_scan_kernels
from flagen.plan.scan_kernel import ScanKernelPlan
from flagen.plan.show import show
from flagen.plan.tiles import Masked
from flagen.spec import parse_spec
from flagen.spec.model import Input, Param
from tests.numeric.scans import NAMES, spec_of


def planned(body: str) -> tuple[ScanKernelPlan, ScanBackwardPlan]:
    plans = plan_scan_kernels(plan_scan(scan_form(parse_spec(f"flagen: 1\nname: example\n{body}", "example.yaml"))))
    assert isinstance(plans[0], ScanKernelPlan), plans[0]
    return plans


def refused(body: str) -> str:
    spec = parse_spec(f"flagen: 1\nname: example\n{body}", "example.yaml")
    forward, backward = plan_scan_kernels(plan_scan(scan_form(spec)))
    assert isinstance(forward, Unavailable) and forward == backward
    return forward.reason


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_has_a_gradient(name):
    spec = spec_of(name)
    plan = make_plan(spec, algebra.derive(spec))
    assert isinstance(plan.chunk_backward, ScanBackwardPlan)
    tensors = {decl.name for decl in spec.inputs} | {param.name for param in spec.params if param.is_tensor}
    assert {give.source.name for give in plan.chunk_backward.gives} == tensors
    assert [back.state for back in plan.chunk_backward.backs] == [w.state for w in plan.chunk_kernel.walks][::-1]
    assert plan.dump()


def test_a_sum_is_not_scanned_again():
    """Its gradient does not depend on it: the forward keeps none of it."""
    _, backward = planned("state: {h: [D]}\ninputs: {x: [D]}\nupdate: h = h + x\noutput: o = h")
    assert backward.kept == ()
    assert [show(give.value) for give in backward.gives] == ["dh"]


def test_what_pads_a_chunk_changes_nothing():
    """Elements that are so where a load fills in zeros are left as they are."""
    body = "state: {h: [D]}\ninputs: {x: [D], a: [D], g: [D]}\nupdate: h = {} * h + {}\noutput: o = h * a * g"
    for factor, term, masked in (
        ("exp(g)", "x * a", (False, False)),
        ("a", "x + g", (True, False)),
        ("(1 + g)", "cos", (False, True)),
    ):
        text = body.replace("{} * h + {}", f"{factor} * h + {term.replace('cos', 'exp(x)')}")
        (walk,) = planned(text)[0].walks
        assert (isinstance(walk.factor, Masked), isinstance(walk.term, Masked)) == masked


def test_a_program_owns_a_block_of_what_nothing_sums_over():
    body = "state: {h: [D, N]}\ninputs: {x: [D, N], c: [N], d: [D]}\nupdate: h = tanh(x) * h + x\noutput: o = "
    assert planned(f"{body}h @ c + d")[0].split == "D"
    assert planned(f"{body}h * c + outer(d, c)")[0].split == "N"
    assert planned(f"{body}(h @ c) * sum(d)")[0].split is None


def test_gradients_that_lack_the_block_are_shares():
    _, backward = planned(
        "state: {h: [D, N]}\ninputs: {x: [D], b: [N], a: {dims: [D, N], range: [0, 1]}}\nparams: {p: {dims: [N]}}\n"
        "update: h = a * h + outer(x, b * p)\noutput: o = sum(h, N)"
    )
    shared = {give.source.name for give in backward.gives if backward.is_shared(give.source.dims)}
    assert shared == {"b", "p"}
    assert all(isinstance(give.source, Input | Param) for give in backward.gives)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "state: {h: [D, N, M]}\ninputs: {x: [D, N, M]}\nupdate: h = h + x\noutput: o = sum(h, M)",
            "`h` has 3 dims",
        ),
        (
            "state: {h: [D]}\ninputs: {x: [D], y: [D, N], z: [N, M]}\nupdate: h = h + x\noutput: o = h @ (y @ z)",
            "it needs a product of matrices for every token",
        ),
        (
            "state: {h: [D]}\ninputs: {x: [D]}\nparams: {p: {dims: [D]}}\nupdate: h = h + x\n"
            "output: o = h * softmax(p)",
            "`softmax` of what is the same for every token",
        ),
    ],
)
def test_what_has_no_kernels(body, reason):
    assert refused(body) == reason
