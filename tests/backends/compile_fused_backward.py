"""Compiles the kernels that `fused_recurrent_backward` launches, and prints what they compile to as JSON."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from flagen.inspection.calls import Workload, arguments, sizes
from flagen.inspection.model import Size
from flagen.inspection.recorder import launch_options, record
from flagen.spec import load_spec
from flagen.triton_cpu.offline import inspect_kernel

SPECS = Path(__file__).parents[2] / "specs"


def reports(name: str, arch: str) -> Iterator[tuple[str, dict[str, int]]]:
    spec = load_spec(SPECS / f"{name}.yaml")
    importlib.import_module(f"generated.{name}.fused_recurrent_backward_kernels")
    module = importlib.import_module(f"generated.{name}.fused_recurrent_backward")
    workload = Workload(Size(128, 128), 64, runs=4, H=2, groups=2, packed=True, initial_state=True)
    given, known = arguments(spec, workload), sizes(spec, workload)
    del given["output_final_state"]
    do = torch.empty(1, 256, known["HV"], *(known[dim] for dim in spec.output_dims), dtype=torch.bfloat16)
    final = torch.empty_like(given["initial_state"])
    function = getattr(module, f"fused_recurrent_backward_{name}")
    for launch in record(lambda: function(do, final, **given), arch):
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
