"""Tiny models of transformers, run in a process of their own: `python -m tests.compat.client own|drop_in RESULTS`.

`own` leaves transformers its PyTorch functions, `drop_in` calls as_fla first. What comes out is saved by model and
name; a model that fails leaves its error.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Results = dict[str, Tensor]

TOKENS, PROMPT = 70, 60
"""More than a chunk; and how many of them are read before the others are decoded."""
LENGTHS = (20, 1, 33)
"""Of packed sequences."""
VOCABULARY = 97

COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "pad_token_id": 0}


def qwen3_next() -> torch.nn.Module:
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    heads = {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
    widths = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "head_dim": 16}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return Qwen3NextForCausalLM(
        Qwen3NextConfig(
            **COMMON,
            **heads,
            **widths,
            **experts,
            intermediate_size=48,
            shared_expert_intermediate_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


def kimi_linear() -> torch.nn.Module:
    from transformers.models.kimi_linear import KimiLinearConfig, KimiLinearForCausalLM

    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    latent = {"kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    return KimiLinearForCausalLM(
        KimiLinearConfig(
            **COMMON,
            **experts,
            **latent,
            intermediate_size=48,
            moe_intermediate_size=16,
            num_hidden_layers=2,
            layer_types=["linear_attention", "full_attention"],
            num_attention_heads=2,
            num_key_value_heads=2,
            linear_num_heads=2,
            linear_head_dim=16,
            first_k_dense_replace=1,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def mamba2() -> torch.nn.Module:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    sizes = {"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 2, "chunk_size": 16}
    return Mamba2ForCausalLM(Mamba2Config(**COMMON, **sizes, num_hidden_layers=2, expand=2))


def bamba() -> torch.nn.Module:
    from transformers import BambaConfig, BambaForCausalLM

    sizes = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_n_groups": 2, "mamba_chunk_size": 16}
    return BambaForCausalLM(
        BambaConfig(
            **COMMON,
            **sizes,
            intermediate_size=48,
            num_hidden_layers=2,
            attn_layer_indices=[1],
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


def mamba() -> torch.nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(**COMMON, state_size=8, num_hidden_layers=2))


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "qwen3_next": qwen3_next,
    "kimi_linear": kimi_linear,
    "mamba2": mamba2,
    "bamba": bamba,
    "mamba": mamba,
}
PACKED = ("qwen3_next", "bamba", "mamba2")
"""The models that hand the bounds of packed sequences on to their operators."""


def run(name: str, drop_in: bool) -> Results:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():  # What starts as zeros or ones is to count, too.
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    ids = torch.randint(3, VOCABULARY, (2, TOKENS), generator=noise)
    results: Results = {}
    with torch.no_grad():
        results["logits"] = model(ids, use_cache=False).logits
        mask = torch.ones_like(ids)
        mask[1, :20] = 0
        results["left padding"] = model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
        results["decoding"] = _decoded(model, ids)
        if name in PACKED:
            # Mamba2ForCausalLM hands nothing on to the model it is made of.
            inner = model.get_submodule("backbone") if name == "mamba2" else model
            results["packed"] = _packed(inner, ids[:1, : sum(LENGTHS)], together=drop_in)
    model.train()
    ids = ids[:, :33]
    model(ids, labels=ids, use_cache=False).loss.backward()
    gradients = {place: p.grad for place, p in model.named_parameters() if p.grad is not None}
    return results | {f"gradient of {place}": gradient for place, gradient in gradients.items()}


def _decoded(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """The logits of a prompt and of the tokens after it, one at a time."""
    step = model(ids[:, :PROMPT], use_cache=True)
    logits = [step.logits]
    for place in range(PROMPT, TOKENS):
        cache = step["cache"] if "cache" in step else step["past_key_values"]
        step = model(ids[:, place : place + 1], cache=cache, use_cache=True)
        logits.append(step.logits)
    return torch.cat(logits, dim=1)


def _packed(model: torch.nn.Module, ids: Tensor, together: bool) -> Tensor:
    """What comes of sequences in one row; or of one after another, for transformers' own functions cannot pack."""
    if not together:
        return torch.cat([model(own, use_cache=False)[0] for own in ids.split(LENGTHS, dim=1)], dim=1)
    lengths = torch.tensor(LENGTHS)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return model(
        ids,
        use_cache=False,
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        seq_idx=torch.arange(len(LENGTHS)).repeat_interleave(lengths)[None].to(torch.int32),
        cu_seq_lens_q=offsets,
        cu_seq_lens_k=offsets,
        max_length_q=max(LENGTHS),
        max_length_k=max(LENGTHS),
    )[0]


def main(mode: str, path: str) -> None:
    if mode == "drop_in":
        import generated.compat

        generated.compat.as_fla()
    else:  # Where the real packages are installed, they are not what is compared with.
        sys.modules.update(dict.fromkeys(("fla", "mamba_ssm", "causal_conv1d")))  # type: ignore[arg-type]
    torch.set_num_threads(1)
    found: dict[str, Results | str] = {}
    for name in MODELS:
        try:
            found[name] = run(name, mode == "drop_in")
        except Exception:
            found[name] = traceback.format_exc()
    torch.save({"models": found, "taken": _taken(), "available": _available()}, Path(path))


def _taken() -> list[str]:
    """The modules of the three packages that have been imported."""
    roots = ("fla", "mamba_ssm", "causal_conv1d")
    return sorted(name for name, module in sys.modules.items() if module and name.partition(".")[0] in roots)


def _available() -> dict[str, bool]:
    """What transformers says of the packages, on a machine that has a GPU."""
    from unittest import mock

    from transformers.utils import import_utils

    checks = ("flash_linear_attention", "mamba_ssm", "mamba_2_ssm", "causal_conv1d")
    with mock.patch.object(import_utils, "is_torch_cuda_available", lambda: True):
        return {name: getattr(import_utils, f"is_{name}_available").__wrapped__() for name in checks}


if __name__ == "__main__":
    main(*sys.argv[1:])
