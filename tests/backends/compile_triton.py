"""Run in a process of its own, without the interpreter: compiles recurrent kernels, prints what came of it as JSON.

    python -m tests.backends.compile_triton DIRECTORY sm_80 sm_90 < jobs

DIRECTORY is where modules are written that Triton reads kernels' source from. The jobs come as JSON, a text of a spec
and the sizes to compile it for each: `dims` by name, or else `sizes` in the order of the plan.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flagen.backends.triton_.kernel import kernel_context
from flagen.emit.env import environment, render
from flagen.kernel.recurrent import fused_recurrent
from flagen.plan.fused import FusedPlan, plan_fused_recurrent
from flagen.project import bundled
from flagen.spec import parse_spec
from flagen.triton_cpu.offline import CompiledReport, inspect_kernel

HEADS = {"H": 16, "HV": 32}


def compile_kernel(job: dict[str, Any], arch: str, directory: Path) -> CompiledReport:
    """The kernel of a spec for `arch`, with dims of its sizes; either one branch of every `if` or the other."""
    text, packed = job["text"], job["packed"]
    plan = plan_fused_recurrent(parse_spec(text))
    assert isinstance(plan, FusedPlan)
    spec = plan.spec
    path = directory / f"{spec.name}_kernels.py"
    # What kernels call is where flagen has it.
    program = fused_recurrent(plan)
    context = kernel_context(plan, program)
    text = render(
        environment(bundled("templates")), "triton/fused_recurrent_kernels.py.j2", context, shared="flagen.runtime."
    )
    path.write_text(text)
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)

    given = job.get("dims") or dict(zip(plan.order, job["sizes"], strict=False))
    dims = {dim: given[dim] for dim in plan.order}
    config = module.launch_config(**dims)
    kernel = getattr(module, f"fused_recurrent_{spec.name}_kernel")
    element = "*fp32" if packed else "*bf16"
    types: dict[str, str] = {"T": "i32", "o_ptr": "*fp32" if plan.split and plan.split.partial else element}
    types |= {f"{decl.name}_ptr": "*fp32" if decl.range.high == 0 else element for decl in spec.inputs}
    types |= {f"{param.name}_ptr": "*fp32" for param in spec.params if param.is_tensor}
    types |= {param.name: "fp32" for param in spec.params if not param.is_tensor}
    states = [name for name in kernel.arg_names if name not in types and name.endswith("_ptr")]
    offsets = "cu_seqlens_ptr"
    known: dict[str, object] = {offsets: None} if not packed else dict.fromkeys(set(states) - {offsets})
    types |= {offsets: "*i64"} if packed else {name: "*fp32" for name in states if name != offsets}
    known |= {size: {"n": 2, **HEADS, **dims}.get(size, 2) for size in program.kernels[0].sizes}
    num_warps = config.pop("num_warps")
    return inspect_kernel(kernel, types, known | config, arch, num_warps)


if __name__ == "__main__":
    directory, archs = Path(sys.argv[1]), sys.argv[2:]
    for job in json.load(sys.stdin):
        for arch in archs:
            if arch not in job.get("archs", archs):
                continue
            report = asdict(compile_kernel(job, arch, directory))
            # The assembly itself is not asked for, only how often it copies from memory while it goes on computing.
            report["asynchronous_copies"] = report.pop("assembly").count("LDGSTS")
            print(json.dumps({"name": job["name"], "sizes": job["sizes"], "arch": arch, **report}), flush=True)
