"""What is wrong with a text that is not YAML: the parser tells where it gave up, a person looks for the slip."""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

_CLOSING = {"{": "}", "[": "]", "(": ")"}
_KEY = re.compile(r"[ ]*(\w+)")
_KEY_AND_BRACE = re.compile(r"[ ]*(\w+)[ ]*\{[^:\n]*:")
"""A key whose value is in braces, with no colon between them."""
_ITEM = re.compile(r"-(?=[A-Za-z_])")
_STATEMENT = re.compile(r"[A-Za-z_]\w*\s*=(?!=)")
_SECTION = re.compile(r"^(\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Slip:
    """Where in the text, in characters, what is wrong there, and what to do about it."""

    start: int
    end: int
    message: str
    hint: str


def explained(text: str, error: yaml.MarkedYAMLError, flow: list[int]) -> Slip:
    """What a parser's error comes from. `flow` is where braces and brackets stand that are open, the innermost last."""
    problem = error.problem or error.context or "it cannot be read"
    mark, context = error.problem_mark or error.context_mark, error.context_mark
    at = min(mark.index, len(text)) if mark is not None else 0
    began = min(context.index, len(text)) if context is not None else at
    character = text[at : at + 1]
    if "quoted scalar" in (error.context or ""):
        return Slip(began, began + 1, "this quote is not closed", "close it, or write the text without quotes")
    outer = [place for place in flow if place < at]
    if outer and ("',' or" in problem or "flow" in (error.context or "")):
        return _unclosed(text, outer[-1], at)
    if character == "\t" or text[:at].rpartition("\n")[2].startswith("\t"):
        tab = at if character == "\t" else text.rfind("\n", 0, at) + 1
        return Slip(tab, tab + 1, "a line is indented with a tab", "indent with spaces")
    if (key := _KEY_AND_BRACE.match(text, _line_start(text, at), at)) is not None and not outer:
        return Slip(key.start(1), key.end(1), "a colon is missing after this", f"write `{key[1]}: {{...}}`")
    if "cannot start any token" in problem:
        return Slip(at, at + 1, f"a value cannot start with `{character}`", "quote the value")
    if character in "}])" and character:
        return Slip(at, at + 1, f"this `{character}` closes nothing", "leave it out, or open it before")
    if "could not find expected ':'" in problem:
        return _no_colon(text, began)
    if "mapping values are not allowed" in problem and (key := _KEY.fullmatch(text, _line_start(text, at), at)):
        above = _line_without_colon(text, at)
        return Slip(key.start(1), key.end(1), *_COLUMN) if above is None else _no_colon(text, above)
    before = text[:at].rpartition("\n")[2]
    if character == "," and before.strip(" -"):
        rest = text[at + 1 :].partition("\n")[0].partition(" #")[0].strip()
        if not rest or re.match(r"\w+\s*:", rest):
            hint = "write one entry a line, or all of them in { }" if rest else "leave it out"
            return Slip(at, at + 1, "this comma cannot stand here: it parts what is in { } and [ ]", hint)
    if before.strip(" -") and "mapping values" not in problem and "block sequence" not in problem:
        return Slip(at, at + 1, "this cannot stand here", _QUOTE)
    known = next((known for part, known in _KNOWN.items() if part in problem), None)
    message, hint = known if known is not None else (problem, "")
    return Slip(at, at + 1, message, hint)


def _unclosed(text: str, start: int, at: int) -> Slip:
    """A brace or bracket that is not closed, or not by its own kind: the one that is, or the innermost one."""
    opened: list[int] = []
    for i in _outside_quotes(text, start, min(at + 1, len(text))):
        if text[i] in _CLOSING:
            if i > start and text[i] != "(" and re.match(r"[\w)]", text[i - 1]):
                hint = "a call is written with parentheses, `exp(g)`; nothing is indexed"
                return Slip(i, i + 1, f"a `{text[i]}` inside a value", hint)
            opened += [i] if i < at else []
        elif text[i] in _CLOSING.values() and opened:
            last = opened.pop()
            if text[i] != _CLOSING[text[last]] and text[start:i].rstrip(" ")[-1:] == ":":
                return Slip(i, i + 1, f"a value cannot start with `{text[i]}`", "a range is written `[0, 1]`")
            if text[i] != _CLOSING[text[last]]:
                hint = f"close it with `{_CLOSING[text[last]]}`; a range is written `[0, 1]`, its ends included"
                return Slip(last, last + 1, f"this `{text[last]}` is closed by `{text[i]}`", hint)
    last = next((i for i in reversed(opened) if text[i] != "("), start)
    hint = f"close it with `{_CLOSING[text[last]]}`"
    if "\n" not in text[last:at]:
        return _misplaced(text, last, at)
    return Slip(last, last + 1, f"this `{text[last]}` is not closed", hint)


def _misplaced(text: str, opened: int, at: int) -> Slip:
    """What cannot stand where it does, on the line of an open brace or bracket."""
    before, character = text[opened:at].rstrip(" "), text[at : at + 1]
    if character == ",":
        return Slip(at, at + 1, "a value is missing before this comma", "leave the comma out")
    if character == ";":
        return Slip(at, at + 1, "this is no comma", "entries are parted by `, `")
    if character in "[{" and before.endswith("="):
        return Slip(at - 1, at, "a name and its value are parted by `: `, not by `=`", "write `name: value`")
    if character in "[{" and (key := re.search(r"(\w+)[ ]*\Z", before)) is not None:
        place = opened + key.start(1)
        return Slip(place, opened + key.end(1), "a colon is missing after this", f"write `{key[1]}: {character}...`")
    if before.endswith(("]", "}", '"')) and character.isalnum():
        return Slip(at, at + 1, "a comma is missing before this", "entries are parted by `, `")
    return Slip(at, at + 1, f"this cannot stand inside `{text[opened]} {_CLOSING[text[opened]]}`", _QUOTE)


def _line_start(text: str, at: int) -> int:
    return text.rfind("\n", 0, at) + 1


def _line_without_colon(text: str, at: int) -> int | None:
    """Where the text of the line before that of `at` starts, if it has no colon: both are one value then."""
    end = _line_start(text, at) - 1
    start = _line_start(text, max(end, 0))
    line = text[start : max(end, 0)]
    return start + len(line) - len(line.lstrip()) if line.strip() and ":" not in line else None


def _outside_quotes(text: str, start: int, stop: int) -> list[int]:
    """The places of a text that are in no quotes; a quote starts a value."""
    found, quote = [], ""
    for i in range(start, stop):
        if quote:
            quote = "" if text[i] == quote else quote
        elif text[i] in "\"'" and text[max(start, i - 20) : i].rstrip(" ")[-1:] in ("", ":", ",", "[", "{"):
            quote = text[i]
        else:
            found.append(i)
    return found


def _no_colon(text: str, at: int) -> Slip:
    line = text[at:].partition("\n")[0].partition(" #")[0].rstrip()
    if _ITEM.match(line):
        return Slip(at, at + 1, "a space is missing after this", f"write `- {line[1:]}`")
    if (target := _STATEMENT.match(line)) is not None and (hint := _statement_hint(text, at)):
        return Slip(at, at + len(target[0].rstrip(" =")), "a statement cannot stand here", hint)
    name, colon, rest = line.partition(":")
    if colon and rest:
        place = at + len(name)
        return Slip(place, place + 1, "a space is missing after this colon", f"write `{name}: {rest.strip()}`")
    word = re.match(r"\S+", line)
    length = len(word[0]) if word is not None else max(len(line), 1)
    return Slip(at, at + length, "a colon is missing after this", f"write `{line[:length]}: ...`")


def _statement_hint(text: str, at: int) -> str:
    """How to write a statement that stands among items or keys of `update` or `output`; nothing in other sections."""
    sections = _SECTION.findall(text, 0, at)
    if not sections or sections[-1] not in ("update", "output"):
        return ""
    above = text[: _line_start(text, at)].rstrip().rpartition("\n")[2].strip()
    if above.removeprefix("-").lstrip().startswith("repeat:"):
        return "the statements of a `repeat` stand under `do:`"
    if above.startswith("- "):
        return "start it with `- `, in the column of the other items"
    return f"`{sections[-1]}` is one statement, or a list with `- ` before each, and no keys"


_QUOTE = 'put the whole value in double quotes, "..."'
_COLUMN = ("this line is not in line with those before it", "what belongs together starts in one column")
_KNOWN = {
    "mapping values are not allowed": (
        "a second `: ` in one value",
        "quote a text with `: `; entries stand in { }",
    ),
    "block sequence entries are not allowed": ("a `- ` inside a value", "quote a value that starts with `- `"),
    "did not find expected alphabetic": ("an alias without a name", "quote a value that starts with `*` or `&`"),
    "did not find expected key": _COLUMN,
    "<block end>": _COLUMN,
    "expected '-' indicator": ("this is no item, and the lines before it are", "write all with `- `, or all without"),
}
"""The parser's problems by a part of their words, in words of the language."""
