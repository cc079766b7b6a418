"""What the last kernel of the backward of scalar decays adds up: for each value head over blocks of the keys, and for
each gradient over what it is made of."""

from __future__ import annotations

from collections.abc import Iterator

from flagen.kernel.column_gradients import ColumnGradients
from flagen.kernel.ir import (
    Access,
    Add,
    Array,
    Fill,
    Given,
    If,
    Index,
    Let,
    Space,
    Statement,
    Store,
)
from flagen.kernel.mix_gradients import MixGradients, gradient_of
from flagen.kernel.mixes import FIRST_ROW, carry
from flagen.kernel.rows import CHUNK, ZERO, call, local, times
from flagen.plan import backward_levels as actions
from flagen.plan.backward_levels import (
    DECAY_GRADIENT,
    KEYS,
    SHARED,
    Action,
    Gradient,
    Level,
    scale_gradient,
    vector_gradient,
)
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.rows import MEMBER, ROW, TOKEN, WRITTEN
from flagen.plan.tiles import (
    Arithmetic,
    Compare,
    Cumulative,
    Lane,
    Masked,
    Select,
    Size,
    Spread,
    Sum,
    Tile,
    Value,
    tiles_in,
)
from flagen.spec.model import Input, Param

MEMBERS = Size("MEMBERS")
MEMBER_HERE = local("member", ())


