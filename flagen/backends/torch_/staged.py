"""The context of `naive_chunk.py`, and what it shares with `chunk.py`, where a spec runs in stages: the calls of their
functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from flagen.backends.notes import naive_chunk_notes
from flagen.backends.protocol import Rendering
from flagen.backends.signature import Parameter, output_dtype, output_like
from flagen.backends.solutions import iterations
from flagen.backends.stages import package_of
from flagen.backends.torch_.common import common_context, equations
from flagen.backends.torch_.last_rows import last_rows
from flagen.backends.torch_.scope import Scope, defaults, names_used, prelude
from flagen.plan.model import Plan, PlannedStage, StagedPlan
from flagen.plan.staged import as_locals


def staged_file(plan: Plan, staged: StagedPlan) -> Rendering:
    """`naive_chunk.py` of a package whose spec runs in stages."""
    size = Parameter("chunk_size", "int", str(staged.size), True, "tokens per chunk.")
    stages = staged_context(staged, lambda stage: f"naive_chunk_{stage.spec.name}", _modes, promotes=True)
    del stages["repeats_heads"]  # What is promoted has all heads.
    notes = {"notes": naive_chunk_notes(plan)}
    context = {**common_context(plan.spec, size, *iterations(plan)), **stages, **notes}
    del context["output_dtype"]  # The stages' lines have it.
    return Rendering("naive_chunk.py", "torch/staged.py.j2", context)


def _modes(stage: PlannedStage) -> Iterator[str]:
    return (parameter.name for parameter in iterations(stage.plan))


@dataclass(frozen=True)
class StageCall:
    """The call of one stage's function, the module that it is from, and the lines before it."""

    before: list[str]
    package: str
    function: str
    targets: str
    arguments: list[str]
    about: list[str]


def staged_context(
    plan: StagedPlan,
    function: Callable[[PlannedStage], str],
    modes: Callable[[PlannedStage], Iterable[str]],
    *,
    promotes: bool,
) -> dict[str, object]:
    """What both functions of the whole have beside their signature: the calls, then the output.

    function: that of a stage; modes: the keywords that it has beside those of all; promotes: stages get their inputs in
    the dtype that is computed in, and a key head repeated for its value heads.
    """
    spec = plan.spec
    names = _Names(plan, repeats=not promotes)
    output = _output(plan, promotes=promotes)
    promoted, dtype = _inputs(plan) if promotes else [], output_dtype(spec)
    calls = [
        StageCall(
            list(names.before(stage)),
            package_of(stage, spec.name),
            function(stage),
            ", ".join(names.targets(stage)),
            [*names.arguments(stage), *(f"{mode}={mode}" for mode in modes(stage))],
            equations(stage.stage.shown),
        )
        for stage in plan.stages
    ]
    given = list(defaults(Scope(spec), _params(plan)))
    return {
        "calls": calls,
        "first": names.given_states,
        "final": names.finals[0] if len(names.finals) == 1 else f"({', '.join(names.finals)})",
        "last_rows": names.last.lines,
        "defaults": given,
        "repeats_heads": names.repeats_heads,
        "promotion": [f"dtype = {dtype}", _promotion(promoted)] if promoted else [],
        "prelude": output.before,
        "output": output.value,
        "returned": "o.to(dtype)" if promoted else f"o.to({dtype})" if output.cast else "o",
        "l2norm": output.l2norm,
    }


def _promotion(inputs: Sequence[str]) -> str:
    listed = ", ".join(inputs)
    return f"{listed if len(inputs) > 1 else f'({listed},)'} = args.promote({listed})"


