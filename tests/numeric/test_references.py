"""The references, checked against each other: where two papers' recurrences coincide, so do the loops."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from tests.numeric import operator_references as ref
from tests.numeric.problems import (
    NAMES,
    VARIANTS,
    Problem,
    Shape,
    assert_close,
    make,
    named_results,
    spec_of,
)
from tests.numeric.references import REFERENCES
from tests.specs import FRONT_ENDS, OPERATORS

SHAPE = Shape(T=9, K=5, V=4, B=2, H=2, groups=2)
PACKED = Shape(K=5, V=4, H=2, groups=2, lengths=(0, 4, 1, 5, 0))


def run(reference, problem: Problem) -> dict[str, Tensor]:
    return named_results(reference.__name__, *problem.call(reference))


def agree(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert_close(one, other, 1e-12)


def heads(x: Tensor, HV: int) -> Tensor:
    """A key-side input, repeated for every value head."""
    return x.repeat_interleave(HV // x.shape[2], dim=2)


@pytest.fixture(params=[SHAPE, PACKED], ids=["batch", "packed"])
def shape(request) -> Shape:
    return request.param


def carried(problem: Problem) -> dict[str, object]:
    return {"initial_state": problem.initial_state, "output_final_state": True, "cu_seqlens": problem.cu_seqlens}


def call(reference, problem: Problem, *args: Tensor, **keywords: object) -> dict[str, Tensor]:
    """`reference` on other operands, carrying what `problem` carries."""
    return named_results(reference.__name__, *reference(*args, **{**carried(problem), **keywords}))


def test_every_spec_has_a_reference_and_ranges():
    assert {*OPERATORS, *FRONT_ENDS} == set(REFERENCES) == set(VARIANTS)


@pytest.mark.parametrize("name", [*OPERATORS, *FRONT_ENDS])
def test_reference_names_what_the_spec_declares(name):
    spec = spec_of(name)
    parameters = inspect.signature(inspect.unwrap(REFERENCES[name])).parameters
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    required = [p.name for p in spec.params if p.is_tensor and p.default is None]
    assert positional == [*(s.name for s in spec.states), *(i.name for i in spec.inputs), *required]
    keywords = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY} - {"head", "HV"}
    assert keywords == {p.name for p in spec.params} - set(required)


def test_linear_attention_is_masked_attention_without_softmax():
    p = make("linear_attn", SHAPE, state=False)
    q, k, v = (heads(x, 4) for x in p.tensors.values())
    scores = torch.einsum("bihk,bjhk->bhij", q, k).tril()
    o = torch.einsum("bhij,bjhv->bihv", scores, v) * 5**-0.5
    agree({"o": o}, {"o": ref.linear_attn(**p.tensors)[0]})


def test_constant_decays_are_simple_gla(shape):
    p = make("linear_attn", shape)
    head = torch.arange(4.0, dtype=torch.float64)
    g = torch.zeros_like(p.tensors["v"][..., 0])
    fade = torch.log(1 - 2 ** (-5 - head))
    slope = -8 / 4 * (1 - 3 / 12) * head
    agree(run(ref.linear_attn, p), call(ref.simple_gla, p, *p.tensors.values(), g))
    agree(run(ref.retention, p), call(ref.simple_gla, p, *p.tensors.values(), g + fade))
    constants = {"layer_idx": 3, "num_layers": 12}
    agree(
        call(ref.lightning_attn, p, *p.tensors.values(), **constants),
        call(ref.simple_gla, p, *p.tensors.values(), g + slope),
    )


def test_gla_with_one_gate_is_simple_gla(shape):
    p = make("simple_gla", shape)
    q, k, v, g = p.tensors.values()
    agree(run(ref.simple_gla, p), call(ref.gla, p, q, k, v, g[..., None].expand(*g.shape, 5)))


def test_mamba2_is_simple_gla_of_the_discretized_operands(shape):
    p = make("mamba2", shape)
    x, dt, B, C, A, D = p.tensors.values()
    expected = call(ref.simple_gla, p, heads(C, 4), heads(B, 4) * dt[..., None], x, dt * A, scale=1.0)
    agree({**expected, "o": expected["o"] + D[:, None] * x}, run(ref.mamba2, p))
    agree(expected, call(ref.mamba2, p, x, dt, B, C, A, torch.zeros_like(D)))


def test_hgrn2_is_gla_with_the_key_tied_to_the_gate(shape):
    p = make("hgrn2", shape)
    q, g, v = p.tensors.values()
    agree(run(ref.hgrn2, p), call(ref.gla, p, heads(q, 4), -torch.expm1(g), v, g, scale=1.0))


def test_rwkv6_with_the_bonus_of_its_own_decay_is_gla(shape):
    # (S_prev + (u k) v) r with u = e^-w is S (e^-w r): a read before the decay is one after it, of a longer query.
    p = make("rwkv6", shape)
    r, k, v, _, u = p.tensors.values()
    w = -softplus(u)
    gates = w.expand(*v.shape[:3], 5)
    expected = call(ref.gla, p, heads(r, 4) * torch.exp(-w), k, v, gates)
    agree(expected, call(ref.rwkv6, p, r, k, v, gates, torch.exp(-w)))


def test_the_delta_rule_retrieves_what_it_wrote():
    p = make("delta_rule", SHAPE)
    one = torch.ones_like(p.tensors["beta"])
    _, k, v, _ = p.tensors.values()
    o, _ = ref.delta_rule(k, k, v, one, scale=1.0, initial_state=p.initial_state)
    agree({"o": v}, {"o": o})


def test_one_step_products_are_delta_rules(shape):
    p = make("gated_delta_rule", shape)
    q, k, v, g, beta = p.tensors.values()
    agree(run(ref.gated_delta_rule, p), call(ref.gated_delta_product, p, q, k, v, g, beta, num_householder=1))
    agree(
        call(ref.delta_rule, p, q, k, v, beta),
        call(ref.delta_product, p, q, k, v, beta, num_householder=1),
    )
    agree(
        call(ref.delta_rule, p, q, k, v, beta),
        call(ref.gated_delta_rule, p, q, k, v, torch.zeros_like(g), beta),
    )


@pytest.mark.parametrize("n", [2, 3])
def test_a_product_is_the_delta_rule_at_n_times_the_rate(n):
    p = make("gated_delta_product", Shape(T=7, K=5, V=4, B=2, H=2, groups=2, n=n))
    q, k, v, g, beta = p.tensors.values()
    fast_q = q.repeat_interleave(n, dim=1)
    fast_g = torch.zeros(2, 7, n, 4, dtype=torch.float64)
    fast_g[:, :, 0] = g
    fast = call(ref.gated_delta_rule, p, fast_q, k, v, fast_g.flatten(1, 2), beta)
    agree({**fast, "o": fast["o"][:, n - 1 :: n]}, run(ref.gated_delta_product, p))
    agree(
        call(ref.delta_product, p, q, k, v, beta, num_householder=n),
        call(ref.gated_delta_product, p, q, k, v, torch.zeros_like(g), beta, num_householder=n),
    )


def test_kda_with_one_gate_is_the_gated_delta_rule(shape):
    p = make("gated_delta_rule", shape)
    q, k, v, g, beta = p.tensors.values()
    agree(run(ref.gated_delta_rule, p), call(ref.kda, p, q, k, v, g[..., None].expand(*g.shape, 5), beta))


def test_gdn2_with_scalar_gates_is_kda(shape):
    p = make("kda", shape)
    q, k, v, g, beta = p.tensors.values()
    b, w = (beta[..., None].expand(*beta.shape, d) for d in (5, 4))
    agree(run(ref.kda, p), call(ref.gdn2, p, q, k, v, g, b, w))


def test_comba_fed_back_by_its_decayed_key_is_the_gated_delta_rule(shape):
    """The feedback key reads what was there before the decay."""
    p = make("gated_delta_rule", shape)
    q, k, v, g, beta = p.tensors.values()
    k, decayed = heads(k, 4), torch.exp(g)[..., None] * heads(k, 4)
    agree(run(ref.gated_delta_rule, p), call(ref.comba, p, q, k, v, decayed, g, beta))


def test_dplr_holds_kda_iplr_and_rwkv7(shape):
    p = make("kda", shape)
    q, k, v, g, beta = p.tensors.values()
    k, write = heads(k, 4), beta[..., None] * heads(k, 4)
    agree(run(ref.kda, p), call(ref.dplr, p, q, write, v, torch.exp(g) * k, -write, g))

    p = make("dplr", shape)
    q, k, v, a, b, gk = p.tensors.values()
    agree(call(ref.iplr, p, q, k, v, a, b), call(ref.dplr, p, q, k, v, a, b, torch.zeros_like(gk)))
    agree(call(ref.rwkv7, p, q, gk, k, v, a, b), call(ref.dplr, p, q, k, v, a, b, gk, scale=1.0))


def test_oja_is_kda_on_the_transposed_state(shape):
    p = make("oja", shape)
    _, k, v, g, beta = p.tensors.values()
    transposed = {**carried(p), "initial_state": p.initial_state.mT}
    _, S = ref.kda(v, v, heads(k, 4), g, beta, **transposed)
    agree({"final_state": S.mT}, {"final_state": run(ref.oja, p)["final_state"]})


def scores(q: Tensor, k: Tensor) -> Tensor:
    """q k of every token and those up to it, and -inf of later ones: [B, heads, T, T]."""
    length = q.shape[1]
    later = torch.ones(length, length).triu(1).bool()
    return torch.einsum("bihk,bjhk->bhij", q, k).masked_fill(later, -math.inf)


def test_normalized_linear_attention_is_attention_by_weights_that_add_up_to_one():
    p = make("linear_attn_normalized", SHAPE, state=False)
    q, k, v = (heads(x, 4) for x in p.tensors.values())
    weights = scores(q, k).masked_fill(scores(q, k) == -math.inf, 0) * 5**-0.5
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-10)
    agree({"o": torch.einsum("bhij,bjhv->bihv", weights, v)}, {"o": run(ref.linear_attn_normalized, p)["o"]})


def test_the_keys_of_lightnet_are_a_softmax_over_time():
    p = make("lightnet", SHAPE, state=False)
    q, k, v = (heads(x, 4) for x in p.tensors.values())
    o = [
        5**-0.5 * torch.einsum("bhk,bjhk,bjhv->bhv", q[:, t], torch.softmax(k[:, : t + 1], dim=1), v[:, : t + 1])
        for t in range(SHAPE.T)
    ]
    agree({"o": torch.stack(o, dim=1)}, {"o": run(ref.lightnet, p)["o"]})


def test_slots_that_hold_a_token_each_are_softmax_attention():
    """Slots that hold none yet score 0, and add nothing but to the denominator."""
    p = make("gsa", replace(SHAPE, M=SHAPE.T), state=False)
    q, k, v = (heads(p.tensors[x], 4) for x in "qkv")
    slot = torch.eye(SHAPE.T).double()[None, :, None].expand_as(p.tensors["s"])
    weights = torch.exp(5**-0.5 * scores(q, k))
    empty = torch.arange(SHAPE.T - 1, -1, -1)
    weights = weights / (weights.sum(-1) + empty)[..., None]
    got = call(ref.gsa, p, *(p.tensors[x] for x in "qkv"), slot, torch.zeros_like(slot))
    agree({"o": torch.einsum("bhij,bjhv->bihv", weights, v)}, {"o": got["o"]})


def test_mamba3_without_its_angles_writes_two_tokens_as_simple_gla_does(shape):
    # Each token twice: first the one before it under the decay, with what of the step is not its own, then itself.
    p = make("mamba3", shape, state=False)
    q, k, v, adt, dt, trap, _, _, _, D = p.tensors.values()
    q, k, own = heads(q, 4), heads(k, 4), torch.sigmoid(trap) * dt
    starts = torch.zeros(adt.shape[1], dtype=torch.bool)
    starts[0 if p.cu_seqlens is None else p.cu_seqlens[:-1][p.cu_seqlens.diff() > 0]] = True

    def before(x: Tensor) -> Tensor:
        return torch.roll(x, 1, dims=1).masked_fill(starts.view(1, -1, *[1] * (x.ndim - 2)), 0)

    def twice(one: Tensor, other: Tensor) -> Tensor:
        return torch.stack([one, other], dim=2).flatten(1, 2)

    written = twice(before(k) * ((dt - own) * torch.exp(adt))[..., None], k * own[..., None])
    offsets = None if p.cu_seqlens is None else 2 * p.cu_seqlens
    decays = twice(adt, torch.zeros_like(adt))
    expected = call(ref.simple_gla, p, twice(q, q), written, twice(before(v), v), decays, scale=1.0, cu_seqlens=offsets)
    plain = torch.zeros_like(p.tensors["q_bias"])
    still = p.with_tensors(angles=torch.zeros_like(p.tensors["angles"]), q_bias=plain, k_bias=plain)
    got = run(ref.mamba3, still)
    product = torch.einsum("nhk,nhv->nhkv", got["last_k_final"], got["last_v_final"])
    last = got["last_now_final"][..., None, None] * product
    agree(
        {"o": expected["o"][:, 1::2] + D[:, None] * v, "S": expected["final_state"]},
        {"o": got["o"], "S": got["S_final"] + last},
    )


def test_mamba3_turned_evenly_is_attention_with_rotary_embeddings():
    p = make("mamba3", SHAPE, state=False)
    own = torch.full_like(p.tensors["trap"], torch.inf)
    even = torch.full_like(p.tensors["dt"], 1.0)
    rate = p.tensors["angles"][:, :1].expand_as(p.tensors["angles"])
    p = p.with_tensors(trap=own, dt=even, adt=torch.zeros_like(own), angles=rate, D=torch.zeros_like(p.tensors["D"]))
    q, k, v = (heads(p.tensors[x], 4) for x in "qkv")
    q, k = q + p.tensors["q_bias"], k + p.tensors["k_bias"]
    turn = torch.pi * torch.tanh(rate) * torch.arange(SHAPE.T)[:, None, None]
    pairs = torch.view_as_complex(q.unflatten(-1, (-1, 2))), torch.view_as_complex(k.unflatten(-1, (-1, 2)))
    turned = torch.nn.functional.pad(turn, (0, pairs[0].shape[-1] - turn.shape[-1]))
    of_q, of_k = (x * torch.exp(1j * turned) for x in pairs)
    scores = torch.einsum("bihr,bjhr->bhij", of_q, of_k.conj()).real.tril()
    agree({"o": torch.einsum("bhij,bjhv->bihv", scores, v)}, {"o": run(ref.mamba3, p)["o"]})


def test_cyfa_a_slot_a_token_is_softmax_attention_to_the_last_tokens():
    """Slots that hold none yet score 0, and add nothing but to the denominator."""
    p = make("cyfa", SHAPE, state=False, q_norm_eps=0.0, k_norm_eps=0.0)
    ones, C = torch.ones_like(p.tensors["beta"]), p.tensors["readout"].shape[-1]
    plain = torch.eye(C).double().expand_as(p.tensors["readout"])
    p = p.with_tensors(g=torch.zeros_like(ones), delta=ones, beta=ones, readout=plain)
    normed = {x: p.tensors[x] / p.tensors[x].square().mean(-1, keepdim=True).sqrt() for x in "qk"}
    q, k = (heads(normed[x] * p.tensors[f"{x}_norm_weight"], 4) for x in "qk")
    weights = torch.exp(5**-0.5 * scores(q, k))
    empty = torch.arange(C - 1, C - 1 - SHAPE.T, -1)
    assert empty.min() > 0
    weights = weights / (weights.sum(-1) + empty)[..., None]
    agree({"o": torch.einsum("bhij,bjhv->bihv", weights, p.tensors["v"])}, {"o": run(ref.cyfa, p)["o"]})


@pytest.mark.parametrize("state", [True, False])
def test_abc_is_gsa_under_the_decays_of_a_softmax_over_time(state):
    p = make("abc_attn", SHAPE, state=state)
    q, k, v, s = p.tensors.values()
    z_first = p.initial_state[0] if state else torch.full_like(s[:, 0], -math.inf)
    z = torch.logcumsumexp(torch.cat([z_first[:, None], s], dim=1), dim=1)
    slots = p.initial_state[1:] if state else None
    got = call(ref.gsa, p, q, k, v, torch.exp(s - z[:, 1:]), z[:, :-1] - z[:, 1:], initial_state=slots)
    agree({"o": got["o"], "z_final": z[:, -1]} | got, run(ref.abc_attn, p))


@pytest.mark.parametrize("name", ["gated_delta_rule", "kda"])
def test_preconditioned_rules_that_do_not_scale_are_delta_rules(name, shape):
    p = make(f"precond_{name}", shape)
    plain = call(REFERENCES[name], p, *list(p.tensors.values())[:5], initial_state=p.initial_state[0])
    got = call(REFERENCES[f"precond_{name}"], p, *p.tensors.values(), x=1)
    agree({"o": plain["o"], "S": plain["final_state"]}, {"o": got["o"], "S": got["S_final"]})


def test_a_preconditioner_keeps_to_its_bound_and_scales_down_what_is_strong():
    A = torch.logspace(-30, 30, 41).double()
    m = ref.preconditioner(A, x=3, center=1.5, eps=0)
    assert (m.diff() < 0).all()
    assert 1 / 3 < m.min() < 0.34
    assert 2.9 < m.max() < 3
    agree({"m": torch.ones(1).double()}, {"m": ref.preconditioner(torch.tensor([1.5]).double().exp(), 3, 1.5, 0)})


def test_precond_kda_with_one_gate_is_the_preconditioned_gated_delta_rule(shape):
    p = make("precond_gated_delta_rule", shape)
    q, k, v, g, *others = p.tensors.values()
    expected = run(ref.precond_gated_delta_rule, p)
    agree(expected, call(ref.precond_kda, p, q, k, v, g[..., None].expand(*g.shape, 5), *others))


def test_hgrn_is_mamba_with_one_number_a_channel(shape):
    p = make("hgrn", shape)
    x, g = p.tensors.values()
    one, rate = torch.ones(*x.shape[:3], 1).double(), -torch.ones(5, 1).double()
    state = p.initial_state[..., None]
    got = call(ref.mamba, p, x / -g, -g, one, one, rate, torch.zeros(5).double(), initial_state=state)
    agree(run(ref.hgrn, p), {"o": got["o"], "final_state": got["final_state"][..., 0]})


def test_mamba_with_one_rate_is_mamba2_on_the_transposed_state(shape):
    p = make("mamba", shape)
    x, dt, B, C, *_ = p.tensors.values()
    step, rate, skip = dt[..., 0], torch.tensor(-0.3).double(), torch.tensor(0.7).double()
    by_head = [y.expand(x.shape[2]) for y in (rate, skip)]
    expected = call(ref.mamba2, p, x, step, B, C, *by_head, initial_state=p.initial_state.mT)
    got = call(ref.mamba, p, x, step[..., None].expand_as(x), B, C, rate.expand(5, 4), skip.expand(5))
    agree(expected, {"o": got["o"], "final_state": got["final_state"].mT})


def test_rwkv4_is_a_mean_of_all_values():
    p = make("rwkv4", SHAPE, state=False)
    k, v, w, u = p.tensors.values()
    o = []
    for t in range(SHAPE.T):
        age = torch.arange(t - 1, -1, -1).double()[:, None, None]
        weights = torch.cat([torch.exp(age * w + k[:, :t]), torch.exp(u + k[:, t : t + 1])], dim=1)
        o.append((weights * v[:, : t + 1]).sum(1) / weights.sum(1))
    agree({"o": torch.stack(o, dim=1)}, {"o": run(ref.rwkv4, p)["o"]})


@pytest.mark.parametrize("name", [name for name in NAMES if any(math.isinf(s.init) for s in spec_of(name).states)])
def test_a_sum_of_no_weights_is_as_if_there_was_no_token(name):
    """What a first state of -inf holds does not count, but for what mixes the cells of slstm."""
    p = make(name, SHAPE)
    counts = {"slstm": "h"}.get(name)
    empty = [s.name for s in spec_of(name).states if math.isinf(s.init)]
    states = dict(zip((s.name for s in spec_of(name).states), p.initial_state, strict=True))
    begun = {key: torch.full_like(x, -math.inf) if key in empty else 7 + x for key, x in states.items()}
    fresh = {key: torch.full_like(x, -math.inf) if key in empty else torch.zeros_like(x) for key, x in states.items()}
    begun |= {key: x for key, x in fresh.items() if key == counts}
    results = [
        run(REFERENCES[name], replace(p, initial_state=state))
        for state in (tuple(begun.values()), tuple(fresh.values()), None)
    ]
    agree(results[0], results[1])
    agree(results[1], results[2])


SKIPPING = {"rwkv6", "mamba2", "mamba"}
ONE_MATRIX = [name for name in NAMES if [len(state.dims) for state in spec_of(name).states] == [2]]


@pytest.mark.parametrize("name", sorted({*ONE_MATRIX} - SKIPPING))
def test_the_last_token_reads_the_final_state(name):
    p = make(name, SHAPE, scale=1.0) if any(x.name == "scale" for x in spec_of(name).params) else make(name, SHAPE)
    got = run(REFERENCES[name], p)
    q = heads(next(iter(p.tensors.values())), 4)
    agree({"o": torch.einsum("bhkv,bhk->bhv", got["final_state"], q[:, -1])}, {"o": got["o"][:, -1]})
