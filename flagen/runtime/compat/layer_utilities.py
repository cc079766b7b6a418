"""What layers do with masks and caches, for layers that are written against fla.layers.utils."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .fla.ops.utils.index import prepare_cu_seqlens_from_lens, prepare_cu_seqlens_from_mask, prepare_lens_from_mask

__all__ = [
    "get_layer_cache",
    "get_unpad_data",
    "get_unpad_indices_and_cu",
    "index_first_axis",
    "index_put_first_axis",
    "pad_input",
    "prepare_cu_seqlens_from_lens",
    "prepare_cu_seqlens_from_mask",
    "prepare_lens_from_mask",
    "repad_hidden_states",
    "require_cache_layer_idx",
    "unpad_hidden_states",
    "unpad_input",
    "update_layer_cache",
]


def index_first_axis(x: Tensor, indices: Tensor) -> Tensor:
    """The rows of x, [N, ...], with these numbers."""
    return x.index_select(0, indices)


def index_put_first_axis(x: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """So many rows, zeros but for those with these numbers, which are x."""
    return x.new_zeros(first_axis_dim, *x.shape[1:]).index_put((indices,), x)


def get_unpad_indices_and_cu(attention_mask: Tensor, q_len: int | None = None) -> tuple[Tensor, Tensor]:
    """The numbers of the tokens of a mask [B, S], rows one behind the other, and the offsets of its rows when packed.

    Args:
        q_len: only the last so many columns count.
    """
    mask = attention_mask if q_len is None else attention_mask[:, attention_mask.shape[-1] - q_len :]
    return mask.flatten().nonzero().flatten(), prepare_cu_seqlens_from_mask(mask)


def get_unpad_data(attention_mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """The same of all columns, and the tokens of the longest row."""
    indices, cu_seqlens = get_unpad_indices_and_cu(attention_mask)
    return indices, cu_seqlens, int(prepare_lens_from_mask(attention_mask).max())


def unpad_hidden_states(
    hidden_states: Tensor, cu_seqlens: Tensor | None, attention_mask: Tensor | None, q_len: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The tokens of [B, q_len, ...] packed, [1, T, ...], their numbers and offsets; with offsets, as it is."""
    if cu_seqlens is not None or attention_mask is None:
        return hidden_states, None, cu_seqlens
    indices, cu_seqlens = get_unpad_indices_and_cu(attention_mask, q_len)
    return index_first_axis(hidden_states.flatten(0, 1), indices)[None], indices, cu_seqlens


def repad_hidden_states(hidden_states: Tensor, indices: Tensor | None, batch_size: int, q_len: int) -> Tensor:
    """What `unpad_hidden_states` packed, as rows with padding again; without numbers, as it is."""
    return hidden_states if indices is None else pad_input(hidden_states.squeeze(0), indices, batch_size, q_len)


def unpad_input(
    q: Tensor | tuple[Tensor, ...],
    states: tuple[Tensor, ...],
    attention_mask: Tensor,
    q_len: int,
    keepdim: bool = False,
) -> tuple[Any, tuple[Tensor, ...], Tensor, tuple[Tensor, Tensor], tuple[int, int]]:
    """Queries [B, q_len, ...] and states [B, S, ...] without padding, rows one behind the other.

    Args:
        q: one tensor or several.
        attention_mask: [B, S].
        q_len: S, or 1 for one further token of each row.
        keepdim: leave a batch of 1 before the tokens.

    Returns:
        the queries; the states; the numbers of the queries, for `pad_input`; offsets and the longest length, each of
        queries and of states.

    Raises:
        NotImplementedError: q_len is neither of the two.
    """
    indices, cu_seqlens, longest = get_unpad_data(attention_mask)
    batch, length = states[0].shape[:2]
    queries = (q,) if isinstance(q, Tensor) else tuple(q)
    packed = tuple(index_first_axis(x.flatten(0, 1), indices) for x in states)
    if q_len == length:
        queries = tuple(index_first_axis(x.flatten(0, 1), indices) for x in queries)
        of_queries = (indices, cu_seqlens, longest)
    elif q_len == 1:
        queries = tuple(x.squeeze(1) for x in queries)
        each = torch.arange(batch + 1, dtype=torch.int32, device=attention_mask.device)
        of_queries = (each[:-1], each, 1)
    else:
        raise NotImplementedError(f"q_len: expected {length}, as the states have tokens, or 1, got {q_len}")
    if keepdim:
        queries, packed = (tuple(x[None] for x in each) for each in (queries, packed))
    given = queries[0] if isinstance(q, Tensor) else queries
    return given, packed, of_queries[0], (of_queries[1], cu_seqlens), (of_queries[2], longest)


def pad_input(hidden_states: Tensor, indices: Tensor, batch_size: int, seq_len: int) -> Tensor:
    """Tokens [T, ...] at the places that `indices` say of [batch_size, seq_len, ...], and zeros elsewhere."""
    rows = index_put_first_axis(hidden_states, indices, batch_size * seq_len)
    return rows.reshape(batch_size, seq_len, *rows.shape[1:])


def require_cache_layer_idx(module: nn.Module, past_key_values: Any) -> int | None:
    """The layer's place in a cache.

    Raises:
        ValueError: there is a cache, and the layer has none.
    """
    place: int | None = getattr(module, "layer_idx", None)
    if past_key_values is not None and place is None:
        raise ValueError(f"layer_idx: {type(module).__name__} needs its place in past_key_values, got None")
    return place


def get_layer_cache(module: nn.Module, past_key_values: Any) -> Any:
    """What the layer left in a cache, a dict of states, or None."""
    place = require_cache_layer_idx(module, past_key_values)
    if past_key_values is None or place is None or len(past_key_values) <= place:
        return None
    return past_key_values[place]


def update_layer_cache(module: nn.Module, past_key_values: Any, **kwargs: Any) -> Any:
    """Leave the layer's states in a cache, if there is one."""
    place = require_cache_layer_idx(module, past_key_values)
    return None if past_key_values is None else past_key_values.update(layer_idx=place, **kwargs)
