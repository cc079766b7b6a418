"""The functions that kernels call and no spec decides: they stand in one place, and kernels import those they call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from flagen.backends.triton_.device import FUNCTIONS
from flagen.project import DEVICE
from flagen.spec import load_spec, parse_spec
from tests.fuzz.packages import build

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "generated"
MODULES = {path.stem: path for path in DEVICE.glob("[!_]*.py")}


@cache
def kernels() -> dict[str, ast.Module]:
    """The files of packages that have kernels."""
    paths = sorted(path for path in GENERATED.glob("*/**/*.py") if not path.is_relative_to(GENERATED / "shared"))
    texts = {path.relative_to(GENERATED).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    return {path: ast.parse(text) for path, text in texts.items() if "triton.jit" in text}


def defined(tree: ast.Module) -> set[str]:
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The modules and names of these functions that a file imports."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and "shared.device." in str(node.module):
            yield from ((str(node.module).rpartition(".")[2], alias.name) for alias in node.names)


def test_their_names_are_found() -> None:
    found = {module: defined(ast.parse(path.read_text(encoding="utf-8"))) for module, path in MODULES.items()}
    assert {module: {*names} for module, names in FUNCTIONS.items()} == found


def test_no_package_has_its_own() -> None:
    names = {name for names in FUNCTIONS.values() for name in names}
    assert {path: own for path, tree in kernels().items() if (own := names & defined(tree))} == {}


@pytest.mark.parametrize("module", ["chunks", "scans"])
def test_each_is_called(module: str) -> None:
    """By the kernels of a package, or by another of them; what maps there are, the language says."""
    turning = build(load_spec(ROOT / "examples" / "specs" / "turning_channels.yaml"))
    trees = [*kernels().values(), *(ast.parse(text) for text in turning.values() if "triton.jit" in text)]
    called = {name for tree in trees for where, name in imported(tree) if where == module}
    nodes = ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    assert {*FUNCTIONS[module]} <= called | {node.id for node in nodes if isinstance(node, ast.Name)}


def test_kernels_import_what_they_call_and_no_more() -> None:
    files = build(
        parse_spec(
            "flagen: 1\nname: some\nstate: {S: [K, V]}\ninputs: {q: [K], k: [K], v: [V], g: []}\n"
            "update: S = exp(-softplus(g)) * S + outer(l2norm(k), tanh(v))\noutput: o = S.T @ q\n"
        )
    )
    found = {
        path: set(imported(ast.parse(files[path])))
        for path in ("fused_recurrent_kernels.py", "chunk_backward_gradients.py")
    }
    maps = {("maps", "softplus"), ("maps", "tanh")}
    assert found["fused_recurrent_kernels.py"] == maps | {("vectors", "l2norm")}
    of_chunks = {("chunks", name) for name in ("put", "split_log_decay", "sum_of_pairs", "take")}
    assert found["chunk_backward_gradients.py"] == maps | of_chunks | {("maps", "_square"), ("rows", "l2norm")}
