"""The specs whose scans are tested as kernels, and the kernels of scans that a spec has."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from flagen import pipeline
from flagen.kernel import Programs
from flagen.kernel.ir import Kernel, Program
from flagen.spec import load_spec, parse_spec
from tests.specs import SPECS

SHARED = """
flagen: 1
name: count
state: {n: [], z: [K]}
inputs: {x: [K], a: {dims: [], range: [-.inf, 0]}}
update: [n = exp(a) * n + 1, z = exp(a) * z + n * x]
output: o = z
"""
"""A state that all blocks have."""

PEAK = """
flagen: 1
name: peak
state: {m: {dims: [K], init: -.inf}, h: [K]}
inputs: {x: [K], w: {dims: [], range: [-.inf, 0]}, y: [K]}
update:
  - m = maximum(m + w, x)
  - h = maximum(h + y, 0) + w
output: o = h * exp(m_prev + w - m) + m
"""
"""A running maximum, and a sum that keeps above a number."""

TURNING = """
flagen: 2
name: turning
state: {p: [K]}
inputs: {x: [K], a: [K]}
update: p = fraction(p + a)
output: o = x * cos(6.283185307179586 * p) + p_prev
"""
"""An angle in turns."""

SHIFTED = """
flagen: 2
name: shifted
state: {last: [K], z: [K]}
inputs: {x: [K], y: [K], a: {dims: [], range: [-.inf, 0]}}
update: [last = x * x, z = exp(a) * z + y]
output: o = y * last_prev + last + z
"""
"""A value of the token before, beside a scan."""

WINDOW = """
flagen: 2
name: window
state: {one: [K], two: [K]}
inputs: {x: [K], y: [K]}
params: {w: {dims: [K], per: head}}
update: [two = y * one, one = x * x + w]
output: o = y * two_prev + w * one_prev + one
"""
"""Values of the last two tokens, and nothing that is scanned: a kernel without a walk."""

OWN = {"count": SHARED, "peak": PEAK, "turning": TURNING, "shifted": SHIFTED, "window": WINDOW}
CASES = ("hgrn", "rwkv4", "mamba", "lightnet", "precond_gated_deltanet", *OWN)


@cache
def of(name: str) -> Programs:
    """The programs of a spec that goes chunk by chunk, or of its stage that is a scan."""
    spec = parse_spec(OWN[name], f"{name}.yaml") if name in OWN else load_spec(SPECS / f"{name}.yaml")
    programs = pipeline.lower(pipeline.make_plan(spec, pipeline.derive(spec)))
    return next(each for each in programs.every if is_scan(each.chunk))


def is_scan(program: Program | None) -> bool:
    """Whether it scans the tokens of chunks; what multiplies their rows runs in several ways."""
    return program is not None and not program.ways


def scans_in(programs: Programs) -> Iterator[Kernel]:
    """The kernels of scans, those of stages among them."""
    for each in programs.every:
        for program in (each.chunk, each.chunk_backward):
            if program is not None and is_scan(program):
                yield from program.kernels
