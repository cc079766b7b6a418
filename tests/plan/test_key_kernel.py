"""The plan of the chunk kernels that scale rows: decays of each key channel, reads before the update, right reads."""

from __future__ import annotations

import math

import pytest

from flagen import algebra
from flagen.plan import Unavailable, make_plan
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.expansion import ExpandedPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.show import show
from flagen.spec import parse_spec

INPUTS = "q: [K], k: [K], v: {dims: [V], heads: HV}"
LEFT = "output: o = S.T @ q\n"


def planned(text: str) -> ChunkKernelPlan | KeyKernelPlan | ExpandedPlan | Unavailable:
    spec = parse_spec("flagen: 1\nname: example\nstate: {S: [K, V]}\n" + text)
    plan = make_plan(spec, algebra.derive(spec)).chunk_kernel
    assert not isinstance(plan, Unavailable) or plan.span.line > 0
    return plan


def kernels(text: str) -> KeyKernelPlan:
    plan = planned(text)
    assert isinstance(plan, KeyKernelPlan), plan
    return plan


def decayed(range_: str, *, update: str = "S = exp(g) * S + outer(k, v)", output: str = LEFT) -> str:
    return f"inputs: {{{INPUTS}, g: {{dims: [K], range: {range_}}}}}\nupdate: {update}\n{output}"


@pytest.mark.parametrize(
    ("range_", "rows"),
    [
        ("[-.inf, 0]", (1, 1)),
        ("[-0.6065, 0]", (64, 64)),
        ("[-5, 0]", (32, 8)),
        ("[-1, 0.01]", (64, 32)),
        # Where float32 has no digits for two rows, nothing else is anchored at a middle either.
        ("[-30, 0]", (1, 1)),
    ],
)
def test_a_leaf_has_the_rows_whose_factors_the_declared_range_keeps_finite(range_, rows):
    leaf = kernels(decayed(range_)).leaf
    assert tuple(leaf.rows[dtype] for dtype in ("bfloat16", "float32")) == rows
    for dtype in ("bfloat16", "float32"):
        if leaf.rows[dtype] > 1:
            assert math.exp(leaf.rows[dtype] / 2 * leaf.bound) < 2.0**127


def test_explain_says_what_the_range_allows():
    assert "every pair of rows by halving" in kernels(decayed("[-.inf, 0]")).dump()
    assert "|g| <= 0.6065" in kernels(decayed("[-0.6065, 0]")).dump()


def test_a_decay_that_may_grow_gets_shorter_chunks_or_none():
    assert kernels(decayed("[-1, 0.5]")).size == 64
    assert kernels(decayed("[-1, 1]")).size == 32
    plan = planned(decayed("[-1, 3]"))
    assert isinstance(plan, Unavailable)
    assert "may exceed 1 by too much" in plan.reason


def test_erasures_and_writes_are_folded_unless_erasures_write_too():
    update = "S = exp(g) * S + outer(k, S_prev.T @ q) + outer(q, v)"
    assert kernels(decayed("[-1, 0]", update=update)).folded
    both = "S = exp(g) * S + outer(k, v - S_prev.T @ q) + outer(q, v)"
    assert not kernels(decayed("[-1, 0]", update=both)).folded
    assert not kernels(decayed("[-1, 0]")).folded


@pytest.mark.parametrize(
    ("update", "output", "read_after", "reads_itself", "erase_after"),
    [
        ("S = exp(g) * S + outer(k, v)", "S.T @ q", True, True, True),
        ("S = exp(g) * S + outer(k, v)", "S_prev.T @ q", False, False, True),
        ("S = exp(g) * S + outer(k, v - S_prev.T @ k)", "S.T @ q", True, True, False),
        ("['S = exp(g) * S', 'r = S.T @ q', 'S = S + outer(k, v)']", "r", True, False, True),
    ],
)
def test_when_rows_read(update, output, read_after, reads_itself, erase_after):
    plan = kernels(decayed("[-1, 0]", update=update, output=f"output: o = {output}\n"))
    assert (plan.read_after, plan.reads_itself, plan.erase_after) == (read_after, reads_itself, erase_after)


def test_what_sums_over_the_keys_for_the_output_is_prepared():
    plan = kernels(decayed("[-1, 0]", output="output: o = S_prev.T @ q + dot(q, k) * v\n"))
    (number,) = plan.numbers
    assert show(number.value) == "sum_K(q * k)"
    assert show(plan.output) == f"read0 + {number.target} * v"
    assert {action.source.name for action in plan.walk.rows} == {"v"}
    assert not plan.whole_keys


def test_a_norm_scales_a_row_after_the_products():
    plan = kernels(decayed("[-1, 0]", update="S = exp(g) * S + outer(l2norm(k), v)"))
    assert show(plan.vector("k")) == "k"
    (total,) = plan.prepare.sums
    assert show(total.value) == "sum_K(square(k))"
    assert total.target in show(plan.scale("k"))
    assert not plan.whole_keys


def test_what_sums_over_the_keys_inside_a_row_needs_all_of_them():
    assert kernels(decayed("[-1, 0]", update="S = exp(g) * S + outer(softmax(k), v)")).whole_keys


def test_a_right_read_gets_its_outputs_from_a_kernel_of_their_own():
    plan = kernels(
        f"inputs: {{{INPUTS}, g: {{dims: [V], heads: HV, range: [-1, 0]}}}}\n"
        "update: S = S * exp(g) + outer(k - S @ (exp(g) * v), v)\noutput: o = S.T @ q\n"
    )
    assert plan.right
    assert plan.outputs is not None
    assert {action.source.name for action in plan.outputs.rows} == {"q"}
    assert {action.source.name for action in plan.walk.rows} == {"k"}
    assert plan.key == "V"
    assert "then the outputs of all chunks" in plan.dump()


def test_a_right_read_whose_output_sums_over_the_keys_has_no_kernels_of_its_own():
    plan = planned(
        f"inputs: {{{INPUTS}, g: {{dims: [V], range: [-1, 0]}}}}\n"
        "update: S = S * exp(g) + outer(k, v)\noutput: o = l2norm(S.T @ q)\n"
    )
    assert isinstance(plan, ExpandedPlan)
