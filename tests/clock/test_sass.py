"""Disassembly as instructions and loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagen.clock.sass import Instruction, Loop, instructions_in, loops_in, read
from tests.clock.printed import instruction, printed

EXIT = instruction("EXIT")
BARRIER = st.none() | st.integers(0, 5)
FRAMES = st.lists(
    st.tuples(st.sampled_from(["/a/kernels.py", "/b/chunks.py"]), st.integers(1, 900)), min_size=1, max_size=3
)
INSTRUCTIONS = st.builds(
    Instruction,
    st.just(0),
    st.sampled_from(["HGMMA.64x128x16.F32.BF16", "LDG.E.128", "FADD", "BAR.SYNC.DEFER_BLOCKING", "ULDC.64"]),
    st.sampled_from(["R2, R4, R6", "UR4, c[0x0][0x208]", "desc[UR4][R2.64+0x10]"]),
    st.integers(0, 15),
    BARRIER,
    BARRIER,
    st.lists(st.integers(0, 5), unique=True).map(lambda waits: tuple(sorted(waits))),
    FRAMES.map(tuple),
)


def placed(*code: Instruction) -> list[Instruction]:
    return [replace(each, address=16 * place) for place, each in enumerate(code)]


@given(st.lists(INSTRUCTIONS, max_size=6))
def test_what_is_printed_is_read(code: list[Instruction]) -> None:
    code = placed(*code, replace(EXIT, frames=(("/a/kernels.py", 1),)))
    assert list(read(printed(code))) == code


def test_lines_stay_those_of_the_instruction_before() -> None:
    first, second, last = placed(
        replace(instruction("FADD"), frames=(("/a.py", 3), ("/b.py", 9))), instruction("FMUL"), EXIT
    )
    assert [each.frames for each in instructions_in(read(printed([first, second, last])))] == [first.frames] * 3


def test_a_predicate_is_no_opcode() -> None:
    (jump, _) = read(printed(placed(instruction("@!P0", "BRA `(.L_x_0)"), EXIT), {16: ".L_x_0"}))
    assert isinstance(jump, Instruction)
    assert (jump.opcode, jump.unit, jump.target) == ("BRA", "control", 16)


@pytest.mark.parametrize(
    ("opcode", "unit"),
    [("HGMMA.64x64x16.F32.BF16", "wgmma"), ("LDG.E", "global load"), ("UIADD3", "uniform"), ("FFMA", "arithmetic")],
)
def test_what_executes_an_instruction(opcode: str, unit: str) -> None:
    assert instruction(opcode).unit == unit


def nested() -> str:
    """Two loops, one in the other, the outer one of which ends behind the last EXIT, as compilers lay it out."""
    outer, inner = instruction("@P0", "BRA `(.L_x_1)"), instruction("@P1", "BRA `(.L_x_2)")
    code = placed(
        instruction("MOV"),
        instruction("FADD"),
        instruction("FMUL"),
        inner,
        instruction("@P2", "EXIT"),
        outer,
        instruction("BRA", "`(.L_x_3)"),
        instruction("NOP"),
    )
    return printed(code, {16: ".L_x_1", 32: ".L_x_2", 96: ".L_x_3"})


def test_loops_lie_in_one_another() -> None:
    code = read(nested())
    first, outer = code
    assert isinstance(first, Instruction)
    assert isinstance(outer, Loop)
    assert [loop.back.address for loop in loops_in(code)] == [80, 48]
    assert [each.address for each in instructions_in(code)] == [0, 16, 32, 48, 64, 80]
    (inner,) = (part for part in outer.body if isinstance(part, Loop))
    assert [each.address for each in instructions_in(inner.body)] == [32, 48]


@pytest.mark.parametrize("text", ["", "        /*0000*/                   EXIT ;\n", "no disassembly"])
def test_what_has_no_encodings_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="nvdisasm -c -gi -hex"):
        read(text)
