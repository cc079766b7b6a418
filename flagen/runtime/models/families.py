"""The families of models whose checkpoints load here: what their configs are called, and how their blocks are built.

Names and defaults are those of flash-linear-attention 0.6.0, whose checkpoints say what differs from them. A layer that
is in no family makes a model, too: its constructor says what the config has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from types import MappingProxyType
from typing import Any, Literal

Values = Mapping[str, Any]

COMMON: Values = MappingProxyType(
    {
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "vocab_size": 32000,
        "hidden_ratio": 4,
        "intermediate_size": None,
        "hidden_act": "swish",
        "norm_eps": 1e-6,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "use_l2warp": False,
    }
)
"""What every config has."""

WITHOUT_EFFECT: frozenset[str] = frozenset(
    "fuse_norm fuse_swiglu fuse_cross_entropy fuse_linear_cross_entropy use_cache max_position_embeddings "
    "rescale_prenorm_residual".split()
)
"""What configs may have besides: how flash-linear-attention computes, and not what."""

OF_SOME: frozenset[str] = frozenset("attn_mode use_gk use_gv norm_first norm_bias residual_in_fp32".split())
"""What is about some families' models, and means nothing of the others'."""


@dataclass(frozen=True)
class Family:
    """Models around one layer.

    model_type: what a checkpoint's config calls the family.
    layer: the layer's class in `layers`.
    defaults: where they differ from COMMON or from the layer's own.
    names: arguments of the layer that the config calls otherwise.
    block: what a block has beside the layer: a gated MLP, under one name for the layer or another, RWKV's channel
        mixing, or nothing.
    lower_bounds: the width of a learned lower bound for each layer, if there are any.
    derived: values that follow from others.
    per_layer: arguments of the layer of which the config has one for each layer.
    ignored: what its configs have and its models do not ask for.
    """

    model_type: str
    layer: str
    defaults: Values = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=lambda: {"mode": "attn_mode"})
    block: Literal["mlp", "mixer", "rwkv6", "rwkv7", "none"] = "mlp"
    lower_bounds: Callable[[Values], int] | None = None
    derived: Callable[[Values], Values] | None = None
    per_layer: tuple[str, ...] = ()
    ignored: frozenset[str] = frozenset()

    @property
    def as_mamba(self) -> bool:
        """Whether the parts around its blocks are called, and made, as those of Mamba's models are."""
        return self.block in ("mixer", "none")


def _rwkv7(config: Values) -> Values:
    """A head count, and the width of the values, layer by layer."""
    value_dim = config.get("value_dim") or config["hidden_size"]
    heads = config.get("num_heads") or config["hidden_size"] // config["head_dim"]
    layers = config["num_hidden_layers"]
    return {"num_heads": heads, "value_dim": value_dim if isinstance(value_dim, list) else [value_dim] * layers}


def _hgrn_width(config: Values) -> int:
    return int(config["hidden_size"] * config["expand_ratio"])


def _hgrn2_width(config: Values) -> int:
    return int(config["hidden_size"])


