"""What the proof of kernels takes the functions of `shared/device/chunks.py` to be is what they are."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from gmpy2 import mpq

from flagen.kernel.device import DEVICE
from flagen.kernel.precise import Precise, precision
from flagen.kernel.registers import Lanes, Registers
from flagen.kernel.sizes import Sizes
from flagen.kernel.tile_values import TileValues
from flagen.plan.rows import MEMBER, TOKEN, WRITTEN
from flagen.plan.tiles import Arithmetic, Call, Compare, Constant, Lane, Select, Size, Tile, Value, Whole

ROWS, KEYS = 32, 4
SQUARE, KEYED, ROW = (TOKEN, WRITTEN), (TOKEN, "K"), (TOKEN,)
LANES, COLUMNS = Lane(TOKEN, ROW), Lane(WRITTEN, (WRITTEN,))
A_SQUARE, KEYS_OF_ROWS, A_ROW = (
    Value("square", "local", SQUARE),
    Value("keys", "local", KEYED),
    Value("x", "local", ROW),
)
UP_TO, BEFORE = Compare(">=", LANES, COLUMNS, SQUARE), Compare(">", LANES, COLUMNS, SQUARE)
OF_MEMBERS = Value("of_members", "local", (TOKEN, MEMBER))
TERMS, PRECISION, DTYPE = Size("TERMS"), Size("PRECISION"), Size("dtype")


def _steps(number: int) -> Tile:
    return Arithmetic("//", LANES, Whole(number), ROW)


CALLS: Mapping[str, tuple[str, int, tuple[Tile, ...]]] = {
    "split_log_decay": ("split_log_decay", 0, (A_ROW,)),
    "decay_over": ("decay_over", 0, (UP_TO, KEYS_OF_ROWS, TERMS)),
    "seen_across_cut": ("seen_across_cut", 2, (LANES, Whole(2))),
    "is_upper": ("is_upper", 2, (LANES, Whole(2))),
    **{f"of_other_half at level {level}": ("of_other_half", level, (A_ROW, LANES, Whole(level))) for level in (0, 3)},
    "from_middle": ("from_middle", 8, (LANES, KEYS_OF_ROWS, Whole(8), TERMS)),
    "invert": ("invert", 0, (Select(BEFORE, A_SQUARE, Constant(0.0), SQUARE), Size("CHUNK"), PRECISION)),
    "put": ("put", 3, (A_ROW, Whole(3))),
    "take": ("take", 2, (OF_MEMBERS, Whole(2))),
    "sum_of_earlier": ("sum_of_earlier", 0, (KEYS_OF_ROWS,)),
    "sum_of_later": ("sum_of_later", 0, (KEYS_OF_ROWS,)),
    "sum_of_pairs": ("sum_of_pairs", 2, (A_SQUARE, _steps(2), _steps(2), LANES, PRECISION, DTYPE)),
    "sum_of_steps": ("sum_of_steps", 2, (A_ROW, Whole(2), Size("TOKENS"))),
    "onto_row_before": ("onto_row_before", 0, (A_ROW, Size("CHUNK"))),
    **{
        f"{name} at level {level}": (name, level, (LANES, Whole(level), KEYS_OF_ROWS, Whole(after), TERMS))
        for level in range(5)
        for name, after in (("decay_to_cut", 1), ("decay_before_cut", 0))
    },
}


def test_each_is_here() -> None:
    assert {name for name, _, _ in CALLS.values()} - {"decay_before_cut"} == {*DEVICE}


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("case", CALLS)
def test_it_is_what_it_is_taken_to_be(case: str) -> None:
    import torch

    from tests.kernel.device_kernels import call

    function, number, args = CALLS[case]
    numbers = random.Random(case)
    given = {
        "square": [numbers.randint(-64, 64) / 64 for _ in range(ROWS * ROWS)],
        "keys": [-numbers.randint(0, 64) / 64 for _ in range(ROWS * KEYS)],
        "x": [-numbers.randint(0, 64) / 64 for _ in range(ROWS)],
    }
    out = torch.zeros(ROWS * ROWS)
    call[(1,)](*(torch.tensor(x) for x in given.values()), out, function, number, ROWS, KEYS)
    taken = _taken_to_be("decay_to_cut" if function == "decay_before_cut" else function, args, given)
    assert out.tolist()[: len(taken)] == pytest.approx(taken, rel=1e-5, abs=1e-5)


def _taken_to_be(function: str, args: tuple[Tile, ...], given: Mapping[str, list[float]]) -> list[float]:
    """What the proof makes of the same numbers."""
    blocks = {TOKEN: ROWS, WRITTEN: ROWS, MEMBER: KEYS, "K": KEYS}
    steps = {"n": 2} if function == "sum_of_steps" else {}
    sizes = Sizes((ROWS,), 1, 1, {"K": KEYS}, blocks, steps, 1)
    with precision():
        functions = Precise(random.Random(0))
        registers = Registers((TOKEN, WRITTEN, MEMBER, "K"), None, sizes, functions, {}, chunk=range(ROWS))
        dims = {"square": SQUARE, "keys": KEYED, "x": ROW}
        registers.values = {name: Lanes(dims[name], list(map(mpq, data))) for name, data in given.items()}
        registers.values["of_members"] = Lanes((TOKEN, MEMBER), list(map(mpq, given["keys"])))
        returned = TileValues(registers).called(Call(function, args, ()))()
        parts = [[float(x) for x in lanes.data] for lanes in returned]
    return [sum(pieces) for pieces in zip(*parts, strict=True)]
