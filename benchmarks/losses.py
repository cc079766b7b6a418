"""What the losses over many columns add to a process's memory, beside the plain form of them: on a CPU, in bf16.

    python -m benchmarks.losses [--rows 2048] [--width 128] [--columns 131072]

Each form runs in a process of its own, forward and backward; the figure is by how much the process's resident memory
rose at most. tests/modules/test_footprint.py counts tensors instead, exactly.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

FORMS = ("plain", "fused_linear_cross_entropy", "plain kl", "fused_kl_div")


def resident(field: str) -> int:
    """Bytes: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measure(form: str, rows: int, width: int, columns: int) -> None:
    """Prints the bytes that one step of a form added, and its seconds."""
    import torch
    import torch.nn.functional as F

    from generated.modules import FusedKLDivLoss, FusedLinearCrossEntropyLoss

    def step(rows: int, columns: int) -> tuple[int, float]:
        torch.manual_seed(0)
        x = torch.randn(rows, width).bfloat16().requires_grad_()
        weight = (0.1 * torch.randn(columns, width)).bfloat16().requires_grad_()
        target = torch.randint(columns, (rows,))
        Path("/proc/self/clear_refs").write_text("5")
        before, started = resident("VmRSS"), time.perf_counter()
        if form == "plain":
            loss = F.cross_entropy(F.linear(x, weight).float(), target)
        elif form == "fused_linear_cross_entropy":
            loss = FusedLinearCrossEntropyLoss()(x, target, weight)
        elif form == "plain kl":
            teacher = F.linear(x.detach(), weight.detach()).float().log_softmax(-1)
            student = F.linear(x, weight).float().log_softmax(-1)
            loss = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        else:
            loss = FusedKLDivLoss()(x, x.detach(), weight, weight.detach())
        loss.backward()
        return resident("VmHWM") - before, time.perf_counter() - started

    step(4, 128)
    print(*step(rows, columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--columns", type=int, default=1 << 17)
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [options.rows, options.width, options.columns]
    if options.form:
        measure(options.form, *sizes)
        return
    print(f"{'form':28} {'added MiB':>10} {'seconds':>8}")
    for form in FORMS:
        names = ("--rows", "--width", "--columns")
        given = [part for name, size in zip(names, sizes, strict=True) for part in (name, str(size))]
        command = [sys.executable, "-m", "benchmarks.losses", "--form", form, *given]
        added, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        print(f"{form:28} {int(added) / 2**20:10.0f} {float(seconds):8.1f}")


if __name__ == "__main__":
    main()
