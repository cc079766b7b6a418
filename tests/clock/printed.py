"""Instructions as nvdisasm prints them, and code for tests to run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flagen.clock.sass import Instruction

NONE = 7
"""The number of no barrier."""


def instruction(
    opcode: str,
    operands: str = "",
    *,
    address: int = 0,
    stall: int = 1,
    sets: int | None = None,
    reads: int | None = None,
    waits: Sequence[int] = (),
) -> Instruction:
    return Instruction(address, opcode, operands, stall, sets, reads, tuple(waits))


def printed(instructions: Iterable[Instruction], labels: dict[int, str] | None = None) -> str:
    """A disassembly; `labels` are those of addresses that are jumped to."""
    lines = ["\t.target\tsm_90a", ".text.kernel:"]
    for each in instructions:
        if labels and each.address in labels:
            lines.append(f"{labels[each.address]}:")
        for place, (file, line) in enumerate(each.frames):
            inlined = " inlined at" if place + 1 < len(each.frames) else ""
            lines.append(f'\t//## File "{file}", line {line}{inlined}')
        control = each.stall | (NONE if each.sets is None else each.sets) << 5
        control |= (NONE if each.reads is None else each.reads) << 8 | sum(1 << barrier for barrier in each.waits) << 11
        text = f"{each.opcode} {each.operands}".strip()
        lines.append(f"        /*{each.address:04x}*/                   {text} ;    /* 0x0000000000007918 */")
        lines.append(
            f"                                                        /* 0x{control << 41 & (1 << 64) - 1:016x} */"
        )
    return "\n".join([*lines, ""])
