"""The constructor of a layer: what it keeps, what it checks, and the parameters and modules that it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeGuard

from flagen.backends.torch_.layer_blocks import block
from flagen.backends.torch_.layer_names import BASE, LayerNames, is_dim
from flagen.backends.torch_.layer_printer import LayerPrinter, literal
from flagen.plan.layer import LayerPlan, Set
from flagen.spec.layer.model import Call, Config, Dim, Expr, Name, Require, walk

_MESSAGE_WIDTH = 72


class Constructor:
    """Writes the constructor's body, once the other methods are written: what they read, it keeps."""

    def __init__(self, plan: LayerPlan, names: LayerNames) -> None:
        self.plan, self.layer, self.names = plan, plan.layer, names
        self.printer = names.constructor_printer()
        self.registered: set[str] = set()

    def lines(self, marks: Callable[[], list[str]]) -> list[str]:
        """The constructor's body, after that of the base class; it ends with `marks`, what is said of parameters that
        are there by then. Dims are locals where something reads them."""
        read = frozenset(self.names.dims)
        while True:
            self.names.read_first.clear()
            self.registered.clear()
            lines = [*self._lines(read), *marks()]
            if self.names.read_first >= read:
                return lines
            read = frozenset(self.names.read_first & read)

    def _lines(self, read: frozenset[str]) -> Iterator[str]:
        yield from self._arguments()
        for config in self.layer.config:
            if config.one_of:
                yield from _one_of(config)
        for config in self.layer.config:
            if config.name not in BASE and config.name not in self.names.attributes and not config.ignored:
                yield f"self.{self.names.attribute_of_config(config.name)} = {config.name}"
        yield from self._required(None)
        for name in self.names.attributes:
            if name in self._asked_later():
                yield f"self._{name} = {name}"
        left = dict(self.names.attributes)
        for dim in self.layer.dims:
            yield from self._dim(dim, read, left)
            yield from self._required(dim)
            for name in [name for name, value in left.items() if self._ready(value, dim)]:
                yield f"self.{name} = {self._attribute_value(left.pop(name))}"
        for name, value in left.items():
            yield f"self.{name} = {self._attribute_value(value)}"
        yield ""
        yield from block(self.plan.params, self._parameter, self.printer)
        yield from block(self.plan.modules, self._registered, self.printer)

    def _arguments(self) -> Iterator[str]:
        """What is checked of arguments before anything is computed from them."""
        needs = self.plan.needs
        always = [f"{name}={name}" for name in needs.sizes if name not in needs.unset]
        if always:
            yield f"check_sizes({', '.join(always)})"
        unset = [f"{name}={name}" for name in needs.sizes if name in needs.unset]
        if unset:
            yield f"check_sizes_or_none({', '.join(unset)})"
        for name, condition in needs.conditional:
            yield f"if {self.printer.text(condition)}:"
            yield f"    check_sizes({name}={name})"
        for config in self.layer.config:
            if config.name in needs.activations:
                optional = config.default is None
                if optional:
                    yield f"if {config.name} is not None:"
                yield f"{'    ' * optional}check_activation({config.name}={config.name})"

    def _required(self, after: Dim | None) -> Iterator[str]:
        """What has to hold, where `after` is the last dim that it is about."""
        for require in self.layer.require:
            if self._last_dim(require.condition) == (None if after is None else after.name):
                yield from self._require(require)

    def _last_dim(self, expr: Expr) -> str | None:
        names = {node.name for node in walk(expr) if isinstance(node, Name) and node.kind == "dim"}
        return next((dim.name for dim in reversed(self.layer.dims) if dim.name in names), None)

    def _asked_later(self) -> set[str]:
        """Configs whose name an attribute has, and that another method asks for itself."""
        expressions = [statement.value for statement in self.layer.forward]
        expressions += [param.init for param in self.layer.params] + [init.value for init in self.layer.init]
        names = (
            node for expr in expressions for node in walk(expr) if isinstance(node, Name) and node.kind == "config"
        )
        return {node.name for node in names if node.name in self.names.attributes}

    def _ready(self, value: Expr, after: Dim) -> bool:
        """Whether `after` is the last dim that an attribute is computed from."""
        return self._last_dim(value) == after.name

    def _attribute_value(self, value: Expr) -> str:
        return LayerPrinter(self.names.in_constructor).text(value)

    def _dim(self, dim: Dim, read: frozenset[str], left: dict[str, Expr]) -> Iterator[str]:
        """A dim as a local, and under the first attribute that is this dim."""
        if isinstance(dim.value, Name) and dim.value.kind == "config":
            if dim.name in self.names.kept_dims:
                yield f"self.{dim.name} = {dim.value.name}"
            return
        attribute = next((n for n, value in left.items() if is_dim(value, dim.name)), None)
        targets = [f"self.{attribute}"] if attribute is not None else []
        if attribute is not None:
            left.pop(attribute)
        elif dim.name in self.names.kept_dims:
            targets.append(f"self.{dim.name}")
        if dim.name in read:
            targets.append(dim.name)
        if targets:
            yield " = ".join((*targets, self._attribute_value(dim.value)))

    def _require(self, require: Require) -> Iterator[str]:
        nodes = [node for node in walk(require.condition) if isinstance(node, Name) and node.kind in ("config", "dim")]
        configs = {self.names.shown(node) for node in nodes if node.kind == "config"}

        def shown(name: Name) -> str:
            found = self.names.shown(name)
            return name.name if name.kind == "dim" and found in configs else found

        names = dict.fromkeys((shown(node), self.names.in_constructor(node)) for node in nodes)
        expected = LayerPrinter(shown, plain=True).text(require.condition).replace('"', "'")
        given = ", ".join(f"{name} = {{{local}}}" for name, local in names)
        yield f"if {self.printer.negated(require.condition)}:"
        if len(expected) + len(given) < _MESSAGE_WIDTH:
            yield f'    raise ValueError(f"expected {expected}, got {given}")'
            return
        yield "    raise ValueError("
        yield f'        "expected {expected}, "'
        yield f'        f"got {given}"'
        yield "    )"

    def _parameter(self, step: Set) -> str:
        (name,) = step.targets
        param = next(param for param in self.layer.params if param.name == name)
        sizes = [self.printer.text(size) for size in param.shape]
        dtype = "" if param.dtype is None else f", dtype=torch.{param.dtype}"
        return f"self.{name} = nn.Parameter(torch.empty({', '.join(sizes)}{dtype}))"

    def _registered(self, step: Set) -> str:
        (name,) = step.targets
        made = {node.name for node in walk(self.names.modules[name]) if _is_module(node)}
        annotation = ": nn.Module" if len(made) > 1 and name not in self.registered else ""
        self.registered.add(name)
        if isinstance(step.value, Name):
            return f"self.{name}{annotation} = self.{step.value.name}"
        assert isinstance(step.value, Call)
        if step.value.name == "shift":
            return ""
        return f"self.{name}{annotation} = {self.printer.constructor(step.value)}"


def _is_module(node: Expr) -> TypeGuard[Call | Name]:
    return (isinstance(node, Call) and node.kind == "constructor") or (isinstance(node, Name) and node.kind == "module")


def _one_of(config: Config) -> Iterator[str]:
    names = [literal(value) for value in config.one_of]
    *others, last = map(repr, config.one_of)
    listed = f"{', '.join(others)} or {last}" if others else last
    yield f"if {config.name} not in ({', '.join(names)}{',' if len(names) == 1 else ''}):"
    if len(listed) + 2 * len(config.name) < _MESSAGE_WIDTH + 10:
        yield f'    raise ValueError(f"{config.name}: expected {listed}, got {{{config.name}!r}}")'
        return
    yield "    raise ValueError("
    yield f'        "{config.name}: expected {listed}, "'
    yield f'        f"got {{{config.name}!r}}"'
    yield "    )"
