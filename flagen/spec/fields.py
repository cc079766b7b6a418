"""Typed access to YAML nodes: known keys, texts, numbers, choices. Each reports what it finds wrong, once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping as Map
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from flagen.spec.loader import Bad, Mapping, Node, Scalar, Sequence
from flagen.spec.names import did_you_mean, listed, nearest, quoted
from flagen.spec.report import Report

if TYPE_CHECKING:
    from flagen.spec.layer.model import Constant

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}\Z")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\Z")
_APART = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\s*[=:]\s*)(\S.*)", re.DOTALL)
_BRACE = re.compile(r"(\w+)\s*([{\[])")
"""A key that runs on into the value it should be parted from."""
_LISTS = ("range", "dims")
"""The keys whose value is a list."""
_PIECES = re.compile(r"[^:\n}]*?(?=\s*(?:,\s*\w+\s*:|,?\s*\}))")
"""What stands before the next key, or before the brace that closes."""
_OPEN = re.compile(r"inf|oo|\u221e|none|null", re.IGNORECASE)
_INFINITE = re.compile(r"([+-]?)\.(?:inf|Inf|INF)\Z")
_TRUTH = {"true": True, "True": True, "false": False, "False": False}


class Missing:
    """In place of a value that could not be read."""


MISSING = Missing()


@dataclass(frozen=True)
class Field:
    """One entry of a mapping."""

    key: Scalar
    value: Node


class Fields:
    """Reads nodes on behalf of one report."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._doubtful: list[Node] = []
        """The values of misspelt keys: what is of another type was meant for another key."""

    def entries(self, node: Node, what: str, lists: bool = False) -> list[Field] | None:
        """The entries of a mapping that is free in its keys; with `lists`, its values may be lists."""
        if not isinstance(node, Mapping):
            self.wrong_type(node, what)
            return None
        return self._uncut(node, lists)

    def known(
        self,
        node: Node,
        what: str,
        keys: Seq[str],
        required: Seq[str] = (),
        elsewhere: Map[str, str] = MappingProxyType({}),
    ) -> dict[str, Field] | None:
        """The entries of a mapping with fixed keys. A misspelt key counts as the missing key it is near to, so that
        its absence and everything under it are not reported as well. `elsewhere` has hints for keys that stand in
        other files."""
        entries = self.entries(node, what)
        if entries is None:
            return None
        fields = {field.key.text: field for field in entries if field.key.text in keys}
        unknown = [field for field in entries if field.key.text not in keys]
        missing = [name for name in required if name not in fields]
        for field in unknown:
            name = field.key.text
            if name in elsewhere:
                self.report.error("E202", field.key.span, f"unknown key {quoted(name)}", elsewhere[name])
                continue
            near = nearest(name, keys)
            if near is None and len(unknown) == len(missing) == 1 and len(required) == 1:
                near = missing[0]  # Called otherwise.
            hint = f"did you mean `{near}`?" if near is not None else f"the keys here are {listed(keys)}"
            self.report.error("E202", field.key.span, f"unknown key {quoted(name)}", hint)
            if near is not None:
                fields.setdefault(near, field)
                self._doubtful.append(field.value)
        for name in required:
            if name not in fields:
                value = {"flagen": "1", "dims": "[]` for a scalar, `dims: [K]"}.get(name, "...")
                self.report.error("E201", node.span, f"the key `{name}` is missing", f"add `{name}: {value}`")
        return fields

    def items(self, node: Node, what: str) -> Seq[Node] | None:
        if isinstance(node, Sequence):
            return node.items
        self.wrong_type(node, what)
        return None

    def scalar(self, node: Node, what: str, hint: str = "") -> Scalar | None:
        """Text that is there: not empty, not null."""
        if isinstance(node, Scalar) and not node.is_null:
            return node
        self.wrong_type(node, what, hint)
        return None

    def text(self, node: Node, what: str) -> str:
        scalar = self.scalar(node, what)
        return "" if scalar is None else scalar.text

    def choice(self, node: Node, what: str, choices: Seq[str]) -> str | None:
        scalar = self.scalar(node, f"{what} is {' or '.join(f'`{choice}`' for choice in choices)}")
        if scalar is None or scalar.text in choices:
            return None if scalar is None else scalar.text
        otherwise = f"it is {' or '.join(f'`{choice}`' for choice in choices)}"
        message = f"{what} cannot be {quoted(scalar.text)}"
        self.report.error("E204", scalar.span, message, did_you_mean(scalar.text, choices, otherwise))
        return None

    def positive_integer(self, node: Node, what: str) -> int | None:
        scalar = self.scalar(node, f"{what} is a positive integer")
        if scalar is None:
            return None
        if not scalar.plain or not _INTEGER.match(scalar.text):
            self.report.error("E203", scalar.span, f"{what} is a positive integer, not {_kind(scalar)}")
            return None
        value = int(scalar.text)
        if value > 0:
            return value
        self.report.error("E209", scalar.span, f"{what} is at least 1")
        return None

    def number(self, node: Node, what: str) -> float | None:
        """A decimal number, or an infinite one."""
        if _is_null(node):
            self.wrong_type(node, f"{what} is a number", "infinity is written `.inf` or `-.inf`")
            return None
        scalar = self.scalar(node, f"{what} is a number")
        if scalar is None:
            return None
        if scalar.plain and (infinite := _INFINITE.match(scalar.text)):
            return -math.inf if infinite[1] == "-" else math.inf
        if not scalar.plain or not _FLOAT.match(scalar.text):
            hint = "infinity is written `.inf` or `-.inf`" if _OPEN.search(scalar.text) else ""
            self.report.error("E203", scalar.span, f"{what} is a number, not {_kind(scalar)}", hint)
            return None
        value = float(scalar.text)
        if math.isfinite(value):
            return value
        self.report.error("E209", scalar.span, f"{what} is larger than any float", "infinity is written `.inf`")
        return None

    def truth(self, node: Node, what: str) -> bool | None:
        """`true` or `false`."""
        text = self.choice(node, what, ("true", "false"))
        return None if text is None else text == "true"

    def constant(self, node: Node, what: str) -> Constant | Missing:
        """What a config can be given: a number, a text, `true`, `false`, `null`, or a list of such."""
        if isinstance(node, Sequence):
            items = [self.constant(item, what) for item in node.items]
            flat = tuple(item for item in items if not isinstance(item, tuple | Missing))
            if len(flat) == len(items):
                return flat
            if not any(isinstance(item, Missing) for item in items):
                self.wrong_type(node, what, "a list holds numbers and texts")
            return MISSING
        if not isinstance(node, Scalar):
            self.wrong_type(node, what)
            return MISSING
        if not node.plain:
            return node.text
        if node.is_null:
            return None
        if node.text in _TRUTH:
            return _TRUTH[node.text]
        if node.text.lower() in ("yes", "no", "on", "off", "true", "false", "none"):
            meant = {"none": "null"}.get(node.text.lower(), "true` or `false")
            self.wrong_type(node, what, f"write `{meant}`, or quote the text")
            return MISSING
        if _INTEGER.match(node.text):
            return int(node.text)
        if _FLOAT.match(node.text) or _INFINITE.match(node.text):
            number = self.number(node, what)
            return MISSING if number is None else number
        return node.text

    def wrong_type(self, node: Node, what: str, hint: str = "") -> None:
        """Report a node of the wrong kind; `what` says what belongs there."""
        if not isinstance(node, Bad) and not any(node is doubtful for doubtful in self._doubtful):
            found = f"{what}; there is nothing here" if _is_null(node) else f"{what}, not {_kind(node)}"
            if isinstance(node, Scalar) and node.is_null and node.precedes("#"):
                hint = "what starts with ` #` is a comment: quote it"
            self.report.error("E203", node.span, found, hint)

    def _uncut(self, node: Mapping, lists: bool) -> list[Field]:
        """The entries, without those that a comma inside braces cut out of a value."""
        kept: list[Field] = []
        depth = 0
        for key, value in node.entries:
            text = key.text + (value.text if isinstance(value, Scalar) else "")
            balance = text.count("(") - text.count(")")
            if depth > 0:
                depth += balance
                continue
            if node.flow and balance > 0 and isinstance(value, Scalar) and value.plain and value.precedes(","):
                depth = balance
                kept.append(Field(key, self._rejoined(value, lists or key.text in _LISTS)))
            elif not node.flow and key.plain and (brace := _BRACE.match(key.text)) is not None:
                name = brace[1]
                hint = f"write `{name}: {brace[2]}...`"
                self.report.error("E115", key.at(0, len(name)), f"a colon is missing after {quoted(name)}", hint)
                kept.append(Field(key.upto(key.start + len(name)), Bad(key.span)))
            elif node.flow and _has_no_colon(key, value):
                kept += self._piece(key, kept)
            else:
                kept.append(Field(key, value))
        return kept

    def _rejoined(self, value: Scalar, is_list: bool) -> Node:
        """A value that was cut at a comma within parentheses: a list that should have brackets; else it is reported."""
        closed = value.lines.text.find(")", value.start)
        if is_list and re.match(r"\w*\(", value.text) and closed > 0:
            return value.upto(closed + 1)
        hint = 'quote the expression ("..."), or write the section in block style, one name a line'
        self.report.error("E114", value.span, "inside { } a comma ends the value, here mid-expression", hint)
        return Bad(value.span)

    def _piece(self, key: Scalar, before: list[Field]) -> list[Field]:
        """What stands between two commas without a colon: the rest of a text, or a name beside its value."""
        apart = _APART.match(key.text)
        if apart is not None:
            name, sign, rest = apart.groups()
            hint = f"write `{name}: {rest}`"
            message = f"a name and its value are parted by `: `, not by {quoted(sign.strip() or sign)}"
            self.report.error("E115", key.at(apart.start(2), len(sign)), message, hint)
            return [Field(key.upto(key.start + len(name)), Bad(key.span))]
        text = before[-1].value if before else None
        if isinstance(text, Bad):
            return []  # The cut has been reported.
        if isinstance(text, Scalar) and text.plain:
            name = before[-1].key.text
            hint, cut = f'quote the text: `{name}: "..."`', "mid-text"
            if name in _LISTS and (listed := _PIECES.match(text.lines.text, text.start)) is not None:
                hint, cut = f"a list has brackets: write `{name}: [{listed[0].rstrip()}]`", "mid-list"
            self.report.error("E114", text.span, f"inside {{ }} a comma ends the value, here {cut}", hint)
            before[-1] = Field(before[-1].key, Bad(text.span))
            return []
        self._no_value(key)
        return [Field(key, Bad(key.span))]

    def _no_value(self, key: Scalar) -> None:
        hint = "inside { } an entry is `name: value`"
        self.report.error("E115", key.span, f"{quoted(key.text)} has no value", hint)


def _has_no_colon(key: Scalar, value: Node) -> bool:
    return isinstance(value, Scalar) and value.is_null and ":" not in key.lines.text[key.end : value.end]


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.is_null


def _kind(node: Node) -> str:
    match node:
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"
        case Scalar(text, plain):
            return quoted(text) if plain else f"the text {quoted(text)}"
        case Bad():
            return "this"
