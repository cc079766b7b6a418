"""The states that layers leave for the next call: a cache of its own, and what it takes to use those of others.

A layer's states are a dict of four: `recurrent_state`, [N, HV, K, V] or a tuple of such; `attn_state`, keys and values,
[B, T, ...] each; `conv_state`, the last inputs of its short convolutions, [N, D, W], or the last token, [N, D]; and
`ffn_state`, what a layer's feed-forward part remembers. What there is none of is None.
"""

from __future__ import annotations

from abc import ABC, ABCMeta
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .inference import usable

STATES = ("recurrent_state", "attn_state", "conv_state", "ffn_state")
LENGTHS = "lengths"
"""What a cache has besides where sequences had different numbers of tokens, and positions matter: [N], how many."""
LENGTHS_AT = "lengths_at"
"""Where a layer of transformers' caches has them: among its recurrent states, which go where sequences go."""


class LayerStates:
    """The states of one layer and how many tokens it has seen.

    It also answers what transformers asks of a layer of its caches, so that one of those can hold it.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        self.states: dict[str, Any] = dict.fromkeys(STATES)
        self.seen_tokens = 0

    @property
    def is_initialized(self) -> bool:
        return any(state is not None for state in self.states.values())

    def update(self, *, offset: int = 1, window_size: int | None = None, **states: Any) -> dict[str, Any]:
        """Replace the states that are given; keys and values go behind those there are, the last `window_size` of all.

        Raises:
            TypeError: a state of another name.
        """
        unknown = sorted(states.keys() - set(STATES))
        if unknown:
            raise TypeError(f"{unknown[0]}: expected states called {', '.join(STATES)}")
        attention = states.pop("attn_state", None)
        if attention is not None:
            earlier = self.states["attn_state"]
            if earlier is not None:
                pairs = zip(earlier, attention, strict=True)
                attention = tuple(torch.cat([before, new], dim=1) for before, new in pairs)
            if window_size is not None:
                attention = tuple(x[:, -window_size:] for x in attention)
            self.states["attn_state"] = tuple(attention)
        self.states.update({name: state for name, state in states.items() if state is not None})
        self.seen_tokens += offset
        return self.states

    def get_seq_length(self) -> int:
        return self.seen_tokens

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen_tokens + query_length, 0

    def reset(self) -> None:
        self.states = dict.fromkeys(STATES)
        self.seen_tokens = 0

    def crop(self, max_length: int) -> None:
        raise NotImplementedError("crop: a recurrent state cannot be taken back to an earlier token")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.map(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.map(lambda x: x[indices.to(x.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.map(lambda x: x.repeat_interleave(repeats, dim=0))

    def map(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor by what `function` makes of it."""
        self.states = {name: _mapped(function, state) for name, state in self.states.items()}


