"""The `forward` of a layer: its statements, and what goes to operators and convolutions and back to the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flagen.backends.text import one_line
from flagen.backends.torch_.layer_blocks import block
from flagen.backends.torch_.layer_names import LayerNames
from flagen.backends.torch_.layer_printer import LayerPrinter
from flagen.plan.free_names import free_name
from flagen.plan.layer import LayerPlan, Set, Step
from flagen.spec.layer.model import MAX_ITERATIONS, Call, IfElse, Value
from flagen.spec.model import Spec

_OWN = (
    "hidden_states attention_mask past_key_values use_cache output_attentions cu_seqlens kwargs packing self"
).split()
_OWN += "torch math nn F Tensor Any Layer Forms shift activate l2norm".split()
"""Names of a method that nothing else may have."""


class Forward:
    """Writes the statements of `forward`.

    past, keep: what the states of the past, and whether to leave new ones, are called there; run, state: an operator in
    the form that runs, and its last state; cached: the states of modules that keep something; first: where sequences
    go on, where a module asks for that; constants: the forms of each operator.
    """

    def __init__(self, plan: LayerPlan, spec: Spec, names: LayerNames) -> None:
        self.plan, self.layer, self.spec = plan, plan.layer, spec
        self.printer = LayerPrinter(names.elsewhere, names.computed, self._module_call)
        taken = {*_OWN, *(name for statement in self.layer.forward for name in statement.targets), "x"}
        taken |= {decl.name for decl in self.layer.inputs} | _temporaries(plan.forward)
        own = ("past", "keep", "run", "state", "first")
        self.past, self.keep, self.run, self.state, self.first = (free_name(n, taken) for n in own)
        self.cached = {name: free_name(f"{name.removesuffix('1d')}_state", taken) for name in plan.keeping}
        self.constants: dict[str, str] = {}
        for operator in plan.operators:
            others = taken | {self.layer.class_name, *self.constants.values()}
            self.constants[operator.name] = free_name(operator.name.upper(), others)

    def lines(self) -> Iterator[str]:
        """The statements, each choice as a block."""
        yield from block(self.plan.forward, self._statement, self.printer)

    def missing(self) -> Iterator[str]:
        """What is said where an input is left out that is needed."""
        described = {given.name: one_line(given.description).rstrip(".") for given in self.layer.inputs}
        for name, condition in self.plan.needs.inputs:
            asked = f"{name} is None"
            if condition != Value(True):
                asked += f" and {self.printer.condition(condition)}"
            yield f"if {asked}:"
            yield f'    raise ValueError("{name}: expected {described[name] or "a tensor"}, got None")'

    def placing(self) -> Iterator[str]:
        """The positions from which sequences go on, where a module asks for them."""
        if self.plan.placed:
            yield self._where_placed(f"{self.first} = self.first_positions(past_key_values, packing)", "0")

    def _where_placed(self, line: str, otherwise: str) -> str:
        """`line`, or another value where no module asks for positions in this config."""
        modules = (module.value for module in self.layer.modules if module.name in self.plan.placed)
        first, *others = [value.condition if isinstance(value, IfElse) else None for value in modules]
        if first is None or any(other != first for other in others):
            return line
        return f"{line} if {self.printer.text(first)} else {otherwise}"

    def _statement(self, step: Set) -> str:
        value, targets = step.value, ", ".join(step.targets)
        if isinstance(value, Call) and value.kind == "recurrence":
            return self._operator_call(value, targets)
        if isinstance(value, Call) and value.name in self.plan.keeping:
            return self._keeping_call(value, targets)
        return f"{targets} = {self.printer.text(value)}"

    def _keeping_call(self, call: Call, targets: str) -> str:
        called = "shift" if self.plan.keeping[call.name] == "token" else f"self.{call.name}"
        state = self.cached[call.name]
        given = ", ".join(map(self.printer.text, call.args))
        rest = f"cache={state}, output_final_state={self.keep}, cu_seqlens=cu_seqlens"
        return f"{targets}, {state} = {called}({given}, {rest})"

    def _operator_call(self, call: Call, targets: str) -> str:
        by_keyword = {key: f"{key}={self.printer.text(value)}" for key, value in call.keywords}
        chosen = [self.constants[call.name], "hidden_states"]
        if MAX_ITERATIONS in by_keyword:
            chosen.append(by_keyword.pop(MAX_ITERATIONS))
        given = [*map(self.printer.text, call.args), *by_keyword.values()]
        given += [f"initial_state={self._initial()}", f"output_final_state={self.keep}", "cu_seqlens=cu_seqlens"]
        return (
            f"{self.run} = self.choose({', '.join(chosen)})\n{targets}, {self.state} = {self.run}({', '.join(given)})"
        )

    def _module_call(self, call: Call) -> str:
        given = ", ".join(self.printer.text(arg) for arg in call.args)
        if call.name in self.plan.placed:
            return f"self.{call.name}({given}, seqlen_offset={self.first}, cu_seqlens=cu_seqlens)"
        return f"self.{call.name}({given})"

    def _entries(self) -> dict[str, list[str]]:
        """The entries of the cache, and which states each has."""
        where: dict[str, str] = {kept.state: kept.entry for kept in self.layer.cache}
        entries: dict[str, list[str]] = {}
        for state in self.spec.states:
            entries.setdefault(where.get(state.name, "recurrent_state"), []).append(state.name)
        return entries

    def _initial(self) -> str:
        entries = self._entries()
        if len(entries) == 1:
            return f'{self.past}["{next(iter(entries))}"]'
        where = {state: entry for entry, states in entries.items() for state in states}
        parts = []
        for state in self.spec.states:
            entry, states = where[state.name], entries[where[state.name]]
            place = f"[{states.index(state.name)}]" if len(states) > 1 else ""
            parts.append(f'{self.past}["{entry}"]{place}')
        first = f'{self.past}["{where[self.spec.states[0].name]}"]'
        return f"None if {first} is None else ({', '.join(parts)})"

    def leaving(self) -> Iterator[str]:
        """What the layer leaves in the cache, as keyword arguments."""
        entries = self._entries()
        order = [state.name for state in self.spec.states]
        for entry, states in entries.items():
            parts = [f"{self.state}[{order.index(state)}]" for state in states]
            if len(entries) == 1:
                yield f"{entry}={self.state}"
            else:
                yield f"{entry}={parts[0]}" if len(parts) == 1 else f"{entry}=({', '.join(parts)})"
        if self.cached:
            states = list(self.cached.values())
            yield f"conv_state={states[0]}" if len(states) == 1 else f"conv_state=({', '.join(states)})"
        if self.plan.placed:
            yield self._where_placed(f"positions=packing.positions_after({self.first})", "None")


def _temporaries(steps: Iterable[Step]) -> set[str]:
    found: set[str] = set()
    for step in steps:
        found |= set(step.targets) if isinstance(step, Set) else _temporaries((*step.then, *step.otherwise))
    return found
