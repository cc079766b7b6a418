"""Tokens that a model puts behind a prompt: the prompt at once, then one after another from the states it leaves."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from .config import ModelConfig


class Model(Protocol):
    """A language model: token ids, and what an earlier call left, to logits."""

    config: ModelConfig

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        *,
        past_key_values: Any,
        use_cache: bool,
        logits_to_keep: int,
    ) -> Any: ...


@torch.no_grad()
def generate(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    past_key_values: Any = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue each prompt, the likeliest token at a time, or a drawn one.

    Args:
        input_ids: [B, T], T >= 1.
        attention_mask: [B, T], 0 where a shorter prompt is padded, on the left.
        max_new_tokens: how many tokens at most.
        do_sample: draw tokens by their probabilities, those of logits / temperature.
        top_k, top_p: draw from so many of the likeliest, or from the likeliest that have so much probability together.
        eos_token_id: what ends a sequence; default the config's. Its row then has pad_token_id, or eos_token_id again.
        past_key_values: what earlier tokens left, of which input_ids are the next.
        generator: what tokens are drawn with.

    Returns:
        [B, T + new], the prompts and what follows.

    Raises:
        ValueError: an argument out of its range; a prompt whose last token is padding.
    """
    _check(input_ids, attention_mask, max_new_tokens, temperature, top_k, top_p)
    eos = model.config.eos_token_id if eos_token_id is None else eos_token_id
    pad = next((x for x in (pad_token_id, model.config.pad_token_id, eos) if x is not None), 0)
    tokens, mask, step = input_ids, attention_mask, input_ids
    ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    for _ in range(max_new_tokens):
        output = model(step, mask, past_key_values=past_key_values, use_cache=True, logits_to_keep=1)
        past_key_values = output.past_key_values
        step = _choose(output.logits[:, -1], do_sample, temperature, top_k, top_p, generator)
        step = torch.where(ended, pad, step)[:, None]
        tokens = torch.cat([tokens, step], dim=1)
        if mask is not None:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if eos is not None:
            ended |= step[:, 0] == eos
            if ended.all():
                break
    return tokens


def _choose(
    logits: Tensor,
    do_sample: bool,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    """A token [B] for each row of logits [B, vocab_size]."""
    if not do_sample:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None:
        ordered, places = logits.sort(dim=-1, descending=True)
        chances = ordered.softmax(-1)
        beyond = chances.cumsum(-1) - chances >= top_p  # The likeliest stays, whatever top_p is.
        logits = logits.masked_fill(beyond.scatter(-1, places, beyond), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def _check(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    if input_ids.ndim != 2 or input_ids.shape[1] == 0:
        raise ValueError(f"input_ids: expected shape [B, T] with T >= 1, got {tuple(input_ids.shape)}")
    if attention_mask is not None and not attention_mask[:, -1].all():
        raise ValueError("attention_mask: expected prompts padded on the left, got one whose last token is padding")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens: expected a number from 0, got {max_new_tokens}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected a number from 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number above 0 and up to 1, got {top_p}")
