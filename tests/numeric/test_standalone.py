"""Generated packages stand alone: they import and run where neither flagen nor Triton can be imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.numeric.problems import NAMES, ROOT, Problem, Shape, make
from tests.tiers import exhaustive

BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

BLOCKED = set(sys.argv[2:])
sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[1])
"""

IMPORT_ALL = """
import importlib, pkgutil
import generated

for package in pkgutil.iter_modules(generated.__path__):
    module = importlib.import_module(f"generated.{package.name}")
    for name in () if package.name == "shared" else module.__all__:
        getattr(module, name)
    for file in pkgutil.iter_modules(module.__path__) if package.ispkg else ():
        if not file.name.endswith(("kernels", "prepare", "across", "gradients", "walks")) or "triton" not in BLOCKED:
            importlib.import_module(f"generated.{package.name}.{file.name}")
    print(package.name)
"""

RUN_ALL = """
import importlib, sys, torch

for name, (exact, given) in torch.load(f"{sys.argv[1]}/problems.pt").items():
    module = importlib.import_module(f"generated.{name}")

    def run(kind, args, keywords):
        o, states = getattr(module, f"{kind}_{name}")(*args, **keywords, output_final_state=True)
        return o, *(states if isinstance(states, tuple) else (states,))

    kinds = [kind for kind in ("naive_chunk", "chunk", "fused_recurrent") if hasattr(module, f"{kind}_{name}")]
    # What float32 loses token by token, another order of its sums may lose as well.
    expected, recurrent = run("naive_recurrent", *exact), run("naive_recurrent", *given)
    for result in (run(kind, *given) for kind in kinds):
        for x, wanted, lost in zip(result, expected, recurrent):
            bound = max(1e-5 * wanted.abs().max(), 4 * (lost - wanted).abs().max())
            torch.testing.assert_close(x.double(), wanted, rtol=0, atol=float(bound))
    print(name)
"""


def run(script: str, folder: Path, *blocked: str) -> list[str]:
    """The script's lines of output, from an isolated process that finds `folder` and not `blocked`."""
    command = [sys.executable, "-I", "-c", BLOCK + script, str(folder), *blocked]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with a copy of generated/ and nothing else of the project."""
    shutil.copytree(ROOT / "generated", tmp_path / "generated", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@exhaustive
def test_imports_without_flagen(elsewhere):
    assert set(NAMES) <= set(run(IMPORT_ALL, elsewhere, "flagen"))


def arguments(problem: Problem) -> tuple[list[Tensor], dict[str, object]]:
    required = [x for name, x in problem.tensors.items() if name not in problem.optional]
    return required, {**problem.scalars, "initial_state": problem.initial_state}


def test_imports_and_runs_without_flagen_and_triton(elsewhere):
    """On CPU tensors every form is PyTorch, fused_recurrent included."""
    calls = {}
    for name in NAMES:
        exact = make(name, Shape(T=20, groups=2))
        calls[name] = [arguments(problem) for problem in (exact.to(torch.float64), exact.to(torch.float32))]
    torch.save(calls, elsewhere / "problems.pt")
    found = run(IMPORT_ALL + RUN_ALL, elsewhere, "flagen", "triton")
    assert set(NAMES) <= set(found[: -len(NAMES)])
    assert found[-len(NAMES) :] == NAMES
