"""Lowers the last kernel of the backward for decays of each key, which has a program for every chunk of a key head.

For each value head it adds up, over blocks of values, the gradients of the matrices, and stores them, and what has
values; then it takes the keys block by block, and in each block the value heads that share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from flagen.kernel.ir import (
    Access,
    Add,
    Array,
    Barrier,
    Fill,
    Given,
    If,
    Index,
    Kernel,
    Let,
    Load,
    Loop,
    Note,
    Operands,
    Scale,
    Space,
    Statement,
    Store,
)
from flagen.kernel.key_pairs import Pairs
from flagen.kernel.key_rows import SQUARE, Score, decay_sizes, prepared
from flagen.kernel.parameters import assembled
from flagen.kernel.passes import live
from flagen.kernel.rows import PACKING, SCARCE, ZERO, call, local, rounded, times
from flagen.plan.backward_levels import (
    BLOCK,
    DECAY_GRADIENT,
    HEAD,
    KEYS,
    OUTPUT_GRADIENT,
    R_GRADIENT,
    READ_GRADIENT,
    SHARED,
    Action,
    Fold,
    Gradient,
    Level,
    scale_gradient,
    vector_gradient,
)
from flagen.plan.backward_levels import Add as Added
from flagen.plan.backward_levels import Store as Stored
from flagen.plan.key_backward import OWN, KeyBackwardPlan
from flagen.plan.row_planner import Part, RowLoad, RowSet
from flagen.plan.rows import MEMBER, TOKEN, WRITTEN, values_in
from flagen.plan.schedule import Load as Loaded
from flagen.plan.schedule import Set
from flagen.plan.tiles import (
    Arithmetic,
    Cumulative,
    Dot,
    Lane,
    Masked,
    Product,
    Select,
    Size,
    Spread,
    Sum,
    Tile,
    Value,
    Widened,
    tiles_in,
)
from flagen.spec.model import Dims, Input, Param

THIS_MEMBER, MEMBERS = local("member", ()), Size("MEMBERS")

_STORED = "What follows reads the gradients of the matrices as other threads stored them."


class KeyGradients(Pairs):
    """The kernel that has a program for every chunk of a key head."""

    def __init__(self, plan: KeyBackwardPlan) -> None:
        super().__init__(plan)
        self.state = self.name(self.plan.spec.states[0].name)
        self.started: set[str] = set()
        """The gradients that are there to be added to."""

    def raw(self, load: RowLoad) -> bool:
        vector = self.plan.vector("v")
        return isinstance(vector, Value) and vector.name == load.source.name

    def rows_of(self, array: Array, axis: str) -> Access:
        return replace(super().rows_of(array, axis), address="strides")

    # -------------------------------------------------------------------------------------------------------- the frame

    def kernel(self) -> Kernel:
        scores = [f"{matrix.name}_gradient" for matrix in self.matrices]
        stored = [gradient.called for gradient in self.backward.stored]
        blocks = (f"BLOCK_{self.key}", f"BLOCK_{self.value}")
        return assembled(
            self,
            live(tuple(self._body()), ()),
            name="gradients",
            run="chunk",
            dims=(self.key, self.value),
            tiles=("CHUNK", *blocks, "MEMBERS", *decay_sizes(self.plan), "PRECISION"),
            order=(self.output_gradient.name, *self._between(), *scores, *stored),
            of_key_heads=True,
        )

    def _between(self) -> Iterator[str]:
        """What the kernels before this one leave, in the order of its parameters."""
        yield from (array.name for array in PACKING)
        yield from (self.states.name, self.state_gradients.name, "U", R_GRADIENT)
        yield from (array.name for array in prepared(self.backward.forward) if array.dims != SQUARE)
        yield from (matrix.name for matrix in self.matrices if matrix.writer == "k")

    def _body(self) -> Iterator[Statement]:
        """What a program does; gradients start where they are first added to, so that the order counts."""
        self.started = set()
        zeros = self.backward.zeros
        yield Operands(self.states)
        yield from map(self._of_members, zeros[HEAD])
        yield from map(self._zero, zeros[SHARED])
        yield from (Note(), Note(SCARCE))
        yield self._for_members(*self._matrix_passes(), *self._values_pass())
        yield from (Note(), Barrier(_STORED))
        yield self._for_blocks(self.key, *self._key_block())
        yield from (Note(), self._for_members(*self._head_end()))
        yield from self._sources(self.backward.heads, SHARED)
        yield from self._actions(SHARED)

    def _key_block(self) -> Iterator[Statement]:
        """The keys of a block, of all value heads."""
        yield from self._vector_zeros()
        yield from map(self._zero, self.backward.zeros[KEYS])
        yield self._for_members(
            *self._head_rows(self.backward.keys, self.backward.written),
            *self._part_zeros(),
            self._for_blocks(self.value, *self._state_block()),
            *self._rows(),
            *self._decayed(),
            *self.pairs(),
            *self._own_actions(),
        )
        yield from self._sources(self.backward.keys, KEYS)
        yield from self._actions(KEYS)

    def _sources(self, part: Part, level: Level) -> Iterator[Statement]:
        """What of `part` is read where all value heads have been added up: behind their loop, what that has loaded is
        there no longer."""
        needed, found = set(_names(self.backward.actions[level])), list[Loaded | Set | RowLoad | RowSet]()
        for action in reversed((*part.once, *part.rows)):
            match action:
                case Set(target, value) | RowSet(target, _, value) if target in needed:
                    found.insert(0, action)
                    needed |= {read.name for read in values_in(value)}
                case Loaded(source) | RowLoad(source) if source.name in needed:
                    found.insert(0, action)
        yield from self.fixed(action for action in found if isinstance(action, Loaded | Set))
        yield from self.of_rows(action for action in found if isinstance(action, RowLoad | RowSet))

    def _for_members(self, *body: Statement) -> Statement:
        return Loop("member", body, keeps=False)

    def _for_blocks(self, dim: str, *body: Statement) -> Statement:
        return Loop("block", body, dim=dim, whole=dim == self.key and self.backward.whole_keys, keeps=False)

    def _zero(self, gradient: Gradient) -> Statement:
        self.started.add(gradient.called)
        return Fill(gradient.called, self.sorted(gradient.dims))

    def _of_members(self, gradient: Gradient) -> Statement:
        """What is added up for each value head: numbers of tokens, or one number."""
        return Fill(self._sums(gradient).name, self._sums(gradient).dims)

    def _sums(self, gradient: Gradient) -> Value:
        """A gradient of all value heads of the key head."""
        return local(f"{gradient.called}_sums", self.sorted((*gradient.dims, MEMBER)))

    # ---------------------------------------------------------------------------------------------------------- memory

    @property
    def states(self) -> Array:
        """The states before the chunks."""
        return next(array for array in self.walked if array.name == "states")

    # ----------------------------------------------------------------------------------------------------- value blocks

    def _head_rows(self, *parts: Part) -> Iterator[Statement]:
        """What a value head has that has neither keys nor values."""
        once = [action for part in parts for action in part.once if not self._over(action, self.key, self.value)]
        rows = [row for part in parts for row in part.rows if not self._over(row, self.key, self.value)]
        yield from self.fixed(dict.fromkeys(once))
        for number in prepared(self.backward.forward):
            if number.dims == (TOKEN,):
                yield self.prepared_load(number)
        yield from self.of_rows(dict.fromkeys(rows))

    def _of_values(self, part: Part) -> Iterator[Statement]:
        """What of `part` has values."""
        yield from self.fixed(action for action in part.once if self._over(action, self.value))
        yield from self.of_rows(row for row in part.rows if self._over(row, self.value))

    def _over(self, action: Loaded | Set | RowLoad | RowSet, *dims: str) -> bool:
        over = action.value.dims if isinstance(action, Set | RowSet) else action.source.dims
        return bool({*over} & {*dims})

    def _reads(self) -> Iterator[Statement]:
        """The gradient of the read, as an operand."""
        yield Load(OUTPUT_GRADIENT, self.rows_of(self.output_gradient, TOKEN), wide=True)
        yield Let(READ_GRADIENT, self.tile(self.backward.read, TOKEN))
        yield Let("read_operand", rounded(local(READ_GRADIENT, self._over_values)))

    @property
    def _over_values(self) -> Dims:
        return (TOKEN, self.value)

    def _operand_of(self, role: str) -> Value:
        """What the rows of a role read or write, with values, as an operand."""
        if role == "k":
            return self.operand("v")
        return local({"q": "read_operand", "y": R_GRADIENT, "w": "U"}[role], self._over_values)

    def _block_operands(self) -> Iterator[Statement]:
        yield from self._of_values(self.backward.written)
        yield from self.operands("v")
        yield from self._reads()
        if self.plan.delta is not None:
            yield from (self.prepared_load(array) for array in self.walked if array.name == "U")
            yield self.prepared_load(self.right_gradient)

    def _matrix_passes(self) -> Iterator[Statement]:
        """The gradients of the matrices. Four do not fit into registers beside one another."""
        readers = [("q", "y")] if len(self.matrices) <= 2 else [("q",), ("y",)]
        for some in readers:
            yield from self._matrix_pass([matrix for matrix in self.matrices if matrix.reader in some])

    def _matrix_pass(self, matrices: Sequence[Score]) -> Iterator[Statement]:
        sums = {matrix: local(f"{matrix.name}_gradient", SQUARE) for matrix in matrices}
        products = []
        for matrix in matrices:
            reader, writer = self._operand_of(matrix.reader), self.written(self._operand_of(matrix.writer))
            products.append(Let(sums[matrix].name, self.dot(reader, writer, self.value, sums[matrix])))
        yield from self._head_rows(self.backward.written)
        yield from (Fill(found.name, SQUARE) for found in sums.values())
        yield self._for_blocks(self.value, *self._block_operands(), *products)
        yield from (Store(self.matrix_gradient(matrix), rounded(sums[matrix])) for matrix in matrices)

    def _values_pass(self) -> Iterator[Statement]:
        """The gradients of what has values, and of what is summed over them."""
        if not self.backward.actions[BLOCK]:
            return
        yield from self._head_rows(self.backward.values)
        block = [*self._of_values(self.backward.values), *self._reads()]
        if self.plan.delta is not None:
            block.append(replace(self.prepared_load(self.right_gradient), wide=True))
        block.append(Fill("v_gradient", self._over_values))
        if self.plan.write_key is not None:
            block += self._written_values()
        yield self._for_blocks(self.value, *block, *self._actions(BLOCK))

    def _written_values(self) -> Iterator[Statement]:
        """The gradients of written values: from that of the state, with each block of keys, then from the matrices."""
        found = local("v_gradient", self._over_values)
        rows, state = self._prepared_of("k_to_end"), local("S_gradient", (self.value, self.key))
        yield self._for_blocks(
            self.key,
            self.prepared_load(rows),
            self._state_gradient(),
            Let(found.name, Dot(local(rows.name, rows.dims), state, self.key, found, found.dims)),
        )
        scores = [matrix for matrix in self.matrices if matrix.writer == "k"]
        yield from (self.prepared_load(self._prepared_of(matrix.name)) for matrix in scores)
        for matrix in scores:
            read = self._operand_of(matrix.reader) if matrix.reader == "q" else rounded(self._operand_of("y"))
            yield Let(found.name, self._onto_written(local(matrix.name, SQUARE), read, found))

    def _onto_written(self, matrix: Tile, read: Tile, onto: Tile) -> Tile:
        """What a matrix gives to the rows that were written, from those that read."""
        return self.unwritten(Dot(matrix, read, TOKEN, self.written(onto), (WRITTEN, self.value)))

    def _prepared_of(self, name: str) -> Array:
        return next(array for array in prepared(self.backward.forward) if array.name == name)

    def _state_gradient(self) -> Statement:
        return Load("S_gradient", self.chunk_access(self.state_gradients), wide=False)

    # ------------------------------------------------------------------------------------------------------- key blocks

    def _vector_zeros(self) -> Iterator[Statement]:
        """The gradients of vectors that value heads share: taken back to names only when all have added to them."""
        used = _names(self.backward.actions[KEYS])
        for name in dict.fromkeys(vector_gradient(self.plan, role) for role in self.roles):
            if name in used:
                self.started.add(name)
                yield Fill(name, self.over_keys)

    def _rows(self) -> Iterator[Statement]:
        """The rows of a block of keys of one value head, with all that scales them."""
        keys = self.backward.keys
        yield from self.fixed(action for action in keys.once if self._over(action, self.key))
        yield from self.of_rows(row for row in keys.rows if self._over(row, self.key))
        yield from self.vectors(self.roles)
        for role in self.roles:
            if self.plan.scale(role) is not None:
                yield Let(self.full(role).name, self.scaled(role, None))

    def _part_zeros(self) -> Iterator[Statement]:
        yield from (Fill(self.part(role).name, self.over_keys) for role in self.roles)
        yield Fill("state_dot", (self.key,))

    def _state_block(self) -> Iterator[Statement]:
        over = (self.value, self.key)
        before, after = local(self.state, over), local("S_gradient", over)
        yield from self._block_operands()
        yield Load(self.state, self.chunk_access(self.states), wide=False)
        yield self._state_gradient()
        for role in self.roles:
            state, part = before if role in ("q", "y") else after, self.part(role)
            yield Let(part.name, self.dot(self._operand_of(role), state, self.value, part))
        if self.backward.decays:
            both = Product((Widened(before, over), Widened(after, over)), over)
            yield Add("state_dot", Sum(both, self.value, (self.key,)), (self.key,))

    def _decayed(self) -> Iterator[Statement]:
        """What rows have of the states, with its decay; and what that means for the gradient of the decays."""
        if self.plan.log_decay is None:
            return
        readers = [role for role in ("q", "y") if role in self.roles]
        for after, name in ((True, "from_start"), (False, "from_start_before")):
            some = [role for role in readers if self.readers[role] == after]
            if some:
                yield Let(name, self.decay_over(">=" if after else ">"))
                yield from (self._scales(role, name) for role in some)
        writers = [role for role in ("w", "k") if role in self.roles]
        yield Let("to_end", self.decay_over("<"))
        yield from (self._scales(role, "to_end") for role in writers)
        if not self.backward.decays:
            return
        found = dict.fromkeys(self.common(role) for role in readers)
        for common in found:
            yield Let(common, self._shared_by(role for role in readers if self.common(role) == common))
        if "common" not in found:
            yield Fill("common", self.over_keys)
        yield Let("kept", self._shared_by(writers))

    def _scales(self, role: str, decay: str) -> Statement:
        return Scale(self.part(role).name, local(decay, self.over_keys), self.over_keys)

    def _shared_by(self, roles: Iterable[str]) -> Tile:
        """What the rows of `roles` have in common with what they get."""
        first, *rest = (Product((self.full(role), self.part(role)), self.over_keys) for role in roles)
        total: Tile = first
        for term in rest:
            total = Arithmetic("+", total, term, self.over_keys)
        return total

    # ----------------------------------------------------------------------------------------------------- what is done

    def _own_actions(self) -> Iterator[Statement]:
        """From what the rows of one value head get to the gradients of vectors, scales and decays, and of names."""
        started = set(self.started)
        for role in self.roles:
            name, factor, part = vector_gradient(self.plan, role), self.scale(role), self.part(role)
            if factor is not None:
                common = Product((self.operand(role), part), self.over_keys)
                yield Let(scale_gradient(role), Sum(common, self.key, (TOKEN,)))
            value = times(part, factor)
            yield Add(name, value, self.over_keys) if name in started else Let(name, value)
            started.add(name)
        if self.backward.decays:
            yield from self._decay_gradient()
        used = _names(self.backward.actions[OWN])
        for number in self.plan.numbers:
            gradient = self.backward.number_gradient(number.target)
            if gradient is not None and gradient.called in used:
                yield Let(gradient.called, self._taken(gradient))
        yield from map(self._zero, self.backward.zeros[OWN])
        yield from self._actions(OWN)

    def _decay_gradient(self) -> Iterator[Statement]:
        """From a token to the chunk's end, of what decays with it: what rows have in common with their gradients; of
        rows before it, what the state keeps until then; and what it keeps of the state before the chunk."""
        over, whole = self.over_keys, local("whole", (self.key,))
        yield Let(DECAY_GRADIENT, Cumulative(local("common", over), TOKEN, True, over))
        if "common_before" in {self.common(role) for role in self.readers}:
            yield Add(DECAY_GRADIENT, call("sum_of_later", local("common_before", over), dims=over), over)
        yield Add(DECAY_GRADIENT, call("sum_of_earlier", local("kept", over), dims=over), over)
        yield Let("whole", self.across())
        yield Add(DECAY_GRADIENT, Product((whole, local("state_dot", (self.key,))), (self.key,)), over)
        yield Let(DECAY_GRADIENT, Masked(local(DECAY_GRADIENT, over), TOKEN, 0.0, over))

    def _taken(self, gradient: Gradient) -> Tile:
        """The gradient that one value head has."""
        sums = self._sums(gradient)
        if gradient.dims:
            return call("take", sums, THIS_MEMBER, MEMBERS, dims=gradient.dims)
        return Sum(self._of_member(sums), MEMBER, ())

    def _of_member(self, value: Tile) -> Tile:
        """A number where the value head is this one, zero elsewhere."""
        this = self.compared(Lane(MEMBER, (MEMBER,)), "==", THIS_MEMBER)
        return Select(this, value, ZERO, (MEMBER,))

    def _head_end(self) -> Iterator[Statement]:
        yield from self._head_rows(self.backward.heads)
        for gradient in self.backward.zeros[HEAD]:
            yield Let(gradient.called, self._taken(gradient))
            self.started.add(gradient.called)
        yield from self._actions(HEAD)

    def _actions(self, level: Level) -> Iterator[Statement]:
        for action in self.backward.actions[level]:
            match action:
                case Added(target, value):
                    gathered = target.level == HEAD and level in (BLOCK, OWN)
                    yield self._added(target, self.tile(value, _axis_in(value)), gathered=gathered)
                case Stored(target):
                    at = self._gradient(target)
                    yield If((Given(at.array),), (Store(at, local(target.called, self.sorted(target.dims))),))
                case Fold():
                    raise AssertionError("a token has one row")

    def _added(self, target: Gradient, value: Tile, *, gathered: bool) -> Statement:
        dims = self.sorted(target.dims)
        if not gathered and target.called in self.started:
            return Add(target.called, value, dims)
        every = value if value.dims == dims else Spread(value, dims)
        if not gathered:
            self.started.add(target.called)
            return Let(target.called, every)
        sums = self._sums(target)
        if target.dims:
            return Add(sums.name, call("put", every, THIS_MEMBER, MEMBERS, dims=sums.dims), sums.dims)
        return Add(sums.name, self._of_member(value), sums.dims)

    def _gradient(self, gradient: Gradient) -> Access:
        """Where a gradient is stored."""
        declared: tuple[Input | Param, ...] = (*self.plan.spec.inputs, *self.plan.spec.params)
        source = next(decl for decl in declared if decl.name == gradient.name)
        array = replace(self.array(source), name=gradient.called, life="gradient", of=gradient.name, optional=True)
        array = replace(array, own_dtype=True)
        if isinstance(source, Input):
            return self.rows_of(array, gradient.axis)
        head: Space = "key_head" if gradient.level in (SHARED, KEYS) else "head"
        array = replace(array, spaces=("counted_chunk", head))
        return Access(array, tuple(map(Index, array.spaces)), self.sorted(source.dims))


def _names(actions: Sequence[Action]) -> set[str]:
    """The names that are read for what is added."""
    tiles = (part for action in actions if isinstance(action, Added) for part in tiles_in(action.value))
    return {tile.name for tile in tiles if isinstance(tile, Value)}


def _axis_in(tile: Tile) -> str:
    """The axis of a chunk that something in `tile` lies along."""
    return TOKEN if any(TOKEN in part.dims for part in tiles_in(tile)) else ""
