"""Adaptations of pairs of keys, of systems, of memories that are trained and of slots on a circle, in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from tests.compat.calls import HV, KINDS, OFFSETS, B, H, K, T, beta, decay, fla, normal, ours, qkv, same, state, unit

pytestmark = pytest.mark.usefixtures("pytorch_forms")


def turned(*tensors: Tensor) -> list[Tensor]:
    return [x.transpose(1, 2) for x in tensors]


class TestPairsOfKeys:
    @pytest.mark.parametrize("name", ["parallel_based", "fused_chunk_based"])
    def test_based(self, name: str) -> None:
        run = fla(f"based.{name}")
        same(run(*qkv()), ours("based")(*qkv())[0])
        same(run(*qkv(), 0.3, False), ours("based")(*qkv(), scale=0.3, normalize=0)[0])

    def test_naive_forms_have_heads_before_tokens(self) -> None:
        expected = ours("based")(*qkv())[0].transpose(1, 2)
        same(fla("based.naive_parallel_based")(*turned(*qkv())), expected)
        same(fla("based.naive_chunk_based")(*turned(*qkv()), chunk_size=16), expected)
        plain = ours("based")(*qkv(), scale=0.3, normalize=0)[0].transpose(1, 2)
        same(fla("based.naive_parallel_based")(*turned(*qkv()), scale=0.3, use_norm=False), plain)
        squares = ours("rebased")(*qkv(), eps=1e-6)[0].transpose(1, 2)
        same(fla("rebased.naive_parallel_rebased")(*turned(*qkv())), squares)

    def test_rebased(self) -> None:
        run = fla("rebased.parallel_rebased")
        same(run(*qkv()), ours("rebased")(*qkv())[0])
        same(run(*qkv(), 0.1, False), ours("rebased")(*qkv(), eps=0.1, scale=1)[0])
        same(run(*qkv(), use_normalize=False), ours("rebased")(*qkv(), normalize=0)[0])

    def test_rebased_gives_what_it_would_divide_by(self) -> None:
        o, weights = fla("rebased.parallel_rebased")(*qkv(), return_both=True)
        same(o, ours("rebased")(*qkv(), normalize=0)[0].transpose(1, 2))
        same(o / (weights + 0.1)[..., None], ours("rebased")(*qkv(), eps=0.1)[0].transpose(1, 2))


class TestSystems:
    lamb = 0.25 + normal(HV, K, seed=8).abs()
    moment = normal(B, HV, K, K, seed=9) @ normal(B, HV, K, K, seed=9).mT

    def test_chunk(self) -> None:
        q, k, v = qkv()
        gates = (decay(B, T, HV), beta(), self.lamb)
        run, recurrence = fla("mesa_net.chunk_mesa_net"), ours("mesa_net")
        o, states = recurrence(
            *(unit(q), unit(3 * k), v, *gates), initial_state=(self.moment, state()), output_final_state=True
        )
        got = run(q, 3 * k, v, *gates, self.moment, state(), True, use_qk_l2norm_in_kernel=True)
        same(got, (o, *states))
        same(run(q, k, v, *gates), (recurrence(q, k, v, *gates)[0], None, None))
        few = run(q, k, v, *gates, max_CG_iteration=1)[0]
        assert (few - recurrence(q, k, v, *gates)[0]).abs().max() > 1e-3

    def test_packed(self) -> None:
        q, k, v = qkv(rows=1)
        given = (q, k, v, decay(1, T, HV), beta(rows=1), self.lamb)
        o, states = ours("mesa_net")(*given, output_final_state=True, cu_seqlens=OFFSETS)
        options = {"output_final_state": True, "cu_seqlens": OFFSETS, "cu_seqlens_cpu": OFFSETS}
        same(fla("mesa_net.chunk_mesa_net")(*given, **options), (o, *states))

    def test_one_state_alone(self) -> None:
        given = (*qkv(), decay(B, T, HV), beta(), self.lamb)
        run = fla("mesa_net.chunk_mesa_net")
        none, nothing = torch.zeros_like(self.moment), torch.zeros_like(state())
        same(run(*given, self.moment), run(*given, self.moment, nothing))
        same(run(*given, h_kv_init=state()), run(*given, none, state()))

    def test_naive_forms_have_lamb_before_beta(self) -> None:
        q, k, v = qkv()
        g = decay(B, T, HV)
        o, states = ours("mesa_net")(
            q, k, v, g, beta(), self.lamb, initial_state=(self.moment, state()), output_final_state=True
        )
        given = (q, k, v, g, self.lamb, beta())
        same(fla("mesa_net.naive_mesa_net_exact")(*given, self.moment, state()), (o, *states))
        same(fla("mesa_net.naive_mesa_net_CG")(*given, 16, 40, self.moment, state()), (o, *states))

    @pytest.mark.parametrize("name", ["mesa_net_decoding_one_step", "naive_mesa_net_decoding_one_step"])
    def test_one_token(self, name: str) -> None:
        given = [*qkv(tokens=1), decay(B, 1, HV), beta(tokens=1)]
        o, states = ours("mesa_net")(*given, self.lamb, initial_state=(self.moment, state()), output_final_state=True)
        q, k, v, g, weight = (x[:, 0] for x in given)
        same(fla(f"mesa_net.{name}")(q, k, v, g, self.lamb, weight, self.moment, state(), 1), (o[:, 0], *states))

    def test_one_token_keeps_dtypes(self) -> None:
        q, k, v, g, weight = (x[:, 0].float() for x in (*qkv(tokens=1), decay(B, 1, HV), beta(tokens=1)))
        given = (q.bfloat16(), k, v, g, self.lamb.float(), weight, self.moment.float(), state().float())
        found = fla("mesa_net.mesa_net_decoding_one_step")(*given)
        assert [x.dtype for x in found] == [torch.bfloat16, torch.float32, torch.float32]
        assert fla("mesa_net.naive_mesa_net_decoding_one_step")(*given)[0].dtype == torch.float32


class TestMiniBatches:
    """A call begins a mini-batch, and what it ends with has taken the last step."""

    w, b = 1 + 0.2 * normal(HV, K, seed=8), 0.1 * normal(HV, K, seed=9)
    W, c = 0.3 * normal(B, HV, K, K, seed=10), 0.3 * normal(B, HV, 1, K, seed=11)
    rate, gone, kept = (0.2 * beta()[..., None] ** power for power in (1, 2, 3))

    def given(self, tokens: int = T) -> tuple[Tensor, ...]:
        q, k, _ = qkv(tokens=T)
        return tuple(x[:, :tokens] for x in (q, k, normal(B, T, HV, K, seed=4)))

    def losses(self, k: Tensor, v: Tensor, W: Tensor, c: Tensor | float) -> Tensor:
        """Of the prediction of each token's value from its key, [B, HV, T]."""
        k, v = (x.transpose(1, 2) for x in (k.repeat_interleave(HV // H, 2), v))
        normed = layer_norm(k @ W + c, (K,), eps=1e-6) * self.w[:, None] + self.b[:, None]
        return (normed - (v - k)).square().sum(-1) / 2

    @pytest.mark.parametrize("name", ["chunk_ttt_linear", "fused_chunk_ttt_linear", "chunk_ttt_linear_ref"])
    def test_ttt(self, name: str) -> None:
        q, k, v = self.given()
        got = fla(f"ttt.{name}")(
            *(q, k, v, self.w, self.b, self.rate), 0.7, 1e-5, 8, self.W, self.c, output_final_state=True
        )
        none, at_first = torch.zeros_like(self.W), torch.zeros(B, HV).double()
        first = (self.W, self.c[..., 0, :], none, none[..., 0, :], at_first, at_first)
        o, (W, c, G, d, rate, _) = ours("ttt_linear")(
            *(q, k, v, self.rate[..., 0], self.w, self.b),
            scale=0.7,
            eps=1e-5,
            mini_batch_size=8,
            initial_state=first,
            output_final_state=True,
        )
        rate = rate[..., None]
        same(got, (o, W - rate[..., None] * G, (c - rate * d)[..., None, :]))

    @pytest.mark.parametrize("tokens", [5, 8])
    def test_last_step_of_ttt(self, tokens: int) -> None:
        """By the gradient of all the losses, of a mini-batch that is full and of one that is not."""
        q, k, v = self.given(tokens)
        rates = self.rate[:, :tokens]
        W, c = self.W.clone().requires_grad_(), self.c.clone().requires_grad_()
        dW, dc = torch.autograd.grad(self.losses(k, v, W, c).sum(), (W, c))
        last = rates[:, -1, :, :, None]
        _, *got = fla("ttt.chunk_ttt_linear")(
            *(q, k, v, self.w, self.b, rates),
            chunk_size=8,
            initial_state=self.W,
            initial_state_bias=self.c,
            output_final_state=True,
        )
        same(got, [self.W - last * dW, self.c - last * dc])

    def test_ttt_goes_on_from_what_it_gave(self) -> None:
        q, k, v = self.given(16)
        run, options = fla("ttt.chunk_ttt_linear"), {"chunk_size": 8, "output_final_state": True}
        whole = run(q, k, v, self.w, self.b, self.rate[:, :16], **options)
        parts, W, c = [], None, None
        for part in (slice(0, 8), slice(8, 16)):
            rows = (x[:, part] for x in (q, k, v))
            o, W, c = run(*rows, self.w, self.b, self.rate[:, part], initial_state=W, initial_state_bias=c, **options)
            parts.append(o)
        same((torch.cat(parts, 1), W, c), whole)

    def test_what_may_be_missing_of_ttt(self) -> None:
        q, k, v = self.given()
        run = fla("ttt.chunk_ttt_linear")
        given = (q, k, v, self.w, self.b)
        same(run(*given, 0.05), run(*given, torch.full_like(self.rate, 0.05)))
        no_weights, no_bias = torch.zeros_like(self.W), torch.zeros_like(self.c)
        for one, both in (
            ({"initial_state": self.W}, {"initial_state": self.W, "initial_state_bias": no_bias}),
            ({"initial_state_bias": self.c}, {"initial_state": no_weights, "initial_state_bias": self.c}),
        ):
            same(run(*given, self.rate, **one), run(*given, self.rate, **both))

    def test_ttt_packed(self) -> None:
        q, k, v = (x[:1] for x in self.given())
        run = fla("ttt.chunk_ttt_linear")
        options: dict[str, Any] = {"chunk_size": 8, "output_final_state": True}
        o, W, c = run(q, k, v, self.w, self.b, self.rate[:1], **options, cu_seqlens=OFFSETS, cu_seqlens_cpu=OFFSETS)
        assert (W[1] == 0).all() and (c[1] == 0).all()
        for i in (0, 2, 3):
            part = slice(int(OFFSETS[i]), int(OFFSETS[i + 1]))
            alone = run(*(x[:, part] for x in (q, k, v)), self.w, self.b, self.rate[:1, part], **options)
            same((o[:, part], W[i : i + 1], c[i : i + 1]), alone)

    def test_naive_form_of_ttt_has_heads_before_tokens(self) -> None:
        q, k, v = self.given()
        expected = fla("ttt.chunk_ttt_linear")(
            *(q, k, v, self.w, self.b, self.rate), 0.7, 1e-5, 8, self.W, self.c, output_final_state=True
        )
        rows, q_before = turned(q, k, v), q.clone()
        given = (*rows, self.w, self.b, *turned(self.rate), 0.7, 1e-5, 8, self.W, self.c, True)
        o, *states = fla("ttt.ttt_linear")(*given)
        same((o.transpose(1, 2), *states), expected)
        assert (q == q_before).all()

    @pytest.mark.parametrize("name", ["chunk_titans_linear", "titans_linear"])
    def test_titans(self, name: str) -> None:
        q, k, v = self.given()
        rates = (self.rate, self.gone, self.kept)
        none = torch.zeros_like(self.W)
        o, (M, *_) = ours("titans_linear")(
            *(q, k, v, *(x[..., 0] for x in rates), self.w, self.b),
            eps=1e-5,
            mini_batch_size=8,
            initial_state=(self.W, none, none, none[..., 0, 0]),
            output_final_state=True,
        )
        rows = (*turned(q, k, v), self.w, self.b, *turned(*rates))
        found, memory = fla(f"titans.{name}")(*rows, 1e-5, 8, self.W, True)
        same((found.transpose(1, 2), memory), (o, M))
        assert fla(f"titans.{name}")(*rows, 1e-5, 8, self.W, False)[1] is None
        given = (q, k, v, self.w, self.b, *rates)
        use_chunk = name == "chunk_titans_linear"
        same(fla("titans.chunk_titans_linear_ref")(*given, 1e-5, 8, self.W, True, use_chunk), (o, M))

    def test_steps_of_titans(self) -> None:
        """By the gradient of each token's loss at the memory that the mini-batch began with."""
        q, k, v = self.given(5)
        M, momentum = self.W.clone(), torch.zeros_like(self.W)
        for t in range(5):
            W = self.W.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.losses(k[:, t : t + 1], v[:, t : t + 1], W, 0.0).sum(), W)
            theta, alpha, eta = (x[:, t, :, :, None] for x in (self.rate, self.gone, self.kept))
            momentum = eta * momentum - 2 * theta * gradient
            M = (1 - alpha) * M + momentum
        rates = (x[:, :5] for x in (self.rate, self.gone, self.kept))
        same(fla("titans.chunk_titans_linear_ref")(q, k, v, self.w, self.b, *rates, 1e-6, 8, self.W, True)[1], M)


def kept_tokens(state: Any) -> list[Tensor]:
    return [getattr(state, f"{name}_prev") for name in ("q", "k", "v", "g", "level_scales")]


class TestLevels:
    def test_outputs(self) -> None:
        given = (*qkv(), decay(B, T, HV), normal(B, T, HV, 6, seed=7).abs())
        run, recurrence = fla("log_linear_attn.chunk_log_linear_attn"), ours("log_linear_attn")
        same(run(*given), (recurrence(*given)[0], None))
        same(run(*given, scale=None), (recurrence(*given, scale=K**-0.5)[0], None))
        same(fla("log_linear_attn.naive_log_linear_attn")(*given), recurrence(*given)[0])
        alone = [x[:1] for x in given]
        same(run(*alone, cu_seqlens=OFFSETS)[0], recurrence(*alone, cu_seqlens=OFFSETS)[0])

    LONG = 64 * 5 + 7

    def long(self, batch: int) -> tuple[Tensor, ...]:
        shapes = ((H, K), (H, K), (HV, 5), (HV,), (HV, 10))
        q, k, v, g, scales = (normal(batch, self.LONG, *of, seed=i) for i, of in enumerate(shapes))
        return q, k, v, -g.abs() / 8, scales.abs()

    def test_states_are_those_of_whole_chunks_and_the_tokens_behind(self) -> None:
        _, k, v, g, _ = given = self.long(1)
        o, state = fla("log_linear_attn.chunk_log_linear_attn")(*given, output_final_state=True)
        same(o, ours("log_linear_attn")(*given)[0])
        assert state.offsets.tolist() == [self.LONG] and state.ht.shape == (1, 4, HV, K, 5)
        # Five chunks: the last one, then the four before it.
        left, keys = (g[0, :320].sum(0) - g[0, :320].cumsum(0)).exp(), k[0, :320].repeat_interleave(HV // H, 1)
        written = torch.einsum("th,thk,thv->thkv", left, keys, v[0, :320])
        same(state.ht[0], torch.stack([written[256:].sum(0), 0 * written[0], written[:256].sum(0), 0 * written[0]]))
        for kept, x in zip(kept_tokens(state), given, strict=True):
            assert torch.equal(kept[0, :7], x[0, 320:]) and not kept[0, 7:].any() and kept.shape[1] == 64

    @pytest.mark.parametrize("cuts", [(0, 64, 200), (7, 327), (5, 5, 135, 256), (128, 192)])
    def test_a_call_may_be_cut_anywhere(self, cuts: tuple[int, ...]) -> None:
        run, given = fla("log_linear_attn.chunk_log_linear_attn"), self.long(2)
        state, outputs = None, []
        for start, end in pairwise((0, *cuts, self.LONG)):
            o, state = run(*(x[:, start:end] for x in given), state, True)
            outputs.append(o)
        whole, final = run(*given, output_final_state=True)
        same(torch.cat(outputs, 1), whole)
        same(state.ht, final.ht)
        assert all(torch.equal(x, y) for x, y in zip(kept_tokens(state), kept_tokens(final), strict=True))
        assert torch.equal(state.offsets, final.offsets)

    def test_packed_sequences_go_on_where_each_ended(self) -> None:
        run, given = fla("log_linear_attn.chunk_log_linear_attn"), self.long(1)
        ends = torch.tensor([0, 70, 70, 199, self.LONG])
        o, final = run(*given, output_final_state=True, cu_seqlens=ends)
        first = torch.tensor([0, 65, 65, 65, 129])
        parts = [slice(0, 65), slice(199, 263)], [slice(65, 70), slice(70, 199), slice(263, self.LONG)]
        before, after = (tuple(torch.cat([x[:, part] for part in each], 1) for x in given) for each in parts)
        _, began = run(*before, output_final_state=True, cu_seqlens=first)
        assert began.offsets.tolist() == [65, 0, 0, 64]
        rest, state = run(*after, began, True, cu_seqlens=torch.tensor([0, 5, 5, 134, 198]))
        same(rest[:, :134], o[:, 65:199])
        same(rest[:, 134:], o[:, 263:])
        same(state.ht[:, : final.ht.shape[1]], final.ht[:, : state.ht.shape[1]])
        same(run(*after, began, cu_seqlens=torch.tensor([0, 5, 5, 134, 198]))[0], rest)

    def test_gradients_go_through_states(self) -> None:
        run, given = fla("log_linear_attn.chunk_log_linear_attn"), [x[:, :150].requires_grad_() for x in self.long(1)]
        _, state = run(*(x[:, :100] for x in given), output_final_state=True)
        o, _ = run(*(x[:, 100:] for x in given), state)
        expected = torch.autograd.grad(ours("log_linear_attn")(*given)[0][:, 100:].square().sum(), given)
        same(torch.autograd.grad(o.square().sum(), given), expected)

    def test_what_is_no_state_is_refused(self) -> None:
        run, given = fla("log_linear_attn.chunk_log_linear_attn"), self.long(2)
        with pytest.raises(TypeError, match="initial_state: expected a LogLinearAttentionState, got Tensor"):
            run(*given, torch.zeros(2))
        _, state = run(*(x[:1] for x in given), output_final_state=True)
        with pytest.raises(ValueError, match="initial_state: expected states of 2 sequences, got 1"):
            run(*given, state)
        *others, scales = given
        with pytest.raises(ValueError, match=r"level_scales: expected at least 10 levels of 5 chunks .*, got 9"):
            run(*others, scales[..., :9], output_final_state=True)


class TestSlotsOnACircle:
    C = 5
    norms = (1 + 0.1 * normal(K, seed=7), 1 + 0.1 * normal(K, seed=8), 1e-5, 1e-3)
    readout = normal(HV, C, C, seed=9)

    def given(self, rows: int = B) -> tuple[Tensor, ...]:
        moved = 3 * normal(rows, T, HV, seed=10).abs()
        return (*qkv(rows=rows), decay(rows, T, HV), moved, beta(rows=rows))

    @pytest.mark.parametrize("kind", [*KINDS, "naive_recurrent"])
    def test_clock_counts_slots(self, kind: str) -> None:
        keys, values = state()[..., :1] * normal(self.C + 1), normal(B, HV, self.C + 1, 6, seed=11)
        clock = 7.5 + normal(B, HV, seed=12).abs()
        weights = dict(zip(("q_norm_weight", "k_norm_weight", "q_norm_eps", "k_norm_eps"), self.norms, strict=True))
        o, (last_keys, last_values, _) = ours("cyfa")(
            *self.given(),
            self.readout,
            **weights,
            scale=0.4,
            initial_state=(keys, values, clock / self.C % 1),
            output_final_state=True,
        )
        run = fla(f"cyfa.{kind}_cyfa")
        got = run(*self.given(), self.readout, *self.norms, 0.4, (keys, values, clock), True)
        same(got, (o, (last_keys, last_values, clock + self.given()[4].sum(1))))
        assert run(*self.given(), self.readout, *self.norms)[1] is None

    @pytest.mark.parametrize("kind", KINDS)
    def test_packed(self, kind: str) -> None:
        run = fla(f"cyfa.{kind}_cyfa")
        given = self.given(rows=1)
        o, states = run(*given, self.readout, *self.norms, output_final_state=True, cu_seqlens=OFFSETS)
        for i in (0, 2, 3):
            part = slice(int(OFFSETS[i]), int(OFFSETS[i + 1]))
            alone = run(*(x[:, part] for x in given), self.readout, *self.norms, output_final_state=True)
            same((o[:, part], tuple(x[i : i + 1] for x in states)), alone)
        assert all((x[1] == 0).all() for x in states)
