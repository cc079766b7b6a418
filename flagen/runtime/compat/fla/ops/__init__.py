"""The functions of fla.ops 0.6.0 that there is a recurrence for, each imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

FUNCTIONS = {
    "abc": ["chunk_abc"],
    "based": ["fused_chunk_based", "parallel_based"],
    "comba": ["chunk_comba", "fused_recurrent_comba"],
    "cyfa": ["chunk_cyfa", "fused_recurrent_cyfa"],
    "delta_rule": ["chunk_delta_rule", "fused_chunk_delta_rule", "fused_recurrent_delta_rule"],
    "gated_delta_rule": [
        "chunk_gated_delta_rule",
        "chunk_gdn",
        "fused_recurrent_gated_delta_rule",
        "fused_recurrent_gdn",
    ],
    "generalized_delta_rule": [
        "chunk_dplr_delta_rule",
        "chunk_iplr_delta_rule",
        "fused_recurrent_dplr_delta_rule",
        "fused_recurrent_iplr_delta_rule",
    ],
    "gla": ["chunk_gla", "fused_chunk_gla", "fused_recurrent_gla"],
    "gsa": ["chunk_gsa", "fused_recurrent_gsa"],
    "hgrn": ["fused_recurrent_hgrn"],
    "kda": ["chunk_kda", "fused_recurrent_kda"],
    "lightning_attn": ["chunk_lightning_attn", "fused_recurrent_lightning_attn"],
    "linear_attn": ["chunk_linear_attn", "fused_chunk_linear_attn", "fused_recurrent_linear_attn"],
    "log_linear_attn": ["chunk_log_linear_attn"],
    "mesa_net": ["chunk_mesa_net"],
    "momentum_delta_rule": ["chunk_momentum_delta_rule", "fused_recurrent_momentum_delta_rule"],
    "precond_gated_delta_rule": ["chunk_precond_gated_delta_rule", "fused_recurrent_precond_gated_delta_rule"],
    "precond_kda": ["chunk_precond_kda", "fused_recurrent_precond_kda"],
    "retention": ["chunk_retention", "fused_chunk_retention", "fused_recurrent_retention", "parallel_retention"],
    "rwkv6": ["chunk_rwkv6", "fused_recurrent_rwkv6"],
    "rwkv7": ["chunk_rwkv7", "fused_recurrent_rwkv7"],
    "simple_gla": ["chunk_simple_gla", "fused_chunk_simple_gla", "fused_recurrent_simple_gla", "parallel_simple_gla"],
}
"""What fla.ops itself exports; the other modules, such as `fla.ops.gdn2`, are imported by their own names."""

PLACES = {function: module for module, functions in FUNCTIONS.items() for function in functions}

__all__ = sorted(PLACES)


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"fla.ops has no {name!r} here: there is no recurrence for it, or it is in a module below")
    return getattr(import_module(f".{PLACES[name]}", __name__), name)
