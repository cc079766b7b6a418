"""Formatting by ruff, the same way wherever the build runs: no configuration file is read."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ruff import find_ruff_bin

from flagen.diagnostics import InternalError

LINE_LENGTH = 120
_TARGET = "py310"
_COMMON = ("--isolated", "--no-cache", "--quiet", "--target-version", _TARGET, "--line-length", str(LINE_LENGTH))
# Import order and unused imports are repaired; an undefined name, a dead assignment, bad syntax are a template's bug.
_CHECK = ("check", *_COMMON, "--fix", "--select", "F,I", "--config", "lint.isort.known-third-party=['torch', 'triton']")
_FORMAT = ("format", *_COMMON)


def format_python(files: Mapping[str, str]) -> dict[str, str]:
    """`files` (path to text) with every Python file linted and formatted; other files pass through.

    All of them go through ruff together, in a scratch directory that holds nothing else, so that the working directory
    cannot change what counts as a first-party import.

    Raises:
        InternalError: a file does not parse, or has a fault that ruff cannot repair.
    """
    python = sorted(path for path in files if path.endswith(".py"))
    if not python:
        return dict(files)
    with tempfile.TemporaryDirectory(prefix="flagen-") as scratch:
        for path in python:
            target = Path(scratch, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files[path].encode())
        for arguments in (_CHECK, _FORMAT):
            _ruff(*arguments, cwd=scratch)
        formatted = {path: Path(scratch, path).read_bytes().decode() for path in python}
    return {path: formatted.get(path, text) for path, text in files.items()}


def _ruff(*arguments: str, cwd: str) -> None:
    done = subprocess.run([find_ruff_bin(), *arguments, "."], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InternalError(f"the generated code is faulty (ruff {arguments[0]}):\n{done.stdout}{done.stderr}")
