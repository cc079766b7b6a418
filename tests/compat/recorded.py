"""The calls whose results fla.ops 0.6.0 gave are recorded in `fla_outputs.npz`; inputs come from seeds."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

T, H, HV, K, V = 70, 1, 2, 16, 16

QKV = {"q": (1, T, H, K), "k": (1, T, H, K), "v": (1, T, HV, V)}
EQUAL = {"q": (1, T, HV, K), "k": (1, T, HV, K), "v": (1, T, HV, V)}

CASES: dict[str, tuple[str, str, dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "gated delta rule, normed, with its gate": (
        "gated_delta_rule",
        "chunk_gated_delta_rule",
        QKV | {"g": (1, T, HV), "beta": (1, T, HV), "A_log": (HV,), "dt_bias": (HV,), "initial_state": (1, HV, V, K)},
        {
            "use_qk_l2norm_in_kernel": True,
            "use_gate_in_kernel": True,
            "use_beta_sigmoid_in_kernel": True,
            "allow_neg_eigval": True,
            "state_v_first": True,
            "output_final_state": True,
        },
    ),
    "gated delta rule, token by token": (
        "gated_delta_rule",
        "fused_recurrent_gated_delta_rule",
        QKV | {"g": (1, T, HV), "beta": (1, T, HV), "A_log": (HV,), "dt_bias": (HV,)},
        {"use_qk_l2norm_in_kernel": True, "use_gate_in_kernel": True, "use_beta_sigmoid_in_kernel": True},
    ),
    "kda above a lower bound": (
        "kda",
        "fused_recurrent_kda",
        QKV | {"g": (1, T, HV, K), "beta": (1, T, HV), "A_log": (HV,), "dt_bias": (HV * K,)},
        {
            "use_qk_l2norm_in_kernel": True,
            "use_gate_in_kernel": True,
            "use_beta_sigmoid_in_kernel": True,
            "lower_bound": -5.0,
            "output_final_state": True,
        },
    ),
    "gla from the last token to the first": (
        "gla",
        "fused_recurrent_gla",
        EQUAL | {"gk": (1, T, HV, K), "initial_state": (1, HV, K, V)},
        {"reverse": True, "output_final_state": True},
    ),
    "simple gla with a constant decay": (
        "simple_gla",
        "fused_recurrent_simple_gla",
        EQUAL | {"g": (1, T, HV), "g_gamma": (HV,)},
        {"output_final_state": True},
    ),
    "linear attention, normalized": (
        "linear_attn",
        "fused_recurrent_linear_attn",
        EQUAL,
        {"normalize": True, "output_final_state": True},
    ),
    "comba, p before v": (
        "comba",
        "fused_recurrent_comba",
        QKV | {"p": (1, T, H, K), "g": (1, T, HV), "beta": (1, T, HV)},
        {"use_qk_l2norm_in_kernel": True, "output_final_state": True},
    ),
    "momentum, of keys": (
        "momentum_delta_rule",
        "fused_recurrent_momentum_delta_rule",
        EQUAL | dict.fromkeys(("log_alpha", "log_mu"), (1, T, HV)) | {"initial_state": (2, 1, HV, K, V)},
        {"output_final_state": True},
    ),
    "momentum, of keys apart": (
        "momentum_delta_rule",
        "fused_recurrent_momentum_delta_rule",
        EQUAL | {"p": (1, T, HV, K)} | dict.fromkeys(("log_alpha", "log_mu", "beta", "eta"), (1, T, HV)),
        {"use_p_times_alpha": False, "scale": 0.5, "output_final_state": True},
    ),
    "based": ("based", "parallel_based", EQUAL, {}),
    "rebased, with what divides it": ("rebased", "parallel_rebased", EQUAL, {"return_both": True}),
    "mesa, eliminated": (
        "mesa_net",
        "naive_mesa_net_exact",
        EQUAL | {"g": (1, T, HV), "beta": (1, T, HV), "lamb": (HV, K), "h_kv_init": (1, HV, K, V)},
        {},
    ),
    "ttt, of whole mini-batches": (
        "ttt",
        "chunk_ttt_linear",
        dict.fromkeys(("q", "k", "v"), (1, 64, HV, K))
        | {"w": (HV, K), "b": (HV, K), "eta": (1, 64, HV, 1)}
        | {"initial_state": (1, HV, K, K), "initial_state_bias": (1, HV, 1, K)},
        {"output_final_state": True},
    ),
    "levels": (
        "log_linear_attn",
        "naive_log_linear_attn",
        EQUAL | {"g": (1, T, HV), "level_scales": (1, T, HV, 8)},
        {},
    ),
    "slots on a circle": (
        "cyfa",
        "naive_recurrent_cyfa",
        EQUAL
        | dict.fromkeys(("g", "delta", "beta"), (1, T, HV))
        | {"readout": (HV, 5, 5), "q_norm_weight": (K,), "k_norm_weight": (K,)},
        {"q_norm_eps": 1e-5, "k_norm_eps": 1e-3, "output_final_state": True},
    ),
    "rwkv7 with its own defaults": (
        "rwkv7",
        "fused_mul_recurrent_rwkv7",
        dict.fromkeys(("r", "w", "k", "v", "kk", "a"), (1, T, HV, K)),
        {"output_final_state": True},
    ),
    "rwkv6": (
        "rwkv6",
        "fused_recurrent_rwkv6",
        {"r": (1, T, HV, K), "k": (1, T, HV, K), "v": (1, T, HV, V), "w": (1, T, HV, K), "u": (HV, K)},
        {"output_final_state": True},
    ),
    "hgrn": ("hgrn", "fused_recurrent_hgrn", {"x": (1, T, 32), "g": (1, T, 32)}, {"output_final_state": True}),
    "preconditioned kda": (
        "precond_kda",
        "fused_recurrent_precond_kda",
        EQUAL | {"g": (1, T, HV, K), "beta": (1, T, HV), "g_atk": (1, T, HV), "beta_atk": (1, T, HV)},
        {"output_final_state": True, "log_atk_scale": torch.tensor([-0.2, 0.3])},
    ),
    "oja": (
        "gated_oja_rule",
        "fused_recurrent_gated_oja_rule",
        EQUAL | {"gv": (1, T, HV, V), "beta": (1, T, HV)},
        {"use_q_l2norm": True, "use_k_l2norm": True, "output_final_state": True},
    ),
}

LOG_DECAYS = {"g", "gk", "gv", "w", "g_gamma", "g_atk", "log_alpha", "log_mu"}
WEIGHTS = {"beta", "beta_atk", "a", "eta"}
POSITIVE = {"lamb"}
FEATURES = "linear attention, normalized"


def inputs(case: str) -> dict[str, Tensor]:
    """The arguments of a case, float32."""
    _, _, shapes, options = CASES[case]
    given = {}
    for name, shape in shapes.items():
        x = np.random.default_rng(crc32(f"{case} {name}".encode())).standard_normal(shape)
        if name in LOG_DECAYS and not options.get("use_gate_in_kernel"):
            x = -0.2 * abs(x)
        elif name in WEIGHTS and not options.get("use_beta_sigmoid_in_kernel"):
            x = 1 / (1 + np.exp(-x))
        elif name in POSITIVE:
            x = 0.25 + abs(x)
        elif name == "kk":
            x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        elif case == FEATURES and name in ("q", "k"):
            x = abs(x)
        given[name] = torch.from_numpy(x.astype(np.float32))
    return given
