"""Rung 5: the gradients of the chunk kernels, compiled: some compilers make wrong code of some tiles, silently."""

from __future__ import annotations

import pytest
import torch

from tests.numeric.problems import Shape, make
from tests.numeric.test_chunk_backward import FLOAT32, KERNELS, LOW, LOW_GATES, check

SHAPES = (Shape(T=500, B=2, H=2, groups=2, K=128, V=128), Shape(lengths=(300, 0, 1, 64, 77), K=60, V=100, groups=2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_float32(name, shape):
    check(make(name, shape).to(torch.float32).to("cuda"), FLOAT32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_low_precision(name, dtype, shape):
    check(make(name, shape).to(dtype).to("cuda"), LOW, LOW_GATES)
