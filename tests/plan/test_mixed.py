"""The plan of chunk kernels over states that numbers mix: which have some, and what these have numbers for."""

from __future__ import annotations

import re

import pytest

from flagen import algebra
from flagen.plan import Plan, Unavailable, make_plan
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.mixed import Mixed
from flagen.plan.show import show
from flagen.spec import parse_spec

INPUTS = {
    **dict.fromkeys("qkp", "[K]"),
    "v": "{dims: [V], heads: HV}",
    **dict.fromkeys("ab", "{dims: [], heads: HV}"),
    "gk": "{dims: [K], range: [-.inf, 0]}",
}
MOMENTUM = ("M = a * M + outer(k, v - S.T @ p)", "S = S + b * M")


def planned(*update: str, output: str = "S.T @ q", states: str = "S: [K, V], M: [K, V]") -> Plan:
    used = set(re.findall(r"\w+", " ".join((*update, output))))
    inputs = ", ".join(f"{name}: {declared}" for name, declared in INPUTS.items() if name in used)
    statements = "".join(f"  - {statement}\n" for statement in update)
    given = f"flagen: 1\nname: example\nstate: {{{states}}}\ninputs: {{{inputs}}}\n"
    spec = parse_spec(f"{given}update:\n{statements}output: o = {output}\n")
    return make_plan(spec, algebra.derive(spec))


def mixed(*update: str) -> Mixed:
    kernels = planned(*update).chunk_kernel
    assert isinstance(kernels, ChunkKernelPlan), kernels
    assert kernels.mixed is not None
    return kernels.mixed


def test_the_numbers_of_a_momentum():
    found = mixed(*MOMENTUM)
    assert [state.name for state in found.states] == ["S", "M"]
    assert {name: show(tile) for name, tile in found.named()} == {
        "mix_0_0": "where_token(1, else 1)",
        "mix_0_1": "where_token(a * b, else 0)",
        "mix_1_1": "where_token(a, else 1)",
        "q_of_0": "1",
        "y_of_0": "1",
        "w_into_0": "b",
        "w_into_1": "1",
    }


def test_what_is_zero_at_every_token_is_in_no_kernel():
    """A momentum has nothing of the memory, over however many tokens, and a read of it alone nothing either."""
    found = mixed(*MOMENTUM)
    assert sorted(found.reaches) == [(0, 0), (0, 1), (1, 1)]
    assert found.starts("q") == found.starts("y") == (0, 1)
    kernels = planned(*MOMENTUM, output="M.T @ q").chunk_kernel
    assert isinstance(kernels, ChunkKernelPlan) and kernels.mixed is not None
    assert kernels.mixed.starts("q") == (1,)


def test_one_register_may_reach_another_by_way_of_a_third():
    three = "S: [K, V], M: [K, V], N: [K, V]"
    kernels = planned("S = a * S + M_prev", "M = N_prev", "N = b * N + outer(k, v)", states=three).chunk_kernel
    assert isinstance(kernels, ChunkKernelPlan) and kernels.mixed is not None
    found = kernels.mixed
    assert found.mix[0][2] is None and (0, 2) in found.reaches
    assert found.starts("q") == found.ends("k") == (0, 1, 2)


@pytest.mark.parametrize(
    ("update", "output", "states", "reason"),
    [
        (("M = exp(gk) * (a * M + S)", "S = exp(gk) * S + outer(k, v)"), "M.T @ q", "", "decay by channel besides"),
        (("M = a * M + outer(v, k)", "S = S + M"), "S @ q", "S: [V, K], M: [V, K]", "along K, their second dim"),
        (("M = a * M + outer(k, v)", "S = S + M + outer(p, v)"), "S.T @ q", "", "several rows of one kind"),
        (MOMENTUM, "S.T @ q + M.T @ k", "", "read in several ways"),
        (MOMENTUM, "S_prev.T @ q", "", "not read by keys behind the update"),
    ],
)
def test_what_has_no_kernels_says_why(update, output, states, reason):
    plan = planned(*update, output=output, **({"states": states} if states else {}))
    assert isinstance(plan.chunk_kernel, Unavailable) and isinstance(plan.chunk_backward, Unavailable)
    assert (
        plan.chunk_kernel.reason.startswith("`S` and `M` are mixed by numbers") and reason in plan.chunk_kernel.reason
    )


def test_the_gradients_of_numbers():
    plan = planned(*MOMENTUM).chunk_backward
    assert isinstance(plan, ChunkBackwardPlan)
    assert plan.numbers == {"mix_0_1", "mix_1_1", "w_into_0"}
    fixed = planned("M = 0.5 * M + outer(k, v - S.T @ p)", "S = S + M").chunk_backward
    assert isinstance(fixed, ChunkBackwardPlan)
    assert not fixed.numbers


def test_a_number_that_sums_over_the_keys_has_no_backward():
    plan = planned("M = (k @ p) * M + outer(k, v)", "S = S + M")
    assert isinstance(plan.chunk_kernel, ChunkKernelPlan)
    assert isinstance(plan.chunk_backward, Unavailable)
    assert plan.chunk_backward.reason == "something sums over the keys, and not only S.T @ q"
