"""The statements of `update` and `output`, in order: targets, locals, repeats."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from flagen.diagnostics import Span
from flagen.spec.fields import Fields
from flagen.spec.loader import Bad, Mapping, Node, Scalar, Sequence
from flagen.spec.model import Assign, Expr, Repeat, Statement, Steps
from flagen.spec.names import Symbols, misspelt, quoted
from flagen.spec.report import Report
from flagen.spec.scope import Scope
from flagen.spec.sections import Sections
from flagen.spec.shapes import assign_misfit

_ASSIGNMENT = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=(?!=)\s*")
_AUGMENTED = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(\*\*|//|[-+*/@])=")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NEXT = re.compile(r"[^\S\n]*(-[^\S\n]*)?([A-Za-z_][A-Za-z0-9_]*)\s*=(?!=)")
"""A line that starts a statement of its own."""
_INDEXED = re.compile(r"\s*([A-Za-z][A-Za-z0-9]*?)_?(\[[^]]*\]|\{[^}]*\}|\([^)]*\))\s*=(?!=)")
_ITEM = re.compile(r"\s*-([A-Za-z_][A-Za-z0-9_]*)\s*=(?!=)")
_TYPED = re.compile(r"\s*(\w+)\s+([A-Za-z_][A-Za-z0-9_]*)\s*=(?!=)")
"""An assignment after a word: `let u = ...`."""
_FOREIGN = re.compile(r"\s*([^\W\d]\w*)\s*=(?!=)")
"""An assignment to a name that need not be one of the language."""
_OTHERWISE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(:=|<-|==|\u2190|\u2254|:)")
"""What other notations have in place of `=`."""


@dataclass(frozen=True)
class Target:
    """The left side of a statement, and where its right side starts."""

    name: str
    span: Span
    value_start: int


class Statements:
    """Reads `update`, then `output`."""

    def __init__(self, sections: Sections, fields: Fields, symbols: Symbols, scope: Scope, report: Report) -> None:
        self.sections = sections
        self.fields = fields
        self.symbols = symbols
        self.scope = scope
        self.report = report
        self.updated: set[str] = set()
        """The states that a statement of the update assigns."""
        self.repeats = False
        self.assigned_output = False
        self.sound = True
        """Whether every statement was understood: only then can they be checked as a whole."""

    def update(self, node: Node, steps: Steps | None) -> tuple[Statement, ...]:
        self.scope.place = "update"
        statements: list[Statement | None] = []
        for item in self._items(node, "`update` is a statement, or a list of statements and `repeat` blocks"):
            statements.append(self._repeat(item, steps) if isinstance(item, Mapping) else self._assign(item))
        return tuple(statement for statement in statements if statement is not None)

    def output(self, node: Node) -> tuple[Assign, ...]:
        self.scope.place = "output"
        items = list(self._items(node, "`output` is a statement, or a list of statements"))
        statements = [self._assign(item, last=item is items[-1]) for item in items]
        return tuple(statement for statement in statements if statement is not None)

    def expect_locals(self, *nodes: Node | None) -> None:
        """Tell the scope the targets of all statements, so that a use before its assignment is called just that."""
        for node in nodes:
            for scalar in _statement_texts(node):
                match = _ASSIGNMENT.match(scalar.text)
                if match is not None and self.symbols.get(match[1]) is None and match[1] != "o":
                    self.scope.later.setdefault(match[1], scalar.span.line)

    def _items(self, node: Node, what: str) -> Iterator[Node]:
        if isinstance(node, Sequence) and not node.items:
            self.report.obscured = True
            self.report.error("E211", node.span, "there is no statement here", what)
            self.sound = False
        elif isinstance(node, Sequence):
            yield from uncut_items(node, self.report)
        elif isinstance(node, Scalar) and not node.is_null:
            yield node
        else:
            hint = "a list item starts with `- `, a statement is `S = ...`"
            self.fields.wrong_type(node, what, equals_hint(node) or hint)
            self.report.obscured = True
            self.sound = False

    def _repeat(self, node: Mapping, steps: Steps | None) -> Repeat | None:
        self.repeats = True
        if not any(key.text in ("repeat", "do") for key, _ in node.entries):
            self.fields.wrong_type(node, "a statement is `name = expression`", self._meant(node))
            self.report.obscured = True
            self.sound = False
            return None
        what = "a block is `repeat:` with the step count, and `do:` with statements"
        fields = self.fields.known(node, what, ("repeat", "do"), required=("repeat", "do"))
        if not fields or len(fields) < 2:
            self.report.obscured = True
            self.sound = False
            return None
        self._check_count(fields["repeat"].value, steps)
        self.scope.in_repeat = True
        before = {symbol.name for symbol in self.symbols.of_kind("local")}
        body: list[Assign | None] = []
        for item in self._items(fields["do"].value, "`do` is a statement, or a list of statements"):
            if isinstance(item, Mapping) and any(key.text in ("repeat", "do") for key, _ in item.entries):
                hint = "the steps of a token are one loop"
                self.report.error("E603", item.span, "a block inside a `repeat`: repeats do not nest", hint)
                self.sound = False
            else:
                body.append(self._assign(item))
        self.scope.in_repeat = False
        for symbol in self.symbols.of_kind("local"):
            symbol.closed = symbol.closed or symbol.name not in before
        return Repeat(tuple(statement for statement in body if statement is not None), node.span)

    def _meant(self, node: Mapping) -> str:
        """How to write a statement that has a colon, which is read as what it is meant to be."""
        key, value = node.entries[0] if node.entries else (None, None)
        if key is None or len(node.entries) > 1 or not _IDENTIFIER.fullmatch(key.text):
            return "a block is `repeat: n` and `do: ...`"
        if not isinstance(value, Scalar) or value.is_null:
            return f"write `{key.text} = ...`"
        if (assigned := _ASSIGNMENT.match(value.text)) is not None:
            self._assign(value)
            return f"leave out `{key.text}:`, and write `{assigned[1]} = ...`"
        self._bind(Target(key.text, key.span, 0), self.sections.parsed(value), last=False)
        return f"write `{key.text} = ...`"

    def _check_count(self, node: Node, steps: Steps | None) -> None:
        scalar = self.fields.scalar(node, "`repeat` is the step count that `steps` declares")
        if scalar is None:
            return
        self.sections.expect_steps("E602", "a `repeat`", scalar)
        if steps is not None and scalar.text != steps.symbol:
            message = f"a repeat runs over the declared step count, `{steps.symbol}`, not {quoted(scalar.text)}"
            self.report.error("E602", scalar.span, message, f"write `repeat: {steps.symbol}`")

    def _assign(self, node: Node, last: bool = False) -> Assign | None:
        """One statement; `last` for the last one of `output`, which assigns `o`."""
        what = "a statement is `name = expression`"
        scalar = self.fields.scalar(node, what, equals_hint(node))
        target = None if scalar is None or self._is_several(scalar) else self._target(scalar)
        if scalar is None or target is None:
            self.report.obscured = self.report.obscured or scalar is None
            self.sound = False
            return None
        value = self.sections.parsed(scalar, target.value_start)
        to_state = self._bind(target, value, last)
        if value is None or to_state is None:
            self.sound = False
            return None
        return Assign(target.name, value, to_state, scalar.text.strip(), scalar.at(0, len(scalar.text)))

    def _is_several(self, scalar: Scalar) -> bool:
        """Whether a line of the text starts another statement; then the first that does is reported."""
        text, starts = scalar.lines.text, scalar.later_lines()
        found = next((match for start in starts if (match := _NEXT.match(text, start, scalar.end))), None)
        escaped = "\n" in scalar.text and not scalar.is_verbatim and any(map(_NEXT.match, scalar.text.split("\n")[1:]))
        if found is None and not escaped:
            return False
        self.scope.mention(scalar.text)
        self.scope.expect(scalar.text)
        hint = "write a list with one statement an item, `- ` before each"
        if found is None:
            self.report.error("E413", scalar.span, "several statements in one text; a text is one statement", hint)
            return True
        before = text[text.rfind("\n", 0, scalar.start) + 1 : scalar.start].strip(" ")
        if found[1] and scalar.plain and not before:
            message, dash = "this line is no item, and the next ones are", scalar.text.startswith("-")
            hint = "a space is missing after `-`" if dash else "start it with `- `, as the other items"
            self.report.error("E413", scalar.at(0), message, hint)
            return True
        if found[1] and scalar.plain and before == "-":
            column = scalar.span.column - 2
            hint = f"it continues the item before it, for it is indented further: start it in column {column}"
        span = scalar.lines.span(found.start(2), found.end(2))
        self.report.error("E413", span, "a second statement starts here; a text is one statement", hint)
        return True

    def _target(self, scalar: Scalar) -> Target | None:
        match = _ASSIGNMENT.match(scalar.text)
        if match is not None:
            return Target(match[1], scalar.at(match.start(1), len(match[1])), match.end())
        self.scope.mention(scalar.text)
        self.scope.expect(scalar.text)
        if (foreign := _FOREIGN.match(scalar.text)) is not None:
            if foreign[1] not in self.report.misnamed:
                self.symbols.declare(foreign[1], "local", scalar.at(foreign.start(1), len(foreign[1])))
            return None
        if (augmented := _AUGMENTED.match(scalar.text)) is not None:
            name, operator = augmented.groups()
            hint = f"write `{name} = {name} {operator} ...`"
        elif (item := _ITEM.match(scalar.text)) is not None:
            hint = f"a space is missing after `-`: write `- {item[1]} = ...`"
        elif (typed := _TYPED.match(scalar.text)) is not None:
            hint = f"leave out `{typed[1]}`: write `{typed[2]} = ...`"
        elif (indexed := _INDEXED.match(scalar.text)) is not None:
            hint = f"write `{indexed[1]} = ...`: a name is its value at this token"
        elif (other := _OTHERWISE.match(scalar.text)) is not None and self.scope.place == "update":
            hint = f"write `{other[1]} = ...`"
        elif self.scope.place == "output":
            hint = "write `o = ...`"
        else:
            hint = "the name is a state or a new local"
        message = "this is no assignment `name = expression`"
        self.report.error("E411", scalar.at(0, len(scalar.text)), message, hint)
        return None

    def _bind(self, target: Target, value: Expr | None, last: bool) -> bool | None:
        """Check and record what a statement assigns: whether a state, or None after a diagnostic."""
        if last and target.name != "o":
            if self.assigned_output:
                return None  # Reported there: it was not the last.
            self.report.error("E605", target.span, "the last statement of `output` assigns `o`", "write `o = ...`")
            return None
        if target.name == "o":
            return self._bind_output(target, last)
        symbol = self.symbols.get(target.name)
        if symbol is None:
            return self._bind_local(target, value)
        if symbol.kind == "local" and not self.symbols.complete:
            return None  # It may be a state that could not be read.
        if symbol.kind == "state":
            return self._bind_state(target, symbol.dims, value)
        if symbol.kind == "local":
            message = f"`{target.name}` is already assigned, on line {symbol.span.line}"
            near = misspelt(target.name, [state.name for state in self.symbols.of_kind("state")])
            hint = "a local is assigned once: give this value its own name"
            if near is not None and not symbol.used:
                symbol.used, hint = True, f"did you mean the state `{near}`?"
                self.scope.mentioned.add(near)
            self.report.error("E311", target.span, message, hint)
        else:
            message = f"`{target.name}` is {symbol.described}; a statement assigns a state or a new local"
            self.report.error("E310", target.span, message)
        return None

    def _bind_output(self, target: Target, last: bool) -> bool | None:
        if self.scope.place == "update":
            self.report.error("E310", target.span, "`o` is assigned by `output`, not by the update")
            return None
        if not last:
            self.assigned_output = True
            self.report.error("E605", target.span, "`o` is assigned once, by the last statement of `output`")
            return None
        return False

    def _bind_local(self, target: Target, value: Expr | None) -> bool | None:
        self.scope.later.pop(target.name, None)
        symbol = self.symbols.declare(target.name, "local", target.span, None if value is None else value.dims)
        if value is not None:
            self.sections.look_back.define(target.name, value)
        return None if symbol is None else False

    def _bind_state(self, target: Target, dims: tuple[str, ...] | None, value: Expr | None) -> bool | None:
        if self.scope.place == "output":
            message = f"`{target.name}` is a state, and `output` only reads states"
            self.report.error("E310", target.span, message, "assign it in `update`")
            return None
        self.updated.add(target.name)
        if dims is None or value is None or not self.symbols.doubtful.isdisjoint(dims):
            return None
        if (misfit := assign_misfit(target.name, dims, value)) is not None:
            self.report.error(misfit.code, value.span, misfit.message, misfit.hint)
            return None
        return True


def _statement_texts(node: Node | None) -> Iterator[Scalar]:
    match node:
        case Scalar():
            yield node
        case Sequence(items):
            for item in items:
                yield from _statement_texts(item)
        case Mapping(entries):
            for _, value in entries:
                yield from _statement_texts(value)


def equals_hint(node: Node) -> str:
    """How to write a statement with a colon for its `=`; nothing for other nodes."""
    match node:
        case Mapping(entries=((key, _),)) if _IDENTIFIER.fullmatch(key.text):
            return f"write `{key.text} = ...`"
    return ""


def uncut_items(node: Sequence, report: Report) -> Iterator[Node]:
    """The items of a list, without those that a comma inside brackets cut out of a statement."""
    depth = 0
    for item in node.items:
        balance = item.text.count("(") - item.text.count(")") if isinstance(item, Scalar) and item.plain else 0
        if depth > 0:
            depth += balance
        elif node.flow and balance > 0:
            report.obscured = True
            hint = 'quote the statement ("..."), or write the list in block style, one `- ` a line'
            report.error("E114", item.span, "inside [ ] a comma ends the item, here mid-statement", hint)
            depth = balance
            yield Bad(item.span)
        else:
            yield item
