"""Caches of three kinds hold what layers leave, and give it back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from generated.shared.cache import STATES, Cache, read_lengths, read_states, seen_tokens, write_lengths, write_states

S, C = torch.arange(24.0).reshape(2, 3, 2, 2), torch.arange(12.0).reshape(2, 3, 2)


class AttentionLayer(ABC):
    """What transformers' caches have a layer be that holds keys and values."""

    is_initialized = False

    @abstractmethod
    def get_seq_length(self) -> int: ...


class DynamicLayer(AttentionLayer):
    def get_seq_length(self) -> int:
        return 0


class LinearLayer:
    """What transformers' caches have a recurrent layer be, as in version 5."""

    def __init__(self, number_of_states: int = 1) -> None:
        places = range(number_of_states)
        self.number_of_states = number_of_states
        self.conv_states: dict[int, Tensor | None] = dict.fromkeys(places)
        self.recurrent_states: dict[int, Tensor | None] = dict.fromkeys(places)
        self.conv_kernel_size: dict[int, int | None] = dict.fromkeys(places)
        self.is_conv_states_initialized = dict.fromkeys(places, False)
        self.is_recurrent_states_initialized = dict.fromkeys(places, False)
        self.has_previous_state = dict.fromkeys(places, False)

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0) -> None:
        self.conv_states[state_idx] = conv_states
        self.is_conv_states_initialized[state_idx] = self.has_previous_state[state_idx] = True

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0) -> None:
        self.recurrent_states[state_idx] = recurrent_states
        self.is_recurrent_states_initialized[state_idx] = True

    def reset(self) -> None:
        self.has_previous_state = dict.fromkeys(self.has_previous_state, False)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for held in (self.conv_states, self.recurrent_states):
            for place in range(self.number_of_states):
                state = held[place]
                held[place] = None if state is None else state[beam_idx]


class OfTransformers:
    """A cache that lists its layers and has no item of an index."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.layer_class_to_replicate = DynamicLayer

    def __len__(self) -> int:
        return len(self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        layer = self.layers[layer_idx]
        if not isinstance(layer, AttentionLayer):
            raise ValueError("this layer does not track sequence length")
        return layer.get_seq_length()


class OfFla:
    """A cache that gives a dict for an index and raises a KeyError beyond, whose layers may be None after a reset."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any] | None] = []
        self.seen = 0

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, layer_idx: int) -> dict[str, Any] | None:
        if layer_idx >= len(self.states):
            raise KeyError(layer_idx)
        return self.states[layer_idx]

    def update(self, *, layer_idx: int, offset: int, **states: Any) -> None:
        while len(self.states) <= layer_idx:
            self.states.append(dict.fromkeys(STATES))
        kept = self.states[layer_idx] or dict.fromkeys(STATES)
        self.states[layer_idx] = {**kept, **{name: state for name, state in states.items() if state is not None}}
        self.seen += offset

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen


