"""Each adaptation in float64, against flagen's own operators called as they are, with the adaptation written out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

B, T, H, HV, K, V, M = 2, 21, 2, 4, 8, 6, 5
OFFSETS = torch.tensor([0, 5, 5, 16, T])
CLOSE = 1e-10


@pytest.fixture(autouse=True)
def pytorch_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits and float32, too: what the kernels compute is for other tests to say."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def fla(name: str) -> Callable[..., Any]:
    module, function = name.split(".")
    found: Callable[..., Any] = getattr(import_module(f"generated.compat.fla.ops.{module}"), function)
    return found


def ours(package: str) -> Callable[..., Any]:
    """The recurrence of a package, as it is written."""
    form: Callable[..., Any] = getattr(import_module(f"generated.{package}"), f"naive_recurrent_{package}")
    return form


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def decay(*shape: int, seed: int = 1) -> Tensor:
    return -0.3 * normal(*shape, seed=seed).abs()


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


def same(got: Any, expected: Any) -> None:
    """Compare results that may be nested, or None."""
    if isinstance(expected, Tensor):
        assert got.shape == expected.shape
        assert (got - expected).abs().max() < CLOSE * expected.abs().max().clamp(min=1)
    elif expected is None:
        assert got is None
    else:
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            same(a, b)


def qkv(heads: int = HV, rows: int = B, tokens: int = T) -> tuple[Tensor, Tensor, Tensor]:
    return (
        normal(rows, tokens, H, K, seed=2),
        unit(normal(rows, tokens, H, K, seed=3)),
        normal(rows, tokens, heads, V, seed=4),
    )


def beta(rows: int = B, heads: int = HV, tokens: int = T) -> Tensor:
    return normal(rows, tokens, heads, seed=5).sigmoid()


def state(rows: int = B, heads: int = HV) -> Tensor:
    return normal(rows, heads, K, V, seed=6)


KINDS = ["chunk", "fused_recurrent"]


@pytest.mark.parametrize("kind", KINDS)
class TestNorms:
    @pytest.mark.parametrize("rule", ["delta_rule", "gated_delta_rule", "kda", "gdn2", "comba"])
    def test_l2norm_of_queries_and_keys(self, kind: str, rule: str) -> None:
        q, k, v = qkv()
        k = 3 * k
        gate, gates = decay(B, T, HV), decay(B, T, HV, K)
        rest: dict[str, tuple[Tensor, ...]] = {
            "delta_rule": (beta(),),
            "gated_delta_rule": (gate, beta()),
            "kda": (gates, beta()),
            "gdn2": (gates, gates.exp(), normal(B, T, HV, V).sigmoid()),
        }
        options = {"use_qk_l2norm_in_kernel": True, "output_final_state": True}
        if rule == "comba":
            p = normal(B, T, H, K, seed=9)
            got = fla(f"comba.{kind}_comba")(q=q, k=k, v=v, p=p, g=gate, beta=beta(), **options)
            same(got, ours("comba")(unit(q), unit(k), v, unit(p), gate, beta(), output_final_state=True))
            return
        names = {"gdn2": "gbw", "kda": ["g", "beta"], "gated_delta_rule": ["g", "beta"], "delta_rule": ["beta"]}[rule]
        got = fla(f"{rule}.{kind}_{rule}")(q, k, v, **dict(zip(names, rest[rule], strict=True)), **options)
        same(got, ours(rule)(unit(q), unit(k), v, *rest[rule], output_final_state=True))

    @pytest.mark.parametrize("which", ["use_q_l2norm", "use_k_l2norm", "use_qk_l2norm_in_kernel"])
    def test_l2norms_of_oja_apart(self, kind: str, which: str) -> None:
        q, k, v = qkv()
        gv = decay(B, T, HV, V)
        got = fla(f"gated_oja_rule.{kind}_gated_oja_rule")(q, 0.5 * k, v, gv=gv, beta=beta(), **{which: True})
        q_in = q if which == "use_k_l2norm" else unit(q)
        k_in = 0.5 * k if which == "use_q_l2norm" else unit(0.5 * k)
        same(got, ours("oja")(q_in, k_in, v, gv, beta()))

    def test_sixteen_bit_inputs_are_normed_in_float32(self, kind: str) -> None:
        q, k, v = (x.bfloat16() for x in qkv())
        given = (k, v, decay(B, T, HV).float(), beta().float())
        o, final = fla(f"gated_delta_rule.{kind}_gated_delta_rule")(
            q, given[0], given[1], g=given[2], beta=given[3], use_qk_l2norm_in_kernel=True, output_final_state=True
        )
        assert (o.dtype, final.dtype) == (torch.bfloat16, torch.float32)
        exact, _ = ours("gated_delta_rule")(*(unit(x.double()) for x in (q, k)), *(x.double() for x in given[1:]))
        assert (o.double() - exact).abs().max() < 2**-7 * exact.abs().max()


@pytest.mark.parametrize("kind", KINDS)
class TestGates:
    def test_scalar_gate(self, kind: str) -> None:
        q, k, v = qkv()
        raw, A_log, dt_bias = normal(B, T, HV), normal(HV, seed=7), normal(HV, seed=8)
        got = fla(f"gated_delta_rule.{kind}_gated_delta_rule")(
            q, k, v, g=raw, beta=beta(), use_gate_in_kernel=True, A_log=A_log, dt_bias=dt_bias
        )
        same(got, ours("gated_delta_rule")(q, k, v, -A_log.exp() * F.softplus(raw + dt_bias), beta()))

    @pytest.mark.parametrize("bound", [None, -2.0])
    @pytest.mark.parametrize("rule", ["kda", "gdn2", "precond_kda"])
    def test_channel_gate(self, kind: str, rule: str, bound: float | None) -> None:
        q, k, v = qkv()
        raw, A_log, dt_bias = normal(B, T, HV, K), normal(HV, seed=7), normal(HV * K, seed=8)
        shifted = raw + dt_bias.view(HV, K)
        rate = A_log.exp()[:, None]
        g = -rate * F.softplus(shifted) if bound is None else bound * torch.sigmoid(rate * shifted)
        options: dict[str, Any] = {"use_gate_in_kernel": True, "A_log": A_log, "dt_bias": dt_bias, "lower_bound": bound}
        if rule == "gdn2":
            gates = (g.exp(), normal(B, T, HV, V).sigmoid())
            same(fla(f"gdn2.{kind}_gdn2")(q, k, v, raw, *gates, **options), ours("gdn2")(q, k, v, g, *gates))
        elif rule == "kda":
            same(fla(f"kda.{kind}_kda")(q, k, v, raw, beta(), **options), ours("kda")(q, k, v, g, beta()))
        else:
            atk = (decay(B, T, H), beta(heads=H))
            o, *_ = fla(f"precond_kda.{kind}_precond_kda")(q, k, v, raw, *atk, beta(), **options)
            wide = [x.repeat_interleave(HV // H, 2) for x in atk]
            expected, _ = ours("precond_kda")(unit(q), unit(k), v, g, beta(), *wide, x=1.5, center=-0.2, eps=1e-6)
            same(o, expected)

    def test_lower_bound_needs_no_rate(self, kind: str) -> None:
        q, k, v = qkv()
        raw = normal(B, T, HV, K)
        got = fla(f"kda.{kind}_kda")(q, k, v, raw, beta(), use_gate_in_kernel=True, lower_bound=-3.0)
        same(got, ours("kda")(q, k, v, -3 * raw.sigmoid(), beta()))

    @pytest.mark.parametrize("negative", [False, True])
    @pytest.mark.parametrize("rule", ["kda", "gated_delta_rule"])
    def test_sigmoid_of_beta(self, kind: str, rule: str, negative: bool) -> None:
        q, k, v = qkv()
        logit = normal(B, T, HV)
        g = decay(B, T, HV, K) if rule == "kda" else decay(B, T, HV)
        got = fla(f"{rule}.{kind}_{rule}")(
            q, k, v, g=g, beta=logit, use_beta_sigmoid_in_kernel=True, allow_neg_eigval=negative
        )
        same(got, ours(rule)(q, k, v, g, (2 if negative else 1) * logit.sigmoid()))

    def test_sigmoid_of_a_sixteen_bit_beta_is_not_rounded(self, kind: str) -> None:
        from generated.compat.adapt import write_strength

        logit = normal(50, dtype=torch.bfloat16)
        strength = write_strength("f", logit, True, True)
        assert strength.dtype == torch.float32
        assert torch.equal(strength, 2 * logit.float().sigmoid())

    def test_flags_that_contradict_each_other(self, kind: str) -> None:
        q, k, v = qkv()
        run = fla(f"kda.{kind}_kda")
        with pytest.raises(ValueError, match="allow_neg_eigval=True needs use_beta_sigmoid_in_kernel=True"):
            run(q, k, v, decay(B, T, HV, K), beta(), allow_neg_eigval=True)
        with pytest.raises(ValueError, match="needs A_log or lower_bound, got neither"):
            run(q, k, v, decay(B, T, HV, K), beta(), use_gate_in_kernel=True)
        with pytest.raises(ValueError, match="needs g and A_log, got A_log=None"):
            fla(f"gated_delta_rule.{kind}_gated_delta_rule")(
                q, k, v, g=decay(B, T, HV), beta=beta(), use_gate_in_kernel=True
            )


class TestGateFunctions:
    def test_they_are_those_of_the_operators(self) -> None:
        raw, A_log, bias = normal(B, T, HV, K), normal(HV, seed=7), normal(HV * K, seed=8)
        gate = -A_log.exp()[:, None] * F.softplus(raw + bias.view(HV, K))
        same(fla("kda.fused_kda_gate")(raw, A_log, bias), gate)
        same(fla("kda.naive_kda_gate")(raw, A_log, bias), gate)
        same(fla("kda.naive_kda_lowerbound_gate")(raw), -5 * raw.sigmoid())
        heads = -A_log.exp() * F.softplus(raw[..., 0] + bias[:HV])
        same(fla("gated_delta_rule.fused_gdn_gate")(raw[..., 0], A_log, bias[:HV]), heads)

    def test_dtype_of_the_result(self) -> None:
        gate = fla("kda.fused_kda_gate")
        raw, A_log = normal(B, T, HV, K, dtype=torch.bfloat16), normal(HV, dtype=torch.float32)
        assert gate(raw, A_log).dtype == torch.float32
        assert gate(raw, A_log, output_dtype=torch.bfloat16).dtype == torch.bfloat16


V_FIRST: dict[str, tuple[str, tuple[Tensor, ...]]] = {
    "simple_gla.chunk_simple_gla": ("simple_gla", (decay(B, T, HV),)),
    "simple_gla.fused_recurrent_simple_gla": ("simple_gla", (decay(B, T, HV),)),
    "gla.chunk_gla": ("gla", (decay(B, T, HV, K),)),
    "gla.fused_recurrent_gla": ("gla", (decay(B, T, HV, K),)),
    "retention.fused_recurrent_retention": ("retention", ()),
    "gated_delta_rule.chunk_gated_delta_rule": ("gated_delta_rule", (decay(B, T, HV), beta())),
    "kda.chunk_kda": ("kda", (decay(B, T, HV, K), beta())),
    "kda.fused_recurrent_kda": ("kda", (decay(B, T, HV, K), beta())),
    "gdn2.chunk_gdn2": ("gdn2", (decay(B, T, HV, K), decay(B, T, HV, K).exp(), decay(B, T, HV, V).exp())),
    "gdn2.fused_recurrent_gdn2": ("gdn2", (decay(B, T, HV, K), decay(B, T, HV, K).exp(), decay(B, T, HV, V).exp())),
}


class TestStates:
    @pytest.mark.parametrize("name", V_FIRST)
    def test_values_first(self, name: str) -> None:
        package, rest = V_FIRST[name]
        first = state()
        options = {"initial_state": first.mT.contiguous(), "output_final_state": True, "state_v_first": True}
        o, final = fla(name)(*qkv(), *rest, **options)
        same((o, final.mT), ours(package)(*qkv(), *rest, initial_state=first, output_final_state=True))
        assert final.is_contiguous()

    def test_old_name_of_the_layout(self) -> None:
        run, given = fla("kda.chunk_kda"), (*qkv(), decay(B, T, HV, K), beta())
        with pytest.warns(DeprecationWarning, match="transpose_state_layout is now called state_v_first"):
            _, final = run(*given, output_final_state=True, transpose_state_layout=True)
        assert final.shape == (B, HV, V, K)
        with pytest.raises(ValueError, match="pass only the latter"):
            run(*given, state_v_first=True, transpose_state_layout=True)

    def test_preconditioned_ones_keep_it(self) -> None:
        given = (*qkv(), decay(B, T, H), decay(B, T, HV), beta(heads=H), beta())
        run = fla("precond_gated_delta_rule.chunk_precond_gated_delta_rule")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            o, S, A = run(*given, output_final_state=True, transpose_state_layout=True)
        expected = run(*given, output_final_state=True)
        same((o, S.mT, A), expected)
        again = run(*given, initial_state=S, initial_A_state=A, transpose_state_layout=True)[0]
        same(again, run(*given, initial_state=expected[1], initial_A_state=expected[2])[0])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_initial_state_of_any_dtype(self, dtype: torch.dtype) -> None:
        given = (*qkv(), decay(B, T, HV, K), beta())
        got = fla("kda.chunk_kda")(*given, initial_state=state().to(dtype))
        same(got, ours("kda")(*given, initial_state=state().to(dtype).double()))

    def test_hgrn_has_no_heads(self) -> None:
        x, g, first = normal(B, T, 7), decay(B, T, 7), normal(B, 7, seed=3)
        expected_o, expected = ours("hgrn")(
            x[:, :, None], g[:, :, None], initial_state=first[:, None], output_final_state=True
        )
        for name in ("chunk_hgrn", "fused_recurrent_hgrn", "naive_recurrent_hgrn", "naive_chunk_hgrn"):
            same(fla(f"hgrn.{name}")(x, g, first, True), (expected_o[:, :, 0], expected[:, 0]))
        half = fla("hgrn.fused_recurrent_hgrn")(x.half(), g.half(), None, True)
        assert [part.dtype for part in half] == [torch.float16, torch.float16]

    def test_sum_of_keys(self) -> None:
        q, k, v = (normal(B, T, HV, size, seed=size).abs() for size in (K, K, V))
        run = fla("linear_attn.chunk_linear_attn")
        S0, z0 = normal(B, HV, K, V), normal(B, HV, K).abs()
        expected_o, (S, z) = ours("linear_attn_normalized")(q, k, v, initial_state=(S0, z0), output_final_state=True)
        same(run(q, k, v, initial_state=(S0, z0[:, None]), output_final_state=True), (expected_o, (S, z[:, None])))
        same(run(q, k, v, initial_state=(S0, z0[:, None]))[1], (None, z[:, None]))
        zero = torch.zeros_like(z0)
        same(run(q, k, v, initial_state=S0)[0], ours("linear_attn_normalized")(q, k, v, initial_state=(S0, zero))[0])
        same(
            run(q, k, v, normalize=False, output_final_state=True),
            ours("linear_attn")(q, k, v, output_final_state=True),
        )
        same(
            fla("linear_attn.naive_chunk_linear_attn")(q, k, v, normalize=True),
            ours("linear_attn_normalized")(q, k, v)[0],
        )

    def test_lightnet_always_gives_the_sum_of_weights(self) -> None:
        q, k, v = qkv(heads=H)
        expected_o, (S, z) = ours("lightnet")(q, k, v, output_final_state=True)
        for name in ("chunk_lightnet", "fused_recurrent_lightnet"):
            run = fla(f"lightnet.{name}")
            same(run(q, k, v), (expected_o, (None, z[:, None])))
            got = run(q, k, v, output_final_state=True, state_v_first=True)
            same(got, (expected_o, (S.mT, z[:, None])))
            resumed = run(q, k, v, initial_state=got[1], state_v_first=True)[0]
            same(resumed, ours("lightnet")(q, k, v, initial_state=(S, z))[0])
            with pytest.raises(ValueError, match="both its parts or neither"):
                run(q, k, v, initial_state=(S, None))

    def test_rwkv4_keeps_sums_and_their_exponent(self) -> None:
        run = fla("rwkv4.fused_recurrent_rwkv4")
        w, u, k, v = normal(9), normal(9, seed=1), normal(B, T, 9, seed=2), normal(B, T, 9, seed=3)
        fresh = torch.cat(
            [torch.zeros(B, 2, 1, 9, dtype=torch.float64), torch.full((B, 1, 1, 9), -1e38, dtype=torch.float64)], dim=1
        )
        heads = (k[:, :, None], v[:, :, None])
        params = {"w": -w.exp()[None], "u": u[None]}
        o, final = run(w, u, k, v, fresh)
        expected, (z, p) = ours("rwkv4")(*heads, **params, output_final_state=True)
        same(o, expected[:, :, 0])
        assert final.shape == (B, 3, 1, 9)
        same(final[:, 0] / final[:, 1], p)
        same(final[:, 1].log() + final[:, 2], z)
        scaled = torch.stack([3 * final[:, 0], 3 * final[:, 1], final[:, 2] - torch.tensor(3.0).double().log()], dim=1)
        same(run(w, u, k, v, scaled)[0], ours("rwkv4")(*heads, **params, initial_state=(z, p))[0][:, :, 0])
        same(run(w, u, k[:, :0], v[:, :0], fresh)[1], fresh)

    def test_abc_goes_on_where_it_ended(self) -> None:
        q, k, v = qkv(heads=H)
        s = normal(B, T, H, M)
        run = fla("abc.chunk_abc")
        whole, final = run(q, k, v, s, None, True)
        same((whole, final), ours("abc_attn")(q, k, v, s, output_final_state=True))
        _, middle = run(*(x[:, :9] for x in (q, k, v, s)), None, True)
        same(run(*(x[:, 9:] for x in (q, k, v, s)), middle)[0], whole[:, 9:])
        with pytest.raises(ValueError, match=r"expected .log weights .* got 2 tensors"):
            run(q, k, v, s, final[1:])


REVERSED: dict[str, tuple[str, tuple[Tensor, ...], dict[str, Any], dict[str, Any]]] = {
    "simple_gla.fused_recurrent_simple_gla": ("simple_gla", (decay(1, T, H),), {}, {}),
    "gla.fused_recurrent_gla": ("gla", (decay(1, T, H, K),), {}, {}),
    "retention.fused_recurrent_retention": ("retention", (), {}, {}),
    "linear_attn.fused_recurrent_linear_attn": ("linear_attn", (), {}, {}),
    "lightning_attn.fused_recurrent_lightning_attn": (
        "lightning_attn",
        (),
        {"layer_idx": 1, "num_layers": 3},
        {"layer_idx": 1, "num_layers": 3},
    ),
    "generalized_delta_rule.fused_recurrent_dplr_delta_rule": (
        "dplr",
        (0.3 * normal(1, T, H, K, seed=8), 0.3 * normal(1, T, H, K, seed=9), decay(1, T, H, K)),
        {},
        {},
    ),
    "rwkv6.fused_recurrent_rwkv6": ("rwkv6", (decay(1, T, H, K),), {"u": normal(H, K)}, {"u": normal(H, K)}),
}


class TestReverse:
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("name", REVERSED)
    def test_each_sequence_from_its_end(self, name: str, packed: bool) -> None:
        package, rest, given, theirs = REVERSED[name]
        inputs = (*qkv(heads=H, rows=1), *rest)
        bounds = OFFSETS.tolist() if packed else [0, T]
        runs = list(pairwise(bounds))
        first = state(len(runs), H)
        o, final = fla(name)(
            *inputs,
            **given,
            initial_state=first,
            output_final_state=True,
            reverse=True,
            cu_seqlens=OFFSETS if packed else None,
        )
        outputs, states = [], []
        for run, (start, stop) in enumerate(runs):
            own = [x[:, start:stop].flip(1) for x in inputs]
            one, last = ours(package)(*own, **theirs, initial_state=first[run : run + 1], output_final_state=True)
            outputs.append(one.flip(1))
            states.append(last)
        same((o, final), (torch.cat(outputs, 1), torch.cat(states)))


class TestWhatMayBeMissing:
    @pytest.mark.parametrize("kind", ["chunk", "fused_chunk", "fused_recurrent"])
    def test_decays_of_simple_gla(self, kind: str) -> None:
        run, g, gamma = fla(f"simple_gla.{kind}_simple_gla"), decay(B, T, HV), decay(HV)
        constant = gamma.expand(B, T, HV)
        same(run(*qkv()), ours("linear_attn")(*qkv()))
        same(run(*qkv(), g), ours("simple_gla")(*qkv(), g))
        same(run(*qkv(), g_gamma=gamma), ours("simple_gla")(*qkv(), constant))
        same(run(*qkv(), g, gamma), ours("simple_gla")(*qkv(), g + constant))

    def test_constant_decay_has_no_gradient(self) -> None:
        g, gamma = decay(B, T, HV).requires_grad_(), decay(HV).requires_grad_()
        fla("simple_gla.chunk_simple_gla")(*qkv(), g, gamma)[0].sum().backward()
        assert g.grad is not None and gamma.grad is None

    def test_decays_of_the_delta_rule(self) -> None:
        run, g, gk = fla("gated_delta_rule.fused_recurrent_gdn"), decay(B, T, HV), decay(B, T, HV, K)
        ones = torch.ones(B, T, HV).double()
        same(run(*qkv()), ours("delta_rule")(*qkv(), ones))
        same(run(*qkv(), g), ours("gated_delta_rule")(*qkv(), g, ones))
        same(run(*qkv(), gk=gk, beta=beta()), ours("kda")(*qkv(), gk, beta()))
        same(run(*qkv(), g, gk, beta=beta()), ours("kda")(*qkv(), gk + g[..., None], beta()))
        with pytest.raises(NotImplementedError, match="fused_recurrent_gated_delta_rule: gv is not supported"):
            run(*qkv(), gv=decay(B, T, HV, V))

    def test_ones_for_beta(self) -> None:
        ones = torch.ones(B, T, HV).double()
        same(fla("delta_rule.fused_recurrent_delta_rule")(*qkv()), ours("delta_rule")(*qkv(), ones))
        q, k, v = qkv()
        g = decay(B, T, HV)
        same(fla("comba.chunk_comba")(q, k, v, None, g), ours("comba")(q, k, v, k, g, ones))
        same(fla("comba.fused_recurrent_comba")(q, k, None, v, g), ours("comba")(q, k, v, k, g, ones))
        no_decay = torch.zeros_like(v)
        same(fla("gated_oja_rule.fused_recurrent_gated_oja_rule")(q, k, v), ours("oja")(q, k, v, no_decay, ones))

    def test_product_without_a_decay(self) -> None:
        q, g = normal(B, T, H, K), decay(B, T, HV)
        k, v, strength = unit(normal(B, 2 * T, H, K, seed=1)), normal(B, 2 * T, HV, V), beta(tokens=2 * T)
        run = fla("gated_delta_product.chunk_gated_delta_product")
        same(run(q, k, v, None, strength, 2), ours("delta_product")(q, k, v, strength, num_householder=2))
        same(run(q, k, v, g, strength, 2), ours("gated_delta_product")(q, k, v, g, strength, num_householder=2))
        naive = fla("gated_delta_product.naive_recurrent_gated_delta_product")(
            q, k, v, g, strength, 0.5, num_householder=2
        )
        expected = ours("gated_delta_product")(
            q, k, v, g, strength, num_householder=2, scale=0.5, output_final_state=True
        )
        same(naive, expected)

    @pytest.mark.parametrize("kind", KINDS)
    def test_slots_with_a_softmax_over_time(self, kind: str) -> None:
        q, (_, k, v) = normal(B, T, 2 * H, K), qkv(heads=H)
        s = normal(B, T, H, M)
        run = fla(f"gsa.{kind}_gsa")
        wide = [x.repeat_interleave(2, 2) for x in (k, v, s)]
        expected, (_, Sk, Sv) = ours("abc_attn")(q, *wide, output_final_state=True)
        same(run(q, k, v, s, output_final_state=True), (expected, [Sk[:, ::2], Sv[:, ::2]]))
        with pytest.raises(NotImplementedError, match="initial_state is not supported without g"):
            run(q, k, v, s, initial_state=[Sk[:, ::2], Sv[:, ::2]])


class TestOrderAndNames:
    def test_beta_before_g_and_p_before_v(self) -> None:
        q, k, v = qkv()
        g, p = decay(B, T, HV), normal(B, T, H, K, seed=9)
        same(
            fla("gated_delta_rule.naive_recurrent_gated_delta_rule")(q, k, v, beta(), g),
            ours("gated_delta_rule")(q, k, v, g, beta()),
        )
        same(
            fla("gated_delta_rule.naive_chunk_gated_delta_rule")(q, k, v, g, beta(), 16),
            ours("gated_delta_rule")(q, k, v, g, beta()),
        )
        expected = ours("comba")(q, k, v, p, g, beta())
        same(fla("comba.naive_recurrent_comba")(q, k, v, p, beta(), g), expected)
        same(fla("comba.naive_chunk_comba")(q, k, v, p, g, beta()), expected)
        same(fla("comba.fused_recurrent_comba")(q, k, p, v, g, beta()), expected)

    @pytest.mark.parametrize("bound", [None, -0.6065306597126334])
    def test_rwkv7(self, bound: float | None) -> None:
        r, k, v = qkv(heads=H)
        w = decay(B, T, H, K).clamp(min=-0.6)
        kk, a = unit(normal(B, T, H, K, seed=8)), beta(heads=H)[..., None].expand(B, T, H, K)
        expected = ours("rwkv7")(r, w, k, v, -kk, kk * a, scale=1.0)
        same(fla("rwkv7.chunk_rwkv7")(r, w, k, v, -kk, kk * a, lower_bound=bound), expected)
        same(fla("rwkv7.fused_mul_recurrent_rwkv7")(r, w, k, v, kk, a), expected)
        scaled = ours("rwkv7")(r, w, k, v, -kk, kk * a, scale=K**-0.5, output_final_state=True)
        same(fla("rwkv7.fused_recurrent_rwkv7")(r, w, k, v, -kk, kk * a), scaled)

    def test_rwkv7_takes_any_decay(self) -> None:
        r, k, v = qkv(heads=H)
        w, a = -5 * normal(B, T, H, K).abs(), 0.3 * k
        expected = ours("dplr")(r, k, v, -a, a, w, scale=1.0)
        same(fla("rwkv7.chunk_rwkv7")(r, w, k, v, -a, a), expected)

    def test_heads_before_tokens_in_the_naive_forms(self) -> None:
        r, k, v = qkv(heads=H)
        w, u, s = decay(B, T, H, K), normal(H, K), normal(B, T, H, M)
        turned = [x.transpose(1, 2) for x in (r, k, v, w)]
        expected, final = ours("rwkv6")(r, k, v, w, u=u, output_final_state=True)
        o, last = fla("rwkv6.naive_recurrent_rwkv6")(*turned, u, output_final_state=True)
        same((o.transpose(1, 2), last), (expected, final))
        unscaled = ours("rwkv6")(r, k, v, w, u=u, scale=1.0)[0]
        same(fla("rwkv6.naive_chunk_rwkv6")(*turned, u).transpose(1, 2), unscaled)
        same(fla("retention.naive_retention")(*turned[:3]).transpose(1, 2), ours("retention")(r, k, v)[0])
        o, states = fla("abc.naive_recurrent_abc")(*turned[:3], s.transpose(1, 2), output_final_state=True)
        expected, (_, *last) = ours("abc_attn")(r, k, v, s, output_final_state=True)
        same((o.transpose(1, 2), states), (expected, tuple(last)))

    def test_slots_of_groups_of_query_heads(self) -> None:
        q, (_, k, v) = normal(B, T, 2 * H, K), qkv(heads=H)
        s, g = normal(B, T, H, M), decay(B, T, H, M)
        first = [normal(B, H, K, M), normal(B, H, M, V)]
        wide = [x.repeat_interleave(2, 2) for x in (k, v, s, g)]
        wide_first = tuple(x.repeat_interleave(2, 1) for x in first)
        expected, final = ours("gsa")(q, *wide, initial_state=wide_first, output_final_state=True)
        for kind in ("chunk_gsa", "fused_recurrent_gsa"):
            got = fla(f"gsa.{kind}")(q, k, v, s, g, initial_state=first, output_final_state=True)
            assert isinstance(got[1], list)
            same(got, (expected, [x[:, ::2] for x in final]))
        same(fla("gsa.chunk_gsa")(q, k, v, s, g)[1], [None, None])

    def test_output_has_the_queries_dtype(self) -> None:
        q, k, v = qkv()
        o, final = fla("simple_gla.chunk_simple_gla")(
            q.bfloat16(), k.float(), v.float(), decay(B, T, HV).float(), output_final_state=True
        )
        assert (o.dtype, final.dtype) == (torch.bfloat16, torch.float32)

    def test_parallel_forms_have_no_attention(self) -> None:
        q, k, v = qkv()
        g = decay(B, T, HV)
        same(fla("simple_gla.parallel_simple_gla")(q, k, v, g), (ours("simple_gla")(q, k, v, g)[0], None))
        same(fla("retention.parallel_retention")(q, k, v), (ours("retention")(q, k, v)[0], None))
        same(fla("delta_rule.parallel_delta_rule")(q, k, v, beta()), (ours("delta_rule")(q, k, v, beta())[0], None))
        for name, rest in (("simple_gla", (g,)), ("retention", ()), ("delta_rule", (beta(),))):
            with pytest.raises(NotImplementedError, match=f"parallel_{name}: output_attentions is not supported"):
                fla(f"{name}.parallel_{name}")(q, k, v, *rest, output_attentions=True)


class TestPreconditioned:
    @pytest.mark.parametrize("kind", [*KINDS, "naive_recurrent"])
    def test_number_of_a_second_moment_for_each_key_head(self, kind: str) -> None:
        q, k, v = qkv()
        g, g_atk, beta_atk = decay(B, T, HV), decay(B, T, H, seed=7), beta(heads=H)
        scale = torch.tensor([-0.2, 0.4]).double()
        S0, A0 = state(), normal(B, H, K).abs()
        got = fla(f"precond_gated_delta_rule.{kind}_precond_gated_delta_rule")(
            *(q, k, v),
            g=g,
            beta=beta(),
            g_atk=g_atk,
            beta_atk=beta_atk,
            initial_state=S0,
            initial_A_state=A0,
            output_final_state=True,
            log_atk_scale=scale,
        )
        eps = 1e-24 if kind == "naive_recurrent" else 1e-6
        o, S, A = [], [], []
        for head in range(H):
            own, group = slice(head, head + 1), slice(2 * head, 2 * head + 2)
            atk = [x[:, :, own].repeat_interleave(2, 2) for x in (g_atk, beta_atk)]
            one, (last, moment) = ours("precond_gated_delta_rule")(
                *(unit(x[:, :, own], eps) for x in (q, k)),
                *(v[:, :, group], g[:, :, group], beta()[:, :, group], *atk),
                x=1.5,
                center=float(scale[head]),
                eps=1e-6,
                initial_state=(S0[:, group], A0[:, own].repeat_interleave(2, 1)),
                output_final_state=True,
            )
            o.append(one)
            S.append(last)
            A.append(moment[:, :1])
        same(got, (torch.cat(o, 2), torch.cat(S, 1), torch.cat(A, 1)))

    def test_one_state_alone(self) -> None:
        given = (*qkv(), decay(B, T, HV, K), decay(B, T, H), beta(heads=H), beta())
        run = fla("precond_kda.chunk_precond_kda")
        A0 = normal(B, H, K).abs()
        zero = torch.zeros(B, HV, K, V).double()
        same(run(*given, initial_A_state=A0)[0], run(*given, initial_state=zero, initial_A_state=A0)[0])
        same(run(*given, initial_state=state())[0], run(*given, initial_state=state(), initial_A_state=0 * A0)[0])

    def test_no_gradient_of_its_center(self) -> None:
        given = (*qkv(), decay(B, T, HV, K), decay(B, T, H), beta(heads=H), beta())
        center = torch.full((H,), -0.2, dtype=torch.float64, requires_grad=True)
        run = fla("precond_kda.chunk_precond_kda")
        with pytest.raises(NotImplementedError, match="log_atk_scale has no gradient here"):
            run(*given, log_atk_scale=center)
        same(run(*given, log_atk_scale=center.detach()), run(*given))


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "argument"),
        [
            ("gated_delta_rule.chunk_gated_delta_rule", "cp_context"),
            ("kda.chunk_kda", "cp_context"),
            ("kda.chunk_kda", "return_intermediate_states"),
            ("kda.chunk_kda", "use_graph"),
            ("kda.chunk_kda", "max_num_seqs"),
            ("gdn2.chunk_gdn2", "return_intermediate_states"),
            ("gated_delta_product.chunk_gated_delta_product", "cp_context"),
            ("generalized_delta_rule.chunk_dplr_delta_rule", "cp_context"),
            ("rwkv7.chunk_rwkv7", "cp_context"),
            ("gla.fused_recurrent_gla", "gv"),
            ("precond_kda.chunk_precond_kda", "return_intermediate_states"),
        ],
    )
    def test_named(self, name: str, argument: str) -> None:
        required = [
            p.name for p in __import__("inspect").signature(fla(name)).parameters.values() if p.default is p.empty
        ]
        with pytest.raises(NotImplementedError, match=rf"{name.split('.')[1]}: {argument} is not supported: "):
            fla(name)(*[torch.zeros(1)] * len(required), **{argument: 3})

    def test_bad_shapes_are_the_operators_to_name(self) -> None:
        q, k, v = qkv()
        with pytest.raises(ValueError, match=r"beta: expected shape \[B, T, HV\]"):
            fla("gated_delta_rule.fused_recurrent_gated_delta_rule")(q, k, v, decay(B, T, HV), beta=torch.rand_like(v))

    def test_lower_bound(self) -> None:
        q, k, v = qkv()
        with pytest.raises(ValueError, match=r"safe_gate=True expects a lower_bound in \[-5, 0\), got None"):
            fla("kda.chunk_kda")(q, k, v, decay(B, T, HV, K), beta(), use_gate_in_kernel=True, safe_gate=True)
        with pytest.raises(ValueError, match=r"chunk_rwkv7: lower_bound: expected a number below 0, got 0\.5"):
            fla("rwkv7.chunk_rwkv7")(q, k, k, v, k, k, lower_bound=0.5)


class TestPacked:
    def test_offsets_on_the_processor_are_taken(self) -> None:
        given = (*qkv(rows=1), decay(1, T, HV, K), beta(rows=1))
        same(
            fla("kda.chunk_kda")(*given, cu_seqlens=OFFSETS, cu_seqlens_cpu=OFFSETS, output_final_state=True),
            ours("kda")(*given, cu_seqlens=OFFSETS, output_final_state=True),
        )


class TestWithoutTriton:
    def test_pytorch_forms_with_one_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from generated.compat import adapt
        from generated.shared import forms

        monkeypatch.setattr(adapt, "has_triton", lambda: False)
        forms.say_once.cache_clear()
        found = adapt.forms("gated_delta_rule")
        given = (*qkv(), decay(B, T, HV), beta())
        with pytest.warns(UserWarning, match="without kernels here: those need Triton.*more memory") as caught:
            same(found.chunk(*given, save_states=True), ours("gated_delta_rule")(*given))
            same(found.fused_recurrent(*given), ours("gated_delta_rule")(*given))
        assert len(caught) == 1
