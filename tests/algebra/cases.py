"""Specs for the tests of the derivation: committed ones by name, and small ones written on the spot."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from flagen import algebra
from flagen.algebra import Derivation, NormalForm
from flagen.spec import load_spec, parse_spec
from flagen.spec.model import Spec
from tests.specs import OPERATORS

SPECS = Path(__file__).parents[2] / "specs"
VARIANTS = list(OPERATORS)

_INPUTS: Mapping[str, str] = {
    **dict.fromkeys(("q", "k", "a", "b", "p"), "[K]"),
    **dict.fromkeys(("v", "c", "d"), "[V]"),
    **dict.fromkeys(("s", "r"), "[]"),
    "x": "[M]",
    "X": "[K, V]",
    "XM": "[K, M]",
    "MV": "[M, V]",
    "beta": "{dims: [], range: [0, 1]}",
    "half": "{dims: [], range: [0.1, 0.5]}",
    "g": "{dims: [], range: [-.inf, 0]}",
    "gk": "{dims: [K], range: [-.inf, 0]}",
    "gv": "{dims: [V], range: [-.inf, 0]}",
    "kj": "{dims: [K], per: step}",
    "pj": "{dims: [K], per: step}",
    "vj": "{dims: [V], per: step}",
    "gj": "{dims: [], per: step, range: [-.inf, 0]}",
}
"""What `recurrence` may use: name to declaration."""

_PARAMS: Mapping[str, str] = {
    "scale": "{default: K ** -0.5}",
    "tau": "{range: [0.5, 2]}",
    "A": "{per: head, range: [-.inf, 0]}",
    "u": "{dims: [K], per: head}",
    "w": "{dims: [V]}",
}


@cache
def variant(name: str) -> Derivation:
    """What is derived from a committed spec."""
    return algebra.derive(load_spec(SPECS / f"{name}.yaml"))


def text_of(update: str, output: str = "o = S.T @ q", *, state: str = "S: [K, V]", more: str = "") -> str:
    """A spec with these statements. It declares those of the names above that they use."""
    names = set(re.findall(r"\w+", f"{update} {output} {more}"))
    inputs = {name: decl for name, decl in _INPUTS.items() if name in names}
    params = {name: decl for name, decl in _PARAMS.items() if name in names}
    lines = ["flagen: 2", "name: written", f"state: {{{state}}}", "inputs:"]
    lines += [f"  {name}: {decl}" for name, decl in inputs.items()]
    lines += ["params:", *(f"  {name}: {decl}" for name, decl in params.items())] if params else []
    lines += ["steps: {n: num_steps}"] if "repeat" in names else []
    lines += [textwrap.dedent(more).strip()] if more else []
    lines += ["update:", textwrap.indent(textwrap.dedent(update).strip(), "  "), f"output: {output}"]
    return "\n".join(lines) + "\n"


def recurrence(update: str, output: str = "o = S.T @ q", **more: str) -> Spec:
    """The spec that `text_of` writes."""
    return parse_spec(text_of(update, output, **more), "written.yaml")


def derived(update: str, output: str = "o = S.T @ q", **more: str) -> Derivation:
    """What is derived from `recurrence(...)`."""
    return algebra.derive(recurrence(update, output, **more))


def normal_form(update: str, output: str = "o = S.T @ q", **more: str) -> NormalForm:
    """The normal form of `recurrence(...)`, its chunk form and adjoint proved."""
    spec = recurrence(update, output, **more)
    derivation = algebra.derive(spec)
    assert derivation.normal_form is not None, derivation.no_chunk_form
    algebra.prove(spec, derivation)
    return derivation.normal_form
