"""The references, checked against each other: where two papers' recurrences coincide, so do the loops."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from tests.numeric import references as ref
from tests.numeric.problems import NAMES, VARIANTS, Problem, Shape, assert_close, make, spec_of

SHAPE = Shape(T=9, K=5, V=4, B=2, H=2, groups=2)
PACKED = Shape(K=5, V=4, H=2, groups=2, lengths=(0, 4, 1, 5, 0))


def run(reference, problem: Problem) -> dict[str, Tensor]:
    o, final_state = problem.call(reference)
    return {"o": o, "final_state": final_state}


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
    o, final_state = reference(*args, **carried(problem), **keywords)
    return {"o": o, "final_state": final_state}


def test_every_spec_has_a_reference_and_ranges():
    assert set(NAMES) == set(ref.REFERENCES) == set(VARIANTS)


@pytest.mark.parametrize("name", NAMES)
def test_reference_names_what_the_spec_declares(name):
    spec = spec_of(name)
    parameters = inspect.signature(inspect.unwrap(ref.REFERENCES[name])).parameters
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    required = [p.name for p in spec.params if p.is_tensor and p.default is None]
    assert positional == ["S", *(i.name for i in spec.inputs), *required]
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


def test_comba_fed_back_by_its_key_is_the_gated_delta_rule(shape):
    p = make("gated_delta_rule", shape)
    q, k, v, g, beta = p.tensors.values()
    agree(run(ref.gated_delta_rule, p), call(ref.comba, p, q, k, v, k, g, beta))


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


@pytest.mark.parametrize("name", sorted({*NAMES} - {"rwkv6", "mamba2"}))
def test_the_last_token_reads_the_final_state(name):
    p = make(name, SHAPE, scale=1.0) if any(x.name == "scale" for x in spec_of(name).params) else make(name, SHAPE)
    got = run(ref.REFERENCES[name], p)
    q = heads(next(iter(p.tensors.values())), 4)
    agree({"o": torch.einsum("bhkv,bhk->bhv", got["final_state"], q[:, -1])}, {"o": got["o"][:, -1]})
