"""Spec texts taken through every stage of the compiler, and what comes out imported, all in this process."""

from __future__ import annotations

import importlib
import itertools
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from flagen import pipeline
from flagen.diagnostics import NOWHERE
from flagen.emit.format import lint_python
from flagen.kernel import Programs
from flagen.plan import Plan, Unavailable
from flagen.project import RUNTIME
from flagen.spec.model import Spec
from tests.vectorized.known import remember

_numbers = itertools.count()

SHARED = {
    path.relative_to(RUNTIME).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(RUNTIME.glob("shared/**/*.py"))
}
"""What all packages share, by paths beside them."""


def build(spec: Spec, *, kernels: bool = True) -> dict[str, str]:
    """Every file of the package of `spec`, derived, proved, planned, rendered and formatted; without its kernels for
    whoever has no use for them."""
    plan = planned(spec)
    if not kernels:
        plan = replace(plan, fused=Unavailable("not wanted", NOWHERE))
    return pipeline.emit(spec, plan, lowered(plan), "specs/spec.yaml")


def planned(spec: Spec) -> Plan:
    """The plan of `spec`, derived and proved."""
    derivation = pipeline.derive(spec)
    pipeline.prove(spec, derivation)
    return pipeline.make_plan(spec, derivation)


def written(plan: Plan) -> dict[str, str]:
    """Every file of the package of `plan`, linted as a build lints it, but not formatted: that takes longest."""
    return lint_python(pipeline.rendered(plan.spec, plan, lowered(plan), "specs/spec.yaml"))


def lowered(plan: Plan) -> Programs:
    """The kernels of `plan`, which may then run in PyTorch."""
    programs = pipeline.lower(plan)
    remember(plan.spec.sha256, programs)
    return programs


def put(generated: Path, name: str, files: Mapping[str, str]) -> None:
    """Write `files` as the package `name` of the directory `generated`, beside what all packages share; files of
    `shared/` among them take the place of those that ship."""
    for path, text in {**SHARED, **files}.items():
        target = generated / (path if path in SHARED else f"{name}/{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def kept(files: Mapping[str, str], directory: Path) -> ModuleType:
    """`files` as a package below `directory`, imported under a name that no other has in this process and left there;
    files of `shared/` among them take the place of those that ship."""
    name = f"generated_{next(_numbers)}"
    put(directory / name, "package", files)
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(f"{name}.package")
    finally:
        sys.path.remove(str(directory))


@contextmanager
def imported(files: Mapping[str, str]) -> Iterator[ModuleType]:
    """The same, gone again afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        package = kept(files, Path(directory))
        try:
            yield package
        finally:
            name = package.__name__.partition(".")[0]
            for module in [m for m in sys.modules if m.partition(".")[0] == name]:
                del sys.modules[module]
