"""Kernels run without a GPU, except where the GPU tests run alone on a machine that has one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor

GPU_TESTS = Path(__file__).parent / "gpu"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run what is marked exhaustive too, as `make test-all` does")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all"):
        return
    left = [item for item in items if item.get_closest_marker("exhaustive") is not None]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item.get_closest_marker("exhaustive") is None]


def pytest_report_header(config: pytest.Config) -> str:
    return f"exhaustive cases: {'run' if config.getoption('--all') else 'left to --all (make test-all)'}"


def pytest_configure(config: pytest.Config) -> None:
    # Tests run two at a time, on two cores; PyTorch reads this when it is imported, here and in what tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Tests start flagen some hundred times; where no bytecode is kept, each start takes half a second more.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Triton reads this when it is imported: one process has either the interpreter or the compiler.
    if not _only_gpu_tests(config):
        os.environ.setdefault("TRITON_INTERPRET", "1")
        _fix_examples()
        if config.getoption("--all"):
            from tests.tiers import EVERYTHING

            os.environ[EVERYTHING] = "1"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from tests.kernel.table import write_table  # What it needs of flagen, a machine that runs the GPU tests has, too.

    write_table(terminalreporter)


def _fix_examples() -> None:
    """The same random examples everywhere, so that a change fails for what it changed; HYPOTHESIS_PROFILE=explore looks
    for new ones."""
    from hypothesis import settings  # A machine that runs the GPU tests alone need not have it.

    settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
    settings.register_profile("explore", deadline=None)
    profile = os.environ.get("HYPOTHESIS_PROFILE", "fixed")
    settings.load_profile(profile)
    if profile == "fixed":
        _draw_from_no_module()


def _draw_from_no_module() -> None:
    """Hypothesis would read every module of ours that happens to be imported for constants to draw: that takes seconds,
    and examples would depend on which tests a process has."""
    from hypothesis.internal.conjecture import providers

    if hasattr(providers, "_get_local_constants") and hasattr(providers, "_local_constants"):
        providers._get_local_constants = lambda: providers._local_constants


def _only_gpu_tests(config: pytest.Config) -> bool:
    """Whether every path asked for lies under tests/gpu, so that nothing in this process needs the interpreter."""
    paths = [Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args]
    return bool(paths) and all(path.is_relative_to(GPU_TESTS) for path in paths)


@pytest.fixture(scope="session")
def interpreter() -> None:
    """Triton's interpreter with its bf16 repaired. A fixture, since most tests need neither torch nor Triton."""
    from flagen.triton_cpu import repair

    repair()


@pytest.fixture
def kernels(request: pytest.FixtureRequest, interpreter: None) -> Iterator[None]:
    """Kernels of packages run in PyTorch, all programs of a launch at once; where a test is marked `interpreted`, and
    everywhere with --all, in Triton's interpreter."""
    if request.config.getoption("--all") or request.node.get_closest_marker("interpreted") is not None:
        yield
        return
    from tests.vectorized.launches import vectorized

    with vectorized():
        yield


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialized floating memory reads as NaN, so that an element nobody wrote cannot pass for a zero."""
    import torch
    from torch.utils._device import _device_constructors

    _device_constructors()  # It remembers what `with torch.device(...)` is about: the functions as they are now.
    for owner, names in {
        torch: ("empty", "empty_like", "empty_strided"),
        torch.Tensor: ("new_empty", "new_empty_strided"),
    }.items():
        for name in names:
            monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocate_poisoned(*args: object, **kwargs: object) -> Tensor:
        memory = allocate(*args, **kwargs)
        return memory.fill_(float("nan")) if memory.is_floating_point() else memory

    return allocate_poisoned
