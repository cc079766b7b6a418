"""The shapes that find bugs. Each is as small as what it is there for allows; each variant meets all of them, a few
always: tests.tiers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import pytest
import torch

from tests.numeric.problems import Shape
from tests.tiers import represents, tiered

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
PACKED = Shape(lengths=(0, 1, 0, 19, 0), H=2, groups=2, n=3)
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

FEW = (ABOVE_A_CHUNK, PACKED)
"""What every variant meets each time: a second chunk, K and V that are no powers of two, packing, groups of heads."""

LOW_PRECISION = (GROUPS_OF_4, ABOVE_A_CHUNK, WIDEST_VALUE, PACKED)
DTYPES = (torch.bfloat16, torch.float16)


def in_low_precision(names: Iterable[str]) -> pytest.MarkDecorator:
    """`name`, `shape` and `dtype`, a low one, all with all: always every shape of the representatives, and one of the
    others, in either dtype, which they take in turns; one of the representatives' interpreted."""
    names = list(names)

    def always(name: str, shape: Shape, dtype: torch.dtype) -> bool:
        turn = names.index(name) + LOW_PRECISION.index(shape)
        return (represents(name) or shape == PACKED) and dtype == DTYPES[turn % len(DTYPES)]

    def in_triton(name: str, shape: Shape, dtype: torch.dtype) -> bool:
        return represents(name) and always(name, shape, dtype) and shape == GROUPS_OF_4

    return tiered(("name", "shape", "dtype"), product(names, LOW_PRECISION, DTYPES), always, in_triton)
