"""The plan of the recurrent kernel: what runs when, which dim is split, what is worked out before the loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagen.algebra import derive
from flagen.plan import make_plan
from flagen.plan.fused import FusedPlan, plan_fused_recurrent
from flagen.plan.padding import PaddingRules
from flagen.plan.schedule import Keep, Load, Set, Steps
from flagen.plan.show import show
from flagen.plan.split import Split
from flagen.plan.tiles import Tile
from flagen.plan.unavailable import Unavailable
from flagen.spec import load_spec, parse_spec
from tests.specs import OPERATORS

SPECS = tuple(OPERATORS.values())


def plan(text: str) -> FusedPlan:
    planned = plan_fused_recurrent(parse_spec("flagen: 1\nname: example\n" + text))
    assert isinstance(planned, FusedPlan), planned
    return planned


def delta(update: str = "", output: str = "S.T @ q", extra: str = "") -> FusedPlan:
    """A plan for one state S [K, V] under q, k [K] and v [V]."""
    statements = update or "S = S + outer(k, v)"
    lines = "".join(f"  - {line}\n" for line in statements.split("; "))
    return plan(
        "state: {S: [K, V]}\n"
        f"inputs: {{q: [K], k: [K], v: {{dims: [V], heads: HV}}}}\n{extra}"
        f"update:\n{lines}output: o = {output}\n"
    )


def once(planned: FusedPlan) -> list[str]:
    return [f"{a.target} = {show(a.value)}" for a in planned.schedule.once if isinstance(a, Set)]


def token(planned: FusedPlan) -> list[str]:
    return [f"{a.target} = {show(a.value)}" for a in planned.schedule.token if isinstance(a, Set)]


# ------------------------------------------------------------------------------------------------------------ the split


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_variant_has_a_plan_that_splits_its_state(path: Path) -> None:
    spec = load_spec(path)
    planned = make_plan(spec, derive(spec)).fused
    if path.stem == "cyfa":
        assert isinstance(planned, Unavailable) and "5 matrices whole beside its blocks of V" in planned.reason
        return
    if path.stem == "slstm":
        assert isinstance(planned, Unavailable) and "4 matrices whole, states, params" in planned.reason
        return
    if path.stem == "mesa_net":
        assert isinstance(planned, Unavailable) and "takes all of a state at once" in planned.reason
        return
    if path.stem in ("log_linear_attn", "log_linear_gated_delta_rule"):
        assert isinstance(planned, Unavailable) and "`S` has 3 dims" in planned.reason
        return
    assert isinstance(planned, FusedPlan)
    channels = ("hgrn", "rg_lru", "rwkv4", "short_convolution", "token_shift")
    others = {"mamba2": "P", "mamba": "E", **dict.fromkeys(channels, "D")}
    others |= dict.fromkeys(("ttt_linear", "titans_linear"), None)  # A layer norm over V is of what is read over K.
    dim = others.get(path.stem, "V")
    split = None if dim is None else Split(dim, partial=False)
    assert planned.split == (Split("K", partial=True) if path.stem == "oja" else split)


def test_a_dim_that_nothing_sums_over_is_split() -> None:
    left = delta("S = S + outer(k, v - S.T @ k)")
    assert left.split == Split("V", partial=False)
    right = delta("S = S + outer(k - S @ v, v)", output="(S @ v) * q")
    assert right.split == Split("K", partial=False)


def test_of_two_such_dims_the_innermost_is_split() -> None:
    planned = plan("state: {S: [K, V]}\ninputs: {k: [K], v: [V]}\nupdate: S = 0.5 * S + outer(k, v)\noutput: o = S\n")
    assert planned.split == Split("V", partial=False)


def test_a_dim_that_more_states_have_is_split_first() -> None:
    planned = plan(
        "state: {h: [D, N], m: [D]}\ninputs: {x: [D], b: [N]}\n"
        "update:\n  - h = 0.5 * h + outer(x, b)\n  - m = maximum(m, x)\noutput: o = outer(m, b) * h\n"
    )
    assert planned.split == Split("D", partial=False)


def test_a_dim_that_only_the_output_sums_over_is_split_into_shares() -> None:
    planned = delta("S = S + outer(k - S @ v, v)")
    assert planned.split == Split("K", partial=True)
    assert token(planned)[-1] == "o = sum_K(S * q)"


@pytest.mark.parametrize(
    ("output", "shares"),
    [
        ("2 * (S.T @ q) + v", "2 * sum_K(S * q) + once(v)"),
        ("v - (S.T @ q) / norm(v)", "once(v) - sum_K(S * q) / sqrt(sum_V(square(v)))"),
        ("-(S.T @ q) * v - dot(q, k) * v", "-sum_K(S * q) * v - sum_K(q * k) * v"),
        ("mean(S, K)", "sum_K(S) / K"),
        ("sum(S.T @ q)", "sum_V(sum_K(S * q))"),
    ],
)
def test_shares_of_the_output_add_up_to_it(output: str, shares: str) -> None:
    used = "S = S + outer(k - S @ v, v) + outer(q, v)"
    planned = delta(used, output)
    assert planned.split == Split("K", partial=True)
    assert token(planned)[-1] == f"o = {shares}"


@pytest.mark.parametrize(
    "output",
    ["exp(S.T @ q)", "(S.T @ q) * (S.T @ k)", "v / (S.T @ q)", "maximum(S.T @ q, v)", "l2norm(S.T @ q)", "S @ v"],
)
def test_an_output_that_is_no_sum_of_shares_splits_nothing(output: str) -> None:
    assert delta("S = S + outer(k - S @ v, v) + outer(q - S @ v, v - S.T @ k)", output).split is None


def test_a_sum_over_the_shares_dim_through_a_local_of_the_output_is_followed() -> None:
    inputs = "state: {S: [K, V]}\ninputs: {q: [K], k: [K], v: [V]}\nupdate: S = S + outer(k - S @ v, v)\n"
    linear = plan(inputs + "output:\n  - y = S.T @ q\n  - o = y * v + v\n")
    assert linear.split == Split("K", partial=True)
    assert token(linear)[-2:] == ["y = sum_K(S * q)", "o = y * v + once(v)"]
    assert plan(inputs + "output:\n  - y = S.T @ q\n  - o = y * y\n").split is None


# ---------------------------------------------------------------------------------------------------- less on the state


def test_factors_join_the_vectors_they_scale_and_leave_the_sums_they_do_not_run_over() -> None:
    planned = delta("S = S + 0.5 * outer(k, v - S.T @ k)", output="0.25 * (S.T @ (2 * q))")
    assert token(planned) == ["S = S + k * (0.5 * (v - sum_K(S * k)))", "o = 0.25 * 2 * sum_K(S * q)"]


def test_an_outer_product_is_never_built_to_be_contracted() -> None:
    planned = delta(output="(S_prev + outer(q * k, v)).T @ q")
    assert token(planned)[0] == "o = sum_K(S * q) + v * sum_K(q * k * q)"


def test_a_product_of_two_matrices_stays_one() -> None:
    planned = plan(
        "state: {S: [K, V], R: [V, P]}\ninputs: {q: [K], v: [V], p: [P]}\n"
        "update:\n  - S = S + outer(q, v)\n  - R = R + outer(v, p)\noutput: o = (S @ R).T @ q\n"
    )
    assert token(planned)[-1] == "o = sum_K(matmul_V(S, R) * q)"
    assert planned.matrix_dims == {"K", "V", "P"}


# ------------------------------------------------------------------------------------------------------ what runs when


def test_what_no_token_changes_is_worked_out_before_the_loop() -> None:
    planned = plan(
        "state: {S: [K, V]}\n"
        "inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}, a: {dims: [], heads: HV}}\n"
        "params: {A_log: {per: head}, dt_bias: {per: head}, u: {dims: [K], per: head}, scale: {default: K ** -0.5}}\n"
        "let: {rate: -exp(A_log), g: -exp(A_log) * softplus(a + dt_bias)}\n"
        "update:\n  - S = exp(g) * S + outer(k, v)\n  - S = S + outer(rate * k, v)\n"
        "output: o = scale * (S.T @ (q * l2norm(u)))\n"
    )
    assert once(planned) == ["rate = -exp(A_log)", "g_fixed = -exp(A_log)", "o_fixed = l2norm(u)"]
    assert token(planned)[0] == "g = g_fixed * softplus(a + dt_bias)"
    assert token(planned)[-1] == "o = scale * sum_K(S * (q * o_fixed))"


def test_a_constant_decay_costs_the_loop_nothing() -> None:
    planned = plan_fused_recurrent(load_spec(next(path for path in SPECS if path.stem == "retention")))
    assert isinstance(planned, FusedPlan)
    assert once(planned) == ["alpha = 1 - exp2(-5 - head)"]
    assert planned.reads_head


def test_a_name_that_the_plan_makes_up_is_not_the_specs() -> None:
    planned = delta(
        "e_fixed = 2 * k; e = exp(w) * k + e_fixed; S = S + outer(e, v)",
        extra="params: {w: {dims: [K]}}\n",
    )
    assert once(planned) == ["e_fixed_2 = exp(w)"]
    assert {"e_fixed", "e_fixed_2"} <= planned.names


def test_a_state_before_the_token_is_kept_only_if_it_is_read_after_it_changed() -> None:
    def kept(planned: FusedPlan) -> list[Keep]:
        return [action for action in planned.schedule.token if isinstance(action, Keep)]

    read_at_once = delta("S = 0.5 * S + outer(q, S_prev.T @ k) + outer(k, v)")
    assert not kept(read_at_once)
    assert "S_prev" not in read_at_once.dump()
    assert kept(delta("S = 0.5 * S; S = S + outer(k, v - S_prev.T @ k)")) == [Keep("S")]
    assert kept(delta(output="(S + S_prev).T @ q")) == [Keep("S")]
    assert read_at_once.tiles == (("K", "V"),)
    assert delta(output="(S + S_prev).T @ q").tiles == (("K", "V"), ("K", "V"))


def test_an_output_of_the_state_before_the_token_comes_before_the_update() -> None:
    planned = delta(output="S_prev.T @ q")
    assert token(planned) == ["o = sum_K(S * q)", "S = S + k * v"]


def test_micro_steps_load_what_they_read_and_nothing_else() -> None:
    planned = plan(
        "state: {S: [K, V]}\nsteps: {n: count, default: 2}\n"
        "inputs: {q: [K], k: {dims: [K], per: step}, v: {dims: [V], per: step}, b: {dims: [V], per: step}}\n"
        "let: {kn: l2norm(k), c: sigmoid(b)}\n"
        "update:\n  - S = 0.5 * S\n  - repeat: n\n    do:\n      - S = S + outer(kn, v - S.T @ kn)\n"
        "  - repeat: n\n    do:\n      - S = S * c\noutput: o = S.T @ q\n"
    )
    first, second = (action for action in planned.schedule.token if isinstance(action, Steps))

    def actions(steps: Steps) -> list[str]:
        return [action.source.name if isinstance(action, Load) else action.target for action in steps.body]

    assert actions(first) == ["k", "v", "kn", "S"]
    assert actions(second) == ["b", "c", "S"]
    assert [action.source.name for action in planned.schedule.token if isinstance(action, Load)] == ["q"]


def test_the_state_before_the_token_inside_a_repeat_is_older_than_its_last_step() -> None:
    planned = plan(
        "state: {S: [K, V]}\nsteps: {n: count, default: 2}\ninputs: {q: [K], k: {dims: [K], per: step}, v: [V]}\n"
        "update:\n  - repeat: n\n    do:\n      - S = S + outer(k, v - S_prev.T @ k)\noutput: o = S.T @ q\n"
    )
    assert Keep("S") in planned.schedule.token


# ------------------------------------------------------------------------------------------------------- no plan, dumps


def test_a_state_of_three_dims_has_no_plan() -> None:
    spec = parse_spec(
        "flagen: 1\nname: example\nstate: {S: [K, V, P]}\ninputs: {k: [K], v: [V], p: [P]}\n"
        "update: S = S + outer(outer(k, v), p)\noutput: o = (S @ p) @ v\n"
    )
    planned = plan_fused_recurrent(spec)
    assert isinstance(planned, Unavailable)
    assert planned.reason == "`S` has 3 dims; a kernel keeps states of at most 2 in registers"
    assert planned.span == spec.states[0].span


def test_an_intermediate_of_three_dims_has_no_plan_and_is_pointed_at() -> None:
    spec = parse_spec(
        "flagen: 1\nname: example\nstate: {S: [K, V]}\ninputs: {k: [K], v: [V], p: [P]}\n"
        "update: S = S + outer(k, v)\noutput: o = exp(outer(S, p)) @ p\n"
    )
    planned = plan_fused_recurrent(spec)
    assert isinstance(planned, Unavailable)
    assert planned.reason == "needs an intermediate over [K, V, P]; a kernel holds at most 2 dims at once"
    assert (planned.span.line, planned.span.column) == (6, 17)


def test_the_dump_reads_like_the_kernel() -> None:
    planned = plan_fused_recurrent(load_spec(next(path for path in SPECS if path.stem == "gated_delta_product")))
    assert planned.dump().splitlines() == [
        "a program owns a block of V of the state of a head",
        "for each token:",
        "    load q [K]",
        "    load g []",
        "    alpha = exp(g)",
        "    S = alpha * S",
        "    for each micro-step:",
        "        load k [K]",
        "        load v [V]",
        "        load beta []",
        "        b = beta",
        "        S = S + k * (b * (v - sum_K(S * k)))",
        "    o = scale * sum_K(S * q)",
    ]


def test_nested_contractions_do_not_multiply() -> None:
    """A term is distributed over names only: over expressions, every level would double what is below it."""
    value = "v"
    for _ in range(6):
        value = f"(S.T + outer(v, k)) @ exp((S + outer(k, v)) @ exp({value}))"
    planned = delta(f"S = S + outer(q, {value})")
    assert len(planned.dump()) < 2500


def test_nested_sums_are_looked_at_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Tile] = []
    looked_at = PaddingRules._padding

    def counted(rules: PaddingRules, tile: Tile, lanes: frozenset[str]) -> object:
        looks.append(tile)
        return looked_at(rules, tile, lanes)

    monkeypatch.setattr(PaddingRules, "_padding", counted)
    value = "v"
    for _ in range(12):
        value = f"sum(tanh(outer(k, {value})), K)"
    planned = delta(f"S = S + outer(q, {value})")
    parts = sum(1 for _ in planned.schedule.evaluated())
    assert len(looks) < 40 * parts


def test_more_matrices_than_registers_hold_have_no_kernel():
    def plan(count):
        names = [f"w{place}" for place in range(count)]
        params = "".join(f"  {name}: {{dims: [K, M]}}\n" for name in names)
        read = " + ".join(f"m @ {name}.T" for name in names)
        text = f"flagen: 1\nname: example\nstate: {{S: [K, V]}}\ninputs: {{k: [K], v: [V], m: [M]}}\nparams:\n{params}"
        return plan_fused_recurrent(parse_spec(f"{text}update: S = S + outer(k, v)\noutput: o = S.T @ ({read})\n"))

    assert plan(3).whole_matrices == 3
    assert plan(4).reason == (
        "keeps 4 matrices whole beside its blocks of V, states, params and what is made of them; 3 fit registers"
    )
