"""Mistakes that no run tells and that are none, or that only a GPU could tell, and why."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from flagen import pipeline
from flagen.plan.right_backward import RightBackwardPlan
from tests.mutation.mutants import Mutant, called
from tests.numeric.problems import spec_of


def reason(name: str, path: Path, mutant: Mutant) -> str | None:
    """Why it does not matter that nothing tells this mistake; None where it does."""
    if {mutant.was, mutant.now} == {"H", "HV"} and not spec_of(name).has_value_heads:
        return "no input has value heads: H and HV are one number"
    if mutant.function in combining(path):
        return "the interpreter composes the steps of a scan itself"
    if mutant.function == "take" and turned(name):
        return "turned, every value head has keys of its own: groups are of one"
    if (mutant.function, mutant.was) == ("from_middle", "LEAF // 2"):
        return "rows may meet anywhere: only how far exponents go depends on where"
    if mutant.function == "softmax" and mutant.was.startswith("x - tl.max(x"):
        return "what all channels have in common cancels: only how far exponents go depends on it"
    beyond = re.fullmatch(r"(SIZE > (\d+)) -> \1 \+ 1", f"{mutant.was} -> {mutant.now}")
    if beyond is not None and (int(beyond[2]) + 1).bit_count() != 1:
        return "a size is a power of two, and none is only one more"
    return None


@cache
def turned(name: str) -> bool:
    """Whether the gradients of the chunk form are those of the transposed state."""
    spec = spec_of(name)
    return isinstance(pipeline.make_plan(spec, pipeline.derive(spec)).chunk_backward, RightBackwardPlan)


@cache
def combining(path: Path) -> set[str]:
    """The functions of a file that a scan composes its steps by."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    scans = [node for node in nodes if isinstance(node, ast.Call) and called(node) == "tl.associative_scan"]
    given = [value for scan in scans for value in (*scan.args, *(keyword.value for keyword in scan.keywords))]
    return {value.id for value in given if isinstance(value, ast.Name)}
