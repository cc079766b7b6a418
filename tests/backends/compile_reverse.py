"""Compiles the kernels that a `fused_recurrent_backward` by transposed statements launches, and prints what they become
as JSON: those of variants, and of specs of tests/backends/triton_odd.py, which are built first."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from flagen.inspection.calls import within
from flagen.inspection.recorder import launch_options, record
from flagen.spec import load_spec, parse_spec
from flagen.spec.model import Spec
from flagen.spec.sizes import fitting
from flagen.triton_cpu.offline import inspect_kernel
from tests.backends.triton_odd import ODD
from tests.fuzz.packages import build, imported

SPECS = Path(__file__).parents[2] / "specs"

TOKENS = 64
SIZES = {"K": 128, "V": 128, "D": 128, "E": 128, "M": 64, "N": 16}
"""What papers have: slots and the numbers of a channel are few."""


def reports(name: str, arch: str) -> Iterator[tuple[str, dict[str, int]]]:
    if name not in ODD:
        yield from _reports(load_spec(SPECS / f"{name}.yaml"), importlib.import_module(f"generated.{name}"), arch)
        return
    spec = parse_spec(ODD[name])
    with imported(build(spec)) as package:
        yield from _reports(spec, package, arch)


def _reports(spec: Spec, package: ModuleType, arch: str) -> Iterator[tuple[str, dict[str, int]]]:
    importlib.import_module(f"{package.__name__}.fused_recurrent_backward_kernels")
    module = importlib.import_module(f"{package.__name__}.fused_recurrent_backward")
    known = SIZES | {dim: 64 for dim in spec.dims if dim not in SIZES}
    sizes = fitting(spec, {**known, "H": 2, "HV": 4 if spec.has_value_heads else 2})

    def empty(*shape: int | str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty([sizes.get(size, size) for size in shape], dtype=dtype)

    steps = 2 if spec.steps is not None else 1
    rows = {"token": 4 * TOKENS, "step": 4 * TOKENS * steps}
    given = {decl.name: empty(1, rows[decl.per], decl.heads, *decl.dims) for decl in spec.inputs}
    if spec.steps is not None:
        given[spec.steps.argument] = steps
    for param in spec.params:
        if param.is_tensor:
            given[param.name] = empty(*(["HV"] if param.per_head else []), *param.dims)
        elif param.default is None:
            given[param.name] = within(param.range)
    do = empty(1, 4 * TOKENS, "HV", *spec.output_dims)
    states = tuple(empty(4, "HV", *state.dims, dtype=torch.float32) for state in spec.states)
    given["initial_state"] = states if len(states) > 1 else states[0]
    given["cu_seqlens"] = torch.arange(0, 4 * TOKENS + 1, TOKENS)
    function = getattr(module, f"fused_recurrent_backward_{spec.name}")
    for launch in record(lambda: function(do, *states, **given), arch):
        report = inspect_kernel(
            launch.kernel,
            launch.signature,
            launch.constexprs,
            arch,
            divisible_by_16=launch.divisible_by_16,
            **launch_options(launch, arch),
        )
        figures = {"registers": report.registers, "spills": report.spill_bytes, "shared_memory": report.shared_memory}
        yield launch.name, figures


if __name__ == "__main__":
    arch, *names = sys.argv[1:]
    print(json.dumps(dict(row for name in names for row in reports(name, arch))))
