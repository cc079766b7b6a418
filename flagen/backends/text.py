"""Small pieces of text that every backend needs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable


def tuple_of(items: Iterable[str]) -> str:
    """A tuple display: `()`, `(a,)`, `(a, b)`."""
    parts = list(items)
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


def listed(names: Iterable[str]) -> str:
    """`a, b and c`."""
    every = list(names)
    return " and ".join(filter(None, (", ".join(every[:-1]), *every[-1:])))


def one_line(text: str) -> str:
    """Free text from a spec as part of one line of a docstring: white space folded, nothing that could end the string,
    escape a character or hide one."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split()).replace("\\", "\\\\").replace('"', "'")


def cited(paper: str) -> str:
    """What follows a title: its paper in parentheses, where there is one."""
    return f" ({one_line(paper)})" if paper else ""


def wrapped(line: str, width: int) -> tuple[str, ...]:
    """`line` broken at spaces to `width` characters; what continues is indented."""
    indent = line[: len(line) - len(line.lstrip())]
    parts = textwrap.wrap(
        line.strip(),
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return tuple(parts) or ("",)


_MARKDOWN = str.maketrans({char: f"\\{char}" for char in "\\`*_{}[]()#+!|<>~$&"})


def markdown(text: str) -> str:
    """Free text from a spec as part of one line of Markdown: nothing in it is markup. A plain URL stays a link."""
    folded = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    if folded.startswith(("https://", "http://")) and not set(folded) & set("\\`*[]()|<>~$ \"'"):
        return f"<{folded}>"
    return folded.translate(_MARKDOWN)
