"""The plan of the chunk kernels: which recurrences have them, and what stays off the matrix products."""

from __future__ import annotations

import pytest

from flagen import algebra
from flagen.plan import Unavailable, make_plan
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.expansion import ExpandedPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.pieces import PieceKernelPlan
from flagen.plan.scan_kernel import ScanKernelPlan
from flagen.plan.show import show
from flagen.spec import load_spec, parse_spec
from tests.specs import OPERATORS

SPECS = OPERATORS
ADDITIVE = {"linear_attn", "linear_attn_normalized", "retention", "lightning_attn", "simple_gla", "mamba2"}
ADDITIVE |= {"power_attn", "rebased"}
SCANS = {"hgrn", "mamba", "rg_lru", "rwkv4", "short_convolution", "token_shift"}
IN_PIECES = {"titans_linear", "ttt_linear"}
DELTA = {"delta_rule", "gated_delta_rule", "comba", "iplr", "delta_product", "gated_delta_product"}
MIXED = {"momentum_delta_rule"}
BY_KEY = {"dplr", "gdn2", "gla", "hgrn2", "kda", "oja", "rwkv6", "rwkv7"}

INPUTS = "q: [K], k: [K], v: {dims: [V], heads: HV}"


def planned(text: str) -> ChunkKernelPlan | KeyKernelPlan | ExpandedPlan | Unavailable:
    spec = parse_spec("flagen: 1\nname: example\nstate: {S: [K, V]}\n" + text)
    return make_plan(spec, algebra.derive(spec)).chunk_kernel


def kernels(text: str) -> ChunkKernelPlan:
    plan = planned(text)
    assert isinstance(plan, ChunkKernelPlan), plan
    return plan


def refusal(text: str) -> str:
    """Why no kernel of this family, or of the others, takes `text` as it is."""
    plan = planned(text)
    assert isinstance(plan, ExpandedPlan), plan
    return plan.reason


@pytest.mark.parametrize("name", SPECS)
def test_the_variants_with_kernels(name):
    spec = load_spec(SPECS[name])
    plan = make_plan(spec, algebra.derive(spec)).chunk_kernel
    assert isinstance(plan, ChunkKernelPlan) == (name in ADDITIVE | DELTA | MIXED)
    assert isinstance(plan, KeyKernelPlan) == (name in BY_KEY)
    if isinstance(plan, ChunkKernelPlan):
        assert (plan.prepare is None) == (name in ADDITIVE)
    assert isinstance(plan, ScanKernelPlan) == (name in SCANS | IN_PIECES)
    assert isinstance(plan, PieceKernelPlan) == (name in IN_PIECES)


def test_what_a_row_has_one_number_for_stays_off_the_products():
    plan = kernels(
        f"inputs: {{{INPUTS}, a: [], b: []}}\nupdate: S = S + outer(-a * k, b * v)\noutput: o = S.T @ q * a\n"
    )
    assert plan.write_value is not None and plan.write_value.scale is not None
    assert show(plan.vector("k")) == "k"
    assert show(plan.write_value.vector) == "v"
    assert show(plan.write_value.scale) == "-a * b"
    assert plan.q.scale is None


def test_operands_are_cleared_beyond_the_ends_of_their_axes():
    plan = kernels(f"inputs: {{{INPUTS}}}\nupdate: S = S + outer(exp(k), v)\noutput: o = S.T @ tanh(q)\n")
    assert show(plan.vector("k")) == "where_K(where_token(exp(k), else 0), else 0)"
    assert show(plan.vector("q")) == "tanh(q)"
    assert show(plan.vector("v")) == "v"


def test_a_decay_that_no_token_changes_is_evaluated_once():
    decayed = "decay: {alpha: 1 / (2 + head)}\nupdate: S = alpha * S + outer(k, v)"
    plan = kernels(f"inputs: {{{INPUTS}}}\n{decayed}\noutput: o = S.T @ q\n")
    assert [action.target for action in plan.walk.once] == ["log_decay"]
    assert show(plan.row_decay) == "where_token(log_decay, else 0)"


def test_each_kernel_loads_what_it_uses():
    spec = load_spec(SPECS["gated_delta_rule"])
    plan = make_plan(spec, algebra.derive(spec)).chunk_kernel
    assert isinstance(plan, ChunkKernelPlan) and plan.prepare is not None
    for part, names in zip(plan.prepare, (["g"], ["q", "k"], ["beta"]), strict=True):
        assert [row.source.name for row in part.rows] == names
    assert [row.source.name for row in plan.walk.rows] == ["q", "k", "v", "beta"]


@pytest.mark.parametrize(("range_of_beta", "contracts"), [("[0, 1]", True), ("[-1, 1]", True), ("[0, 2]", False)])
def test_the_declared_range_decides_how_an_inverse_is_taken(range_of_beta, contracts):
    plan = kernels(
        f"inputs: {{{INPUTS}, beta: {{dims: [], range: {range_of_beta}}}}}\n"
        "update: S = S + beta * outer(k, v - S.T @ k)\noutput: o = S.T @ q\n"
    )
    assert plan.contracts is contracts


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (f"inputs: {{{INPUTS}}}\nupdate: S = S + outer(k, v)\noutput: o = S.T @ q + S_prev.T @ k", "more than once"),
        (f"inputs: {{{INPUTS}}}\nupdate: S = S + outer(k, v) + outer(q, v * v)\noutput: o = S.T @ q", "several rows"),
        (f"inputs: {{{INPUTS}}}\nupdate: S = S + outer(k, l2norm(v))\noutput: o = S.T @ q", "sums over V"),
        (
            f"inputs: {{{INPUTS}, x: [J]}}\nupdate: S = S + outer(k, sum(x) * v - S.T @ k)\noutput: o = S.T @ q",
            "`J` is no dim of the state `S`",
        ),
    ],
)
def test_what_has_no_kernels_of_its_own_says_why(rest, reason):
    assert reason in refusal(rest + "\n")


@pytest.mark.parametrize(
    ("size", "key", "reason"),
    [("K", "over(v, K)", "something renames V"), ("K / 2", "rotate(k, v)", "something turns V")],
)
def test_values_that_are_needed_whole_are_told_with_what_needs_them(size, key, reason):
    text = f"dims: {{V: {size}}}\nstate: {{S: [K, V]}}\ninputs: {{q: [K], k: [K], v: [V]}}\n"
    spec = parse_spec(f"flagen: 2\nname: whole\n{text}update: S = S + outer(k + {key}, v)\noutput: o = S.T @ q\n")
    plan = make_plan(spec, algebra.derive(spec)).chunk_kernel
    assert isinstance(plan, ExpandedPlan) and reason in plan.reason
