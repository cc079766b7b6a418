"""Small pieces of text that every backend needs."""

from __future__ import annotations

from collections.abc import Iterable


def tuple_of(items: Iterable[str]) -> str:
    """A tuple display: `()`, `(a,)`, `(a, b)`."""
    parts = list(items)
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


def one_line(text: str) -> str:
    """Free text from a spec as part of one line of a docstring: white space folded, nothing that could end the string,
    escape a character or hide one."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split()).replace("\\", "\\\\").replace('"', "'")


_MARKDOWN = str.maketrans({char: f"\\{char}" for char in "\\`*_{}[]()#+!|<>~$&"})


def markdown(text: str) -> str:
    """Free text from a spec as part of one line of Markdown: nothing in it is markup. A plain URL stays a link."""
    folded = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    if folded.startswith(("https://", "http://")) and not set(folded) & set("\\`*[]()|<>~$ \"'"):
        return f"<{folded}>"
    return folded.translate(_MARKDOWN)
