"""Rung 0 for stages: run one after another, token by token, they are the recurrence. In exact arithmetic.

Each stage is a recurrence of its own, whose chunk form is proved as that of any other spec. What is left is that what
stages hand on was cut out of the statements rightly, and at the right moment.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from gmpy2 import mpq

from flagen.algebra.exact import Dual, Oracle, Scope, Tensor, evaluate, scalar
from flagen.algebra.recurrence import Setting
from flagen.algebra.small_sizes import HEADS, small_sizes
from flagen.algebra.staged import StagedForm
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


class _Sequence(Sample):
    """A random sequence of tokens, run by the recurrence and by its stages."""

    def __init__(self, form: StagedForm, steps: int, numbers: random.Random) -> None:
        super().__init__(form.spec, steps, numbers)
        self.form = form

    def difference(self) -> str | None:
        """What differs, if anything does."""
        spec = self.form.spec
        first = {state.name: self.random(state.dims) for state in spec.states}
        whole = Setting(spec, self.sizes, self.constants, self.oracle)
        parts = [Setting(stage.spec, self.sizes, self.constants, self.oracle) for stage in self.form.stages]
        states = dict(first)
        of_stages = [{state.name: first[state.name] for state in stage.states} for stage in self.form.stages]
        for number in range(TOKENS):
            inputs = {i.name: self.random(i.dims, i.range) for i in spec.inputs if i.per == "token"}
            by_step = [
                {i.name: self.random(i.dims, i.range) for i in spec.inputs if i.per == "step"}
                for _ in range(self.steps if spec.steps else 0)
            ]
            token = whole.token(inputs, by_step)
            output, states = whole.step(token, states)
            given = dict(inputs)
            for place, (stage, part) in enumerate(zip(self.form.stages, parts, strict=True)):
                named, of_stages[place] = part.run(part.token(given, by_step), of_stages[place])
                outputs = zip(stage.results, stage.outputs, strict=True)
                given |= {result.name: named[output] for result, output in outputs}
                for name, state in of_stages[place].items():
                    if not equal(state, states[name]):
                        return f"the state {name} of its stage after token {number} is not the recurrence's"
            if not equal(given["o"] if self.form.output is None else self._evaluate(token.whole, given), output):
                return f"the stages' output of token {number} is not the recurrence's"
        return None

    def _evaluate(self, named: Tensors, given: Tensors) -> Tensor:
        """The output of a token whose inputs and derived names are `named`, from what the stages have `given`."""
        assert self.form.output is not None
        return evaluate(self.form.output, Scope({**self.constants, **named, **given}, {}, self.sizes, self.oracle))


def equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors over the same dims, in whatever order, are the same."""
    return all(left.at(right.dims, index).value == element.value for index, element in right.data.items())
