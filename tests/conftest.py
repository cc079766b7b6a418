"""Kernels run in Triton's interpreter, except where the GPU tests run alone on a machine that has one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

GPU_TESTS = Path(__file__).parent / "gpu"


def pytest_configure(config: pytest.Config) -> None:
    # Triton reads this once, when a kernel is decorated: one process has either the interpreter or the compiler.
    if not _only_gpu_tests(config):
        os.environ.setdefault("TRITON_INTERPRET", "1")


def _only_gpu_tests(config: pytest.Config) -> bool:
    """Whether every path asked for lies under tests/gpu, so that nothing in this process needs the interpreter."""
    paths = [Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args]
    return bool(paths) and all(path.is_relative_to(GPU_TESTS) for path in paths)


@pytest.fixture(scope="session")
def interpreter() -> None:
    """Triton's interpreter with its bf16 repaired. Not at import: most tests need neither torch nor Triton."""
    from flagen.triton_cpu import repair

    repair()
