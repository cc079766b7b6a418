"""Mini-batches in numbers: calls cut anywhere, sequences that begin them at different tokens, and long counts."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from generated.shared.mini_batches import tokens_at_once
from tests.numeric.problems import Shape, assert_close, evaluate, form, make, rms_ratio

TRAINED = ("ttt_linear", "titans_linear")
LENGTH = 33


@pytest.mark.parametrize("kind", ["naive_recurrent", "naive_chunk", "fused_recurrent", "chunk"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_call_that_is_cut_anywhere_is_the_whole_call(kernels, name, kind):
    problem = make(name, Shape(T=LENGTH, K=8, B=2, groups=2), state=False, mini_batch_size=8, eps=0.3)
    problem = problem.to(torch.float32)
    inputs = [x for x in problem.tensors.values() if x.shape[1] == LENGTH]
    params = [x for x in problem.tensors.values() if x.shape[1] != LENGTH]
    function = form(kind, name)
    whole, end = function(*inputs, *params, **problem.scalars, output_final_state=True)
    rows, state, start = [], None, 0
    for length in (3, 5, 1, 12, 12):
        piece = [x[:, start : start + length] for x in inputs]
        o, state = function(*piece, *params, **problem.scalars, initial_state=state, output_final_state=True)
        rows.append(o)
        start += length
    assert rms_ratio(whole, torch.cat(rows, 1)) < 3e-6
    assert all(rms_ratio(x, y) < 3e-6 for x, y in zip(end, state, strict=True))
    assert torch.equal(state[-1], torch.full_like(state[-1], LENGTH))


@pytest.mark.parametrize("name", TRAINED)
def test_kernels_are_the_recurrence_wherever_mini_batches_begin(kernels, name):
    """With all gradients, those of final states too: mini-batches that chunks have several of, or parts, or that no
    power of two divides; sequences of no token, of one, and such as end with a mini-batch."""
    shapes = Shape(T=45, K=20, B=2, groups=2), Shape(lengths=(0, 1, 16, 0, 27), K=16)
    for shape, every, chunk_size in product(shapes, (1, 5, 16, 40, 34), (16, 32)):
        problem = make(name, shape, mini_batch_size=every, eps=0.3).to(torch.float32)
        expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64))
        found = evaluate(form("chunk", name), problem, chunk_size=chunk_size)
        assert_close(expected, found, 1e-5, gradients=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", TRAINED)
def test_kernels_in_half_precision(kernels, name, dtype):
    problem = make(name, Shape(T=50, K=32, B=2, groups=2), mini_batch_size=16, eps=0.3).to(dtype)
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64))
    assert_close(expected, evaluate(form("chunk", name), problem), 5e-3, gradients=8e-3)


@pytest.mark.parametrize("name", TRAINED)
def test_only_what_is_asked_for_has_a_gradient(kernels, name):
    problem = make(name, Shape(T=20, K=16), mini_batch_size=8, eps=0.3).to(torch.float32)
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64))
    for wanted in (("k",), ("v", "w")):
        found = evaluate(form("chunk", name), problem, wrt=wanted)
        assert_close({key: expected[key] for key in found}, found, 1e-5, gradients=1e-4)


@pytest.mark.parametrize(
    ("every", "most", "length"), [(16, 16, 16), (16, 64, 16), (40, 16, 10), (34, 16, 2), (17, 16, 1)]
)
def test_what_a_chunk_of_a_mini_batch_has(every, most, length):
    assert tokens_at_once(every, most) == length


@pytest.mark.parametrize("name", TRAINED)
def test_mini_batches_are_of_whole_tokens_and_alike_for_all_heads(kernels, name):
    problem = make(name, Shape(T=6, K=4, groups=2))
    for kind in ("naive_chunk", "chunk"):
        with pytest.raises(ValueError, match=r"mini-batches: expected a whole number of tokens, at least 1, got 2\.5"):
            problem.to(torch.float32).call(form(kind, name), mini_batch_size=2.5)
    *others, position = problem.initial_state
    position = position + torch.tensor([0, 1])
    with pytest.raises(ValueError, match="initial_state: expected as many tokens before the first for all heads"):
        problem.call(form("naive_chunk", name), initial_state=(*others, position))


@pytest.mark.parametrize("name", TRAINED)
def test_nothing_read_yet_leaves_gradients_finite(name):
    """A layer norm of 0 multiplies by 1000 then, as small as eps is by default."""
    problem = make(name, Shape(T=20, K=8), state=False, eps=1e-6, mini_batch_size=16).to(torch.float32)
    leaves = {key: x.requires_grad_() for key, x in problem.tensors.items()}
    o, _ = problem.with_tensors(**leaves).call(form("naive_chunk", name))
    found = torch.autograd.grad(o.sum(), list(leaves.values()))
    assert o.isfinite().all() and all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("every", [1, 3, 7, 10, 16, 100])
def test_a_count_is_exact_in_float32(every):
    """Up to a million tokens, by a division that is off by two units in the last place, too."""
    count = torch.cat([torch.arange(10_000), torch.arange(2**20 - 10_000, 2**20)]).float()
    expected = (count.long() % every == 0).float()
    unit = torch.finfo(torch.float32).eps
    for off in (-2 * unit, 0.0, 2 * unit):
        behind, before = (((count + half) / every * (1 + off)).floor() for half in (0.5, -0.5))
        assert torch.equal(behind - before, expected)
