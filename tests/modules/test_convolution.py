"""A short convolution by its operator's kernels, as on a GPU, is what PyTorch computes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from itertools import accumulate
from unittest import mock

import pytest
import torch
from torch import Tensor

from generated.modules import ShortConvolution, convolution
from generated.modules.convolution import causal_conv1d
from tests.numeric.problems import rms_ratio

D = 20
BOUNDS = torch.tensor([0, 2, 2, 3, 7, 31])
CASES = (
    (4, True, True, BOUNDS),
    (3, False, True, BOUNDS),
    (4, False, False, None),
    (2, True, True, None),
    (1, True, False, BOUNDS),
)


def computed(by_kernels: bool) -> AbstractContextManager[object]:
    """As where there is a GPU, or as where there is none."""
    return mock.patch.object(convolution, "by_kernels", lambda rows, weight, activation: by_kernels)


def tensors(width: int, bias: bool, state: bool, bounds: Tensor | None, tokens: int = 31) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    batch, sequences = (1, len(bounds) - 1) if bounds is not None else (2, 2)
    shapes = {"x": (batch, tokens, D), "weight": (D, width)}
    shapes |= {"bias": (D,)} if bias else {}
    shapes |= {"initial_state": (sequences, D, width)} if state else {}
    return {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}


def results(given: dict[str, Tensor], bounds: Tensor | None) -> list[Tensor]:
    """y, the last inputs, and the gradients of all that is given, of both."""
    y, last = causal_conv1d(**given, output_final_state=True, activation="silu", cu_seqlens=bounds)
    generator = torch.Generator().manual_seed(2)
    cotangents = [torch.randn(part.shape, generator=generator).to(part.dtype) for part in (y, last)]
    return [y, last, *torch.autograd.grad([y, last], list(given.values()), cotangents, materialize_grads=True)]


@pytest.mark.parametrize(("width", "bias", "state", "bounds"), CASES)
def test_values_and_gradients(kernels, width, bias, state, bounds):
    given = tensors(width, bias, state, bounds)
    with computed(by_kernels=False):
        expected = results(given, bounds)
    with computed(by_kernels=True):
        found = results(given, bounds)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert rms_ratio(one, other) < 1e-6


def test_a_call_that_is_split_is_the_whole_call(kernels):
    given = tensors(4, True, False, None)
    x = given.pop("x")
    with computed(by_kernels=True):
        whole, end = causal_conv1d(x, **given, output_final_state=True, activation="silu")
        rows, last = [], None
        for piece in x.split((1, 2, 20, 8), 1):
            y, last = causal_conv1d(piece, **given, initial_state=last, output_final_state=True, activation="silu")
            rows.append(y)
    assert torch.allclose(torch.cat(rows, 1), whole, atol=1e-6) and torch.equal(last, end)


@pytest.mark.parametrize("lengths", [(2,), (0,), (0, 1, 2), (0, 0)], ids=str)
def test_sequences_shorter_than_the_window(kernels, lengths):
    bounds = torch.tensor([0, *accumulate(lengths)])
    given = tensors(4, True, True, bounds, sum(lengths))
    with computed(by_kernels=False):
        expected = results(given, bounds)
    with computed(by_kernels=True):
        found = results(given, bounds)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape and torch.allclose(one, other, atol=1e-6)


def test_in_16_bits(kernels):
    module = ShortConvolution(D, 4, bias=True).bfloat16()
    x = torch.randn(2, 9, D, generator=torch.Generator().manual_seed(3)).bfloat16()
    weights = (module.weight.squeeze(1).double(), module.bias.double())
    with torch.no_grad(), computed(by_kernels=True):
        y, last = module(x, output_final_state=True)
    with torch.no_grad(), computed(by_kernels=False):
        wanted, _ = causal_conv1d(x.double(), *weights, activation="silu")
    assert y.dtype == last.dtype == torch.bfloat16
    assert rms_ratio(wanted, y) < 3e-3


def test_the_operator_takes_what_it_can(monkeypatch):
    """On a GPU, up to four taps under an activation, not in float64."""
    monkeypatch.setattr(convolution, "has_triton", lambda: True)
    rows = mock.Mock(device=torch.device("cuda"), dtype=torch.float32)
    assert convolution.by_kernels(rows, torch.ones(D, 4), "silu")
    assert not convolution.by_kernels(rows, torch.ones(D, 5), "silu")
    assert not convolution.by_kernels(rows, torch.ones(D, 4), None)
    assert not convolution.by_kernels(mock.Mock(device=rows.device, dtype=torch.float64), torch.ones(D, 4), "silu")
    assert not convolution.by_kernels(torch.ones(1, 3, D), torch.ones(D, 4), "silu")