KINDS = {
    "ours": Cache,
    "fla": OfFla,
    "transformers": lambda: OfTransformers([LinearLayer(), LinearLayer()]),
    "transformers, empty": lambda: OfTransformers([]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer_idx", [0, 1])
@pytest.mark.parametrize("conv_state", [None, C, (C, C + 1, C + 2)], ids=["none", "one", "three"])
def test_what_is_left_is_found(kind: str, layer_idx: int, conv_state: Any) -> None:
    cache = KINDS[kind]()
    assert read_states(cache, layer_idx)["recurrent_state"] is None and seen_tokens(cache, layer_idx) == 0
    write_states(cache, layer_idx, 5, recurrent_state=S.clone(), conv_state=conv_state)
    write_states(cache, layer_idx, 1, recurrent_state=S + 1, conv_state=None)
    found = read_states(cache, layer_idx)
    assert set(found) == set(STATES)
    assert torch.equal(found["recurrent_state"], S + 1)
    assert seen_tokens(cache, layer_idx) == 6
    if isinstance(conv_state, tuple):
        assert all(map(torch.equal, found["conv_state"], conv_state)) and len(found["conv_state"]) == 3
    else:
        assert found["conv_state"] is conv_state or torch.equal(found["conv_state"], conv_state)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_stay_beside_the_states(kind: str) -> None:
    cache = KINDS[kind]()
    assert read_lengths(cache, 0) is None
    write_states(cache, 0, 5, recurrent_state=S.clone())
    assert read_lengths(cache, 0) is None
    write_lengths(cache, 0, torch.tensor([2, 3]))
    write_states(cache, 0, 1, recurrent_state=S.clone())
    for each in (cache, Cache.of(cache)):
        found = read_lengths(each, 0)
        assert found is not None and found.tolist() == [2, 3] and seen_tokens(each, 0) == 6


def test_lengths_go_with_their_sequences_and_are_forgotten_with_them() -> None:
    cache = Cache()
    cache.update(layer_idx=0, recurrent_state=S)
    write_lengths(cache, 0, torch.tensor([2, 3]))
    cache.reorder_cache(torch.tensor([1, 1, 0]))
    assert read_lengths(cache, 0).tolist() == [3, 3, 2]  # type: ignore[union-attr]
    cache.reset()
    assert read_lengths(cache, 0) is None
    theirs = OfTransformers([LinearLayer()])
    write_states(theirs, 0, 1, recurrent_state=S)
    write_lengths(theirs, 0, torch.tensor([2, 3]))
    theirs.layers[0].reset()
    write_states(theirs, 0, 1, recurrent_state=S)
    assert read_lengths(theirs, 0) is None


@pytest.mark.parametrize("kind", ["ours", "transformers", "transformers, empty"])
@pytest.mark.parametrize("conv_state", [None, C, (C, C + 1, C + 2)], ids=["none", "one", "three"])
def test_lengths_go_where_beams_go(kind: str, conv_state: Any) -> None:
    cache = KINDS[kind]()
    for step in range(2):
        write_states(cache, 0, 1, recurrent_state=S.clone(), conv_state=conv_state)
        write_lengths(cache, 0, torch.tensor([2, 3]) + step)
    cache.layers[0].reorder_cache(torch.tensor([1, 0]))
    assert read_lengths(cache, 0).tolist() == [4, 3]  # type: ignore[union-attr]
    found = read_states(cache, 0)
    assert torch.equal(found["recurrent_state"], S[[1, 0]])
    assert conv_state is None or all(map(torch.equal, as_tuple(found["conv_state"]), as_tuple(conv_state, [1, 0])))


def as_tuple(state: Any, order: list[int] | None = None) -> tuple[Tensor, ...]:
    several = (state,) if isinstance(state, Tensor) else state
    return tuple(x if order is None else x[order] for x in several)


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_inference_mode_can_be_used_outside(kind: str) -> None:
    cache = KINDS[kind]()
    with torch.inference_mode():
        write_states(cache, 0, 1, recurrent_state=S + 0, conv_state=(C + 0, C + 1))
        assert read_states(cache, 0)["recurrent_state"].is_inference()
    found = read_states(cache, 0)
    for state in (found["recurrent_state"], *found["conv_state"]):
        state.add_(1)
    assert torch.equal(found["conv_state"][1], C + 2)


@pytest.mark.parametrize("kind", KINDS)
def test_several_states_keep_their_order(kind: str) -> None:
    cache = KINDS[kind]()
    write_states(cache, 0, 1, recurrent_state=(S, S[..., 0]))
    first, second = read_states(cache, 0)["recurrent_state"]
    assert torch.equal(first, S) and torch.equal(second, S[..., 0])


def test_a_layer_of_transformers_that_was_reset_has_nothing() -> None:
    cache = OfTransformers([LinearLayer()])
    write_states(cache, 0, 4, recurrent_state=S)
    cache.layers[0].reset()
    assert read_states(cache, 0)["recurrent_state"] is None and seen_tokens(cache, 0) == 0
    write_states(cache, 0, 2, recurrent_state=S)
    assert seen_tokens(cache, 0) == 2


def test_a_place_made_in_a_cache_of_transformers_counts_its_tokens_for_it() -> None:
    cache = OfTransformers([])
    write_states(cache, 1, 4, recurrent_state=S)
    assert isinstance(cache.layers[0], DynamicLayer)
    assert cache.get_seq_length(1) == 4


def test_a_layer_that_holds_keys_keeps_its_place() -> None:
    layer = DynamicLayer()
    layer.is_initialized = True
    with pytest.raises(ValueError, match="layer 0 is a DynamicLayer, which holds keys and values"):
        write_states(OfTransformers([layer]), 0, 1, recurrent_state=S)


@pytest.mark.parametrize("other", [(S, S), {}, 3, "cache"], ids=lambda other: type(other).__name__)
def test_what_is_no_cache_is_refused(other: object) -> None:
    with pytest.raises(TypeError, match=f"past_key_values: expected a cache .*, got {type(other).__name__}"):
        read_states(other, 0)


def test_a_state_of_another_name_is_refused() -> None:
    with pytest.raises(TypeError, match="recurent_state: expected states called recurrent_state, attn_state"):
        Cache().update(layer_idx=0, recurent_state=S)


def test_states_with_the_value_dim_first_are_turned_once() -> None:
    theirs = OfFla()
    theirs.update(layer_idx=0, offset=7, recurrent_state=S.mT.contiguous(), conv_state=(C, C))
    theirs.update(layer_idx=1, offset=0, recurrent_state=None, conv_state=C)
    ours = Cache.of(theirs, state_v_first=True)
    assert torch.equal(ours[0]["recurrent_state"], S) and torch.equal(ours[1]["conv_state"], C)
    assert ours.get_seq_length(0) == 7
    assert torch.equal(Cache.of(ours)[0]["recurrent_state"], S)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=5))
