"""A spec's layer in tables: its config, its modules with their parameters, and what flows through `forward`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from flagen.draw_layer import flowchart
from flagen.project import UsageError
from flagen.spec.layer.held import Held, NotGiven, Tensor
from flagen.spec.layer.model import Config, Constant, Layer, Name, may_be_none
from flagen.spec.layer.printer import to_text
from flagen.spec.layer.shapes import shown
from flagen.spec.layer.trial import Trial
from flagen.spec.model import Spec
from flagen.spec.names import did_you_mean


@dataclass(frozen=True)
class Table:
    """Rows under columns; `numbers` are the columns that stand to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()

    def lines(self) -> Iterator[str]:
        """The table as text, its columns aligned."""
        yield self.title
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        for row in (self.columns, *self.rows):
            cells = (
                cell.rjust(width) if place in self.numbers else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            yield f"  {'  '.join(cells)}".rstrip()


@dataclass(frozen=True)
class LayerSheet:
    """All that is shown of a layer, with one config."""

    heading: str
    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    flowchart: str
    """The dataflow, in Mermaid's language."""

    def dump(self) -> str:
        """The sheet as text."""
        lines = [self.heading, *self.notes]
        for table in self.tables:
            lines += ["", *table.lines()]
        return "\n".join(lines)


def describe_layer(spec: Spec, given: Sequence[str] = ()) -> LayerSheet:
    """The layer of a spec with its default config, or with some of it given as `key=value`.

    Raises:
        UsageError: the spec has no layer, the config has no such key, or the layer cannot be made with it.
    """
    layer = spec.layer
    if layer is None:
        raise UsageError(f"{spec.name} has no layer")
    config = {entry.name: entry.default for entry in layer.config} | _settings(layer, given)
    trial = Trial(layer, {"recurrence": spec} | {use.name: spec.used.get(use.name) for use in layer.uses}, config)
    if not trial.findings:
        trial.call()
    if trial.findings:
        first = trial.findings[0]
        raise UsageError(f"{layer.class_name} cannot be made with {', '.join(given)}: {first.span}: {first.message}")
    return _sheet(spec, layer, trial, config)


def _settings(layer: Layer, given: Sequence[str]) -> dict[str, Constant]:
    known = {entry.name: entry for entry in layer.config}
    found: dict[str, Constant] = {}
    for setting in given:
        name, sign, text = setting.partition("=")
        if not sign:
            raise UsageError(f"--config takes key=value, not {setting!r}")
        if name not in known:
            hint = did_you_mean(name, known, f"there are {', '.join(known)}")
            raise UsageError(f"{layer.class_name} has no config {name!r}; {hint}")
        found[name] = _constant(text)
        if known[name].one_of and found[name] not in known[name].one_of:
            raise UsageError(f"{name} is one of {', '.join(map(str, known[name].one_of))}, not {text}")
    return found


def _constant(text: str) -> Constant:
    words: dict[str, Constant] = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _sheet(spec: Spec, layer: Layer, trial: Trial, config: Mapping[str, Constant]) -> LayerSheet:
    differing = [entry.name for entry in layer.config if entry.required or config[entry.name] != entry.default]
    how = ", ".join(f"{name}={config[name]!r}" for name in differing) or "its defaults"
    dims = ", ".join(f"{dim.name} = {_held(trial.construction.numbers.values[dim.name])}" for dim in layer.dims)
    notes = [text for text in (layer.notes.strip(),) if text]
    notes += [f"dims: {dims}"] if dims else []
    notes += [f"requires {require.text}" for require in layer.require]
    notes += [f"{use.name} runs the operators of {use.package}" for use in layer.uses]
    notes += [f"a mask's tokens are {'left out' if layer.mask == 'unpad' else 'multiplied by it'}"]
    tables = (
        Table(
            "config",
            ("name", "type", "value", ""),
            tuple(_config(entry, config[entry.name], entry.name in may_be_none(layer)) for entry in layer.config),
        ),
        Table("parameters", ("name", "made by", "shape", "number"), tuple(_parameters(layer, trial)), frozenset((3,))),
        Table("forward", ("value", "shape", "computed by"), tuple(_flow(layer, trial))),
    )
    heading = f"{layer.class_name}: {trial.construction.count():,} parameters with {how}"
    return LayerSheet(heading, tuple(notes), tables, flowchart(spec, trial))


def _config(entry: Config, value: Constant, optional: bool) -> tuple[str, ...]:
    kind = (entry.type or "any") + (" | None" if optional else "")
    says = [entry.description] if entry.description else []
    says += [f"one of {', '.join(map(_held, entry.one_of))}"] if entry.one_of else []
    says += ["no effect"] if entry.ignored else []
    says += ["has to be given"] if entry.required else []
    return entry.name, kind, _held(value), "; ".join(says)


def _parameters(layer: Layer, trial: Trial) -> Iterator[tuple[str, ...]]:
    for param in layer.params:
        if param.name in trial.construction.params:
            shape = trial.construction.params[param.name]
            yield param.name, to_text(trial.chosen(param.init)), shown(shape), f"{prod(shape):,}"
    for module in layer.modules:
        made = trial.construction.modules[module.name]
        if made is None:
            continue
        choice = trial.chosen(module.value)
        how = f"the same as {choice.name}" if isinstance(choice, Name) else to_text(choice)
        weights = made.weights()
        if not weights:
            yield module.name, how, "", ""
        for place, (name, shape) in enumerate(weights.items()):
            number = "" if module.name in trial.construction.shared else f"{prod(shape):,}"
            yield f"{module.name}.{name}", how if place == 0 else "", shown(shape), number


def _flow(layer: Layer, trial: Trial) -> Iterator[tuple[str, ...]]:
    yield "x", _held(trial.hidden), "what the layer is given"
    for decl in layer.inputs:
        per = "a value of every token" if decl.per == "token" else "one for all tokens"
        yield decl.name, "", decl.description or f"handed on from another layer, {per}"
    for statement, values in trial.lines:
        names = ", ".join(statement.targets)
        yield names, ", ".join(filter(None, map(_held, values))), to_text(trial.chosen(statement.value))
    for name in ("y", *layer.outputs):
        yield (
            name,
            _held(trial.values[name]),
            "what the layer gives back" if name == "y" else "handed on to the next layer",
        )


def _held(value: Held) -> str:
    match value:
        case Tensor(shape):
            return "" if shape is None else shown(shape)
        case NotGiven():
            return "not given"
        case tuple():
            return f"({', '.join(map(_held, value))})"
        case float():
            return f"{value:g}"
        case None:
            return "None"
        case _:
            return str(value)
