"""What an architecture allows a kernel, and whether a kernel keeps to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flagen.inspection.model import Compiled

_KIB = 1024


@dataclass(frozen=True)
class Device:
    """A GPU of an architecture: what its compute capability is called, its processors, and what a program may take.

    `shared_memory` is the most that one program can have, in bytes: more fails at the first launch, not before.
    """

    capability: tuple[int, int]
    processors: int
    shared_memory: int
    warp: int = 32
    wgmma: bool = False


DEVICES: Mapping[str, Device] = {
    "sm_80": Device((8, 0), 108, 163 * _KIB),
    "sm_86": Device((8, 6), 84, 99 * _KIB),
    "sm_89": Device((8, 9), 128, 99 * _KIB),
    "sm_90": Device((9, 0), 132, 227 * _KIB, wgmma=True),
    "sm_100": Device((10, 0), 148, 227 * _KIB),
    "sm_120": Device((12, 0), 170, 99 * _KIB),
    "gfx942": Device((9, 4), 304, 64 * _KIB, warp=64),
    "gfx950": Device((9, 5), 256, 160 * _KIB, warp=64),
}
"""By architecture as Triton names it. Of each, the largest GPU sold when this was written."""

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")
"""Those that kernels are chosen for, and that the committed tables show."""


def verdict(kernel: Compiled) -> tuple[str, ...]:
    """What is wrong with what a kernel compiled to; nothing, if it is fit to ship."""
    device = DEVICES[kernel.arch]
    wrong = []
    if kernel.spill_bytes:
        wrong.append(f"spills {kernel.spill_bytes} bytes")
    if kernel.shared_memory > device.shared_memory:
        wrong.append(f"shared memory over {device.shared_memory} bytes")
    if kernel.wgmma_serialized is not None:
        wrong.append(f"wgmma serialized: {kernel.wgmma_serialized}")
    if device.wgmma and "HMMA" in kernel.matrix_instructions and "HGMMA" not in kernel.matrix_instructions:
        wrong.append("no wgmma: HMMA only")
    return tuple(wrong)
