"""From the gradients of a chunk's rows to those of names: what planners of backward kernels have in common.

A gradient goes back through the definitions of names, level by level: where the gradient of a name is complete, it is
taken on to what the name is made of, or stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Generic, TypeVar

from flagen.plan.backward_levels import LEVELS, OUTPUT_GRADIENT, Action, Add, Fold, Gradient, Level, Store
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.gradients import Transposition
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.padding import FINITE
from flagen.plan.row_planner import RowPlanner
from flagen.plan.rows import ROW, TOKEN, cleared, values_in
from flagen.plan.schedule import declared_names, names_of, place_of
from flagen.plan.tiles import Head, Tile, Value, tiles_in
from flagen.spec.model import Dims, Input, Param

P = TypeVar("P", bound=ChunkKernelPlan | KeyKernelPlan)


class GradientPlanner(Generic[P]):
    """Takes the gradients of a chunk's rows back to names, level by level; what all families have in common.

    order: the levels, in the order in which what belongs to them is complete; `of_names`: the level of every name.
    constant: an input that no gradient is wanted of.
    """

    order: tuple[Level, ...] = LEVELS
    of_names: Mapping[str, Level]

    def __init__(self, planner: RowPlanner, rows: P, constant: str | None = None) -> None:
        self.planner, self.rows = planner, rows
        self.spec, self.rules = planner.spec, planner.rules
        self.without, self.numbers = self._made_of_numbers(heads=True), self._made_of_numbers(heads=False)
        if constant is not None:
            self.without |= {constant}
        self.transpose = Transposition(planner.order, self.without | self._reads_of(rows), self.numbers)
        self.called: dict[tuple[str, str], str] = {}
        self.actions: dict[Level, list[Action]] = {level: [] for level in self.order}

    def _definitions(self) -> list[tuple[str, Tile]]:
        """What is made of inputs and params, in order."""
        return list(self.planner.derived.items())

    def _reads_of(self, rows: P) -> frozenset[str]:
        """What the output calls what is read of the states."""
        return frozenset((rows.read,))

    def _made_of_numbers(self, *, heads: bool) -> frozenset[str]:
        """Params that are Python numbers, and what is derived from them, and with `heads` from the head, alone."""
        found = {param.name for param in self.spec.params if not param.is_tensor}
        for name, tile in self._definitions():
            known = all(value.name in found for value in values_in(tile))
            if known and (heads or not any(isinstance(part, Head) for part in tiles_in(tile))):
                found.add(name)
        return frozenset(found)

    def _gradient(self, name: str, axis: str, dims: Dims) -> Gradient:
        if (name, axis) not in self.called:
            declared = set(declared_names(self.spec))
            taken = {*declared, *(f"{other}_row" for other in declared), *self.called.values()}
            called = f"d_{name}"
            while called in taken:
                called += "_"
            self.called[name, axis] = called
        return Gradient(name, axis, dims, self.of_names[name], self.called[name, axis])

    def _read_gradient(self, planner: RowPlanner, rows: P) -> Tile:
        """The gradient of what the output calls S^T q: zero beyond the ends of its axes."""
        dims = tuple(dim for dim in planner.order if dim in (TOKEN, rows.value))
        planner.rules.note(OUTPUT_GRADIENT, dims, 0.0)
        planner.rules.note(rows.read, dims, FINITE)
        transpose = Transposition(planner.order, self.without, self.numbers)
        taken = transpose(rows.output, Value(OUTPUT_GRADIENT, "local", dims))
        gradient = next(tile for leaf, tile in taken if leaf.name == rows.read)
        if self._reads(gradient):
            self.planner.refuse("the output is no linear function of what is read", self.spec.output[-1].span)
        return cleared(planner.rules, planner.order, gradient, TOKEN, rows.value)

    def _reads(self, tile: Tile) -> bool:
        return any(value.name == self.rows.read for value in values_in(tile))

    def _back(self, tile: Tile, gradient: Tile, level: Level) -> None:
        """Take `gradient`, that of `tile`, back to the names that `tile` reads."""
        for dim in gradient.dims:
            if dim not in tile.dims:
                gradient = self.transpose.summed(gradient, dim)
        for leaf, value in self.transpose(tile, gradient):
            axis = next((axis for axis in (TOKEN, ROW) if axis in leaf.dims), "")
            target = self._gradient(leaf.name, axis, leaf.dims)
            if self._reads(value):
                self.planner.refuse(
                    f"the gradient of `{leaf.name}` is a multiple of what is read", self.spec.output[-1].span
                )
            self.actions[level].append(Add(target, self.rules.mask(value)))

    def _finish(self, level: Level) -> None:
        """Take the gradients that are complete on `level` back further, or store them."""
        for name, definition in reversed(self._definitions()):
            for target in self._complete(name, level):
                self.rules.assign(target.called, reduce(self.transpose.plus, self._added(target)))
                lifted = self.planner.axis(target.axis)(definition) if target.axis else definition
                self._back(lifted, Value(target.called, "local", target.dims), level)
        for decl in self.spec.inputs:
            for target in self._complete(decl.name, level):
                if target.axis == ROW and decl.per == "token":
                    if len(target.dims) > 1:
                        self.planner.refuse(f"micro-steps read `{decl.name}`, a vector of their token", decl.span)
                    self.actions[level].append(Fold(self._gradient(decl.name, TOKEN, (TOKEN,)), target))
        stores: tuple[Input | Param, ...] = (*self.spec.inputs, *self.spec.params)
        for stored in stores:
            for target in self._complete(stored.name, level):
                if isinstance(stored, Param) or target.axis == (ROW if stored.per == "step" else TOKEN):
                    self.actions[level].append(Store(target))

    def _check_names(self, own: set[str]) -> None:
        """Refuse a spec that gives a name to something else which expressions of gradients start from."""
        if met := sorted(own & set(names_of(self.spec))):
            names = " and ".join(f"`{name}`" for name in met)
            reason = f"the gradients of a chunk's rows are called {names} there"
            self.planner.refuse(reason, place_of(self.spec, met[0]))

    def _complete(self, name: str, level: Level) -> list[Gradient]:
        """The gradients of `name` along its axes, where they are complete on `level`."""
        targets = dict.fromkeys(
            action.target for actions in self.actions.values() for action in actions if isinstance(action, Add | Fold)
        )
        return [target for target in targets if target.name == name and target.level == level]

    def _added(self, target: Gradient) -> list[Tile]:
        every = (action for actions in self.actions.values() for action in actions)
        return [action.value for action in every if isinstance(action, Add) and action.target == target]

    def _zeros(self, level: Level) -> tuple[Gradient, ...]:
        """The gradients, complete on `level`, that other levels add to."""
        others = [other for other in self.order if other != level]
        adds = [action for other in others for action in self.actions[other] if isinstance(action, Add)]
        targets = [add.target for add in adds if add.target.level == level]
        return tuple(dict.fromkeys(targets))

    def _is_varied(self, tile: Tile | None) -> bool:
        return tile is not None and self.transpose.reaches(tile)

    def _adds(self, *levels: Level) -> list[Tile]:
        return [action.value for level in levels for action in self.actions[level] if isinstance(action, Add)]
