"""Addresses in generated kernels count in 64 bits, and programs along one axis of the grid, which has 2**31 of them.

Nobody allocates 2**31 elements in a test, so widths are read off the text: an offset is as wide as the widest part of
it, and what tells tokens, chunks or sequences apart has to be wide before it is multiplied by anything.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from flagen.spec import load_spec
from flagen.spec.model import Name, Solution, walk
from flagen.spec.usage import assignments

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "generated").rglob("*.py") if "tl.program_id" in path.read_text())
TABLES = {"cu_seqlens_ptr"} | {
    f"{name}_ptr" for space in ("chunk", "segment", "stretch") for name in (f"{space}_sequence", f"first_{space}")
}
"""As long as there are sequences, chunks, segments or stretches. The launcher makes all but the first in int64."""


def kernels(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions that a grid is launched of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(name(call) == "tl.program_id" for call in calls(node)):
            yield node


def calls(node: ast.AST) -> Iterator[ast.Call]:
    return (inner for inner in ast.walk(node) if isinstance(inner, ast.Call))


def name(call: ast.Call) -> str:
    """What is called: a name, or an attribute of one, of which there are too many to print them all."""
    match call.func:
        case ast.Name(text):
            return text
        case ast.Attribute(ast.Name(module), text):
            return f"{module}.{text}"
    return ast.unparse(call.func)


class Widths:
    """Which names of a kernel are 64 bits wide, from top to bottom."""

    def __init__(self, kernel: ast.FunctionDef) -> None:
        self.wide: set[str] = set()
        nodes = [node for node in ast.walk(kernel) if isinstance(node, ast.Assign | ast.For)]
        for node in sorted(nodes, key=lambda node: node.lineno):
            value, target = (node.iter, node.target) if isinstance(node, ast.For) else (node.value, node.targets[0])
            if isinstance(target, ast.Name):
                (self.wide.add if self.is_wide(value) else self.wide.discard)(target.id)

    def is_wide(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self.wide
        if isinstance(node, ast.BinOp):
            return self.is_wide(node.left) or self.is_wide(node.right)
        if isinstance(node, ast.Subscript):
            return self.is_wide(node.value)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr == "to":
                return ast.unparse(node.args[0]) == "tl.int64"
            if name(node) == "tl.load":
                return first_name(node.args[0]) in TABLES - {"cu_seqlens_ptr"}
            return any(self.is_wide(arg) for arg in node.args)
        return False


def first_name(node: ast.AST) -> str:
    """The pointer that an address starts from."""
    while isinstance(node, ast.BinOp):
        node = node.left
    return node.id if isinstance(node, ast.Name) else ast.unparse(node)


@cache
def constants(package: str) -> set[str]:
    """Pointers to what has no tokens: params, also as what a system adds to its matrix."""
    spec = load_spec(ROOT / "specs" / f"{package}.yaml")
    written = (*assignments(spec.update), *spec.output)
    solved = [node for statement in written for node in walk(statement.value) if isinstance(node, Solution)]
    shifts = {"shift_ptr" for system in solved if isinstance(system.shift, Name) and system.shift.kind == "param"}
    return shifts | {f"{param.name}_ptr" for param in spec.params}


def in_every_file(faults: Callable[[Path, ast.Module], Iterator[tuple[int, str]]]) -> list[str]:
    """What is at fault in the kernel files, and where; of stages too."""
    found = ((path.relative_to(ROOT), *fault) for path in FILES for fault in faults(path, ast.parse(path.read_text())))
    return [f"{path}:{line}: {text}" for path, line, text in found]


def test_the_files_of_stages_and_of_their_rows_are_among_them():
    assert {len(path.relative_to(ROOT).parts) for path in FILES} == {3, 4, 5}


def test_offsets_are_wide():
    def faults(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
        found = 0
        for kernel in kernels(tree):
            widths, narrow = Widths(kernel), TABLES | constants(path.relative_to(ROOT).parts[1])
            for call in calls(kernel):
                if name(call) in ("tl.load", "tl.store") and first_name(call.args[0]) not in narrow:
                    found += 1
                    if not widths.is_wide(call.args[0]):
                        yield call.lineno, ast.unparse(call.args[0])
        if not found:
            yield 1, "no load and no store"

    assert in_every_file(faults) == []


def test_no_narrow_product_of_tokens():
    """T and what is counted along it, times anything, is wide."""
    counted = {"T", "program", "sequence", "chunk", "start", "token", "first_token", "end_token"}

    def faults(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
        for kernel in kernels(tree):
            widths = Widths(kernel)
            for node in ast.walk(kernel):
                if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                    if names & counted and not widths.is_wide(node):
                        yield node.lineno, ast.unparse(node)

    assert in_every_file(faults) == []


def test_one_axis():
    def faults(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
        axes = [call for call in calls(tree) if name(call) == "tl.program_id"]
        yield from ((call.lineno, text) for call in axes if (text := ast.unparse(call)) != "tl.program_id(0)")

    assert in_every_file(faults) == []
