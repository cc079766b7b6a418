"""The context of `naive_chunk.py`, and what it shares with `chunk.py`, where a spec keeps a state in levels: the call
of what chunks do to columns."""

from __future__ import annotations

from collections.abc import Iterator

from flagen.backends.notes import naive_chunk_notes
from flagen.backends.protocol import Rendering
from flagen.backends.signature import Parameter
from flagen.backends.stages import PACKAGE_OF_COLUMNS
from flagen.backends.torch_.common import common_context, params_as_given
from flagen.backends.torch_.scope import Scope, defaults
from flagen.plan.model import LevelPlan, Plan


def level_file(plan: Plan, planned: LevelPlan) -> Rendering:
    """`naive_chunk.py` of a package whose spec keeps a state in levels."""
    size = Parameter(
        "chunk_size", "int", str(planned.size), True, "the most tokens per chunk, of which it has a power of two."
    )
    context = {
        **common_context(plan.spec, size),
        **level_context(planned, f"naive_chunk_{planned.columns.spec.name}"),
        "arguments": list(_arguments(planned)),
        "about": f"{columns_in_words(planned)} of other chunks, by blocks of a power of two, each at one level for the "
        "block behind it.",
        "notes": naive_chunk_notes(plan),
    }
    return Rendering("naive_chunk.py", "torch/levels.py.j2", context)


def level_context(planned: LevelPlan, function: str) -> dict[str, object]:
    """What the function of the whole has beside its signature: `function` is that of columns."""
    form, spec = planned.form, planned.form.spec
    return {
        "package": PACKAGE_OF_COLUMNS,
        "function": function,
        "defaults": list(defaults(Scope(spec), {param.name for param in planned.columns.spec.params})),
        "key": form.key,
        "values": form.values,
        "scales": form.scales,
        "state": form.levels.state,
        "count": form.levels.source,
    }


def columns_in_words(planned: LevelPlan) -> str:
    """What is done with a chunk, in words, as the beginning of a sentence on other chunks."""
    form = planned.form
    return (
        f"A chunk is run on columns of `{form.levels.state}`: one for each of its tokens, with a `{form.values}` of "
        f"one, and one for each {form.key} of the state before it. What tokens read of one another is weighed by a "
        f"table of levels;"
    )


def _arguments(planned: LevelPlan) -> Iterator[str]:
    """The inputs as chunks have them, then the params."""
    columns, values = planned.columns.spec, planned.form.values
    for decl in columns.inputs:
        yield f"levels.{'values' if decl.name == values else 'rows'}({decl.name})"
    yield from params_as_given(columns)
