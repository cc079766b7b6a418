"""Formatting: the same everywhere, and a last look at what the templates made."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagen.diagnostics import InternalError
from flagen.emit.format import format_python

MESSY = """\
import os
from torch import Tensor
import triton
import math
def f( x:Tensor ):
  return math.exp( x ),triton
"""
CLEAN = """\
import math

import triton
from torch import Tensor


def f(x: Tensor):
    return math.exp(x), triton
"""


def test_imports_are_sorted_and_pruned_and_code_is_formatted() -> None:
    assert format_python({"a.py": MESSY}) == {"a.py": CLEAN}


def test_other_files_pass_through_and_order_is_kept() -> None:
    files = {"b.md": "x  =  1\n", "a.py": "x  =  1\n", "sub/c.py": "y  =  2\n"}
    assert list(format_python(files).items()) == [("b.md", "x  =  1\n"), ("a.py", "x = 1\n"), ("sub/c.py", "y = 2\n")]


def test_nothing_to_format_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", None)
    assert format_python({"a.md": "text"}) == {"a.md": "text"}


def test_the_working_directory_has_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its ruff settings nor a package of its own called torch, which would sort as first-party."""
    (tmp_path / "ruff.toml").write_text("line-length = 20\nformat.quote-style = 'single'\n")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    assert format_python({"a.py": MESSY}) == {"a.py": CLEAN}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("def f(:\n", "a.py"),
        ("def f():\n    return undefined\n", "undefined"),
        ("def f():\n    dead = 1\n", "dead"),
        ("def f():\n    return 1\n\n\ndef f():\n    return 2\n", "F811"),
    ],
)
def test_faulty_code_is_an_internal_error(text: str, named: str) -> None:
    with pytest.raises(InternalError, match=named):
        format_python({"a.py": text})
