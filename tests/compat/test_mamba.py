"""mamba_ssm's and causal_conv1d's functions, against the recurrences and the convolution written out."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

B, T, D, N = 2, 19, 6, 4
H, P, G = 4, 3, 2


@pytest.fixture(autouse=True)
def pytorch_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits and float32, too: what the kernels compute is for other tests to say."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def function(name: str) -> Callable[..., Any]:
    module, _, own = name.rpartition(".")
    found: Callable[..., Any] = getattr(import_module(f"generated.compat.{module}"), own)
    return found


selective_scan_fn = function("mamba_ssm.ops.selective_scan_interface.selective_scan_fn")
mamba_inner_fn = function("mamba_ssm.ops.selective_scan_interface.mamba_inner_fn")
selective_state_update = function("mamba_ssm.ops.triton.selective_state_update.selective_state_update")
mamba_chunk_scan_combined = function("mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined")
mamba_split_conv1d_scan_combined = function("mamba_ssm.ops.triton.ssd_combined.mamba_split_conv1d_scan_combined")
rmsnorm_fn = function("mamba_ssm.ops.triton.layernorm_gated.rmsnorm_fn")
causal_conv1d_fn = function("causal_conv1d.causal_conv1d_fn")
causal_conv1d_update = function("causal_conv1d.causal_conv1d_update")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(x: Tensor, y: Tensor, close: float = 1e-10) -> None:
    assert x.shape == y.shape
    assert (x - y).abs().max() <= close * y.abs().max().clamp(min=1)


def scanned(
    u: Tensor, dt: Tensor, A: Tensor, B_: Tensor, C: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mamba's recurrence of channels: u and dt [B, D, T], B and C [B, D, N, T], A [D, N]."""
    h = torch.zeros(u.shape[0], *A.shape, dtype=u.dtype) if state is None else state
    outputs = []
    for t in range(u.shape[-1]):
        step = dt[..., t, None]
        h = torch.exp(step * A) * h + step * B_[..., t] * u[..., t, None]
        outputs.append((h * C[..., t]).sum(-1))
    return torch.stack(outputs, -1), h


