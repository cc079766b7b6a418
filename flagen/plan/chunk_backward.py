"""The plan of the backward of `chunk_<name>`: from the gradients of a chunk's rows to those of what a caller passed.

Three kernels: one walks the chunks forward and stores the states between them, one walks them backward and stores the
gradients of those states, and the last has a program for every chunk of a key head, which evaluates the adjoint there.
That program takes the keys block by block, and in each block the value heads that share them one after the other, a
value head that is alone the other way round; then each value head again, its values block by block. So there are four
levels, and the gradient of a name is complete at the end of one: KEYS for what has an element for each key, BLOCK for
what has one for each value, HEAD for what a value head has of its own, SHARED for the rest.

Decided here: what each kernel reads, what each gradient is made of, and on which level that is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flagen.plan.backward_levels import (
    BLOCK,
    COLUMN_SCALE_GRADIENT,
    DECAY_GRADIENT,
    HEAD,
    KEYS,
    LEVELS,
    OUTPUT,
    OUTPUT_GRADIENT,
    R_GRADIENT,
    READ_GRADIENT,
    ROLES,
    SHARED,
    Action,
    Add,
    Gradient,
    Level,
    Levels,
    Store,
    number_gradient,
    scale_gradient,
    vector_gradient,
)
from flagen.plan.chunk_kernel import ChunkKernelPlan, Rider, ScalarDecayPlanner
from flagen.plan.factored import Factored, NotAFactor
from flagen.plan.gradient_planner import GradientPlanner
from flagen.plan.gradients import Transposition
from flagen.plan.mixed import unmasked
from flagen.plan.padding import FINITE, PaddingRules
from flagen.plan.row_planner import Part, RowPlanner, others_of
from flagen.plan.rows import TOKEN, cleared, finite
from flagen.plan.schedule import Set
from flagen.plan.show import show
from flagen.plan.split import crossed_dims
from flagen.plan.tiles import Tile, Value
from flagen.spec.model import Dims, Input, Param


@dataclass(frozen=True)
class RiderBackward:
    """The gradients of the vector state that rides along.

    read: the gradient of what is read of it, for the walk: a sum over values, so each block of them has its share. It
    takes the output in the place of what was read of the matrix, which is not there.
    varied: whether the column itself has a gradient.
    after, before: what is read of the chunk that the state, or its gradient, is taken across.
    """

    read: Tile
    varied: bool
    after: Part
    before: Part


@dataclass(frozen=True)
class ChunkBackwardPlan:
    """What the kernels of the backward evaluate.

    forward: the rows as the forward kernels have them, in whose layout the two walks work.
    rows: the same with a chunk's rows as the first axis of every tile.
    walk_read, read: the gradient of the read, for the walk and for the last kernel.
    decays: whether the decay depends on something that has a gradient.
    scaled: the roles whose scale depends on something that has a gradient.
    whole_keys: whether something sums over the keys, which are then one block.
    states, reverse: what the walks read.
    keys: what the last kernel reads of a block of keys; heads: of a value head, there; values: of a value head after
        that; keys_written: the keys that values are written along.
    after, before: what is read of the chunk that a state, or the gradient of one, is taken across, where not every
        state is stored.
    rider: the gradients of the vector state that rides along, if one does.
    levels: the level of every name.
    zeros: gradients that other levels add to, by the level on which they start.
    actions: what is done on each level, in order.
    numbers: of states that numbers mix, the names of those that depend on something that has a gradient.
    """

    forward: ChunkKernelPlan
    rows: ChunkKernelPlan
    walk_read: Tile
    read: Tile
    decays: bool
    scaled: frozenset[str]
    whole_keys: bool
    states: Part
    reverse: Part
    keys: Part
    heads: Part
    values: Part
    keys_written: Part
    after: Part
    before: Part
    levels: Levels
    zeros: Mapping[Level, tuple[Gradient, ...]]
    actions: Mapping[Level, tuple[Action, ...]]
    rider: RiderBackward | None = None
    numbers: frozenset[str] = frozenset()

    @property
    def every(self) -> int:
        """How many chunks there are for a stored state: the one between is a matrix product away from it, or two."""
        return self.rows.states_every

    @property
    def stored(self) -> tuple[Gradient, ...]:
        """The gradients that are stored, in the order of the signature."""
        every = [action.target for level in LEVELS for action in self.actions[level] if isinstance(action, Store)]
        named = {target.name: target for target in every}
        declared: tuple[Input | Param, ...] = (*self.rows.spec.inputs, *self.rows.spec.params)
        return tuple(named[decl.name] for decl in declared if decl.name in named)

    def dump(self) -> str:
        """The plan as text: the launches, then how each gradient comes about."""
        keys = "whole keys" if self.whole_keys else "keys in blocks"
        often = "a state for each chunk" if self.every == 1 else f"every {self.every} chunks a state"
        lines = [f"{often}, their gradients in reverse, then all chunks at once, {keys}"]
        lines.append(f"    {READ_GRADIENT} = {show(self.read)}")
        for level in LEVELS:
            for action in self.actions[level]:
                if isinstance(action, Add):
                    lines.append(f"    {level}: {action.target.called} += {show(action.value)}")
        return "\n".join(lines)


def plan_scalar_backward(kernels: ChunkKernelPlan) -> ChunkBackwardPlan:
    """The backward of kernels for scalar decays.

    Raises:
        NoKernel: something keeps it out of the kernels.
    """
    return _Planner(kernels).plan()


class _Planner(GradientPlanner[ChunkKernelPlan]):
    def __init__(self, forward: ChunkKernelPlan) -> None:
        self.walks = ScalarDecayPlanner(forward.chunk)
        planner = ScalarDecayPlanner(forward.chunk, rows_first=True)
        self.forward, rows = forward, planner.plan(forward.size)
        self.value, self.row = rows.value, rows.row_axis
        self.log_decay = _log_decay(rows)
        super().__init__(planner, self._with_finite_values(planner.rules, rows))
        self.levels = Levels(self._levels(), rows.keys, self.value)
        self.of_names = self.levels.of_names

    def _reads_of(self, rows: ChunkKernelPlan) -> frozenset[str]:
        return frozenset((rows.read,) if rows.rider is None else (rows.read, rows.rider.read))

    def plan(self) -> ChunkBackwardPlan:
        self._check()
        if self.rows.rider is not None:
            self.walks.rules.note(self.rows.rider.read, (TOKEN,), 0.0)
        read = self._read_gradient(self.planner, self.rows)
        walk_read = self._read_gradient(self.walks, self.forward)
        rider = self._rider()
        decay = self.rows.token_decay or self.rows.row_decay
        decays = self._is_varied(decay)
        self._sources(read, decay if decays else None)
        for level in LEVELS:
            self._finish(level)
        column = [] if self.forward.rider is None or self.forward.rider.scale is None else [self.forward.rider.scale]
        walked = [walk_read] if rider is None else [walk_read, rider.read]
        along_keys = [*self._adds(KEYS), *self._vectors()]
        return ChunkBackwardPlan(
            forward=self.forward,
            rows=self.rows,
            walk_read=walk_read,
            read=read,
            decays=decays,
            scaled=frozenset(role for role in (*ROLES, "v") if self._is_varied(self.rows.scale(role))),
            whole_keys=any(self.rows.key in crossed_dims(tile) for tile in along_keys),
            states=self._part(self.walks, self.forward, "wyzkv" if self.rows.delta else "kvg", *column),
            reverse=self._part(self.walks, self.forward, "qwyg" if self.rows.delta else "qg", *walked),
            keys=self.planner.part(along_keys, None),
            heads=self._part(self.planner, self.rows, "vg", read, *self._scales()),
            values=self._part(
                self.planner, self.rows, "vgm", *self._adds(BLOCK, HEAD, SHARED), *self._given_values(read)
            ),
            keys_written=self.planner.part([self.rows.write_key], None),
            after=self._part(self.planner, self.rows, "wkvg"),
            before=self._part(self.planner, self.rows, "qyg", read),
            levels=self.levels,
            zeros={level: self._zeros(level) for level in LEVELS},
            actions={level: tuple(actions) for level, actions in self.actions.items()},
            rider=rider,
            numbers=self._varied_numbers,
        )

    def _rider(self) -> RiderBackward | None:
        """The gradients of the vector state that rides along."""
        rider = self.rows.rider
        if rider is None:
            return None
        return RiderBackward(
            read=self._column_gradient(rider),
            varied=self._is_varied(rider.scale),
            after=self._part(self.planner, self.rows, "kg", *self._column_scale()),
            before=self._part(self.planner, self.rows, "qg"),
        )

    def _column_gradient(self, rider: Rider) -> Tile:
        """The gradient of what is read of the vector state, for the walk. With f = read * r that is the sum over the
        values of do * f * (dr / r); and f is the output."""
        rows, planner = self.forward, self.walks
        dims = tuple(dim for dim in planner.order if dim in (TOKEN, self.value))
        planner.rules.note(OUTPUT, dims, FINITE)
        transpose = Transposition(planner.order, self.without, self.numbers)
        taken = transpose(rows.output, Value(OUTPUT_GRADIENT, "local", dims))
        gradient = next((tile for leaf, tile in taken if leaf.name == rider.read), None)
        if gradient is None:
            self.planner.refuse("nothing is read of the vector state", rider.state.span)
        output = Value(OUTPUT, "local", dims)
        try:
            gradient = Factored(transpose, self.value).replaced(gradient, rows.output, output)
        except NotAFactor:
            gradient = output
        if gradient == output or self._reads(gradient):
            self.planner.refuse("the output is no multiple of what is read", self.spec.output[-1].span)
        return cleared(planner.rules, planner.order, gradient, TOKEN)

    def _column_scale(self) -> list[Tile]:
        rider = self.rows.rider
        return [] if rider is None or rider.scale is None else [rider.scale]

    def _given_values(self, read: Tile) -> list[Tile]:
        """What the gradient of written values is computed from, and of numbers that mix states."""
        needed = self.rows.write_key is not None or self.rows.mixed is not None
        return [read, *self._scales()] if needed else []

    def _vectors(self) -> list[Tile]:
        return [vector for role in ROLES if (vector := self.rows.vector(role)) is not None]

    def _scales(self) -> list[Tile]:
        scales = [scale for role in (*ROLES, "v") if (scale := self.rows.scale(role)) is not None]
        return [*scales, *(scale for scale in self._column_scale() if scale not in scales)]

    def _check(self) -> None:
        rows, (output,) = self.rows, self.spec.output[-1:]
        if others := others_of(rows.chunk.normal_form):
            reason = f"rows are made of vectors over {others[0]}, and gradients take the keys in blocks"
            self.planner.refuse(reason, output.span)
        if self.spec.output_dims != (self.value,):
            self.planner.refuse("the output is no vector over the state's second dim", output.span)
        self._check_names(self._own_names())
        for decl in self.spec.inputs:
            if self.value in decl.dims and decl.heads == "H" and self.spec.has_value_heads:
                self.planner.refuse(f"value heads share `{decl.name}`, which has an element for each value", decl.span)
            if (
                self._along_keys(decl.dims)
                and decl.heads == "HV"
                and any(other.heads == "H" for other in self.spec.inputs)
            ):
                self.planner.refuse(f"a value head has `{decl.name}`, along the keys, of its own", decl.span)
        for param in self.spec.params:
            if param.per_head and self._along_keys(param.dims) and self.spec.has_value_heads:
                self.planner.refuse(f"a value head has `{param.name}`, along the keys, of its own", param.span)
        for role, vector in ((role, rows.vector(role)) for role in ROLES):
            if vector is not None and self.planner.reads_heads(vector, self._of_value_heads()):
                reason = "a vector along the keys is a function of what a value head has of its own"
                self.planner.refuse(reason, self.planner.place(role))
        given = [("o", rows.output), ("v", rows.vector("v")), *((role, rows.scale(role)) for role in (*ROLES, "v"))]
        given += [("z", rows.delta.z if rows.delta else None), ("g", rows.row_decay)]
        given += [] if rows.mixed is None else [("o", tile) for tile in rows.mixed.tiles]
        for role, tile in (*given, *(("o", scale) for scale in self._column_scale())):
            if tile is not None and self.levels(tile) == KEYS:
                self.planner.refuse("something sums over the keys, and not only S.T @ q", self.planner.place(role))

    def _of_value_heads(self) -> set[str]:
        """The inputs and params, none of them along the keys, of which a value head has its own."""
        inputs = {decl.name for decl in self.spec.inputs if decl.heads == "HV" and not self._along_keys(decl.dims)}
        params = {param.name for param in self.spec.params if param.per_head and not self._along_keys(param.dims)}
        return inputs | params

    def _own_names(self) -> set[str]:
        """What expressions call the gradients that they start from, and a log decay that no token changes."""
        roles = (*ROLES, "v")
        names = {OUTPUT_GRADIENT, READ_GRADIENT, R_GRADIENT, DECAY_GRADIENT, *map(scale_gradient, roles)}
        if self.rows.rider is not None:
            names |= {COLUMN_SCALE_GRADIENT}
        names |= set(map(number_gradient, self._varied_numbers))
        return names | {f"{role}_gradient" for role in roles} | ({"log_decay"} if self.log_decay else set())

    @property
    def _varied_numbers(self) -> frozenset[str]:
        mixed = self.rows.mixed
        return frozenset() if mixed is None else frozenset(x for x, tile in mixed.named() if self._is_varied(tile))

    def _with_finite_values(self, rules: PaddingRules, rows: ChunkKernelPlan) -> ChunkKernelPlan:
        """Here products sum over the values, too: zeros meet what stands in their padding."""
        if rows.delta is not None and rows.delta.z is not None:
            rows = replace(rows, delta=replace(rows.delta, z=finite(rules, rows.delta.z, self.value)))
        if rows.write_value is not None:
            vector = finite(rules, rows.write_value.vector, self.value)
            rows = replace(rows, write_value=replace(rows.write_value, vector=vector))
        return rows

    # ----------------------------------------------------------------------------------------------------------- names

    def _levels(self) -> dict[str, Level]:
        known: dict[str, Level] = {}
        for decl in self.spec.inputs:
            known[decl.name] = self._of(decl.dims, HEAD if decl.heads == "HV" else SHARED)
        for param in self.spec.params:
            known[param.name] = self._of(param.dims, HEAD if param.per_head else SHARED)
        for name, tile in self._definitions():
            known[name] = Levels(known, self.rows.keys, self.value)(tile)
        return known

    def _of(self, dims: Dims, level: Level) -> Level:
        return KEYS if self._along_keys(dims) else BLOCK if self.value in dims else level

    def _along_keys(self, dims: Dims) -> bool:
        return not set(self.rows.keys).isdisjoint(dims)

    def _definitions(self) -> list[tuple[str, Tile]]:
        """What is made of inputs and params, in order."""
        last = [] if self.log_decay is None else [(self.log_decay.target, self.log_decay.value)]
        return [*self.planner.derived.items(), *last]

    # ----------------------------------------------------------------------------------------------------- the actions

    def _sources(self, read: Tile, decay: Tile | None) -> None:
        """Take the gradients of the rows back to names."""
        rows = self.rows
        given = {OUTPUT_GRADIENT: (TOKEN, self.value), R_GRADIENT: (self.row, self.value), DECAY_GRADIENT: (TOKEN,)}
        for role in (*ROLES, "v"):
            given[vector_gradient(rows, role)] = (rows.axis_of(role), self.value if role == "v" else rows.key)
            given[scale_gradient(role)] = (rows.axis_of(role),)
        if rows.rider is not None:
            given[COLUMN_SCALE_GRADIENT] = (self.row,)
        given |= {number_gradient(name): (TOKEN,) for name in sorted(self._varied_numbers)}
        for name, dims in given.items():
            self.rules.note(name, dims, 0.0)

        def back(tile: Tile, gradient: str, level: Level) -> None:
            self._back(tile, Value(gradient, "local", given[gradient]), level)

        back(rows.output, OUTPUT_GRADIENT, BLOCK)
        if rows.delta is not None and rows.delta.z is not None:
            back(rows.delta.z, R_GRADIENT, BLOCK)
        done: set[str] = set()
        for role in (*ROLES, "v"):
            vector, scale = rows.vector(role), rows.scale(role)
            if vector is not None and vector_gradient(rows, role) not in done:
                done.add(vector_gradient(rows, role))
                back(vector, vector_gradient(rows, role), BLOCK if role == "v" else KEYS)
            if scale is not None:
                back(scale, scale_gradient(role), HEAD)
        if rows.rider is not None and rows.rider.scale is not None:
            back(rows.rider.scale, COLUMN_SCALE_GRADIENT, HEAD)
        if decay is not None:
            back(decay, DECAY_GRADIENT, HEAD)
        for name, tile in () if rows.mixed is None else rows.mixed.named():
            if name in self._varied_numbers:
                back(unmasked(tile), number_gradient(name), HEAD)

    # ----------------------------------------------------------------------------------------------------------- parts

    def _part(self, planner: RowPlanner, rows: ChunkKernelPlan, roles: str, *tiles: Tile) -> Part:
        """What a kernel reads that needs the rows `roles`, and `tiles`."""
        needed: list[Tile | None] = [*tiles]
        for role in roles:
            needed += rows.vector(role), rows.scale(role)
        if "z" in roles and rows.delta is not None:
            needed.append(rows.delta.z)
        if "g" in roles:
            needed += rows.row_decay, rows.token_decay
        if "m" in roles and rows.mixed is not None:
            needed += rows.mixed.tiles
        return planner.part(needed, self.log_decay if "g" in roles else None)


def _log_decay(rows: ChunkKernelPlan) -> Set | None:
    """The evaluation of a log decay that no token changes."""
    parts = (rows.walk, *(rows.prepare or ()))
    once = (action for part in parts for action in part.once)
    return next((action for action in once if isinstance(action, Set) and action.target == "log_decay"), None)
