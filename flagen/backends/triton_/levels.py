"""The context of `chunk.py` where a spec keeps a state in levels: the kernels are those of columns."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.signature import Parameter
from flagen.backends.torch_.common import common_context
from flagen.backends.torch_.levels import level_context
from flagen.backends.triton_.staged import as_passed, sizes_in_words
from flagen.plan.chunk_families import SIZES
from flagen.plan.model import LevelPlan


def level_launcher_context(planned: LevelPlan) -> Mapping[str, object]:
    """Every value `triton/levels.py.j2` uses."""
    spec = planned.form.spec
    size = Parameter("chunk_size", "int", str(planned.size), True, f"tokens per chunk: {sizes_in_words()}.")
    return {
        **common_context(spec, size),
        **level_context(planned, f"chunk_{planned.columns.spec.name}"),
        "pytorch_call": f"naive_chunk_{spec.name}({', '.join(as_passed(spec, size))})",
        "sizes": SIZES,
    }
