"""Rendering: a template and its context agree on every name, or there is no text."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import Environment

from flagen.diagnostics import InternalError
from flagen.emit.env import environment, render
from flagen.emit.template_cache import LOCATION


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of small templates, of which nothing is kept."""
    monkeypatch.setenv(LOCATION, "")
    texts = {
        "greeting.j2": "Hello {{ name }}\n",
        "loop.j2": "{% for row in rows %}\n{{ loop.index }} {{ row }}\n{% endfor %}\n{{ range(2) | list }}\n",
        "outer.j2": '{% include "greeting.j2" %}\n{{ closing }}\n',
        "base.j2": "{{ head }}{% block body %}{% endblock %}\n",
        "child.j2": '{% extends "base.j2" %}{% block body %}{{ body }}{% endblock %}\n',
        "macros.j2": "{% macro twice(text) %}{{ text }}{{ text }}{% endmacro %}\n",
        "uses_macro.j2": '{% from "macros.j2" import twice %}\n{{ twice(word) }}\n',
        "attribute.j2": "{{ thing.missing }}\n",
        "dynamic.j2": "{% include chosen %}\n",
        "broken.j2": "{% if %}\n",
        "html.j2": "{{ text }}",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def env(templates: Path) -> Environment:
    return environment(templates)


def test_blocks_leave_no_blank_lines(env: Environment) -> None:
    assert render(env, "loop.j2", {"rows": ["a", "b"]}) == "1 a\n2 b\n[0, 1]\n"


def test_text_is_not_escaped_for_html(env: Environment) -> None:
    assert render(env, "html.j2", {"text": "a < b & 'c'"}) == "a < b & 'c'"


def test_a_name_the_context_lacks_is_named(env: Environment) -> None:
    with pytest.raises(InternalError, match=r"greeting\.j2 uses name, which its context does not have"):
        render(env, "greeting.j2", {})


def test_a_name_the_template_does_not_use_is_named(env: Environment) -> None:
    with pytest.raises(
        InternalError, match=r"context of template greeting\.j2 has extra, other, which it does not use"
    ):
        render(env, "greeting.j2", {"name": "x", "other": 1, "extra": 2})


def test_what_a_template_includes_or_extends_counts_as_its_own(env: Environment) -> None:
    assert render(env, "outer.j2", {"name": "x", "closing": "bye"}) == "Hello x\nbye\n"
    assert render(env, "child.j2", {"head": "a", "body": "b"}) == "ab"
    with pytest.raises(InternalError, match="uses name"):
        render(env, "outer.j2", {"closing": "bye"})


def test_an_imported_macro_has_its_own_names(env: Environment) -> None:
    assert render(env, "uses_macro.j2", {"word": "ha"}) == "haha\n"


def test_a_missing_attribute_is_an_error(env: Environment) -> None:
    with pytest.raises(InternalError, match=r"attribute\.j2.*missing"):
        render(env, "attribute.j2", {"thing": object()})


@pytest.mark.parametrize("template", ["broken.j2", "absent.j2", "dynamic.j2"])
def test_a_wrong_template_is_an_internal_error(env: Environment, template: str) -> None:
    with pytest.raises(InternalError, match="template"):
        render(env, template, {"chosen": "greeting.j2"})
