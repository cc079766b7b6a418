"""The declaring sections: state, inputs, params, steps, let, decay, gate, and the small ones around them."""

from __future__ import annotations

import re
from typing import Literal

from flagen.spec.expr import parse_expression
from flagen.spec.fields import Field, Fields
from flagen.spec.loader import Mapping, Node, Scalar, Sequence
from flagen.spec.model import ChunkHints, Derived, Dims, Expr, Input, Interval, Param, State, Steps
from flagen.spec.names import Symbols, class_name_problem, package_name_problem, quoted
from flagen.spec.ranges import interval_of
from flagen.spec.report import Report
from flagen.spec.scope import Scope

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_YET = "not supported yet"

Section = Literal["let", "decay", "gate"]


class Sections:
    """Reads declarations into the model, and enters every name into the symbols."""

    def __init__(self, fields: Fields, symbols: Symbols, scope: Scope, report: Report) -> None:
        self.fields = fields
        self.symbols = symbols
        self.scope = scope
        self.report = report
        self.ranges: dict[str, Interval] = {}
        self.definitions: dict[str, Expr] = {}
        self.steps_given = False
        self._steps_missed = False

    # ------------------------------------------------------------------------------------------------------- heading

    def package_name(self, node: Node) -> str:
        scalar = self.fields.scalar(node, "`name` is the name of the package to generate")
        if scalar is not None and (problem := package_name_problem(scalar.text)) is not None:
            self.report.error("E206", scalar.span, f"{quoted(scalar.text)} cannot name a package", problem)
        return "" if scalar is None else scalar.text

    def class_name(self, node: Node, name: str) -> str:
        scalar = self.fields.scalar(node, "`class_name` is the name of the module's class")
        if scalar is not None and (problem := class_name_problem(scalar.text, name)) is not None:
            self.report.error("E207", scalar.span, f"{quoted(scalar.text)} cannot name a class", problem)
        return "" if scalar is None else scalar.text

    def chunk(self, node: Node) -> ChunkHints:
        fields = self.fields.known(node, "`chunk` is a mapping with `size` and `subchunk`", ("size", "subchunk")) or {}
        size, subchunk = (
            self.fields.positive_integer(fields[key].value, f"`{key}`") if key in fields else None
            for key in ("size", "subchunk")
        )
        return ChunkHints(size, subchunk)

    def not_yet(self, key: Scalar, what: str) -> None:
        self.report.error("E210", key.span, f"{what} {_NOT_YET}")

    def expect_steps(self, code: str, what: str, node: Node) -> None:
        """`steps` is missing where something needs it; said once."""
        if not self.steps_given and not self._steps_missed:
            self._steps_missed = True
            self.report.error(code, node.span, f"{what}, and no `steps`", "add `steps: {n: num_steps}`")

    # -------------------------------------------------------------------------------------------------- declarations

    def states(self, node: Node) -> tuple[State, ...]:
        what = "`state` is a mapping of names to dims"
        entries = self._section(node, what)
        if entries == []:
            self.symbols.complete = False
            self.report.error("E210", node.span, f"a spec without a state is {_NOT_YET}", "declare at least one")
        return tuple(self._state(field) for field in entries or ())

    def _state(self, field: Field) -> State:
        what = "a state is its dims, or a mapping with `dims` and `init`"
        dims, rest = self._dims_or_mapping(field.value, what, ("dims", "init"))
        init = self.fields.number(rest["init"].value, "`init`") if "init" in rest else 0.0
        self.symbols.declare(field.key.text, "state", field.key.span, dims)
        return State(field.key.text, dims or (), 0.0 if init is None else init, field.key.span)

    def inputs(self, node: Node) -> tuple[Input, ...]:
        entries = self._section(node, "`inputs` is a mapping of names to dims")
        if entries == []:
            self.symbols.complete = False
            self.report.error("E211", node.span, "a spec has at least one input")
        return tuple(self._input(field) for field in entries or ())

    def _input(self, field: Field) -> Input:
        keys = ("dims", "heads", "per", "range", "description")
        what = "an input is its dims, or a mapping with `dims`, `heads`, `per`, `range` and `description`"
        dims, rest = self._dims_or_mapping(field.value, what, keys)
        per = self.fields.choice(rest["per"].value, "`per`", ("token", "step")) if "per" in rest else "token"
        symbol = self.symbols.declare(field.key.text, "input", field.key.span, dims)
        if symbol is not None and per == "step" and self.steps_given:
            symbol.per = "step"
        if per == "step":
            self.expect_steps("E604", "an input per step", rest["per"].value)
        interval = self._range(field.key.text, rest)
        heads = self._heads(rest["heads"]) if "heads" in rest else "H"
        description = self._description(rest)
        return Input(
            field.key.text,
            dims or (),
            heads,
            "step" if per == "step" else "token",
            interval,
            description,
            field.key.span,
        )

    def _heads(self, field: Field) -> Literal["H", "HV"]:
        if isinstance(field.value, Scalar) and field.value.text == "none":
            self.report.error("E210", field.value.span, f"an input without heads is {_NOT_YET}", "it is `H` or `HV`")
            return "H"
        return "HV" if self.fields.choice(field.value, "`heads`", ("H", "HV")) == "HV" else "H"

    def params(self, node: Node) -> tuple[Param, ...]:
        entries = self._section(node, "`params` is a mapping of names to mappings")
        return tuple(self._param(field) for field in entries or ())

    def _param(self, field: Field) -> Param:
        keys = ("dims", "per", "default", "range", "description")
        what = "a param is a mapping with `dims`, `per`, `default`, `range` and `description`, all optional"
        rest = self.fields.known(field.value, what, keys)
        dims: Dims | None = () if rest is not None else None
        rest = rest or {}
        if "dims" in rest:
            dims = self._dims(rest["dims"].value, "`dims` is a list of names")
        per_head = "per" in rest and self.fields.choice(rest["per"].value, "`per`", ("head",)) == "head"
        default = None
        if "default" in rest:
            self.scope.place = "default"
            default = self.expression(rest["default"].value, "`default` is an expression over dims, `H` and `HV`")
        self.symbols.declare(field.key.text, "param", field.key.span, dims)
        interval = self._range(field.key.text, rest)
        return Param(field.key.text, dims or (), per_head, default, interval, self._description(rest), field.key.span)

    def steps(self, node: Node) -> Steps | None:
        """`{n: num_steps, default: 2}`: the one key that is not `default` is the symbol."""
        self.steps_given = True
        what = "`steps` is a mapping of one symbol to the argument that carries it, and `default`"
        entries = self.fields.entries(node, what)
        if entries is None:
            self.symbols.complete = False
            return None
        symbols = [field for field in entries if field.key.text != "default"]
        default = next((field.value for field in entries if field.key.text == "default"), None)
        count = None if default is None else self.fields.positive_integer(default, "the default number of steps")
        if len(symbols) != 1:
            span = symbols[1].key.span if symbols else node.span
            self.report.error("E203", span, what, "for example `{n: num_steps, default: 2}`")
            self.symbols.complete = False
            return None
        key, value = symbols[0].key, symbols[0].value
        self.symbols.declare(key.text, "step count", key.span)
        argument = self.fields.scalar(value, "the symbol of `steps` stands for the name of an argument")
        if argument is None:
            return None
        if argument.text != key.text:
            self.symbols.declare(argument.text, "step argument", argument.span)
        return Steps(key.text, argument.text, count, key.span)

    def derived(self, node: Node, section: Section) -> tuple[Derived, ...]:
        entries = self._section(node, f"`{section}` is a mapping of names to expressions")
        found = [self._derived(field, section) for field in entries or ()]
        return tuple(derived for derived in found if derived is not None)

    def _derived(self, field: Field, section: Section) -> Derived | None:
        self.scope.place = "derived"
        self.scope.met_step = False
        value = self.expression(field.value, f"a name of `{section}` is an expression")
        per: Literal["token", "step"] = "step" if self.scope.met_step else "token"
        symbol = self.symbols.declare(field.key.text, "derived", field.key.span, None if value is None else value.dims)
        self.scope.later.pop(field.key.text, None)
        if symbol is not None:
            symbol.per = per
        if value is None:
            return None
        interval = interval_of(value, self.ranges, self.definitions)
        self.ranges[field.key.text] = interval
        self.definitions[field.key.text] = value
        return Derived(field.key.text, section, value, per, interval, field.key.span)

    # --------------------------------------------------------------------------------------------------------- parts

    def expression(self, node: Node, what: str) -> Expr | None:
        """The expression a node is; `what` says what belongs there, should it be none."""
        scalar = self.fields.scalar(node, what)
        if scalar is None:
            self.report.obscured = True
            return None
        return self.parsed(scalar)

    def parsed(self, scalar: Scalar, start: int = 0) -> Expr | None:
        """The expression that a text is from `start` on."""
        value = parse_expression(scalar, start, self.scope.resolve, self.report)
        if value is None:
            # Whatever else is wrong in it, the names in the text are not unused.
            self.scope.mentioned.update(_IDENTIFIER.findall(scalar.text))
        return value

    def _section(self, node: Node, what: str) -> list[Field] | None:
        entries = self.fields.entries(node, what)
        if entries is None:
            self.symbols.complete = False
        return entries

    def _dims_or_mapping(self, node: Node, what: str, keys: tuple[str, ...]) -> tuple[Dims | None, dict[str, Field]]:
        """The dims of a declaration in its short or its long form, and the fields of the long one."""
        if isinstance(node, Sequence):
            return self._dims(node, what), {}
        if not isinstance(node, Mapping):
            self.fields.wrong_type(node, what)
            return None, {}
        fields = self.fields.known(node, what, keys, required=("dims",)) or {}
        return self._dims(fields["dims"].value, "`dims` is a list of names") if "dims" in fields else None, fields

    def _dims(self, node: Node, what: str) -> Dims | None:
        items = self.fields.items(node, what)
        if items is None:
            return None
        dims: list[str] = []
        sound = True
        for item in items:
            scalar = self.fields.scalar(item, "a dim is a name")
            if scalar is None or not self.symbols.declare_dim(scalar.text, scalar.span):
                sound = False
            elif scalar.text in dims:
                hint = f"two dims of one size have two names: `{scalar.text}` and `{scalar.text}2`"
                self.report.error("E509", scalar.span, f"the dim `{scalar.text}` twice in one declaration", hint)
                sound = False
            else:
                dims.append(scalar.text)
        return tuple(dims) if sound else None

    def _range(self, name: str, fields: dict[str, Field]) -> Interval:
        interval = Interval()
        if "range" in fields:
            interval = self._interval(fields["range"].value) or interval
        self.ranges[name] = interval
        return interval

    def _interval(self, node: Node) -> Interval | None:
        what = "`range` is a list of two numbers, the lowest and the highest value"
        items = self.fields.items(node, what)
        if items is None:
            return None
        if len(items) != 2:
            self.report.error("E208", node.span, what, "for example `[-.inf, 0]`")
            return None
        low, high = (self.fields.number(item, "an end of a range") for item in items)
        if low is None or high is None:
            return None
        if low <= high:
            return Interval(low, high)
        hint = "write " + f"`[{high:g}, {low:g}]`".replace("inf", ".inf")
        self.report.error("E208", node.span, "the lowest value of a range comes first", hint)
        return None

    def _description(self, fields: dict[str, Field]) -> str:
        return self.fields.text(fields["description"].value, "`description` is text") if "description" in fields else ""
