"""When the repair can act, and what it says when it can't."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flagen.triton_cpu import UnsupportedTritonError, repair
from flagen.triton_cpu.border import interpreter, triton


def _last_line_without_interpreter(code: str, **environment: str) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().splitlines()[-1]


@pytest.mark.parametrize("late", ["", "import triton, os; os.environ['TRITON_INTERPRET'] = '1'; "])
def test_the_interpreter_must_be_on_before_triton_is_imported(late: str) -> None:
    said = _last_line_without_interpreter(late + "from flagen.triton_cpu import repair; repair()")
    assert "InterpreterOffError" in said
    assert "TRITON_INTERPRET=1" in said


def test_repairing_twice_is_repairing_once() -> None:
    before = {name: getattr(interpreter.InterpreterBuilder, name) for name in ("cast_impl", "binary_op", "create_dot")}
    repair()
    assert {name: getattr(interpreter.InterpreterBuilder, name) for name in before} == before


def test_a_release_without_a_needed_attribute_is_named_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(interpreter, "_flagen_repaired")
    monkeypatch.delattr(interpreter.ScanOps, "cumsum")
    cast = interpreter.InterpreterBuilder.cast_impl
    with pytest.raises(UnsupportedTritonError, match=rf"Triton {triton.__version__} has no ScanOps\.cumsum"):
        repair()
    assert interpreter.InterpreterBuilder.cast_impl is cast
