"""YAML text to nodes that know where every one of their characters stands.

Works on the parser's events, never on its objects: nothing is constructed, so no tag can run code; the tree is built
with an explicit stack, so no nesting can exhaust the interpreter's; and aliases are counted, so no bomb goes off.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import NoReturn

import yaml

from flagen.diagnostics import Source, Span
from flagen.spec.limits import MAX_ALIASES, MAX_BYTES, MAX_NESTING
from flagen.spec.names import quoted
from flagen.spec.report import Abandon, Report
from flagen.spec.slips import explained

_YamlLoader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader

# What YAML calls printable, so that a stray control character is reported at its place rather than by byte offset.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BLOCK_HEADER = re.compile(r"[|>][^\r\n\x85\u2028\u2029]*")


class Lines:
    """Translates character offsets of a text to spans."""

    def __init__(self, source: Source) -> None:
        self.file = source.file
        self.text = source.text
        self._starts = [0]
        for line in source.text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def span(self, start: int, end: int) -> Span:
        """The characters from `start` to `end`, cut at the end of the first line."""
        line = bisect_right(self._starts, start)
        if line == len(self._starts) and line > 1:
            # Past a last line that has no line break after it.
            line -= self.text[-1:] not in "\n\r\x85\u2028\u2029"
        first = self._starts[line - 1]
        stop = self._starts[line] if line < len(self._starts) else len(self.text)
        length = len(self.text[start : min(end, stop)].rstrip())
        return Span(self.file, line, start - first + 1, max(1, length))


@dataclass(frozen=True)
class Scalar:
    """A scalar as text; quoted or not, it is never interpreted here."""

    text: str
    plain: bool
    span: Span
    start: int = field(repr=False)
    end: int = field(repr=False)
    lines: Lines = field(repr=False, compare=False)

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in ("", "~", "null", "Null", "NULL")

    def at(self, offset: int, length: int = 1) -> Span:
        """Where the characters `offset` to `offset + length` of `text` stand in the file.

        Exact for plain, quoted and block scalars, folded ones too; a scalar with escapes is pointed at as a whole.
        """
        places = self._places
        if places is None:
            return self.span
        start = places[offset]
        return self.lines.span(start, max(places[offset + max(length, 1) - 1], start) + 1)

    @property
    def is_verbatim(self) -> bool:
        """Whether the characters of the text stand in the file as they are, with no escapes."""
        return self._places is not None

    def precedes(self, sign: str) -> bool:
        """Whether `sign` is what follows in the file, on the same line."""
        return re.compile(r" *" + re.escape(sign)).match(self.lines.text, self.end) is not None

    def upto(self, end: int) -> Scalar:
        """The plain text from where this one starts to `end`, an offset in the file."""
        text = self.lines.text[self.start : end]
        return Scalar(text, True, self.lines.span(self.start, end), self.start, end, self.lines)

    def later_lines(self) -> Iterator[int]:
        """Where the lines after that of the text's first word start in the file."""
        first = len(self.text) - len(self.text.lstrip())
        if self._places is not None:
            for match in re.finditer(r"\n", self.lines.text[self._places[first] : self.end]):
                yield self._places[first] + match.end()

    @cached_property
    def _places(self) -> Seq[int] | None:
        """The place in the file of every character of `text`, and of the end after them."""
        raw = self.lines.text[self.start : self.end]
        header = None if self.plain else _BLOCK_HEADER.match(raw)
        if header is None:
            skip = 0 if self.plain else 1
            inside = raw[skip : len(raw) - skip]
        else:
            skip = header.end()
            inside = raw[skip:]
        first = self.start + skip
        if inside == self.text:
            return range(first, first + len(self.text) + 1)
        # Folding changes nothing but white space: the other characters are all there, in order.
        solid = [first + i for i, char in enumerate(inside) if not char.isspace()]
        if "".join(inside.split()) != "".join(self.text.split()):
            return None
        places: list[int] = []
        upcoming = iter(solid)
        after = first
        for char in self.text:
            place = after if char.isspace() else next(upcoming)
            places.append(place)
            after = place + 1
        return [*places, after]


