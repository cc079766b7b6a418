"""What `flagen build` skips, what it builds again, and what it says of files that somebody has changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from flagen import builds
from flagen.cli import OK, WRONG
from tests.cli.conftest import Flagen, Workspace


def test_an_unchanged_spec_is_not_built_again(
    flagen: Flagen, project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.take("gla")
    flagen("build", "gla")
    monkeypatch.setattr(builds, "compile_spec", None)
    done = flagen("build", "gla")
    assert (done.code, done.out) == (OK, "gla: up to date\n")


def test_a_changed_spec_is(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    flagen("build", "gla")
    project.edit("gla", "title: ", "title: My ")
    assert "proved" in flagen("build", "gla").out
    assert "My " in project.generated()["gla/naive_recurrent.py"]


@pytest.mark.parametrize("damage", ["edit", "delete", "leftover"])
def test_a_damaged_package_is_repaired(flagen: Flagen, project: Workspace, damage: str) -> None:
    project.take("gla")
    flagen("build", "gla")
    before = project.generated()
    target = project.root / "generated" / "gla" / "naive_recurrent.py"
    match damage:
        case "edit":
            target.write_text(target.read_text() + "# edited\n")
        case "delete":
            target.unlink()
        case "leftover":
            target.with_name("old.py").write_text(target.read_text())
    assert "proved" in flagen("build", "gla").out
    assert project.generated() == before


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "# by hand\n")


@pytest.mark.parametrize("remembered", [True, False])
def test_an_edited_file_is_overwritten_with_a_word(flagen: Flagen, project: Workspace, remembered: bool) -> None:
    """Also in a fresh clone, where no build is remembered, and where the spec has changed as well."""
    project.take("gla")
    flagen("build", "gla")
    edit(project.root / "generated" / "gla" / "naive_recurrent.py")
    if not remembered:
        shutil.rmtree(project.root / ".flagen")
        project.edit("gla", "title: ", "title: My ")
    said = "generated/gla/naive_recurrent.py: edited by hand"
    done = flagen("build", "gla", "--check")
    assert done.code == WRONG and done.err == f"{said}, and not what flagen wrote\n"
    done = flagen("build", "gla")
    assert done.code == OK and done.err == f"{said}, and overwritten\n"
    assert "by hand" not in project.generated()["gla/naive_recurrent.py"]
    assert flagen("build", "gla", "--force").err == ""


def test_an_edited_file_is_removed_with_a_word(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    flagen("build", "gla")
    naive = project.root / "generated" / "gla" / "naive_recurrent.py"
    naive.with_name("old.py").write_text(naive.read_text())
    edit(naive.with_name("old.py"))
    assert flagen("build", "gla").err == "generated/gla/old.py: edited by hand, and removed\n"


def test_a_file_that_only_is_out_of_date_is_no_news(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    flagen("build", "gla")
    project.edit("gla", "title: ", "title: My ")
    assert flagen("build", "gla").err == ""


def test_a_changed_template_or_source_builds_everything_again(
    flagen: Flagen, project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.take("gla")
    flagen("build", "gla")
    monkeypatch.setattr("flagen.freshness.tools_hash", lambda: "other tools")
    assert "proved" in flagen("build", "gla").out


def test_losing_the_memory_costs_a_build_and_changes_nothing(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    flagen("build", "gla")
    for record in (project.root / ".flagen").glob("*.json"):
        record.write_text("{]")
    written = project.root / "generated" / "gla" / "naive_recurrent.py"
    os.utime(written, (1, 1))
    assert "0 written" in flagen("build", "gla").out
    assert written.stat().st_mtime == 1


def test_force_builds_what_is_up_to_date(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    flagen("build", "gla")
    assert "gla: proved" in flagen("build", "gla", "--force").out


CHOICE = """
layer:
  class_name: Choice
  config: {hidden_size: 64, num_heads: 4, plain: true}
  modules:
    q_proj: linear(hidden_size, hidden_size)
    o_proj: linear(hidden_size, hidden_size)
  uses: {other: second}
  forward:
    - q = heads(q_proj(x), num_heads)
    - y = o_proj(merge(recurrence(q, q, q) if plain else other(q, q, q)))
"""


def test_a_package_is_out_of_date_when_a_spec_that_it_uses_has_changed(flagen: Flagen, project: Workspace) -> None:
    text = (
        "flagen: 1\nname: second\nstate: {S: [K, V]}\ninputs: {q: [K], k: [K], v: [V]}\n"
        "update: S = S + outer(k, v)\noutput: o = S.T @ q\n"
    )
    project.spec("second").write_text(text)
    project.spec("first").write_text(text.replace("second", "first") + CHOICE)
    alone = CHOICE.replace("Choice", "Alone").replace(" if plain else other(q, q, q)", "")
    alone = alone.replace(", plain: true", "").replace("  uses: {other: second}\n", "")
    project.spec("around").write_text(f"flagen: 2\nname: around\nrecurrence: second\n{alone}")
    project.spec("third").write_text(text.replace("second", "third"))
    assert flagen("build", "first").code == flagen("build", "around").code == OK
    project.edit("third", "outer(k, v)", "outer(q, v)")
    assert flagen("build", "first").out == "first: up to date\n"
    assert flagen("build", "around").out == "around: up to date\n"
    project.edit("second", "S.T @ q", "2 * S.T @ q")
    for name in ("first", "around"):
        done = flagen("build", name)
        assert done.code == OK and "up to date" not in done.out
