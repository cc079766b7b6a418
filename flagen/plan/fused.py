"""The plan of `fused_recurrent_<name>`: one kernel that walks the tokens of a sequence with the state in registers.

Decided from the spec alone: what is evaluated when (`flagen.plan.schedule`), which dim of the state is split over
programs (`flagen.plan.split`), and which lanes have to be masked (`flagen.plan.padding`). A backend prints the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from flagen.plan.lowering import NoTile, TooManyDims
from flagen.plan.padding import PaddingRules
from flagen.plan.schedule import Action, Keep, Load, Schedule, Set, Steps, declared_names, make_schedule
from flagen.plan.show import show
from flagen.plan.split import Split, choose_split
from flagen.plan.tiles import MAX_DIMS, Head, MatMul, Size
from flagen.plan.unavailable import Unavailable
from flagen.spec.model import Dims, Spec

MAX_WHOLE = 3
"""How many matrices a program may hold of which it has not just a block: with five of 128 by 128 an assembler works
for a quarter of an hour on what it then keeps in memory."""


@dataclass(frozen=True)
class FusedPlan:
    """What a program of the kernel does, and which part of the state it owns.

    `order` is the order of a tile's axes. Without a `split` a program owns the whole state of its head.
    """

    spec: Spec
    order: Dims
    schedule: Schedule
    split: Split | None
    few: frozenset[str] = frozenset()
    """The dims of which there are a few, as rows of a token are: a matrix over one is no larger than some vectors."""

    def dump(self) -> str:
        """The plan as text: what a program owns, then what it does."""
        return "\n".join((self._owned(), *_action_lines(self.schedule)))

    def _owned(self) -> str:
        if self.split is None:
            return "a program owns the whole state of a head"
        shares = "; the output is the sum of what the blocks put out" if self.split.partial else ""
        return f"a program owns a block of {self.split.dim} of the state of a head{shares}"

    @property
    def names(self) -> frozenset[str]:
        """Every name that the spec declares or the plan made up."""
        return frozenset((*declared_names(self.spec), *(action.target for action in self.schedule.sets())))

    @property
    def tiles(self) -> tuple[Dims, ...]:
        """The dims of everything of a state's size that a program holds at one time."""
        kept = {action.state for action in self.schedule.token if isinstance(action, Keep)}
        states = [state.dims for state in self.spec.states]
        previous = [state.dims for state in self.spec.states if state.name in kept]
        inputs = [decl.dims for decl in self.spec.inputs if len(decl.dims) == MAX_DIMS]
        params = [decl.dims for decl in self.spec.params if len(decl.dims) == MAX_DIMS]
        return (*states, *previous, *inputs, *params)

    @property
    def whole_matrices(self) -> int:
        """How many matrices of which a program has not just a block it holds while it walks, those of a few rows
        aside."""
        made = (action.value.dims for action in self.schedule.once if isinstance(action, Set))
        own = {*self.few, self.split.dim} if self.split else self.few
        return sum(len(dims) == MAX_DIMS and own.isdisjoint(dims) for dims in (*self.tiles, *made))

    @property
    def matrix_dims(self) -> frozenset[str]:
        """Dims of the operands of matrix products, which want blocks of a least size."""
        products = (tile for tile in self.schedule.evaluated() if isinstance(tile, MatMul))
        return frozenset(dim for product in products for dim in (*product.dims, product.dim))

    @property
    def reads_head(self) -> bool:
        """Whether an expression names `head`."""
        return any(isinstance(tile, Head) for tile in self.schedule.evaluated())

    @property
    def needs_key_heads(self) -> bool:
        """Whether the kernel has to know H: an input has a row for each key head, or an expression names the size."""
        named = any(isinstance(tile, Size) and tile.name == "H" for tile in self.schedule.evaluated())
        return named or any(decl.heads == "H" for decl in self.spec.inputs)


def plan_fused_recurrent(spec: Spec, few: frozenset[str] = frozenset()) -> FusedPlan | Unavailable:
    """The plan for `spec`, or why its state cannot be kept in registers this way; `few`: the dims of which there are a
    few."""
    for state in spec.states:
        if len(state.dims) > MAX_DIMS:
            reason = (
                f"`{state.name}` has {len(state.dims)} dims; a kernel keeps states of at most {MAX_DIMS} in registers"
            )
            return Unavailable(reason, state.span)
    try:
        schedule = make_schedule(spec)
    except TooManyDims as wide:
        reason = f"needs an intermediate over [{', '.join(wide.dims)}]; a kernel holds at most {MAX_DIMS} dims at once"
        return Unavailable(reason, wide.span)
    except NoTile as whole:
        return Unavailable(whole.reason, whole.span)
    split, schedule = choose_split(spec, schedule)
    plan = FusedPlan(spec, spec.axes, _masked(spec, schedule), split, few)
    if (count := plan.whole_matrices) > MAX_WHOLE:
        own = f" beside its blocks of {split.dim}" if split else ""
        reason = (
            f"keeps {count} matrices whole{own}, states, params and what is made of them; {MAX_WHOLE} fit registers"
        )
        return Unavailable(reason, spec.states[0].span)
    return plan


def _masked(spec: Spec, schedule: Schedule) -> Schedule:
    """`schedule` with padding masked wherever it would leak."""
    rules = PaddingRules(spec)
    rules.settle((action.target, action.value) for action in schedule.sets())

    def mask(action: Set) -> Set:
        value = rules.mask(action.value)
        rules.assign(action.target, value)
        return replace(action, value=value)

    return schedule.rewritten(mask)


def _action_lines(schedule: Schedule) -> Iterator[str]:
    if schedule.once:
        yield "once:"
        yield from _lines(schedule.once)
    yield "for each token:"
    yield from _lines(schedule.token)


def _lines(actions: Iterable[Action], indent: str = "    ") -> Iterator[str]:
    for action in actions:
        match action:
            case Load(source):
                yield f"{indent}load {source.name} [{', '.join(source.dims)}]"
            case Set(target, value):
                yield f"{indent}{target} = {show(value)}"
            case Keep(state):
                yield f"{indent}{state}_prev = {state}"
            case Steps(body):
                yield f"{indent}for each micro-step:"
                yield from _lines(body, indent + "    ")
