"""What the kernels of the recurrent backward are planned to do, and what gets none."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagen.pipeline import derive, make_plan
from flagen.plan.backward_actions import AtEnd, Give, Leave, Load, Steps, Take
from flagen.plan.fused_backward import FusedBackwardPlan
from flagen.plan.reverse_mode import ReversePlan
from flagen.plan.unavailable import Unavailable
from flagen.spec import load_spec, parse_spec
from tests.algebra.cases import SPECS
from tests.specs import OPERATORS

HEAD = """
flagen: 1
name: example
state: {S: [K, V]}
inputs:
  q: [K]
  k: [K]
  v: {dims: [V], heads: HV}
"""


def has_normal_form(path: Path) -> bool:
    nf = derive(load_spec(path)).normal_form
    return nf is not None and not nf.registers


NAMES = [name for name, path in OPERATORS.items() if has_normal_form(path)]
"""The others get theirs another way: tests/plan/test_reverse_mode.py."""


def planned(text: str) -> FusedBackwardPlan | ReversePlan | Unavailable:
    spec = parse_spec(text)
    return make_plan(spec, derive(spec)).fused_backward


def plan_of(name: str) -> FusedBackwardPlan:
    spec = load_spec(SPECS / f"{name}.yaml")
    plan = make_plan(spec, derive(spec)).fused_backward
    assert isinstance(plan, FusedBackwardPlan)
    return plan


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_is_given(name):
    plan = plan_of(name)
    spec = plan.forward.spec
    wanted = [decl.name for decl in spec.inputs] + [param.name for param in spec.params if param.is_tensor]
    assert [gradient.source.name for gradient in plan.given] == wanted


@pytest.mark.parametrize("name", NAMES)
def test_what_is_taken_was_left_before(name):
    """By an earlier kernel; the gradient of the output comes from outside."""
    plan = plan_of(name)
    left = {plan.output_gradient}
    for kernel in (plan.reverse, plan.states, plan.reads, plan.gradients):
        taken = {action.vector for action in kernel.actions() if isinstance(action, Take)}
        assert taken <= left
        left |= {action.vector for action in kernel.actions() if isinstance(action, Leave)}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_evaluated_for_nothing(name):
    for kernel in plan_of(name).kernels:
        text = plan_text(kernel)
        for action in kernel.actions():
            match action:
                case Load(source):
                    assert text.count(source.name) > 1
                case Take(vector):
                    assert text.count(vector.name) > 1


def plan_text(kernel) -> str:
    return repr((kernel.once, kernel.token, kernel.after))


def test_rows_that_read_late_need_no_second_tile():
    plan = plan_of("gated_delta_rule")
    assert plan.reads.kept is None
    assert plan.gradients.kept is None
    ends = [action for action in plan.reads.token if isinstance(action, AtEnd)]
    assert len(ends) == 1


def test_rows_that_read_before_the_decay_keep_the_tiles_as_they_decayed():
    plan = plan_of("dplr")
    assert plan.reads.kept == ("S_decayed", "S")
    assert plan.gradients.kept == ("S_gradient_decayed", "S_gradient")


def test_a_decay_without_a_gradient_costs_nothing():
    for name in ("retention", "lightning_attn", "linear_attn"):
        assert not any(kernel.ends for kernel in plan_of(name).kernels)


def test_gradients_of_params_are_summed_over_a_segment():
    kernel = plan_of("mamba2").gradients
    assert [action.gradient.source.name for action in kernel.after if isinstance(action, Give)] == ["A", "D"]


def test_micro_steps_go_backwards_where_tokens_do():
    plan = plan_of("delta_product")
    steps = [action for action in plan.gradients.token if isinstance(action, Steps)]
    assert [action.backwards for action in steps] == [True]
    assert [action.backwards for action in plan.states.token if isinstance(action, Steps)] == [False]


def test_what_was_read_is_kept_where_its_gradient_asks_for_it():
    plan = planned(f"{HEAD}update: S = S + outer(k, v)\noutput: o = tanh(S.T @ q)\n")
    assert isinstance(plan, FusedBackwardPlan)
    assert "read0" in {vector.name for vector in plan.vectors}
    linear = planned(f"{HEAD}update: S = S + outer(k, v)\noutput: o = S.T @ q\n")
    assert isinstance(linear, FusedBackwardPlan)
    assert "read0" not in {vector.name for vector in linear.vectors}


def test_sums_over_values_make_them_one_block():
    plan = planned(f"{HEAD}update: S = S + outer(k, l2norm(v))\noutput: o = S.T @ q\n")
    assert isinstance(plan, FusedBackwardPlan)
    assert plan.whole_values
    assert not plan_of("gla").whole_values


def test_several_decays_in_a_token_share_one_sum():
    plan = planned(f"{HEAD}update: [S = exp(-k) * S, 'S = S + outer(k, v)', S = exp(-q) * S]\noutput: o = S.T @ q\n")
    assert isinstance(plan, FusedBackwardPlan)
    (end,) = (vector for vector in plan.vectors if vector.per == "segment")
    assert end.name == "log_decay_gradient"
    assert plan.reads.kept is None


@pytest.mark.parametrize(
    "body",
    [
        "update: S = (1 - k) * S + outer(k, v)\noutput: o = S.T @ q\n",
        "update: S = tanh(S) + outer(k, v)\noutput: o = S.T @ q\n",
    ],
    ids=["a decay that may be negative", "not affine"],
)
def test_what_has_no_normal_form_has_its_statements_transposed(body):
    assert isinstance(planned(HEAD + body), ReversePlan)


def test_what_has_no_kernel_has_none_for_its_gradients():
    text = HEAD.replace("[K, V]}", "[K, V], X: [K, V, K2]}")
    plan = planned(
        f"{text}  m: [K2]\nupdate: ['S = S + outer(k, v)', X = 0.5 * X + sum(m)]\noutput: o = S.T @ q * sum(X)\n"
    )
    assert isinstance(plan, Unavailable)
    assert "3 dims" in plan.dump()
