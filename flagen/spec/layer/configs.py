"""Reads the config of a layer: the constructor's arguments, with their defaults and what they may be."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Literal

from flagen.diagnostics import NOWHERE
from flagen.spec.fields import Field, Fields, Missing
from flagen.spec.layer.model import Config, Constant
from flagen.spec.layer.model import Scalar as LayerScalar
from flagen.spec.layer.scope import LayerScope
from flagen.spec.loader import Mapping, Node
from flagen.spec.report import Report

LAYER_INDEX = "layer_idx"
_LAYER_INDEX_SAYS = "where a cache keeps the states of this layer"
_TYPES: tuple[Literal["int", "float", "bool", "str"], ...] = ("int", "float", "bool", "str")


class ConfigReader:
    """Reads the entries of `config`."""

    def __init__(self, fields: Fields, scope: LayerScope, report: Report) -> None:
        self.fields = fields
        self.scope = scope
        self.report = report

    def config(self, entries: list[Field]) -> tuple[tuple[Config, ...], bool]:
        """The config, with the layer's index in it; and whether all of it could be read."""
        found = [self._entry(field) for field in entries]
        self._check_order(found)
        if not any(field.key.text == LAYER_INDEX for field in entries):
            span = entries[-1].key.span if entries else NOWHERE
            if (declared := self.scope.declare(LAYER_INDEX, "config", span)) is not None:
                declared.used = True
            found.append(Config(LAYER_INDEX, None, "int", _LAYER_INDEX_SAYS, span=span))
        return tuple(config for config in found if config is not None), None not in found

    def _entry(self, field: Field) -> Config | None:
        name = field.key.text
        declared = self.scope.declare(name, "config", field.key.span)
        what = f"`{name}` has a default: a number, a text, `true`, `false`, `null`, or a list of such"
        node, description, kind, ignored, required = field.value, "", None, False, False
        one_of: tuple[LayerScalar, ...] = ()
        if isinstance(node, Mapping):
            keys = ("default", "example", "type", "one_of", "description", "ignored")
            required = any(key.text == "example" for key, _ in node.entries)
            value = "example" if required else "default"
            rest = self.fields.known(node, what, keys, required=(value,)) or {}
            kind = self.fields.choice(rest["type"].value, "`type`", _TYPES) if "type" in rest else None
            ignored = bool("ignored" in rest and self.fields.truth(rest["ignored"].value, "`ignored`"))
            if "description" in rest:
                description = self.fields.text(rest["description"].value, "`description` is text")
            if "one_of" in rest:
                values = self.fields.constant(rest["one_of"].value, "`one_of` is a list of values")
                if not isinstance(values, Missing | tuple):
                    self.fields.wrong_type(rest["one_of"].value, "`one_of` is a list of values")
                one_of = values if isinstance(values, tuple) else ()
            if value not in rest:
                return None
            if required and "default" in rest:
                hint = "with a default it need not be given, with an example it has to be"
                self.report.error("E203", rest["default"].key.span, f"`{name}` has a default and an example", hint)
            node = rest[value].value
        default = self.fields.constant(node, what)
        if declared is not None and (name in (LAYER_INDEX, "mode") or ignored):
            declared.used = True
        if isinstance(default, Missing):
            return None
        if required and default is None:
            self.report.error("E204", node.span, f"the example of `{name}` is a value", "give it the default `null`")
            return None
        self._check(field, node, default, kind, one_of, required)
        if name == LAYER_INDEX:
            kind, description = "int", description or _LAYER_INDEX_SAYS
        return Config(name, default, _type(default, kind), description, one_of, ignored, required, field.key.span)

    def _check_order(self, found: list[Config | None]) -> None:
        """What has to be given comes before what need not be, as in any signature."""
        defaulted: Config | None = None
        for config in found:
            if config is None or not config.required:
                defaulted = defaulted or config
            elif defaulted is not None:
                message = f"`{config.name}` has to be given, and stands behind `{defaulted.name}`, which need not be"
                hint = f"write it before `{defaulted.name}`, or give it a default"
                self.report.error("E813", config.span, message, hint)

    def _check(
        self,
        field: Field,
        node: Node,
        default: Constant,
        kind: str | None,
        one_of: tuple[LayerScalar, ...],
        required: bool,
    ) -> None:
        name = field.key.text
        if name == LAYER_INDEX and default is not None:
            self.report.error("E204", node.span, f"the default of `{LAYER_INDEX}` is `null`")
        of = f"the {'example' if required else 'default'} of `{name}`"
        fits = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
        if kind is not None and default is not None:
            wrong = isinstance(default, bool) != (kind == "bool") or not isinstance(default, fits[kind])
            if wrong:
                self.report.error("E204", node.span, f"{of} is no `{kind}`", "they are one type")
        if one_of and (isinstance(default, tuple) or not _among(default, one_of)):
            hint = f"`one_of` lists every value, the {'example' if required else 'default'} among them"
            self.report.error("E204", node.span, f"{of} is not among `one_of`", hint)


def _type(default: Constant, kind: str | None) -> Literal["int", "float", "bool", "str"] | None:
    for name in _TYPES:
        if kind == name:
            return name
    match default:
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float"
        case str():
            return "str"
        case _:
            return None


def _among(value: LayerScalar, values: Seq[object]) -> bool:
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)
