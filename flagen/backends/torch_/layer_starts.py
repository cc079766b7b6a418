"""How the parameters of a layer start, and which of them no weight decay reaches."""

from __future__ import annotations

from collections.abc import Iterator

from flagen.backends.torch_.layer_blocks import block, path
from flagen.backends.torch_.layer_names import LayerNames
from flagen.backends.torch_.layer_printer import LayerPrinter
from flagen.plan.layer import Choose, LayerPlan, Set, Step, conditions_of, in_order, may_have
from flagen.spec.layer.model import Call, Expr, IfElse, Init, Name


class Starts:
    """Writes what `reset_parameters` does, and the end of the constructor."""

    def __init__(self, plan: LayerPlan, names: LayerNames) -> None:
        self.plan, self.layer, self.names = plan, plan.layer, names
        self.printer = LayerPrinter(names.elsewhere, names.computed)

    def resets(self) -> Iterator[str]:
        """How the parameters start that are the layer's own, or that a module would start otherwise."""
        yield from block(self._starts(), self._start, self.printer)

    def _starts(self) -> tuple[Step, ...]:
        steps: list[Step] = list(self.plan.params)
        steps += (step for init in self.layer.init for step in self._started(init))
        return in_order(map(_chosen, steps))

    def _started(self, init: Init) -> tuple[Step, ...]:
        """The start of a module's parameter, where there is such."""
        step: Step = Set((init.path,), init.value)
        if init.condition is not None:
            step = Choose(init.condition, (step,), ())
        name, _, below = init.path.partition(".")
        return self._where(self.names.modules[name], below, step) if name in self.names.modules else (step,)

    def _where(self, module: Expr, below: str, step: Step) -> tuple[Step, ...]:
        """`step` where a module has the parameter called `below`."""
        match module:
            case IfElse(condition, then, otherwise):
                choice = self._where(then, below, step), self._where(otherwise, below, step)
                if choice[0] == choice[1]:
                    return choice[0]
                return (Choose(condition, *choice),)
            case Name(name):
                return self._where(self.names.modules[name], below, step)
            case Call():
                for condition in conditions_of(module, below):
                    step = Choose(condition, (step,), ())
                return (step,) if may_have(module, below) else ()
            case _:
                return ()

    def _start(self, step: Set) -> str:
        return self.printer.start(path(step.targets[0]), step.value)

    def unmarked(self) -> list[str]:
        """The lines that take parameters out of weight decay."""
        always = [f"self.{p.name}" for p in self.layer.params if not p.weight_decay and p.condition is None]
        lines = [f"no_weight_decay({', '.join(always)})"] if always else []
        rest: list[Step] = [
            Choose(p.condition, (Set((p.name,), p.init),), ())
            for p in self.layer.params
            if not p.weight_decay and p.condition is not None
        ]
        rest += [step for init in self.layer.init if not init.weight_decay for step in self._started(init)]
        lines += block(in_order(rest), _no_weight_decay, self.names.constructor_printer())
        return lines


def _chosen(step: Step) -> Step:
    """A start that is chosen by a condition, as a block."""
    if isinstance(step, Set) and isinstance(step.value, IfElse):
        then, otherwise = Set(step.targets, step.value.then), Set(step.targets, step.value.otherwise)
        return Choose(step.value.condition, (_chosen(then),), (_chosen(otherwise),))
    if isinstance(step, Choose):
        return Choose(step.condition, tuple(map(_chosen, step.then)), tuple(map(_chosen, step.otherwise)))
    return step


def _no_weight_decay(step: Set) -> str:
    return f"no_weight_decay({path(step.targets[0])})"
