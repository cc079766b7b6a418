"""Recurrences that no paper has, built from the command line like anybody's, climb the ladder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from flagen import cli
from flagen.spec import load_spec
from flagen.spec.model import Spec
from tests.fuzz import kernels, ladder
from tests.tiers import exhaustive

SPECS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "examples" / "specs").glob("*.yaml"))}
FIRST = {
    "newton_delta_rule": {"A": lambda x: x @ x.mT / x.shape[-1]},
    "preconditioned_oja": {"A": torch.abs},
}
"""What the states of a spec may start from, where that is not any number: a second moment is never below 0."""

every_spec = pytest.mark.parametrize("name", SPECS)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ModuleType]]:
    """The package of a spec, built once."""
    out = tmp_path_factory.mktemp("own") / "own_specs"
    sys.path.insert(0, str(out.parent))

    def package(name: str) -> ModuleType:
        if not (out / name).is_dir():
            done = CliRunner().invoke(cli.app, ["build", str(SPECS[name]), "--out", str(out)])
            assert done.exit_code == 0, done.output
            importlib.invalidate_caches()
        return importlib.import_module(f"own_specs.{name}")

    yield package
    sys.path.remove(str(out.parent))
    for module in [module for module in sys.modules if module.partition(".")[0] == "own_specs"]:
        del sys.modules[module]


@pytest.fixture
def spec(name: str) -> Spec:
    return load_spec(SPECS[name])


def test_there_are_some():
    assert len(SPECS) >= 5


@every_spec
def test_is_nobodys(spec):
    assert spec.title
    assert spec.description
    assert not spec.paper


@every_spec
def test_every_form_is_the_recurrence(name, spec, packages):
    assert ladder.check(spec, packages(name), FIRST.get(name)) == len(ladder.SHAPES)


@pytest.mark.parametrize(
    "shapes", [kernels.SHAPES[:1], pytest.param(kernels.SHAPES[1:], marks=exhaustive)], ids=["small", "large"]
)
@every_spec
@pytest.mark.usefixtures("kernels", "poisoned_memory")
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_every_kernel_is_the_recurrence(name, spec, packages, shapes):
    told = kernels.check(spec, packages(name), FIRST.get(name), shapes)
    arguments = [x.name for x in (*spec.inputs, *(p for p in spec.params if p.is_tensor))]
    states = [state.name for state in spec.states]
    firsts = [f"first {state}" for state in states]
    assert told == {"o", *(f"final {state}" for state in states), *(f"d {x}" for x in (*arguments, *firsts))}
