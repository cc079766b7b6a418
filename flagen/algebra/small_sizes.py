"""The sizes at which derivations are proved."""

from __future__ import annotations

from flagen.spec.model import Spec
from flagen.spec.sizes import small_fitting

HEADS = {"H": 2, "HV": 4}
_DIMS = (2, 3)


def small_sizes(spec: Spec) -> dict[str, int]:
    """A size for each dim, of two in turn where none follows from others."""
    wanted = {dim: _DIMS[place % len(_DIMS)] for place, dim in enumerate(spec.dims)}
    sizes = small_fitting(spec, wanted | HEADS)
    return {dim: sizes[dim] for dim in spec.dims}
