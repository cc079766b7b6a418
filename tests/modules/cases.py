"""Small, seeded calls of modules and functions, which record.py makes of the peer and test_peer_values.py of ours."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One call: of the class or function `attribute` of `module`, with float inputs by shape and other keywords."""

    name: str
    module: str
    attribute: str
    inputs: Mapping[str, tuple[int, ...]]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    init: Mapping[str, Any] | None = None
    no_gradient: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    backward: bool = True


def numbers(seed: int, shape: tuple[int, ...]) -> Tensor:
    """float64, from a generator whose stream is frozen."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def as_array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)).numpy()


def built(case: Case, package: str, dtype: torch.dtype) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """What is called, and the parameters it has, filled with seeded numbers."""
    found = getattr(importlib.import_module(f"{package}.{case.module}"), case.attribute)
    if case.init is None:
        return found, {}
    module: nn.Module = found(**case.init)
    module = module.to(torch.promote_types(torch.float32, dtype))
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for seed, parameter in enumerate(parameters.values()):
            if parameter.requires_grad:
                ones = bool((parameter == 1).all())
                parameter.copy_(ones + 0.3 * numbers(100 + seed, tuple(parameter.shape)))
    return module, {name: p for name, p in parameters.items() if p.requires_grad}


def run(case: Case, package: str, dtype: torch.dtype | None = None) -> tuple[Values, list[str]]:
    """Outputs and gradients of a case, by name, and the dtypes of the outputs."""
    dtype = dtype or case.dtype
    call, parameters = built(case, package, dtype)
    given = {
        name: numbers(seed, shape).to(case.dtype).to(dtype) for seed, (name, shape) in enumerate(case.inputs.items())
    }
    leaves = {name: tensor.requires_grad_() for name, tensor in given.items() if name not in case.no_gradient}
    # A clone, as some of the peer's functions write into what they are given.
    arguments = {name: tensor.clone() for name, tensor in given.items()}
    with torch.set_grad_enabled(case.backward):
        out = call(**arguments, **case.keywords)
    outputs = [tensor for tensor in (out if isinstance(out, tuple | list) else [out]) if tensor is not None]
    values = {f"out{i}": as_array(tensor) for i, tensor in enumerate(outputs)}
    roots = [tensor for tensor in outputs if tensor.requires_grad]
    weights = [numbers(50 + i, tuple(tensor.shape)).to(tensor.dtype) for i, tensor in enumerate(roots)]
    if roots:
        torch.autograd.backward(roots, weights)
    sinks = {**leaves, **{f"parameter {name}": parameter for name, parameter in parameters.items()}}
    values |= {f"gradient of {name}": as_array(sink.grad) for name, sink in sinks.items() if sink.grad is not None}
    return values, [str(tensor.dtype) for tensor in outputs]


def state(case: Case, package: str) -> list[str]:
    """The state_dict of a case's module, an entry a line."""
    found = getattr(importlib.import_module(f"{package}.{case.module}"), case.attribute)
    entries = {} if case.init is None else found(**case.init).state_dict()
    return [f"{name} {list(tensor.shape)} {tensor.dtype}" for name, tensor in entries.items()]


