"""Rung 5: the chunk kernels, compiled, at the shapes of real models."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.gpu.test_fused_recurrent import BOUNDS, SHAPES
from tests.numeric.problems import NAMES, Shape, assert_close, evaluate, form, make, package

KERNELS = [name for name in NAMES if hasattr(package(name), f"chunk_{name}")]
TWO_FORMS = [name for name in KERNELS if hasattr(importlib.import_module(f"generated.{name}.chunk"), "launches")]
"""All but those that read from the right."""


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_is_the_recurrence(name, dtype, shape):
    problem = make(name, shape).to(dtype).to("cuda")
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64), wrt=())
    assert_close(expected, evaluate(form("chunk", name), problem, wrt=()), BOUNDS[dtype])


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("name", KERNELS)
def test_chunk_sizes(name, size):
    problem = make(name, Shape(T=500, H=2, groups=2, K=128, V=64)).to(torch.bfloat16).to("cuda")
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64), wrt=())
    assert_close(expected, evaluate(form("chunk", name), problem, wrt=(), chunk_size=size), 5e-3)


@pytest.mark.parametrize("splits", [True, False])
@pytest.mark.parametrize("name", TWO_FORMS)
def test_outputs_in_the_walk_and_in_a_kernel_of_their_own(name, splits, monkeypatch):
    launcher = importlib.import_module(f"generated.{name}.chunk")
    monkeypatch.setattr(launcher.launches, "splits", lambda programs, device: splits)
    problem = make(name, Shape(T=500, B=2, H=2, groups=2, K=128, V=128)).to(torch.bfloat16).to("cuda")
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64), wrt=())
    assert_close(expected, evaluate(form("chunk", name), problem, wrt=()), 5e-3)
