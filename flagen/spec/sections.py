"""The declaring sections: dims, state, inputs, params, steps, let, decay, gate, and the small ones around them."""

from __future__ import annotations

import re
from collections.abc import Sequence as Seq
from functools import partial
from typing import Literal

from flagen.spec.expr import parse_expression
from flagen.spec.fields import Field, Fields
from flagen.spec.levels import ByLevels
from flagen.spec.loader import Bad, Mapping, Node, Scalar, Sequence
from flagen.spec.look_back import LookBack
from flagen.spec.model import ChunkHints, Derived, Dims, Expr, Following, Input, Interval, Param, State, Steps, sizes_in
from flagen.spec.names import (
    SHIPPED,
    Symbols,
    class_name_problem,
    listed,
    package_name_problem,
    quoted,
)
from flagen.spec.positions import Positions
from flagen.spec.ranges import interval_of
from flagen.spec.report import Report
from flagen.spec.scope import Scope
from flagen.spec.sizes import NoneFit, NotASize, Quotient, check_size, fitting, in_order, quotient, ratio

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ASSIGNED = re.compile(r"([A-Za-z_]\w*) *=")
_END = r"\s*([-+]?[\w.\u221e]+)\s*"
_PAIR = re.compile(rf"[(\[]?{_END}(?:,|;|\.\.|\bto\b|~|\s){_END}[)\]]?")
"""Two ends of a range in any other notation."""
_BOUND = re.compile(rf"(<=?|>=?|\u2264|\u2265){_END}")
_UNLISTED = re.compile(r"[(\[]?\s*([A-Za-z]\w*(?:\s*(?:,|\s|\bx\b|\*)\s*[A-Za-z]\w*)*)\s*,?\s*[)\]]?")
_TIMES = re.compile(r"(?<=[A-Z0-9])x(?=[A-Z])|\s*\u00d7\s*")
"""The sign between two dims: `KxV`."""
_NO_DIMS = frozenset(("0", "1", "()", "scalar", "none", "None", "[]"))
_LEADING = frozenset(("H", "HV", "T", "t"))
"""What stands for time and heads, and so makes everything before it a dim that is not written."""
_SHORT = 80
"""Characters of a text that is looked at for what it was meant to be."""
_NOT_YET = "not supported yet"

Section = Literal["let", "decay", "gate"]


def _unlisted(scalar: Scalar) -> Dims | None:
    """The dims that a text names which should have been a list."""
    if scalar.text in _NO_DIMS:
        return ()
    match = _UNLISTED.fullmatch(_TIMES.sub(" ", scalar.text)) if len(scalar.text) <= _SHORT else None
    return None if match is None else tuple(name for name in _IDENTIFIER.findall(match[1]) if name != "x")


def _range_meant(text: str) -> str:
    """How to write the range that a text probably is."""
    if (bound := _BOUND.fullmatch(text)) is not None:
        end = _yaml_number(bound[2])
        return f"write `[-.inf, {end}]`" if bound[1][0] in "<\u2264" else f"write `[{end}, .inf]`"
    pair = _PAIR.fullmatch(re.sub(r"(?<=[0-9])\.\.+", " ", text)) if len(text) <= _SHORT else None
    return f"write `[{_yaml_number(pair[1])}, {_yaml_number(pair[2])}]`" if pair else "for example `[-.inf, 0]`"


def _yaml_number(text: str) -> str:
    sign, rest = ("-", text[1:]) if text.startswith("-") else ("", text)
    return f"{sign}.inf" if "inf" in rest.lower() or rest in ("oo", "\u221e") else text