def _hgrn2(config: Values) -> Values:
    return {"num_heads": config["num_heads"] or config["hidden_size"] // config["expand_ratio"]}


def _mamba(config: Values) -> Values:
    rank = config["dt_rank"]
    rank = ceil(config["hidden_size"] / 16) if rank == "auto" else rank
    width = config["intermediate_size"] or int(config["expand"] * config["hidden_size"])
    return {"intermediate_size": width, "dt_rank": rank}


def _mamba2(config: Values) -> Values:
    return {"num_heads": config["num_heads"] or int(config["expand"] * config["hidden_size"] / config["head_dim"])}


def _log_linear_mamba2(config: Values) -> Values:
    if config["residual_in_fp32"]:
        raise ValueError("residual_in_fp32: expected False, got True; there is none in this family")
    return _mamba2(config)


_GATED = {"mode": "attn_mode", "gate_fn": "hidden_act"}
_RWKV = {"norm_eps": 1e-5, "hidden_act": "sqrelu", "norm_first": True, "norm_bias": True}
_MAMBA = {
    "num_hidden_layers": 48,
    "norm_eps": 1e-5,
    "hidden_act": "silu",
    "pad_token_id": 0,
    "expand": 2,
    "residual_in_fp32": False,
}

FAMILIES: tuple[Family, ...] = (
    Family("abc", "ABCAttention", {"expand_k": 0.5, "expand_v": 1, "num_slots": 64}, {}),
    Family("comba", "Comba", {"num_hidden_layers": 21}),
    Family("cyclic_flow_attention", "CyclicFlowAttention", {"num_heads": 8, "pad_token_id": 2}),
    Family("delta_net", "DeltaNet", {"num_heads": 16}),
    Family("gated_deltanet", "GatedDeltaNet", {"num_hidden_layers": 21}),
    Family(
        "gated_deltaproduct",
        "GatedDeltaProduct",
        {"num_hidden_layers": 21, "use_forget_gate": False, "allow_neg_eigval": False, "num_householder": 1},
    ),
    Family("gla", "GatedLinearAttention", names=_GATED, ignored=frozenset(("use_gk", "use_gv"))),
    Family(
        "gsa",
        "GatedSlotAttention",
        {"expand_k": 1, "expand_v": 1, "num_slots": 64},
        _GATED,
    ),
    Family(
        "hgrn",
        "HGRNAttention",
        {"use_lower_bound": True, "attn_mode": "fused_recurrent"},
        lower_bounds=_hgrn_width,
    ),
    Family("hgrn2", "HGRN2Attention", {"use_lower_bound": True}, lower_bounds=_hgrn2_width, derived=_hgrn2),
    Family("kda", "KimiDeltaAttention"),
    Family("lightnet", "LightNetAttention"),
    Family(
        "linear_attn",
        "LinearAttention",
        {"num_heads": 4, "norm_feature_map": False, "attn_mode": "fused_chunk"},
        {"mode": "attn_mode", "do_feature_map_norm": "norm_feature_map"},
    ),
    Family("retnet", "MultiScaleRetention", {"hidden_ratio": 2}, _GATED),
    Family("rwkv6", "RWKV6Attention", {**_RWKV, "hidden_ratio": 3.5}, block="rwkv6"),
    Family(
        "rwkv7",
        "RWKV7Attention",
        {
            **_RWKV,
            "decay_low_rank_dim": 64,
            "gate_low_rank_dim": 128,
            "a_low_rank_dim": 64,
            "v_low_rank_dim": 16,
            "use_l2warp": True,
            "fuse_norm": True,
        },
        block="rwkv7",
        derived=_rwkv7,
        per_layer=("value_dim",),
    ),
    Family(
        "log_linear_mamba2",
        "LogLinearMamba2",
        {**_MAMBA, "use_bias": False, "use_conv_bias": True},
        {},
        block="mixer",
        derived=_log_linear_mamba2,
    ),
    Family("mamba", "Mamba", _MAMBA, {"dt_init": "dt_init_scheme"}, block="none", derived=_mamba),
    Family("mamba2", "Mamba2", {**_MAMBA, "residual_in_fp32": True}, {}, block="none", derived=_mamba2),
    Family("mamba3", "Mamba3", {**_MAMBA, "residual_in_fp32": True}, {}, block="none"),
    Family("mesa_net", "MesaNet"),
    Family("precond_gated_deltanet", "PrecondGatedDeltaNet", {"num_hidden_layers": 21, "a_log_init_lower": 0}),
    Family("precond_kda", "PrecondKDA", {"a_log_init_lower": 1}),
)


def family_of(layer: str) -> Family:
    """The family of a layer's class, or one that is called like it."""
    return next((family for family in FAMILIES if family.layer == layer), Family(layer.lower(), layer))


def family_called(model_type: str) -> Family:
    """The family of a checkpoint's config.

    Raises:
        ValueError: there is none of this name.
    """
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(sorted(family.model_type for family in FAMILIES))
    raise ValueError(f"model_type: expected one of {known}, got {model_type!r}")
