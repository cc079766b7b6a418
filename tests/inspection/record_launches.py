"""Run in a process of its own, without the interpreter: records launches and prints what was kept of them as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from flagen.inspection.recorder import launch_options, record
from flagen.project import UsageError


@triton.jit(do_not_specialize=["T"])
def every_kind_kernel(x, y, absent, offsets, scale, n, one, wide, flag, T, SIZE: tl.constexpr, BLOCK: tl.constexpr = 8):
    pass


@triton.autotune(configs=[triton.Config({"BLOCK": 16}), triton.Config({"BLOCK": 32}, num_warps=8)], key=["n"])
@triton.heuristics({"EVEN": lambda given: given["n"] % given["BLOCK"] == 0})
@triton.jit
def tuned_kernel(x, n, EVEN: tl.constexpr, BLOCK: tl.constexpr):
    pass


def every_kind() -> None:
    x, y = torch.zeros(64, dtype=torch.bfloat16), torch.zeros(64)
    offsets = torch.tensor([0, 4])
    every_kind_kernel[(3,)](x, y[1:], None, offsets, 0.5, 48, 1, 2**40, True, 1, SIZE=64, num_warps=2, maxnreg=80)


def tuned() -> None:
    tuned_kernel[lambda meta: (meta["BLOCK"],)](torch.zeros(64, dtype=torch.float16), 48)


def by_device() -> None:
    major, _ = torch.cuda.get_device_capability("cuda")
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    tuned_kernel.fn[(1,)](torch.zeros(8), 7, BLOCK=processors, num_warps=major)


JOBS: dict[str, tuple[Callable[[], None], str]] = {
    "every kind": (every_kind, "sm_90"),
    "tuned": (tuned, "sm_80"),
    "by device, sm_80": (by_device, "sm_80"),
    "by device, sm_90": (by_device, "sm_90"),
    "not understood": (lambda: tuned_kernel.fn[(1,)]([1], 7, BLOCK=1), "sm_80"),
}


def outcome(job: Callable[[], None], arch: str) -> Any:
    try:
        launches = record(job, arch)
    except UsageError as error:
        return str(error)
    return [
        {
            **{name: value for name, value in vars(launch).items() if name != "grid"},
            "kernel": launch.name,
            "told": launch_options(launch, arch),
            "key": launch.key(arch),
        }
        for launch in launches
    ]


if __name__ == "__main__":
    answers = {name: outcome(*job) for name, job in JOBS.items()}
    answers["options on gfx942"] = launch_options(record(tuned, "gfx942")[0], "gfx942")
    answers["afterwards"] = [torch.cuda.is_available(), type(triton.runtime.jit.JITFunction.run).__name__]
    print(json.dumps(answers))
