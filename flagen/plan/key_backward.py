"""The plan of the backward of the chunk kernels for decays of each key channel.

The rows that the forward kernels prepare are prepared again, without the inverse folded into them, or only scaled
where the forward call hands its matrices on. One walk stores the states, one walks backward and stores their gradients,
and the last kernel has a program for every chunk of a key head. For each value head it first adds up, over blocks of
values, the gradients of the matrices and of what has values; then it takes the keys block by block, and in each block
the value heads that share them. So the gradient of a name is complete at the end of one of five levels: BLOCK for what
has an element for each value, OWN for what a value head has along the keys, KEYS for what value heads share along the
keys, HEAD for what a value head has of its own, SHARED for the rest.

Decided here: what each kernel reads, what each gradient is made of, and on which level that is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flagen.plan.backward_levels import (
    BLOCK,
    DECAY_GRADIENT,
    HEAD,
    KEYS,
    OUTPUT_GRADIENT,
    R_GRADIENT,
    READ_GRADIENT,
    ROLES,
    SHARED,
    Action,
    Add,
    Gradient,
    Level,
    Store,
    scale_gradient,
    vector_gradient,
)
from flagen.plan.gradient_planner import GradientPlanner
from flagen.plan.key_kernel import KeyKernelPlan, KeyPlanner
from flagen.plan.row_planner import Part, RowSet
from flagen.plan.rows import TOKEN, finite, values_in
from flagen.plan.show import show
from flagen.plan.split import crossed_dims
from flagen.plan.tiles import Arithmetic, Head, Negative, Product, Sum, Tile, Value, tiles_in
from flagen.spec.model import Dims, Input, Param

OWN: Level = "own keys"
LEVELS: tuple[Level, ...] = (BLOCK, OWN, KEYS, HEAD, SHARED)
"""In the order in which what belongs to them is complete."""


@dataclass(frozen=True)
class KeyBackwardPlan:
    """What the kernels of the backward evaluate.

    forward: the rows as the forward kernels have them, but nothing folded into them: the walks have these.
    prepares: the forward kernels fold the inverse into their rows, so that the backward has a preparation of its own.
    puts_out: the forward kernels read something else, so that it has one, too, and a walk that puts out what is read.
    rows: the same with a chunk's rows as the first axis of every tile.
    walk_read, read: the gradient of the read, for the walk and for the last kernel.
    decays: whether the decay depends on something that has a gradient.
    whole_keys: whether something sums over the keys, which are then one block.
    reverse: what the walk over gradients reads beside prepared rows.
    values: what the last kernel reads of a block of values for their gradients; `written`: for the gradients of all
        else; keys: of a block of keys; heads: after all blocks.
    of_names: the level of every name.
    zeros: gradients that other levels add to, by the level on which they start.
    actions: what is done on each level, in order.
    """

    forward: KeyKernelPlan
    prepares: bool
    rows: KeyKernelPlan
    walk_read: Tile
    read: Tile
    decays: bool
    whole_keys: bool
    reverse: Part
    values: Part
    written: Part
    keys: Part
    heads: Part
    of_names: Mapping[str, Level]
    zeros: Mapping[Level, tuple[Gradient, ...]]
    actions: Mapping[Level, tuple[Action, ...]]
    puts_out: bool = False

    @property
    def own_walk(self) -> bool:
        """Whether the backward has a preparation and a walk over states of its own."""
        return self.prepares or self.puts_out

    @property
    def stored(self) -> tuple[Gradient, ...]:
        """The gradients that are stored, in the order of the signature."""
        every = [action.target for level in LEVELS for action in self.actions[level] if isinstance(action, Store)]
        named = {target.name: target for target in every}
        declared: tuple[Input | Param, ...] = (*self.rows.spec.inputs, *self.rows.spec.params)
        return tuple(named[decl.name] for decl in declared if decl.name in named)

    def number_gradient(self, number: str) -> Gradient | None:
        """What the gradient of a prepared number is added up in, if it has one."""
        return next((gradient for gradient in self.zeros[HEAD] if gradient.name == number), None)

    def dump(self) -> str:
        """The plan as text: the launches, then how each gradient comes about."""
        keys = "whole keys" if self.whole_keys else "keys in blocks"
        lines = [f"the states, their gradients in reverse, then all chunks at once, {keys}"]
        lines.append(f"    {READ_GRADIENT} = {show(self.read)}")
        for level in LEVELS:
            for action in self.actions[level]:
                if isinstance(action, Add):
                    lines.append(f"    {level}: {action.target.called} += {show(action.value)}")
        return "\n".join(lines)


def plan_key_backward(kernels: KeyKernelPlan, constant: str | None = None) -> KeyBackwardPlan:
    """The backward of kernels that scale rows and read from the left; of the input `constant` no gradient is wanted.

    Raises:
        NoKernel: something keeps it out of the kernels.
    """
    return _Planner(kernels, constant).plan()


class _Planner(GradientPlanner[KeyKernelPlan]):
    order = LEVELS

    def __init__(self, forward: KeyKernelPlan, constant: str | None) -> None:
        planner = KeyPlanner(forward.chunk, rows_first=True)
        self.walks = KeyPlanner(forward.chunk)
        self.folded, self.forward = forward.folded, replace(forward, folded=False)
        rows = planner.plan(forward.size)
        self.key, self.value = rows.key, rows.value
        if rows.delta is not None and rows.delta.z is not None:
            # Here products sum over the values, too: zeros meet what stands in their padding.
            rows = replace(rows, delta=replace(rows.delta, z=finite(planner.rules, rows.delta.z, self.value)))
        if rows.write_value is not None:
            rows = replace(rows, write_value=finite(planner.rules, rows.write_value, self.value))
        super().__init__(planner, rows, constant)
        self.of_names = self._levels()

    def plan(self) -> KeyBackwardPlan:
        self._check()
        rows, planner = self.rows, self.planner
        read = self._read_gradient(planner, rows)
        walk_read = self._read_gradient(self.walks, self.forward)
        decays = rows.log_decay is not None and self.transpose.reaches(rows.log_decay)
        self._sources(decays)
        for level in LEVELS:
            self._finish(level)
        operands = [row for role in ROLES for row in (rows.vector(role), rows.scale(role)) if row is not None]
        along_keys = [*operands, *([] if rows.log_decay is None else [rows.log_decay])]
        keys = planner.part([*along_keys, *self._adds(OWN, KEYS)], None)
        evaluated = [row.value for row in keys.rows if isinstance(row, RowSet)]
        return KeyBackwardPlan(
            forward=self.forward,
            prepares=self.folded,
            rows=rows,
            walk_read=walk_read,
            read=read,
            decays=decays,
            whole_keys=any(self.key in crossed_dims(tile) for tile in (*along_keys, *evaluated))
            or not all(map(self._in_parts, self._adds(OWN, KEYS))),
            reverse=self.walks.part([walk_read], None),
            values=planner.part(self._values(read), None),
            written=planner.part([read, rows.write_value], None),
            keys=keys,
            heads=planner.part(self._adds(HEAD, SHARED), None),
            of_names=self.of_names,
            zeros={level: self._zeros(level) for level in LEVELS},
            actions={level: tuple(actions) for level, actions in self.actions.items()},
        )

    def _values(self, read: Tile) -> list[Tile]:
        """What the gradients of what has values are made of."""
        return [*self._adds(BLOCK), *([] if self.rows.write_key is None else [read])]

    def _in_parts(self, tile: Tile) -> bool:
        """Whether `tile` is what blocks of the keys add up to, or does not sum over them."""
        return self.key not in crossed_dims(tile) or self._adds_up(tile)

    def _adds_up(self, tile: Tile) -> bool:
        match tile:
            case Sum(value, dim) if dim == self.key:
                return self.key not in crossed_dims(value)
            case Sum(value) | Negative(value) | Arithmetic("/", value):
                return self._adds_up(value)
            case Arithmetic("+" | "-", left, right):
                return self._adds_up(left) and self._adds_up(right)
            case Product(factors):
                summed = [factor for factor in factors if self.key in crossed_dims(factor)]
                return len(summed) == 1 and self._adds_up(summed[0])
        return False

    # ---------------------------------------------------------------------------------------------------------- limits

    def _check(self) -> None:
        rows, output = self.rows, self.spec.output[-1]
        if self.spec.output_dims != (self.value,):
            self.planner.refuse("the output is no vector over the state's second dim", output.span)
        self._check_names(self._own_names())
        for decl in self.spec.inputs:
            if self.value in decl.dims and decl.heads == "H" and self.spec.has_value_heads:
                self.planner.refuse(f"value heads share `{decl.name}`, which has an element for each value", decl.span)
        values = {"o": rows.output, "v": rows.write_value, "z": rows.delta.z if rows.delta else None}
        for role, tile in values.items():
            if tile is not None and self.key in crossed_dims(tile):
                self.planner.refuse("a value is made of a sum over the keys", self.planner.place(role))

    def _own_names(self) -> set[str]:
        """What expressions call the gradients that they start from."""
        roles = (*ROLES, "v")
        names = {OUTPUT_GRADIENT, READ_GRADIENT, R_GRADIENT, DECAY_GRADIENT, *map(scale_gradient, roles)}
        return names | {f"{role}_gradient" for role in roles}

    # ----------------------------------------------------------------------------------------------------------- names

    def _levels(self) -> dict[str, Level]:
        known: dict[str, Level] = {}
        for decl in self.spec.inputs:
            known[decl.name] = self._of(decl.dims, own=decl.heads == "HV")
        for param in self.spec.params:
            known[param.name] = self._of(param.dims, own=param.per_head)
        for name, tile in self._definitions():
            dims = tuple(dim for part in tiles_in(tile) for dim in part.dims)
            known[name] = self._of(dims, own=self._is_own(tile, known))
        return known | {number.target: HEAD for number in self.rows.numbers}

    def _of(self, dims: Dims, *, own: bool) -> Level:
        if self.value in dims:
            return BLOCK
        if self.key in dims:
            return OWN if own else KEYS
        return HEAD if own else SHARED

    def _is_own(self, tile: Tile, known: Mapping[str, Level]) -> bool:
        """Whether `tile` depends on what a value head has of its own."""
        names = (known.get(value.name, SHARED) for value in values_in(tile))
        return any(level in (OWN, HEAD) for level in names) or any(isinstance(part, Head) for part in tiles_in(tile))

    # ----------------------------------------------------------------------------------------------------- the actions

    def _sources(self, decays: bool) -> None:
        """Take the gradients of the rows back to names."""
        rows = self.rows
        over_keys, over_values = (TOKEN, self.key), (TOKEN, self.value)
        given: dict[str, Dims] = {OUTPUT_GRADIENT: over_values, R_GRADIENT: over_values, DECAY_GRADIENT: over_keys}
        for role in (*ROLES, "v"):
            given[vector_gradient(rows, role)] = over_values if role == "v" else over_keys
            given[scale_gradient(role)] = (TOKEN,)
        for name, dims in given.items():
            self.rules.note(name, dims, 0.0)

        def back(tile: Tile | None, gradient: str, level: Level) -> None:
            if tile is not None:
                self._back(tile, Value(gradient, "local", given[gradient]), level)

        back(rows.output, OUTPUT_GRADIENT, BLOCK)
        back(rows.delta.z if rows.delta else None, R_GRADIENT, BLOCK)
        back(rows.write_value, "v_gradient", BLOCK)
        for number in rows.numbers:
            self._back_from_number(number)
        for gradient, vector in self._vectors().items():
            back(vector, gradient, self.level(vector))
        for role in ROLES:
            back(rows.scale(role), scale_gradient(role), OWN)
        back(rows.log_decay if decays else None, DECAY_GRADIENT, OWN)

    def level(self, vector: Tile) -> Level:
        """Where the gradient of a vector along the keys is complete."""
        return OWN if self._is_own(vector, self.of_names) else KEYS

    def _vectors(self) -> dict[str, Tile]:
        """The vectors along the keys by what their gradients are called; the same vectors have one."""
        named = ((vector_gradient(self.rows, role), self.rows.vector(role)) for role in ROLES)
        return {name: vector for name, vector in named if vector is not None}

    def _back_from_number(self, number: RowSet) -> None:
        """A prepared number is known, and so is its gradient, before the keys: what it is made of without a sum over
        them gets its gradient once, all else block by block of the keys."""
        targets = [action.target for action in self.actions[BLOCK] if isinstance(action, Add)]
        found = next((target for target in targets if target.name == number.target), None)
        if found is None:
            return
        self.rules.note(found.called, (TOKEN,), 0.0)
        self._back(number.value, Value(found.called, "local", (TOKEN,)), OWN)
        ends = [
            action
            for action in self.actions[OWN]
            if isinstance(action, Add) and action.target.level in (HEAD, SHARED) and not self._sums_keys(action.value)
        ]
        self.actions[OWN] = [action for action in self.actions[OWN] if action not in ends]
        self.actions[HEAD] += ends

    def _sums_keys(self, tile: Tile) -> bool:
        return self.key in crossed_dims(tile)