def norms() -> list[Case]:
    found = []
    x = {"x": (2, 3, 12)}
    both = {**x, "residual": (2, 3, 12)}
    gated = {**x, "g": (2, 3, 12)}
    for kind in ("LayerNorm", "RMSNorm"):
        init = {"hidden_size": 12, "bias": True}
        found += [
            Case(kind, "layernorm", kind, x, init=init),
            Case(f"{kind} without affine", "layernorm", kind, x, init={"hidden_size": 12, "elementwise_affine": False}),
            Case(f"{kind} residual", "layernorm", kind, both, {"prenorm": True}, init),
            Case(f"{kind} bf16", "layernorm", kind, both, {"prenorm": True}, init, dtype=torch.bfloat16),
            Case(
                f"{kind} bf16, sum in float32",
                "layernorm",
                kind,
                x,
                {"prenorm": True, "residual_in_fp32": True},
                init,
                dtype=torch.bfloat16,
            ),
            Case(f"{kind}Linear", "layernorm", f"{kind}Linear", {**x, "weight": (5, 12), "bias": (5,)}, init=init),
            Case(
                f"{kind}Linear residual",
                "layernorm",
                f"{kind}Linear",
                {**x, "weight": (5, 12), "bias": (5,), "residual": (2, 3, 12)},
                {"prenorm": True},
                init,
            ),
        ]
    for rms in (False, True):
        init = {"num_groups": 3, "hidden_size": 12, "bias": True, "is_rms_norm": rms}
        found += [
            Case(f"GroupNorm rms={rms}", "layernorm", "GroupNorm", both, {"prenorm": True}, init),
            Case(f"GroupNorm rms={rms} bf16", "layernorm", "GroupNorm", x, {}, init, dtype=torch.bfloat16),
            Case(
                f"GroupNormLinear rms={rms}",
                "layernorm",
                "GroupNormLinear",
                {**x, "weight": (5, 12), "bias": (5,)},
                {},
                init,
            ),
        ]
    for kind in ("LayerNorm", "RMSNorm"):
        init = {"hidden_size": 12, "bias": True} if kind == "LayerNorm" else {"hidden_size": 12}
        for activation in ("swish", "sigmoid"):
            kwargs = {**init, "activation": activation}
            name = f"Fused{kind}Gated"
            found += [
                Case(f"{name} {activation}", "fused_norm_gate", name, gated, init=kwargs),
                Case(
                    f"{name} {activation} residual",
                    "fused_norm_gate",
                    name,
                    {**gated, "residual": (2, 3, 12)},
                    {"prenorm": True},
                    kwargs,
                ),
                Case(f"{name} {activation} bf16", "fused_norm_gate", name, gated, init=kwargs, dtype=torch.bfloat16),
            ]
        found += [
            Case(f"Fused{kind}SwishGate", "fused_norm_gate", f"Fused{kind}SwishGate", gated, init=init),
            Case(
                f"Fused{kind}SwishGateLinear",
                "fused_norm_gate",
                f"Fused{kind}SwishGateLinear",
                {**gated, "weight": (5, 12), "bias": (5,)},
                init={"hidden_size": 12},
            ),
        ]
    for name in ("LayerNormGated", "RMSNormGated"):
        for before in (False, True):
            init = {"hidden_size": 12, "group_size": 4, "norm_before_gate": before}
            found.append(Case(f"{name} before={before}", "layernorm_gated", name, {**x, "z": (2, 3, 12)}, init=init))
        found.append(Case(f"{name} no gate", "layernorm_gated", name, x, init={"hidden_size": 12}))
        found.append(
            Case(
                f"{name} bf16",
                "layernorm_gated",
                name,
                {**x, "z": (2, 3, 12)},
                init={"hidden_size": 12},
                dtype=torch.bfloat16,
            )
        )
    found += [
        Case("l2norm", "l2norm", "l2norm", x),
        Case("l2norm bf16", "l2norm", "l2norm", x, dtype=torch.bfloat16),
        Case("l2norm bf16 to float32", "l2norm", "l2norm", x, {"output_dtype": torch.float32}, dtype=torch.bfloat16),
    ]
    return found


