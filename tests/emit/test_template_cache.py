"""Templates compiled by one process and used by the next; and builds that go on where that cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flagen.diagnostics import InternalError
from flagen.emit import template_cache
from flagen.emit.env import environment, render
from flagen.emit.template_cache import LOCATION, cache_directory

CONTEXT = {"name": "x"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv(LOCATION, str(tmp_path / "cache" / "flagen"))
    return tmp_path / "cache" / "flagen"


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """A template that includes another."""
    directory = tmp_path / "templates"
    directory.mkdir()
    (directory / "greeting.j2").write_text('Hello {{ name }}{% include "end.j2" %}\n')
    (directory / "end.j2").write_text("!")
    return directory


def rendered(templates: Path, context: dict[str, object] = CONTEXT) -> str:
    """What a process that knows no template yet makes of the greeting."""
    environment.cache_clear()
    return render(environment(templates), "greeting.j2", context)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The templates that are compiled, and not found."""
    from jinja2 import Environment

    found: list[str] = []
    compile_template = Environment.compile

    def watched(self: Environment, source: str, name: str, filename: str) -> object:
        found.append(name)
        return compile_template(self, source, name, filename)

    monkeypatch.setattr(Environment, "compile", watched)
    return found


def test_a_template_is_compiled_once(cache: Path, templates: Path, compiled: list[str]) -> None:
    assert rendered(templates) == "Hello x!"
    assert sorted(compiled) == ["end.j2", "greeting.j2"]
    assert rendered(templates) == "Hello x!"
    assert len(compiled) == 2
    assert len(list(cache.iterdir())) == 2


def test_what_comes_from_the_cache_knows_its_names(cache: Path, templates: Path, compiled: list[str]) -> None:
    rendered(templates)
    compiled.clear()
    with pytest.raises(InternalError, match="uses name"):
        rendered(templates, {})
    with pytest.raises(InternalError, match="has extra, which it does not use"):
        rendered(templates, {**CONTEXT, "extra": 1})
    assert compiled == []


def test_another_process_finds_it(cache: Path, templates: Path, compiled: list[str]) -> None:
    program = (
        "import sys; from pathlib import Path; from flagen.emit.env import environment, render\n"
        "render(environment(Path(sys.argv[1])), 'greeting.j2', {'name': 'y'})\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(templates)], check=True, env={**os.environ, LOCATION: str(cache)}
    )
    assert rendered(templates) == "Hello x!"
    assert compiled == []


def test_a_template_that_changed_takes_the_place_of_the_old(cache: Path, templates: Path, compiled: list[str]) -> None:
    rendered(templates)
    (templates / "end.j2").write_text("?")
    assert rendered(templates) == "Hello x?"
    assert compiled[2:] == ["end.j2"]
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("changed", ["__version__", "version", "_OWN"])
def test_other_releases_compile_anew(
    cache: Path, templates: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    rendered(templates)
    owner = {"__version__": template_cache.jinja2, "version": sys, "_OWN": template_cache}[changed]
    monkeypatch.setattr(owner, changed, b"other" if changed == "_OWN" else "other")
    assert rendered(templates) == "Hello x!"
    assert len(compiled) == 4


@pytest.mark.parametrize("damage", ["empty", "half", "one bit", "other code"])
def test_a_damaged_entry_is_made_again(cache: Path, templates: Path, compiled: list[str], damage: str) -> None:
    rendered(templates)
    whole = {path: path.read_bytes() for path in cache.iterdir()}
    for path, content in whole.items():
        broken = bytearray(content)
        broken[-1] ^= 1
        other = next(text for text in whole.values() if text != content)
        path.write_bytes(
            {"empty": b"", "half": content[: len(content) // 2], "one bit": bytes(broken), "other code": other}[damage]
        )
    assert rendered(templates) == "Hello x!"
    assert len(compiled) == 4
    assert {path: path.read_bytes() for path in cache.iterdir()} == whole


def test_a_place_that_is_no_directory_is_done_without(cache: Path, templates: Path, compiled: list[str]) -> None:
    cache.parent.mkdir()
    cache.write_text("a file")
    assert rendered(templates) == rendered(templates) == "Hello x!"
    assert len(compiled) == 4
    assert cache.read_text() == "a file"


@pytest.mark.parametrize("failing", ["write", "replace"])
def test_a_write_that_fails_leaves_nothing(
    cache: Path, templates: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(template_cache.os, "fdopen" if failing == "write" else "replace", full)
    assert rendered(templates) == "Hello x!"
    assert list(cache.iterdir()) == []


def test_many_at_once_agree(cache: Path, templates: Path) -> None:
    def fresh(_: int) -> str:
        return render(environment.__wrapped__(templates), "greeting.j2", CONTEXT)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(fresh, range(32))) == {"Hello x!"}
    assert len(list(cache.iterdir())) == 2


def test_where_it_is() -> None:
    assert cache_directory({LOCATION: "/here", "XDG_CACHE_HOME": "/caches"}) == Path("/here")
    assert cache_directory({LOCATION: "", "XDG_CACHE_HOME": "/caches"}) is None
    assert cache_directory({"XDG_CACHE_HOME": "/caches"}) == Path("/caches/flagen")
    assert cache_directory({}) == Path.home() / ".cache" / "flagen"


def test_there_need_not_be_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_directory({}) is None


def test_nothing_is_kept_where_nothing_should_be(
    templates: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOCATION, "")
    assert rendered(templates) == rendered(templates) == "Hello x!"
    assert len(compiled) == 4
