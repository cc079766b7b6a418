"""The plan of `chunk_<name>` where states stand still within mini-batches: a kernel that walks them piece by piece.

Tiles are those of scans: tokens of a piece are their first axis. A matrix lies over its own dims, as it is before the
piece, and what tokens read of it are products of tiles; the numbers of matrices, and the vectors among the states, are
scanned. Whatever is evaluated has a name, so that the backward transposes one statement after another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from flagen.algebra.mini_batches import MiniBatchForm
from flagen.algebra.pieces import Advanced, Begun, Opened, OutsidePieces, PieceForm, Read, Row, piece_form
from flagen.plan.gradients import Transposition
from flagen.plan.lowering import NoTile, TooManyDims
from flagen.plan.padding import FINITE
from flagen.plan.parts import with_parts, with_tiles
from flagen.plan.row_planner import NoKernel
from flagen.plan.rows import WRITTEN, cleared, values_in
from flagen.plan.scan import ScanPlan
from flagen.plan.scan_backward import BackwardPlanner, ScanBackwardPlan, WalkBack
from flagen.plan.scan_kernel import TOKEN, Planner, ScanKernelPlan, Store, Walk, chunk_size
from flagen.plan.schedule import Set, fresh, names_of
from flagen.plan.tiles import (
    Along,
    Arithmetic,
    Compare,
    Constant,
    Lane,
    Masked,
    MatMul,
    Product,
    Select,
    Shifted,
    Spread,
    StateTile,
    Sum,
    Tile,
    Value,
    ValueKind,
    Whole,
    rebuild,
    tiles_in,
)
from flagen.plan.unavailable import Unavailable
from flagen.spec.model import Assign, Dims, Expr, Spec, State

ZERO, ONE = Constant(0.0), Constant(1.0)


@dataclass(frozen=True)
class Carried:
    """A state that is not scanned: what it is called before a piece, and after it; `gradient`: its gradient, after a
    piece and then before it."""

    state: State
    before: str
    after: str
    gradient: str


@dataclass(frozen=True)
class PieceKernelPlan(ScanKernelPlan):
    """The kernel of a sequence in pieces, of `form`; `carried` are the states beside those that are scanned."""

    form: PieceForm
    carried: tuple[Carried, ...]

    is_window = False

    @property
    def spec(self) -> Spec:
        return self.form.whole

    @property
    def every(self) -> Expr:
        """How many tokens a mini-batch has."""
        return self.form.first.every

    def dump(self) -> str:
        """The plan as text."""
        return super().dump().replace("chunk", "piece")


@dataclass(frozen=True)
class PieceBackwardPlan(ScanBackwardPlan):
    """The kernel of the gradients, which walks the pieces from the last to the first."""

    forward: PieceKernelPlan

    @cached_property
    def kept(self) -> tuple[State, ...]:
        """The states of which the forward keeps the one before each piece."""
        scanned = {action.state.name for action in self.chunk if isinstance(action, Walk)}
        named = {part.name for tile in self.evaluated() for part in values_in(tile)}
        first = dict(self.forward.first)
        return tuple(s for s in self.spec.states if s.name in scanned or first[s.name] in named)

    def dump(self) -> str:
        """The plan as text."""
        return super().dump().replace("chunk", "piece")


def plan_piece_kernels(
    form: MiniBatchForm,
) -> tuple[PieceKernelPlan, PieceBackwardPlan] | tuple[Unavailable, Unavailable]:
    """The kernel that walks the mini-batches of `form`, and that of its gradients, or why there are none."""
    try:
        pieces = piece_form(form)
        forward = _Planner(ScanPlan(pieces, chunk_size(pieces.whole))).plan()
        return forward, _BackwardPlanner(forward).plan_backward()
    except (NoKernel, OutsidePieces, NoTile) as missing:
        reason, span = missing.reason, missing.span
    except TooManyDims as wide:
        reason, span = f"it needs a tile over [{', '.join(wide.dims)}] for every token", wide.span
    unavailable = Unavailable(reason, span)
    return unavailable, unavailable


class _Planner(Planner):
    """Lowers the form of a piece to tiles."""

    def __init__(self, plan: ScanPlan) -> None:
        assert isinstance(plan.form, PieceForm)
        self.form = plan.form
        super().__init__(plan)

    def _declared(self) -> Iterator[str]:
        yield from super()._declared()
        yield from names_of(self.form.whole)

    def plan(self) -> PieceKernelPlan:
        """The plan of the forward kernel."""
        once, token = self.prepared(self.steps)
        return PieceKernelPlan(
            plan=self.scan,
            order=self.order,
            split=None,
            once=once,
            chunk=with_parts((*token, *self.steps), self.taken),
            first=(*self.first.items(), *((carried.state.name, carried.before) for carried in self.carried)),
            taken=frozenset(self.taken),
            form=self.form,
            carried=self.carried,
        )

    # ------------------------------------------------------------------------------------------------------- statements

    def _statements(self) -> Iterator[Set | Walk | Store]:
        opened = self.form.opened
        self.unit = self.form.unit
        self.last_row, self.first_row = (fresh(name, self.taken) for name in ("last_row", "first_row"))
        self.carried = tuple(
            Carried(
                state,
                fresh(f"{state.name}_before", self.taken),
                opened[state.name].target if state.name in opened else fresh(f"{state.name}_after", self.taken),
                fresh(f"d{state.name}", self.taken),
            )
            for state in self.form.whole.states
            if state.name in opened or state.name in {each.state.name for each in self.form.advanced}
        )
        self.before = {carried.state.name: carried for carried in self.carried}
        self.rows = {row.name: row for row in self.form.rows}
        self.writes: dict[str, Value] = {}
        for state in (carried.state for carried in self.carried):
            if state.init:
                raise NoKernel(f"`{state.name}` does not begin as zero", state.span)
            self.rules.note(self.before[state.name].before, self._sorted(state.dims), 0.0)
        for name, dims in ((self.unit, (TOKEN, WRITTEN)), (self.last_row, (TOKEN,)), (self.first_row, (TOKEN,))):
            self.rules.note(name, dims, FINITE)
        for state in self.spec.states:
            if state.name in self.form.anew:
                for name in (state.name, f"{state.name}_prev"):
                    self.rules.note(name, (TOKEN, *state.dims), FINITE)
        for name in self.first.values():
            self.rules.note(name, (), FINITE)
        self.by_token.add(self.unit)
        yield from self._marks()
        for part in self.form.parts:
            match part:
                case Begun() | Opened():
                    yield self._open(part)
                case Read():
                    yield self._read(part)
                case _:
                    step = self._statement(part)
                    yield step if isinstance(step, Set) else self._anew(step)
            yield from self._written()
        for advanced in self.form.advanced:
            yield from self._advance(advanced)

    def _marks(self) -> Iterator[Set]:
        """Where a token is the one that writes, where it is the last one of the piece, and where the first."""
        same = Compare("==", Lane(TOKEN, (TOKEN,)), Lane(WRITTEN, (WRITTEN,)), (TOKEN, WRITTEN))
        yield Set(self.unit, Select(same, ONE, ZERO, (TOKEN, WRITTEN)))
        inside = Masked(ONE, TOKEN, 0.0, (TOKEN,))
        yield Set(self.last_row, Arithmetic("-", inside, Shifted(inside, ZERO, TOKEN, True, (TOKEN,)), (TOKEN,)))
        yield Set(self.first_row, Select(Compare("==", Lane(TOKEN, (TOKEN,)), Whole(0), (TOKEN,)), ONE, ZERO, (TOKEN,)))

    def _anew(self, walk: Walk) -> Walk:
        return replace(walk, anew=walk.state.name in self.form.anew)

    def _open(self, part: Begun | Opened) -> Set:
        """A state that stands still, or whether one is opened: of states before the piece, and of its first token."""
        value = self.rules.mask(self._of_first(self._lower(part.value)))
        self.rules.assign(part.target, value)
        if isinstance(part, Begun):
            self.rules.note(part.target, (), FINITE)
        return Set(part.target, value)

    def _of_first(self, tile: Tile) -> Tile:
        """`tile` at the first token of a piece, and of states before it."""
        match tile:
            case StateTile(name, _, dims):
                known = self.before.get(name)
                return Value(self.first[name] if known is None else known.before, "local", dims)
            case Value(name, kind, dims) if name in self.by_token:
                row = Product((self._mark(self.first_row), Value(name, kind, (TOKEN, *dims))), (TOKEN, *dims))
                return Sum(row, TOKEN, dims)
        return rebuild(tile, self._of_first)

    def _read(self, read: Read) -> Set:
        """What tokens read of matrices, and of what tokens of the piece have written."""
        vector = self._row(read.vector)
        if TOKEN not in vector.dims:
            raise NoKernel(f"all tokens read by the same `{read.vector}`", read.span)
        terms = [self._weighted(number, self._product(vector, self._matrix(of), read.dim)) for of, number in read.bases]
        for name, number in read.rows:
            left, right = self._sides(self.rows[name], read.dim)
            scores = self._weighted(number, self._product(vector, left, read.dim))
            terms.append(self._product(scores, right, WRITTEN))
        return self._set(read.target, self._total(terms))

    def _advance(self, advanced: Advanced) -> Iterator[Set]:
        """A matrix after the piece: what tokens have written, and matrices before it, by numbers of the last token."""
        state = advanced.state
        terms: list[Tile] = []
        for of, name in (*advanced.bases, *advanced.rows):
            assert name is not None
            dims = next(each.dims for each in self.spec.states if each.name == name)
            ends = fresh(f"{name}_end", self.taken)
            last = Product((self._mark(self.last_row), Value(name, "local", (TOKEN, *dims))), (TOKEN, *dims))
            yield self._set(ends, Sum(last, TOKEN, dims))
            self.rules.note(ends, dims, FINITE)
            number = Value(ends, "local", dims)
            if of in self.rows:
                left, right = self._sides(self.rows[of], self._sorted(state.dims)[0])
                terms.append(self._product(left, Product((number, right), right.dims), WRITTEN))
            else:
                terms.append(Product((number, self._matrix(of)), self._sorted(state.dims)))
        value = self.rules.mask(self._total(terms))
        yield self._set(self.before[state.name].after, cleared(self.rules, self.order, value, *state.dims))

    # ------------------------------------------------------------------------------------------------------------ tiles

    def _set(self, target: str, value: Tile) -> Set:
        value = self.rules.mask(value)
        self.rules.assign(target, value)
        if TOKEN in value.dims:
            self.by_token.add(target)
        return Set(target, value)

    def _sorted(self, dims: Dims) -> Dims:
        return tuple(dim for dim in self.order if dim in dims)

    def _mark(self, name: str) -> Value:
        return Value(name, "local", (TOKEN,))

    def _row(self, name: str) -> Value:
        """What a name is for each token, or for all of them."""
        kind, dims = self._declared_as(name)
        return Value(name, kind, (TOKEN, *dims) if name in self.by_token else dims)

    def _declared_as(self, name: str) -> tuple[ValueKind, Dims]:
        for decl in self.spec.inputs:
            if decl.name == name:
                return "input", decl.dims
        for param in self.spec.params:
            if param.name == name:
                return "param", param.dims
        for derived in self.spec.derived:
            if derived.name == name:
                return "derived", derived.value.dims
        parts = (part for part in self.form.update if isinstance(part, Assign))
        return "local", next(part.value.dims for part in parts if part.target == name)

    def _matrix(self, name: str) -> Value:
        """A matrix in a piece: as it is before, or what it has been opened to be."""
        carried = self.before[name]
        called = carried.after if name in self.form.opened else carried.before
        return Value(called, "local", self._sorted(carried.state.dims))

    def _written(self) -> Iterator[Set]:
        """Rows that are known by now, with zeros for all that pads a piece."""
        known = {*self.by_token, *(decl.name for decl in self.spec.inputs)}
        for name in dict.fromkeys(name for row in self.rows.values() for name in (row.left, row.right)):
            if name in self.writes or name not in known:
                continue
            rows = self._row(name)
            cleared_rows = cleared(self.rules, self.order, rows, *rows.dims)
            self.writes[name] = rows
            if cleared_rows != rows:
                self.writes[name] = Value(fresh(f"{name}_written", self.taken), "local", rows.dims)
                yield self._set(self.writes[name].name, cleared_rows)
            self.rules.note(self.writes[name].name, rows.dims, 0.0)

    def _sides(self, row: Row, dim: str) -> tuple[Tile, Tile]:
        """What tokens have written, along an axis of its own: the side over a dim, and the other one."""
        if not {row.left, row.right} <= self.writes.keys():
            raise NoKernel("all tokens write the same row", self.form.first.span)
        sides = [self.writes[name] for name in (row.left, row.right)]
        one, other = (Along(side, (WRITTEN, *side.dims[1:])) for side in sides)
        return (one, other) if dim in one.dims else (other, one)

    def _product(self, left: Tile, right: Tile, dim: str) -> Tile:
        dims = self._sorted((*left.dims, *right.dims))
        dims = tuple(d for d in dims if d != dim)
        return MatMul(left, right, dim, dims) if dims[0] in left.dims else MatMul(right, left, dim, dims)

    def _weighted(self, number: str | None, tile: Tile) -> Tile:
        """`tile` times numbers: those of a token, or of what others have written."""
        return tile if number is None else Product((self._row(number), tile), tile.dims)

    def _total(self, terms: list[Tile]) -> Tile:
        total = terms[0]
        for term in terms[1:]:
            total = Arithmetic("+", total, term, self._sorted((*total.dims, *term.dims)))
        return total


class _BackwardPlanner(BackwardPlanner, _Planner):
    """Transposes the statements of the forward."""

    def __init__(self, forward: PieceKernelPlan) -> None:
        super().__init__(forward)
        self.pieces = forward
        begun = (name for part in self.form.parts if isinstance(part, Begun) for name in (part.target, part.first))
        marks = {self.unit, self.last_row, self.first_row, *begun}
        self.t = Transposition(self.order, self.t.fixed | marks, self.t.numbers)

    def plan_backward(self) -> PieceBackwardPlan:
        for carried in self.carried:
            gradient = Value(carried.gradient, "local", self._sorted(carried.state.dims))
            self.rules.note(carried.gradient, gradient.dims, 0.0)
            self.found[carried.after] = gradient
        once, chunk = self.transposed()
        parts = with_parts([with_tiles(action, self._bare) for action in chunk], self.taken)
        return PieceBackwardPlan(self.pieces, once, parts, frozenset(self.taken))

    def _bare(self, tile: Tile) -> Tile:
        """`tile` without masks over what is zero anyway."""
        tile = rebuild(tile, self._bare)
        if isinstance(tile, Masked) and tile.fill == 0 and tile.dims == tile.value.dims:
            return tile.value if self.rules.padding(tile.value, frozenset((tile.dim,))) == 0 else tile
        return tile

    def _back_through(self, name: str, value: Tile) -> None:
        """The gradient of a product is zero in all lanes that pad it: then those of its matrices are."""
        if name in self.found and TOKEN in value.dims and any(isinstance(part, MatMul) for part in tiles_in(value)):
            found = self.found[name]
            if set(found.dims) == set(value.dims):
                bound = self._bound(f"d{name}", cleared(self.rules, self.order, found, *value.dims))
                self.found[name] = bound
                if isinstance(bound, Value):
                    self.rules.note(bound.name, bound.dims, 0.0)
        super()._back_through(name, value)

    def _zero_lanes(self, walk: Walk) -> tuple[str, ...]:
        """Where nothing has been written, no number of it has a gradient."""
        return () if walk.anew else super()._zero_lanes(walk)

    def _leave(self) -> None:
        """The gradients of states before the piece: of those that are scanned, what has opened others adds to them."""
        for back in [action for action in self.actions if isinstance(action, WalkBack)]:
            found = self.found.pop(self.first[back.state.name], None)
            if found is not None:
                after = Value(back.after, "local", self._sorted(back.state.dims))
                self.actions.append(Set(back.after, self.t.plus(after, self.rules.mask(found))))
        before = [(carried.gradient, self._before(carried)) for carried in self.carried]
        self.actions += [Set(target, value) for target, value in before]

    def _before(self, carried: Carried) -> Tile:
        """The gradient of a state before the piece, under a name of its own: others need what it has been."""
        dims = self._sorted(carried.state.dims)
        value = cleared(self.rules, self.order, self.rules.mask(self.found.pop(carried.before, ZERO)), *dims)
        name = fresh(f"{carried.gradient}_before", self.taken)
        self.actions.append(Set(name, value if value.dims == dims else Spread(value, dims)))
        return Value(name, "local", dims)