class Sections:
    """Reads declarations into the model, and enters every name into the symbols."""

    def __init__(self, fields: Fields, symbols: Symbols, scope: Scope, report: Report) -> None:
        self.fields = fields
        self.symbols = symbols
        self.scope = scope
        self.report = report
        self.look_back = LookBack(symbols, scope, report)
        self.numbers: set[str] = set()
        """The params that are plain numbers."""
        self.positions = Positions(symbols, scope, report, self.look_back.names, self.numbers)
        self.levels = ByLevels(scope, report, self.positions)
        self.ranges: dict[str, Interval] = {}
        self.definitions: dict[str, Expr] = {}
        self.sizes_known = True
        """Whether the dims of every input and param could be read."""
        self.steps_given = False
        self._steps_missed = False
        self._leading_dims = False
        """Whether dims of batch, time or heads have been met; said once."""

    # ------------------------------------------------------------------------------------------------------- heading

    def package_name(self, node: Node) -> str:
        scalar = self.fields.scalar(node, "`name` is the name of the package to generate")
        if scalar is not None and (problem := package_name_problem(scalar.text)) is not None:
            self.report.error("E206", scalar.span, f"{quoted(scalar.text)} cannot name a package", problem)
        elif scalar is not None and scalar.text in SHIPPED:
            hint = f"every generated directory has {listed(sorted(SHIPPED))}: choose another name"
            self.report.error("E212", scalar.span, f"{quoted(scalar.text)} is flagen's own beside the packages", hint)
        return "" if scalar is None else scalar.text

    def class_name(self, node: Node, name: str) -> str:
        scalar = self.fields.scalar(node, "`class_name` is the name of the module's class")
        if scalar is not None and (problem := class_name_problem(scalar.text, name)) is not None:
            self.report.error("E207", scalar.span, f"{quoted(scalar.text)} cannot name a class", problem)
        return "" if scalar is None else scalar.text

    def chunk(self, node: Node) -> ChunkHints:
        what = "`chunk` is a mapping with `size` and `subchunk`"
        if isinstance(node, Scalar) and node.text.isdigit():
            self.fields.wrong_type(node, what, f"write `chunk: {{size: {node.text}}}`")
            return ChunkHints()
        fields = self.fields.known(node, what, ("size", "subchunk")) or {}
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

    def dims(self, node: Node) -> list[Field]:
        """Declare the dims of the section, before the sections that may have them; their sizes are read after those."""
        entries = self._section(node, "`dims` is a mapping of dims to their sizes", "`dims: {R: K / 2}`")
        for field in entries or ():
            self.symbols.declare(field.key.text, "dim", field.key.span)
        # One with a reserved name has its size all the same: what needs it is not at fault.
        declared = [field for field in entries or () if self.symbols.get(field.key.text) is not None]
        self.symbols.sized = {field.key.text for field in declared}
        return declared

    def following(self, fields: list[Field]) -> tuple[Following, ...]:
        """The sizes that the section gives its dims, each behind those it follows from."""
        found = [entry for entry in map(self._size, fields) if entry is not None]
        ordered, cycles = in_order(found)
        for cycle in cycles:
            first, *others = sorted(cycle, key=lambda entry: entry.span)
            through = f" through {listed(entry.name for entry in others)}" if others else ""
            message = f"the size of `{first.name}` follows from itself{through}"
            hint = "one of them has to follow from the sizes of inputs"
            self.report.error("E513", first.span, message, hint if others else "give it as a dim of an input")
        self.symbols.following = self._sound_sizes(ordered)
        unsound = self.symbols.sized - {entry.name for entry in self.symbols.following}
        self.symbols.doubtful |= unsound
        if not unsound:
            self._check_fitting()
        return self.symbols.following

    def _size(self, field: Field) -> Following | None:
        self.scope.place = "dims"
        value = self.expression(field.value, "the size of a dim is an expression over other dims, `H` and `HV`")
        return None if value is None else Following(field.key.text, value, field.key.span)

    def _sound_sizes(self, ordered: tuple[Following, ...]) -> tuple[Following, ...]:
        """Those that can be sizes, and follow from such; the others are reported."""
        sizes: dict[str, Quotient] = {}
        for entry in ordered:
            try:
                size = quotient(entry.value, sizes)
                check_size(size, entry.value.span)
                sizes[entry.name] = size
            except NotASize as problem:
                self.report.error("E512", problem.span, problem.message, problem.hint)
        return tuple(entry for entry in ordered if entry.name in sizes)

    def _check_fitting(self) -> None:
        """There are sizes that go together, as small as a proof has them, with one head and with several."""
        dims = dict.fromkeys((symbol.name for symbol in self.symbols.of_kind("dim")), 2)
        try:
            for heads in ({"H": 1, "HV": 1}, {"H": 1, "HV": 2}, {"H": 2, "HV": 4}):
                fitting(self.symbols, dims | heads)
        except NoneFit as problem:
            message = "no small sizes make this a positive integer"
            if any(name in ("H", "HV") for name in sizes_in(problem.entry.value)):
                message += ", be there one head or several"
            hint = "what flagen generates is proved at small sizes first"
            self.report.error("E512", problem.entry.value.span, message, hint)

    def states(self, node: Node) -> tuple[State, ...]:
        entries = self._section(node, "`state` is a mapping of names to dims", "`S: [K, V]`")
        if entries == []:
            self.symbols.complete = False
            self.report.error("E210", node.span, f"a spec without a state is {_NOT_YET}", "declare at least one")
        return tuple(self._state(field) for field in self._without_fields(entries or [], ("init",)))

    def _state(self, field: Field) -> State:
        what = "a state is its dims, or a mapping with `dims` and `init`"
        dims, rest = self._dims_or_mapping(field.value, what, ("dims", "init"))
        init = self.fields.number(rest["init"].value, "`init`") if "init" in rest else 0.0
        self.symbols.declare(field.key.text, "state", field.key.span, dims)
        return State(field.key.text, dims or (), 0.0 if init is None else init, field.key.span)

    def inputs(self, node: Node) -> tuple[Input, ...]:
        entries = self._section(node, "`inputs` is a mapping of names to dims", "`q: [K]`")
        if entries == []:
            self.symbols.complete = False
            self.report.error("E211", node.span, "a spec has at least one input")
        fields = ("heads", "per", "range", "description")
        return tuple(self._input(field) for field in self._without_fields(entries or [], fields))

    def _without_fields(self, entries: list[Field], keys: tuple[str, ...]) -> list[Field]:
        """The declarations, without the fields that stand beside one and belong to it: they are reported."""
        kept: list[Field] = []
        for field in entries:
            value = field.value
            if not kept or field.key.text not in keys or not isinstance(value, Scalar) or value.is_null:
                kept.append(field)
                continue
            name = kept[-1].key.text
            hint = f"write `{name}: {{dims: [...], {field.key.text}: {value.text}}}`"
            self.report.error("E203", field.key.span, f"`{field.key.text}` stands beside `{name}`, not in it", hint)
        return kept

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
        entries = self._section(node, "`params` is a mapping of names to mappings", "`scale: {default: K ** -0.5}`")
        return tuple(self._param(field) for field in entries or ())

    def _param(self, field: Field) -> Param:
        keys = ("dims", "per", "default", "range", "description")
        what = "a param is a mapping with `dims`, `per`, `default`, `range` and `description`, all optional"
        if isinstance(field.value, Scalar):
            shown = "{}" if field.value.is_null else f"{{default: {field.value.text}}}"
            self.fields.wrong_type(field.value, what, f"write `{field.key.text}: {shown}`")
            rest = None
        else:
            rest = self.fields.known(field.value, what, keys)
        dims: Dims | None = () if rest is not None or isinstance(field.value, Scalar) else None
        rest = rest or {}
        if "dims" in rest:
            dims = self._dims(rest["dims"].value, "`dims` is a list of names")
        per_head = "per" in rest and self.fields.choice(rest["per"].value, "`per`", ("head",)) == "head"
        default = None
        if "default" in rest:
            self.scope.place = "default"
            default = self._default(rest["default"].value)
        self.symbols.declare(field.key.text, "param", field.key.span, dims)
        interval = self._range(field.key.text, rest)
        self.numbers |= set() if dims or per_head else {field.key.text}
        return Param(field.key.text, dims or (), per_head, default, interval, self._description(rest), field.key.span)

    def _default(self, node: Node) -> Expr | None:
        what = "`default` is an expression over dims, `H` and `HV`"
        if isinstance(node, Scalar) and (node.is_null or node.text == "None"):
            self.fields.wrong_type(node, what, "leave `default` out: then the argument has to be given")
            return None
        return self.expression(node, what)

    def steps(self, node: Node) -> Steps | None:
        """`{n: num_steps, default: 2}`: the one key that is not `default` is the symbol."""
        self.steps_given = True
        what = "`steps` is a mapping of one symbol to the argument that carries it, and `default`"
        entries = self._section(node, what, "`{n: num_steps, default: 2}`")
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
        if argument.text.isdigit():
            message = f"the symbol of `steps` stands for the name of an argument, not {quoted(argument.text)}"
            hint = f"write `{{{key.text}: num_steps, default: {argument.text}}}`"
            self.report.error("E203", argument.span, message, hint)
            return None
        if argument.text != key.text:
            self.symbols.declare(argument.text, "step argument", argument.span)
        return Steps(key.text, argument.text, count, key.span)

    def derived(self, node: Node, section: Section) -> tuple[Derived, ...]:
        entries = self._section(node, f"`{section}` is a mapping of names to expressions", "`alpha: exp(g)`")
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
        sizes = partial(ratio, self.symbols) if self.symbols.complete else None
        value = parse_expression(
            scalar,
            start,
            self.scope.resolve,
            self.report,
            self.scope.describe,
            sizes,
            self.look_back.before,
            self.positions.first,
            self.levels.read,
        )
        if value is None:
            # Whatever else is wrong in it, the names in the text are not unused.
            self.scope.mention(scalar.text)
        return value

    def _section(self, node: Node, what: str, example: str) -> list[Field] | None:
        if isinstance(node, Bad | Mapping):
            entries = self.fields.entries(node, what, lists=what.endswith("dims"))
        else:
            entries = None
            hint = f"for example {example}" + ", without `- `" * isinstance(node, Sequence)
            if isinstance(node, Scalar) and (assigned := _ASSIGNED.match(node.text)) is not None:
                hint = f"write `{assigned[1]}: ...`"
            self.fields.wrong_type(node, what, hint)
        if entries is None:
            self.symbols.complete = False
        return entries

    def _dims_or_mapping(self, node: Node, what: str, keys: tuple[str, ...]) -> tuple[Dims | None, dict[str, Field]]:
        """The dims of a declaration in its short or its long form, and the fields of the long one."""
        if not isinstance(node, Mapping):
            return self._dims(node, what), {}
        fields = self.fields.known(node, what, keys, required=("dims",)) or {}
        self.sizes_known = self.sizes_known and "dims" in fields
        return self._dims(fields["dims"].value, "`dims` is a list of names") if "dims" in fields else None, fields

    def _dims(self, node: Node, what: str) -> Dims | None:
        found = self._listed_dims(node, what)
        self.sizes_known = self.sizes_known and found is not None
        return found

    def _listed_dims(self, node: Node, what: str) -> Dims | None:
        if isinstance(node, Scalar) and not node.is_null and (meant := _unlisted(node)) is not None:
            hint = f"write `[{', '.join(meant)}]`" if meant else "a scalar has the dims `[]`"
            self.fields.wrong_type(node, what, hint)
            declared = [self.symbols.declare_dim(dim, node.span) for dim in meant]
            return meant if all(declared) else None
        items = self.fields.items(node, what)
        if items is None:
            return None
        dims: list[str] = []
        sound = True
        for item in self._without_leading(items):
            scalar = self.fields.scalar(item, "a dim is a name")
            if scalar is not None and scalar.text.isdigit():
                hint = "a size is no dim: dims have names, and a scalar has none, `[]`"
                self.report.error("E301", scalar.span, f"{quoted(scalar.text)} is not a name", hint)
                sound = False
            elif scalar is None or not self.symbols.declare_dim(scalar.text, scalar.span):
                sound = False
            elif scalar.text in dims:
                hint = f"two dims of one size have two names: `{scalar.text}` and `{scalar.text}2`"
                self.report.error("E509", scalar.span, f"the dim `{scalar.text}` twice in one declaration", hint)
                sound = False
            else:
                dims.append(scalar.text)
        return tuple(dims) if sound else None

    def _without_leading(self, items: Seq[Node]) -> Seq[Node]:
        """The dims of one head of one token: those of batch, time and heads before them are reported, and left out."""
        texts = [item.text if isinstance(item, Scalar) else "" for item in items]
        last = max((i for i, text in enumerate(texts) if text in _LEADING), default=-1)
        if last < 0:
            return items
        if not self._leading_dims:
            self._leading_dims = True
            own = f"`[{', '.join(texts[last + 1 :])}]`"
            message = f"batch, time and heads are not written: the dims of one head of one token are {own}"
            span = next(item.span for item in items)
            self.report.error("E511", span, message, f"write {own} here, and likewise elsewhere")
        return items[last + 1 :]

    def _range(self, name: str, fields: dict[str, Field]) -> Interval:
        interval = Interval()
        if "range" in fields:
            interval = self._interval(fields["range"].value) or interval
        self.ranges[name] = interval
        return interval

    def _interval(self, node: Node) -> Interval | None:
        what = "`range` is a list of two numbers, the lowest and the highest value"
        if isinstance(node, Scalar) and not node.is_null:
            hint = _range_meant(node.text)
            self.report.error("E208", node.span, f"{what}, not {quoted(node.text)}", hint)
            return None
        items = self.fields.items(node, what)
        if items is None:
            return None
        if len(items) != 2:
            inside = items[0].text if len(items) == 1 and isinstance(items[0], Scalar) else ""
            self.report.error("E208", node.span, what, _range_meant(inside))
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
