"""Run in a process of its own, without the interpreter: compiles the backward's own kernels, prints them as JSON.

    python -m tests.backends.compile_backward sm_80 sm_90 < variants

Nothing calls `chunk_backward_<name>` but tests and operators, so `flagen inspect` does not meet it by itself.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from flagen import algebra
from flagen.backends.triton_.key_backward_walks import matrices
from flagen.inspection.calls import Workload, arguments
from flagen.inspection.model import Size
from flagen.inspection.recorder import launch_options, record
from flagen.plan import make_plan
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.spec import load_spec
from flagen.triton_cpu.offline import inspect_kernel

ROOT = Path(__file__).parents[2]


def launches(name: str, arch: str):
    """What the backward launches in bf16 with K = V = 128, whether a forward call handed its matrices on or not."""
    spec = load_spec(ROOT / "specs" / f"{name}.yaml")
    sys.path[:0] = [str(ROOT / "generated")]
    for kernels in ("chunk_kernels", "chunk_prepare", "chunk_backward_walks", "chunk_backward_gradients"):
        importlib.import_module(f"{name}.{kernels}")
    importlib.import_module(f"{name}.chunk_backward_prepare")
    function = getattr(importlib.import_module(f"{name}.chunk_backward"), f"chunk_backward_{name}")
    workload = Workload(Size(128, 128), 64, 64, H=2, packed=True, initial_state=True)
    given = arguments(spec, workload)
    del given["output_final_state"]
    like = next(decl for decl in spec.inputs if decl.dims == spec.output_dims)
    do, d_state = torch.empty_like(given[like.name]), torch.empty_like(given["initial_state"])
    every = record(lambda: function(do, d_state, **given), arch)
    own = [launch for launch in every if "chunk_backward" in launch.kernel.__module__]
    plan = make_plan(spec, algebra.derive(spec)).chunk_backward
    if not isinstance(plan, KeyBackwardPlan):
        return own  # It takes nothing that a forward call could hand on.
    prepared = tuple(torch.empty(16, dtype=torch.bfloat16) for _ in matrices(plan.forward))
    again = record(lambda: function(do, d_state, prepared=prepared, **given), arch)
    return [*own, *(launch for launch in again if launch.name.endswith("_scale_kernel"))]


def main(archs: list[str]) -> None:
    for name in json.load(sys.stdin):
        for arch in archs:
            for launch in launches(name, arch):
                compiled = inspect_kernel(
                    launch.kernel,
                    launch.signature,
                    launch.constexprs,
                    arch,
                    divisible_by_16=launch.divisible_by_16,
                    **launch_options(launch, arch),
                )
                report = asdict(compiled)
                del report["assembly"]
                print(json.dumps({"variant": name, **report}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
