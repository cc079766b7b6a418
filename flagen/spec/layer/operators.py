"""The calls of operators in `forward`: what they are given, and whether the shapes of that fit the recurrence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flagen.spec.layer.expressions import bind
from flagen.spec.layer.model import MAX_ITERATIONS, Call, Expr
from flagen.spec.layer.shapes import Shape, shown
from flagen.spec.layer.words import Parameter
from flagen.spec.model import Dims, Repeat, Solution, Spec, sizes_in, walk
from flagen.spec.printer import to_source
from flagen.spec.sizes import size_at


@dataclass(frozen=True)
class Unclear:
    """An argument whose shape is not known."""


Given = Shape | Unclear | int | float | str | None
"""An argument of an operator: the shape of a tensor, or a number."""


def operator_parameters(spec: Spec) -> tuple[Parameter, ...]:
    """What the operators of a spec take that a layer gives them: the inputs, in order; then, by keyword, the params,
    the step count and, where systems are solved, the steps that solve them."""
    inputs = tuple(Parameter(decl.name) for decl in spec.inputs)
    params = tuple(Parameter(decl.name, decl.default is not None) for decl in spec.params)
    steps = (Parameter(spec.steps.argument, spec.steps.default is not None),) if spec.steps else ()
    solving = (Parameter(MAX_ITERATIONS, optional=True),) if _solves(spec) else ()
    return inputs + params + steps + solving


def _solves(spec: Spec) -> bool:
    """Whether a token solves a system of equations."""
    every = (statement.body if isinstance(statement, Repeat) else (statement,) for statement in spec.update)
    values = [assign.value for body in (*every, spec.output) for assign in body]
    values += [entry.value for entry in spec.derived]
    return any(isinstance(part, Solution) for value in values for part in walk(value))


def bind_operator(spec: Spec, call: Call) -> tuple[dict[str, Expr], str]:
    """The arguments of an operator's call by name, and what is wrong with them, or nothing."""
    if len(call.args) > len(spec.inputs):
        names = ", ".join(decl.name for decl in spec.inputs)
        return {}, f"takes {len(spec.inputs)} inputs, ({names}), and is given {len(call.args)}; params go by keyword"
    return bind(call.args, call.keywords, operator_parameters(spec))


@dataclass
class Fit:
    """How the arguments of a call fit the inputs and params of a spec."""

    spec: Spec
    given: Mapping[str, Given]
    sizes: dict[str, int] = field(default_factory=dict)
    """Of dims and heads, as far as arguments have told them."""
    told: dict[str, str] = field(default_factory=dict)
    """Which argument has told a size."""

    differing: set[str] = field(default_factory=set)
    """The dims and heads that two arguments have told differently; said once."""

    def problems(self) -> Iterator[tuple[str, str, str]]:
        """Every argument that does not fit: its name, what is wrong, what to do about it."""
        for decl in self.spec.inputs:
            tokens = self._tokens() if decl.per == "step" else "T"
            yield from self._tensor(decl.name, ("B", tokens), (decl.heads, *decl.dims))
        for param in self.spec.params:
            if param.is_tensor:
                dims = (*(("HV",) if param.per_head else ()), *param.dims)
                if self.given.get(param.name) is not None or param.default is None:
                    yield from self._tensor(param.name, (), dims)
            else:
                yield from self._number(param.name, param.default is not None)
        if self.spec.steps is not None:
            yield from self._number(self.spec.steps.argument, self.spec.steps.default is not None)
        if _solves(self.spec):
            yield from self._number(MAX_ITERATIONS, optional=True)
        yield from self._following()
        h, hv = self.sizes.get("H"), self.sizes.get("HV")
        if h is not None and hv is not None and hv % h:
            hint = f"`{self.told['H']}` has {h} heads; there are as many value heads, or a multiple"
            yield self.told["HV"], f"`{self.told['HV']}` has {hv} heads, and {hv} is no multiple of {h}", hint

    def result(self) -> Shape | None:
        """The shape of the output, where it is known."""
        heads = "HV" if self.spec.has_value_heads else "H"
        sizes = [self.sizes.get(dim) for dim in (heads, *self.spec.output_dims)]
        known = tuple(size for size in sizes if size is not None)
        return ("B", "T", *known) if len(known) == len(sizes) else None

    def _following(self) -> Iterator[tuple[str, str, str]]:
        """The sizes that follow from others, where those are known."""
        for entry in self.spec.following:
            sizes = {"HV": self.sizes.get("H"), **self.sizes}
            of = {name: size for name in sizes_in(entry.value) if (size := sizes.get(name)) is not None}
            if len(of) < len(sizes_in(entry.value)):
                continue
            size = size_at(entry.value, of)
            told = self.told.get(entry.name) or next((self.told[name] for name in of if name in self.told), None)
            known = f" for {', '.join(f'{name} = {value}' for name, value in of.items())}" if of else ""
            rule = f"`{entry.name}` is `{to_source(entry.value)}`"
            if size is None and told is not None:
                yield told, f"{rule}, which is no positive integer{known}", ""
            elif size is not None and self.sizes.setdefault(entry.name, size) != size and told is not None:
                yield told, f"{rule}, which is {size}{known}, and {self.sizes[entry.name]} in `{told}`", ""

    def _tokens(self) -> str | None:
        """The time of a per-step input; None where the number of steps is not known."""
        assert self.spec.steps is not None, "an input per step needs steps"
        count = self.given.get(self.spec.steps.argument, self.spec.steps.default)
        if not isinstance(count, int):
            return None
        return "T" if count == 1 else f"T*{count}"

    def _number(self, name: str, optional: bool) -> Iterator[tuple[str, str, str]]:
        given = self.given.get(name)
        if name not in self.given or isinstance(given, int | float | Unclear) or (given is None and optional):
            return
        what = "a tensor" if isinstance(given, tuple) else repr(given)
        yield name, f"`{name}` is a number, and this is {what}", "only a param with dims or `per: head` is a tensor"

    def _tensor(self, name: str, leading: tuple[str | None, ...], dims: Dims) -> Iterator[tuple[str, str, str]]:
        given = self.given.get(name)
        if name not in self.given or isinstance(given, Unclear):
            return
        expected = f"`{name}` is {shown((*(part or 'T*n' for part in leading), *dims))}"
        if not isinstance(given, tuple):
            yield name, f"{expected}, and this is {'None' if given is None else repr(given)}", ""
            return
        hint = "`heads(x, n)` parts channels into heads, `merge(x)` takes them together"
        places = zip(given, leading, strict=False)
        if len(given) != len(leading) + len(dims) or any(part not in (None, size) for size, part in places):
            yield name, f"{expected}, and this is {shown(given)}", hint
            return
        for dim, size in zip(dims, given[len(leading) :], strict=True):
            if isinstance(size, str):
                yield name, f"{expected}, and this is {shown(given)}", hint
                return
            heads = dim if dim != "HV" or self.spec.has_value_heads else "H"
            other = self.sizes.setdefault(heads, size)
            self.told.setdefault(heads, name)
            if other != size and heads not in self.differing:
                self.differing.add(heads)
                what = "heads" if heads in ("H", "HV") else f"`{dim}`"
                message = f"{expected}, and this is {shown(given)}: {what} {size}, and {other} in `{self.told[heads]}`"
                yield name, message, hint if heads in ("H", "HV") else ""
