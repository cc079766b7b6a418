"""Names that generated code makes up beside the spec's own, so that the two never meet.

To fixed ones (`token`, `block`, ...) a spec's give way (`own_names`); those made from a spec's names give way here.
"""

from __future__ import annotations

from collections.abc import Collection

from flagen.plan.schedule import declared_names
from flagen.spec.model import Spec, State


def free_name(wanted: str, taken: Collection[str]) -> str:
    """`wanted`, with as many underscores behind it as it takes to be none of `taken`."""
    while wanted in taken:
        wanted += "_"
    return wanted


def initial_name(state: str, taken: Collection[str]) -> str:
    """What the launcher calls the state that a run starts from; its pointer in the kernel is named after it."""
    return free_name(f"{state}_initial", taken)


def final_name(state: str, taken: Collection[str]) -> str:
    """What the launcher calls the state that a run ends with."""
    return free_name(f"{state}_final", taken)


def asked_name(spec: Spec) -> str:
    """What functions that give gradients call the argument that says of which arguments."""
    return free_name("wanted", set(declared_names(spec)))


def initial_of(spec: Spec, state: State) -> str:
    """What `spec` calls the state that a run starts from."""
    return initial_name(state.name, set(declared_names(spec)))


def final_of(spec: Spec, state: State) -> str:
    """What `spec` calls the state that a run ends with."""
    return final_name(state.name, set(declared_names(spec)))
