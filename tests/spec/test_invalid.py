"""Every diagnostic has a spec that shows it, and says exactly where.

The first line of an invalid spec lists everything that is reported about it: `# expect: E304 at 6:17, E305 at 5:9`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flagen.diagnostics import Diagnostic, SpecError
from flagen.spec import CODES, check_file, load_spec
from flagen.spec.limits import MAX_BYTES

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
INVALID = sorted((HERE / "invalid").glob("*.yaml"))
NOT_IN_A_FILE = {"E101", "E103"}
"""A file that is not there, and one too large to keep; both are made below."""


def expected(path: Path) -> list[tuple[str, int, int]]:
    first = path.read_bytes().partition(b"\n")[0].decode()
    assert first.startswith("# expect: ")
    found = re.findall(r"([EW]\d+) at (\d+):(\d+)", first)
    return [(code, int(line), int(column)) for code, line, column in found]


def reported(path: Path) -> tuple[Diagnostic, ...]:
    """The errors of a wrong spec, the warnings of a right one."""
    try:
        return check_file(path)[1]
    except SpecError as error:
        return error.diagnostics


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_an_invalid_spec_is_told_all_that_is_wrong_and_nothing_else(path: Path) -> None:
    diagnostics = reported(path)
    assert [(found.code, found.span.line, found.span.column) for found in diagnostics] == expected(path)
    assert {found.span.file for found in diagnostics} == {str(path)}
    for found in diagnostics:
        underlines_what_is_there(found, path)


def underlines_what_is_there(found: Diagnostic, path: Path) -> None:
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").splitlines()
    line = lines[found.span.line - 1] if found.span.line <= len(lines) else ""
    end = found.span.column - 1 + found.span.length
    assert found.span.column <= len(line) + 1 and end <= max(len(line), found.span.column)
    assert found.message and not found.message.endswith(".")
    assert all(char.isprintable() for char in found.message + found.hint)


def test_every_code_is_shown_by_a_spec_named_after_it() -> None:
    shown = {path.stem[:4].upper() for path in INVALID if path.stem != "several_errors"}
    assert shown | NOT_IN_A_FILE == CODES.keys()
    for path in INVALID:
        if path.stem != "several_errors":
            assert path.stem[:4].upper() in {code for code, _, _ in expected(path)}


def test_every_code_that_the_front_end_uses_is_declared_and_every_declared_one_used() -> None:
    sources = "".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "flagen" / "spec").rglob("*.py")
        if path.name != "report.py"
    )
    assert set(re.findall(r'"([EW]\d{3})"', sources)) == CODES.keys()


def test_every_code_is_documented() -> None:
    text = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    headings = dict(re.findall(r"^### ([EW]\d{3}): (.+)$", text, re.MULTILINE))
    assert headings == CODES


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(SpecError) as caught:
            load_spec(path)
        (found,) = caught.value.diagnostics
        assert (found.code, str(found.span)) == ("E101", f"{path}:1:1")


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("flagen: 1\n" + "#" * MAX_BYTES)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert [found.code for found in caught.value.diagnostics] == ["E103"]


def test_what_a_person_sees() -> None:
    path = HERE / "invalid" / "e304_unknown_name.yaml"
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(caught.value).replace(str(path), "spec.yaml") == (
        "spec.yaml:6:17: error[E304]: unknown name `bta`\n"
        "    update: S = S + bta * outer(k, v - bta * v)\n"
        "                    ^^^\n"
        "    hint: did you mean `beta`?"
    )


def test_a_long_line_is_shown_around_the_caret() -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(HERE / "invalid" / "e405_powers.yaml")
    shown = str(caught.value).splitlines()
    assert all(len(line) < 200 for line in shown[1:3])
    assert shown[1].strip().startswith("...") and shown[1].endswith("...")
    assert shown[1][shown[2].index("^") :].startswith("2 ** 2")
