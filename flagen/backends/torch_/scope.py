"""How a spec's names are written inside the public functions: what is prepared before the recurrence runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from flagen.backends.text import tuple_of
from flagen.backends.torch_.printer import Code, Level, Printer
from flagen.diagnostics import InternalError
from flagen.spec.model import Expr, Index, Name, Param, Repeat, Spec, walk


@dataclass(frozen=True)
class Scope:
    """The names of a spec where whole sequences are in hand: inputs [batch, tokens, (steps,) heads, *dims]."""

    spec: Spec

    def code(self, expr: Expr) -> Code:
        """How the name `expr` is written."""
        if isinstance(expr, Index):
            return Code(self.places(expr.dim), expr.dims, "constant")
        if not isinstance(expr, Name):
            raise InternalError(f"a state has no value outside the recurrence: {expr}")
        level = self.level(expr)
        if expr.kind == "size":
            if self.spec.steps and expr.name == self.spec.steps.symbol:
                return Code(self.spec.steps.argument, (), "number")
            return Code(f"args.{expr.name}", (), "number")
        return Code(expr.name, expr.dims, level)

    def places(self, dim: str) -> str:
        """What the places along `dim` are called."""
        name = f"index_{dim}"
        while name in self.names:
            name += "_"
        return name

    @property
    def names(self) -> frozenset[str]:
        """Every name that the spec declares or assigns."""
        spec = self.spec
        blocks = (s.body if isinstance(s, Repeat) else (s,) for s in (*spec.update, *spec.output))
        assigned = {statement.target for block in blocks for statement in block}
        declared = {d.name for group in (spec.states, spec.inputs, spec.params, spec.derived) for d in group}
        counted = {spec.steps.argument} if spec.steps else set()
        return frozenset(assigned | declared | counted | set(spec.dims))

    def level(self, name: Name) -> Level:
        """What the value of `name` depends on."""
        spec = self.spec
        match name.kind:
            case "size":
                return "number"
            case "head":
                return "constant"
            case "local":
                return "token"
            case "input":
                return next(i.per for i in spec.inputs if i.name == name.name)
            case "param":
                return "constant" if next(p for p in spec.params if p.name == name.name).is_tensor else "number"
            case "derived":
                derived = next(d for d in spec.derived if d.name == name.name)
                return self.level_of(derived.value)

    def level_of(self, expr: Expr) -> Level:
        """What the value of `expr` depends on: the most any of its names does."""
        order: tuple[Level, ...] = ("number", "constant", "token", "step")
        levels = [self.level(node) for node in walk(expr) if isinstance(node, Name)]
        levels += ["constant" for node in walk(expr) if isinstance(node, Index)]
        return max(levels, key=order.index, default="number")

    def printer(self) -> Printer:
        return Printer(self.code)


def prelude(scope: Scope, used: Iterable[Expr]) -> tuple[list[str], Printer]:
    """Lines that bring what `used` names into scope: defaults, promoted inputs, `let`, `decay` and `gate` values.

    Returns them with the printer that wrote them, which knows what they need.
    """
    spec, printer = scope.spec, scope.printer()
    used = tuple(used)
    names = names_used(spec, used)
    lines: list[str] = []
    lines += defaults(scope, {param.name for param in spec.params if not param.is_tensor} & names)
    inputs = [i.name for i in spec.inputs if i.name in names]
    if inputs:
        lines.append(f"{_targets(inputs)} = args.promote({', '.join(inputs)})")
    steps = [i.name for i in spec.inputs if i.name in names and i.per == "step"]
    if steps and spec.steps:
        lines.append(f"{_targets(steps)} = args.by_step({', '.join((spec.steps.argument, *steps))})")
    lines += [_tensor_param(param, printer) for param in spec.params if param.is_tensor and param.name in names]
    if "head" in names:
        lines.append("head = torch.arange(args.HV, dtype=args.dtype, device=args.device)")
    for dim in places_used(spec, used, names):
        lines.append(f"{scope.places(dim)} = torch.arange(args.{dim}, dtype=args.dtype, device=args.device)")
    for derived in spec.derived:
        if derived.name in names:
            lines.append(f"{derived.name} = {printer.print(derived.value).text}")
    return lines, printer


def defaults(scope: Scope, names: Collection[str]) -> Iterator[str]:
    """Lines that give the params among `names` their default where a call does not."""
    printer = scope.printer()
    for param in scope.spec.params:
        if param.name in names and param.default is not None:
            value = printer.print(param.default).text
            yield f"if {param.name} is None:"
            yield f"    {param.name} = {_full(param, value) if param.is_tensor else value}"


def _full(param: Param, value: str) -> str:
    """A tensor param that is `value` throughout."""
    shape = tuple_of(f"args.{axis}" for axis in ((("HV",) if param.per_head else ()) + param.dims))
    return f"torch.full({shape}, {value}, dtype=args.dtype, device=args.device)"


def _tensor_param(param: Param, printer: Printer) -> str:
    """A tensor param in the computing dtype, or its default."""
    given = f"{param.name}.to(args.dtype)"
    if param.default is None:
        return f"{param.name} = {given}"
    default = _full(param, printer.print(param.default).text)
    return f"{param.name} = {default} if {param.name} is None else {given}"


def _targets(names: list[str]) -> str:
    return f"({names[0]},)" if len(names) == 1 else ", ".join(names)


def places_used(spec: Spec, used: Iterable[Expr], names: Collection[str]) -> tuple[str, ...]:
    """The dims along which places are counted, in `used` and the definitions of `names`."""
    definitions = (derived.value for derived in spec.derived if derived.name in names)
    every = (node for expr in (*used, *definitions) for node in walk(expr))
    return tuple(dict.fromkeys(node.dim for node in every if isinstance(node, Index)))


def names_used(spec: Spec, used: Iterable[Expr]) -> set[str]:
    """Every name that `used` needs, through the definitions of derived names."""
    names: set[str] = set()
    waiting = list(used)
    definitions = {d.name: d.value for d in spec.derived}
    while waiting:
        for node in walk(waiting.pop()):
            if isinstance(node, Name) and node.name not in names:
                names.add(node.name)
                if node.kind == "derived":
                    waiting.append(definitions[node.name])
    return names
