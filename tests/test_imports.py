"""The rules of the house, read off the source: which layer may import what, and what a template may do.

Imports inside functions count like any other: a layer that is imported late is still a layer that is imported.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STDLIB = sys.stdlib_module_names

# The spec as data, and the two functions that only read it: printing an expression, bounding its value.
SPEC_MODEL = {
    "flagen.diagnostics",
    "flagen.printing",
    "flagen.spec.model",
    "flagen.spec.to_source",
    "flagen.spec.interval_of",
}
SPEC_MODEL |= {"flagen.spec.printer.to_source", "flagen.spec.ranges.interval_of"}
# The same under other names.
SPEC_MODEL |= {f"flagen.spec.renaming.{name}" for name in ("renamed", "expression_renamed", "as_written")}
# A layer as data, and the one table of what its words are.
SPEC_MODEL |= {f"flagen.spec.layer.{name}" for name in ("model", "renaming", "vocabulary", "words")}
# Where mini-batches begin.
SPEC_MODEL |= {"flagen.spec.positions.is_first"}
# Expressions, rebuilt.
SPEC_MODEL |= {"flagen.spec.rewrite.map_children"}
# How operators bind, and what elementwise functions are, which all stages read; and that as expressions.
SPEC_MODEL |= {"flagen.printing", "flagen.functions", "flagen.spec.formulas", "flagen.spec.sizes"}
LAYERS: dict[str, set[str]] = {
    "diagnostics": set(),
    "printing": {"flagen.diagnostics"},
    "intervals": set(),
    "values": {"flagen.intervals"},
    "functions": {"flagen.intervals", "flagen.values"},
    "spec": {"yaml"} | {f"flagen.{name}" for name in ("diagnostics", "functions", "intervals", "printing")},
    "algebra": {"sympy", "gmpy2", *SPEC_MODEL},
    "plan": {"flagen.algebra", *SPEC_MODEL},
    # Kernels as data: lowered from a plan, executed exactly against the recurrence.
    "kernel": {"gmpy2", "flagen.functions", "flagen.spec.formulas", "flagen.plan", "flagen.algebra", *SPEC_MODEL},
    # A plan holds the derived equations; printing them takes their types, and no derivation.
    "backends": {
        "flagen.plan",
        "flagen.kernel",
        "flagen.algebra.equations",
        "flagen.algebra.normal_form",
        "flagen.algebra.ranks",
        "flagen.algebra.scan",
        "flagen.algebra.solved",
        # The functions that kernels call are text to it, which is there.
        "flagen.project.DEVICE",
        *SPEC_MODEL,
    },
    "emit": {"jinja2", "ruff", "flagen.diagnostics"},
    "triton_cpu": {"triton", "numpy", "torch"},
    # Walks through kernels as data where others run them, if what is there is what is printed of them.
    "counting": {"torch", "flagen.backends.triton_", "flagen.diagnostics", "flagen.emit.banner", "flagen.kernel"}
    | {"flagen.pipeline", "flagen.plan", "flagen.spec.model", "flagen.triton_cpu"},
    # Reads what a compiler left, and needs none itself.
    "clock": set(),
    # Text to everything else: it is written into generated directories.
    "runtime": {"torch", "triton"},
    # Makes up calls from a spec, and compares what they move with what the plan says they have to.
    "inspection": {
        "triton",
        "torch",
        "flagen.clock",
        "flagen.counting",
        "flagen.triton_cpu",
        "flagen.spec",
        "flagen.plan",
    }
    | {f"flagen.{name}" for name in ("catalogue", "diagnostics", "project")},
}
"""What each layer may import beside itself and the standard library; a name covers what is below it."""

TOP: dict[str, set[str]] = {
    "project": set(),
    "freshness": {"flagen.emit.writer", "flagen.project"},
    "collection": {"flagen.emit", "flagen.freshness", "flagen.project"},
    "describe": {"flagen.spec"},
    "draw_layer": {"flagen.spec"},
    "describe_layer": {"flagen.spec", "flagen.draw_layer", "flagen.project"},
    "authoring": {"yaml", "flagen.spec", "flagen.project"},
    "catalogue": {"flagen.spec", "flagen.project", "flagen.diagnostics"},
    "pipeline": {f"flagen.{name}" for name in ("spec", "algebra", "plan", "kernel", "backends", "emit", "diagnostics")}
    | {f"flagen.{name}" for name in ("describe", "describe_layer", "project")},
    "builds": {f"flagen.{name}" for name in ("collection", "diagnostics", "emit", "freshness", "pipeline", "project")},
    "vendor": {"flagen.collection", "flagen.emit", "flagen.project"},
    "report": {"rich", "flagen.emit.writer"}
    | {f"flagen.{name}" for name in ("builds", "catalogue", "describe_layer", "diagnostics", "inspection")},
    "cli": {"typer"}
    | {f"flagen.{name}" for name in ("authoring", "builds", "catalogue", "diagnostics", "inspection")}
    | {f"flagen.{name}" for name in ("pipeline", "project", "report", "vendor")},
    "__main__": {"flagen.cli"},
    "__init__": set(),
}
"""The same for the modules on top of the layers."""

# What a template may hold of control structure before it decides more than layout.
MAX_BLOCKS = 60


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every statement in a node: imports are no part of anything else."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child
            yield from statements(child)


def imported(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Every module that the file imports, with its line; `package` is what its relative imports start from."""
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            # `from package import name` may name a module; the longer name is the stricter one to judge.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def covered(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def flagen_modules() -> list[Path]:
    return sorted((ROOT / "flagen").rglob("*.py"))


