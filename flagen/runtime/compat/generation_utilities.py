"""Generation for modeling files that are written against fla's mixins; transformers has to be installed for it."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from torch import Tensor

__all__ = ["FLAGenerationMixin", "FLAUnsupportedCacheGenerationMixin"]

GenerationMixin: Any = import_module("transformers.generation").GenerationMixin

_NAMES = ("cache", "past_key_values")
"""What transformers calls a cache, by its version, and modeling files."""


class FLAGenerationMixin(GenerationMixin):  # type: ignore[misc]
    """transformers' generation for models whose cache is one of states: the model makes its own at the first step."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = True,
        logits_to_keep: int | Tensor | None = None,
        cache_position: Tensor | None = None,
        next_sequence_length: int | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What the model's `forward` is called with for the next step.

        Args:
            input_ids: [B, T] of all tokens so far.
            past_key_values: the cache, which `forward` gets by the name that it has for it.
            attention_mask: [B, T].
            inputs_embeds: [B, T, D], in place of the ids at the first step.
            use_cache: whether the step leaves its states.
            logits_to_keep: of how many last tokens there are logits.
            cache_position: positions of the tokens of the step, where there is no next_sequence_length.
            next_sequence_length: how many last tokens the step has; None is all.
            is_first_iteration: whether it is the first step.
            kwargs: passed on.
        """
        if next_sequence_length is None and cache_position is not None:
            next_sequence_length = len(cache_position)
        if logits_to_keep is not None:
            kwargs["logits_to_keep"] = logits_to_keep
        cache = kwargs.pop("cache", None) if past_key_values is None else past_key_values
        prepare = super().prepare_inputs_for_generation
        inputs: dict[str, Any] = prepare(
            input_ids=input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            use_cache=use_cache,
            **{_name(prepare): cache},
            **kwargs,
        )
        kept = [inputs.pop(name) for name in _NAMES if name in inputs]
        return inputs | {_name(self.forward): each for each in kept}


class FLAUnsupportedCacheGenerationMixin(FLAGenerationMixin):
    """The same for models whose cache not every way of decoding can handle: that is said where one cannot."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`.

        Raises:
            AttributeError: the way of decoding does with past_key_values what the model's cache has nothing for.
        """
        try:
            return super().generate(*args, **kwargs)
        except AttributeError as error:
            if "past_key_values" not in str(error):
                raise
            name = type(self).__name__
            raise AttributeError(f"generate: {name} has no cache for this way of decoding: {error}") from error


def _name(function: Any) -> str:
    """What a function calls the cache."""
    taken = inspect.signature(function).parameters
    return next((name for name in _NAMES if name in taken), _NAMES[-1])
