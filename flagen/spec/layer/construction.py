"""A layer as it is constructed with one config: the values of its dims, its modules, the shapes of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TypeVar

from flagen.spec.layer.expressions import bind, draws
from flagen.spec.layer.findings import Findings
from flagen.spec.layer.model import Binary, Call, Constant, Expr, IfElse, Init, Layer, LayerParam, Module, Name, Unary
from flagen.spec.layer.numbers import NoValue, Numbers, shown
from flagen.spec.layer.shapes import shown as shape_shown
from flagen.spec.layer.vocabulary import CONSTRUCTORS, RULES
from flagen.spec.layer.words import Constructor
from flagen.spec.names import quoted

_Item = TypeVar("_Item")

_SIZES = frozenset("inner outer rank size width group groups dim head_dim nu".split())
"""The parameters of constructors that are sizes."""
_TEXTS = frozenset(("activation",))


@dataclass(frozen=True)
class Made:
    """A module as it is made: its constructor, and what that is given by name."""

    word: Constructor
    given: Mapping[str, Constant]

    def weights(self) -> dict[str, tuple[int, ...]]:
        return self.word.weights(self.given)


@dataclass
class Construction:
    """What the constructor of a layer makes with `config`; what does not fit is in `findings`."""

    layer: Layer
    config: Mapping[str, Constant]
    findings: Findings = field(default_factory=Findings)
    numbers: Numbers = field(init=False)
    params: dict[str, tuple[int, ...]] = field(default_factory=dict)
    modules: dict[str, Made | None] = field(default_factory=dict)
    """By name; None for what is not there with this config."""
    shared: dict[str, str] = field(default_factory=dict)
    """Modules that are another one, by its name."""
    started: dict[str, bool] = field(default_factory=dict)
    """Of every path of `init`, whether there is such a parameter; no word of it where there is no such module."""

    def __post_init__(self) -> None:
        values: dict[str, Constant] = dict(self.config)
        self.numbers = Numbers(values)
        try:
            for dim in self.layer.dims:
                values[dim.name] = self.numbers.of(dim.value)
            for require in self.layer.require:
                if not self.numbers.of(require.condition):
                    message = f"what is required does not hold: {quoted(require.text)}"
                    self.findings.add(
                        "E803", require.span, message, "it holds with the defaults of the config, at least"
                    )
        except NoValue as problem:
            self.findings.no_value(problem)
        if not self.findings.found:
            self._each(self.layer.attributes, lambda attribute: self.numbers.of(attribute.value))
            self._each(self.layer.params, self._param)
            self._each(self.layer.modules, self._module)
            self._each(self.layer.init, self._module_init)

    def _each(self, items: Iterable[_Item], make: Callable[[_Item], object]) -> None:
        for item in items:
            try:
                make(item)
            except NoValue as problem:
                self.findings.no_value(problem)

    def count(self) -> int:
        """The number of parameters; those of a module with two names count once."""
        shared = tuple(f"{name}." for name in self.shared)
        return sum(prod(shape) for name, shape in self.weights().items() if not name.startswith(shared))

    def weights(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters, by the names and in the order of the state_dict."""
        shapes = dict(self.params)
        for name, made in self.modules.items():
            if made is not None:
                shapes |= {f"{name}.{below}": shape for below, shape in made.weights().items()}
        return shapes

    def _param(self, param: LayerParam) -> None:
        if param.condition is not None and not self.numbers.of(param.condition):
            return
        shape = tuple(self.numbers.size(size) for size in param.shape)
        self.params[param.name] = shape
        self._start(param.init, shape)

    def _module(self, module: Module) -> None:
        self.modules[module.name] = None
        choice = self._chosen(module.value)
        if isinstance(choice, Name):
            self.modules[module.name] = self.modules.get(choice.name)
            self.shared[module.name] = choice.name
        if not isinstance(choice, Call):
            return
        word = CONSTRUCTORS[choice.name]
        bound, _ = bind(choice.args, choice.keywords, word.given)
        given: dict[str, Constant] = {
            parameter.name: self.numbers.of(bound[parameter.name]) if parameter.name in bound else parameter.default
            for parameter in word.given
        }
        for name, expr in bound.items():
            if name in _SIZES:
                given[name] = self.numbers.size(expr)
            elif name in _TEXTS and given[name] is not None and not isinstance(given[name], str):
                raise NoValue(expr.span, f"`{name}` is {shown(given[name])}, and no text")
        self.modules[module.name] = Made(word, given)

    def _chosen(self, value: Expr) -> Expr:
        while isinstance(value, IfElse):
            value = value.then if self.numbers.of(value.condition) else value.otherwise
        return value

    def _module_init(self, init: Init) -> None:
        name, _, below = init.path.partition(".")
        made = self.modules.get(name)
        if made is None:
            return
        weights = made.weights()
        self.started[init.path] = below in weights
        if below in weights and (init.condition is None or self.numbers.of(init.condition)):
            self._start(init.value, weights[below])

    def _start(self, init: Expr, shape: tuple[int, ...]) -> None:
        """Whether what a parameter starts from has a value."""
        match init:
            case Call(name, "init", args, keywords):
                rule = RULES[name]
                if rule.whole and len(shape) < 2:
                    message = f"`{name}` fills a matrix, and the shape is {shape_shown(shape)}"
                    self.findings.add("E808", init.span, message)
                for arg in (*args, *(value for _, value in keywords)):
                    self._start(arg, shape)
            case IfElse(condition, then, otherwise):
                self._start(then if self.numbers.of(condition) else otherwise, shape)
            case Binary(_, left, right) if draws(init):
                self._start(left, shape)
                self._start(right, shape)
            case Unary(_, value) if draws(init):
                self._start(value, shape)
            case _ if not draws(init):
                self.numbers.number(init)
