"""What the losses over many columns add to a process's memory, beside the plain form of them: on a CPU, in bf16.

    python -m benchmarks.losses [--rows 2048] [--width 256] [--columns 131072] [--save]

Each form runs in a process of its own, forward and backward. What is measured is by how much the process's resident
memory rose at most above what it was with the inputs there; what is counted are the bytes of tensors alive at one time,
exactly, as tests/modules/test_footprint.py asserts them. `--save` keeps both in benchmarks/results/losses.md.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from generated.modules import FusedCrossEntropyLoss, FusedKLDivLoss, FusedLinearCrossEntropyLoss
from tests.modules.footprint import added_peak

RESULTS = Path(__file__).parent / "results" / "losses.md"
MEBIBYTE = 2**20


def plain(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight).float(), target)


def fused_linear_cross_entropy(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = FusedLinearCrossEntropyLoss()(x, target, weight)
    return loss


def plain_kl(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    teacher = F.linear(x.detach(), weight.detach()).float().log_softmax(-1)
    return F.kl_div(F.linear(x, weight).float().log_softmax(-1), teacher, reduction="batchmean", log_target=True)


def fused_kl_div(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = FusedKLDivLoss()(x, x.detach(), weight, weight.detach())
    return loss


def plain_of_logits(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), target)


def fused_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = FusedCrossEntropyLoss(inplace_backward=True)(logits, target)
    return loss


def hidden_states(rows: int, width: int, columns: int) -> tuple[Tensor, ...]:
    x, weight = torch.randn(rows, width), 0.1 * torch.randn(columns, width)
    return *(each.bfloat16().requires_grad_() for each in (x, weight)), torch.randint(columns, (rows,))


def logits(rows: int, width: int, columns: int) -> tuple[Tensor, ...]:
    return torch.randn(rows, columns, dtype=torch.bfloat16, requires_grad=True), torch.randint(columns, (rows,))


FORMS: dict[str, tuple[Callable[..., Tensor], Callable[[int, int, int], tuple[Tensor, ...]]]] = {
    "plain, of hidden states": (plain, hidden_states),
    "FusedLinearCrossEntropyLoss": (fused_linear_cross_entropy, hidden_states),
    "plain KL, of hidden states": (plain_kl, hidden_states),
    "FusedKLDivLoss": (fused_kl_div, hidden_states),
    "plain, of logits": (plain_of_logits, logits),
    "FusedCrossEntropyLoss, in place": (fused_cross_entropy, logits),
}
"""A loss, and what it is of."""


def resident(field: str) -> int:
    """Bytes: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measure(form: str, sizes: tuple[int, int, int]) -> None:
    """Prints the bytes that one step of a form added, and its seconds."""
    loss, make = FORMS[form]

    def step(*sizes: int) -> tuple[int, float]:
        torch.manual_seed(0)
        inputs = make(*sizes)
        Path("/proc/self/clear_refs").write_text("5")
        before, started = resident("VmRSS"), time.perf_counter()
        torch.autograd.grad(loss(*inputs), [x for x in inputs if x.requires_grad])
        return resident("VmHWM") - before, time.perf_counter() - started

    step(4, 16, 128)  # What PyTorch loads with the first call counts for none.
    print(*step(*sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("rows", "width", "columns")
    for name, default in zip(names, (2048, 256, 1 << 17), strict=True):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--save", action="store_true", help=f"keep the table in {RESULTS.name}")
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = (options.rows, options.width, options.columns)
    if options.form:
        measure(options.form, sizes)
        return
    lines = ["| loss | measured MiB | counted MiB | seconds |", "| --- | --- | --- | --- |"]
    print(*lines, sep="\n")
    for form, (loss, make) in FORMS.items():
        given = [part for name, size in zip(names, sizes, strict=True) for part in (f"--{name}", str(size))]
        command = [sys.executable, "-m", "benchmarks.losses", "--form", form, *given]
        added, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        counted = added_peak(lambda make=make: make(*sizes), loss)
        lines.append(f"| {form} | {int(added) / MEBIBYTE:.0f} | {counted / MEBIBYTE:.0f} | {float(seconds):.1f} |")
        print(lines[-1], flush=True)
    if options.save:
        RESULTS.write_text("\n".join((_title(*sizes), "", *lines, "")))


def _title(rows: int, width: int, columns: int) -> str:
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return f"""# What losses add to memory

{rows} rows of {columns:,} columns in bf16, hidden states of {width} channels; forward and backward, gradients included,
but where they take the logits' place. Measured: the rise of a process's resident memory, which has what the C library's
allocator keeps of freed chunks. Counted: bytes of tensors. PyTorch {torch.__version__}, {machine}; written by
`python -m benchmarks.losses --save`."""


if __name__ == "__main__":
    main()
