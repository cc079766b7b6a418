"""Causal language models around the layers of this package."""

from .causal_lm import CausalLM, CausalLMOutput
from .config import ModelConfig
from .families import FAMILIES, Family

__all__ = ["FAMILIES", "CausalLM", "CausalLMOutput", "Family", "ModelConfig"]
