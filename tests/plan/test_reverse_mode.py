"""What is planned where statements are transposed: actions, what is left out of them, parts that get a name."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from flagen.pipeline import derive, make_plan
from flagen.plan.backward_actions import Action, Add, Give, Kernel, Recall, Steps, Store, Take, Wait, Zero
from flagen.plan.fused import FusedPlan
from flagen.plan.reverse_mode import ReversePlan
from flagen.plan.rows import values_in
from flagen.plan.schedule import Keep, Load, Set
from flagen.plan.tiles import tiles_in
from flagen.spec import parse_spec
from flagen.spec.model import Spec
from tests import plans
from tests.backends.triton_odd import ODD
from tests.specs import OPERATORS

HEAD = """
flagen: 1
name: example
inputs:
  q: [K]
  k: [K]
  v: {dims: [V], heads: HV}
"""


def plan_of(spec: Spec) -> ReversePlan | None:
    plan = make_plan(spec, derive(spec)).fused_backward
    return plan if isinstance(plan, ReversePlan) else None


def planned(text: str) -> ReversePlan:
    plan = plan_of(parse_spec(text))
    assert plan is not None
    return plan


SPECS_BY_NAME = {name: plans.spec_of(name) for name in (*OPERATORS, *ODD)}
PLANS = {name: plan for name in SPECS_BY_NAME if isinstance(plan := plans.plan_of(name).fused_backward, ReversePlan)}


def test_there_are_plans_to_look_at():
    recurrent = (name for name in SPECS_BY_NAME if isinstance(plans.plan_of(name).fused, FusedPlan))
    several = {name for name in recurrent if len(SPECS_BY_NAME[name].states) > 1}
    assert several
    assert several <= PLANS.keys()


@pytest.mark.parametrize("name", PLANS)
def test_every_gradient_is_given(name):
    """Where anything is made of an input or param."""
    plan = PLANS[name]
    spec = plan.forward.spec
    wanted = [decl.name for decl in spec.inputs] + [param.name for param in spec.params if param.is_tensor]
    assert [gradient.source.name for gradient in plan.given] == wanted


@pytest.mark.parametrize("name", PLANS)
def test_names_have_a_value_when_they_are_read(name):
    plan = PLANS[name]
    numbers = {param.name for param in plan.forward.spec.params if not param.is_tensor}
    states = {carried.name for carried in plan.carried}
    known = follow(plan.states.once, numbers)
    follow(plan.states.token, known | states)
    known = follow(plan.gradients.once, numbers)
    follow(plan.states.token, known | states)
    inside = follow(plan.gradients.token, known | {carried.gradient for carried in plan.carried})
    follow(plan.gradients.after, known & inside)


def follow(actions: Iterable[Action], known: set[str]) -> set[str]:
    """The names that have a value after `actions`, where `known` do before."""
    known = set(known)
    for action in actions:
        match action:
            case Set(target, value) | Add(target, value):
                assert {leaf.name for leaf in values_in(value)} <= known, action
                assert isinstance(action, Set) or target in known, action
                known.add(target)
            case Zero(target) | Recall(_, target):
                known.add(target)
            case Load(source):
                known.add(source.name)
            case Take(vector):
                known.add(vector.name)
            case Keep(state):
                known.add(f"{state}_prev")
            case Store(_, called):
                assert called in known
            case Give(gradient):
                assert gradient.called in known
            case Steps(body):
                known |= follow(body, known)
    return known


@pytest.mark.parametrize("name", PLANS)
def test_nothing_is_evaluated_for_nothing(name):
    plan = PLANS[name]
    read = set(names_read((*plan.gradients.actions(), *plan.states.actions())))
    made = {action.target for action in plan.gradients.actions() if isinstance(action, Set | Add)}
    assert made <= read | {carried.gradient for carried in plan.carried}


def names_read(actions: Iterable[Action]) -> Iterable[str]:
    for action in actions:
        match action:
            case Set(_, value) | Add(_, value):
                yield from (leaf.name for leaf in values_in(value))
            case Give(gradient):
                yield gradient.called
            case Store(_, called):
                yield called


@pytest.mark.parametrize("name", PLANS)
def test_a_cost_is_paid_once(name):
    """No sum and no function of the same values stands twice among the actions of a token."""
    plan = PLANS[name]
    gradients = {carried.gradient for carried in plan.carried}
    for actions in bodies(plan.gradients):
        changing = gradients | {action.target for action in actions if isinstance(action, Add)}
        changing |= {name for action in actions if isinstance(action, Steps) for name in targets(action.body)}
        seen = set()
        for tile in (action.value for action in actions if isinstance(action, Set | Add)):
            for part in tiles_in(tile):
                costs = type(part).__name__ in ("Sum", "MatMul", "Normalize") or getattr(part, "name", "") == "exp"
                if costs and not changing & {leaf.name for leaf in values_in(part)} and any(values_in(part)):
                    assert part not in seen, part
                    seen.add(part)


def targets(actions: Iterable[Action]) -> Iterable[str]:
    return (action.target for action in actions if isinstance(action, Set | Add))


def bodies(kernel: Kernel) -> Iterable[tuple[Action, ...]]:
    yield kernel.token
    yield from (action.body for action in kernel.actions() if isinstance(action, Steps))


def test_late_readers_of_a_state_before_the_token_keep_its_gradient():
    plan = PLANS["lightnet"]
    assert Add("z_gradient", _last_added(plan, "z_gradient"), ("K",)) in plan.gradients.token[-1:]
    assert not any(action.target == "d_S_prev" for action in plan.gradients.actions() if isinstance(action, Set))


def _last_added(plan: ReversePlan, target: str):
    return [a.value for a in plan.gradients.actions() if isinstance(a, Add) and a.target == target][-1]


def test_each_block_has_a_share_of_what_it_does_not_own():
    shared = {gradient.source.name: gradient.shared for gradient in PLANS["gsa"].given}
    assert shared == {"q": True, "k": True, "v": False, "s": True, "g": True}
    assert {carried.name: carried.shared for carried in PLANS["gsa"].carried} == {"Sk": True, "Sv": False}


STEPS = """
flagen: 1
name: example
state: {S: [K, V], z: [K]}
steps: {n: num_steps}
inputs: {q: [K], k: {dims: [K], per: step}, v: {dims: [V], per: step}}
"""


def test_loops_over_micro_steps_keep_the_states_they_change():
    body = "[{repeat: n, do: ['S = tanh(S) + outer(k + z, v)']}, z = z + q, {repeat: n, do: ['S = S + outer(k, v)']}]"
    plan = planned(f"{STEPS}update: {body}\noutput: o = S.T @ z\n")
    stores = [action for action in plan.gradients.actions() if isinstance(action, Store)]
    assert [(store.state, store.loop) for store in stores] == [("S", 0), ("S", 1)]
    assert sum(isinstance(action, Wait) for action in plan.gradients.token) == 4
    loops = [action for action in plan.gradients.token if isinstance(action, Steps)]
    assert [loop.backwards for loop in loops] == [False, False, True, True]
    given = [action.gradient for action in plan.gradients.actions() if isinstance(action, Give)]
    assert [(g.loop, g.loops) for g in given if g.source.name == "k"] == [(1, 2), (0, 2)]


def test_a_state_that_is_replaced_has_no_gradient_before():
    plan = planned(HEAD + "state: {S: [K, V], Y: [K, V]}\nupdate: [S = Y, 'Y = outer(k, v)']\noutput: o = S.T @ q\n")
    zeros = [action.target for action in plan.gradients.token if isinstance(action, Zero)]
    assert zeros == ["Y_gradient", "S_gradient"]


def test_it_says_what_it_does():
    text = PLANS["steps"].dump()
    assert "for each micro-step, the last one first:" in text
    assert "S_prev = S before the token, as stored" in text
    assert "wait for all threads" in text
