"""The states of fla's functions, their layouts, and walks from the end: against flagen's own operators."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compat.calls import (
    HV,
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
)

pytestmark = pytest.mark.usefixtures("pytorch_forms")


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
