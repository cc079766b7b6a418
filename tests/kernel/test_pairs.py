"""All pairs of two vectors in kernels: the functions that they call, and what the proof takes these to be, against
PyTorch."""

from __future__ import annotations

import random

import pytest
import torch
from gmpy2 import mpq
from torch import Tensor

from flagen.kernel.elementary import Elementary
from flagen.kernel.registers import Lanes, Registers
from flagen.kernel.sizes import Sizes
from flagen.kernel.tile_values import TileValues
from flagen.plan.rows import TOKEN
from flagen.plan.tiles import OfPairs, Paired, Tile, Value
from flagen.spec.model import Dims

FUNCTIONS = ("all_pairs", "of_first", "of_second")
ROWS = 4


def drawn(*shape: int) -> Tensor:
    return torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(sum(shape))).double()


def expected(function: str, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
    """What a function makes of vectors: of gradients by autograd."""
    sides = [side.clone().requires_grad_() for side in (x, y)]
    every = (sides[0][..., :, None] * sides[1][..., None, :]).flatten(-2)
    if function == "all_pairs":
        return every.detach()
    (found,) = torch.autograd.grad((every * gradient).sum(), sides[0 if function == "of_first" else 1])
    return found


def given(rows: int, x: int, y: int) -> tuple[Tensor, Tensor, Tensor]:
    lead = (rows,) if rows else ()
    return drawn(*lead, x), drawn(*lead, y), drawn(*lead, x * y)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(("x", "y"), [(4, 8), (8, 2), (1, 4), (2, 1)])
@pytest.mark.parametrize("rows", [0, ROWS])
def test_functions_that_kernels_call(rows: int, x: int, y: int) -> None:
    from tests.kernel.pair_kernels import call

    first, second, gradient = given(rows, x, y)
    for function in FUNCTIONS:
        wanted = expected(function, first, second, gradient)
        out = torch.full_like(wanted, float("nan"))
        call[(1,)](first, second, gradient, out, function, rows, x, y)
        torch.testing.assert_close(out, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("over", [(), (TOKEN,)])
def test_what_the_proof_takes_them_to_be(over: Dims) -> None:
    """With lanes that pad either side: they are those of no pair in memory."""
    pairs = {"K_L": ("K", "L")}
    blocks = {TOKEN: ROWS, "K": 4, "L": 2, "K_L": 8}
    sizes = Sizes((ROWS,), 1, 1, {"K": 3, "L": 2, "K_L": 6}, blocks, {}, ROWS, pairs=pairs)
    x, y, gradient = given(ROWS if over else 0, 4, 2)
    first, second = Value("x", "local", (*over, "K")), Value("y", "local", (*over, "L"))
    of_pairs = Value("gradient", "local", (*over, "K_L"))
    tiles: dict[str, Tile] = {
        "all_pairs": Paired(first, second, (*over, "K_L")),
        "of_first": OfPairs(of_pairs, second, True, (*over, "K")),
        "of_second": OfPairs(of_pairs, first, False, (*over, "L")),
    }
    registers = Registers((TOKEN, "K", "L", "K_L"), None, sizes, Elementary(random.Random(0)), {}, chunk=range(ROWS))
    for value, numbers in ((first, x), (second, y), (of_pairs, gradient)):
        registers.values[value.name] = Lanes(value.dims, [mpq(number) for number in numbers.flatten().tolist()])
    for function, tile in tiles.items():
        found = torch.tensor([float(number) for number in TileValues(registers).value(tile).data])
        wanted = expected(function, x, y, gradient)
        torch.testing.assert_close(found.double().reshape(wanted.shape), wanted, rtol=0, atol=0)
    assert [sizes.place("K_L", lane) for lane in range(8)] == [0, 1, 2, 3, 4, 5, None, None]
    other = Sizes((ROWS,), 1, 1, {"K": 2, "L": 3, "K_L": 6}, {"K": 2, "L": 4, "K_L": 8}, {}, ROWS, pairs=pairs)
    assert [other.place("K_L", lane) for lane in range(8)] == [0, 1, 2, None, 3, 4, 5, None]
