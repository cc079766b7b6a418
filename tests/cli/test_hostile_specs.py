"""Texts and names of files that try to be more than that stay what they are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from flagen.cli import OK
from tests.cli.conftest import Flagen, Workspace

HOSTILE_TEXTS = [
    '"""\nimport owned; owned.run()\n"""',
    "'''; owned = open('owned', 'w') #",
    "*/ --> <script>alert(1)</script> <!--",
    "\\N{BULLET} \\x41 \\ \\\\",
    "{{ 7 * 7 }} {% raw %} {# comment #}",
    "{0} %s $HOME `touch owned`",
    "[bold red]not markup[/] :smile:",
    "ends in a backslash \\",
    'ends in a quote "',
]


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_text_of_a_spec_stays_text(flagen: Flagen, project: Workspace, text: str) -> None:
    project.take("gla")
    lines = project.spec("gla").read_text().splitlines()
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    kept = [line for line in lines if not line.startswith(("title:", "description:"))]
    project.spec("gla").write_text("\n".join([*kept, f"title: {quoted}", f"description: {quoted}", ""]))
    assert flagen("build", "gla").code == OK
    for path, content in project.generated().items():
        if path.endswith(".py"):
            tree = ast.parse(content)
            assert ast.get_docstring(tree), f"{path} starts with its docstring"
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            assert "owned" not in names | imports
    shown = flagen("explain", "gla", "--stage", "spec").out + flagen("list").out
    assert text.split("\n")[0] in shown
    assert not Path("owned").exists()


def test_escape_sequences_of_a_title_do_not_reach_the_terminal(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    text = project.spec("gla").read_text()
    project.spec("gla").write_text(text.replace("title: ", 'title: "\\e[31mred\\a" #'))
    for command in (("check", "gla"), ("list",), ("explain", "gla", "--stage", "spec")):
        done = flagen(*command)
        assert "\x1b" not in done.out + done.err and "\a" not in done.out + done.err


@pytest.mark.parametrize("name", ["a b.yaml", "a\nb.yaml", "a'b\".yaml", "$(touch owned).yaml", "-->.yaml", "ü.yaml"])
def test_file_names_stay_inside_the_banner(flagen: Flagen, project: Workspace, name: str) -> None:
    project.take("gla")
    path = project.spec("gla").rename(project.root / "specs" / name)
    assert flagen("build", f"specs/{name}").code == OK
    for file, content in project.generated().items():
        first, second = content.split("\n")[:2]
        assert first.startswith(("# Generated", "<!-- Generated")) and second.startswith(("# Do not", "<!-- Do not"))
        if file.endswith(".py"):
            ast.parse(content)
    assert path.exists() and not Path("owned").exists()