@dataclass(frozen=True)
class Mapping:
    entries: tuple[tuple[Scalar, Node], ...]
    flow: bool
    span: Span


@dataclass(frozen=True)
class Sequence:
    items: tuple[Node, ...]
    flow: bool
    span: Span


@dataclass(frozen=True)
class Bad:
    """A node that was reported already; whoever meets it stays silent."""

    span: Span


Node = Scalar | Mapping | Sequence | Bad


def load(data: bytes, file: str) -> tuple[Mapping | None, Report]:
    """Read the bytes of a spec. The mapping is None where the file is so wrong that nothing more can be said."""
    text, bad_byte = _decode(data)
    source = Source(file, text)
    report = Report(source)
    lines = Lines(source)
    try:
        if len(data) > MAX_BYTES:
            report.error("E103", Span(file, 1, 1), f"the file is larger than {MAX_BYTES // 1024} KiB")
            raise Abandon
        if bad_byte is not None:
            span = lines.span(bad_byte, bad_byte + 1)
            report.error("E102", span, "the file is not UTF-8 text", "save it in the encoding UTF-8")
            raise Abandon
        if (found := _UNPRINTABLE.search(text)) is not None:
            span = lines.span(found.start(), found.end())
            report.error("E113", span, f"the character U+{ord(found.group()):04X} cannot stand in a text file")
            raise Abandon
        return _Builder(lines, report).document(), report
    except Abandon:
        return None, report


