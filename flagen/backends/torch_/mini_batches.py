"""The context of `naive_chunk.py` where a spec runs mini-batch by mini-batch: the call of what one of them does."""

from __future__ import annotations

from flagen.backends.notes import naive_chunk_notes
from flagen.backends.protocol import Rendering
from flagen.backends.signature import Parameter
from flagen.backends.stages import PACKAGE_OF_MINI_BATCH
from flagen.backends.text import listed
from flagen.backends.torch_.common import common_context, params_as_given
from flagen.backends.torch_.scope import Scope, defaults
from flagen.plan.model import MiniBatchPlan, Plan
from flagen.spec.printer import to_source


def mini_batch_file(plan: Plan, planned: MiniBatchPlan) -> Rendering:
    """`naive_chunk.py` of a package whose spec runs in mini-batches."""
    size = Parameter(
        "chunk_size", "int", str(planned.size), True, "tokens per chunk, of which a mini-batch has no more."
    )
    context = {
        **common_context(plan.spec, size),
        **mini_batch_context(planned, f"naive_chunk_{planned.within.spec.name}"),
        "notes": naive_chunk_notes(plan),
    }
    del context["output_dtype"]  # What a mini-batch gives has it.
    return Rendering("naive_chunk.py", "torch/mini_batches.py.j2", context)


def mini_batch_context(planned: MiniBatchPlan, function: str) -> dict[str, object]:
    """What the function of the whole has beside its signature: `function` is that of a mini-batch."""
    form, spec = planned.form, planned.form.spec
    places = {state.name: place for place, state in enumerate(spec.states)}
    params = {param.name for param in spec.params}
    return {
        "package": PACKAGE_OF_MINI_BATCH,
        "function": function,
        "about": about(planned),
        "defaults": list(defaults(Scope(spec), params)),
        "inputs": [decl.name for decl in spec.inputs],
        "arguments": list(params_as_given(spec)),
        "begins_as": [f"*states[:{len(places)}]", *(f"states[{places[name]}]" for name in form.copies.values())],
        "count": places[form.first.source],
        "every": to_source(form.first.every),
        "states": len(places),
    }


def about(planned: MiniBatchPlan) -> str:
    """What is done, in words."""
    form = planned.form
    still = listed([f"`{name}`" for name in form.still])
    copies = listed([f"`{copy}`" for copy in form.copies])
    stand = "stands" if len(form.still) == 1 else "stand"
    return (
        f"Behind the first token of a mini-batch {still} {stand} still: what rows read there is known when it begins, "
        f"and may go through any function. They read copies ({copies}), so that within a mini-batch the states can be "
        f"taken one after another."
    )
