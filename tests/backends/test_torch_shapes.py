"""The PyTorch forms of every odd shape are its recurrence: rungs 1 and 2, values and gradients."""

from __future__ import annotations

import pytest

from tests.algebra.shapes import SHAPES
from tests.fuzz.ladder import check
from tests.fuzz.packages import build, imported


@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_recurrence(shape):
    spec = SHAPES[shape].spec
    with imported(build(spec, kernels=False)) as package:
        assert hasattr(package, "naive_chunk_written")
        check(spec, package)
