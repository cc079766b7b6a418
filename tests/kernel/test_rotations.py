"""Rotations in kernels: the functions that they call, and what the proof takes these to be, against PyTorch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
import torch
from gmpy2 import mpq
from torch import Tensor

from flagen.kernel.precise import Precise, precision
from flagen.kernel.registers import Lanes, Registers
from flagen.kernel.sizes import Sizes
from flagen.kernel.tile_values import TileValues
from flagen.plan.rows import TOKEN
from flagen.plan.tiles import OfAngles, Rotated, Size, Tile, Value
from flagen.spec.model import Dims
from generated.shared import rotations

SIZES = [(8, 4), (8, 2), (8, 1), (6, 3), (12, 3), (12, 6), (16, 5), (2, 1), (15, 5), (15, 7), (9, 3), (3, 1)]
"""Channels, and how many of their pairs have an angle."""

ROWS = 4


def lanes(size: int) -> int:
    return 1 << (size - 1).bit_length()


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def rotation(half: bool):
    return rotations.rotate_half if half else rotations.rotate


def expected(function: str, x: Tensor, other: Tensor, size: int, pairs: int, *, half: bool) -> Tensor:
    """What a function makes of what is no padding: gradients of angles by autograd."""
    if function == "rotate":
        return rotation(half)(x[..., :size], other[..., :pairs])
    # x is the gradient of what has been turned, `other`; from there a small turn of no angle.
    angle = torch.zeros(*other.shape[:-1], pairs, dtype=other.dtype, requires_grad=True)
    turned = rotation(half)(other[..., :size], angle)
    return torch.autograd.grad((turned * x[..., :size]).sum(), angle)[0]


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("function", ["rotate", "of_angles"])
@pytest.mark.parametrize(("size", "pairs"), SIZES)
@pytest.mark.parametrize("lead", [(), (ROWS,), (2, ROWS)])
def test_functions_that_kernels_call(lead: tuple[int, ...], size: int, pairs: int, function: str, half: bool) -> None:
    from tests.kernel.rotation_kernels import call

    channels, angles = lanes(size), max(2, lanes(pairs))
    x = drawn(*lead, channels)
    other = drawn(*lead, angles if function == "rotate" else channels)
    groups, rows = (0, 0, *lead)[-2:]
    out = torch.full_like(x if function == "rotate" else drawn(*lead, angles), float("nan"))
    call[(1,)](x, other, out, f"{function}_half" if half else function, groups, rows, size, pairs, channels, angles)
    wanted = expected(function, x, other, size, pairs, half=half)
    torch.testing.assert_close(out[..., : wanted.shape[-1]], wanted, rtol=1e-12, atol=1e-12)
    # Padding of channels stays, that of angles has no gradient.
    padding = x[..., size:] if function == "rotate" else torch.zeros_like(out[..., pairs:])
    torch.testing.assert_close(out[..., size if function == "rotate" else pairs :], padding, rtol=0, atol=0)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("function", ["rotate", "of_angles"])
@pytest.mark.parametrize(("size", "pairs"), SIZES)
@pytest.mark.parametrize("over", [(), (TOKEN,)])
def test_what_the_proof_takes_them_to_be(over: Dims, size: int, pairs: int, function: str, half: bool) -> None:
    blocks = {TOKEN: ROWS, "K": lanes(size), "R": lanes(pairs)}
    sizes = Sizes((ROWS,), 1, 1, {"K": size, "R": pairs}, blocks, {}, ROWS)
    lead = [ROWS] if over else []
    x = drawn(*lead, blocks["K"])
    other = drawn(*lead, blocks["R"] if function == "rotate" else blocks["K"])
    first, second = Value("x", "local", (*over, "K")), Value("other", "local", (*over, "R"))
    tile: Tile = Rotated(first, second, Size("K"), Size("R"), half, (*over, "K"))
    if function == "of_angles":
        second = Value("other", "local", (*over, "K"))
        tile = OfAngles(first, second, Size("K"), Size("R"), half, "R", (*over, "R"))
    taken = evaluated(sizes, tile, {"x": (first.dims, x), "other": (second.dims, other)})
    wanted = expected(function, x, other, size, pairs, half=half)
    out = torch.tensor(taken, dtype=torch.float64).reshape(*lead, -1)
    torch.testing.assert_close(out[..., : wanted.shape[-1]], wanted, rtol=1e-12, atol=1e-12)


def evaluated(sizes: Sizes, tile: Tile, given: Mapping[str, tuple[Dims, Tensor]]) -> Sequence[float]:
    """A tile in the true functions' arithmetic."""
    with precision():
        registers = Registers((TOKEN, "K", "R"), None, sizes, Precise(random.Random(0)), {}, chunk=range(ROWS))
        for name, (dims, x) in given.items():
            registers.values[name] = Lanes(dims, [mpq(number) for number in x.flatten().tolist()])
        return [float(number) for number in TileValues(registers).value(tile).data]
