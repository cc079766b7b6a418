"""Tokens go into a packing and come out where they were; what is no token comes out as exactly zero."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from generated.shared.packing import Packing
from generated.shared.shift import shift

Lengths = st.lists(st.integers(0, 6), min_size=1, max_size=4)


def padded(lengths: list[int], side: str, tokens: int = 6) -> Tensor:
    at, count = torch.arange(tokens), torch.tensor(lengths)[:, None]
    return at < count if side == "right" else at >= tokens - count


def numbered(*shape: int) -> Tensor:
    """No two numbers are equal, and none is 0."""
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)


@given(Lengths, st.sampled_from(["left", "right"]), st.sampled_from([(), (3,), (2, 3)]))
def test_tokens_come_back_to_their_places(lengths: list[int], side: str, dims: tuple[int, ...]) -> None:
    mask = padded(lengths, side)
    x = numbered(len(lengths), 6, *(dims or (1,)))
    packing = Packing.of(x, mask)
    expected = torch.where(mask.reshape(len(lengths), 6, *[1] * (x.ndim - 2)), x, 0)
    assert torch.equal(packing.unpack(packing.pack(x)), expected)


@given(Lengths.filter(lambda lengths: min(lengths) < 6), st.sampled_from(["left", "right"]))
def test_packed_sequences_are_the_rows_without_their_padding(lengths: list[int], side: str) -> None:
    mask, x = padded(lengths, side), numbered(len(lengths), 6, 2)
    packing = Packing.of(x, mask)
    assert packing.cu_seqlens is not None
    starts = packing.cu_seqlens.tolist()
    assert [end - start for start, end in pairwise(starts)] == lengths
    for row, (start, end) in enumerate(pairwise(starts)):
        assert torch.equal(packing.pack(x)[0, start:end], x[row, mask[row]])


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=3))
def test_any_mask_and_the_columns_before_this_call(rows: list[list[bool]]) -> None:
    mask = torch.tensor(rows)
    x = numbered(len(rows), 4, 2)
    packing = Packing.of(x, mask.long())
    assert torch.equal(packing.unpack(packing.pack(x)), torch.where(mask[:, 5:, None], x, 0))
    assert torch.equal(torch.as_tensor(packing.first_positions(5)), mask[:, :5].sum(-1))
    assert packing.first_positions(0) == 0


@given(Lengths)
def test_multiply_keeps_padding_in_its_place(lengths: list[int]) -> None:
    mask, x = padded(lengths, "left"), numbered(len(lengths), 6, 2)
    packing = Packing.of(x, mask, multiply=True)
    assert packing.cu_seqlens is None
    assert torch.equal(packing.pack(x), x)
    assert torch.equal(packing.masked(x), torch.where(mask[..., None], x, 0))
    assert torch.equal(packing.unpack(x), packing.masked(x))


def test_padding_is_zero_whatever_stands_there() -> None:
    x = torch.full((1, 2, 1), torch.nan)
    packing = Packing.of(x, torch.tensor([[0, 1]]), multiply=True)
    assert packing.unpack(x)[0, 0] == 0


def test_where_nothing_is_padded_nothing_is_packed() -> None:
    x = numbered(2, 3, 1)
    packing = Packing.of(x, torch.ones(2, 5))
    assert packing.cu_seqlens is None
    assert packing.pack(x) is x and packing.unpack(x) is x


def test_cu_seqlens_go_before_a_mask() -> None:
    x, offsets = numbered(1, 3, 1), torch.tensor([0, 1, 1, 3])
    packing = Packing.of(x, torch.zeros(1, 3), offsets)
    assert packing.cu_seqlens is not None and torch.equal(packing.cu_seqlens, offsets)
    assert packing.unpack(packing.pack(x)) is x


def test_gradients_go_through() -> None:
    x = numbered(2, 3, 1).requires_grad_()
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]])
    packing = Packing.of(x, mask)
    (packing.unpack(2 * packing.pack(x)) * x.detach()).sum().backward()
    assert torch.equal(x.grad, 2 * x.detach() * mask[..., None])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": torch.ones(2, 3, 3)}, r"attention_mask: expected \[2, S\].*got \(2, 3, 3\)"),
        ({"attention_mask": torch.ones(2, 2)}, "with S at least 3, got"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask: expected \[2, S\]"),
        (
            {"cu_seqlens": torch.tensor([0, 3])},
            "cu_seqlens: expected packed sequences in a batch of 1, got a batch of 2",
        ),
        ({"cu_seqlens": torch.tensor([0.0, 3.0])}, "cu_seqlens: expected .* int32 or int64, got torch.float32"),
    ],
)
def test_what_does_not_fit_is_named(arguments: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Packing.of(numbered(2, 3, 1), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_states": torch.ones(2, 3, 1, dtype=torch.int64)}, "hidden_states: expected floats, got torch.int64"),
        ({"hidden_states": None}, "hidden_states: expected a tensor, got NoneType"),
        ({"attention_mask": [[1, 1, 1]] * 2}, "attention_mask: expected a tensor, got list"),
        ({"cu_seqlens": [0, 3]}, "cu_seqlens: expected a tensor, got list"),
    ],
)
def test_what_is_of_another_type_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Packing.of(**{"hidden_states": numbered(2, 3, 1), **arguments})


@pytest.mark.parametrize("offsets", [[0, 2], [1, 3], [0, 2, 1, 3], [0, 4]])
def test_offsets_that_are_not_those_of_the_tokens(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match=r"cu_seqlens: expected non-decreasing offsets from 0 to T = 3, got"):
        Packing.of(numbered(1, 3, 1), None, torch.tensor(offsets))


# -------------------------------------------------------------------------------------------------- the token before


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.booleans())
def test_packed_sequences_have_their_own_token_before(lengths: list[int], cached: bool) -> None:
    x = numbered(1, sum(lengths), 2)
    cache = -numbered(len(lengths), 2) if cached else None
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    before, last = shift(x, cache, True, offsets)
    assert last is not None
    for row, (start, end) in enumerate(pairwise(offsets.tolist())):
        alone, its_last = shift(x[:, start:end], None if cache is None else cache[row : row + 1], True)
        assert torch.equal(before[:, start:end], alone)
        assert torch.equal(last[row : row + 1], its_last)


def test_a_sequence_in_pieces_has_the_tokens_before_of_the_whole() -> None:
    x = numbered(2, 5, 3)
    whole, _ = shift(x)
    first, last = shift(x[:, :2], None, True)
    rest, _ = shift(x[:, 2:], last)
    assert torch.equal(torch.cat([first, rest], 1), whole)
    assert torch.equal(whole[:, 1:], x[:, :-1]) and not whole[:, 0].any()


def test_the_cache_of_other_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cache: expected \[N, D\] = \[2, 3\], got \(1, 3\)"):
        shift(numbered(2, 5, 3), numbered(1, 3))
