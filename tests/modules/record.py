"""Records what the peer gives for the cases, and what its public names are: python -m tests.modules.record.

For development; it needs flash-linear-attention 0.6.0, whose kernels run in Triton's interpreter. No test needs it.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


def record(only: str = "") -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    warnings.filterwarnings("ignore")
    from flagen.triton_cpu import repair

    repair()
    import numpy as np

    from tests.modules.cases import CASES, run, state

    make_up_for_the_interpreter()
    values: list[np.ndarray] = []
    index: dict[str, dict[str, Any]] = {}
    for case in CASES:
        if only not in case.name:
            continue
        try:
            found, dtypes = run(case, "fla.modules")
        except Exception as error:
            print(f"{case.name}: {type(error).__name__}: {str(error).splitlines()[0][:300]}", file=sys.stderr)
            if only:
                raise
            continue
        index[case.name] = {"dtypes": dtypes, "shapes": {name: list(array.shape) for name, array in found.items()}}
        index[case.name]["state"] = state(case, "fla.modules")
        values += [array.astype(np.float32).ravel() for array in found.values()]
    if not only:
        np.savez_compressed(DATA / "values.npz", values=np.concatenate(values))
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in index.items())
        (DATA / "values.json").write_text(f"{{\n{lines}\n}}\n")


def make_up_for_the_interpreter() -> None:
    """What the peer uses that Triton's interpreter, or a process without torch.compile, does not have."""
    global tl  # A kernel sees its module's names only.
    import triton
    import triton.language as tl
    from fla.modules.fused_cross_entropy import ops as cross_entropy
    from fla.modules.grpo import ops as grpo

    @triton.jit
    def tanh(x):  # type: ignore[no-untyped-def]
        return 2 * tl.sigmoid(2 * x) - 1

    cross_entropy.tanh = tanh
    import fla.modules.grpo as package

    package.grpo_loss_with_old_logps = grpo.grpo_loss_with_old_logps._torchdynamo_orig_callable


if __name__ == "__main__":
    record(*sys.argv[1:])
