"""What stands between the arguments of a call and the rows of a token, there and back: expressions of the spec as
tiles, what has to be loaded and evaluated for them, and how their gradients become those of the arguments."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce

from flagen.algebra.normal_form import NormalForm
from flagen.plan.backward_actions import (
    SCOPES,
    Action,
    Add,
    AtEnd,
    ButAtEnd,
    Give,
    Gradient,
    Scope,
    Steps,
    Take,
    Vector,
    Zero,
)
from flagen.plan.gradients import Transposition
from flagen.plan.lowering import Lowering
from flagen.plan.padding import PaddingRules
from flagen.plan.row_planner import NoKernel
from flagen.plan.rows import cleared, finite, values_in
from flagen.plan.schedule import Load, Set, declared_names, fresh
from flagen.plan.split import crossed_dims
from flagen.plan.tiles import Head, Once, Tile, Value, tiles_in
from flagen.spec.model import Dims, Expr, Input, Param


class FrontEnd:
    """The expressions of `nf`'s spec, as tiles.

    Everything that goes into a product with the state is zero beyond the ends of its axes; so the state is zero there,
    and sums over it need no masks.
    """

    def __init__(self, nf: NormalForm) -> None:
        self.nf, self.spec = nf, nf.spec
        self.order = nf.spec.dims
        self.taken = set(declared_names(self.spec))
        self.rules = PaddingRules(self.spec)
        self.crossed: set[str] = set()
        self._lower = Lowering(self.order)
        self.derived: dict[str, Tile] = {}
        for decl in self.spec.derived:
            self.derived[decl.name] = self.tile(decl.value)
            self.rules.assign(decl.name, self.derived[decl.name])
        self.scopes = self._scopes()
        self.transpose = Transposition(
            self.order, self._made_of_numbers(heads=True), self._made_of_numbers(heads=False)
        )
        self.vectors: dict[str, Vector] = {}
        self.evaluated: dict[str, Tile] = {}

    # ----------------------------------------------------------------------------------------------------- expressions

    def tile(self, expr: Expr) -> Tile:
        """`expr`, masked wherever padding would leak into what it sums over.

        Raises:
            TooManyDims: it does not fit tiles.
        """
        tile = self.rules.mask(self._lower(expr))
        self.crossed |= set(crossed_dims(tile))
        return tile

    def row(self, expr: Expr, dim: str) -> Tile:
        """`expr` as a vector over `dim`, with zeros beyond its end."""
        return cleared(self.rules, self.order, self.tile(expr), dim)

    def factor(self, expr: Expr) -> Tile:
        """`expr` as a factor of the state."""
        return finite(self.rules, self.tile(expr), self.nf.key)

    def reaches(self, expr: Expr) -> bool:
        """Whether anything that has a gradient is in `expr`."""
        return self.transpose.reaches(self._lower(expr))

    # ----------------------------------------------------------------------------------------------------------- names

    def fresh(self, name: str) -> str:
        return fresh(name, self.taken)

    def local(self, name: str, dims: Dims) -> Value:
        """A name for what is zero beyond the ends of `dims`."""
        self.rules.note(name, dims, 0.0)
        return Value(name, "local", dims)

    def vector(self, vector: Vector) -> Value:
        """The vector as kernels that take it call it."""
        self.vectors[vector.name] = vector
        return self.local(vector.name, tuple(dim for dim in self.order if dim in vector.dims))

    def evaluate(self, name: str, value: Tile) -> Value:
        """A name for what each kernel that needs it evaluates for every token."""
        self.evaluated[name] = value
        return self.local(name, value.dims)

    def _scopes(self) -> dict[str, Scope]:
        found: dict[str, Scope] = {decl.name: decl.per for decl in self.spec.inputs}
        found |= {param.name: "call" for param in self.spec.params}
        for decl in self.spec.derived:
            read = [found[value.name] for value in values_in(self.derived[decl.name])]
            found[decl.name] = max(read, key=SCOPES.index, default="call")
        return found

    def _made_of_numbers(self, *, heads: bool) -> frozenset[str]:
        """Params that are Python numbers, and what is derived from them, and with `heads` from the head, alone."""
        found = {param.name for param in self.spec.params if not param.is_tensor}
        for name, tile in self.derived.items():
            known = all(value.name in found for value in values_in(tile))
            if known and (heads or not any(isinstance(part, Head) for part in tiles_in(tile))):
                found.add(name)
        return frozenset(found)

    # --------------------------------------------------------------------------------------------------------- sources

    def sources(self, actions: Sequence[Action], scope: Scope, made: Collection[str]) -> tuple[Action, ...]:
        """What has to be loaded and evaluated before `actions`, as often as `scope` says; `made` needs neither."""
        needed = self._closure(actions, made)
        declared: tuple[Input | Param, ...] = (*self.spec.params, *self.spec.inputs)
        tensors = [d for d in declared if d.name in needed and (isinstance(d, Input) or d.is_tensor)]
        found: list[Action] = [Load(decl) for decl in tensors if self.scopes[decl.name] == scope]
        found += [Set(n, tile) for n, tile in self.derived.items() if n in needed and self.scopes[n] == scope]
        found += [Take(vector) for name, vector in self.vectors.items() if name in needed and vector.per == scope]
        if scope == "token":
            found += [Set(name, value) for name, value in self.evaluated.items() if name in needed]
        return tuple(found)

    def _closure(self, actions: Iterable[Action], made: Collection[str]) -> set[str]:
        needed: set[str] = set()
        waiting = [value.name for action in actions for tile in _read_by(action) for value in values_in(tile)]
        while waiting:
            name = waiting.pop()
            if name in needed or name in made:
                continue
            needed.add(name)
            definition = self.derived.get(name) or self.evaluated.get(name)
            waiting += [] if definition is None else [value.name for value in values_in(definition)]
        return needed


def _read_by(action: Action) -> Iterable[Tile]:
    match action:
        case Set(_, value) | Add(_, value) | ButAtEnd(_, value):
            yield value
        case Steps(body) | AtEnd(body):
            for inner in body:
                yield from _read_by(inner)


def made_by(actions: Iterable[Action]) -> set[str]:
    """The names that `actions` give a meaning to."""
    made: set[str] = set()
    for action in actions:
        match action:
            case Set(target) | Zero(target):
                made.add(target)
            case Steps(body) | AtEnd(body):
                made |= made_by(body)
    return made


# ------------------------------------------------------------------------------------------------------- and back again


@dataclass
class _Sum:
    """The gradient of a name: what it is called, over which dims, in which loop over micro-steps it began, and what it
    is the sum of."""

    called: str
    dims: Dims
    loop: int
    terms: list[Tile] = field(default_factory=list)


class WayBack:
    """Takes gradients of rows back to the arguments of a call, term by term, where the terms become known."""

    def __init__(self, front: FrontEnd, *, whole: bool) -> None:
        self.front, self.whole = front, whole
        self.sums: dict[str, _Sum] = {}
        self.loop = 0
        self.zeros: dict[Scope, list[Action]] = {scope: [] for scope in SCOPES}

    def back(self, expr: Tile, gradient: Tile, scope: Scope) -> list[Action]:
        """Add `gradient`, that of `expr`, to those of the names that `expr` reads."""
        for dim in gradient.dims:
            if dim not in expr.dims:
                gradient = self.front.transpose.summed(gradient, dim)
        terms = self.front.transpose(expr, gradient)
        return [
            action
            for leaf, term in terms
            if leaf.name in self.front.scopes
            for action in self._add(leaf.name, term, scope)
        ]

    def of_output(self, expr: Tile, gradient: Tile) -> list[Action]:
        """The same for the output's own terms: where every block of values has the whole output, one counts."""
        split = self.front.nf.value in gradient.dims or self.whole
        return self.back(expr, gradient if split else Once(gradient, gradient.dims), "token")

    def finish(self, scope: Scope) -> list[Action]:
        """Take the gradients that are complete now further back, and store those of arguments."""
        front, actions = self.front, list[Action]()
        for name, definition in reversed(front.derived.items()):
            found = self.sums.get(name)
            if found is not None and self._ends(name, scope):
                front.rules.assign(found.called, reduce(front.transpose.plus, found.terms))
                actions += self.back(definition, Value(found.called, "local", found.dims), scope)
        declared: tuple[Input | Param, ...] = (*front.spec.inputs, *front.spec.params)
        for decl in declared:
            found = self.sums.get(decl.name)
            if found is not None and self._ends(decl.name, scope):
                gradient = Gradient(decl, found.called, decl.dims, front.nf.value not in decl.dims)
                actions.append(Give(gradient, found.dims))
        self.loop += scope == "step"
        return actions

    def _ends(self, name: str, scope: Scope) -> bool:
        """Whether the gradient of `name` is complete where `scope` ends; loops over micro-steps end one by one."""
        return self.front.scopes[name] == scope and (scope != "step" or self.sums[name].loop == self.loop)

    def _add(self, name: str, term: Tile, scope: Scope) -> list[Action]:
        front = self.front
        term, own = front.rules.mask(term), front.scopes[name]
        if name not in self.sums:
            self.sums[name] = found = _Sum(front.fresh(f"d_{name}"), term.dims, self.loop, [term])
            if own == scope and own != "call" and not self._may_widen(name, term):
                return [Set(found.called, term)]
            found.dims = self._dims_of(name)
            self.zeros[own].append(Zero(found.called, found.dims))
            return [Add(found.called, term, found.dims)]
        found = self.sums[name]
        if own == "step" and found.loop != self.loop:
            raise NoKernel(f"two loops over micro-steps read `{name}`", front.spec.end_of_update)
        found.terms.append(term)
        if set(term.dims) <= set(found.dims):
            return [Add(found.called, term, found.dims)]
        whole = front.transpose.plus(Value(found.called, "local", found.dims), term)
        found.dims = whole.dims
        return [Set(found.called, whole)]

    def _may_widen(self, name: str, term: Tile) -> bool:
        """Whether a loop over micro-steps may add what has more dims than `term`: it cannot do so turn by turn."""
        front = self.front
        return front.scopes[name] == "token" and front.spec.steps is not None and term.dims != self._dims_of(name)

    def _dims_of(self, name: str) -> Dims:
        declared: tuple[Input | Param, ...] = (*self.front.spec.inputs, *self.front.spec.params)
        dims = next((decl.dims for decl in declared if decl.name == name), None)
        own = self.front.derived[name].dims if dims is None else dims
        return tuple(dim for dim in self.front.order if dim in own)
