"""Layers that are not fla's, with a constructor and a `forward` as fla's have: `record` needs them, and no test does.

Recorded with xlstm and mlstm_kernels 2.0.6, whose kernels in PyTorch run on a CPU, and transformers 5.24.
"""

from __future__ import annotations

from typing import Any

import torch
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
