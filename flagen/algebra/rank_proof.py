"""Rung 0 for tokens of several rows: run one after another, and with what later rows of a token write added to what is
read, the rows are the recurrence. In exact arithmetic.

The chunk form of the rows is proved as that of any spec, and gradients go back through what is around it by the chain
rule.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from flagen.algebra.exact import ONE, ZERO, Dual, Scope, Tensor, evaluate, total
from flagen.algebra.ranks import RankForm
from flagen.algebra.recurrence import Setting, Token
from flagen.algebra.rewrite import map_children
from flagen.algebra.staged_proof import ATTEMPTS, TOKENS, Sample, equal
from flagen.diagnostics import InternalError
from flagen.spec.model import Assign, Call, Expr, Statement


def prove_ranks(form: RankForm, *, seed: int = 0) -> tuple[str, ...]:
    """Prove the rows of `form` equal to the recurrence of its spec; what was proved, a line.

    Raises:
        InternalError: they are not, with the tensor that differs.
    """
    name = form.spec.name
    for attempt in range(ATTEMPTS):
        try:
            difference = _Sequence(form, random.Random(f"{name} {seed + attempt}")).difference()
        except ZeroDivisionError:  # an unlucky point: a denominator of the spec is 0 there
            continue
        if difference:
            message = f"{name}: {difference} (seed {seed + attempt}); nothing was written."
            raise InternalError(f"{message}\n{form.dump()}")
        return (f"rows of tokens, one after another = recurrence: random rational points, {TOKENS} tokens",)
    raise InternalError(f"{name}: no random point without a zero denominator found")


class _Sequence(Sample):
    """A random sequence of tokens, run by the recurrence and row by row."""

    def __init__(self, form: RankForm, numbers: random.Random) -> None:
        super().__init__(form.spec, 1, numbers)
        self.form = form
        self.whole = Setting(form.spec, self.sizes, self.constants, self.oracle)
        within = replace(form.within, update=tuple(map(_by_factor, form.within.update)))
        self.within = Setting(within, self.sizes, self.constants, self.oracle)

    def difference(self) -> str | None:
        """What differs, if anything does."""
        (state,) = self.form.spec.states
        states: Mapping[str, Tensor] = {state.name: self.random(state.dims)}
        of_rows = states
        for number in range(TOKENS):
            inputs = {decl.name: self.random(decl.dims, decl.range) for decl in self.form.spec.inputs}
            token = self.whole.token(inputs, [])
            expected, states = self.whole.step(token, states)
            found, of_rows = self._token(token, of_rows)
            if not equal(of_rows[state.name], states[state.name]):
                return f"the state after the rows of token {number} is not the recurrence's"
            if not equal(found, expected):
                return f"the output of the rows of token {number} is not the recurrence's"
        return None

    def _token(self, token: Token, states: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """A token's output and the states after it, row by row."""
        form, whole = self.form, self.whole.scope(token.whole)
        over_rows, over_columns = form.spec.states[0].dims
        k = [each for row in form.writes for each in self._rows(row.rows, row.rank, over_rows, whole)]
        v = [each for row in form.writes for each in self._rows(row.columns, row.rank, over_columns, whole)]
        q = [each for read in form.reads for each in self._rows(read.q, read.rank, form.read_along, whole)]
        before, count = len(q), max(len(q), len(k))
        k += [self._zeros(over_rows)] * (count - len(k))
        v += [self._zeros(over_columns)] * (count - len(v))
        q = [self._zeros(form.read_along)] * (count - before) + q
        read = []
        for place in range(count):
            row = {"q": q[place], "k": k[place], "v": v[place]}
            if form.factor is not None:
                factor = evaluate(form.factor, whole)
                row["g"] = factor if place == 0 else Tensor(factor.dims, dict.fromkeys(factor.data, ONE))
            given = self.within.token({form.names[part]: tensor for part, tensor in row.items()}, [])
            o, states = self.within.step(given, states)
            scored, added = (k, v) if form.read_along == over_rows else (v, k)
            for later in range(place + 1, count):
                score = total(q[place].data[at] * scored[later].data[at] for at in q[place].data)
                o = Tensor(o.dims, {at: element + score * added[later].data[at] for at, element in o.data.items()})
            read.append(o)
        named = dict(self._joined(read[count - before :]))
        return evaluate(form.output, self.whole.scope(token.whole, named)), states

    def _rows(self, side: Expr, rank: str | None, dim: str, scope: Scope) -> Iterator[Tensor]:
        """One side of the rows of a token, each a vector over `dim`."""
        value = evaluate(side, scope)
        for place in range(1 if rank is None else self.sizes[rank]):
            where = {} if rank is None else {rank: place}

            def element(index: tuple[int, ...], where: Mapping[str, int] = where) -> Dual:
                at = {**where, dim: index[0]}
                return value.data[tuple(at[each] for each in value.dims)]

            yield scope.build((dim,), element)

    def _zeros(self, dim: str) -> Tensor:
        return Tensor((dim,), {(place,): ZERO for place in range(self.sizes[dim])})

    def _joined(self, read: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """What was read, by the names that the output has for it."""
        first = 0
        for each in self.form.reads:
            if each.rank is None:
                yield each.name, read[first]
                first += 1
                continue
            own = read[first : first + self.sizes[each.rank]]
            data = {(place, *at): element for place, row in enumerate(own) for at, element in row.data.items()}
            yield each.name, Tensor(each.dims, data)
            first += len(own)


def _by_factor(statement: Statement) -> Statement:
    """A statement of the rows' recurrence that is given what multiplies the state, and not its log."""

    def change(expr: Expr) -> Expr:
        return expr.args[0] if isinstance(expr, Call) else map_children(expr, change)

    assert isinstance(statement, Assign)
    return replace(statement, value=change(statement.value))