def others(path: Path, package: str, allowed: set[str]) -> list[str]:
    """What a module imports besides the standard library and what it is allowed, and where."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for line, module in imported(path, package)
        if module.split(".")[0] not in STDLIB and not covered(module, allowed)
    ]


def test_a_layer_imports_only_what_is_below_it() -> None:
    wrong = []
    for path in flagen_modules():
        inside = path.relative_to(ROOT / "flagen")
        layer = inside.parts[0].removesuffix(".py")
        allowed = (LAYERS | TOP)[layer] | {f"flagen.{layer}", "flagen.__version__"}
        found = others(path, ".".join(("flagen", *inside.parent.parts)), allowed)
        wrong += [f"{text}; {layer} may import {sorted(allowed)}" for text in found]
    assert wrong == []


def module_name(path: Path) -> str:
    """What a file of flagen is imported as."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_among(paths: Iterable[Path]) -> dict[str, set[str]]:
    """The modules among those at `paths` that each of them imports, for the type checker alone or later included."""
    known = {module_name(path): path for path in paths}
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        # A name that is no module is one that the module above it has.
        nearest = (
            next((part for part in (target, target.rpartition(".")[0]) if part in known), None)
            for _, target in imported(path, package)
        )
        found[name] = {target for target in nearest if target is not None}
    return found


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The modules that import themselves through others, each such group once."""
    left = {name: set(targets) for name, targets in imports.items()}
    while ends := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in ends:
            del left[name]
    # What is left leads to a circle; those in it are reached from themselves.
    groups = {tuple(sorted(a for a in reached(left, b) if b in reached(left, a))) for b in left}
    return sorted(list(group) for group in groups if group)


def reached(imports: dict[str, set[str]], start: str) -> set[str]:
    """What `start` imports, and what that imports, as long as there is more."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = (imports[waiting.pop()] & imports.keys()) - found
        found |= new
        waiting += new
    return found


def test_circles_are_found() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"e"}, "f": {"a", "g"}, "g": set()}
    assert circles(imports) == [["a", "b", "c"], ["e"]]
    assert circles({name: targets - {"a", "e"} for name, targets in imports.items()}) == []


def test_no_module_imports_itself_through_others() -> None:
    """Neither when it is loaded, nor in a function, nor for the type checker."""
    imports = imports_among(flagen_modules())
    assert "flagen.plan.model" in imports["flagen.pipeline"]
    assert "flagen.runtime.shared.device.maps" in imports
    assert circles(imports) == []


def test_every_module_of_flagen_has_a_layer() -> None:
    tops = {path.relative_to(ROOT / "flagen").parts[0].removesuffix(".py") for path in flagen_modules()}
    assert tops == LAYERS.keys() | TOP.keys()


def generated_modules() -> list[Path]:
    return sorted((ROOT / "generated").rglob("*.py"))


def test_there_is_generated_code_to_judge() -> None:
    assert generated_modules()


def test_generated_code_stands_alone() -> None:
    """It needs torch, and Triton where there is a kernel, and what packages share; not flagen, and no other package,
    but for a layer, which may run operators of one, and convolutions, which may be one."""
    kernels = {
        "fused_recurrent_kernels",
        "fused_recurrent_backward_kernels",
        "chunk_kernels",
        "chunk_prepare",
        "tuning",
    }
    kernels |= {f"chunk_backward_{part}" for part in ("across", "gradients", "kernels", "prepare", "walks")}
    wrong = []
    for path in generated_modules():
        package = ("generated", *path.relative_to(ROOT / "generated").parts[:-1])
        own = {".".join(package[:2]), "generated.shared"} if len(package) > 1 else {"generated"}
        own |= {"generated.modules"} | ({"generated"} if path.name == "layer.py" else set())  # A layer may use others.
        own |= {"generated.short_convolution"} if path.name == "convolution.py" else set()
        on_device = package[1:] == ("shared", "device")
        triton = {"triton"} if path.stem in kernels or on_device else set()
        wrong += others(path, ".".join(package), {"torch"} | own | triton)
    assert wrong == []


def templates() -> list[Path]:
    return sorted((ROOT / "templates").rglob("*.j2"))


@pytest.mark.parametrize("path", templates(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_template_lays_out_and_decides_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("{%") <= MAX_BLOCKS, "decide it in the plan"
    conditions = re.findall(r"{%-?\s*(?:if|elif)\b(.*?)%}", text, re.DOTALL)
    assert not [condition for condition in conditions if re.search(r"\bname\b", condition)]
    variants = "|".join(path.stem for path in (ROOT / "specs").glob("*.yaml"))
    assert not re.search(rf"\b({variants})\b", text), "a template names a variant"


def test_building_imports_no_torch_and_listing_no_sympy() -> None:
    """The rule that the table cannot show: what really ends up in the process."""
    program = (
        "import sys, flagen.builds, flagen.pipeline, flagen.report, flagen.cli\n"
        "assert not {'sympy', 'jinja2', 'torch', 'rich', 'yaml'} & sys.modules.keys(), 'too early'\n"
        "import flagen.algebra, flagen.plan, flagen.backends, flagen.emit, flagen.spec, flagen.inspection\n"
        "assert not {'torch', 'triton', 'numpy'} & sys.modules.keys(), 'on the build path'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
