"""States with two key dims as matrices: a product of two dims is a dim, and an outer product of keys is a row over it.

    S: [K, K2, V]      S = a S + outer(outer(k, l), v)      o = (S.T @ q) @ r

is a matrix over K_K2 and V whose rows and readers are `pairs`: S = a S + outer(pairs(k, l), v), o = S.T @ pairs(q, r).
Nothing that follows has to know of it: normal form, chunk form and adjoint are those of a matrix, erasures included.
But rows that are pairs have scores that are products of scores,

    pairs(q, r) . pairs(k, l) = (q . k) (r . l)

which the chunk form says (`flagen.algebra.chunk`): inside a chunk nothing is as long as a row.

A state [K, K2] beside such a one, its normalizer, is a vector over the same pairs. Whether rows are pairs is seen in
the monomials of what a statement says, as everywhere: a factor that ties both dims together makes none.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flagen.algebra.exact import Tensor
from flagen.algebra.flow import Flow, Place
from flagen.algebra.monomials import (
    Element,
    Expansion,
    Monomial,
    OutsideNormalForm,
    components,
    product,
    scaled,
    total,
)
from flagen.algebra.reads import freed
from flagen.algebra.recurrence import Setting
from flagen.algebra.rewrite import map_children
from flagen.algebra.stage_results import declared_in, fresh
from flagen.algebra.staged_proof import ATTEMPTS, TOKENS, Sample, equal
from flagen.diagnostics import InternalError, Span
from flagen.spec.model import (
    Assign,
    Binary,
    Contract,
    Dims,
    Expr,
    Following,
    Name,
    Outer,
    Pairs,
    Reduce,
    Repeat,
    Spec,
    State,
    Statement,
    StateRead,
    Transpose,
    walk,
)
from flagen.spec.printer import to_source


def with_pairs(spec: Spec) -> Spec:
    """`spec` with every state of three dims as a matrix, and those over both of its keys as vectors.

    Raises:
        OutsideNormalForm: rows of one do not factor over two of its dims; says which part, and where.
    """
    while (state := next((state for state in spec.states if len(state.dims) == 3), None)) is not None:
        spec = _flattened(spec, state)
    return spec


def _flattened(spec: Spec, state: State) -> Spec:
    """`spec` with the first two dims of `state` for one, or else the last two."""
    first, second, third = state.dims
    try:
        return _Flattening(spec, (first, second)).spec()
    except OutsideNormalForm as outside:
        try:
            return _Flattening(spec, (second, third)).spec()
        except OutsideNormalForm:
            raise outside from None


@dataclass(frozen=True)
class _Part:
    """The factors of a monomial, sorted by what they lie over: free dims, or the one that a read of the state sums."""

    numbers: tuple[Element, ...]
    along: dict[str, tuple[Element, ...]]


class _Flattening:
    """Takes two dims for one in every state that has both."""

    def __init__(self, spec: Spec, pair: Dims) -> None:
        self.whole, self.pair = spec, pair
        self.dim = fresh("_".join(pair), declared_in(spec))
        self.states = {state.name: self._matrix(state) for state in spec.states if set(pair) <= set(state.dims)}
        self.flow = Flow(spec)
        self.expansion = Expansion()

    def _matrix(self, state: State) -> State:
        at = state.dims.index(self.pair[0])
        if len(state.dims) > 3 or state.dims[at : at + 2] != self.pair:
            raise OutsideNormalForm(f"{state.name} has {' and '.join(self.pair)} apart from one another", state.span)
        return replace(state, dims=self._over(state.dims), shape=state.declared)

    def _over(self, dims: Dims) -> Dims:
        at = dims.index(self.pair[0])
        return (*dims[:at], self.dim, *dims[at + 2 :])

    def spec(self) -> Spec:
        whole, (first, second) = self.whole, self.pair
        size = Binary("*", Name(first, "size"), Name(second, "size"))
        output = len(whole.update)
        return replace(
            whole,
            states=tuple(self.states.get(state.name, state) for state in whole.states),
            update=tuple(self._statements(whole.update)),
            output=tuple(self._assigned((output + n,), assign) for n, assign in self._needed(output)),
            following=(*whole.following, Following(self.dim, size)),
            pairs={**whole.pairs, self.dim: self.pair},
        )

    # ------------------------------------------------------------------------------------------------------- statements

    def _statements(self, update: Sequence[Statement]) -> Iterator[Statement]:
        for number, statement in enumerate(update):
            if isinstance(statement, Repeat):
                body = (((number, place), each) for place, each in enumerate(statement.body))
                kept = tuple(self._assigned(at, each) for at, each in body if not self._is_written_out(at, each))
                yield replace(statement, body=kept)
            elif not self._is_written_out((number,), statement):
                yield self._assigned((number,), statement)

    def _needed(self, first: int) -> Iterator[tuple[int, Assign]]:
        for number, assign in enumerate(self.whole.output):
            if not self._is_written_out((first + number,), assign):
                yield number, assign

    def _is_written_out(self, place: Place, assign: Assign) -> bool:
        """Whether a local is a part of a read, with one of both dims still there: it stands for no read alone."""
        if assign.to_state or assign.target == "o" or set(self.pair).isdisjoint(assign.value.dims):
            return False
        return not self.flow.states_in(assign.value, place).isdisjoint(self.states)

    def _assigned(self, place: Place, assign: Assign) -> Assign:
        value = self._resolved(assign.value, place)
        if assign.to_state and assign.target in self.states:
            value = self._written(value, self.states[assign.target])
        else:
            value = self._read(value)
        if value == assign.value:
            return assign
        return replace(assign, value=value, text=f"{assign.target} = {to_source(value)}")

    def _resolved(self, expr: Expr, place: Place) -> Expr:
        """`expr` with the locals written out that are parts of reads."""
        definition = self.flow.definition(expr, place)
        if definition is not None:
            statement = self.flow.statements[definition.place]
            if not self._is_written_out(definition.place, statement):
                return expr
            if not self.flow.is_stable(definition.value, definition.place, place):
                reason = f"{statement.target} is a part of a read of a state that is another one by now"
                raise OutsideNormalForm(reason, expr.span)
            return self._resolved(definition.value, definition.place)
        return map_children(expr, lambda child: self._resolved(child, place))

    # --------------------------------------------------------------------------------------------- what a state becomes

    def _written(self, value: Expr, state: State) -> Expr:
        """What `state` is assigned."""
        shape = state.declared
        monomials = self.expansion.monomials(value, {dim: dim for dim in shape})
        found = total(self._term(monomial, state) for monomial in monomials)
        if found is None:
            raise OutsideNormalForm(f"{state.name} is always 0", state.span)
        return found

    def _term(self, monomial: Monomial, state: State) -> Expr:
        """A term of what it is assigned: a decay of it, an erasure or a write."""
        values = tuple(dim for dim in state.dims if dim != self.dim)
        span = monomial.span
        if len(monomial.states) > 1:
            raise OutsideNormalForm("a product of states", span)
        if not monomial.states:
            part = self._sorted(monomial, (), span)
            row = self._pair(part, self.pair, f"what is written to {state.name}", span)
            return self._times(monomial, part, self._outer(row, part, values, state, span))
        (read,) = monomial.states
        if read.index == state.declared and self._is_of(read, state):
            part = self._sorted(monomial, (), span)
            for dim in self.pair:
                if part.along.get(dim):
                    raise OutsideNormalForm(
                        f"{state.name} decays otherwise for each {dim}, and its keys are pairs", span
                    )
            here: Expr = self._state(read)
            for dim in values:
                factor = product(part.along.get(dim, ()))
                here = here if factor is None else Binary("*", factor, here, span)
            return self._times(monomial, part, here)
        dims = self.states[_name(read)].declared if _name(read) in self.states else ()
        kept = [dim for dim, index in zip(dims, read.index, strict=False) if dim == index]
        if kept != list(values) or _name(read) not in self.states:
            raise OutsideNormalForm(f"{state.name} gets what is read of {_name(read)} by one of its keys", span)
        part = self._sorted(monomial, read.index, span)
        row = self._pair(part, self.pair, f"what is erased of {state.name}", span)
        found = self._reading(read, part, span)
        for dim in values:
            factor = product(part.along.get(dim, ()))
            found = found if factor is None else Binary("*", factor, found, span)
        sides = (row, found) if not values or state.dims[0] == self.dim else (found, row)
        return self._times(monomial, part, Outer(*sides, span) if values else Binary("*", found, row, span))

    def _outer(self, row: Expr, part: _Part, values: Dims, state: State, span: Span) -> Expr:
        """A row of pairs, and what is written along it."""
        if not values:
            return row
        value = product(part.along.get(values[0], ()))
        if value is None:
            raise OutsideNormalForm(f"what is written to {state.name} is the same for every {values[0]}", span)
        return Outer(*((row, value) if state.dims[0] == self.dim else (value, row)), span)

    # ------------------------------------------------------------------------------------------------------------ reads

    def _read(self, expr: Expr) -> Expr:
        """`expr` with the reads in it as reads by pairs."""
        if not any(isinstance(node, StateRead) and node.name in self.states for node in walk(expr)):
            return expr
        if isinstance(expr, StateRead):
            raise OutsideNormalForm(f"{expr.name} is used whole, not read by two vectors", expr.span)
        sums = isinstance(expr, Contract) or (isinstance(expr, Reduce) and expr.function in ("sum", "mean"))
        if not sums:
            return map_children(expr, self._read)
        if set(self.pair).isdisjoint(expr.dims):
            try:
                monomials = self.expansion.monomials(expr, {dim: dim for dim in expr.dims})
            except OutsideNormalForm:
                return map_children(expr, self._read)
            found = total(self._read_term(monomial) for monomial in monomials)
            return expr if found is None else found
        (dim,) = set(self.pair) & set(expr.dims)
        raise OutsideNormalForm(f"a state with a key of two dims is read by one alone: {dim} is left", expr.span)

    def _read_term(self, monomial: Monomial) -> Expr:
        span = monomial.span
        if not monomial.states:
            return scaled(monomial.coefficient, product(monomial.elements))
        if len(monomial.states) > 1:
            raise OutsideNormalForm("a product of states", span)
        (read,) = monomial.states
        if _name(read) not in self.states:
            return scaled(monomial.coefficient, product(monomial.elements))
        part = self._sorted(monomial, read.index, span)
        found = self._reading(read, part, span)
        others = [element for dim, each in sorted(part.along.items()) if "'" not in dim for element in each]
        factor = product(others)
        return self._times(monomial, part, found if factor is None else Binary("*", factor, found, span))

    def _reading(self, read: Element, part: _Part, span: Span) -> Expr:
        """The state, read by what sums over its pairs."""
        state = self.states[_name(read)]
        by = {dim: index for dim, index in zip(state.declared, read.index, strict=True) if dim != index}
        summed = tuple(by.get(dim, "") for dim in self.pair)
        if not all(summed):
            (dim,) = (dim for dim in self.pair if dim not in by)
            raise OutsideNormalForm(f"{state.name} is read by one of its keys alone: {dim} is left", span)
        q = self._pair(part, summed, f"what reads {state.name}", span)
        here = self._state(read)
        if len(state.dims) == 1:
            return Contract(here, q, span)
        found: Expr = Contract(Transpose(here, span) if state.dims[0] == self.dim else here, q, span)
        for dim, index in by.items():
            if dim not in self.pair:
                other = product(freed(part.along.get(index, ()), index))
                found = Reduce("sum", found, dim, span) if other is None else Contract(found, other, span)
        return found

    # ----------------------------------------------------------------------------------------------------------- pieces

    def _sorted(self, monomial: Monomial, summed: Dims, span: Span) -> _Part:
        """The factors of a monomial by the one index that they have, of free ones and those that its read sums over."""
        numbers: list[Element] = []
        along: dict[str, tuple[Element, ...]] = {}
        for indices, members in components(monomial.others()):
            own = sorted(index for index in indices if "'" not in index or index in summed)
            if len(own) > 1:
                dims = " and ".join(dict.fromkeys(index.split("'")[0] for index in own))
                where = next((member.tensor.span for member in members if len(member.index) > 1), span)
                raise OutsideNormalForm(f"a row does not factor over {dims}", where)
            if own:
                along[own[0]] = members
            else:
                numbers += members
        return _Part(tuple(numbers), along)

    def _pair(self, part: _Part, indices: Dims, what: str, span: Span) -> Expr:
        """What lies over both indices, as pairs."""
        sides: list[Expr] = []
        for dim, index in zip(self.pair, indices, strict=True):
            members = part.along.get(index, ())
            side = product(freed(members, index) if "'" in index else members)
            if side is None:
                raise OutsideNormalForm(f"{what} is the same for every {dim}", span)
            sides.append(side)
        return Pairs(sides[0], sides[1], self.dim, span)

    def _times(self, monomial: Monomial, part: _Part, found: Expr) -> Expr:
        number = product(part.numbers)
        return scaled(monomial.coefficient, found if number is None else Binary("*", number, found, found.span))

    def _state(self, read: Element) -> StateRead:
        assert isinstance(read.tensor, StateRead)
        return replace(read.tensor, dims=self.states[read.tensor.name].dims)

    def _is_of(self, read: Element, state: State) -> bool:
        return _name(read) == state.name


def _name(read: Element) -> str:
    assert isinstance(read.tensor, StateRead)
    return read.tensor.name


# ------------------------------------------------------------------------------------------------------------ the proof


def prove_pairs(whole: Spec, flat: Spec, *, seed: int = 0) -> tuple[str, ...]:
    """Prove the recurrence of `flat` that of `whole`; what was proved, a line.

    Raises:
        InternalError: they are not, with the tensor that differs.
    """
    for attempt in range(ATTEMPTS):
        numbers = random.Random(f"{whole.name} in pairs {seed + attempt}")
        try:
            difference = next(
                (found for steps in _steps(whole) if (found := _difference(whole, flat, steps, numbers))), ""
            )
        except ZeroDivisionError:  # an unlucky point: a denominator of the spec is 0 there
            continue
        if difference:
            raise InternalError(f"{whole.name}: {difference} (seed {seed + attempt}); nothing was written.")
        names = [state.name for state in flat.states if state.shape]
        keys = " and ".join(dict.fromkeys(" ".join(pair) for pair in flat.pairs.values()))
        line = f"{', '.join(names)} with pairs of {keys} for keys = recurrence"
        return (f"{line}: random rational points, {TOKENS} tokens",)
    raise InternalError(f"{whole.name}: no random point without a zero denominator found")


def _steps(spec: Spec) -> tuple[int, ...]:
    return (1, 2, 3) if spec.steps else (1,)


def _difference(whole: Spec, flat: Spec, steps: int, numbers: random.Random) -> str | None:
    """What differs in a random sequence of tokens, if anything does."""
    sample = Sample(flat, steps, numbers)
    settings = [Setting(spec, sample.sizes, sample.constants, sample.oracle) for spec in (whole, flat)]
    states = {state.name: sample.random(state.dims) for state in whole.states}
    rows = {state.name: _in_pairs(states[state.name], state, flat, sample.sizes) for state in flat.states}
    for number in range(TOKENS):
        inputs = {i.name: sample.random(i.dims, i.range) for i in whole.inputs if i.per == "token"}
        by_step = [
            {i.name: sample.random(i.dims, i.range) for i in whole.inputs if i.per == "step"}
            for _ in range(steps if whole.steps else 0)
        ]
        (output, states), (found, rows) = (
            setting.step(setting.token(inputs, by_step), given)
            for setting, given in zip(settings, (states, rows), strict=True)
        )
        for state in flat.states:
            if not equal(rows[state.name], _in_pairs(states[state.name], state, flat, sample.sizes)):
                return f"the state {state.name} with pairs for keys after token {number} is not the recurrence's"
        if not equal(found, output):
            return f"the output of token {number} of pairs is not the recurrence's"
    return None


def _in_pairs(tensor: Tensor, state: State, flat: Spec, sizes: Mapping[str, int]) -> Tensor:
    """A state of the recurrence as one over pairs."""

    def place(index: tuple[int, ...]) -> tuple[int, ...]:
        at = dict(zip(state.declared, index, strict=True))
        pairs = {
            dim: at[one] * sizes[other] + at[other]
            for dim, (one, other) in flat.pairs.items()
            if one in at and other in at
        }
        return tuple(pairs[dim] if dim in pairs else at[dim] for dim in state.dims)

    return Tensor(state.dims, {place(index): tensor.at(state.declared, index) for index in tensor.data})