def test_beams_take_their_states_along(beams: list[int]) -> None:
    cache = Cache()
    cache.update(layer_idx=0, offset=1, recurrent_state=(S, S[..., 0]), conv_state=(C, C))
    cache.reorder_cache(torch.tensor(beams))
    assert torch.equal(cache[0]["recurrent_state"][1], S[beams, ..., 0])
    assert torch.equal(cache[0]["conv_state"][0], C[beams])


def test_a_cache_is_repeated_and_selected_by_sequences() -> None:
    cache = Cache()
    cache.update(layer_idx=0, recurrent_state=S)
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache[0]["recurrent_state"], S[[0, 0, 1, 1]])
    cache.batch_select_indices(torch.tensor([0, 3]))
    assert torch.equal(cache[0]["recurrent_state"], S)


def test_keys_and_values_are_appended_up_to_a_window() -> None:
    keys = torch.arange(6.0).reshape(1, 3, 2)
    cache = Cache()
    cache.update(layer_idx=0, offset=3, attn_state=(keys, -keys))
    cache.update(layer_idx=0, offset=3, attn_state=(keys + 6, -keys), cache_kwargs={"window_size": 4})
    assert torch.equal(cache[0]["attn_state"][0], torch.arange(4.0, 12.0).reshape(1, 4, 2))
    assert cache.get_mask_sizes(2) == (8, 0)


def test_a_reset_forgets_and_a_crop_cannot() -> None:
    cache = Cache()
    cache.update(layer_idx=1, offset=3, recurrent_state=S)
    with pytest.raises(NotImplementedError, match="cannot be taken back"):
        cache.crop(1)
    cache.reset()
    assert cache[1]["recurrent_state"] is None and cache.get_seq_length(1) == 0 and len(cache) == 2


def test_a_copy_of_a_cache_has_states_of_its_own() -> None:
    cache = Cache()
    cache.update(layer_idx=0, offset=7, recurrent_state=S.clone(), conv_state=(C.clone(), None))
    Cache.of(cache)[0]["conv_state"][0].zero_()
    assert torch.equal(cache[0]["conv_state"][0], C)
