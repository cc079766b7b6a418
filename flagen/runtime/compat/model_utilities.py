"""The cache that models hand to their layers, under fla's name, and generation, where transformers is installed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ..shared.cache import Cache as States

__all__ = ["Cache", "FLACache"]

_GENERATION = ("FLAGenerationMixin", "FLAUnsupportedCacheGenerationMixin")
"""What is transformers' with a little more."""


class Cache(States):
    """A cache of states by layer, as fla's models make it."""

    @classmethod
    def from_legacy_cache(cls, past_key_values: Any = None, seen_tokens: int = 0) -> Cache:
        """A cache of what is none yet: of nothing, an empty one; of a list of states, one that holds them."""
        cache = cls()
        for layer_idx, states in enumerate(past_key_values or ()):
            cache.update(layer_idx=layer_idx, offset=seen_tokens, **states)
        return cache


FLACache = Cache


def __getattr__(name: str) -> Any:
    if name in _GENERATION and find_spec("transformers") is not None:
        return getattr(import_module(".generation_utilities", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
