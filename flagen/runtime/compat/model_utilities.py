"""The cache that models hand to their layers, under fla's name; generation is the model's own."""

from __future__ import annotations

from typing import Any

from ..shared.cache import Cache as States

__all__ = ["Cache", "FLACache"]


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
