"""The shapes that find bugs. Each is as small as what it is there for allows; each variant meets all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from tests.numeric.problems import Shape

EMPTY = Shape(T=0, K=16, V=12, B=2, groups=2)
ONE_TOKEN = Shape(T=1, K=60, V=24, B=2, H=2)
GROUPS_OF_4 = Shape(T=15, K=16, V=20, groups=4, n=1)
BELOW_A_CHUNK = Shape(T=63, K=60, V=32, groups=2, n=3)
ONE_CHUNK = Shape(T=64, K=64, V=16)
ABOVE_A_CHUNK = Shape(T=65, K=100, V=12, n=1)
MANY_CHUNKS = Shape(T=200, K=16, V=12)
WIDE_KEY = Shape(T=15, K=128, V=20, H=2)
WIDEST_KEY = Shape(T=5, K=256, V=12, n=3)
WIDEST_VALUE = Shape(T=5, K=12, V=256, n=3)
PACKED = Shape(lengths=(0, 1, 19, 0, 7, 0), H=2, groups=2, n=3)
PACKED_32 = Shape(lengths=(70, 1, 64), K=16, V=20, n=1, offsets=torch.int32)
PACKED_EMPTY = Shape(lengths=(0, 0), groups=2)

MANY_SLOTS = Shape(T=20, K=20, V=16, M=64, H=2, groups=2)
"""For the variants that have slots."""

SHAPES = (
    EMPTY,
    ONE_TOKEN,
    GROUPS_OF_4,
    BELOW_A_CHUNK,
    ONE_CHUNK,
    ABOVE_A_CHUNK,
    MANY_CHUNKS,
    WIDE_KEY,
    WIDEST_KEY,
    WIDEST_VALUE,
    PACKED,
    PACKED_32,
    PACKED_EMPTY,
)

LOW_PRECISION = (GROUPS_OF_4, ABOVE_A_CHUNK, WIDEST_VALUE, PACKED)
DTYPES = (torch.bfloat16, torch.float16)

FAMILIES = ("simple_gla", "gated_delta_rule", "gated_delta_product", "kda", "oja")
"""One variant for each way its kernels are made: these meet every shape in every way to run it."""


def covering(
    names: Sequence[str], shapes: Sequence[Shape], ways: Sequence[object]
) -> Iterator[tuple[str, Shape, object]]:
    """Variants, shapes and ways to run them such that each variant meets each shape and each way, each shape meets
    each way in many variants, and in those of `FAMILIES` all meet all."""
    for turn, name in enumerate(names):
        for place, shape in enumerate(shapes):
            chosen = ways if name in FAMILIES else [ways[(turn + place) % len(ways)]]
            yield from ((name, shape, way) for way in chosen)


def each_in_a_dtype(names: Sequence[str], shapes: Sequence[Shape] = LOW_PRECISION) -> pytest.MarkDecorator:
    """`name`, `shape` and `dtype`, a low one, of a covering."""
    return pytest.mark.parametrize(("name", "shape", "dtype"), list(covering(names, shapes, DTYPES)), ids=str)
