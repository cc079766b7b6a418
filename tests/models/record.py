"""What the peer's models are called and shaped like: data/state_dicts.json.

    python -m tests.models.record

Run once where flash-linear-attention 0.6.0 and transformers are installed; the tests read what it leaves.
"""

from __future__ import annotations

import json
from pathlib import Path

DATA = Path(__file__).parent / "data" / "state_dicts.json"

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 40}
HEADS = {"num_heads": 2}
CONFIGS = {
    "abc": [HEADS, {**HEADS, "use_short_conv": True, "tie_word_embeddings": True}],
    "comba": [{**HEADS, "head_dim": 16}],
    "cyclic_flow_attention": [{**HEADS, "head_dim": 16, "num_slots": 8}],
    "delta_net": [HEADS, {**HEADS, "use_gate": True, "expand_v": 2.0}],
    "gated_deltanet": [{**HEADS, "head_dim": 16}, {**HEADS, "head_dim": 16, "num_v_heads": 4, "use_gate": False}],
    "gated_deltaproduct": [
        {**HEADS, "head_dim": 16},
        {**HEADS, "head_dim": 16, "num_householder": 2, "use_forget_gate": True},
    ],
    "gla": [HEADS, {**HEADS, "num_kv_heads": 1, "use_short_conv": True, "hidden_ratio": 2}],
    "gsa": [{**HEADS, "num_slots": 8}, {**HEADS, "num_slots": 8, "num_kv_heads": 1}],
    "hgrn": [{}, {"expand_ratio": 2, "use_lower_bound": False}],
    "hgrn2": [{"expand_ratio": 16}, {"expand_ratio": 32, "use_short_conv": True}],
    "kda": [{**HEADS, "head_dim": 16}, {**HEADS, "head_dim": 16, "safe_gate": True, "lower_bound": -5.0}],
    "lightnet": [{"expand_ratio": 16, "gate_low_rank_dim": 8}],
    "linear_attn": [HEADS, {**HEADS, "feature_map": "hedgehog", "norm_q": True, "norm_k": True}],
    "log_linear_mamba2": [
        {"head_dim": 16, "state_size": 8},
        {"head_dim": 32, "state_size": 8, "n_groups": 2, "use_bias": True, "tie_word_embeddings": True},
    ],
    "mamba": [{}, {"state_size": 8, "use_bias": True}],
    "mamba2": [{"head_dim": 16, "state_size": 8, "chunk_size": 16}, {"head_dim": 16, "state_size": 8, "n_groups": 2}],
    "mamba3": [
        {"head_dim": 16, "state_size": 8},
        {"head_dim": 16, "state_size": 8, "n_groups": 2, "is_outproj_norm": True},
    ],
    "mesa_net": [{**HEADS, "head_dim": 16}, {**HEADS, "head_dim": 16, "use_output_gate": True}],
    "precond_gated_deltanet": [{**HEADS, "head_dim": 16}],
    "precond_kda": [{**HEADS, "head_dim": 16}],
    "retnet": [HEADS, {**HEADS, "num_kv_heads": 1, "intermediate_size": 48}],
    "rwkv6": [HEADS, {**HEADS, "norm_first": False, "hidden_ratio": 2.0}],
    "rwkv7": [{"head_dim": 16}, {"head_dim": 16, "norm_bias": False, "intermediate_size": 96}],
}
"""Small models of every family, by what their configs say beside SMALL."""


def recorded() -> list[dict[str, object]]:
    import fla.models  # noqa: F401
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    found: list[dict[str, object]] = []
    for model_type, variants in CONFIGS.items():
        for values in variants:
            config = AutoConfig.for_model(model_type, **(SMALL | values))
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
            tensors = {name: [list(x.shape), str(x.dtype)] for name, x in model.state_dict().items()}
            found.append({"config": config.to_dict(), "given": SMALL | values, "tensors": tensors})
    return found


if __name__ == "__main__":
    DATA.write_text(json.dumps(recorded(), indent=1, default=str) + "\n")
