"""What is recorded of fla's and others' layers: each layer's switches, small; and the package of each layer's spec."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Layer:
    """`class_name` is fla's or one of `peers`; of `configs` all is run, of `tables` only the `state_dict` is looked at.

    In a config, `layer_idx` is 0 where it is not said; what stands in `given` are arguments of `forward`: "tokens" has
    a row for each token, "fractions" is a row of numbers between 0 and 1.
    """

    class_name: str
    configs: tuple[Config, ...]
    tables: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Config:
    arguments: dict[str, Any]
    given: dict[str, tuple[str, int]] = field(default_factory=dict)


def configs(*arguments: dict[str, Any]) -> tuple[Config, ...]:
    return tuple(Config({"hidden_size": 32, **each}) for each in arguments)


RANKS = {"decay_low_rank_dim": 8, "gate_low_rank_dim": 12, "a_low_rank_dim": 8, "v_low_rank_dim": 6}
OF_64 = {"hidden_size": 64, "num_heads": 4}
OF_48 = {"hidden_size": 48, "num_heads": 4}
OF_40 = {"hidden_size": 40, "head_dim": 8, "num_heads": 3}
SMALL = {"num_heads": 2, "head_dim": 8}
PAIRS = {"num_heads": 2, "num_key_value_heads": 2}
FOUR_HEADS = {"num_heads": 4, "head_dim": 16, "state_size": 8}

LAYERS: dict[str, Layer] = {
    "linear_attention": Layer(
        "LinearAttention",
        configs(
            {"num_heads": 2},
            {"num_heads": 2, "num_kv_heads": 1, "feature_map": "hedgehog"},
            {"num_heads": 2, "feature_map": "t2r", "tie_feature_map_qk": True, "norm_q": True, "norm_k": True},
            {"num_heads": 2, "feature_map": "dpfp", "do_feature_map_norm": True},
            {"num_heads": 2, "feature_map": "elu", "output_norm": "identity"},
            {"num_heads": 2, "feature_map": "relu", "expand_k": 0.5, "expand_v": 2.0, "elementwise_affine": False},
            {"num_heads": 2, "feature_map": "identity"},
        ),
        (
            {**OF_48, "expand_k": 1.0, "expand_v": 2.0},
            {**OF_48, "num_kv_heads": 2, "feature_map": "hedgehog"},
            {**OF_48, "feature_map": "t2r"},
            {**OF_48, "feature_map": "dpfp"},
            {**OF_48, "feature_map": "elu", "output_norm": "identity"},
        ),
    ),
    "multi_scale_retention": Layer(
        "MultiScaleRetention",
        configs(
            {"num_heads": 2},
            {"num_heads": 2, "num_kv_heads": 1, "use_short_conv": True, "conv_bias": True, "gate_fn": "relu"},
            {"num_heads": 2, "use_output_gate": False, "elementwise_affine": False},
            {"num_heads": 2, "fuse_norm": False, "expand_k": 0.5, "expand_v": 1.0, "feature_map": "relu"},
        ),
        (
            {**OF_64, "expand_k": 0.5, "expand_v": 2.0},
            {**OF_64, "num_kv_heads": 2, "use_short_conv": True, "conv_bias": True, "gate_fn": "relu"},
            {**OF_64, "use_output_gate": False},
        ),
    ),
    "gated_linear_attention": Layer(
        "GatedLinearAttention",
        configs(
            {"num_heads": 2},
            {"num_heads": 2, "num_kv_heads": 1, "use_short_conv": True, "conv_bias": True, "fuse_norm": False},
            {"num_heads": 2, "use_output_gate": False, "elementwise_affine": False},
            {
                "num_heads": 2,
                "feature_map": "relu",
                "clamp_min": -0.15,
                "gate_logit_normalizer": 4,
                "gate_fn": "sigmoid",
                "gate_low_rank_dim": 6,
            },
        ),
        (
            {**OF_64, "expand_k": 0.5, "expand_v": 2.0},
            {**OF_64, "num_kv_heads": 2, "use_short_conv": True, "conv_bias": True, "fuse_norm": False},
            {**OF_64, "use_output_gate": False, "elementwise_affine": False},
        ),
    ),
    "simple_gated_linear_attention": Layer(
        "SimpleGatedLinearAttention",
        configs(
            {"num_heads": 2},
            {"num_heads": 2, "num_kv_heads": 1, "conv_bias": True, "fuse_norm": False, "expand_k": 0.5},
            {
                "num_heads": 2,
                "use_short_conv": False,
                "feature_map": "relu",
                "gate_fn": "sigmoid",
                "elementwise_affine": False,
                "gate_logit_normalizer": 4,
            },
        ),
        (OF_64,),
    ),
    "based_linear_attention": Layer(
        "BasedLinearAttention",
        configs(
            {**PAIRS, "feature_dim": 8},
            {**PAIRS, "feature_dim": 6, "mode": "chunk"},
            {"num_heads": 3, "num_key_value_heads": 3, "feature_dim": 6, "mode": "fused_chunk", "eps": 1e-3},
        ),
        ({**OF_48, "num_key_value_heads": 4}, {"hidden_size": 50, "num_heads": 4, "num_key_value_heads": 4}),
    ),
    "rebased_linear_attention": Layer(
        "ReBasedLinearAttention",
        configs(
            {**PAIRS, "feature_dim": 8},
            # Of other sizes what fla sums of feature maps cancels beyond the bounds where a score is next to nothing.
            {**PAIRS, "feature_dim": 8, "use_beta": False, "mode": "chunk"},
            {**PAIRS, "feature_dim": 8, "normalize": False, "eps": 0.1},
            {**PAIRS, "feature_dim": 8, "normalize": False, "use_beta": False, "eps": 0.1},
            {**PAIRS, "feature_dim": 8, "use_gamma": False, "mode": "fused_chunk"},
        ),
        (
            {**OF_48, "num_key_value_heads": 4},
            {**OF_48, "num_key_value_heads": 4, "use_gamma": False},
            {**OF_48, "num_key_value_heads": 4, "use_beta": False, "normalize": False},
        ),
    ),
    "griffin": Layer(
        "GriffinRecurrentBlock",
        configs(
            {"num_attention_heads": 4},
            {"num_attention_heads": 2, "lru_width": 24, "conv1d_width": 3, "hidden_activation": "silu"},
        ),
        ({"hidden_size": 48, "num_attention_heads": 3, "lru_width": 24}, {"hidden_size": 48, "num_attention_heads": 4}),
    ),
    "hgrn_attention": Layer(
        "HGRNAttention",
        (
            *configs(
                {},
                {"expand_ratio": 2, "use_short_conv": True, "conv_bias": True},
                {"elementwise_affine": False},
            ),
            Config({"hidden_size": 32, "layer_idx": 1}, {"lower_bound": ("fractions", 32)}),
        ),
        ({"hidden_size": 32, "expand_ratio": 2}, {"hidden_size": 32, "use_short_conv": True, "conv_bias": True}),
    ),
    "hgrn2_attention": Layer(
        "HGRN2Attention",
        (
            *configs(
                {"expand_ratio": 16},
                {"expand_ratio": None, "num_heads": 4, "use_short_conv": True, "conv_bias": True},
                {"expand_ratio": 8, "elementwise_affine": False},
            ),
            Config({"hidden_size": 32, "expand_ratio": 16, "layer_idx": 1}, {"lower_bound": ("fractions", 32)}),
        ),
        (
            {"hidden_size": 64, "expand_ratio": 16},
            {"hidden_size": 64, "expand_ratio": None, "num_heads": 8, "use_short_conv": True},
        ),
    ),
    "rwkv6_attention": Layer(
        "RWKV6Attention",
        configs(
            {"num_heads": 2, "proj_low_rank_dim": 4, "gate_low_rank_dim": 6},
            {
                "num_heads": 2,
                "proj_low_rank_dim": 4,
                "gate_low_rank_dim": 6,
                "gate_fn": "sigmoid",
                "expand_k": 1.0,
                "elementwise_affine": False,
            },
        ),
        ({**OF_64, "proj_low_rank_dim": 8, "gate_low_rank_dim": 12},),
    ),
    "rwkv7_attention": Layer(
        "RWKV7Attention",
        (
            *configs(
                {"head_dim": 16, "num_hidden_layers": 3, **RANKS},
                {"head_dim": None, "num_heads": 4, "num_hidden_layers": 3, "fuse_norm": True, **RANKS},
            ),
            Config(
                {"hidden_size": 32, "head_dim": 16, "num_hidden_layers": 3, "layer_idx": 1, **RANKS},
                {"v_first": ("tokens", 32)},
            ),
        ),
        (
            {
                "hidden_size": 64,
                "head_dim": 16,
                "num_hidden_layers": 3,
                "layer_idx": 0,
                "decay_low_rank_dim": 8,
                "gate_low_rank_dim": 12,
                "a_low_rank_dim": 20,
                "v_low_rank_dim": 24,
            },
            {"hidden_size": 64, "head_dim": 16, "num_hidden_layers": 3, "layer_idx": 1},
        ),
    ),
    "delta_net": Layer(
        "DeltaNet",
        configs(
            {"num_heads": 2},
            {"num_heads": 2, "use_gate": True, "conv_bias": True, "qk_activation": "elu", "qk_norm": "sum"},
            {"num_heads": 2, "use_beta": False, "use_short_conv": False},
            {"num_heads": 2, "qk_activation": "relu", "allow_neg_eigval": True, "expand_v": 2.0},
            {"num_heads": 2, "qk_activation": "identity", "use_short_conv": False, "expand_k": 0.5},
        ),
        (
            {**OF_48, "expand_v": 2.0},
            {**OF_48, "use_gate": True, "conv_bias": True},
            {**OF_48, "use_beta": False, "use_short_conv": False},
        ),
    ),
    "gated_deltanet": Layer(
        "GatedDeltaNet",
        configs(
            {**SMALL, "num_v_heads": 4},
            {**SMALL, "use_gate": False, "conv_bias": True, "allow_neg_eigval": True, "expand_v": 1},
            {**SMALL, "use_short_conv": False, "output_gate_activation": "sigmoid"},
        ),
        (
            {**OF_40, "num_v_heads": 6, "expand_v": 2},
            {**OF_40, "use_gate": False, "conv_bias": True},
            {**OF_40, "use_short_conv": False},
        ),
    ),
    "gated_deltanet2": Layer(
        "GatedDeltaNet2",
        configs(
            {**SMALL, "num_v_heads": 4, "expand_v": 2},
            {**SMALL, "conv_bias": True, "allow_neg_eigval": True},
            {**SMALL, "use_short_conv": False},
        ),
        ({**OF_40, "num_v_heads": 6, "expand_v": 2},),
    ),
    "gated_deltaproduct": Layer(
        "GatedDeltaProduct",
        configs(
            {**SMALL, "num_v_heads": 4},
            {**SMALL, "use_forget_gate": False, "use_output_gate": False, "num_householder": 3, "expand_v": 1},
            {**SMALL, "use_short_conv": False, "allow_neg_eigval": False, "num_householder": 1},
        ),
        (
            {**OF_40, "num_v_heads": 6, "num_householder": 5},
            {**OF_40, "use_forget_gate": False, "use_output_gate": False},
        ),
    ),
    "kimi_delta_attention": Layer(
        "KimiDeltaAttention",
        configs(
            {**SMALL, "num_v_heads": 4, "expand_v": 2},
            {**SMALL, "safe_gate": True, "lower_bound": -5.0, "conv_bias": True},
            {**SMALL, "use_short_conv": False, "allow_neg_eigval": True},
        ),
        (
            {**OF_40, "num_v_heads": 6, "expand_v": 2},
            {**OF_40, "safe_gate": True, "lower_bound": -5.0, "conv_bias": True},
        ),
    ),
    "comba_layer": Layer(
        "Comba",
        configs(
            {**SMALL, "num_v_heads": 4},
            {
                **SMALL,
                "use_output_gate": False,
                "use_output_correction": False,
                "use_inner_decay": False,
                "conv_bias": True,
            },
            {**SMALL, "use_short_conv": False, "correction_factor": 0.5, "expand_v": 1},
        ),
        (
            {**OF_40, "num_v_heads": 6},
            {**OF_40, "use_output_gate": False, "use_output_correction": False, "use_inner_decay": False},
        ),
    ),
    "mamba_layer": Layer(
        "Mamba",
        configs(
            {"intermediate_size": 48, "state_size": 8},
            {
                "intermediate_size": 48,
                "state_size": 5,
                "use_bias": True,
                "use_conv_bias": False,
                "dt_rank": 3,
                "hidden_act": "relu",
                "conv_kernel": 3,
            },
        ),
        (
            {"hidden_size": 48, "state_size": 5, "intermediate_size": 96},
            {
                "hidden_size": 48,
                "state_size": 5,
                "intermediate_size": 96,
                "use_bias": True,
                "use_conv_bias": False,
            },
        ),
    ),
    "mamba2_layer": Layer(
        "Mamba2",
        configs(
            {"head_dim": 16, "state_size": 8},
            {"head_dim": 16, "state_size": 8, "n_groups": 2, "expand": 1},
            {"head_dim": 16, "state_size": 8, "rmsnorm": False, "D_has_hdim": True, "use_bias": True},
            {
                "head_dim": 16,
                "state_size": 8,
                "norm_before_gate": True,
                "dt_limit": (0.05, 0.3),
                "use_conv_bias": False,
                "hidden_act": "relu",
                "chunk_size": 16,
            },
        ),
        (
            {"hidden_size": 48, "head_dim": 8, "state_size": 5, "n_groups": 2},
            {
                "hidden_size": 48,
                "head_dim": 8,
                "state_size": 5,
                "rmsnorm": False,
                "D_has_hdim": True,
                "use_bias": True,
            },
        ),
    ),
    "log_linear_mamba2": Layer(
        "LogLinearMamba2",
        configs(
            FOUR_HEADS,
            {**FOUR_HEADS, "num_heads": 2, "n_groups": 2, "expand": 1, "use_conv_bias": True, "use_bias": False},
            {**FOUR_HEADS, "rmsnorm": False, "D_has_hdim": True, "conv_kernel": 3},
            {**FOUR_HEADS, "norm_before_gate": True, "norm_eps": 1e-3},
        ),
        (
            {"hidden_size": 48, "num_heads": 12, "head_dim": 8, "state_size": 5, "n_groups": 2},
            {"hidden_size": 48, "num_heads": 12, "head_dim": 8, "state_size": 5, "rmsnorm": False, "D_has_hdim": True},
        ),
    ),
    "mamba3_layer": Layer(
        "Mamba3",
        configs(
            {"head_dim": 16, "state_size": 8},
            {"head_dim": 8, "state_size": 12, "n_groups": 2, "expand": 1, "is_outproj_norm": True, "use_bias": True},
            {"head_dim": 16, "state_size": 16, "n_groups": 2, "A_floor": 0.7, "dt_min": 0.01, "norm_eps": 1e-3},
        ),
        (
            {"hidden_size": 48, "head_dim": 8, "state_size": 20, "n_groups": 3},
            {"hidden_size": 48, "head_dim": 8, "state_size": 20, "is_outproj_norm": True, "use_bias": True},
        ),
    ),
    "abc_attention": Layer(
        "ABCAttention",
        configs(
            {"num_heads": 2, "num_slots": 8},
            {"num_heads": 2, "num_slots": 8, "use_output_gate": False, "use_short_conv": True, "conv_bias": True},
            {"num_heads": 2, "num_slots": 8, "use_rope": False, "use_norm": False, "use_input_gate": True},
            {"num_heads": 2, "num_slots": 8, "elementwise_affine": False, "clamp_min": -0.5, "clamp_max": 0.5},
        ),
        (
            {**OF_64, "num_slots": 5},
            {**OF_64, "use_output_gate": False, "use_short_conv": True},
        ),
    ),
    "gated_slot_attention": Layer(
        "GatedSlotAttention",
        configs(
            {"num_heads": 2, "num_slots": 8},
            {"num_heads": 2, "num_slots": 8, "num_kv_heads": 1, "feature_map": "t2r", "use_short_conv": True},
            {"num_heads": 2, "num_slots": 8, "feature_map": "relu", "use_norm": False, "scale": 0.5},
            {"num_heads": 2, "num_slots": 8, "use_output_gate": True, "elementwise_affine": False},
        ),
        (
            {**OF_64, "num_slots": 5},
            {**OF_64, "num_kv_heads": 2, "feature_map": "t2r", "use_short_conv": True},
        ),
    ),
    "cyclic_flow_attention": Layer(
        "CyclicFlowAttention",
        configs(
            {"num_heads": 2, "head_dim": 8, "num_slots": 8},
            {"num_heads": 2, "head_dim": 8, "num_slots": 14, "conv_bias": True, "expand_k": 0.5, "expand_v": 2.0},
            {"num_heads": 2, "head_dim": 8, "num_slots": 6, "use_short_conv": False, "norm_eps": 1e-3},
        ),
        (
            {**OF_40, "num_slots": 10, "expand_v": 2.0},
            {**OF_40, "num_slots": 4, "use_short_conv": False},
        ),
    ),
    "mlstm_layer": Layer(
        "MLSTMLayer",
        configs(
            {"num_heads": 2},
            {"num_heads": 4, "weight_mode": "fused", "use_bias": True, "gate_soft_cap": 2.0, "v_dim_factor": 2.0},
            {"num_heads": 2, "qk_dim_factor": 1.0, "eps": 0.1, "norm_eps": 1e-3, "gate_soft_cap": None},
        ),
        (OF_48, {**OF_48, "weight_mode": "fused", "use_bias": True}),
    ),
    "momentum_deltanet": Layer(
        "MomentumDeltaNet",
        configs(
            {**SMALL, "num_v_heads": 4},
            {**SMALL, "use_gate": False, "conv_bias": True, "allow_neg_eigval": True, "min_log_mu": None},
            {**SMALL, "use_short_conv": False, "qk_activation": "elu", "qk_norm": "sum", "expand_v": 1.0},
            {**SMALL, "use_p_times_alpha": False, "use_output_correction": False, "tau_factor": 4},
            {**SMALL, "use_beta": False, "qk_activation": "relu", "qk_norm": "sum", "num_v_heads": 4},
        ),
        (
            {"hidden_size": 48, "num_heads": 4},
            {**OF_40, "num_v_heads": 6, "expand_v": 1.0, "expand_k": 2.0},
            {**OF_40, "use_gate": False, "use_short_conv": False, "use_output_correction": False},
        ),
    ),
    "mesa_net_layer": Layer(
        "MesaNet",
        configs(
            SMALL,
            {**SMALL, "use_output_gate": True, "conv_bias": True, "lambda_lower_bound": 0.5},
            {**SMALL, "head_dim": 16, "conv_size": 3, "max_cg_step_training": 60, "norm_eps": 1e-3},
        ),
        (OF_40, {**OF_40, "use_output_gate": True, "use_short_conv": False}),
    ),
    "lightnet_attention": Layer(
        "LightNetAttention",
        # fla's norm adds 1e-6 whatever norm_eps says.
        configs(
            {"expand_ratio": 16, "gate_low_rank_dim": 12, "norm_eps": 1e-6},
            {"expand_ratio": 8, "gate_low_rank_dim": 12, "norm_eps": 1e-6, "use_short_conv": True, "conv_bias": True},
            {
                "expand_ratio": None,
                "num_heads": 2,
                "gate_low_rank_dim": 12,
                "norm_eps": 1e-6,
                "elementwise_affine": False,
            },
        ),
        (
            {"hidden_size": 64, "expand_ratio": 16, "gate_low_rank_dim": 12},
            {"hidden_size": 64, "expand_ratio": 16, "use_short_conv": True},
        ),
    ),
    "precond_gated_deltanet": Layer(
        "PrecondGatedDeltaNet",
        configs(
            {**SMALL, "num_v_heads": 4},
            {**SMALL, "use_gate": False, "conv_bias": True, "allow_neg_eigval": True, "expand_v": 1},
            {**SMALL, "use_short_conv": False, "squash_x": 2.0},
        ),
        ({**OF_40, "num_v_heads": 6},),
    ),
    "precond_kimi_delta_attention": Layer(
        "PrecondKDA",
        configs(
            {**SMALL},
            {**SMALL, "safe_gate": True, "lower_bound": -5.0, "conv_bias": True, "num_v_heads": 4, "expand_v": 2},
            {**SMALL, "use_short_conv": False, "allow_neg_eigval": True, "squash_x": 2.0},
        ),
        (OF_40,),
    ),
}
"""By the name of the package."""
