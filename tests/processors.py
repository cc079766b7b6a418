"""Runs a command as other processors round, one after the other, and fails where it fails.

    python -m tests.processors python -m pytest tests/numeric

Libraries sum in the order that suits the instructions there are: torch in its own loops, MKL in torch's matrix products
and solves, OpenBLAS in numpy's products, which are those of Triton's interpreter, numpy in its loops. Each takes fewer
instructions than the processor has where the environment says so. A bound that holds for one order only is no bound.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import numpy as np


def settings() -> dict[str, Mapping[str, str]]:
    """The environment of each kind of processor, by its name."""
    dispatched = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    wide = [name for name in dispatched if "512" in name or "V4" in name]
    return {
        "without AVX": {
            "ATEN_CPU_CAPABILITY": "default",
            "MKL_CBWR": "COMPATIBLE",
            "OPENBLAS_CORETYPE": "Nehalem",
            "NPY_DISABLE_CPU_FEATURES": " ".join(dispatched),
        },
        "with AVX2": {
            "ATEN_CPU_CAPABILITY": "avx2",
            "MKL_CBWR": "AVX2",
            "OPENBLAS_CORETYPE": "Haswell",
            "NPY_DISABLE_CPU_FEATURES": " ".join(wide),
        },
    }


def main(command: list[str]) -> int:
    failed = []
    for name, environment in settings().items():
        said = " ".join(f"{key}='{value}'" for key, value in environment.items())
        print(f"== a processor {name}: {said}", flush=True)
        if subprocess.run(command, env={**os.environ, **environment}, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed on a processor {' and on one '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
