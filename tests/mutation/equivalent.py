"""Mistakes that no run tells and that are none, or that only a GPU could tell, and why."""

from __future__ import annotations

from tests.mutation.mutants import Mutant
from tests.numeric.problems import spec_of


def reason(name: str, mutant: Mutant) -> str | None:
    """Why it does not matter that nothing tells this mistake; None where it does."""
    if {mutant.was, mutant.now} == {"H", "HV"} and not spec_of(name).has_value_heads:
        return "no input has value heads: H and HV are one number"
    if mutant.function == "_affine_product":
        return "the interpreter composes the steps of a scan itself"
    return None
