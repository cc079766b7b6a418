"""Mistakes in the kernels of the representatives show in what they compute."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.mutants import CLASSES, mutants
from tests.tiers import REPRESENTATIVES, exhaustive

ROOT = Path(__file__).parents[2]
EACH = os.environ.get("FLAGEN_MUTANTS", "2")
"""How many mistakes of each file and class are tried with --all; 0 is all of them."""


def try_mistakes(*arguments: str) -> str:
    """In a process that has not differentiated anything: those that it forks could not."""
    command = [sys.executable, "-m", "tests.mutation", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_class_of_mistakes_is_made():
    for path in (ROOT / "generated" / "kda").glob("chunk_*prepare.py"):
        assert {mutant.kind for mutant in mutants(path.read_text(encoding="utf-8"))} == {*CLASSES}


def test_a_mutant_differs():
    text = (ROOT / "generated" / "kda" / "fused_recurrent_kernels.py").read_text(encoding="utf-8")
    right = ast.unparse(ast.parse(text)).splitlines()
    found = [mutant.make().splitlines() for mutant in mutants(text)]
    assert len(found) > 100
    assert all(sum(a != b for a, b in zip(right, wrong, strict=False)) >= 1 for wrong in found)


def test_a_few_show():
    try_mistakes("hgrn", "--each", "2", "--limit", "4")


@exhaustive
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_they_show(name):
    print(try_mistakes(name, "--each", EACH))