class GradientSums(ColumnGradients):
    """Lowers sums, and what is done with them."""

    def __init__(self, plan: ChunkBackwardPlan) -> None:
        super().__init__(plan, plan.keys, plan.heads, plan.values, plan.keys_written)
        self.started: set[str] = set()
        """The gradients that there is something of already."""

    # ----------------------------------------------------------------------------------------------- sums over the keys

    def sums_over_keys(self) -> Iterator[Statement]:
        """What blocks of the keys add up to, for each value head: gradients of sums of log decays and of scales."""
        if self.backward.decays:
            yield Fill("row_sums", (self.row, MEMBER))
            if self.grouped:
                yield Fill("read_sums", (TOKEN, MEMBER))
            yield Fill("pair_sums", (TOKEN, MEMBER))
            yield Fill("kept_sums", (self.row, MEMBER))
            yield Fill("end_sums", (MEMBER,))
        for number in self.numbers_of_states():
            yield Fill(_sums_of(number), (*number.dims, MEMBER))
        for role in self.roles:
            if self.has_gradient(role):
                yield Fill(f"{role}_dots", (self.axis_of(role), MEMBER))

    def numbers_of_states(self) -> tuple[Value, ...]:
        """What there is of numbers of several states at a chunk's start and end, where some have a gradient."""
        if self.mixes is None or not self.backward.numbers:
            return ()
        return (*self.mixes.of_rows, *self.mixes.of_chunk)

    def put_number(self, number: Value, tile: Tile) -> Statement:
        """A share of the gradient of one of these: a block of keys has its own."""
        if number.dims:
            return self.put(_sums_of(number), tile)
        return Add(_sums_of(number), Select(self.is_member(), tile, ZERO, (MEMBER,)), (MEMBER,))

    def take_numbers(self) -> Iterator[Statement]:
        """The gradients of these that the value head at hand has, as those of numbers of rows."""
        mixes = self.mixes
        if mixes is None or not self.backward.numbers:
            return
        for number in mixes.of_rows:
            yield Let(gradient_of(number).name, self.take(_sums_of(number), TOKEN))
        for number, pair in zip(mixes.of_chunk, mixes.pairs, strict=True):
            sums = Select(self.is_member(), local(_sums_of(number), (MEMBER,)), ZERO, (MEMBER,))
            yield Let(gradient_of(carry(*pair)).name, Select(FIRST_ROW, Sum(sums, MEMBER, ()), ZERO, (TOKEN,)))

    def dots(self) -> Iterator[Statement]:
        """What rows have in common with their gradients: the gradients of what scales them, and of their decays."""
        if self.backward.decays:
            if self.plan.erases_before:
                erased = call("onto_row_before", local("erased_sum", (self.row,)), CHUNK, dims=(self.row,))
                yield Add("row_sum", erased, (self.row,))
            yield self.put("row_sums", local("row_sum", (self.row,)))
            if self.grouped:
                yield self.put("read_sums", local("read_sum", (TOKEN,)))
        for role in self.roles:
            if self.has_gradient(role):
                common = times(self.wide(self.operand(role)), self.part(role))
                yield self.put(f"{role}_dots", Sum(common, self.key, (self.axis_of(role),)))

    def dots_of_pairs(self) -> Iterator[Statement]:
        """What pairs of rows have in common with the gradients of their scores."""
        if self.backward.decays:
            yield self.put("pair_sums", local("pair_sum", (TOKEN,)))

    def put(self, sums: str, tile: Tile) -> Statement:
        """A number for each row as that of the value head at hand."""
        over = (*tile.dims, MEMBER)
        return Add(sums, call("put", tile, MEMBER_HERE, MEMBERS, dims=over), over)

    def take(self, sums: str, axis: str) -> Tile:
        """The numbers of the value head at hand."""
        return call("take", local(sums, (axis, MEMBER)), MEMBER_HERE, MEMBERS, dims=(axis,))

    def is_member(self) -> Tile:
        return Compare("==", Lane(MEMBER, (MEMBER,)), MEMBER_HERE, (MEMBER,))

    def onto_vectors(self) -> Iterator[Statement]:
        for role in self.roles:
            scaled = times(self.part(role), self.own_scale(role))
            yield Add(vector_gradient(self.plan, role), scaled, self.over_keys(role))

    def has_gradient(self, role: str) -> bool:
        """Whether what scales the rows of `role`, and is not in what they get, has a gradient."""
        return role in self.backward.scaled and role != "k"

    def taken(self) -> Iterator[Statement]:
        """The gradients of what scales a value head's rows, and of its log decays."""
        for role in self.roles:
            if self.has_gradient(role):
                yield Let(scale_gradient(role), self.take(f"{role}_dots", self.axis_of(role)))
        if self.backward.decays:
            yield from self._decay_gradient()
        if self.mixes is not None and self.backward.numbers:
            yield from self.take_numbers()
            yield from MixGradients(self.mixes, self.backward.numbers).statements()

    def _decay_gradient(self) -> Iterator[Statement]:
        """A decay takes part in what earlier rows kept until the chunk's end; sums of all of them would be coarser."""
        token, tokens = (TOKEN,), local(DECAY_GRADIENT, (TOKEN,))
        yield Let("kept", self.take("kept_sums", self.row))
        square = (TOKEN, WRITTEN)
        earlier = self.compared(self.lane(TOKEN), ">", self.written(self.token_of_rows()))
        before = Select(earlier, self.written(local("kept", (self.row,))), ZERO, square)
        yield Let("kept", Sum(before, WRITTEN, token))
        yield Add(
            "kept", Sum(Select(self.is_member(), local("end_sums", (MEMBER,)), ZERO, (MEMBER,)), MEMBER, ()), token
        )
        sums = self.take("row_sums", self.row)
        if self.grouped:
            sums = Arithmetic("+", self.take("read_sums", TOKEN), self.of_steps(sums), token)
        later = Cumulative(sums, TOKEN, True, token)
        yield Let(DECAY_GRADIENT, Arithmetic("+", later, local("kept", token), token))
        yield Add(DECAY_GRADIENT, self.take("pair_sums", TOKEN), token)
        yield Let(DECAY_GRADIENT, Masked(tokens, TOKEN, 0.0, token))

    def of_steps(self, rows: Tile) -> Tile:
        """The sums over the rows of each token."""
        return call("sum_of_steps", rows, Size(self.steps), Size("BLOCK_TOKENS"), dims=(TOKEN,))

    # --------------------------------------------------------------------------------------------------------- actions

    def zeros(self, level: Level) -> Iterator[Statement]:
        for gradient in self.backward.zeros[level]:
            self.started.add(gradient.called)
            yield Fill(gradient.called, self.sorted(gradient.dims))

    def actions(self, level: Level) -> tuple[Statement, ...]:
        return tuple(map(self._action, self.backward.actions[level]))

    def _action(self, action: Action) -> Statement:
        match action:
            case actions.Add(target, value):
                return self._added(target, self.tile(value, _axis_in(value)))
            case actions.Fold(target, source):
                return self._added(target, self.of_steps(local(source.called, source.dims)))
            case actions.Store(target):
                return self._stored(target)

    def _added(self, target: Gradient, value: Tile) -> Statement:
        """The first of what a gradient is made of, over all of it, or the next."""
        dims = self.sorted(target.dims)
        if target.called in self.started:
            return Add(target.called, value, dims)
        self.started.add(target.called)
        return Let(target.called, value if value.dims == dims else Spread(value, dims))

    def _stored(self, gradient: Gradient) -> Statement:
        declared: tuple[Input | Param, ...] = (*self.plan.spec.inputs, *self.plan.spec.params)
        source = next(decl for decl in declared if decl.name == gradient.name)
        head: Space = "key_head" if gradient.level in (SHARED, KEYS) else "head"
        rows: Space = "counted_chunk"
        if isinstance(source, Input):
            rows = "row" if source.per == "step" else "token"
        array = Array(
            gradient.called, (rows, head), source.dims, "gradient", source.name, own_dtype=True, optional=True
        )
        if isinstance(source, Input):
            target = self.rows_of(array, gradient.axis)
        else:
            target = Access(array, tuple(map(Index, array.spaces)), self.sorted(source.dims))
        store = Store(target, local(gradient.called, self.sorted(gradient.dims)))
        return If((Given(array),), (store,))


def _sums_of(number: Value) -> str:
    """What shares of the gradient of a number of several states are added up in."""
    return f"{number.name}_sums"


def _axis_in(tile: Tile) -> str:
    """The axis of a chunk that something in `tile` lies along."""
    dims = [dim for part in tiles_in(tile) for dim in part.dims]
    return next((axis for axis in (TOKEN, ROW) if axis in dims), "")