class _Names:
    """How the function of the whole writes what it hands to its stages."""

    def __init__(self, plan: StagedPlan, *, repeats: bool) -> None:
        self.plan, self.spec, self.repeats = plan, plan.spec, repeats
        self.taken = {*Scope(plan.spec).names, *(decl.name for decl in plan.form.passed), "args", "o"}
        states = [state.name for state in self.spec.states]
        self.first = {name: self._fresh(f"{name}_first") for name in states}
        self.firsts = list(self.first.values())
        self.ahead = plan.form.ahead
        self.start = "" if self.ahead is None else self._fresh(f"{self.ahead.state}_start")
        """The state that rows are written to at the end of their tokens."""
        self.final = {stage.spec.name: self._final(stage) for stage in plan.stages if not stage.repeats}
        """What a stage's last state, or the tuple of its last states, is called."""
        finals = dict(pair for stage in plan.stages if not stage.repeats for pair in self._last_states(stage))
        self.last = last_rows(plan, self.first, self._fresh)
        finals |= self.last.states
        self.finals = [finals[name] for name in states]
        self.repeats_heads = any(self._repeats(stage) for stage in plan.stages)

    @property
    def given_states(self) -> str:
        """The line that takes the states that a call starts from apart."""
        if len(self.firsts) == 1:
            return f"{self.firsts[0]} = initial_state"
        return f"{', '.join(self.firsts)} = initial_state or [None] * {len(self.firsts)}"

    def _fresh(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def _final(self, stage: PlannedStage) -> str:
        first, *others = (state.name for state in stage.stage.states)
        return self._fresh(f"{first}_to_{others[-1]}_finals" if others else f"{first}_final")

    def _last_states(self, stage: PlannedStage) -> Iterator[tuple[str, str]]:
        """How each of a stage's last states is written where they are wanted."""
        called, states = self.final[stage.spec.name], stage.stage.states
        for place, state in enumerate(states):
            last = called if len(states) == 1 else f"{called}[{place}]"
            yield state.name, f"{last}{self._in_pairs(state.name, 'unflatten')}"

    def before(self, stage: PlannedStage) -> Iterator[str]:
        """What a stage needs that no other one gives: of the next token, and before the first."""
        if self.ahead is None or not self._is_ahead(stage):
            return
        ahead, first = self.ahead, self.first
        yield f"# A token's row is written at its end, with a number of the next one, and {ahead.state} has no other."
        yield f"{ahead.following} = lookahead.of_next({ahead.number}, cu_seqlens)"
        given = (first[ahead.state], ahead.number, first[ahead.key], first[ahead.value], "cu_seqlens")
        yield f"{self.start} = lookahead.before_first({', '.join(given)})"

    def _is_ahead(self, stage: PlannedStage) -> bool:
        return self.ahead is not None and [state.name for state in stage.stage.states] == [self.ahead.state]

    def _in_pairs(self, name: str, how: str) -> str:
        """The call that takes two dims of a state for one, as stages do, or gives them back."""
        state = next(state for state in self.spec.states if state.name == name)
        if not state.shape:
            return ""
        dim = next(dim for dim in state.dims if dim in self.spec.pairs)
        first = 2 + state.dims.index(dim)
        sizes = ", ".join(f"args.{side}" for side in self.spec.pairs[dim])
        return f".{how}({first}, ({sizes}))" if how == "unflatten" else f".{how}({first}, {first + 1})"

    def targets(self, stage: PlannedStage) -> Iterator[str]:
        """What a stage's results and its last state are called."""
        yield from (result.name for result in stage.stage.results)
        yield "_" if stage.repeats else self.final[stage.spec.name]

    def arguments(self, stage: PlannedStage) -> Iterator[str]:
        """What a stage is called with."""
        spec = stage.spec
        yield from (self._input(stage, decl.name) for decl in spec.inputs)
        yield from (param.name for param in spec.params if param.is_tensor)
        yield from (f"{param.name}={param.name}" for param in spec.params if not param.is_tensor)
        if spec.steps is not None:
            yield f"{spec.steps.argument}={spec.steps.argument}"
        if self._is_ahead(stage):
            yield f"initial_state={self.start}"
        else:
            yield self._from_first_states(stage)
        if not stage.repeats:
            yield "output_final_state=output_final_state"
        yield "cu_seqlens=cu_seqlens"
        yield "chunk_size=chunk_size"

    def _from_first_states(self, stage: PlannedStage) -> str:
        firsts = [self.first[state.name] for state in stage.stage.states]
        given = [f"{self.first[state.name]}{self._in_pairs(state.name, 'flatten')}" for state in stage.stage.states]
        first = given[0] if len(given) == 1 else f"({', '.join(given)})"
        return f"initial_state={firsts[0] if given == firsts[:1] else f'None if {firsts[0]} is None else {first}'}"

    def _input(self, stage: PlannedStage, name: str) -> str:
        return f"_of_value_heads({name}, args.HV)" if self._repeats(stage) else name

    def _repeats(self, stage: PlannedStage) -> bool:
        """Whether a stage knows of no value heads, although states have one each."""
        return self.repeats and self.spec.has_value_heads and not stage.spec.has_value_heads


def _params(plan: StagedPlan) -> set[str]:
    """The params that any stage or the output takes."""
    named = {param.name for stage in plan.stages for param in stage.spec.params}
    if plan.form.output is not None:
        named |= names_used(plan.spec, (plan.form.output,))
    return named


def _inputs(plan: StagedPlan) -> list[str]:
    """The inputs that any stage or the output takes."""
    used = {decl.name for stage in plan.stages for decl in stage.spec.inputs}
    if plan.form.output is not None:
        used |= names_used(plan.spec, (plan.form.output,))
    return [decl.name for decl in plan.spec.inputs if decl.name in used]


@dataclass(frozen=True)
class _Output:
    """The output's expression, if no stage has it, the lines before it, whether it may have another dtype than the
    output is to have, and whether it calls `l2norm`."""

    value: str
    before: list[str]
    cast: bool
    l2norm: bool


def _output(plan: StagedPlan, *, promotes: bool) -> _Output:
    spec = plan.spec
    if plan.form.output is None:
        last = next(stage for stage in plan.stages if any(result.name == "o" for result in stage.stage.results))
        same = "o" not in last.spec.wide_outputs and output_like(last.spec) == output_like(spec)
        return _Output("", [], promotes or not same, l2norm=False)
    # Its params have their values by now, and inputs that are promoted are what they should be.
    params = tuple(replace(param, default=None) for param in spec.params)
    known = {decl.name for decl in plan.form.passed} | ({decl.name for decl in spec.inputs} if promotes else set())
    derived = tuple(replace(decl, value=as_locals(decl.value, known)) for decl in spec.derived)
    value = as_locals(plan.form.output, known)
    inputs = () if promotes else spec.inputs  # What is promoted is ready.
    lines, printer = prelude(Scope(replace(spec, inputs=inputs, params=params, derived=derived)), (value,))
    text = printer.aligned(printer.print(value), spec.output_dims).text
    return _Output(text, lines, cast=True, l2norm="l2norm" in printer.needs)
