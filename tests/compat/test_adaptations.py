"""Each adaptation in float64, against flagen's own operators called as they are, with the adaptation written out."""

from __future__ import annotations

import pytest
import torch

from tests.compat.calls import (
    HV,
    KINDS,
    OFFSETS,
    B,
    H,
    K,
    M,
    T,
    V,
    beta,
    decay,
    fla,
    normal,
    ours,
    qkv,
    same,
    state,
    unit,
)

pytestmark = pytest.mark.usefixtures("pytorch_forms")


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


class TestMomentum:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("given", [True, False])
    def test_of_groups_of_value_heads(self, kind: str, given: bool) -> None:
        """What may be missing is the key, and ones; the memory is read as each value head decays it."""
        q, k, v = qkv()
        gates = decay(B, T, HV), decay(B, T, HV, seed=7)
        ones = torch.ones(B, T, HV).double()
        p, weight, rate = (
            (normal(B, T, H, K, seed=8), beta(), decay(B, T, HV, seed=9).exp()) if given else (k, ones, ones)
        )
        options = {"p": p, "beta": weight, "eta": rate} if given else {}
        first = torch.stack([state(), 0.5 * state()])
        got = fla(f"momentum_delta_rule.{kind}_momentum_delta_rule")(
            *(q, 3 * k, v, *gates), **options, initial_state=first, output_final_state=True, scale=0.7
        )
        read, write = (unit(x).repeat_interleave(HV // H, 2) for x in (q, 3 * k))
        erased = unit(p if given else 3 * k).repeat_interleave(HV // H, 2) * gates[0].exp()[..., None]
        o, last = ours("momentum_delta_rule")(
            *(read, write, v, *gates, erased, weight, rate),
            scale=0.7,
            initial_state=tuple(first),
            output_final_state=True,
        )
        same(got, (o, torch.stack(last)))

    @pytest.mark.parametrize("kind", KINDS)
    def test_as_it_is(self, kind: str) -> None:
        q, k, v = qkv(rows=1)
        given = (q, k, v, decay(1, T, HV), decay(1, T, HV, seed=7), k, beta(rows=1), beta(rows=1))
        plain = {"use_qk_l2norm_in_kernel": False, "use_p_times_alpha": False}
        run = fla(f"momentum_delta_rule.{kind}_momentum_delta_rule")
        same(run(*given, **plain), ours("momentum_delta_rule")(*given))
        expected = ours("momentum_delta_rule")(*given, cu_seqlens=OFFSETS)
        same(run(*given, **plain, cu_seqlens=OFFSETS), expected)

    def test_references(self) -> None:
        q, k, v, p = *qkv(), normal(B, T, H, K, seed=8)
        gates, weights = (decay(B, T, HV), decay(B, T, HV, seed=7)), (beta(), beta() ** 2)
        zero, rule = torch.zeros_like(state()), "momentum_delta_rule"
        o, last = ours(rule)(q, k, v, *gates, p, *weights, initial_state=(state(), zero), output_final_state=True)
        options = {"initial_S": state(), "output_final_state": True}
        got = fla(f"{rule}.recurrent_{rule}_ref")(q, k, v, *gates, p, *weights, **options)
        same(got, (o, torch.stack(last)))
        same(fla(f"{rule}.chunk_{rule}_ref")(q, k, v, p, *gates, *weights, **options, chunk_size=16), got)
        with_momentum = ours(rule)(q, k, v, *gates, p, *weights, initial_state=(zero, state()))
        same(fla(f"{rule}.chunk_{rule}_ref")(q, k, v, p, *gates, *weights, initial_M=state()), with_momentum)

    def test_size_of_a_chunk(self) -> None:
        with pytest.raises(ValueError, match="chunk_momentum_delta_rule: chunk_size: expected 16, 32 or 64, got 24"):
            fla("momentum_delta_rule.chunk_momentum_delta_rule")(
                *qkv(), decay(B, T, HV), decay(B, T, HV), chunk_size=24
            )


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