class Cache:
    """What every layer of a model leaves behind, by its `layer_idx`, in plain dicts; no other library is needed.

    `layer(x, past_key_values=cache, use_cache=True)` starts from what is there and leaves its states for the next call.
    """

    def __init__(self) -> None:
        self.layers: list[LayerStates] = []

    @classmethod
    def of(cls, other: Any, *, state_v_first: bool = False) -> Cache:
        """A cache of this kind with copies of the states of another, which stays as it is.

        Args:
            other: any cache that layers take: this one, fla's, one of transformers.
            state_v_first: its recurrent states are [N, HV, V, K], as those of some layers of fla are; they are
                transposed, here and once.

        Raises:
            TypeError: `other` is no cache.
        """
        cache = cls()
        for layer_idx in range(len(other)):
            states = {name: _mapped(Tensor.clone, state) for name, state in read_states(other, layer_idx).items()}
            if state_v_first:
                states["recurrent_state"] = _mapped(lambda x: x.mT.contiguous(), states["recurrent_state"])
            cache.update(layer_idx=layer_idx, offset=seen_tokens(other, layer_idx), **states)
            if (lengths := read_lengths(other, layer_idx)) is not None:
                write_lengths(cache, layer_idx, lengths.clone())
        return cache

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer_idx: int) -> dict[str, Any]:
        return self.layers[layer_idx].states

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (layer.states for layer in self.layers)

    @property
    def is_linear(self) -> list[bool]:
        """What transformers asks of a cache before it goes on from one: no layer here is one that counts no tokens."""
        return [False for _ in self.layers]

    def update(
        self,
        *,
        layer_idx: int,
        offset: int = 1,
        cache_kwargs: dict[str, Any] | None = None,
        **states: Any,
    ) -> dict[str, Any]:
        """Leave the states of a layer that has seen `offset` more tokens; those not given stay as they are."""
        while len(self.layers) <= layer_idx:
            self.layers.append(LayerStates())
        window_size = (cache_kwargs or {}).get("window_size")
        return self.layers[layer_idx].update(offset=offset, window_size=window_size, **states)

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """How many tokens a layer has seen."""
        place = layer_idx or 0
        return self.layers[place].seen_tokens if place < len(self.layers) else 0

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length(layer_idx) + query_length, 0

    def reset(self) -> None:
        """Forget every state: the next call starts new sequences."""
        for layer in self.layers:
            layer.reset()

    def crop(self, max_length: int) -> None:
        for layer in self.layers:
            layer.crop(max_length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence n go on from what was sequence beam_idx[n]."""
        for layer in self.layers:
            layer.reorder_cache(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        for layer in self.layers:
            layer.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        for layer in self.layers:
            layer.batch_repeat_interleave(repeats)


# ------------------------------------------------------------------------------------------- caches of several kinds


def read_states(cache: Any, layer_idx: int) -> dict[str, Any]:
    """What a layer left in a cache, as a dict of STATES: copies of what is out of reach since inference_mode is over.

    A cache is known by what it can do: give a dict for an index, as ours and fla's, or list `layers`, as transformers'.

    Raises:
        TypeError: it can do neither.
    """
    found = _held(cache, layer_idx)
    return {name: usable(found.get(name)) for name in STATES}


def read_lengths(cache: Any, layer_idx: int) -> Tensor | None:
    """How many tokens each sequence had, [N], where that is not what `seen_tokens` says of all."""
    found: Tensor | None = _held(cache, layer_idx).get(LENGTHS)
    return found


def write_lengths(cache: Any, layer_idx: int, lengths: Tensor) -> None:
    """Leave how many tokens each sequence had, [N], beside the states that a layer left."""
    if hasattr(cache, "__getitem__"):
        cache[layer_idx][LENGTHS] = lengths
    elif isinstance(layer := cache.layers[layer_idx], LayerStates):
        layer.states[LENGTHS] = lengths
    else:
        place = getattr(layer, LENGTHS_AT, layer.number_of_states)
        setattr(layer, LENGTHS_AT, place)
        _leave_recurrent(layer, place, lengths)


def _held(cache: Any, layer_idx: int) -> Mapping[str, Any]:
    """What a cache has of a layer."""
    _check_kind(cache)
    if len(cache) <= layer_idx:
        return {}
    if hasattr(cache, "__getitem__"):
        return cache[layer_idx] or {}
    layer = cache.layers[layer_idx]
    if isinstance(layer, LayerStates):
        return layer.states
    if not any(getattr(layer, "has_previous_state", {}).values()):
        return {}
    recurrent = dict(layer.recurrent_states)
    place = getattr(layer, LENGTHS_AT, None)
    lengths = recurrent.pop(place, None)
    return {
        "recurrent_state": _one_or_several(recurrent, layer.has_previous_state),
        "conv_state": _one_or_several(layer.conv_states, layer.has_previous_state),
        LENGTHS: lengths if layer.has_previous_state.get(place, False) else None,
    }


def write_states(cache: Any, layer_idx: int, offset: int, **states: Any) -> None:
    """Leave a layer's states in a cache, `offset` tokens further on; a state that is None stays as it was.

    Raises:
        TypeError: this is no cache.
        ValueError: the place of the layer is taken by one that attends to keys and values.
    """
    _check_kind(cache)
    if hasattr(cache, "__getitem__"):
        cache.update(layer_idx=layer_idx, offset=offset, **states)
        return
    layer = _layer_of_transformers(cache, layer_idx)
    if isinstance(layer, LayerStates):
        layer.update(offset=offset, **states)
        return
    if not any(layer.has_previous_state.values()):
        layer.seen_tokens = 0
    layer.seen_tokens += offset
    for held in (layer.conv_states, layer.recurrent_states):
        held.update({state_idx: usable(state) for state_idx, state in held.items()})  # They are written to in place.
    for state_idx, state in enumerate(_several(states.get("recurrent_state"))):
        _leave_recurrent(layer, state_idx, state)
    for state_idx, state in enumerate(_several(states.get("conv_state"))):
        _make_room(layer, state_idx)
        layer.update_conv_state(state, state_idx=state_idx)


def seen_tokens(cache: Any, layer_idx: int) -> int:
    """How many tokens a layer has left its states of in a cache."""
    _check_kind(cache)
    if len(cache) <= layer_idx:
        return 0
    if hasattr(cache, "__getitem__"):
        return int(cache.get_seq_length(layer_idx))
    layer = cache.layers[layer_idx]
    if hasattr(layer, "has_previous_state") and not any(layer.has_previous_state.values()):
        return 0
    return int(getattr(layer, "seen_tokens", 0))


def _check_kind(cache: Any) -> None:
    if not hasattr(cache, "__len__") or not (hasattr(cache, "layers") or hasattr(cache, "get_seq_length")):
        raise TypeError(
            f"past_key_values: expected a cache (this package's Cache, fla's, or one of transformers), "
            f"got {type(cache).__name__}"
        )


def _layer_of_transformers(cache: Any, layer_idx: int) -> Any:
    """The place of a layer in a cache of transformers, made where there is none yet."""
    while len(cache.layers) <= layer_idx:
        cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[layer_idx]
    if isinstance(layer, LayerStates) or hasattr(layer, "recurrent_states"):
        return layer
    if layer.is_initialized:
        raise ValueError(f"past_key_values: layer {layer_idx} is a {type(layer).__name__}, which holds keys and values")
    # The cache asks whether a layer counts its tokens by asking for its class.
    for base in type(layer).__mro__:
        if type(base) is ABCMeta and base is not ABC:
            base.register(LayerStates)
    cache.layers[layer_idx] = LayerStates()
    return cache.layers[layer_idx]


def _leave_recurrent(layer: Any, state_idx: int, state: Tensor) -> None:
    _make_room(layer, state_idx)
    layer.update_recurrent_state(state, state_idx=state_idx)
    layer.has_previous_state[state_idx] = True


def _make_room(layer: Any, state_idx: int) -> None:
    """Let a layer of transformers' caches have one state more."""
    for held in (layer.conv_states, layer.recurrent_states, layer.conv_kernel_size):
        held.setdefault(state_idx, None)
    for known in (layer.is_conv_states_initialized, layer.is_recurrent_states_initialized, layer.has_previous_state):
        known.setdefault(state_idx, False)
    layer.number_of_states = max(layer.number_of_states, state_idx + 1)


def _several(state: Any) -> tuple[Tensor, ...]:
    if state is None:
        return ()
    return (state,) if isinstance(state, Tensor) else tuple(state)


def _one_or_several(states: dict[int, Tensor | None], present: dict[int, bool]) -> Any:
    found = tuple(state for place, state in sorted(states.items()) if state is not None and present[place])
    return found[0] if len(found) == 1 else found or None


def _mapped(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, tuple | list):
        return tuple(_mapped(function, part) for part in state)
    if isinstance(state, dict):
        return {name: _mapped(function, part) for name, part in state.items()}
    return state
