"""The context of `chunk.py` where a spec keeps a state in levels: the kernels are those of columns."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.signature import Parameter, handed_on
from flagen.backends.torch_.common import common_context, params_as_given
from flagen.backends.torch_.levels import columns_in_words, level_context
from flagen.plan.chunk_families import SIZES, sizes_in_words
from flagen.plan.model import LevelPlan


def level_launcher_context(planned: LevelPlan) -> Mapping[str, object]:
    """Every value `triton/levels.py.j2` uses."""
    spec = planned.form.spec
    inputs = [decl.name for decl in planned.columns.spec.inputs]
    size = Parameter("chunk_size", "int", str(planned.size), True, f"tokens per chunk: {sizes_in_words()}.")
    return {
        **common_context(spec, size),
        **level_context(planned, f"chunk_{planned.columns.spec.name}"),
        "inputs": inputs,
        "place": inputs.index(planned.form.values),
        "params": list(params_as_given(planned.columns.spec)),
        "about": f"{columns_in_words(planned)} of other chunks, by runs over blocks of a power of two: at one level "
        f"for each, tokens of right halves read the `{planned.form.values}` of left ones.",
        "pytorch_call": f"naive_chunk_{spec.name}({', '.join(handed_on(spec, size))})",
        "sizes": SIZES,
    }
