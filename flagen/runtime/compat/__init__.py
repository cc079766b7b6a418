"""These operators under the names of flash-linear-attention, mamba_ssm and causal_conv1d, for code that has those."""

from .registry import Registration, as_fla

__all__ = ["Registration", "as_fla"]
