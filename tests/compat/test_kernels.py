"""What the adaptations hand to kernels: views of all kinds, and options; against the PyTorch forms of the same."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiers import exhaustive

T, H, HV, K, V = 20, 1, 2, 16, 16


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decay(*shape: int) -> Tensor:
    return -0.2 * normal(*shape).abs()


def function(name: str) -> Callable[..., Any]:
    module, _, own = name.rpartition(".")
    found: Callable[..., Any] = getattr(import_module(f"generated.compat.{module}"), own)
    return found


QKV = (normal(1, T, H, K), normal(1, T, H, K, seed=1), normal(1, T, HV, V, seed=2))
BETA = normal(1, T, HV, seed=3)

CASES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "a constant decay, expanded": (
        "fla.ops.simple_gla.chunk_simple_gla",
        QKV,
        {"g_gamma": decay(HV), "initial_state": normal(1, HV, V, K), "state_v_first": True, "output_final_state": True},
    ),
    "norms, gates and kept states": (
        "fla.ops.kda.chunk_kda",
        (*QKV, normal(1, T, HV, K), BETA),
        {
            "use_qk_l2norm_in_kernel": True,
            "use_gate_in_kernel": True,
            "A_log": normal(HV),
            "use_beta_sigmoid_in_kernel": True,
            "disable_recompute": True,
        },
    ),
    "momentum, and its two states": (
        "fla.ops.momentum_delta_rule.chunk_momentum_delta_rule",
        (*QKV, decay(1, T, HV), decay(1, T, HV)),
        {"beta": BETA.sigmoid(), "initial_state": normal(2, 1, HV, K, V), "output_final_state": True},
    ),
    "values and ones, for pairs of keys": (
        "fla.ops.rebased.parallel_rebased",
        QKV,
        {"return_both": True},
    ),
    "a model before its first token": (
        "fla.ops.ttt.chunk_ttt_linear",
        (*QKV, 1 + 0.2 * normal(HV, K), normal(HV, K, seed=1), 0.1 * BETA.sigmoid()[..., None]),
        {"chunk_size": 8, "initial_state": 0.1 * normal(1, HV, K, K), "output_final_state": True},
    ),
    "reversed sequences": (
        "fla.ops.gla.fused_recurrent_gla",
        (*QKV, decay(1, T, HV, K)),
        {"reverse": True, "cu_seqlens": torch.tensor([0, 7, 7, T]), "output_final_state": True},
    ),
    "channels before tokens": (
        "mamba_ssm.ops.selective_scan_interface.selective_scan_fn",
        (normal(1, 8, T), normal(1, 8, T, seed=1), -normal(8, 4).exp(), normal(1, 2, 4, T), normal(1, 2, 4, T, seed=2)),
        {"D": normal(8), "z": normal(1, 8, T, seed=4), "delta_softplus": True, "return_last_state": True},
    ),
    "parts of a projection": (
        "mamba_ssm.ops.triton.ssd_combined.mamba_split_conv1d_scan_combined",
        (normal(1, T, 32 + 64 + 2), normal(64, 4), None, normal(2), -normal(2).exp(), normal(2, seed=1), 16),
        {"headdim": 16, "return_final_states": True, "seq_idx": torch.tensor([[0] * 9 + [1] * 11])},
    ),
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("case", CASES)
def test_kernels_get_what_the_pytorch_forms_get(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, given, options = CASES[case]
    run = function(name)
    found = run(*given, **options)
    monkeypatch.delenv("TRITON_INTERPRET")
    expected = run(*given, **options)
    for x, y in zip(found, expected, strict=True):
        if y is None:
            assert x is None
        else:
            assert (x - y).abs().max() < 1e-5 * y.abs().max()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("kind", ["chunk", "fused_recurrent"])
def test_sixteen_bits_and_float32_together(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = function(f"fla.ops.gated_delta_rule.{kind}_gated_delta_rule")
    q, k, v = (x.bfloat16() for x in QKV)
    options = {
        "g": normal(1, T, HV),
        "beta": BETA.bfloat16(),
        "use_qk_l2norm_in_kernel": True,
        "use_gate_in_kernel": True,
        "A_log": normal(HV),
        "use_beta_sigmoid_in_kernel": True,
        "output_final_state": True,
    }
    found = run(q, k, v, **options)
    assert [x.dtype for x in found] == [torch.bfloat16, torch.float32]
    monkeypatch.delenv("TRITON_INTERPRET")
    wide = {name: x.double() if isinstance(x, Tensor) else x for name, x in options.items()}
    for x, y in zip(found, run(q.double(), k.double(), v.double(), **wide), strict=True):
        assert (x.double() - y).abs().max() < 2**-6 * y.abs().max()


@exhaustive
@pytest.mark.parametrize("name", ["fla.ops.kda.chunk_kda", "fla.ops.kda.fused_recurrent_kda"])
def test_traces_as_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    run = function(name)
    given = (*QKV, decay(1, T, HV, K), BETA)
    options = {"use_qk_l2norm_in_kernel": True, "state_v_first": True, "output_final_state": True}
    found = torch.compile(run, fullgraph=True, backend="eager")(*given, **options)
    for x, y in zip(found, run(*given, **options), strict=True):
        assert (x - y).abs().max() < 1e-5 * y.abs().max()
