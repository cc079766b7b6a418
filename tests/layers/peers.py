"""Layers that are not fla's, with a constructor and a `forward` as fla's have: `record` needs them, and no test does.

Recorded with xlstm and mlstm_kernels 2.0.6, whose kernels in PyTorch run on a CPU.
"""

from __future__ import annotations

from typing import Any

from mlstm_kernels.torch.backend_module import mLSTMBackendConfig
from torch import Tensor, nn
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
