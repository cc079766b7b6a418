"""Rung 0 for stages: run one after another, token by token, they are the recurrence. In exact arithmetic.

Each stage is a recurrence of its own, whose chunk form is proved as that of any other spec. What is left is that what
stages hand on was cut out of the statements rightly, and at the right moment. A stage that writes ahead is run behind
the others, for sequences that end after any number of tokens, none among them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gmpy2 import mpq

from flagen.algebra.exact import Dual, Oracle, Scope, Tensor, evaluate, scalar
from flagen.algebra.recurrence import Setting
from flagen.algebra.small_sizes import HEADS, small_sizes
from flagen.algebra.staged import Ahead, Stage, StagedForm
from flagen.diagnostics import InternalError
from flagen.spec.model import Dims, Interval, Spec

TOKENS = 3
ATTEMPTS = 5
Tensors = Mapping[str, Tensor]


def prove_stages(form: StagedForm, *, seed: int = 0) -> tuple[str, ...]:
    """Prove the stages of `form` equal to its spec's recurrence; what was proved, a line each.

    Raises:
        InternalError: they are not, with the tensor that differs.
    """
    spec = form.spec
    for steps in (1, 2, 3) if spec.steps else (1,):
        for attempt in range(ATTEMPTS):
            numbers = random.Random(f"{spec.name} {steps} {seed + attempt}")
            try:
                difference = _Sequence(form, steps, numbers).difference()
            except ZeroDivisionError:  # an unlucky point: a denominator of the spec is 0 there
                continue
            if difference:
                message = f"{spec.name}: {difference} (seed {seed + attempt}); nothing was written."
                raise InternalError(f"{message}\n{form.dump()}")
            break
        else:
            raise InternalError(f"{spec.name}: no random point without a zero denominator found")
    states = ", ".join(state.name for stage in form.stages for state in stage.states)
    return (f"stages of {states}, one after another = recurrence: random rational points, {TOKENS} tokens",)


class Sample:
    """Random numbers for a spec: its sizes, its params, and what the functions of the language give."""

    def __init__(self, spec: Spec, steps: int, numbers: random.Random) -> None:
        self.steps = steps
        self.oracle = Oracle(numbers)
        self.sizes = small_sizes(spec)
        self.constants = dict(self._constants(spec))

    def _constants(self, spec: Spec) -> Iterator[tuple[str, Tensor]]:
        yield from ((param.name, self.random(param.dims, param.range)) for param in spec.params)
        yield from ((name, scalar(Dual(mpq(value)))) for name, value in (*HEADS.items(), ("head", 1)))
        if spec.steps:
            yield spec.steps.symbol, scalar(Dual(mpq(self.steps)))

    def random(self, dims: Dims, within: Interval | None = None) -> Tensor:
        """A tensor over `dims` with elements in the range `within`."""
        within = within or Interval()
        scope = Scope({}, {}, self.sizes, self.oracle)
        return scope.build(dims, lambda _: Dual(self.oracle.rational(within.low, within.high)))


@dataclass(frozen=True)
class _Token:
    """A token of a sequence: what is the same for all its micro-steps, what each has, and what stages have given; the
    recurrence's output, and its states behind it."""

    whole: Tensors
    by_step: Sequence[Tensors]
    given: Tensors
    output: Tensor
    states: Tensors


class _Sequence(Sample):
    """A random sequence of tokens, run by the recurrence and by its stages."""

    def __init__(self, form: StagedForm, steps: int, numbers: random.Random) -> None:
        super().__init__(form.spec, steps, numbers)
        self.form = form
        self.first = {state.name: self.random(state.dims) for state in form.spec.states}
        self.parts = [Setting(stage.spec, self.sizes, self.constants, self.oracle) for stage in form.stages]

    def difference(self) -> str | None:
        """What differs, if anything does."""
        spec, ahead = self.form.spec, self.form.ahead
        whole = Setting(spec, self.sizes, self.constants, self.oracle)
        at_once = tuple(zip(self.form.stages, self.parts, strict=True))[: None if ahead is None else -1]
        states = dict(self.first)
        of_stages = [{state.name: self.first[state.name] for state in stage.states} for stage, _ in at_once]
        run: list[_Token] = []
        for number in range(TOKENS):
            inputs = {i.name: self.random(i.dims, i.range) for i in spec.inputs if i.per == "token"}
            by_step = [
                {i.name: self.random(i.dims, i.range) for i in spec.inputs if i.per == "step"}
                for _ in range(self.steps if spec.steps else 0)
            ]
            token = whole.token(inputs, by_step)
            output, states = whole.step(token, states)
            given = dict(inputs)
            for place, (stage, part) in enumerate(at_once):
                named, of_stages[place] = part.run(part.token(given, by_step), of_stages[place])
                given |= _results(stage, named)
                for name, state in of_stages[place].items():
                    if not equal(state, states[name]):
                        return f"the state {name} of its stage after token {number} is not the recurrence's"
            run.append(_Token(token.whole, by_step, given, output, states))
            if ahead is None and not equal(self._output(run[-1], given), output):
                return f"the stages' output of token {number} is not the recurrence's"
        if ahead is None:
            return None
        every = (self._difference_ahead(ahead, run[:length]) for length in range(TOKENS + 1))
        return next((found for found in every if found), None)

    def _difference_ahead(self, ahead: Ahead, run: Sequence[_Token]) -> str | None:
        """What differs of a sequence that ends with `run`, whose last stage needs the token behind each."""
        stage, part = self.form.stages[-1], self.parts[-1]
        states = {ahead.state: self.first[ahead.state]}
        if run:
            states = {ahead.state: evaluate(ahead.start, self._scope(run[0].given, self.first))}
        for number, token in enumerate(run):
            behind = run[number + 1].given[ahead.number] if token is not run[-1] else scalar(Dual(mpq(0)))
            given = {**token.given, ahead.following: behind}
            named, states = part.run(part.token(given, token.by_step), states)
            if not equal(self._output(token, given | _results(stage, named)), token.output):
                return f"the output of token {number} of {len(run)}, written ahead, is not the recurrence's"
        last = run[-1].states if run else self.first
        for name, row in ahead.shifts.items():
            states[name] = evaluate(row, self._scope({**run[-1].whole, **run[-1].given}, {})) if run else last[name]
        differing = (name for name, state in states.items() if not equal(state, last[name]))
        return next((f"the state {name} after {len(run)} tokens is not the recurrence's" for name in differing), None)

    def _output(self, token: _Token, given: Tensors) -> Tensor:
        """The output of a token, from what the stages have `given`."""
        if self.form.output is None:
            return given["o"]
        return evaluate(self.form.output, self._scope({**token.whole, **given}, {}))

    def _scope(self, named: Tensors, states: Tensors) -> Scope:
        return Scope({**self.constants, **named}, states, self.sizes, self.oracle)


def _results(stage: Stage, named: Tensors) -> dict[str, Tensor]:
    """What a stage gives, by the names that later ones know."""
    return {result.name: named[output] for result, output in zip(stage.results, stage.outputs, strict=True)}


def equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors over the same dims, in whatever order, are the same."""
    return all(left.at(right.dims, index).value == element.value for index, element in right.data.items())
