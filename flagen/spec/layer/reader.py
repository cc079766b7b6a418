"""Reads the `layer` section: its declarations in their order, then the statements of `forward`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import Literal

from flagen.spec.fields import Field, Fields, Missing
from flagen.spec.layer.configs import ConfigReader
from flagen.spec.layer.expressions import parse_layer_expression
from flagen.spec.layer.model import (
    Assign,
    Call,
    Config,
    Dim,
    Expr,
    IfElse,
    Init,
    Kept,
    Layer,
    LayerInput,
    LayerParam,
    Module,
    Name,
    Require,
    Use,
    Value,
    children,
    walk,
)
from flagen.spec.layer.renaming import OWN
from flagen.spec.layer.scope import OPERATOR, Declared, LayerScope, Place, attribute_problem
from flagen.spec.layer.vocabulary import RULES
from flagen.spec.loader import Bad, Mapping, Node, Scalar, Sequence
from flagen.spec.names import MODULE_ATTRIBUTES, class_name_problem, did_you_mean, package_name_problem, quoted
from flagen.spec.report import Report
from flagen.spec.statements import equals_hint, uncut_items

KEYS = (
    *("class_name", "notes", "config", "kwargs", "dims", "attributes", "require", "params", "modules", "init"),
    *("inputs", "outputs", "mask", "cache", "uses", "forward"),
)
_TARGETS = re.compile(r"\s*([A-Za-z_]\w*(?:\s*,\s*[A-Za-z_]\w*)*)\s*=(?!=)\s*")
_AUGMENTED = re.compile(r"\s*([A-Za-z_]\w*)\s*(\*\*|//|[-+*/%])=")
_WORD = re.compile(r"[A-Za-z_]\w*")
_PATH = re.compile(r"([A-Za-z]\w*)((?:\.\w+)+)\Z")
_CACHE = ("recurrent_state", "attn_state", "ffn_state")


class LayerReader:
    """Reads one layer; `sound` afterwards tells whether all of it could be read."""

    def __init__(self, package: str, fields: Fields, report: Report) -> None:
        self.package = package
        self.fields = fields
        self.report = report
        self.scope = LayerScope(report)
        self.sound = True

    def layer(self, node: Node) -> Layer | None:
        what = "`layer` is a mapping with `class_name`, `config`, `modules`, `forward` and others"
        required = ("class_name", "modules", "forward")
        given = self.fields.known(node, what, KEYS, required)
        if given is None:
            return None
        assert isinstance(node, Mapping)
        every = len(given) == len(node.entries) and given.keys() >= set(required)
        self.scope.complete = every and not any(isinstance(field.value, Bad) for field in given.values())
        self._expect(given)
        value = {key: field.value for key, field in given.items()}
        class_name = self._class_name(value["class_name"]) if "class_name" in value else ""
        notes = self.fields.text(value["notes"], "`notes` is text") if "notes" in value else ""
        config = self._config(value.get("config"))
        kwargs = self.fields.truth(value["kwargs"], "`kwargs`") if "kwargs" in value else False
        dims = self._dims(value["dims"]) if "dims" in value else ()
        require = self._require(value["require"]) if "require" in value else ()
        attributes = self._attributes(value["attributes"]) if "attributes" in value else ()
        uses = self._uses(value["uses"]) if "uses" in value else ()
        params = self._params(value["params"]) if "params" in value else ()
        modules = self._modules(value["modules"]) if "modules" in value else ()
        init = self._init(value["init"], modules) if "init" in value else ()
        inputs = self._inputs(value["inputs"]) if "inputs" in value else ()
        mask = self.fields.choice(value["mask"], "`mask`", ("unpad", "multiply")) if "mask" in value else "unpad"
        cache = self._cache(value["cache"]) if "cache" in value else ()
        forward = self._forward(value["forward"]) if "forward" in value else ()
        outputs = self._outputs(value["outputs"]) if "outputs" in value else ()
        return Layer(
            class_name=class_name,
            notes=notes,
            config=config,
            kwargs=bool(kwargs),
            dims=dims,
            attributes=attributes,
            require=require,
            params=params,
            modules=modules,
            init=init,
            inputs=inputs,
            outputs=outputs,
            mask="multiply" if mask == "multiply" else "unpad",
            cache=cache,
            uses=uses,
            forward=forward,
            span=node.span,
        )

    # ----------------------------------------------------------------------------------------------------- heading

    def _expect(self, given: dict[str, Field]) -> None:
        """Tell the scope which names are declared further on, so that using one early is called just that."""
        for section in ("config", "dims", "params", "modules", "inputs"):
            node = given[section].value if section in given else None
            if isinstance(node, Mapping):
                for key, _ in node.entries:
                    self.scope.later.setdefault(key.text, key.span.line)

    def _class_name(self, node: Node) -> str:
        scalar = self.fields.scalar(node, "`class_name` is the name of the layer's class")
        if scalar is None:
            return ""
        problem = class_name_problem(scalar.text, self.package)
        if problem is None and scalar.text in MODULE_ATTRIBUTES:
            problem = "every module has an attribute of this name"
        if problem is None and scalar.text in OWN | {rule.name for rule in RULES.values() if rule.since == 1}:
            problem = f"`{scalar.text}` is a name the generated code uses"
        if problem is not None:
            self.report.error("E207", scalar.span, f"{quoted(scalar.text)} cannot name a class", problem)
        return scalar.text

    def _entries(self, node: Node, what: str, example: str) -> list[Field]:
        """The entries of a section that is free in its keys."""
        if isinstance(node, Bad | Mapping):
            found = self.fields.entries(node, what)
        else:
            self.fields.wrong_type(node, what, f"for example {example}")
            found = None
        if found is None:
            self._unread()
        return found or []

    def _unread(self) -> None:
        """Something could not be read that may have declared or used any name."""
        self.scope.complete = False
        self.sound = False

    # ------------------------------------------------------------------------------------------------ declarations

    def _config(self, node: Node | None) -> tuple[Config, ...]:
        what = "`config` is a mapping of the constructor's arguments to their defaults"
        entries = [] if node is None else self._entries(node, what, "`hidden_size: 2048`")
        found, sound = ConfigReader(self.fields, self.scope, self.report).config(entries)
        self.sound = self.sound and sound
        return found

    def _dims(self, node: Node) -> tuple[Dim, ...]:
        what = "`dims` is a mapping of names to expressions over the config"
        found = []
        for field in self._entries(node, what, "`K: head_dim`"):
            value = self._expression(field.value, "a name of `dims` is an expression", "number")
            declared = self.scope.declare(field.key.text, "dim", field.key.span)
            self._doubt(declared, value)
            if value is not None:
                found.append(Dim(field.key.text, value, field.key.span))
        return tuple(found)

    def _attributes(self, node: Node) -> tuple[Dim, ...]:
        what = "`attributes` is a mapping of names to expressions over config and dims"
        found = []
        for field in self._entries(node, what, "`head_k_dim: K`"):
            value = self._expression(field.value, "an attribute is an expression", "number")
            if (problem := attribute_problem(field.key.text)) is not None:
                message = f"{quoted(field.key.text)} cannot name an attribute"
                self.report.error("E302", field.key.span, message, problem)
            elif value is not None:
                found.append(Dim(field.key.text, value, field.key.span))
        return tuple(found)

    def _require(self, node: Node) -> tuple[Require, ...]:
        what = "`require` is a condition over config and dims, or a list of them"
        found = []
        for item in self._items(node, what):
            value = self._expression(item, "a requirement is a condition, such as `HV % H == 0`", "number")
            if value is not None:
                assert isinstance(item, Scalar)
                found.append(Require(value, item.text.strip(), item.at(0, len(item.text))))
        return tuple(found)

    def _uses(self, node: Node) -> tuple[Use, ...]:
        what = "`uses` is a mapping of names to other specs, whose operators they call"
        found = []
        for field in self._entries(node, what, "`bounded: gated_delta_rule`"):
            declared = self.scope.declare(field.key.text, "operator", field.key.span)
            scalar = self.fields.scalar(field.value, "a name of `uses` stands for the name of a spec")
            if scalar is None or declared is None:
                self.sound = False
            elif (problem := package_name_problem(scalar.text)) is not None or scalar.text == self.package:
                problem = problem or f"`{OPERATOR}` calls the operator of this spec"
                self.report.error("E206", scalar.span, f"{quoted(scalar.text)} is no other spec's name", problem)
            else:
                found.append(Use(field.key.text, scalar.text, scalar.span))
        return tuple(found)

    def _params(self, node: Node) -> tuple[LayerParam, ...]:
        what = "`params` is a mapping of names to mappings with `shape` and `init`"
        entries = self._entries(node, what, "`A_log: {shape: [HV], init: full(0)}`")
        found = [self._param(field) for field in entries]
        return tuple(param for param in found if param is not None)

    def _param(self, field: Field) -> LayerParam | None:
        declared = self.scope.declare(field.key.text, "param", field.key.span)
        what = "a param is a mapping with `shape` and `init`"
        keys = ("shape", "init", "weight_decay", "dtype", "if", "description")
        rest = self.fields.known(field.value, what, keys, required=("shape", "init"))
        if rest is None:
            self._unread()
            return None
        shape = self._shape(rest["shape"].value) if "shape" in rest else None
        init = self._expression(rest["init"].value, "`init` is an expression", "init") if "init" in rest else None
        condition = self._expression(rest["if"].value, "`if` is a condition", "number") if "if" in rest else None
        decay = self.fields.truth(rest["weight_decay"].value, "`weight_decay`") if "weight_decay" in rest else True
        dtype = self.fields.choice(rest["dtype"].value, "`dtype`", ("float32",)) if "dtype" in rest else None
        says = self.fields.text(rest["description"].value, "`description` is text") if "description" in rest else ""
        if declared is None or shape is None or init is None or (condition is None and "if" in rest):
            self.sound = False
            return None
        return LayerParam(
            field.key.text,
            shape,
            init,
            decay is not False,
            "float32" if dtype == "float32" else None,
            condition,
            says,
            field.key.span,
        )

    def _shape(self, node: Node) -> tuple[Expr, ...] | None:
        items = self.fields.items(node, "`shape` is a list of sizes")
        sizes = [
            self._expression(item, "a size is an expression over config and dims", "number") for item in items or ()
        ]
        present = tuple(size for size in sizes if size is not None)
        return present if items is not None and len(present) == len(sizes) else None

    def _modules(self, node: Node) -> tuple[Module, ...]:
        what = "`modules` is a mapping of names to calls of module constructors"
        found = []
        for field in self._entries(node, what, "`q_proj: linear(hidden_size, H * K)`"):
            value = self._expression(field.value, "a module is a call of a constructor", "modules")
            declared = self.scope.declare(field.key.text, "module", field.key.span)
            if value is None or declared is None or not self._makes_module(value, field):
                self._doubt(declared, None)
                continue
            found.append(Module(field.key.text, value, field.key.span))
        return tuple(found)

    def _makes_module(self, value: Expr, field: Field) -> bool:
        """Whether every choice of an expression is a constructor's call or None, and some is a call."""
        choices = list(_choices(value))
        hint = "for example `linear(hidden_size, H * K) if use_gate else None`"
        for choice in choices:
            match choice:
                case Value(None) | Name(_, "module") | Call(_, "constructor"):
                    pass
                case _:
                    message = "a module is a call of a constructor, another module, or None"
                    self.report.error("E801", choice.span, message, hint)
                    return False
            if isinstance(choice, Call) and (inner := _constructor_below(choice)) is not None:
                message = f"`{inner.name}` makes a module, and is given as an argument"
                self.report.error("E801", inner.span, message, "each module has a name of its own")
                return False
        if all(isinstance(choice, Value) for choice in choices):
            self.report.error("E801", value.span, f"`{field.key.text}` is never a module", hint)
            return False
        return True

    def _init(self, node: Node, modules: Seq[Module]) -> tuple[Init, ...]:
        what = "`init` is a mapping of parameters of modules to what they start from"
        found = []
        for field in self._entries(node, what, "`dt_proj.bias: full(0)`"):
            value, decay, condition = field.value, True, None
            if isinstance(value, Mapping):
                keys = ("value", "weight_decay", "if")
                rest = self.fields.known(value, "it has `value`, `weight_decay` and `if`", keys, ("value",)) or {}
                if "weight_decay" in rest:
                    decay = self.fields.truth(rest["weight_decay"].value, "`weight_decay`") is not False
                if "if" in rest:
                    condition = self._expression(rest["if"].value, "`if` is a condition", "number")
                value = rest["value"].value if "value" in rest else Bad(value.span)
            expr = self._expression(value, "`init` is an expression", "init")
            match = _PATH.match(field.key.text)
            if match is None or (self.scope.complete and match[1] not in [module.name for module in modules]):
                if self.sound or match is None:
                    hint = "a path is a module's name, then the parameter's: `dt_proj.bias`"
                    hint = hint if match is None else did_you_mean(match[1], [module.name for module in modules], hint)
                    self.report.error("E304", field.key.span, f"{quoted(field.key.text)} is no parameter here", hint)
            elif expr is not None:
                found.append(Init(field.key.text, expr, decay, condition, field.key.span))
        return tuple(found)

    def _inputs(self, node: Node) -> tuple[LayerInput, ...]:
        what = "`inputs` is a mapping of further arguments of forward to their defaults"
        found = []
        for field in self._entries(node, what, "`v_first: null`"):
            declared = self.scope.declare(field.key.text, "input", field.key.span)
            value, per, says = field.value, "token", ""
            if isinstance(value, Mapping):
                keys = ("default", "per", "description")
                rest = self.fields.known(value, "an input has `default`, `per` and `description`", keys) or {}
                per = (
                    (self.fields.choice(rest["per"].value, "`per`", ("token", "layer")) or "token")
                    if "per" in rest
                    else per
                )
                says = (
                    self.fields.text(rest["description"].value, "`description` is text")
                    if "description" in rest
                    else ""
                )
                value = (
                    rest["default"].value
                    if "default" in rest
                    else Scalar("null", True, value.span, 0, 0, field.key.lines)
                )
            default = self.fields.constant(value, "the default of an input is `null` or a number")
            if isinstance(default, tuple | str):
                self.fields.wrong_type(value, "the default of an input is `null` or a number")
            elif declared is not None and not isinstance(default, Missing):
                kind: Literal["token", "layer"] = "layer" if per == "layer" else "token"
                found.append(LayerInput(field.key.text, default, kind, says, field.key.span))
        return tuple(found)

    def _outputs(self, node: Node) -> tuple[str, ...]:
        items = self.fields.items(node, "`outputs` is a list of values of `forward`")
        if items is None:
            self._unread()
        found: list[str] = []
        for item in items or ():
            scalar = self.fields.scalar(item, "an output is the name of a value of `forward`")
            if scalar is None:
                self.sound = False
                continue
            declared = self.scope.get(scalar.text)
            if declared is not None and declared.kind in ("local", "input"):
                declared.used = True
                found.append(scalar.text)
            elif self.scope.complete and self.sound:
                message = f"no statement of `forward` assigns the output {quoted(scalar.text)}"
                self.report.error("E804", scalar.span, message, "an output is a value of `forward`, or an input")
        return tuple(found)

    def _cache(self, node: Node) -> tuple[Kept, ...]:
        found = []
        for field in self._entries(node, "`cache` is a mapping of states to entries of the cache", "`z: ffn_state`"):
            entry = self.fields.choice(field.value, "an entry of the cache", _CACHE)
            if entry is not None:
                found.append(Kept(field.key.text, entry, field.key.span))  # type: ignore[arg-type]
        return tuple(found)

    # -------------------------------------------------------------------------------------------------- statements

    def _forward(self, node: Node) -> tuple[Assign, ...]:
        self.scope.place = "forward"
        self.scope.own(node.span)
        items = list(self._items(node, "`forward` is a statement, or a list of statements"))
        for item in items:
            if isinstance(item, Scalar) and (match := _TARGETS.match(item.text)) is not None:
                for name in _WORD.findall(match[1]):
                    if self.scope.get(name) is None:
                        self.scope.later.setdefault(name, item.span.line)
        found = [self._assign(item) for item in items]
        return tuple(assign for assign in found if assign is not None)

    def _assign(self, node: Node) -> Assign | None:
        scalar = self.fields.scalar(node, "a statement is `name = expression`", equals_hint(node))
        if scalar is None:
            self._unread()
            return None
        match = _TARGETS.match(scalar.text)
        if match is None:
            self._no_assignment(scalar)
            return None
        value = self._parsed(scalar, match.end())
        places = [(word[0], match.start(1) + word.start()) for word in _WORD.finditer(match[1])]
        assigned = [self.scope.assign(name, scalar.at(place, len(name))) for name, place in places]
        names = tuple(name for name, _ in places)
        for name, place in places[1:]:
            if names.index(name) < places.index((name, place)):
                message = f"`{name}` is assigned twice here"
                self.report.error("E303", scalar.at(place, len(name)), message, "one name holds one value")
                value = None
        if value is None or not all(assigned):
            self.sound = False
            return None
        return Assign(names, value, scalar.text.strip(), scalar.at(0, len(scalar.text)))

    def _no_assignment(self, scalar: Scalar) -> None:
        self._unread()
        self.scope.mention(scalar.text)
        hint = "write `q = ...`"
        if (augmented := _AUGMENTED.match(scalar.text)) is not None:
            hint = f"write `{augmented[1]} = {augmented[1]} {augmented[2]} ...`"
        message = "this is no assignment `name = expression`"
        self.report.error("E411", scalar.at(0, len(scalar.text)), message, hint)

    # ------------------------------------------------------------------------------------------------------- parts

    def _items(self, node: Node, what: str) -> Iterator[Node]:
        if isinstance(node, Sequence) and not node.items:
            self._unread()
            self.report.error("E211", node.span, "there is nothing here", what)
        elif isinstance(node, Sequence):
            yield from uncut_items(node, self.report)
        elif isinstance(node, Scalar) and not node.is_null:
            yield node
        else:
            self._unread()
            self.fields.wrong_type(node, what, equals_hint(node))

    def _expression(self, node: Node, what: str, place: Place) -> Expr | None:
        scalar = node if isinstance(node, Scalar) and node.plain and node.text == "null" else None
        scalar = scalar or self.fields.scalar(node, what)
        if scalar is None:
            self._unread()
            return None
        self.scope.place = place
        return self._parsed(scalar)

    def _parsed(self, scalar: Scalar, start: int = 0) -> Expr | None:
        value = parse_layer_expression(scalar, start, self.scope, self.report)
        self.sound = self.sound and value is not None
        return value

    def _doubt(self, declared: Declared | None, value: Expr | None) -> None:
        """What could not be read stays unchecked where it is used."""
        if value is None or declared is None:
            self.sound = False
        if declared is not None and value is None:
            declared.sure = False
            declared.used = True


def _choices(value: Expr) -> Iterator[Expr]:
    match value:
        case IfElse(_, then, otherwise):
            yield from _choices(then)
            yield from _choices(otherwise)
        case _:
            yield value


def _constructor_below(call: Call) -> Call | None:
    below = (node for child in children(call) for node in walk(child))
    return next((node for node in below if isinstance(node, Call) and node.kind == "constructor"), None)
