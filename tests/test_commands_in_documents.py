"""Every command that a document tells the reader to run exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flagen.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code(text: str) -> str:
    """The blocks and the spans of code in a document."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join([*blocks, *re.findall(r"`([^`]+)`", outside)])


def named(program: str, text: str) -> set[str]:
    """What follows `program` where it is run: at the start of a command, by itself or by its path."""
    return set(re.findall(rf"(?:^|[|&;$] *|bin/){program} +([a-z][a-z-]*)", code(text), re.MULTILINE))


def commands() -> set[str]:
    names = (info.name or (info.callback.__name__ if info.callback else "") for info in app.registered_commands)
    return {name.replace("_", "-") for name in names}


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_commands_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert named("flagen", text) <= commands()
    assert named("make", text) <= targets()


def test_what_is_looked_for_is_found() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert {"build", "check", "explain", "new"} <= named("flagen", text)
    assert {"test", "tables", "lint"} <= named("make", text)
    shown = "Look at `flagen plan`'s output, or\n\n```console\n$ .venv/bin/flagen plot\n```\n"
    assert named("flagen", shown) == {"plan", "plot"}
