"""A spec under other names: the same recurrence, its dims, inputs, params, states and locals called otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from flagen.spec.model import Expr, Spec

_DECLARING = frozenset(("name", "source", "target", "dim", "symbol", "argument"))
"""Fields of a spec's tree that hold a name of the spec."""

_KEPT = frozenset(("name", "layer", "used", "recurrence_of", "source", "written"))
"""Fields of the spec itself that stay: its own name, and what has names of its own."""


def renamed(spec: Spec, names: Mapping[str, str]) -> Spec:
    """`spec` with each of `names` called what they say; it remembers what its author wrote. Texts stay as they are."""
    if not names:
        return spec
    others = {field.name: getattr(spec, field.name) for field in fields(Spec) if field.name not in _KEPT}
    changed = {key: _renamed(value, names, key) for key, value in others.items()}
    return replace(spec, **changed, written={new: old for old, new in names.items()})


def expression_renamed(expr: Expr, names: Mapping[str, str]) -> Expr:
    """`expr` with each of `names` called what they say."""
    changed: Expr = _renamed(expr, names, "value")
    return changed


def as_written(spec: Spec) -> Spec:
    """`spec` with the names that its author gave it."""
    return replace(renamed(spec, spec.written), written={})


def _renamed(value: Any, names: Mapping[str, str], field: str) -> Any:
    if isinstance(value, str):
        return names.get(value, value) if field in _DECLARING else value
    if isinstance(value, tuple | frozenset):
        inner = "name" if field in ("dims", "wide_outputs") else field
        return type(value)(_renamed(part, names, inner) for part in value)
    if not is_dataclass(value) or isinstance(value, type) or not type(value).__module__.startswith("flagen.spec."):
        return value
    changed = {each.name: _renamed(getattr(value, each.name), names, each.name) for each in fields(value)}
    return replace(value, **changed)