def activations() -> list[Case]:
    x, two = {"x": (2, 3, 8)}, {"x": (2, 3, 8), "y": (2, 3, 8)}
    linear = {**two, "weight": (5, 8), "bias": (5,)}
    found = [
        Case("logsigmoid", "activations", "logsigmoid", x, {"temperature": 16.0}),
        Case("elu_p1", "activations", "elu_p1", x),
        Case("powglu", "activations", "powglu", two),
        Case("powglu 2.5", "activations", "powglu", two, {"power": 2.5}),
        Case("powglu_linear", "activations", "powglu_linear", linear),
        Case("swiglu_linear", "activations", "swiglu_linear", linear),
        Case("powglu bf16", "activations", "powglu", two, dtype=torch.bfloat16),
        Case("logsigmoid bf16", "activations", "logsigmoid", x, {"temperature": 16.0}, dtype=torch.bfloat16),
        Case("elu_p1 bf16", "activations", "elu_p1", x, dtype=torch.bfloat16),
        Case("MLP", "mlp", "GatedMLP", {"x": (2, 3, 16)}, init={"hidden_size": 16, "intermediate_size": 24}),
        Case(
            "MLP not fused",
            "mlp",
            "GatedMLP",
            {"x": (2, 3, 16)},
            init={"hidden_size": 16, "intermediate_size": 24, "fuse_swiglu": False},
        ),
        Case(
            "MLP powlu",
            "mlp",
            "GatedMLP",
            {"x": (2, 3, 16)},
            init={"hidden_size": 16, "intermediate_size": 24, "hidden_act": "powlu", "powglu_power": 2.5},
        ),
    ]
    return found


