"""Typed access to YAML nodes: known keys, texts, numbers, choices. Each reports what it finds wrong, once."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from flagen.spec.loader import Bad, Mapping, Node, Scalar, Sequence
from flagen.spec.names import did_you_mean, listed, nearest, quoted
from flagen.spec.report import Report

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}\Z")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\Z")
_INFINITE = re.compile(r"([+-]?)\.(?:inf|Inf|INF)\Z")


@dataclass(frozen=True)
class Field:
    """One entry of a mapping."""

    key: Scalar
    value: Node


class Fields:
    """Reads nodes on behalf of one report."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def entries(self, node: Node, what: str) -> list[Field] | None:
        """The entries of a mapping that is free in its keys."""
        if not isinstance(node, Mapping):
            self.wrong_type(node, what)
            return None
        return self._uncut(node)

    def known(self, node: Node, what: str, keys: Seq[str], required: Seq[str] = ()) -> dict[str, Field] | None:
        """The entries of a mapping with fixed keys. A misspelt key counts as the missing key it is near to, so that
        its absence and everything under it are not reported as well."""
        entries = self.entries(node, what)
        if entries is None:
            return None
        fields = {field.key.text: field for field in entries if field.key.text in keys}
        for field in entries:
            name = field.key.text
            if name in keys:
                continue
            near = nearest(name, keys)
            hint = did_you_mean(name, keys, f"the keys here are {listed(keys)}")
            self.report.error("E202", field.key.span, f"unknown key {quoted(name)}", hint)
            if near is not None:
                fields.setdefault(near, field)
        for name in required:
            if name not in fields:
                self.report.error("E201", node.span, f"the key `{name}` is missing", f"add `{name}: ...`")
        return fields

    def items(self, node: Node, what: str) -> Seq[Node] | None:
        if isinstance(node, Sequence):
            return node.items
        self.wrong_type(node, what)
        return None

    def scalar(self, node: Node, what: str) -> Scalar | None:
        """Text that is there: not empty, not null."""
        if isinstance(node, Scalar) and not node.is_null:
            return node
        self.wrong_type(node, what)
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
        scalar = self.scalar(node, f"{what} is a number")
        if scalar is None:
            return None
        if scalar.plain and (infinite := _INFINITE.match(scalar.text)):
            return -math.inf if infinite[1] == "-" else math.inf
        if not scalar.plain or not _FLOAT.match(scalar.text):
            hint = "infinity is written `.inf` or `-.inf`" if "inf" in scalar.text.lower() else ""
            self.report.error("E203", scalar.span, f"{what} is a number, not {_kind(scalar)}", hint)
            return None
        value = float(scalar.text)
        if math.isfinite(value):
            return value
        self.report.error("E209", scalar.span, f"{what} is larger than any float", "infinity is written `.inf`")
        return None

    def wrong_type(self, node: Node, what: str, hint: str = "") -> None:
        """Report a node of the wrong kind; `what` says what belongs there."""
        if not isinstance(node, Bad):
            found = f"{what}; there is nothing here" if _is_null(node) else f"{what}, not {_kind(node)}"
            self.report.error("E203", node.span, found, hint)

    def _uncut(self, node: Mapping) -> list[Field]:
        """The entries, without those that a comma inside braces cut out of an expression."""
        kept: list[Field] = []
        depth = 0
        for key, value in node.entries:
            text = key.text + (value.text if isinstance(value, Scalar) else "")
            balance = text.count("(") - text.count(")")
            if depth > 0:
                depth += balance
                continue
            if node.flow and balance > 0 and isinstance(value, Scalar) and value.plain:
                hint = 'quote the expression ("..."), or write the section in block style, one name a line'
                self.report.error("E114", value.span, "inside { } a comma ends the value, here mid-expression", hint)
                depth = balance
                kept.append(Field(key, Bad(value.span)))
                continue
            kept.append(Field(key, value))
        return kept


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
