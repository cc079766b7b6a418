"""Layers with a constructor and a `forward` as fla's have, of others and those of fla's that have not: `record` needs
them, and no test does.

Recorded with xlstm and mlstm_kernels 2.0.6, whose kernels in PyTorch run on a CPU, and transformers 5.24.
"""

from __future__ import annotations

from typing import Any

import fla.layers.based
import fla.layers.log_linear_mamba2
import fla.layers.rebased
import torch
from fla.ops.log_linear_attn.naive import naive_log_linear_attn
from mlstm_kernels.torch.backend_module import mLSTMBackendConfig
from torch import Tensor, nn
from transformers import RecurrentGemmaConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock
from xlstm.xlstm_large.model import mLSTMLayer, mLSTMLayerConfig


class Around(nn.Module):
    """A layer in another way, with the same parameters."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.load_state_dict(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.named_parameters(*args, **kwargs)


class InFloat32(nn.Module):
    """The kernels in PyTorch, which take nothing else, between inputs and an output of any dtype."""

    def __init__(self, kernels: nn.Module) -> None:
        super().__init__()
        self.kernels = kernels

    def forward(self, q: Tensor, **more: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        h, states = self.kernels(q=q.float(), **{name: None if x is None else x.float() for name, x in more.items()})
        return h.to(q.dtype), states


class MLSTMLayer(Around):
    """The mLSTMLayer of xLSTM 7B, which knows neither masks nor packs."""

    def __init__(
        self,
        hidden_size: int = 4096,
        num_heads: int = 8,
        use_bias: bool = False,
        norm_eps: float = 1e-6,
        norm_reduction_force_float32: bool = True,
        qk_dim_factor: float = 0.5,
        v_dim_factor: float = 1.0,
        eps: float = 1e-6,
        gate_soft_cap: float = 15.0,
        weight_mode: str = "single",
        mode: str = "chunk",
        layer_idx: int | None = None,
    ) -> None:
        kernels = mLSTMBackendConfig(
            chunkwise_kernel="chunkwise--native_autograd",
            sequence_kernel="native_sequence__native",
            step_kernel="native",
            mode="inference",  # Of any length; gradients are autograd's.
            chunk_size=16,
            autocast_kernel_dtype="float32",
            eps=eps,
        )
        super().__init__(
            mLSTMLayer(
                mLSTMLayerConfig(
                    hidden_size,
                    num_heads,
                    use_bias,
                    norm_eps,
                    norm_reduction_force_float32,
                    qk_dim_factor,
                    v_dim_factor,
                    gate_soft_cap,
                    kernels,
                    weight_mode,
                )
            )
        )
        self.layer.mlstm_backend = InFloat32(self.layer.mlstm_backend)
        self.layer_idx = layer_idx

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        **kwargs: Any,
    ) -> tuple[Tensor, None, Any]:
        assert attention_mask is None
        y, (S, n, m) = self.layer(hidden_states)
        if use_cache:
            past_key_values.update(
                layer_idx=self.layer_idx, recurrent_state=(S, n, m.squeeze(-1)), offset=hidden_states.shape[1]
            )
        return y, None, past_key_values


class GriffinRecurrentBlock(Around):
    """RecurrentGemma's, whose RG-LRU is a module of its own there; what it keeps is taken out after each call."""

    RECURRENCE = "rg_lru."

    def __init__(
        self,
        hidden_size: int = 2560,
        lru_width: int | None = None,
        num_attention_heads: int = 10,
        conv1d_width: int = 4,
        hidden_activation: str = "gelu",
        w_init_variance_scale: float = 0.01,
        final_w_init_variance_scale: float = 1.0,
        mode: str = "chunk",
        layer_idx: int | None = None,
    ) -> None:
        config = RecurrentGemmaConfig(
            hidden_size=hidden_size,
            lru_width=lru_width,
            num_attention_heads=num_attention_heads,
            conv1d_width=conv1d_width,
            hidden_activation={"gelu": "gelu_pytorch_tanh"}.get(hidden_activation, hidden_activation),
            w_init_variance_scale=w_init_variance_scale,
        )
        super().__init__(RecurrentGemmaRecurrentBlock(config, layer_idx))
        self.layer_idx, self.heads, self.width = layer_idx, num_attention_heads, conv1d_width

    def _in_order(self, name: str) -> bool:
        return not name.startswith(self.RECURRENCE)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        found = self.layer.state_dict()
        return {name.removeprefix(self.RECURRENCE): found[name] for name in sorted(found, key=self._in_order)}

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        (given,) = args
        return self.layer.load_state_dict(
            {name: given[name.removeprefix(self.RECURRENCE)] for name in self.layer.state_dict()}
        )

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        found = dict(self.layer.named_parameters())
        return [(name.removeprefix(self.RECURRENCE), found[name]) for name in sorted(found, key=self._in_order)]

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        **kwargs: Any,
    ) -> tuple[Tensor, None, Any]:
        assert attention_mask is None
        batch, tokens, _ = hidden_states.shape
        self.layer.conv1d_state = None
        y, _ = self.layer(hidden_states, torch.arange(tokens).expand(batch, -1), None, use_cache=use_cache)
        if use_cache:
            h = self.layer.rg_lru.recurrent_states.unflatten(-1, (self.heads, -1))
            inputs = nn.functional.pad(self.layer.linear_x(hidden_states).mT, (self.width - tokens, 0))
            past_key_values.update(
                layer_idx=self.layer_idx,
                recurrent_state=(h, torch.ones_like(h[..., 0])),
                conv_state=inputs,
                offset=tokens,
            )
        return y, None, past_key_values


