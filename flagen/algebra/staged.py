"""What a spec that runs in stages consists of: the stages, what each of them gives, and what passes between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flagen.spec.model import Assign, Dims, Expr, Input, Repeat, Spec, State, Statement
from flagen.spec.printer import to_source


@dataclass(frozen=True)
class Result:
    """What a stage gives for every token: the output `name` of its spec."""

    name: str
    dims: Dims
    wide: bool
    """Whether it has the dtype of the states, not that of the inputs: a log decay, or what is read of a state."""


@dataclass(frozen=True)
class Stage:
    """The recurrence of one state, or of several elementwise ones over the same dims. For inputs its spec has those of
    the whole that it uses, then what earlier stages give it; each output of the spec is a result. The output of the
    whole spec is called `o` here, too."""

    spec: Spec
    results: tuple[Result, ...]
    is_scan: bool

    @property
    def states(self) -> tuple[State, ...]:
        return self.spec.states

    @property
    def called(self) -> str:
        """The names of its states, as one says them."""
        return in_words([state.name for state in self.states])

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the results are called in `spec`: by their names, but what is read of a matrix is `o`."""
        return tuple(result.name for result in self.results) if self.is_scan else ("o",)

    @property
    def shown(self) -> Spec:
        """`spec` with its outputs called what the results are: to be looked at, not to be built."""
        names = dict(zip(self.outputs, (result.name for result in self.results), strict=True))
        output = (replace(assign, target=names.get(assign.target, assign.target)) for assign in self.spec.output)
        return replace(self.spec, output=tuple(output))


@dataclass(frozen=True)
class Ahead:
    """What the last stage has instead of rows of the token before: rows of its own tokens, with a number of the next.

    state: the matrix; start: what it starts from, with what each of the shifts was before the first token and that
    token's number. number, following: what gives the number of a token, and what that of the next token is called,
    which is 0 behind the last. key, value: the shifts, which no stage has then: after the last token they are what
    `shifts` says.
    """

    state: str
    start: Expr
    number: str
    following: str
    key: str
    value: str
    shifts: Mapping[str, Expr]

    def dump(self) -> str:
        """What is before the first token, and behind the last."""
        lasts = ", ".join(f"{state} = {to_source(vector)}" for state, vector in self.shifts.items())
        return f"from {self.state} = {to_source(self.start)} to {self.following} = 0, where {lasts}"


@dataclass(frozen=True)
class StagedForm:
    """The stages in order, and what passes between them as the inputs that it is to later ones. `output` evaluates the
    output from their results, or is None where a stage has it; `ahead`: what is put between the last stage and the
    others."""

    spec: Spec
    stages: tuple[Stage, ...]
    passed: tuple[Input, ...]
    output: Expr | None
    ahead: Ahead | None = None

    def dump(self) -> str:
        """The stages as text, a paragraph each."""
        lines = [f"{self.spec.name} in stages"]
        for stage in self.stages:
            lines.append(f"stage {stage.called} [{', '.join(stage.states[0].dims)}]")
            lines += [f"    given {decl.name} [{', '.join(decl.dims)}] in {decl.range}" for decl in self.given(stage)]
            shown = stage.shown
            every = flat((*shown.update, *shown.output))
            lines += [f"    {assign.target} = {to_source(assign.value)}" for assign in every]
        if self.ahead is not None:
            lines.append(f"    {self.ahead.dump()}")
        if self.output is not None:
            lines.append(f"o = {to_source(self.output)}")
        return "\n".join(lines)

    def given(self, stage: Stage) -> tuple[Input, ...]:
        """What `stage` gets from earlier ones."""
        return tuple(decl for decl in stage.spec.inputs if decl in self.passed)


def in_words(names: Sequence[str]) -> str:
    """`a, b and c`."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def flat(statements: Iterable[Statement]) -> Iterator[Assign]:
    """Every assignment, those of micro-steps too."""
    for statement in statements:
        if isinstance(statement, Repeat):
            yield from statement.body
        else:
            yield statement
