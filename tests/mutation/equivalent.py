"""Mistakes that no run tells and that are none, or that only a GPU could tell, and why."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from tests.mutation.mutants import Mutant, called
from tests.numeric.problems import spec_of


def reason(name: str, path: Path, mutant: Mutant) -> str | None:
    """Why it does not matter that nothing tells this mistake; None where it does."""
    if {mutant.was, mutant.now} == {"H", "HV"} and not spec_of(name).has_value_heads:
        return "no input has value heads: H and HV are one number"
    if mutant.function in combining(path):
        return "the interpreter composes the steps of a scan itself"
    return None


@cache
def combining(path: Path) -> set[str]:
    """The functions of a file that a scan composes its steps by."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    scans = [node for node in nodes if isinstance(node, ast.Call) and called(node) == "tl.associative_scan"]
    given = [value for scan in scans for value in (*scan.args, *(keyword.value for keyword in scan.keywords))]
    return {value.id for value in given if isinstance(value, ast.Name)}
