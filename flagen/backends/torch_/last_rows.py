"""What is printed for states that no stage has, but what the last token of each sequence is made of: rows of the token
before that are written at the end of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from flagen.backends.torch_.scope import Scope, names_used, prelude
from flagen.plan.model import StagedPlan
from flagen.plan.staged import renamed_locals
from flagen.spec.model import Name, walk


@dataclass(frozen=True)
class LastRows:
    """The lines before the states are returned, and how each of them is written."""

    lines: list[str]
    states: Mapping[str, str]


def last_rows(plan: StagedPlan, first: Mapping[str, str], fresh: Callable[[str], str]) -> LastRows:
    """Those of `plan`; what `first` calls a state is it before the first token."""
    spec, ahead = plan.spec, plan.form.ahead
    if ahead is None:
        return LastRows([], {})
    values = tuple(ahead.shifts.values())
    used = names_used(spec, values)
    given = [decl.name for decl in spec.inputs if decl.name in used]
    inputs = (node.name for row in values for node in walk(row) if isinstance(node, Name) and node.kind == "input")
    given += [name for name in dict.fromkeys(inputs) if name not in given]
    ends = {name: fresh(f"{name}_end") for name in given}
    rows = {state: renamed_locals(row, ends) for state, row in ahead.shifts.items()}
    params = tuple(replace(param, default=None) for param in spec.params)
    derived = tuple(replace(decl, value=renamed_locals(decl.value, ends)) for decl in spec.derived)
    lines, printer = prelude(Scope(replace(spec, inputs=(), params=params, derived=derived)), rows.values())
    targets = ", ".join(ends.values()) if len(ends) > 1 else f"({ends[given[0]]},)"
    taken = f"{targets} = args.promote(*lookahead.ends(cu_seqlens, {', '.join(given)}))"
    states = {
        state: f"lookahead.last({printer.print(row).text}, {first[state]}, cu_seqlens, args.tokens)"
        for state, row in rows.items()
    }
    return LastRows([taken, *lines], states)