class OutputAlone(Around):
    """Of fla's that give back the output alone, and know neither masks nor packs nor a cache. What they would keep of
    the tokens is added up here."""

    def __init__(self, layer: nn.Module, layer_idx: int | None) -> None:
        super().__init__(layer)
        self.layer_idx = layer_idx

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        **kwargs: Any,
    ) -> tuple[Tensor, None, Any]:
        assert attention_mask is None
        if use_cache:
            heads = (self.layer.num_heads, -1)
            k, v = (m(hidden_states).unflatten(-1, heads) for m in (self.layer.k_proj, self.layer.v_proj))
            past_key_values.update(
                layer_idx=self.layer_idx, recurrent_state=self.kept(k, v), offset=hidden_states.shape[1]
            )
        return self.layer(hidden_states), None, past_key_values

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError


def pairs(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the tokens of products of keys with themselves, with values and without."""
    return torch.einsum("bthx,bthy,bthv->bhxyv", k, k, v), torch.einsum("bthx,bthy->bhxy", k, k)


class BasedLinearAttention(OutputAlone):
    def __init__(
        self,
        hidden_size: int,
        feature_dim: int = 16,
        num_key_value_heads: int = 12,
        num_heads: int = 12,
        feature_name: str = "taylor_exp",
        eps: float = 1e-12,
        causal: bool = True,
        mode: str = "parallel",
        layer_idx: int | None = None,
    ) -> None:
        given = (hidden_size, feature_dim, num_key_value_heads, num_heads, feature_name, eps, causal, mode)
        super().__init__(fla.layers.based.BasedLinearAttention(*given), layer_idx)

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        of_single = torch.einsum("bthx,bthv->bhxv", k, v), k.sum(1)
        return v.sum(1), torch.full_like(k[:, 0, :, 0], k.shape[1]), *of_single, *pairs(k, v)


class ReBasedLinearAttention(OutputAlone):
    def __init__(
        self,
        hidden_size: int,
        l_max: int = 2048,
        feature_dim: int = 16,
        num_key_value_heads: int = 16,
        num_heads: int = 16,
        use_gamma: bool | None = True,
        use_beta: bool | None = True,
        normalize: bool | None = True,
        causal: bool = True,
        eps: float = 1e-5,
        mode: str = "parallel",
        layer_idx: int | None = None,
        **kwargs: Any,
    ) -> None:
        given = (hidden_size, l_max, feature_dim, num_key_value_heads, num_heads, use_gamma, use_beta, normalize)
        layer = fla.layers.rebased.ReBasedLinearAttention(*given, causal, eps, mode, layer_idx, **kwargs)
        super().__init__(layer, layer_idx)

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return pairs(self.layer.feature_map(k, flatten=False), v)


def in_one_piece(
    initial_state: Any, output_final_state: bool, cu_seqlens: Any, scale: float, **given: Tensor
) -> tuple[Tensor, None]:
    """fla's reference in PyTorch of its operator of log-linear attention, whose keys have 64 channels or a multiple. It
    begins and ends with nothing, and multiplies in float32."""
    assert initial_state is None and cu_seqlens is None
    o = naive_log_linear_attn(**{name: x.float() for name, x in given.items()}, scale=scale)
    return o.to(given["v"].dtype), None


fla.layers.log_linear_mamba2.chunk_log_linear_attn = in_one_piece


class LogLinearMamba2(Around):
    """fla's, which refuses to run without a GPU."""

    def __init__(
        self,
        num_heads: int,
        head_dim: int = 64,
        hidden_size: int = 2048,
        state_size: int = 128,
        expand: int = 2,
        n_groups: int = 1,
        conv_kernel: int = 4,
        conv_init: float | None = None,
        use_conv_bias: bool = False,
        hidden_act: str = "silu",
        rmsnorm: bool = True,
        D_has_hdim: bool = False,
        norm_before_gate: bool = False,
        chunk_size: int = 64,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        use_bias: bool = True,
        norm_eps: float = 1e-5,
        layer_idx: int | None = None,
        backend: str = "cuda",
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(fla.layers.log_linear_mamba2.LogLinearMamba2(**given))
        self.layer_idx = layer_idx

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        **kwargs: Any,
    ) -> tuple[Tensor, None, Any]:
        assert attention_mask is None
        y, conv_state, _ = self.layer.cuda_kernels_forward(hidden_states, None, use_cache, None)
        if use_cache:
            past_key_values.update(layer_idx=self.layer_idx, conv_state=conv_state, offset=hidden_states.shape[1])
        return y, None, past_key_values
