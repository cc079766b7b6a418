"""Python files as what they do: without comments and docstrings."""

from __future__ import annotations

import ast
from pathlib import Path


def tree_of(path: Path) -> ast.Module:
    """The tree of a file, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree
