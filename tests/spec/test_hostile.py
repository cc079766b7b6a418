"""Specs that mean harm: nothing in them runs, and nothing in them comes out as anything but a diagnostic or text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from flagen.diagnostics import SpecError
from flagen.spec import parse_spec
from tests.tiers import examples

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TEXTS = [(HERE / "valid" / f"{name}.yaml").read_text() for name in ("gsa", "steps_and_locals", "block_scalars")]

HARMLESS = """
import sys
from pathlib import Path
from flagen.diagnostics import SpecError
from flagen.spec import load_spec

def load(path):
    try:
        load_spec(path)
    except SpecError as error:
        return str(error)

paths = sorted(Path(sys.argv[1]).rglob("*.yaml"))
for path in paths:
    load(path)  # Whatever is imported late is imported now.
allowed = {str(path) for path in paths}
forbidden = ("exec", "import", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "marshal.", "pickle.")

def audit(event, arguments):
    if event.startswith(forbidden) or (event == "open" and str(arguments[0]) not in allowed):
        raise SystemExit(f"a spec caused {event} {arguments}")

sys.addaudithook(audit)
for path in paths:
    load(path)
print(len(paths))
"""


def test_nothing_in_a_spec_is_executed_imported_or_opened() -> None:
    result = subprocess.run(
        [sys.executable, "-c", HARMLESS, str(HERE)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 200


def with_texts(**texts: str) -> str:
    spec: dict[str, object] = {"flagen": 1, "name": "example", **texts}
    spec["state"] = {"S": ["K", "V"]}
    spec["inputs"] = {"k": {"dims": ["K"], "description": texts["description"]}, "v": ["V"]}
    spec["params"] = {"scale": {"default": "K ** -0.5", "description": texts["description"]}}
    return yaml.safe_dump(spec | {"update": "S = S + outer(k, v)", "output": "o = scale * S.T @ k"}, sort_keys=False)


NASTY = [
    '"""',
    "'''",
    "\\",
    '\\"""\\',
    "a\nb\r\nc\td\u2028e\x85f",
    "*/ -- # %}{{ 7 * 7 }}{% endfor %}",
    "__import__('os').system('echo hacked')",
    "{0.__class__} %s $HOME `id` $(id)",
    "<script>alert(1)</script> [link](javascript:alert(1)) $\\input{/etc/passwd}$",
    "\u202etxt.exe \ufeff \U0001f600 é",
    "\x1b[31m\x00\x07",
    " leading and trailing ",
    "no: yes",
]


def keeps(text: str) -> None:
    spec = parse_spec(with_texts(title=text, paper=text, description=text))
    assert (spec.title, spec.paper, spec.description) == (text, text, text)
    assert spec.inputs[0].description == text and spec.params[0].description == text


@pytest.mark.parametrize("text", NASTY)
def test_text_is_text_whatever_it_says(text: str) -> None:
    keeps(text)


@examples(100)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_is_kept_as_it_is(text: str) -> None:
    keeps(text)


def survives(text: str) -> None:
    """A text is a spec or a SpecError, whose message can be printed anywhere."""
    try:
        parse_spec(text)
    except SpecError as error:
        assert error.diagnostics
        assert all(char.isprintable() or char in "\t\n" for char in str(error))


@examples(200)
@given(st.text())
@example("\udcff")
@example("\0")
@example("flagen: 1\n" * 3)
@example("a: " * 1000)
@example("- " * 10000)
@example("{" * 10000)
@example("&a [" * 1000)
@example("!!python/name:os.system x")
@example("%YAML 99.9\n---\nflagen: 1")
@example("%TAG ! tag:evil,2000:\n---\n!x y")
@example("? - ? - ? -")
@example("flagen: 1\nname: &n x\nstate: *n\ninputs: *n\nupdate: *n\noutput: *n")
@example("flagen: 1\nname: x\nstate: {S: [S]}\ninputs: {S: [S]}\nsteps: {S: S}\nupdate: S = S\noutput: S = S")
def test_no_text_is_anything_but_a_spec_or_a_diagnostic(text: str) -> None:
    survives(text)


PIECES = [
    "[",
    "]",
    "{",
    "}",
    ":",
    ": ",
    "- ",
    "\n",
    "  ",
    "\t",
    "&a ",
    "*a",
    "!x ",
    "|",
    ">",
    '"',
    "'",
    "#",
    "K",
    "S",
    "=",
    "(",
]
PIECES += [
    ")",
    "@",
    "~",
    "null",
    "é",
    "\0",
    "9" * 50,
    "_prev",
    "repeat: n",
    "do:",
    "o",
    "n",
    ",",
    "\r",
    "\ufeff",
    "<<: *a",
]


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """A valid spec with some of its slices cut out, doubled or replaced."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 12)))
        middle = draw(st.one_of(st.sampled_from(PIECES), st.just(text[start:stop] * 2), st.just("")))
        text = text[:start] + middle + text[stop:]
    return text


@examples(400)
@given(mutations())
def test_no_slip_in_a_spec_is_anything_but_a_spec_or_a_diagnostic(text: str) -> None:
    survives(text)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "x/y", "x.y", "x\ny", "", "x" * 65, "con:", "café", "X", "_x"]
)
def test_a_name_is_never_a_path(name: str) -> None:
    text = with_texts(title="t", description="d").replace("name: example", yaml.safe_dump({"name": name}).strip())
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    assert {found.code for found in caught.value.diagnostics} <= {"E206", "E203"}


def test_work_is_bounded_where_names_build_on_each_other() -> None:
    """Squares of squares: a walk through the locals instead of each once would take 2 ** 400 steps."""
    squares = "\n".join(f"  - a{i + 1} = a{i} * a{i}" for i in range(400))
    spec = parse_spec(
        "flagen: 1\nname: squares\nstate: {S: [K, V]}\ninputs: {k: [K], v: [V], g: []}\nlet: {a0: g}\n"
        f"update:\n{squares}\n  - S = a400 * S + outer(k, v)\noutput: o = S.T @ k\n"
    )
    assert len(spec.update) == 401


def test_work_is_bounded_where_an_expression_is_deep() -> None:
    """Dims that every level asked for twice would take 2 ** 60 steps."""
    spec = parse_spec(
        "flagen: 1\nname: deep\nstate: {S: [K, V]}\ninputs: {k: [K], v: [V], g: []}\n"
        f"update: S = S * ({' + '.join(['g'] * 60)}) + outer(k, v)\noutput: o = S.T @ k\n"
    )
    assert spec.output_dims == ("V",)
