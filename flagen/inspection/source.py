"""Python files as what they do, without comments and docstrings, and the files that they import from."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def tree_of(path: Path) -> ast.Module:
    """The tree of a file, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def imported_from(path: Path) -> Iterator[tuple[ast.ImportFrom, Path]]:
    """The relative imports of a module, and the file that each takes names from."""
    for node in tree_of(path).body:
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            yield node, path.parents[node.level - 1].joinpath(*node.module.split(".")).with_suffix(".py")


def has_kernels(path: Path) -> bool:
    """Whether a module has kernels, or functions that kernels call: it imports Triton."""
    imports = (node for node in tree_of(path).body if isinstance(node, ast.Import))
    return any(name.name == "triton" for node in imports for name in node.names)
