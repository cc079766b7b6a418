"""Norms and gates that fla takes into its kernels: in float64, against flagen's own operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compat.calls import (
    HV,
    KINDS,
    B,
    H,
    K,
    T,
    V,
    beta,
    decay,
    fla,
    normal,
    ours,
    qkv,
    same,
    unit,
)

pytestmark = pytest.mark.usefixtures("pytorch_forms")


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
