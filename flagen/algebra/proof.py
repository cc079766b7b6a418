"""Rung 0: the chunk form and its adjoint against the unrolled recurrence, in exact arithmetic. No tolerance.

At random rational points, for chunk lengths 1 to 4 over two chunks, with and without an initial state, and for several
micro-step counts:

    the reads, the output and the final state of the chunk form (and of its split form) equal the recurrence's;
    the adjoint's gradients, contracted with a direction for every input, param and the initial state, equal the
    recurrence's exact derivatives along that direction.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gmpy2 import mpq

from flagen.algebra.adjoint import Adjoint
from flagen.algebra.chunk import ChunkForm, split_solve
from flagen.algebra.chunk_rows import Chunk, weighted
from flagen.algebra.equations import System
from flagen.algebra.evaluate_system import run
from flagen.algebra.exact import Dual, Oracle, Scope, Tensor, decimal, evaluate, scalar, total
from flagen.algebra.normal_form import NormalForm
from flagen.algebra.recurrence import Setting, Token
from flagen.algebra.small_sizes import HEADS, small_sizes
from flagen.algebra.timeline import OutOfOrder, Values
from flagen.diagnostics import InternalError
from flagen.spec.model import Dims, Interval, Spec, State

States = Mapping[str, Tensor]

_ANYWHERE = Interval()
ATTEMPTS = 5


@dataclass(frozen=True)
class Case:
    """One comparison: chunk length in tokens, micro-steps per token, whether there is an initial state."""

    chunk: int
    steps: int
    initial: bool

    def __str__(self) -> str:
        return (
            f"chunks of {self.chunk}, {self.steps} micro-steps, {'with' if self.initial else 'without'} initial state"
        )


@dataclass(frozen=True)
class Proof:
    """What was proved, a line each."""

    lines: tuple[str, ...]

    def dump(self) -> str:
        return "\n".join(self.lines)


def prove(chunk: ChunkForm, adjoint: Adjoint, *, seed: int = 0) -> Proof:
    """Prove `chunk` and `adjoint` equal to their spec's recurrence.

    Raises:
        InternalError: they are not, with the case and the tensor that differs.
    """
    spec = chunk.normal_form.spec
    cases = tuple(case for case in _cases(spec) if _prove_case(chunk, adjoint, case, seed))
    steps = sorted({case.steps for case in cases})
    initial = "with and without" if any(not case.initial for case in cases) else "with"
    counts = f", {spec.steps.symbol} = {', '.join(map(str, steps))}" if spec.steps else ""
    return Proof(
        (
            f"chunk form = recurrence: {len(cases)} random rational points, chunk lengths 1 to 4, two chunks, "
            f"{initial} initial state{counts}",
            f"adjoint = exact derivatives of the recurrence: {', '.join(_differentiated(spec))}",
        )
    )


def _cases(spec: Spec) -> Iterator[Case]:
    for length in (1, 2, 3, 4):
        for initial in (True, False):
            yield Case(length, 2 if spec.steps else 1, initial)
    if spec.steps:
        yield Case(2, 1, initial=True)
        yield Case(2, 3, initial=True)


def _differentiated(spec: Spec) -> tuple[str, ...]:
    tensors = [p.name for p in spec.params if p.is_tensor]
    return (*(i.name for i in spec.inputs), *tensors, "initial state")


def _prove_case(chunk: ChunkForm, adjoint: Adjoint, case: Case, seed: int) -> bool:
    """Prove one case. False where the spec divides by zero whatever its inputs are: by a read of a zero state, say."""
    for attempt in range(ATTEMPTS):
        numbers = random.Random(f"{chunk.normal_form.spec.name} {case} {seed + attempt}")
        try:
            Comparison(chunk, adjoint, case, numbers).run()
        except ZeroDivisionError:  # an unlucky point: a denominator of the spec is 0 there
            continue
        except (Differs, OutOfOrder) as difference:
            raise InternalError(
                f"{chunk.normal_form.spec.name}: {difference} ({case}, seed {seed + attempt}); nothing was written.\n"
                f"{chunk.normal_form.dump()}\n{chunk.dump()}"
            ) from None
        return True
    if not case.initial:
        return False
    raise InternalError(f"{chunk.normal_form.spec.name}: no random point without a zero denominator found ({case})")


class Differs(Exception):
    """A derived quantity is not the recurrence's."""


