"""A spec under other names has none of those that it had."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagen.spec import load_spec
from flagen.spec.renaming import as_written, renamed

VALID = Path(__file__).parent / "valid"


@pytest.mark.parametrize(
    "name", ["rotations", "solutions", "every_function_of_version_2", "every_function", "precond_kda"]
)
def test_every_dim_has_its_other_name_wherever_it_stands(name: str) -> None:
    spec = load_spec(VALID / f"{name}.yaml")
    names = {dim: f"other_{place}" for place, dim in enumerate(spec.dims)}
    other = renamed(spec, names)
    assert other.dims == tuple(names[dim] for dim in spec.dims)
    shown = repr((other.states, other.inputs, other.params, other.derived, other.update, other.output, other.following))
    assert not [dim for dim in names if f"'{dim}'" in shown]
    assert as_written(other) == spec
