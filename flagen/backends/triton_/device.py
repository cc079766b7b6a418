"""The functions that kernels call and no spec decides: those of `shared/device`, which flagen knows by name alone.

A file of kernels imports all that its kernels might call, and is printed with what it does call: what is unused the
linter takes out.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from flagen.project import DEVICE


def _defined_in(path: Path) -> tuple[str, ...]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


FUNCTIONS: Mapping[str, tuple[str, ...]] = {path.stem: _defined_in(path) for path in sorted(DEVICE.glob("[!_]*.py"))}
"""The names of the functions of each module."""


def _of(*modules: str) -> Mapping[str, tuple[str, ...]]:
    return {module: FUNCTIONS[module] for module in modules}


OF_A_TOKEN = _of("maps", "pairs", "rotations", "vectors")
"""What kernels may call that go from token to token."""
OF_SCANS = _of("maps", "pairs", "rotations", "rows", "scans")
"""What kernels of scans may call: the rows of their tiles are tokens."""
OF_PIECES = _of("maps", "mini_batches", "pairs", "rotations", "rows", "scans")
"""What kernels that walk mini-batches may call."""
OF_CHUNKS = _of("maps", "pairs", "rotations", "rows", "chunks")
"""What kernels over the rows of a chunk may call."""