def _decode(data: bytes) -> tuple[str, int | None]:
    """The text without its byte order mark, and the offset of the first character that is not UTF-8."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return data.decode("utf-8", "replace"), len(data[: error.start].decode("utf-8"))


@dataclass
class _Open:
    """A collection whose end has not been reached."""

    event: yaml.events.CollectionStartEvent
    is_mapping: bool
    refused: bool
    nodes: list[Node] = field(default_factory=list)


class _Builder:
    """Builds the one document's tree from the parser's events."""

    def __init__(self, lines: Lines, report: Report) -> None:
        self.lines = lines
        self.report = report
        self.anchors: dict[str, Node] = {}
        self.aliases = 0
        self.stack: list[_Open] = []

    def document(self) -> Mapping:
        stack = self.stack
        root: Node | None = None
        documents = 0
        for event in self._events():
            node: Node | None = None
            match event:
                case yaml.events.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        self._abandon("E106", self._span(event), "a second document starts here; a spec is one")
                case yaml.events.ScalarEvent():
                    node = self._scalar(event)
                case yaml.events.AliasEvent():
                    node = self._alias(event)
                case yaml.events.CollectionStartEvent():
                    if len(stack) == MAX_NESTING:
                        self._abandon("E111", self._span(event), f"nested more than {MAX_NESTING} levels deep")
                    refused = self._refuse_tag(event)
                    stack.append(_Open(event, isinstance(event, yaml.events.MappingStartEvent), refused))
                case yaml.events.CollectionEndEvent():
                    opened = stack.pop()
                    node = self._collection(opened, _extent(event)[1])
            if node is None:
                continue
            if stack:
                stack[-1].nodes.append(node)
            else:
                root = node
        return self._checked_root(root)

    def _events(self) -> Iterator[yaml.events.Event]:
        seen = 0
        try:
            for event in yaml.parse(self.lines.text, Loader=_YamlLoader):
                seen += 1
                yield event
        except yaml.MarkedYAMLError as error:
            if "nesting depth" in (error.problem or ""):
                # Some libyaml read ahead, and give up before they tell of what is too deep here: PyYAML's parser does.
                yield from islice(yaml.parse(self.lines.text, Loader=yaml.SafeLoader), seen, None)
            flow = [_extent(opened.event)[0] for opened in self.stack if opened.event.flow_style]
            slip = explained(self.lines.text, error, flow)
            span = self.lines.span(slip.start, slip.end)
            if any(found.code == "E110" and found.span.line == span.line for found in self.report.diagnostics):
                raise Abandon from None  # A text that starts with `*`, which has been reported as an alias.
            self._abandon("E104", span, f"not YAML: {slip.message}", slip.hint)
        except yaml.YAMLError as error:
            self._abandon("E104", self.lines.span(0, 1), f"not YAML: {error}")

    def _checked_root(self, root: Node | None) -> Mapping:
        match root:
            case Mapping():
                return root
            case None:
                self._abandon("E105", self.lines.span(0, 1), "the file holds no spec", "start with `flagen: 1`")
            case Scalar() if root.is_null:
                self._abandon("E105", root.span, "the file holds no spec", "start with `flagen: 1`")
            case Bad():
                raise Abandon
            case _:
                kind = "a list" if isinstance(root, Sequence) else "text"
                self._abandon("E107", root.span, f"a spec is a mapping of keys to values, not {kind}")

    def _scalar(self, event: yaml.events.ScalarEvent) -> Node:
        span = self._span(event)
        refused = self._refuse_tag(event)
        start, end = _extent(event)
        scalar = Scalar(event.value, not event.style, span, start, end, self.lines)
        return self._anchor(event.anchor, Bad(span) if refused else scalar)

    def _alias(self, event: yaml.events.AliasEvent) -> Node:
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            self._abandon("E110", self._span(event), f"more than {MAX_ALIASES} aliases", "write the values out")
        if event.anchor in self.anchors:
            return self.anchors[event.anchor]
        self.report.obscured = True
        message, hint = (
            f"no value before this one is anchored as `&{event.anchor}`",
            "quote a text that starts with `*`",
        )
        self.report.error("E110", self._span(event), message, hint)
        return Bad(self._span(event))

    def _collection(self, opened: _Open, end: int) -> Node:
        start, _ = _extent(opened.event)
        flow = bool(opened.event.flow_style)
        span = self.lines.span(start, end if flow else start + 1)
        node: Node
        if opened.refused:
            node = Bad(span)
        elif opened.is_mapping:
            node = Mapping(self._entries(opened.nodes, flow), flow, span)
        else:
            node = Sequence(tuple(opened.nodes), flow, span)
        return self._anchor(opened.event.anchor, node)

    def _entries(self, nodes: list[Node], flow: bool) -> tuple[tuple[Scalar, Node], ...]:
        entries: dict[str, tuple[Scalar, Node]] = {}
        for key, value in zip(nodes[::2], nodes[1::2], strict=True):
            if isinstance(key, Bad):
                continue
            if not isinstance(key, Scalar):
                self.report.obscured = True
                self.report.error("E112", key.span, "a key is a name, not a list or a mapping")
            elif key.text in entries:
                if flow and isinstance(value, Scalar) and value.is_null:
                    continue  # A piece of an expression that was cut at its commas; the cut is what gets reported.
                self.report.obscured = True
                first = entries[key.text][0].span.line
                message = f"the key {quoted(key.text)} is given twice"
                self.report.error("E108", key.span, message, f"the first one is on line {first}")
            else:
                entries[key.text] = (key, value)
        return tuple(entries.values())

    def _anchor(self, anchor: str | None, node: Node) -> Node:
        if anchor is not None:
            self.anchors[anchor] = node
        return node

    def _refuse_tag(self, event: yaml.events.NodeEvent) -> bool:
        tag: str | None = event.tag  # type: ignore[attr-defined]
        if tag is None:
            return False
        self.report.obscured = True
        shown = tag.replace("tag:yaml.org,2002:", "!!", 1)
        message = f"YAML tags such as {quoted(shown)} are not part of the language"
        self.report.error("E109", self._span(event), message, "write the plain value")
        return True

    def _span(self, event: yaml.events.Event) -> Span:
        start, end = _extent(event)
        return self.lines.span(start, max(end, start + 1))

    def _abandon(self, code: str, span: Span, message: str, hint: str = "") -> NoReturn:
        self.report.error(code, span, message, hint)
        raise Abandon


def _extent(event: yaml.events.Event) -> tuple[int, int]:
    """Where an event starts and ends in the text, in characters."""
    start, end = event.start_mark, event.end_mark
    assert start is not None and end is not None, "events that were read from a text have marks"
    return start.index, end.index
