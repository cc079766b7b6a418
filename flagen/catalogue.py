"""The variants of a project at a glance: what each spec states, and which operators its package has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flagen.diagnostics import SpecError
from flagen.project import Project

if TYPE_CHECKING:
    from flagen.spec.model import Spec

OPERATORS = ("naive_recurrent", "naive_chunk", "fused_recurrent", "chunk")
COLUMNS = ("name", "title", "state", "decay", "steps", *OPERATORS)


@dataclass(frozen=True)
class Variant:
    """One row: a spec's own words, and the operators found in its package."""

    name: str
    title: str
    state: str
    decay: str
    steps: str
    operators: frozenset[str]


def variants(project: Project) -> list[Variant]:
    """Every variant of `specs/`; one whose spec is wrong is listed as such."""
    return [_variant(project, path) for path in project.all_specs()]


def cells(variant: Variant) -> tuple[str, ...]:
    """The row of `variant`, under COLUMNS."""
    marks = ("yes" if operator in variant.operators else "-" for operator in OPERATORS)
    return (variant.name, variant.title, variant.state, variant.decay, variant.steps, *marks)


def _variant(project: Project, path: Path) -> Variant:
    from flagen.spec import load_spec

    try:
        spec = load_spec(path)
    except SpecError as error:
        count = len(error.diagnostics)
        return Variant(path.stem, f"({count} error{'s' * (count > 1)}; see flagen check)", "", "", "", frozenset())
    states = ", ".join(f"{state.name} [{', '.join(state.dims)}]" for state in spec.states)
    steps = f"{spec.steps.symbol} = {spec.steps.default or 'given'}" if spec.steps else "1"
    return Variant(
        spec.name, spec.title, states, _decay(spec), steps, _operators(project.generated / spec.name, spec.name)
    )


def _decay(spec: Spec) -> str:
    """What the spec declares to multiply the state: over which dims, and whether it changes from token to token."""
    from flagen.spec.model import Name, walk

    kinds = []
    derived = {decl.name: decl for decl in spec.derived}

    def varies(name: str) -> bool:
        """Whether a derived name depends on an input."""
        names = [node for node in walk(derived[name].value) if isinstance(node, Name)]
        return any(node.kind == "input" or (node.kind == "derived" and varies(node.name)) for node in names)

    for decl in spec.derived:
        if decl.section == "decay":
            over = f"per {', '.join(decl.value.dims)}" if decl.value.dims else "scalar"
            kinds.append(over if varies(decl.name) else f"{over}, constant")
    return "; ".join(kinds) or "none"


def _operators(package: Path, name: str) -> frozenset[str]:
    """The operators that the modules of `package` define."""
    definition = re.compile(rf"^def ({'|'.join(OPERATORS)})_{name}\(", re.MULTILINE)
    modules = package.glob("*.py") if package.is_dir() else ()
    return frozenset(found for module in modules for found in definition.findall(module.read_text(encoding="utf-8")))
