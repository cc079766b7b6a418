"""The actions of a recurrent backward's kernels as source lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flagen.backends.text import tuple_of
from flagen.backends.triton_.axes import Axes
from flagen.backends.triton_.lines import names_in
from flagen.backends.triton_.printer import Printer
from flagen.diagnostics import InternalError
from flagen.plan.backward_actions import Action, Add, ButAtEnd, Give, Gradient, Leave, Steps, Take, Vector, Zero
from flagen.plan.schedule import Keep, Load, Set
from flagen.spec.model import Dims, Input, Param, Spec

INDENT = "    "


class ActionWriter:
    """Writes actions of a kernel whose programs own blocks of a dim, if it is `blocked`.

    output_gradient: the vector that comes from outside; kernels leave the others for one another.
    row_of_params: the row in which a program stores its share of the gradient of a param.
    """

    def __init__(self, spec: Spec, axes: Axes, output_gradient: Vector, row_of_params: str, *, blocked: bool) -> None:
        self.spec, self.axes, self.blocked = spec, axes, blocked
        self.output_gradient, self.row_of_params = output_gradient, row_of_params
        self.print = Printer(axes)
        self.dims: dict[str, Dims] = {}
        """The dims of the tiles that have a name so far."""

    def lines(self, actions: Iterable[Action]) -> Iterator[str]:
        """The source of `actions`, one statement a line."""
        for action in actions:
            self._note(action)
            match action:
                case Load(source):
                    yield self.loaded(source.name, self._place(source), source.dims)
                case Take(vector):
                    yield self.loaded(vector.name, self._row(vector), vector.dims, self._cast(vector))
                case Set(target, value):
                    yield f"{target} = {self.print.assigned(value)}"
                case Add(target, value, dims):
                    yield f"{target} += {self.print.over(value, self.axes.sorted(dims))}"
                case Zero(target, dims):
                    yield f"{target} = {self.zeros(dims)}"
                case Keep(state):
                    yield f"{state}_prev = {state}"
                case Leave(vector):
                    yield self.stored(f"{vector.name}_ptr", self._row(vector), vector.dims, vector.name)
                case Give(gradient, dims):
                    pointer = f"{gradient.called}_ptr"
                    whole = self.axes.spread(gradient.called, dims, self.axes.sorted(gradient.dims))
                    cast = f"{whole}.to({pointer}.dtype.element_ty)"
                    yield f"if {pointer} is not None:"
                    yield INDENT + self.stored(pointer, self._row_of_gradient(gradient), gradient.source.dims, cast)
                case Steps(body, backwards):
                    yield from self._steps(body, backwards)
                case _:
                    yield from self.other(action)

    def _note(self, action: Action) -> None:
        """Remember over which dims a tile is; what is added to one, or stored, says over which it takes it to be.

        Raises:
            InternalError: it is over others: its axes would meet the wrong ones.
        """
        match action:
            case Set(target, value):
                self.dims[target] = value.dims
            case Zero(target, dims):
                self.dims[target] = self.axes.sorted(dims)
            case Take(vector):
                self.dims[vector.name] = self.axes.sorted(vector.dims)
            case Add(target, _, dims):
                self._check(target, dims)
            case ButAtEnd(target, value):
                self._check(target, value.dims)
            case Leave(vector):
                self._check(vector.name, vector.dims)
            case Give(gradient, dims):
                self._check(gradient.called, dims)

    def _check(self, name: str, dims: Dims) -> None:
        if self.dims.get(name, self.axes.sorted(dims)) != self.axes.sorted(dims):
            raise InternalError(f"`{name}` is over {self.dims[name]}, and is used as if it were over {dims}")

    def other(self, action: Action) -> Iterator[str]:
        """The source of an action that only some kernels have."""
        raise InternalError(f"no source for {action!r}")

    def _steps(self, body: tuple[Action, ...], backwards: bool) -> Iterator[str]:
        assert self.spec.steps is not None
        n = self.spec.steps.symbol
        lines = list(self.lines(body))
        if not lines:
            return
        # Unrolled, so that the loads of one step run under the arithmetic of the step before.
        yield f"for micro_step in tl.static_range({n}):"
        step = f"({n} - 1 - micro_step)" if backwards else "micro_step"
        if "row" in names_in(*lines):
            yield f"{INDENT}row = token * {n} + {step}"
        yield from (INDENT + line for line in lines)

    def zeros(self, dims: Dims) -> str:
        blocks = [f"BLOCK_{dim}" for dim in self.axes.sorted(dims)]
        return f"tl.zeros({tuple_of(blocks)}, tl.float32)" if blocks else "tl.full((), 0.0, tl.float32)"

    def loaded(self, name: str, row: str, dims: Dims, cast: str = ".to(tl.float32)") -> str:
        mask = f", mask={self.axes.within(dims)}, other=0.0" if dims else ""
        return f"{name} = tl.load({name}_ptr + {self.axes.address(row, dims)}{mask}){cast}"

    def stored(self, pointer: str, row: str, dims: Dims, value: str) -> str:
        mask = f", mask={self.axes.within(dims)}" if dims else ""
        return f"tl.store({pointer} + {self.axes.address(row, dims)}, {value}{mask})"

    def _cast(self, vector: Vector) -> str:
        """What kernels leave for one another is in float32; the gradient of the output comes as it is."""
        return ".to(tl.float32)" if vector == self.output_gradient else ""

    # ------------------------------------------------------------------------------------------------------------ rows

    def _place(self, source: Input | Param) -> str:
        """The row of a tensor of the call."""
        if isinstance(source, Param):
            return "value_head" if source.per_head else ""
        heads, head = ("HV", "value_head") if source.heads == "HV" else ("H", "key_head")
        return f"{self._token(source.per)} * {heads} + {head}"

    def _row(self, vector: Vector) -> str:
        row = "segment_row" if vector.per == "segment" else f"{self._token(vector.per)} * HV + value_head"
        return self.share(row) if vector.shared else row

    def _row_of_gradient(self, gradient: Gradient) -> str:
        source = gradient.source
        row = f"{self._token(source.per)} * HV + value_head" if isinstance(source, Input) else self.row_of_params
        if gradient.loops > 1:
            row = f"({row}) * {gradient.loops} + {gradient.loop}"
        return self.share(row) if gradient.shared else row

    def _token(self, per: str) -> str:
        return "row" if per == "step" else "token"

    def share(self, row: str) -> str:
        """The row of the share that a block has in it."""
        if not self.blocked:
            return row
        return f"{row if row.isidentifier() else f'({row})'} * blocks + block"
