"""The plan of the backward of the chunk kernels: which recurrences have it, and how their gradients come about."""

from __future__ import annotations

import pytest

from flagen import algebra
from flagen.plan import LevelPlan, StagedPlan, Unavailable, make_plan
from flagen.plan.backward_levels import Add
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.right_backward import RightBackwardPlan
from flagen.plan.scan_backward import ScanBackwardPlan
from flagen.plan.show import show
from flagen.spec import load_spec, parse_spec
from tests.specs import OPERATORS

SPECS = OPERATORS
ADDITIVE = {"linear_attn", "linear_attn_normalized", "retention", "lightning_attn", "simple_gla", "mamba2"}
ADDITIVE |= {"power_attn", "rebased"}
DELTA = {"delta_rule", "gated_delta_rule", "comba", "iplr", "delta_product", "gated_delta_product"}

BY_KEY = {"dplr", "gdn2", "gla", "hgrn2", "kda", "rwkv6", "rwkv7"}
RIGHT_READS = {"oja"}
SCANS = {"hgrn", "mamba", "rg_lru", "rwkv4", "short_convolution", "token_shift"}
MIXED = {"momentum_delta_rule"}
LEVELS = {"log_linear_attn", "log_linear_gated_delta_rule"}
NO_KERNELS = {"slstm", "titans_linear", "ttt_linear"}
STAGED = set(SPECS) - (ADDITIVE | DELTA | MIXED | BY_KEY | RIGHT_READS | SCANS | LEVELS | NO_KERNELS)

INPUTS = "q: [K], k: [K], v: {dims: [V], heads: HV}, b: {dims: [], heads: HV}"
WRITE = "update: S = S + outer(k, v)"
BY_KEY_WRITE = "update: S = S + b * outer(k, v)"

RIGHT = f"inputs: {{{INPUTS}, g: {{dims: [V], heads: HV}}}}\nupdate: S = sigmoid(g) * S + b * outer(k, v)"


def planned(text: str) -> ChunkBackwardPlan | KeyBackwardPlan | Unavailable:
    spec = parse_spec(f"flagen: 1\nname: example\nstate: {{S: [K, V]}}\n{text}\n")
    return make_plan(spec, algebra.derive(spec)).chunk_backward


def backward(rest: str, inputs: str = INPUTS) -> ChunkBackwardPlan:
    plan = planned(f"inputs: {{{inputs}}}\n{rest}")
    assert isinstance(plan, ChunkBackwardPlan), plan
    return plan


def added(plan: ChunkBackwardPlan | KeyBackwardPlan, name: str) -> list[tuple[str, str]]:
    """What is added to the gradient of `name`, and on which level."""
    every = [(level, action) for level, actions in plan.actions.items() for action in actions]
    return [(level, show(a.value)) for level, a in every if isinstance(a, Add) and a.target.name == name]


@pytest.mark.parametrize("name", SPECS)
def test_the_variants_with_a_backward(name):
    spec = load_spec(SPECS[name])
    plan = make_plan(spec, algebra.derive(spec)).chunk_backward
    assert isinstance(plan, ChunkBackwardPlan) == (name in ADDITIVE | DELTA | MIXED)
    assert isinstance(plan, KeyBackwardPlan) == (name in BY_KEY)
    assert isinstance(plan, RightBackwardPlan) == (name in RIGHT_READS)
    assert isinstance(plan, ScanBackwardPlan) == (name in SCANS)
    assert isinstance(plan, StagedPlan) == (name in STAGED)
    assert isinstance(plan, LevelPlan) == (name in LEVELS)
    assert isinstance(plan, Unavailable) == (name in NO_KERNELS)
    if not isinstance(plan, ScanBackwardPlan | StagedPlan | LevelPlan | Unavailable):
        tensors = {decl.name for decl in spec.inputs} | {param.name for param in spec.params if param.is_tensor}
        read, stored = ({plan.reads}, plan.turned.stored) if name in RIGHT_READS else (set(), plan.stored)
        assert {gradient.name for gradient in stored} == tensors - read


def test_a_gradient_is_added_on_the_level_where_it_is_known():
    plan = backward("update: S = S + b * outer(k, v - S.T @ k)\noutput: o = S.T @ q")
    assert added(plan, "q") == [("keys", "q_gradient")]
    assert added(plan, "v") == [("block", "b * R_gradient")]
    assert added(plan, "b") == [("block", "sum_V(R_gradient * v)"), ("head", "-y_scale_gradient")]


def test_what_scales_a_row_gets_what_the_row_has_in_common_with_its_gradient():
    erase = "update: S = S + outer(k, b * v - exp(A) * (S.T @ k))"
    plan = backward(f"params: {{A: {{per: head}}}}\n{erase}\noutput: o = S.T @ q")
    assert added(plan, "A") == [("head", "-(sum_token(y_scale_gradient) * exp(A))")]


