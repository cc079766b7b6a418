"""What the adaptations hand to kernels: views of all kinds, and options; against the PyTorch forms of the same."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

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


@pytest.mark.usefixtures("interpreter")
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
