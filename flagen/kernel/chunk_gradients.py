"""Lowers the last kernel of the backward of scalar decays, which has a program for every chunk of a key head.

It takes the keys block by block, and in each block the value heads that share them; or, where a value head has its key
head for itself and all of its values at once, first what no key is in, and then the keys. Then it takes each value head
again, its values block by block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from flagen.kernel.across import Across
from flagen.kernel.ir import (
    Access,
    Add,
    Alone,
    Apply,
    Array,
    Fill,
    If,
    Index,
    Kernel,
    Let,
    Load,
    Loop,
    Note,
    Operands,
    Row,
    Scale,
    Statement,
)
from flagen.kernel.mixes import across, arrays_of, end, plus, start
from flagen.kernel.parameters import assembled
from flagen.kernel.passes import live
from flagen.kernel.rows import SCARCE, ZERO, common, local, rounded, times
from flagen.kernel.score_gradients import ScoreGradients
from flagen.plan.backward_levels import (
    BLOCK,
    COLUMN_SCALE_GRADIENT,
    HEAD,
    KEYS,
    R_GRADIENT,
    ROLES,
    SHARED,
    Level,
    scale_gradient,
    vector_gradient,
)
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.row_planner import Part
from flagen.plan.rows import MEMBER, TOKEN
from flagen.plan.tiles import (
    Arithmetic,
    Dot,
    Select,
    Sum,
    Tile,
    Value,
)

CHOICES = ("MEMBERS", "WANTS_KEYS", "WANTS_VALUES")
"""What the kernel is compiled for beside sizes: value heads of a key head, and which gradients are asked for."""


class Gradients(ScoreGradients):
    """The kernel that has a program for every chunk."""

    def __init__(self, plan: ChunkBackwardPlan) -> None:
        super().__init__(plan)
        self.after, self.before = (Apply(Across(plan, after=after).routine()) for after in (True, False))

    def kernel(self) -> Kernel:
        body = live(tuple(self._body()), ())
        order = "do cu_seqlens chunk_sequence first_chunk states state_gradients U R_gradient column column_gradients"
        order += " column_states column_state_gradients"
        numbers = (array.name for array in arrays_of(self.plan))
        levels = ("LEVELS",) if self.backward.numbers else ()
        stored = [gradient.called for gradient in self.backward.stored]
        kernel = assembled(
            self,
            body,
            name="gradients",
            run="chunk",
            dims=(self.key, self.value),
            tiles=(*self.tiles, f"BLOCK_{self.key}", f"BLOCK_{self.value}", *levels, "PRECISION", *CHOICES),
            order=(*order.split(), *numbers, *stored),
            of_key_heads=True,
        )
        choices = (("WANTS_KEYS", self._others(BLOCK)), ("WANTS_VALUES", self._others(KEYS)))
        return replace(kernel, choices=choices)

    def _others(self, level: Level) -> tuple[str, ...]:
        """What the kernel has gradients of that are no reason for one of its loops: the gradients of numbers need both,
        sums over the keys, and over the values."""
        states = (state.name for state in self.plan.spec.states)
        return (*states, *(gradient.name for gradient in self.backward.stored if gradient.level == level))

    # ----------------------------------------------------------------------------------------------------------- loops

    def _body(self) -> Iterator[Statement]:
        yield Operands(self._of_slot("states"))
        yield from self.zeros(SHARED)
        yield from self.sums_over_keys()
        yield Note()
        yield from self._keys_and_members()
        yield Note()
        yield self._members(self._values_of_member(), wanted="WANTS_VALUES")
        yield from self.actions(SHARED)

    def _members(self, body: Iterable[Statement], wanted: str = "") -> Statement:
        return Loop("member", tuple(body), keeps=False, wanted=wanted)

    def _keys_and_members(self) -> Iterator[Statement]:
        """The keys block by block, and in each block the value heads that share them. A value head that is alone, and
        has all of its values at once, comes first, and what no key is in is found once for all of them."""
        complete = self.actions(KEYS)
        keys = (*self._of_key_block(), self._members(self._of_member()), *complete)
        in_turn = self.blocks(self.key, keys, wanted="WANTS_KEYS")
        if self.plan.mixed is not None or self.backward.whole_keys:
            yield from (Note(SCARCE), in_turn)
            return
        yield If((Alone(self.value),), (self._of_alone(complete),), (Note(SCARCE), in_turn))

    def _of_alone(self, complete: Iterable[Statement]) -> Statement:
        heads = self.parts[1]
        keys = (*self._of_key_block(), *self._keys_of_alone(), *complete)
        values = (*self.of_block(heads), *self.all_gradients(), self.blocks(self.key, keys, keeps=True))
        body = [self._state_start(), *self.given(heads, SHARED, HEAD), *self.chunk_decays()]
        if self.rider is not None:
            body.append(self.column_gradient())
        body += [*self.pairs_of_keys(), self.blocks(self.value, values)]
        return self._members((*body, *self.dots_of_pairs()), wanted="WANTS_KEYS")

    def _keys_of_alone(self) -> Iterator[Statement]:
        """What a block of keys gets, where the gradients of scores are there."""
        yield from self.column_states()
        yield from self._part_zeros()
        yield from (*self._states(), *self._state_products(), *self.vectors(), *self._state_factors())
        for matrix in self.matrices:
            yield from self.through(matrix)
        yield from self.dots()
        yield from self.onto_vectors()

    def _of_key_block(self) -> Iterator[Statement]:
        yield from self.given(self.parts[0], SHARED, KEYS)
        yield from self.operands(*ROLES)
        named = {vector_gradient(self.plan, role): role for role in reversed(self.roles)}
        for name, role in named.items():
            yield Fill(name, self.over_keys(role))

    def _of_member(self) -> Iterator[Statement]:
        heads = self.parts[1]
        yield self._state_start()
        yield from self.given(heads, SHARED, HEAD)
        yield from self.chunk_decays()
        yield from self._load_numbers()
        yield from self.column_states()
        yield from self._part_zeros()
        if self.backward.decays:
            yield Fill("pair_sum", (TOKEN,))
        yield self.blocks(self.value, (*self.of_block(heads), *self._states(), *self._state_products()))
        yield from self.vectors()
        yield from self._state_factors()
        for matrix in self.matrices:
            yield from self.onto_rows(matrix, heads)
        yield from self.dots()
        yield from self.dots_of_pairs()
        yield from self.onto_vectors()

    def _values_of_member(self) -> Iterator[Statement]:
        values = self.parts[2]
        if self.writing_values:
            yield self._state_start()
        yield from self.given(values, SHARED, HEAD)
        if self.writing_values:
            yield from self.chunk_decays()
            yield from self._load_ends()
        yield from self.column_of_values()
        if self.writing_values:
            yield from self._values_zeros()
            yield self.blocks(self.key, self._values_keys())
        yield from self._values_operands()
        yield from self.zeros(HEAD)
        if self.has_gradient("v"):
            yield Fill(scale_gradient("v"), (self.row,))
        yield self.blocks(self.value, (*self._values_block(values), *self.actions(BLOCK)))
        yield from self.weights_gradients(values)
        yield from self.taken()
        yield from self.actions(HEAD)

    # ---------------------------------------------------------------------------------------------------------- states

    def _of_slot(self, name: str) -> Array:
        return self.of_slot(name, self.plan.state, self.over_state)

    def _state_start(self) -> Statement:
        if self.plan.mixed is not None:
            return Row("state_row", (self.slots, "head"))
        return Row("state_start", (self.slots, "head"), self.over_state)

    def _state(self, array: str, states: Sequence[Value], *across: Loop) -> Iterator[Statement]:
        """Blocks of what is stored of states, taken to this chunk."""
        source = self._of_slot(array)
        access = Access(source, tuple(map(Index, source.spaces)), self.over_state)
        for place, state in zip(self.places, states, strict=True):
            yield Load(state.name, self.of_place(access, place), wide=bool(across))
        yield from across
        yield from (Let(state.name, rounded(state)) for state in states if across)

    def _states(self) -> Iterator[Statement]:
        """Blocks of the state before the chunk, and of its gradient after it."""
        yield from self._state("states", self.states, *self.neighbours("earlier", self.after))
        yield from self._gradient_of_state()

    def _gradient_of_state(self) -> Iterator[Statement]:
        yield from self._state("state_gradients", self.gradients, *self.neighbours("later", self.before))

    def _load_numbers(self) -> Iterator[Statement]:
        if self.mixes is not None:
            yield from self.mixes.load(*self.mixes.of_rows)

    def _load_ends(self) -> Iterator[Statement]:
        if self.mixes is not None:
            yield from self.mixes.load(*self.mixes.ends)

    def _state_products(self) -> Iterator[Statement]:
        """What rows get from the states, and what those have in common."""
        for role in self.roles:
            states = self.states if role in ("q", "y") else self.gradients
            for place, state in zip(self.places, states, strict=True):
                if self.is_left(role, place):
                    part = self.part_of(role, place)
                    yield Let(part.name, Dot(self.values_of(role), state, self.value, part, part.dims))
        if self.backward.decays:
            (state,), (gradient,) = self.states, self.gradients
            yield self._state_dot("state_dot", state, gradient)
        for name, p, r in self._across():
            yield self._state_dot(name, self.states[r], self.gradients[p])

    def _state_dot(self, name: str, state: Value, gradient: Value) -> Statement:
        """What a state and a gradient of one have in common."""
        inner = Sum(times(self.wide(state), self.wide(gradient)), self.key, (self.value,))
        return Add(name, Sum(inner, self.value, ()), ())

    def _across(self) -> Iterator[tuple[str, int, int]]:
        """What is added up for the numbers of several states across the chunk."""
        if self.mixes is not None and self.backward.numbers:
            yield from ((f"state_dot_{p}_{r}", p, r) for p, r in self.mixes.pairs)

    # --------------------------------------------------------------------------------------------------- what rows get

    def _part_zeros(self) -> Iterator[Statement]:
        for role in self.roles:
            parts = (self.part_of(role, place) for place in self.places if self.is_left(role, place))
            yield from (Fill(part.name, part.dims) for part in parts)
        yield from (Fill(name, ()) for name, *_ in self._across())
        if self.backward.decays:
            yield Fill("state_dot", ())

    def _state_factors(self) -> Iterator[Statement]:
        """Decays of what comes from the states, and what of it the decay of the whole chunk has in common with."""
        if self.plan.mixed is not None:
            yield from self._numbers_of_states()
            return
        factors = {"q": self.start_of("q"), "y": self.start_of("y"), "w": self.to_end()}
        factors["k"] = common(self.scale("v"), self.to_end())
        scales = ((role, factors[role]) for role in self.roles)
        decayed = [
            Scale(self.part(role).name, factor, self.over_keys(role)) for role, factor in scales if factor is not None
        ]
        yield from self.column_onto_keys(decayed)
        if not self.backward.decays:
            return
        kept = [self._sum(role) for role in self.roles if role in ("w", "k")]
        total = kept[0] if len(kept) == 1 else Arithmetic("+", kept[0], kept[1], kept[0].dims)
        yield self.put("kept_sums", total)
        whole = times(local("whole", ()), local("state_dot", ()))
        yield Add("end_sums", Select(self.is_member(), whole, ZERO, (MEMBER,)), (MEMBER,))
        yield from self._sums_of_reads()

    def _numbers_of_states(self) -> Iterator[Statement]:
        """What comes from several states, each times its number; and the gradients of these."""
        places = [place for place in self.places if place is not None]
        for role in self.roles:
            scale = self.scale("v") if role == "k" else None
            left = [place for place in places if self.is_left(role, place)]
            for place in left if self.backward.numbers else ():
                shared = times(self.wide(self.vector(role)), self.part_of(role, place))
                found = Sum(shared, self.key, (self.axis_of(role),))
                yield self.put_number(
                    start(role, place) if role in ("q", "y") else end(role, place), times(found, scale)
                )
            parts = [times(self.part_of(role, place), self.left_of(role, place), scale) for place in left]
            total = plus(*parts)
            part = self.part(role)
            yield Fill(part.name, part.dims) if total is None else Let(part.name, total)
        for name, p, r in self._across():
            yield self.put_number(across(p, r), local(name, ()))

    def _sums_of_reads(self) -> Iterator[Statement]:
        """What rows that read have in common with what they get from the states."""
        started: set[str] = set()
        for role in (role for role in self.roles if role in ("q", "y")):
            name, found = self._sum_of(role), self._sum(role)
            yield Add(name, found, found.dims) if name in started else Let(name, found)
            started.add(name)
        if "row_sum" not in started:
            yield Fill("row_sum", (self.row,))

    def _sum(self, role: str) -> Tile:
        """What each row of `role` has in common with its part."""
        common = times(self.wide(self.vector(role)), self.part(role))
        return Sum(common, self.key, (self.axis_of(role),))

    def _sum_of(self, role: str) -> str:
        if self.reads_before(role):
            return "erased_sum"
        return "read_sum" if role == "q" and self.grouped else "row_sum"

    # ------------------------------------------------------------------------------------------------------- the values

    def _values_zeros(self) -> Iterator[Statement]:
        for matrix in self.writing_values:
            yield Fill(matrix.name, self.square(matrix))
        if self.varies_column:
            yield Fill("column_keys", (self.row,))

    def _values_keys(self) -> Iterator[Statement]:
        """The scores of a block of keys."""
        yield from self.given(self.parts[0], SHARED, KEYS)
        yield from self.operands(*ROLES)
        for matrix in self.writing_values:
            square = self.square(matrix)
            if self._sides(matrix.reader) and self._sides("k"):
                yield from self.products(matrix.name, matrix.reader, "k")
                continue
            key = self.written(self.operand("k"))
            scores = Dot(self.operand(matrix.reader), key, self.key, local(matrix.name, square), square)
            yield Let(matrix.name, scores)
        yield from self.column_of_keys()

    def _values_operands(self) -> Iterator[Statement]:
        for matrix in self.writing_values:
            square = self.square(matrix)
            yield from self.load_weights(matrix)
            scaled = times(self.decayed(matrix, local(matrix.name, square)), self.scale(matrix.reader))
            scores = self.masked(matrix, scaled)
            if self.varies_column:
                yield Let(matrix.name, scores)
                scores = local(matrix.name, square)
                yield Let(COLUMN_SCALE_GRADIENT, self.column_scale_gradient(scores))
            yield Let(matrix.name, rounded(scores))

    def _values_block(self, part: Part) -> Iterator[Statement]:
        """The gradient of a block of the values that are written."""
        over = (self.row, self.value)
        yield from self.given(part, BLOCK)
        if not self.writing_values:
            yield self.output_gradient()
            yield from self.stored_rows(R_GRADIENT, wide=True)
            return
        yield from self.operands("v")
        yield from self.read_gradient()
        yield Fill("v_gradient", over)
        yield from self.stored_rows(R_GRADIENT, wide=True)
        yield self.blocks(self.key, self._values_of_state())
        if self.plan.mixed is None and (to_end := self.to_end()) is not None:
            yield Scale("v_gradient", to_end, over)
        read = {"q": local("read_operand", (TOKEN, self.value)), "y": rounded(local(R_GRADIENT, over))}
        for matrix in self.writing_values:
            scores = local(matrix.name, self.square(matrix))
            yield Let("v_gradient", self.onto_written(scores, read[matrix.reader], local("v_gradient", over)))
        if (scale := self.scale("v")) is not None:
            if self.has_gradient("v"):
                common = times(self.wide(self.operand("v")), local("v_gradient", over))
                yield Add(scale_gradient("v"), Sum(common, self.value, (self.row,)), (self.row,))
            yield Scale("v_gradient", scale, over)

    def _values_of_state(self) -> Iterator[Statement]:
        """What the gradient of the state gives to values, of a block of the keys that they are written along."""
        yield from self.given(self.parts[3], SHARED, KEYS)
        yield from self.operands("k")
        yield from self._gradient_of_state()
        over = (self.row, self.value)
        onto = local("v_gradient", over)
        for place, state in zip(self.places, self.gradients, strict=True):
            if place is None:
                yield Let(onto.name, Dot(self.operand("k"), state, self.key, onto, over))
            elif self.is_left("k", place):
                left = Dot(self.operand("k"), state, self.key, None, over)
                yield Add(onto.name, times(left, self.left_of("k", place)), over)
