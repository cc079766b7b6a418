"""The context of `chunk.py` where tokens have several rows: the rows, and the kernels of their recurrence."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.signature import Parameter, handed_on
from flagen.backends.torch_.common import check_call, common_context
from flagen.backends.torch_.ranks import rank_context
from flagen.backends.torch_.scope import names_used
from flagen.backends.triton_.chunk_launcher import SAVE_STATES
from flagen.backends.triton_.handed_on import keeps_states
from flagen.backends.triton_.kernel import tensor_names
from flagen.plan.chunk_families import SIZES, sizes_in_words
from flagen.plan.free_names import free_name
from flagen.plan.model import RankPlan
from flagen.plan.schedule import declared_names


def rank_launcher_context(plan: RankPlan) -> Mapping[str, object]:
    """Every value `triton/ranks.py.j2` uses."""
    spec = plan.form.spec
    sizes = f"the most rows per chunk, of which a token has several: {sizes_in_words()}."
    size = Parameter("chunk_size", "int", str(plan.size), True, sizes)
    modes = [SAVE_STATES] if keeps_states(plan.within) else []
    named = names_used(spec, plan.form.expressions)
    given = [decl.name for decl in spec.inputs if decl.dims and decl.name in named]
    common = common_context(spec, size, *modes)
    del common["output_dtype"]  # The lines of the rows have it.
    return {
        **common,
        **rank_context(plan, f"chunk_{plan.within.spec.name}"),
        "check": check_call(spec, shapes_only="torch.compiler.is_compiling()"),
        "pytorch_call": f"naive_chunk_{spec.name}({', '.join(handed_on(spec, size))})",
        "products": ", ".join(given or tensor_names(spec)),
        "rounded": free_name("rounded", set(declared_names(spec))),
        "modes": [mode.name for mode in modes],
        "sizes": SIZES,
    }