class Comparison:
    """One case: a random sequence of two chunks, run both ways."""

    def __init__(self, chunk: ChunkForm, adjoint: Adjoint, case: Case, numbers: random.Random) -> None:
        self.nf: NormalForm = chunk.normal_form
        self.spec = self.nf.spec
        self.chunk, self.adjoint, self.case, self.numbers = chunk, adjoint, case, numbers
        self.oracle = Oracle(numbers)
        self.sizes = small_sizes(self.spec)
        self.directions = _differentiated(self.spec)

    def run(self) -> None:
        setting = self.setting()
        tokens = [self.token(setting) for _ in range(2 * self.case.chunk)]
        start = self.initial_states()
        outputs, final = self.recurrence(setting, tokens, start)
        chunks = [
            Chunk(self.nf, setting, tokens[first : first + self.case.chunk])
            for first in range(0, len(tokens), self.case.chunk)
        ]
        forward = self.forward(self.chunk.system, chunks, start)
        self._compare_values(forward, chunks, setting, outputs, final)
        if not self.nf.registers:
            split = self.forward(split_solve(self.chunk), chunks, start)
            self._compare_values(split, chunks, setting, outputs, final)
        self._compare_gradients(forward, chunks, setting, start, outputs, final)

    # ------------------------------------------------------------------------------------------------------ random data

    def setting(self) -> Setting:
        constants = {p.name: self._random(p.dims, p.name if p.is_tensor else None, p.range) for p in self.spec.params}
        constants |= {name: scalar(Dual(mpq(value))) for name, value in (*HEADS.items(), ("head", 1))}
        if self.spec.steps:
            constants[self.spec.steps.symbol] = scalar(Dual(mpq(self.case.steps)))
        return Setting(self.spec, self.sizes, constants, self.oracle)

    def token(self, setting: Setting) -> Token:
        whole = {i.name: self._random(i.dims, i.name, i.range) for i in self.spec.inputs if i.per == "token"}
        steps = [
            {i.name: self._random(i.dims, i.name, i.range) for i in self.spec.inputs if i.per == "step"}
            for _ in range(self.case.steps if self.spec.steps else 0)
        ]
        return setting.token(whole, steps)

    def initial_states(self) -> dict[str, Tensor]:
        return {state.name: self.initial_state(state) for state in self.spec.states}

    def initial_state(self, state: State) -> Tensor:
        if self.case.initial:
            return self._random(state.dims, "initial state")
        return _scope(self.sizes, self.oracle).build(state.dims, lambda _: Dual(decimal(state.init)))

    def _random(self, dims: Dims, name: str | None, within: Interval = _ANYWHERE) -> Tensor:
        """A random tensor; where it has a `name`, also a random direction to differentiate along."""

        def element(_: tuple[int, ...]) -> Dual:
            value = self.oracle.rational(within.low, within.high)
            if name is None:
                return Dual(value)
            place = self.directions.index(name)
            return Dual(
                value, tuple(self.oracle.rational() if p == place else mpq(0) for p in range(len(self.directions)))
            )

        return _scope(self.sizes, self.oracle).build(dims, element)

    # ------------------------------------------------------------------------------------------------------- both ways

    def recurrence(self, setting: Setting, tokens: Sequence[Token], start: States) -> tuple[list[Tensor], States]:
        states, outputs = start, []
        for token in tokens:
            output, states = setting.step(token, states)
            outputs.append(output)
        return outputs, states

    def forward(self, system: System, chunks: Sequence[Chunk], start: States) -> list[dict[str, Values]]:
        state = {index: element.value for index, element in self.oriented(start).items()}
        results = []
        for chunk in chunks:
            values = run(system, chunk.timeline, {**chunk.given, "S0": state})
            state = values["S1"]
            results.append(values)
        return results

    def oriented(self, states: States) -> dict[tuple[int, ...], Dual]:
        """The elements of the state, or of every register, by key and value."""
        dims = (self.nf.key, self.nf.value)
        within = list(_scope(self.sizes, self.oracle).indices(dims))
        if not self.nf.registers:
            return {index: states[self.nf.state.name].at(dims, index) for index in within}
        every = enumerate(self.nf.registers)
        return {(p, *index): states[state.name].at(dims, index) for p, state in every for index in within}

    def _compare_values(
        self,
        forward: Sequence[Mapping[str, Values]],
        chunks: Sequence[Chunk],
        setting: Setting,
        outputs: Sequence[Tensor],
        final: States,
    ) -> None:
        if forward[-1]["S1"] != {index: element.value for index, element in self.oriented(final).items()}:
            raise Differs("the chunk form's final state is not the recurrence's")
        derived = [
            o for chunk, values in zip(chunks, forward, strict=True) for o in self.outputs(chunk, values, setting)
        ]
        for number, (got, expected) in enumerate(zip(derived, outputs, strict=True)):
            if any(got.at(expected.dims, index).value != element.value for index, element in expected.data.items()):
                raise Differs(f"the chunk form's output of token {number} is not the recurrence's")

    def outputs(self, chunk: Chunk, values: Mapping[str, Values], setting: Setting) -> Iterator[Tensor]:
        for place, token in enumerate(chunk.tokens):
            reads = {
                read.name: Tensor(
                    (self._read_dim(read.side),),
                    {(c,): Dual(values[output][(place, c)]) for c in range(self.sizes[self._read_dim(read.side)])},
                )
                for read, output in zip(self.nf.reads, self.chunk.outputs, strict=True)
            }
            yield evaluate(self.nf.output, setting.scope(token.whole, reads))

    def _read_dim(self, side: str) -> str:
        return self.nf.value if side == "left" else self.nf.key

    # ------------------------------------------------------------------------------------------------------- gradients

    def _compare_gradients(
        self,
        forward: Sequence[Mapping[str, Values]],
        chunks: Sequence[Chunk],
        setting: Setting,
        start: States,
        outputs: Sequence[Tensor],
        final: States,
    ) -> None:
        """<cotangent, derivative of the recurrence> = <gradients of the adjoint, derivatives of the rows>."""
        weights = [{index: self.oracle.rational() for index in o.data} for o in outputs]
        state_weights = {index: self.oracle.rational() for index in self.oriented(final)}
        expected = total(
            Dual(mpq(0), weighted(weight[index], element))
            for weight, o in zip(weights, outputs, strict=True)
            for index, element in o.data.items()
        )
        self.compare_gradients(forward, chunks, setting, start, final, weights, state_weights, expected)

    def compare_gradients(
        self,
        forward: Sequence[Mapping[str, Values]],
        chunks: Sequence[Chunk],
        setting: Setting,
        start: States,
        final: States,
        weights: Sequence[Mapping[tuple[int, ...], mpq]],
        state_weights: Mapping[tuple[int, ...], mpq],
        expected: Dual,
    ) -> None:
        """The gradients that follow from those of the outputs, `weights`, and of the last state, against the
        derivatives of the recurrence: `expected` of its outputs."""
        last = self.oriented(final)
        expected = expected + total(
            Dual(mpq(0), weighted(weight, last[index])) for index, weight in state_weights.items()
        )
        found = Dual(mpq(0))
        cotangent = dict(state_weights)
        for place in reversed(range(len(chunks))):
            chunk, length = chunks[place], self.case.chunk
            given = {**forward[place], "dS1": cotangent}
            for number, token in enumerate(chunk.tokens):
                weight = weights[place * length + number]
                found = found + self._through_output(number, token, forward[place], weight, given, setting)
            gradients = run(self.adjoint.system, chunk.timeline, given)
            found = found + chunk.pulled(gradients, self.adjoint.system)
            cotangent = gradients["dS0"]
        first = self.oriented(start)
        for index, weight in cotangent.items():
            found = found + Dual(mpq(0), weighted(weight, first[index]))
        got = found.tangents or (mpq(0),) * len(self.directions)
        want = expected.tangents or (mpq(0),) * len(self.directions)
        for name, one, other in zip(self.directions, got, want, strict=True):
            if one != other:
                raise Differs(f"the adjoint's gradient of {name} is not the recurrence's derivative")

    def _through_output(
        self,
        number: int,
        token: Token,
        values: Mapping[str, Values],
        weight: Mapping[tuple[int, ...], mpq],
        given: dict[str, Values],
        setting: Setting,
    ) -> Dual:
        """The output's own part of the chain: fills the reads' cotangents into `given`, returns what reaches the inputs
        without passing a read."""
        reads = [
            (f"d{output}", read.name, self._read_dim(read.side), output)
            for read, output in zip(self.nf.reads, self.chunk.outputs, strict=True)
        ]
        variables = [(cotangent, c) for cotangent, _, dim, _ in reads for c in range(self.sizes[dim])]
        plain = len(self.directions)
        names: dict[str, Tensor] = {}
        for cotangent, name, dim, output in reads:
            names[name] = Tensor(
                (dim,),
                {
                    (c,): Dual(
                        values[output][(number, c)],
                        (mpq(0),) * plain + tuple(mpq(int(v == (cotangent, c))) for v in variables),
                    )
                    for c in range(self.sizes[dim])
                },
            )
        widened = {
            name: _widened(tensor, len(variables)) for name, tensor in {**setting.constants, **token.whole}.items()
        }
        o = evaluate(self.nf.output, setting.scope(widened, names))
        slopes = total(Dual(mpq(0), weighted(weight[index], o.at(self.spec.output_dims, index))) for index in weight)
        tangents = slopes.tangents or (mpq(0),) * (plain + len(variables))
        for (cotangent, c), slope in zip(variables, tangents[plain:], strict=True):
            given.setdefault(cotangent, {})[(number, c)] = slope
        return Dual(mpq(0), tangents[:plain])


def _widened(tensor: Tensor, extra: int) -> Tensor:
    """`tensor` with room for `extra` more directions, along which it does not change."""
    zeros = (mpq(0),) * extra
    return Tensor(
        tensor.dims,
        {index: Dual(e.value, e.tangents + zeros if e.tangents else ()) for index, e in tensor.data.items()},
    )


def _scope(sizes: Mapping[str, int], oracle: Oracle) -> Scope:
    return Scope({}, {}, sizes, oracle)