class TestSelectiveScan:
    @pytest.mark.parametrize("groups", [None, 1, 3])
    def test_recurrence(self, groups: int | None) -> None:
        u, delta, z, bias, skip = (
            normal(B, D, T),
            normal(B, D, T, seed=1),
            normal(B, D, T, seed=2),
            normal(D),
            normal(D, seed=3),
        )
        A = -normal(D, N, seed=4).exp()
        shape = (B, N, T) if groups is None else (B, groups, N, T)
        write, read = normal(*shape, seed=5), normal(*shape, seed=6)
        y, last = selective_scan_fn(u, delta, A, write, read, skip, z, bias, True, True)
        wide = [x.reshape(B, -1, N, T).repeat_interleave(D // (groups or 1), 1) for x in (write, read)]
        expected, state = scanned(u, F.softplus(delta + bias[:, None]), A, *wide)
        same(y, (expected + skip[:, None] * u) * F.silu(z))
        same(last, state)
        same(selective_scan_fn(u, delta.abs(), A, write, read), scanned(u, delta.abs(), A, *wide)[0])

    def test_gradients(self) -> None:
        u, delta, A = normal(1, 2, 5), normal(1, 2, 5, seed=1), -normal(2, 3, seed=4).exp()
        given = [
            u,
            delta,
            A,
            normal(1, 3, 5),
            normal(1, 3, 5, seed=2),
            normal(2),
            normal(1, 2, 5, seed=7),
            normal(2, seed=8),
        ]
        torch.autograd.gradcheck(
            lambda *x: selective_scan_fn(*x, delta_softplus=True), [x.requires_grad_() for x in given]
        )

    def test_refusals(self) -> None:
        u, A = normal(B, D, T), -normal(D, N).exp()
        with pytest.raises(NotImplementedError, match="A: expected real numbers"):
            selective_scan_fn(u, u, A.to(torch.complex128), normal(B, N, T), normal(B, N, T))
        with pytest.raises(NotImplementedError, match="B: expected one for each token"):
            selective_scan_fn(u, u, A, normal(D, N), normal(B, N, T))
        with pytest.raises(ValueError, match="C: 4 groups do not divide 6 channels"):
            selective_scan_fn(u, u, A, normal(B, N, T), normal(B, 4, N, T))
        with pytest.raises(TypeError, match="selective_scan_fn has no argument 'cu_seqlens'"):
            selective_scan_fn(u, u, A, normal(B, N, T), normal(B, N, T), cu_seqlens=None)

    @pytest.mark.parametrize("normed", [False, True])
    def test_with_all_around_it(self, normed: bool) -> None:
        rank, width = 3, 4
        xz, conv, conv_bias = normal(B, 2 * D, T), normal(D, 1, width, seed=1), normal(D, seed=2)
        x_proj, dt_proj, out_proj = normal(rank + 2 * N, D, seed=3), normal(D, rank, seed=4), normal(5, D, seed=5)
        A, skip, bias, out_bias = -normal(D, N, seed=6).exp(), normal(D), normal(D, seed=8), normal(5)
        weights = {"b_rms_weight": normal(N), "c_rms_weight": normal(N, seed=1), "dt_rms_weight": normal(D, seed=2)}
        y = mamba_inner_fn(
            *(xz, conv, conv_bias, x_proj, dt_proj, out_proj, out_bias, A),
            *(None, None, skip, bias),
            **(weights if normed else {}),
        )

        def norm(x: Tensor, name: str) -> Tensor:
            return F.rms_norm(x, x.shape[-1:], weights[name], 1e-6) if normed else x

        x, z = xz.chunk(2, 1)
        x = F.silu(F.conv1d(x, conv, conv_bias, padding=width - 1, groups=D)[..., :T])
        dt, write, read = F.linear(x.mT, x_proj).split([rank, N, N], -1)
        dt = F.softplus(norm(F.linear(dt, dt_proj), "dt_rms_weight") + bias).mT
        wide = [
            norm(part, name).mT[:, None].expand(B, D, N, T)
            for part, name in ((write, "b_rms_weight"), (read, "c_rms_weight"))
        ]
        inner = (scanned(x, dt, A, *wide)[0] + skip[:, None] * x) * F.silu(z)
        same(y, F.linear(inner.mT, out_proj, out_bias))


class TestStateUpdate:
    def test_a_token_of_channels(self) -> None:
        state, x, dt = normal(B, D, N), normal(B, D, seed=1), normal(B, D, seed=2)
        A, write, read = -normal(D, N, seed=3).exp(), normal(B, N, seed=4), normal(B, N, seed=5)
        skip, z, bias = normal(D), normal(B, D, seed=6), normal(D, seed=7)
        wide = [part[:, None, :, None].expand(B, D, N, 1) for part in (write, read)]
        expected, last = scanned(x[..., None], F.softplus(dt + bias)[..., None], A, *wide, state=state.clone())
        y = selective_state_update(state, x, dt, A, write, read, skip, z, bias, True)
        same(y, (expected[..., 0] + skip * x) * F.silu(z))
        same(state, last)

    def test_heads_in_groups_and_rows_of_a_larger_state(self) -> None:
        states, x, dt = normal(5, H, P, N), normal(B, H, P, seed=1), normal(B, H, P, seed=2).abs()
        A, write, read = -normal(H, P, N, seed=3).exp(), normal(B, G, N, seed=4), normal(B, G, N, seed=5)
        before, rows = states.clone(), torch.tensor([3, 1], dtype=torch.int32)
        y = selective_state_update(states, x, dt, A, write, read, state_batch_indices=rows)
        wide = [part.repeat_interleave(H // G, 1)[:, :, None].expand(B, H, P, N) for part in (write, read)]
        new = torch.exp(dt[..., None] * A) * before[[3, 1]] + dt[..., None] * wide[0] * x[..., None]
        same(y, (new * wide[1]).sum(-1))
        same(states[[3, 1]], new)
        assert torch.equal(states[[0, 2, 4]], before[[0, 2, 4]])

    def test_sixteen_bit_state_is_computed_in_float32(self) -> None:
        state, x = normal(B, D, N).bfloat16(), normal(B, D, seed=1).bfloat16()
        given = [x.abs(), -normal(D, N).exp().float(), normal(B, N).bfloat16(), normal(B, N, seed=2).bfloat16()]
        exact = state.double()
        expected = selective_state_update(exact, x.double(), *(part.double() for part in given))
        y = selective_state_update(state, x, *given)
        assert (y.dtype, state.dtype) == (torch.bfloat16, torch.bfloat16)
        same(y.double(), expected, close=2**-8)
        same(state.double(), exact, close=2**-8)

    def test_shapes_are_checked(self) -> None:
        with pytest.raises(ValueError, match=r"state: expected \[2, 6, N\] as x"):
            selective_state_update(normal(B, H, N), *[normal(B, D)] * 2, normal(D, N), normal(B, N), normal(B, N))
        with pytest.raises(ValueError, match="B: 3 groups do not divide 4 heads"):
            selective_state_update(
                normal(B, H, P, N), *[normal(B, H, P)] * 2, normal(H, P, N), normal(B, 3, N), normal(B, 1, N)
            )


def scanned_heads(
    x: Tensor, dt: Tensor, A: Tensor, write: Tensor, read: Tensor, first: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mamba-2's recurrence: x [B, T, H, P], dt [B, T, H], B and C [B, T, G, N], states [B, H, P, N]."""
    write, read = (part.repeat_interleave(H // part.shape[2], 2) for part in (write, read))
    h = torch.zeros(x.shape[0], H, x.shape[-1], write.shape[-1], dtype=x.dtype) if first is None else first
    outputs = []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t] * A)[..., None, None] * h
        h = h + (dt[:, t, :, None] * x[:, t])[..., None] * write[:, t, :, None]
        outputs.append((h * read[:, t, :, None]).sum(-1))
    return torch.stack(outputs, 1), h


class TestChunkScan:
    x, dt = normal(B, T, H, P), normal(B, T, H, seed=1)
    A, bias, skip = -normal(H, seed=2).exp(), normal(H, seed=3), normal(H, seed=4)
    write, read, z = normal(B, T, G, N, seed=5), normal(B, T, G, N, seed=6), normal(B, T, H, P, seed=7)
    first = normal(B, H, P, N, seed=8)

    def test_recurrence(self) -> None:
        limit = (0.3, 1.1)
        y, last = mamba_chunk_scan_combined(
            *(self.x, self.dt, self.A, self.write, self.read, 8, self.skip, self.z, self.bias, self.first),
            dt_softplus=True,
            dt_limit=limit,
            return_final_states=True,
        )
        step = F.softplus(self.dt + self.bias).clamp(*limit)
        expected, state = scanned_heads(self.x, step, self.A, self.write, self.read, self.first)
        same(y, (expected + self.skip[:, None] * self.x) * F.silu(self.z))
        same(last, state)

    def test_skip_of_each_channel(self) -> None:
        skip = normal(H, P)
        given = (self.x, self.dt.abs(), self.A, self.write, self.read)
        same(mamba_chunk_scan_combined(*given, 8, D=skip), scanned_heads(*given, None)[0] + skip * self.x)

    def test_sequences_of_a_row_are_apart(self) -> None:
        index = torch.tensor([[0] * 7 + [1] * 12, [4] * 3 + [5] + [2] * 15], dtype=torch.int32)
        given = (self.x, self.dt.abs(), self.A, self.write, self.read)
        y, last = mamba_chunk_scan_combined(
            *given, 8, initial_states=self.first, seq_idx=index, return_final_states=True
        )
        for row, bounds in enumerate(([0, 7, T], [0, 3, 4, T])):
            state = self.first[row : row + 1]
            for start, stop in pairwise(bounds):
                x, dt, write, read = (part[row : row + 1, start:stop] for part in (given[0], given[1], *given[3:]))
                expected, state = scanned_heads(x, dt, self.A, write, read, state)
                same(y[row : row + 1, start:stop], expected)
                last_state, state = state, None
            same(last[row : row + 1], last_state)

    def test_what_is_refused(self) -> None:
        with pytest.raises(NotImplementedError, match="return_varlen_states is not supported"):
            mamba_chunk_scan_combined(self.x, self.dt, self.A, self.write, self.read, 8, return_varlen_states=True)

    @pytest.mark.parametrize("before", [False, True])
    @pytest.mark.parametrize("normed", [False, True])
    @pytest.mark.parametrize("mlp", [0, 2])
    def test_with_all_around_it(self, normed: bool, before: bool, mlp: int) -> None:
        inner, convolved = H * P, H * P + 2 * G * N
        given = normal(B, T, 2 * mlp + inner + convolved + H)
        conv, conv_bias = normal(convolved, 4, seed=1), normal(convolved, seed=2)
        weight, out = normal(inner, seed=3), normal(5, mlp + inner, seed=4)
        y, last = mamba_split_conv1d_scan_combined(
            *(given, conv, conv_bias, self.bias, self.A, self.skip, 8),
            return_final_states=True,
            rmsnorm_weight=weight if normed else None,
            rmsnorm_eps=1e-3,
            outproj_weight=out,
            headdim=P,
            ngroups=G,
            norm_before_gate=before,
        )
        g, value, z, xBC, dt = given.split([mlp, mlp, inner, convolved, H], -1)
        xBC = F.silu(F.conv1d(xBC.mT, conv[:, None], conv_bias, padding=3, groups=convolved)[..., :T]).mT
        x, write, read = xBC.split([inner, G * N, G * N], -1)
        x = x.unflatten(-1, (H, P))
        wide = (part.unflatten(-1, (G, N)) for part in (write, read))
        expected, state = scanned_heads(x, F.softplus(dt + self.bias), self.A, *wide, None)
        expected = (expected + self.skip[:, None] * x).flatten(-2)
        if normed and before:
            expected = F.rms_norm(expected.unflatten(-1, (G, -1)), (inner // G,), None, 1e-3).flatten(-2) * weight
        expected = expected * F.silu(z)
        if normed and not before:
            expected = F.rms_norm(expected.unflatten(-1, (G, -1)), (inner // G,), None, 1e-3).flatten(-2) * weight
        same(y, F.linear(torch.cat([F.silu(g) * value, expected], -1), out))
        same(last, state)

    def test_columns_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match="headdim: expected a number"):
            mamba_split_conv1d_scan_combined(normal(B, T, 50), normal(28, 4), None, self.bias, self.A, self.skip, 8)
        with pytest.raises(ValueError, match="zxbcdt: 45 columns do not fit 4 heads of 3 and 2 groups"):
            mamba_split_conv1d_scan_combined(
                normal(B, T, 45), normal(28, 4), None, self.bias, self.A, self.skip, 8, headdim=P, ngroups=G
            )

    def test_norm_with_a_bias(self) -> None:
        x, weight, bias = normal(B, T, D), normal(D), normal(D, seed=1)
        same(rmsnorm_fn(x, weight, bias), F.rms_norm(x, (D,), weight, 1e-6) + bias)


class TestConvolution:
    W = 4
    x, weight, bias = normal(B, D, T), normal(D, W, seed=1), normal(D, seed=2)

    def convolved(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight[:, None], self.bias, padding=self.W - 1, groups=D)[..., : x.shape[-1]]

    @pytest.mark.parametrize("activation", [None, "silu", "swish"])
    def test_of_a_sequence(self, activation: str | None) -> None:
        expected = self.convolved(self.x)
        expected = expected if activation is None else F.silu(expected)
        same(causal_conv1d_fn(self.x, self.weight, self.bias, activation=activation), expected)

    def test_sequences_of_a_row_are_apart(self) -> None:
        index = torch.tensor([[0] * 7 + [1] * 2 + [2] * 10, [3] * T])
        y = causal_conv1d_fn(self.x, self.weight, self.bias, index)
        parts = [self.convolved(self.x[:1, :, start:stop]) for start, stop in ((0, 7), (7, 9), (9, T))]
        same(y, torch.cat([torch.cat(parts, -1), self.convolved(self.x[1:])]))

    @pytest.mark.parametrize("cut", [1, 2, 11])
    def test_goes_on_where_it_ended(self, cut: int) -> None:
        expected = self.convolved(self.x)
        y, state = causal_conv1d_fn(self.x[..., :cut], self.weight, self.bias, return_final_states=True)
        same(y, expected[..., :cut])
        held = torch.empty_like(state)
        rest, last = causal_conv1d_fn(
            self.x[..., cut:], self.weight, self.bias, None, state, True, final_states_out=held
        )
        same(rest, expected[..., cut:])
        assert last is held
        same(last, self.x[..., -3:])

    @pytest.mark.parametrize("length", [3, 4, 6])
    def test_a_token_at_a_time(self, length: int) -> None:
        state = torch.zeros(B, D, length, dtype=torch.float64)
        expected = F.silu(self.convolved(self.x))
        for t in range(5):
            y = causal_conv1d_update(self.x[..., t], state, self.weight, self.bias, "silu")
            same(y, expected[..., t])
        y = causal_conv1d_update(self.x[..., 5:12], state, self.weight, self.bias, "silu")
        same(y, expected[..., 5:12])
        same(state, self.x[..., 12 - length : 12])

    def test_rows_of_a_larger_state(self) -> None:
        states, rows = normal(5, D, 3), torch.tensor([4, 0])
        before = states.clone()
        own = before[rows]
        expected = causal_conv1d_update(self.x[..., 0], own, self.weight)
        same(causal_conv1d_update(self.x[..., 0], states, self.weight, conv_state_indices=rows), expected)
        same(states[rows], own)
        assert torch.equal(states[1:4], before[1:4])

    def test_refusals(self) -> None:
        with pytest.raises(NotImplementedError, match="activation: expected None, 'silu' or 'swish', got 'relu'"):
            causal_conv1d_fn(self.x, self.weight, activation="relu")
        with pytest.raises(NotImplementedError, match="causal_conv1d_update: cache_seqlens is not supported"):
            causal_conv1d_update(self.x, normal(B, D, 3), self.weight, cache_seqlens=torch.zeros(B))
        with pytest.raises(ValueError, match=r"expected x \[B, D, T\] and weight \[D, W\]"):
            causal_conv1d_fn(self.x.mT, self.weight)
        with pytest.raises(ValueError, match=r"conv_state: expected .* at least 3 inputs"):
            causal_conv1d_update(self.x, normal(B, D, 2), self.weight)
        with pytest.raises(ValueError, match="seq_idx: expected None together with"):
            causal_conv1d_fn(self.x, self.weight, seq_idx=torch.zeros(B, T), return_final_states=True)

    def test_sixteen_bits_are_summed_in_float32(self) -> None:
        y = causal_conv1d_fn(self.x.bfloat16(), self.weight.bfloat16(), self.bias.bfloat16())
        exact = causal_conv1d_fn(
            self.x.bfloat16().double(), self.weight.bfloat16().double(), self.bias.bfloat16().double()
        )
        assert y.dtype == torch.bfloat16
        same(y.double(), exact, close=2**-8)


SIGNATURES = {
    "causal_conv1d.causal_conv1d_fn": "x, weight, bias=None, seq_idx=None, initial_states=None, "
    "return_final_states=False, final_states_out=None, activation=None",
    "causal_conv1d.causal_conv1d_update": "x, conv_state, weight, bias=None, activation=None, cache_seqlens=None, "
    "conv_state_indices=None",
    "mamba_ssm.ops.selective_scan_interface.selective_scan_fn": "u, delta, A, B, C, D=None, z=None, delta_bias=None, "
    "delta_softplus=False, return_last_state=False",
    "mamba_ssm.ops.selective_scan_interface.mamba_inner_fn": "xz, conv1d_weight, conv1d_bias, x_proj_weight, "
    "delta_proj_weight, out_proj_weight, out_proj_bias, A, B=None, C=None, D=None, delta_bias=None, B_proj_bias=None, "
    "C_proj_bias=None, delta_softplus=True, checkpoint_lvl=1, b_rms_weight=None, c_rms_weight=None, "
    "dt_rms_weight=None, b_c_dt_rms_eps=1e-06",
    "mamba_ssm.ops.triton.selective_state_update.selective_state_update": "state, x, dt, A, B, C, D=None, z=None, "
    "dt_bias=None, dt_softplus=False, state_batch_indices=None",
    "mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined": "x, dt, A, B, C, chunk_size, D=None, z=None, "
    "dt_bias=None, initial_states=None, seq_idx=None, cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, inf), "
    "return_final_states=False, return_varlen_states=False",
    "mamba_ssm.ops.triton.ssd_combined.mamba_split_conv1d_scan_combined": "zxbcdt, conv1d_weight, conv1d_bias, "
    "dt_bias, A, D, chunk_size, initial_states=None, seq_idx=None, dt_limit=(0.0, inf), return_final_states=False, "
    "activation=silu, rmsnorm_weight=None, rmsnorm_eps=1e-06, outproj_weight=None, outproj_bias=None, headdim=None, "
    "ngroups=1, norm_before_gate=True",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_theirs(name: str) -> None:
    parameters = signature(function(name)).parameters.values()
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    written = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    assert ", ".join(written) == SIGNATURES[name]