def convolutions() -> list[Case]:
    x = {"x": (2, 7, 6)}
    init = {"hidden_size": 6, "kernel_size": 4, "bias": True}
    bounds = torch.tensor([0, 3, 4, 11])
    packed = {"cu_seqlens": bounds, "output_final_state": True}
    found = [
        Case("conv", "convolution", "ShortConvolution", x, {}, init),
        Case("conv state", "convolution", "ShortConvolution", x, {"output_final_state": True}, init, backward=False),
        Case(
            "conv plain",
            "convolution",
            "ShortConvolution",
            x,
            {},
            {"hidden_size": 6, "kernel_size": 3, "activation": None},
        ),
        Case(
            "conv cache",
            "convolution",
            "ShortConvolution",
            {**x, "cache": (2, 6, 4)},
            {"output_final_state": True},
            init,
            backward=False,
        ),
        Case("conv residual", "convolution", "ShortConvolution", {**x, "residual": (2, 7, 6)}, {}, init),
        Case(
            "conv mask",
            "convolution",
            "ShortConvolution",
            x,
            {"mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]])},
            init,
        ),
        Case("conv packed", "convolution", "ShortConvolution", {"x": (1, 11, 6)}, {"cu_seqlens": bounds}, init),
        Case(
            "conv packed cache",
            "convolution",
            "ShortConvolution",
            {"x": (1, 11, 6), "cache": (3, 6, 4)},
            packed,
            init,
            backward=False,
        ),
        Case(
            "conv bf16",
            "convolution",
            "ShortConvolution",
            {**x, "cache": (2, 6, 4)},
            {"output_final_state": True},
            init,
            dtype=torch.bfloat16,
            backward=False,
        ),
        Case(
            "conv short of a window",
            "convolution",
            "ShortConvolution",
            {"x": (2, 2, 6), "cache": (2, 6, 4)},
            {"output_final_state": True},
            init,
            backward=False,
        ),
        Case(
            "update",
            "convolution",
            "causal_conv1d_update",
            {"x": (3, 6), "cache": (3, 6, 4), "weight": (6, 4), "bias": (6,)},
            {"activation": "silu"},
            backward=False,
        ),
        Case("long conv", "convolution", "LongConvolution", x, {}, {"hidden_size": 6, "max_len": 7}),
        Case("implicit long conv", "convolution", "ImplicitLongConvolution", x, {}, {"hidden_size": 6, "max_len": 9}),
        Case("shift", "token_shift", "token_shift", x, {"output_cache": True}),
        Case(
            "shift cache",
            "token_shift",
            "token_shift",
            {**x, "cache": (2, 6)},
            {"output_cache": True},
            no_gradient=("cache",),
        ),
        Case(
            "shift packed",
            "token_shift",
            "token_shift",
            {"x": (1, 11, 6), "cache": (3, 6)},
            {"cu_seqlens": bounds, "output_cache": True},
        ),
        Case(
            "shift bf16",
            "token_shift",
            "token_shift",
            {**x, "cache": (2, 6)},
            {"output_cache": True},
            no_gradient=("cache",),
            dtype=torch.bfloat16,
        ),
    ]
    return found


def rotary() -> list[Case]:
    qk = {"q": (2, 5, 2, 10), "k": (2, 5, 1, 10)}
    packed = {"q": (1, 11, 2, 10), "k": (1, 11, 1, 10)}
    bounds = torch.tensor([0, 3, 4, 11])
    found = []
    for interleaved in (False, True):
        init = {"dim": 8, "interleaved": interleaved}
        found += [
            Case(f"rotary interleaved={interleaved}", "rotary", "RotaryEmbedding", qk, init=init),
            Case(
                f"rotary interleaved={interleaved} offset", "rotary", "RotaryEmbedding", qk, {"seqlen_offset": 3}, init
            ),
            Case(
                f"rotary interleaved={interleaved} offsets",
                "rotary",
                "RotaryEmbedding",
                qk,
                {"seqlen_offset": torch.tensor([2, -3]), "max_seqlen": 16},
                init,
            ),
            Case(
                f"rotary interleaved={interleaved} packed",
                "rotary",
                "RotaryEmbedding",
                packed,
                {"cu_seqlens": bounds, "max_seqlen": 11},
                init,
            ),
            Case(
                f"rotary interleaved={interleaved} packed, offsets",
                "rotary",
                "RotaryEmbedding",
                packed,
                {"cu_seqlens": bounds, "seqlen_offset": torch.tensor([5, 0, 2]), "max_seqlen": 16},
                init,
            ),
            Case(
                f"rotary interleaved={interleaved} xpos",
                "rotary",
                "RotaryEmbedding",
                qk,
                {"seqlen_offset": 3},
                {**init, "scale_base": 512.0},
            ),
            Case(
                f"rotary interleaved={interleaved} bf16",
                "rotary",
                "RotaryEmbedding",
                qk,
                {"seqlen_offset": 300},
                init,
                dtype=torch.bfloat16,
            ),
        ]
    return found


def feature_maps() -> list[Case]:
    x = {"x": (2, 3, 8)}
    inits: dict[str, list[dict[str, Any]]] = {
        "HedgehogFeatureMap": [{"head_dim": 8}],
        "T2RFeatureMap": [{"head_dim": 8}, {"head_dim": 8, "dot_dim": 5, "bias": True}],
        "DPFPFeatureMap": [{"head_dim": 8}, {"head_dim": 8, "nu": 2}],
        "HadamardFeatureMap": [{"head_dim": 8}],
        "LearnableOuterProductFeatureMap": [{"head_dim": 8, "feature_dim": 4}],
        "LearnablePolySketchNonNegativeFeatureMap": [{"head_dim": 8}, {"head_dim": 8, "sketch_size": 4, "degree": 8}],
        "TaylorFeatureMap": [{"head_dim": 8}],
        "RebasedFeatureMap": [
            {"head_dim": 8},
            {"head_dim": 8, "use_beta": False},
            {"head_dim": 8, "normalize": False},
            {"head_dim": 8, "normalize": False, "use_beta": False},
        ],
        "ReLUFeatureMap": [{}],
        "SquaredReLUFeatureMap": [{}],
        "GELUFeatureMap": [{}],
        "SwishFeatureMap": [{}],
        "SigmoidFeatureMap": [{}],
    }
    return [
        Case(f"{name} {init}", "feature_map", name, x, init=init) for name, all_of in inits.items() for init in all_of
    ]


def losses() -> list[Case]:
    target = torch.tensor([3, 0, -100, 18, 7, 7])
    logits, linear = {"logits": (6, 19)}, {"x": (6, 8), "weight": (19, 8), "bias": (19,)}
    options = {"label_smoothing": 0.1, "logit_scale": 1.5, "logit_softcapping": 2.0}
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    grpo = {"logits": (2, 4, 19), "ref_logp": (2, 3), "advantages": (2,)}
    fixed = ("ref_logp", "advantages")
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    cross = ("fused_cross_entropy", "cross_entropy_loss")
    fused = ("fused_linear_cross_entropy", "fused_linear_cross_entropy_loss")
    policy = {"logps": (3, 4), "ref_logps": (3, 4), "old_logps": (3, 4), "rewards": (3,)}
    kept = {"pad_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool(), "logits_to_keep": 4}
    return [
        Case("cross entropy", *cross, logits, {"target": target}),
        Case("cross entropy options", *cross, logits, {"target": target, "lse_square_scale": 0.01, **options}),
        Case("cross entropy bf16", *cross, logits, {"target": target}, dtype=torch.bfloat16),
        Case("linear cross entropy", *fused, linear, {"target": target}),
        Case("linear cross entropy options", *fused, linear, {"target": target, "reduction": "sum", **options}),
        Case(
            "linear cross entropy l2warp",
            *fused,
            linear,
            {"target": target, "use_l2warp": True, "l2_penalty_factor": 0.3},
        ),
        Case("linear cross entropy bf16", *fused, linear, {"target": target}, dtype=torch.bfloat16),
        Case(
            "kl",
            "fused_kl_div",
            "fused_kl_div_loss",
            {"x": (6, 8), "target_x": (6, 5), "weight": (19, 8), "target_weight": (19, 5)},
            no_gradient=("target_x", "target_weight"),
        ),
        Case(
            "kl bf16",
            "fused_kl_div",
            "fused_kl_div_loss",
            {"x": (6, 8), "target_x": (6, 5), "weight": (19, 8), "target_weight": (19, 5)},
            no_gradient=("target_x", "target_weight"),
            dtype=torch.bfloat16,
        ),
        Case("grpo", "grpo", "fused_grpo_loss", grpo, {"input_ids": ids}, no_gradient=fixed),
        Case(
            "grpo mask, kl",
            "grpo",
            "fused_grpo_loss",
            grpo,
            {"input_ids": ids, "completion_mask": mask, "save_kl": True, "beta": 0.3},
            no_gradient=fixed,
        ),
        Case("grpo bf16", "grpo", "fused_grpo_loss", grpo, {"input_ids": ids}, no_gradient=fixed, dtype=torch.bfloat16),
        Case(
            "grpo old",
            "grpo",
            "grpo_loss_with_old_logps",
            policy,
            kept,
            no_gradient=("ref_logps", "old_logps", "rewards"),
        ),
        Case("l2warp", "l2warp", "l2_warp", {"loss": (), "logits": (2, 3, 5)}, {"l2_penalty_factor": 0.3}),
    ]


def bits() -> list[Case]:
    x = {"x": (2, 3, 8)}
    return [
        Case("BitLinear", "fused_bitlinear", "BitLinear", x, init={"in_features": 8, "out_features": 5}),
        Case(
            "FusedBitLinear",
            "fused_bitlinear",
            "FusedBitLinear",
            x,
            init={"in_features": 8, "out_features": 5, "bias": True},
        ),
        Case(
            "FusedBitLinear bf16",
            "fused_bitlinear",
            "FusedBitLinear",
            x,
            init={"in_features": 8, "out_features": 5},
            dtype=torch.bfloat16,
        ),
        Case(
            "layer_norm_linear_quant",
            "fused_bitlinear",
            "layer_norm_linear_quant",
            {
                **x,
                "norm_weight": (8,),
                "norm_bias": (8,),
                "linear_weight": (5, 8),
                "linear_bias": (5,),
                "residual": (2, 3, 8),
            },
            {"prenorm": True},
        ),
    ]


CASES = [*norms(), *activations(), *convolutions(), *rotary(), *feature_maps(), *losses(), *bits()]
