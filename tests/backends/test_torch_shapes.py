"""The PyTorch forms of every odd shape are its recurrence: rungs 1 and 2, values and gradients."""

from __future__ import annotations

from tests.algebra.shapes import SHAPES
from tests.fuzz.ladder import check
from tests.fuzz.packages import build, imported
from tests.tiers import tiered


@tiered(
    ("turn", "shape"),
    enumerate(SHAPES),
    lambda turn, _: turn % 3 == 0,
)
def test_is_the_recurrence(turn, shape):
    spec = SHAPES[shape].spec
    with imported(build(spec, kernels=False)) as package:
        assert hasattr(package, "naive_chunk_written")
        check(spec, package)
