"""Shapes of tensors in a layer: sizes, of which batch and time are not numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Shape = tuple[int | str, ...]
"""`("B", "T", 6, 256)`: batch, tokens, heads, channels. A parameter's has numbers only."""

TIME = "T"


class Misfit(Exception):
    """Shapes that do not fit: what is wrong, and what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def shown(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def tokens(shape: Shape) -> bool:
    """Whether a tensor has a value for every token."""
    return len(shape) > 1 and shape[0] == "B"


def broadcast(*shapes: Shape) -> Shape:
    """The shape of what is computed elementwise, by PyTorch's rules."""
    result: list[int | str] = []
    for place in range(1, max(map(len, shapes), default=0) + 1):
        sizes = {shape[-place] for shape in shapes if len(shape) >= place} - {1}
        if len(sizes) > 1:
            raise Misfit(f"shapes that do not broadcast: {' and '.join(shown(shape) for shape in shapes if shape)}")
        result.append(sizes.pop() if sizes else 1)
    return tuple(reversed(result))


def last_dim(shape: Shape, size: Any, name: str) -> Shape:
    """The dims before the last one, which has to be `size`."""
    if not shape or shape[-1] != size:
        raise Misfit(f"the last dim of `{name}` is to be {size}, and its shape is {shown(shape)}")
    return shape[:-1]


def same_shape(a: Shape, b: Shape, first: str, second: str) -> Shape:
    if a != b:
        raise Misfit(f"`{first}` and `{second}` have one shape, and these are {shown(a)} and {shown(b)}")
    return a


def grouped(size: int, group: int, name: str, group_name: str) -> int:
    if size % group:
        raise Misfit(f"`{name}` is a multiple of `{group_name}`, and {size} is none of {group}")
    return size // group


def parted(shape: Shape, count: Any) -> Shape:
    size = shape[-1] if shape else 1
    if not isinstance(size, int) or not isinstance(count, int) or count < 1 or size % count:
        raise Misfit(f"the last dim of {shown(shape)} has no {count} equal parts")
    return (*shape[:-1], count, size // count)


def merged(shape: Shape) -> Shape:
    if len(shape) < 2 or not isinstance(shape[-1], int) or not isinstance(shape[-2], int):
        raise Misfit(f"there are no heads to merge in {shown(shape)}")
    return (*shape[:-2], shape[-2] * shape[-1])


def repeated_heads(shape: Shape, count: Any) -> Shape:
    if len(shape) < 3 or not tokens(shape) or not isinstance(size := shape[2], int):
        raise Misfit(f"`x` has heads, and its shape is {shown(shape)}", "`heads(x, n)` parts channels into heads")
    return (*shape[:2], size * count, *shape[3:])


def mapped_heads(shape: Shape, weight: Shape) -> Shape:
    if len(weight) != 3 or len(shape) < 3 or shape[-2:] != weight[:2]:
        raise Misfit(
            f"each head times its matrix wants [..., n, i] and [n, i, o]; these are {shown(shape)} and {shown(weight)}",
            "`heads(x, n)` parts channels into heads",
        )
    return (*shape[:-1], weight[2])


def repeated_first(shape: Shape, count: Any) -> Shape:
    if not shape or not isinstance(size := shape[0], int):
        raise Misfit(f"a param has a first dim, and the shape is {shown(shape)}", "heads of tokens: `repeat_heads`")
    return (size * count, *shape[1:])


def head_steps(shape: Shape, name: str) -> None:
    if len(shape) != 4 or not tokens(shape):
        raise Misfit(f"`{name}` has heads, and its shape is {shown(shape)}", "`heads(x, n)` parts channels into heads")


def spread_steps(shape: Shape, count: Any, name: str, channels: bool = False) -> Shape:
    if not tokens(shape) or (channels and len(shape) != 3):
        raise Misfit(f"`{name}` has a value for every token, and its shape is {shown(shape)}")
    if not channels:
        return shape
    *_, part = parted(shape, count)
    return shape[0], (f"{shape[1]}*{count}" if count > 1 else shape[1]), part


def widened(shape: Shape, sizes: Any) -> tuple[Shape, ...]:
    parts: Sequence[Any] = sizes if isinstance(sizes, tuple) else (sizes,)
    if not shape or sum(parts) != shape[-1]:
        raise Misfit(f"the parts {shown(tuple(parts))} add up to {sum(parts)}, and the shape is {shown(shape)}")
    return tuple((*shape[:-1], part) for part in parts)


def summed(shape: Shape) -> Shape:
    if not shape:
        raise Misfit("a number has nothing to sum over")
    return (*shape[:-1], 1)


def per_head(shape: Shape) -> Shape:
    if len(shape) != 1:
        raise Misfit(f"one number a head is to have one dim, and the shape is {shown(shape)}")
    return (*shape, 1)
