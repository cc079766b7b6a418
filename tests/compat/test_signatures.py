"""Names, order and defaults of the functions, against those of fla.ops 0.6.0 as recorded."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

RECORDED: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "fla_signatures.json").read_text())
FUNCTIONS = [(module, name) for module, functions in RECORDED.items() for name in functions]

BEYOND = {"A_log", "dt_bias", "chunk_size", "transpose_state_layout", "use_gate_in_kernel", "use_qk_l2norm_in_kernel"}
"""What fla reads out of its **kwargs, by keyword here."""


def _function(module: str, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(import_module(f"generated.compat.fla.ops.{module}"), name)
    return function


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_signature_is_that_of_fla(module: str, name: str) -> None:
    parameters = inspect.signature(_function(module, name)).parameters.values()
    given = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    written = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in given]
    recorded = [p for p in RECORDED[module][name].replace("'", "").split(", ") if p]
    assert written == recorded
    others = [p for p in parameters if p not in given]
    if not name.startswith("fused_chunk") or recorded:
        assert {p.name for p in others} <= BEYOND
        assert all(p.kind is p.KEYWORD_ONLY and p.default in (None, False) for p in others)


@pytest.mark.parametrize("module", RECORDED)
def test_module_exports_all_of_them(module: str) -> None:
    exported = import_module(f"generated.compat.fla.ops.{module}").__all__
    assert set(RECORDED[module]) <= set(exported)
    assert list(exported) == sorted(exported)


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_each_says_what_it_does(module: str, name: str) -> None:
    assert _function(module, name).__doc__


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_unknown_keyword_is_refused(module: str, name: str) -> None:
    if name in ("fused_chunk_gla", "fused_chunk_delta_rule"):
        with pytest.raises(NotImplementedError, match=f"{name} is gone"):
            _function(module, name)(scal=1.0)
        return
    function = _function(module, name)
    with pytest.raises(TypeError, match=f"{function.__name__} has no argument 'scal'; it takes "):
        function(scal=1.0)


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_head_first_is_refused_with_a_hint(module: str, name: str) -> None:
    with pytest.raises((TypeError, NotImplementedError), match=r"transpose those that are \[B, H, T|is gone"):
        _function(module, name)(head_first=True)