def test_keys_are_whole_only_where_something_sums_over_them():
    assert not backward(f"{WRITE}\noutput: o = S.T @ q + b * v").whole_keys
    assert backward(f"{WRITE}\noutput: o = S.T @ l2norm(q) + b * v").whole_keys


def by_key(rest: str, g: str = "g: {dims: [K], heads: HV}") -> KeyBackwardPlan:
    plan = planned(f"inputs: {{{INPUTS}, {g}}}\ndecay: {{a: sigmoid(g)}}\n{rest}")
    assert isinstance(plan, KeyBackwardPlan), plan
    return plan


def test_keys_of_a_value_head_are_its_own_and_those_of_all_are_shared():
    plan = by_key("update: S = a * S + outer(k, b * v)\noutput: o = S.T @ q")
    assert added(plan, "q") == [("keys", "q_gradient")]
    ((level, gradient),) = added(plan, "g")
    assert level == "own keys"
    assert gradient.endswith("* sigmoid(-g)")
    assert added(plan, "b") == [("own keys", "k_scale_gradient")]
    assert added(plan, "v") == [("block", "v_gradient")]


def test_a_sum_over_the_keys_gets_its_gradient_before_the_keys():
    plan = by_key("update: S = a * S + outer(k, v)\noutput: o = S_prev.T @ q + b * dot(q, k) * v")
    assert ("own keys", "d_number * k") in added(plan, "q")
    assert ("block", "b * sum_V(o_gradient * v)") in added(plan, "number")


def test_a_right_read_is_turned():
    """Its reader is the gradient of the output, and has none; what it was read with stands for that."""
    plan = planned(f"{RIGHT}\noutput: o = -(S_prev.T @ q) / 2")
    assert isinstance(plan, RightBackwardPlan), plan
    assert plan.turned.forward.spec.output[-1].text == "o = -(S_prev @ p) / 2"
    assert (plan.reads, plan.reader, plan.repeated) == ("q", "p", ("q", "k"))
    assert {gradient.name for gradient in plan.turned.stored} == {"k", "v", "b", "g"}
    assert added(plan.turned, "k") == [("block", "v_gradient")]
    assert not plan.turned.forward.read_after


def test_blocks_of_keys_add_up_what_is_linear_in_them():
    linear = "params: {A: {per: head}}\ndecay: {c: exp(-exp(A) * softplus(g))}\nupdate: S = c * S + outer(k, b * v)\n"
    plan = planned(f"inputs: {{{INPUTS}, g: {{dims: [K], heads: HV}}}}\n{linear}output: o = S.T @ q")
    assert isinstance(plan, KeyBackwardPlan), plan
    assert not plan.whole_keys
    assert by_key("update: S = a * S + outer(l2norm(k), b * v)\noutput: o = S.T @ q").whole_keys


@pytest.mark.parametrize(
    ("more", "output"),
    [(", x: {dims: [K], heads: HV}", "S.T @ (x + q) + b * v"), ("", "S.T @ q + dot(q, k) * b * v")],
    ids=["keys of a value head's own", "sums over the keys"],
)
def test_what_has_no_backward_with_a_single_decay_has_that_of_decays_of_each_key(more, output):
    assert isinstance(planned(f"inputs: {{{INPUTS}{more}}}\n{WRITE}\noutput: o = {output}"), KeyBackwardPlan)


