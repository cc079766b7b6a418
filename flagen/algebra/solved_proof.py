"""Rung 0 for systems of equations: the chunk form's reads solve what the recurrence solves, and gradients are those of
the solution. In exact arithmetic, the solution by elimination.

    the residual of the chunk form at the recurrence's solution x is 0 for every token;
    the gradients of the residual, x fixed and its own gradient s, are the recurrence's exact derivatives of x, where
    s is the solution of the same system for the gradient of x.

The last is so because the matrix is symmetric, as its first state is here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from gmpy2 import mpq

from flagen.algebra.adjoint import Adjoint
from flagen.algebra.chunk import ChunkForm
from flagen.algebra.chunk_rows import Chunk, weighted
from flagen.algebra.exact import Dual, Tensor, total
from flagen.algebra.flow import Flow
from flagen.algebra.proof import ATTEMPTS, Case, Comparison, Differs
from flagen.algebra.recurrence import Setting, Token
from flagen.algebra.rewrite import map_children
from flagen.algebra.solved import SolvedForm
from flagen.algebra.timeline import OutOfOrder
from flagen.diagnostics import InternalError
from flagen.spec.model import Assign, Expr, Name, Solution, State

Values = dict[tuple[int, ...], mpq]


def prove_solved(solved: SolvedForm, chunk: ChunkForm, adjoint: Adjoint, *, seed: int = 0) -> tuple[str, ...]:
    """Prove that the residual of `solved` is that of the system of its spec; what was proved, a line each.

    Raises:
        InternalError: it is not, with the case and what differs.
    """
    name = solved.spec.name
    steps = 2 if solved.spec.steps else 1
    cases = [Case(length, steps, initial) for length in (1, 2, 3) for initial in (True, False)]
    for case in cases:
        for attempt in range(ATTEMPTS):
            try:
                _Solutions(solved, chunk, adjoint, case, random.Random(f"{name} {case} {seed + attempt}")).run()
            except ZeroDivisionError:  # an unlucky point: the system has no solution there
                continue
            except (Differs, OutOfOrder) as difference:
                message = f"{name}: {difference} ({case}, seed {seed + attempt}); nothing was written."
                raise InternalError(f"{message}\n{solved.dump()}") from None
            break
        else:
            raise InternalError(f"{name}: no random point where the system has a solution ({case})")
    return (
        f"solution = recurrence: {len(cases)} random rational points, by elimination, a residual of 0",
        "gradients of the residual = exact derivatives of the solution",
    )


class _Solutions(Comparison):
    """One case: a random sequence of two chunks, whose solutions the recurrence has."""

    def __init__(
        self, solved: SolvedForm, chunk: ChunkForm, adjoint: Adjoint, case: Case, numbers: random.Random
    ) -> None:
        super().__init__(chunk, adjoint, case, numbers)
        self.solved = solved
        self.nf = replace(solved.operator, output=solved.residual)

    def run(self) -> None:
        setting = self.setting()
        tokens = [self.token(setting) for _ in range(2 * self.case.chunk)]
        start = self.initial_states()
        recurrence = replace(setting, spec=self.solved.spec)
        solutions, final = self.recurrence(recurrence, tokens, start)
        weights = [{index: self.oracle.rational() for index in x.data} for x in solutions]
        cotangents = self._solved_for(weights, setting, tokens, start)
        at_solutions = [
            replace(token, whole={**token.whole, self.solved.direction: self._direction(x)})
            for token, x in zip(tokens, solutions, strict=True)
        ]
        length = self.case.chunk
        chunks = [
            Chunk(self.nf, setting, at_solutions[place : place + length]) for place in range(0, len(tokens), length)
        ]
        forward = self.forward(self.chunk.system, chunks, start)
        outputs = (self.outputs(chunk, values, setting) for chunk, values in zip(chunks, forward, strict=True))
        for number, residual in enumerate(chain.from_iterable(outputs)):
            if any(element.value for element in residual.data.values()):
                raise Differs(f"the chunk form's residual at the solution of token {number} is not 0")
        state_weights = {index: self.oracle.rational() for index in self.oriented(final)}
        expected = total(
            Dual(mpq(0), weighted(weight[index], element))
            for weight, x in zip(weights, solutions, strict=True)
            for index, element in x.data.items()
        )
        self.compare_gradients(forward, chunks, setting, start, final, cotangents, state_weights, expected)

    def initial_state(self, state: State) -> Tensor:
        """A symmetric one, which may change in any direction."""
        drawn = super().initial_state(state)
        lower = {index: drawn.data[tuple(sorted(index))].value for index in drawn.data}
        return Tensor(drawn.dims, {index: Dual(lower[index], drawn.data[index].tangents) for index in drawn.data})

    def _solved_for(
        self, weights: Sequence[Values], setting: Setting, tokens: Sequence[Token], start: dict[str, Tensor]
    ) -> list[Values]:
        """The solutions for other right sides."""
        spec, rows = self.solved.spec, (self.nf.value,)
        flow = Flow(spec)
        found = flow.solution(spec.output[-1].value, flow.end)
        given = Name("its gradient", "input", rows)

        def replaced(expr: Expr) -> Expr:
            if isinstance(expr, Solution) and found is not None and expr is found[0]:
                return replace(expr, right=given)
            return map_children(expr, replaced)

        def assigned(assign: Assign) -> Assign:
            return replace(assign, value=replaced(assign.value))

        update = tuple(assigned(each) if isinstance(each, Assign) else each for each in spec.update)
        other = replace(spec, update=update, output=tuple(map(assigned, spec.output)))
        named = [
            replace(token, whole={**token.whole, given.name: Tensor(rows, {i: Dual(w) for i, w in weight.items()})})
            for token, weight in zip(tokens, weights, strict=True)
        ]
        solutions, _ = self.recurrence(replace(setting, spec=other), named, start)
        return [{index: element.value for index, element in x.data.items()} for x in solutions]

    def _direction(self, x: Tensor) -> Tensor:
        """A solution as what the operator is asked for, which does not change."""
        return Tensor((self.nf.key,), {index: Dual(element.value) for index, element in x.data.items()})
