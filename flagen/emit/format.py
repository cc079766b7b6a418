"""Formatting by ruff, the same way wherever the build runs: no configuration file is read."""

from __future__ import annotations

import ast
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from ruff import find_ruff_bin

from flagen.diagnostics import InternalError

LINE_LENGTH = 120
_TARGET = "py310"
_COMMON = ("--isolated", "--no-cache", "--quiet", "--target-version", _TARGET, "--line-length", str(LINE_LENGTH))
# Import order and unused imports are repaired; an undefined name, a dead assignment, bad syntax are a template's bug.
# An import that has become short is put on one line again.
_ISORT = ("lint.isort.known-third-party=['torch', 'triton']", "lint.isort.split-on-trailing-comma=false")
_CHECK = ("check", *_COMMON, "--fix", "--select", "F,I", *(part for option in _ISORT for part in ("--config", option)))
_FORMAT = ("format", *_COMMON)


def format_python(files: Mapping[str, str]) -> dict[str, str]:
    """`files` (path to text) with every Python file linted and formatted; other files pass through.

    All of them go through ruff together, in a scratch directory that holds nothing else, so that the working directory
    cannot change what counts as a first-party import.

    Raises:
        InternalError: a file does not parse, or has a fault that ruff cannot repair.
    """
    checked = _run_ruff(files, _CHECK, _FORMAT)
    return {**files, **{path: wrap_docstrings(text) for path, text in checked.items()}}


def lint_python(files: Mapping[str, str]) -> dict[str, str]:
    """`files` with every Python file linted, its imports repaired, and no more.

    Raises:
        InternalError: a file does not parse, or has a fault that ruff cannot repair.
    """
    return {**files, **_run_ruff(files, _CHECK)}


def _run_ruff(files: Mapping[str, str], *runs: tuple[str, ...]) -> dict[str, str]:
    """What the Python files become under ruff, run with each of these arguments."""
    python = sorted(path for path in files if path.endswith(".py"))
    if not python:
        return {}
    with tempfile.TemporaryDirectory(prefix="flagen-") as scratch:
        for path in python:
            target = Path(scratch, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files[path].encode())
        for arguments in runs:
            _ruff(*arguments, cwd=scratch)
        return {path: Path(scratch, path).read_bytes().decode() for path in python}


def wrap_docstrings(text: str) -> str:
    """`text` with the lines of docstrings broken that are longer than code may be: names make some of them so."""
    if not any(len(line) > LINE_LENGTH for line in text.split("\n")):
        return text
    lines = text.split("\n")
    for node in reversed(list(_docstrings(ast.parse(text)))):
        for place in reversed(range(node.lineno - 1, node.end_lineno or node.lineno)):
            if len(lines[place]) > LINE_LENGTH:
                lines[place : place + 1] = _wrapped(lines[place])
    return "\n".join(lines)


def _docstrings(tree: ast.Module) -> Iterator[ast.expr]:
    """The docstrings of a module, of its classes and of its functions, in the order of their lines."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            (first, *_) = node.body
            assert isinstance(first, ast.Expr)
            found.append(first.value)
    return iter(sorted(found, key=lambda value: value.lineno))


def _wrapped(line: str) -> list[str]:
    """A line of prose as several, all of them indented as it is."""
    indent = line[: len(line) - len(line.lstrip())]
    broken = textwrap.wrap(line.strip(), LINE_LENGTH - len(indent), break_long_words=False, break_on_hyphens=False)
    return [f"{indent}{part}" for part in broken]


def _ruff(*arguments: str, cwd: str) -> None:
    done = subprocess.run([find_ruff_bin(), *arguments, "."], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InternalError(f"the generated code is faulty (ruff {arguments[0]}):\n{done.stdout}{done.stderr}")