@pytest.mark.parametrize(
    ("made", "kind"),
    [("l2norm(rate * k)", KeyBackwardPlan), ("rate + k", KeyBackwardPlan), ("rate * k", ChunkBackwardPlan)],
)
def test_so_has_what_is_derived_from_keys_and_a_number_of_each_value_head(made, kind):
    """Unless the number can be taken off: it is a factor."""
    derived = f"params: {{rate: {{per: head}}}}\nlet: {{part: {made}, key: 2 * part}}"
    plan = planned(f"inputs: {{{INPUTS}}}\n{derived}\nupdate: S = S + b * outer(key, v)\noutput: o = S.T @ q")
    assert isinstance(plan, kind), plan


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (f"inputs: {{{INPUTS}}}\n{WRITE}\noutput: o = b * tanh(S.T @ q)", "no linear function of what is read"),
        (f"inputs: {{{INPUTS}}}\n{WRITE}\noutput: o = b * (S.T @ q)", "`b` is a multiple of what is read"),
        (f"inputs: {{{INPUTS}, x: [V]}}\n{WRITE}\noutput: o = S.T @ q + b * x", "value heads share `x`"),
        (f"inputs: {{{INPUTS}, R_gradient: []}}\n{WRITE}\noutput: o = R_gradient * b * v + S.T @ q", "are called"),
        (f"inputs: {{{INPUTS}}}\n{BY_KEY_WRITE}\noutput: o = b * (S_prev.T @ q)", "`b` is a multiple of what is read"),
        (f"inputs: {{{INPUTS}}}\n{BY_KEY_WRITE}\noutput: o = b * tanh(S_prev.T @ q)", "no linear function"),
        (f"inputs: {{{INPUTS}, x: [V]}}\n{BY_KEY_WRITE}\noutput: o = S_prev.T @ q + b * x", "value heads share `x`"),
        (
            f"inputs: {{{INPUTS}, w_gradient: []}}\n{BY_KEY_WRITE}\noutput: o = w_gradient * (S_prev.T @ q)",
            "are called",
        ),
        (f"{RIGHT}\noutput: o = S.T @ tanh(q)", "with something that is no input"),
        (f"{RIGHT}\nlet: {{x: k * q}}\noutput: o = S.T @ q".replace("(k,", "(x,"), "`q`, which the state is read with"),
        (f"{RIGHT}\noutput: o = S.T @ q + b * v", "the output is no multiple, by a number,"),
        (f"{RIGHT}\noutput: o = v * (S.T @ q)", "the output is no multiple, by a number,"),
        (f"{RIGHT}\noutput: o = b * (S.T @ q)", "`b` is a multiple of what is read"),
        (
            f"inputs: {{{INPUTS}}}\nupdate: S = S + outer(k, l2norm(v))\noutput: o = S.T @ q * b",
            "evaluated before the kernels",
        ),
    ],
)
def test_what_has_no_backward_yet_says_why(rest, reason):
    plan = planned(rest)
    assert isinstance(plan, Unavailable), plan
    assert reason in plan.reason


def test_the_reason_is_that_of_the_last_kernels_that_were_tried():
    """Keys of a value head's own keep it from kernels for one decay, but not from those for a decay of each key."""
    shared = "inputs: {q: {dims: [K], heads: HV}, k: [K], v: [V]}"
    plan = planned(f"{shared}\n{WRITE}\noutput: o = S.T @ q")
    assert isinstance(plan, Unavailable)
    assert plan.reason == "value heads share `v`, which has an element for each value"
    own = shared.replace("[V]", "{dims: [V], heads: HV}")
    assert isinstance(planned(f"{own}\n{WRITE}\noutput: o = S.T @ q"), KeyBackwardPlan)


def test_a_name_that_is_in_the_way_is_the_place():
    params, output = "params: {R_gradient: {per: head}}", "output: o = S.T @ q + R_gradient * b * v"
    plan = planned(f"inputs: {{{INPUTS}}}\n{params}\n{WRITE}\n{output}")
    assert isinstance(plan, Unavailable)
    assert plan.span.line == 5 and plan.span.length == len("R_gradient")


@pytest.mark.parametrize("heads", ["H", "HV"])
def test_what_a_stage_is_given_has_the_heads_of_the_states(heads):
    """Where no input declares HV, no value is shared: the stage of S has a backward."""
    spec = parse_spec(
        "flagen: 1\nname: example\nstate: {S: [K, V], z: [K]}\n"
        f"inputs: {{q: [K], k: [K], v: {{dims: [V], heads: {heads}}}, g: {{dims: [K], range: [-.inf, 0]}}}}\n"
        "update:\n  - z = exp(g) * z + k\n  - S = S + outer(z, v)\noutput: o = S.T @ q\n"
    )
    staged = make_plan(spec, algebra.derive(spec)).chunk_backward
    assert isinstance(staged, StagedPlan)
    assert [decl.heads for decl in staged.form.passed] == [heads]
    (stage,) = (stage for stage in staged.stages if stage.stage.called == "S")
    assert isinstance(stage.plan.chunk_backward, ChunkBackwardPlan | KeyBackwardPlan)


def test_the_place_is_that_of_the_part_that_is_in_the_way():
    row = "b * outer(k, dot(k, q) * v - S.T @ k)"
    plan = planned(
        "inputs: {q: [K], k: {dims: [K], per: step}, v: {dims: [V], per: step, heads: HV}, b: []}\n"
        f"steps: {{n: num_steps}}\nupdate:\n  - repeat: n\n    do:\n      - S = S + {row}\noutput: o = S.T @ q"
    )
    assert isinstance(plan, Unavailable) and plan.reason == "something sums over the keys, and not only S.T @ q"
    assert plan.span.line == 9 and plan.span.column > len("      - S = S + b * outer(k, ")


def test_a_name_that_hides_a_sum_over_the_keys_is_no_value_of_a_block():
    plan = planned(
        "inputs: {q: [K], k: [K], g: {dims: [], range: [-.inf, 0]}}\nparams: {W: {dims: [V, K]}}\n"
        "let: {w: 'mean(W, K)'}\nupdate: S = exp(g) * S + outer(k, w)\noutput: o = S.T @ q"
    )
    assert isinstance(plan, Unavailable) and plan.reason == "a value is made of a sum over the keys"
