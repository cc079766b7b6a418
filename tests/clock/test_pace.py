"""Cycles of code whose timing is known."""

from __future__ import annotations

import pytest

from flagen.clock.pace import MANY, executed, pace, resident
from flagen.clock.sass import Code, Instruction, Loop
from flagen.clock.warp import LATENCY, Warp, matrix_flops, tensor_cycles
from tests.clock.printed import instruction

ADD = instruction("FADD", stall=4)
LOAD = instruction("LDG.E", sets=0)
USE = instruction("FADD", waits=(0,))
PRODUCT = instruction("HGMMA.64x128x16.F32.BF16", "R24, gdesc[UR4]")
WIDE = instruction("HGMMA.64x128x8.F32.TF32", "R24, R8, gdesc[UR4]")
SMALL = instruction("HMMA.16816.F32.BF16", "R4, R8, R2, R4")


def cycles(*code: Instruction, warps: int = 4) -> float:
    return Warp(warps).run(code)


def test_an_instruction_takes_its_stall_or_a_cycle_for_each_warp_of_the_scheduler() -> None:
    assert cycles(ADD) == 4
    assert cycles(ADD, warps=32) == 8


def test_a_result_is_waited_for_once() -> None:
    assert cycles(LOAD, USE) == LATENCY["LDG"] + 1
    assert cycles(LOAD, ADD, USE, USE) == LATENCY["LDG"] + 2
    warp = Warp(4)
    warp.run((LOAD, USE))
    assert dict(warp.waited) == {"global load": LATENCY["LDG"] - 1}


def test_products_follow_one_another() -> None:
    done = instruction("WARPGROUP.DEPBAR.LE", "gsb0, 0x0")
    one, two = cycles(PRODUCT, done), cycles(PRODUCT, PRODUCT, done)
    # 64 rows of 16 and 128 columns of 16, two bytes each, 128 of which come from shared memory in a cycle; or half a
    # cycle for each column.
    assert two - one == tensor_cycles(PRODUCT, 4) == max(128 / 2, (64 + 128) * 16 * 2 / 128)
    assert cycles(PRODUCT, instruction("WARPGROUP.DEPBAR.LE", "gsb0, 0x1")) == 2


def test_copies_are_waited_for_by_group() -> None:
    copy, commit = instruction("LDGSTS.E.BYPASS.128"), instruction("LDGDEPBAR")
    two_groups = (copy, commit, copy, commit)
    assert cycles(*two_groups, instruction("DEPBAR.LE", "SB0, 0x1")) == LATENCY["LDGSTS"] + 1
    assert cycles(*two_groups, instruction("DEPBAR.LE", "SB0, 0x0")) == 2 + LATENCY["LDGSTS"] + 1


def test_shared_memory_serves_one_after_the_other() -> None:
    load, use = instruction("LDS.128", sets=1), instruction("FADD", waits=(1,))
    assert cycles(load, use) == LATENCY["LDS"] + 16 + 1
    assert cycles(load, load, use) == LATENCY["LDS"] + 32 + 1


def test_flops_of_products() -> None:
    assert matrix_flops(PRODUCT, 8) == 2 * 2 * 64 * 128 * 16
    assert matrix_flops(WIDE, 4) == 2 * 64 * 128 * 8
    assert matrix_flops(SMALL, 4) == 4 * 2 * 16 * 8 * 16
    assert matrix_flops(ADD, 4) == 0
    # The left operand is in registers.
    assert tensor_cycles(WIDE, 4) == 64


LOOP = Loop((LOAD, USE))
CODE: Code = (ADD, LOOP)


def paced(turns: float, code: Code = CODE) -> float:
    return pace(code, lambda _: turns, warps=4, registers=64, shared_memory=0).latency


def test_turns_behind_the_first_few_are_alike() -> None:
    steady = paced(MANY) - paced(MANY - 1)
    assert paced(1000) == pytest.approx(paced(MANY) + (1000 - MANY) * steady)


def test_half_a_turn_takes_half_as_long() -> None:
    assert paced(0) == 4
    assert paced(0.5) == pytest.approx((paced(0) + paced(1)) / 2)


def test_what_is_waited_for_is_counted_in_every_turn() -> None:
    found = pace(CODE, lambda _: 100, warps=4, registers=64, shared_memory=0)
    # In each turn but the first, what sets the barrier has been read by then.
    assert found.waited["global load"] == pytest.approx(100 * (LATENCY["LDG"] - 1))
    assert found.walks
    assert found.issue == 1 + 100 * 2


def test_loops_within_loops_multiply() -> None:
    inner = Loop((ADD,))
    outer = Loop((inner, ADD))
    times = dict(executed((outer,), lambda loop: 3 if loop is inner else 5))
    assert times[ADD] in (15, 5)
    found = [count for _, count in executed((outer,), lambda loop: 3 if loop is inner else 5)]
    assert found == [15, 5]


@pytest.mark.parametrize(
    ("registers", "shared_memory", "warps", "expected"),
    [(255, 0, 4, 2), (168, 49152, 4, 3), (64, 115200, 4, 2), (64, 131584, 8, 1), (32, 0, 1, 32), (40, 0, 16, 3)],
)
def test_programs_that_fit(registers: int, shared_memory: int, warps: int, expected: int) -> None:
    assert resident(registers, shared_memory, warps) == expected
