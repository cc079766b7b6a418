"""Recurrent kernels, compiled for the GPUs they are to run on: those of what the language can say beyond the shipped
specs, and how those of the specs read memory. What else these compile to is in the table: test_shipped_kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from flagen.spec import parse_spec
from flagen.spec.sizes import fitting
from tests.backends import compile_triton
from tests.backends.triton_odd import ODD
from tests.numeric.problems import SLOTTED, Shape, spec_of
from tests.specs import OPERATORS
from tests.tiers import tiered

ROOT = Path(__file__).parents[2]
VARIANTS = {name: path.read_text() for name, path in OPERATORS.items()}
ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")
NVIDIA = ARCHS[:3]
ODD_ARCHS = ("sm_90", "gfx942")
SMALL = [20, 12, 9]
SLOTS = 64

# One worker compiles for all of these tests.
pytestmark = pytest.mark.xdist_group("recurrent kernels")

Reports = dict[tuple[str, tuple[int, ...], str], dict[str, Any]]


STRUCTURES = ("abc_attn", "gla", "hgrn", "linear_attn_normalized", "mamba", "oja", "precond_kda", "rwkv7")
FETCHING = sorted({*((name, "sm_90") for name in STRUCTURES), *(("gated_delta_product", arch) for arch in NVIDIA)})
"""One variant for each way that the kernel can be put together, and one on every architecture: slots, a matrix, vectors
with and without it, channels, reads of the other side, before the update, and of what a vector has made."""

ALWAYS = "sm_90"
"""Where kernels are compiled each time: elsewhere with --all only."""


def on(archs: Iterable[str]) -> pytest.MarkDecorator:
    return tiered("arch", ((arch,) for arch in archs), lambda arch: arch == ALWAYS)


def _arch_of(number: int) -> str:
    """Where an odd spec is compiled: they take turns."""
    return ODD_ARCHS[number % len(ODD_ARCHS)]


def jobs() -> Iterator[dict[str, object]]:
    for name in dict(FETCHING):
        archs, text = sorted(arch for known, arch in FETCHING if known == name), VARIANTS[name]
        dims = Shape(K=128, V=128, M=SLOTS).sizes(spec_of(name))
        yield {"name": name, "text": text, "sizes": [128, 128], "dims": dims, "packed": False, "archs": archs}
    # One branch of every `if` is compiled above, the other here.
    dims = Shape(K=60, V=100, M=SLOTS).sizes(spec_of("rwkv7"))
    yield {"name": "rwkv7", "text": VARIANTS["rwkv7"], "sizes": [60, 100], "dims": dims, "packed": True}
    for number, (name, text) in enumerate(ODD.items()):
        spec = parse_spec(text)
        dims = fitting(spec, {**dict(zip(spec.dims, cycle(SMALL))), "H": 16, "HV": 32})
        job = {"name": name, "text": text, "sizes": SMALL, "dims": dims, "packed": number % 3 == 0}
        yield {**job, "archs": [_arch_of(number)]}
    yield {"name": "oja", "text": VARIANTS["oja"], "sizes": [256, 256], "packed": False}
    yield {"name": "whole_state", "text": ODD["whole_state"], "sizes": [128, 128], "packed": False}
    yield {"name": "slots", "text": ODD["slots"], "sizes": [128, 64, 128], "packed": False}


@pytest.fixture(scope="module")
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    work = json.dumps(list(jobs()))

    def compiled(archs: tuple[str, ...]) -> list[dict[str, Any]]:
        directory = tmp_path_factory.mktemp("kernels")
        command = [sys.executable, "-m", compile_triton.__name__, str(directory), *archs]
        done = subprocess.run(
            command, input=work, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(2) as pool:  # A machine that runs this has two cores.
        groups = (ARCHS[:2], ARCHS[2:]) if request.config.getoption("--all") else ((ALWAYS,),)
        found = [report for group in pool.map(compiled, groups) for report in group]
    return {(report["name"], tuple(report["sizes"]), report["arch"]): report for report in found}


@tiered(("name", "arch"), FETCHING, lambda name, arch: arch == ALWAYS)
def test_the_next_tokens_are_fetched_while_one_is_computed(reports: Reports, name: str, arch: str) -> None:
    # Two tokens ahead before the loop and one more in it, for q, k and v each at least, or for both where two are all.
    # A program that holds slots has more threads than half of its rows have words of four bytes.
    rows = 2 if name in SLOTTED else min(3, sum(bool(decl.dims) for decl in spec_of(name).inputs))
    assert reports[name, (128, 128), arch]["asynchronous_copies"] >= 3 * rows


@on(ARCHS)
def test_packed_sequences_compile_without_spills(reports: Reports, arch: str) -> None:
    assert reports["rwkv7", (60, 100), arch]["spill_bytes"] == 0


@tiered(
    ("name", "arch"),
    [(name, _arch_of(number)) for number, name in enumerate(ODD)],
    lambda name, arch: arch == ALWAYS,
)
def test_what_the_language_can_say_compiles(reports: Reports, name: str, arch: str) -> None:
    assert reports[name, tuple(SMALL), arch]["spill_bytes"] == 0


@on(ARCHS)
def test_a_split_that_only_the_output_crosses_keeps_large_states_in_registers(reports: Reports, arch: str) -> None:
    assert reports["oja", (256, 256), arch]["spill_bytes"] == 0


@on(ARCHS)
def test_states_that_cannot_be_split_fit_at_common_sizes(reports: Reports, arch: str) -> None:
    assert reports["whole_state", (128, 128), arch]["spill_bytes"] == 0
    assert reports["slots", (128, 64, 128), arch]["spill_bytes"] == 0
