"""Starts the processes that compile and interpret, and gathers what they find."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flagen.catalogue import OPERATORS as ALL_OPERATORS
from flagen.diagnostics import InternalError
from flagen.inspection.devices import ARCHS, DEVICES
from flagen.inspection.model import Compiled, Launched, Metered, MeteredGradients, Shape, Size, Timed
from flagen.inspection.source import has_kernels, imported_from, tree_of
from flagen.project import PACKAGE, Project, UsageError

OPERATORS = tuple(operator for operator in ALL_OPERATORS if not operator.startswith("naive_"))
"""The operators that may have kernels."""

SIZES = (Size(128, 128), Size(256, 256), Size(100, 60))
METERED = Size(128, 128)
TIMED = "sm_90"
"""What the clock knows the latencies of."""
_NEEDED = ("numpy", "torch", "triton")
# Each of them loads torch and Triton.
_MOST_PROCESSES = 8


@dataclass(frozen=True)
class Package:
    """A generated package and the spec that it was made from."""

    name: str
    spec: str
    folder: str


def find_package(project: Project, argument: str) -> Package:
    """The package of the spec that a person means by `argument`.

    Raises:
        SpecError: the spec is wrong.
        UsageError: there is no such spec, or nothing was built from it.
    """
    from flagen.spec import load_spec

    path = project.find_spec(argument)
    name = load_spec(path).name
    folder = project.generated / name
    if not (folder / "__init__.py").is_file():
        raise UsageError(f"there is no package {project.show(folder)}; run `flagen build {argument}`")
    return Package(name, str(path.resolve()), str(folder))


def record(
    packages: Sequence[Package],
    archs: Sequence[str] = ARCHS,
    sizes: Sequence[Size] = SIZES,
    backward: Collection[tuple[str, Size]] | None = None,
) -> list[Launched]:
    """Every kernel that the packages launch, each once, on every architecture and at every size; those of gradients on
    these, or on those of them that `backward` names."""
    task = _task("record", packages, archs=_known(archs), sizes=sizes, backward=_listed(backward))
    return [Launched(**row) for row in _work(task, interpret=False, parts=len(packages))]


def compile_kernels(
    packages: Sequence[Package],
    archs: Sequence[str] = ARCHS,
    sizes: Sequence[Size] = SIZES,
    but: Collection[str] = (),
    backward: Collection[tuple[str, Size]] | None = None,
) -> list[Compiled]:
    """The same compiled, but for those whose key is in `but`."""
    task = _task("compile", packages, archs=_known(archs), sizes=sizes, but=sorted(but), backward=_listed(backward))
    parts = len(packages) * len(archs) * len(sizes)
    return [Compiled(**row) for row in _work(task, interpret=False, parts=parts)]


def meter(packages: Sequence[Package]) -> list[Metered]:
    """What a call of each operator that launches kernels moves and computes."""
    return [Metered.from_json(row) for row in _work(_task("meter", packages), interpret=True, parts=len(packages))]


def meter_gradients(packages: Sequence[Package]) -> list[MeteredGradients]:
    """What a call of each operator and its backward move and compute, where the backward launches kernels: with states
    computed again, then with states saved, where there is a choice."""
    rows = _work(_task("meter gradients", packages), interpret=True, parts=len(packages))
    return [MeteredGradients.from_json(row) for row in rows]


def predict(package: Package, shape: Shape) -> list[Timed]:
    """The time of a call of each operator that launches kernels, and of its backward, on an H200: an estimate."""
    counts = _work(_task("count", [package], shape=shape), interpret=True, parts=len(OPERATORS))
    task = _task("time", [package], shape=shape, counts=counts)
    return [Timed(**row) for row in _work(task, interpret=False, parts=len(OPERATORS))]


def package_key(package: Package) -> str:
    """A hash of all that decides, under one Triton, what is found out about a package: its files, what its kernels call
    beside it, its spec, the tools.

    Comments and docstrings are left out.
    """
    files = sorted(Path(package.folder).rglob("*.py"))
    told = Path(package.spec).read_bytes() + _hash_of([*files, *_called_beside(files)]) + _hash_of_tools()
    return hashlib.sha256(told).hexdigest()[:16]


def _called_beside(files: Sequence[Path]) -> list[Path]:
    """The other files that have functions which the kernels in `files` call, directly or through one another."""
    found, waiting = set(files), list(filter(has_kernels, files))
    while waiting:
        for _, path in imported_from(waiting.pop()):
            if path not in found and path.is_file() and has_kernels(path):
                found.add(path)
                waiting.append(path)
    return sorted(found - set(files))


_DECIDE = ("calls", "devices", "recorder", "worker")
"""The modules here that decide what is called, and what is told of it."""


@cache
def _hash_of_tools() -> bytes:
    """That of what decides what rows are about, and of what compiles and meters. How quickly it is found out is no part
    of it, nor what prints it; tests hold counts to what the interpreter does."""
    here, cpu = Path(__file__).resolve().parent, Path(__file__).resolve().parent.parent / "triton_cpu"
    files = [*(here / f"{name}.py" for name in _DECIDE), here.parent / "plan" / "cost.py"]
    return _hash_of([*files, cpu / "meter.py", cpu / "offline.py"])


def _hash_of(paths: Iterable[Path]) -> bytes:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\n{ast.dump(tree_of(path))}\n".encode())
    return digest.digest()


def triton_version() -> str:
    """The version of Triton that compiles and interprets here."""
    _require_libraries()
    return version("triton")


def _known(archs: Sequence[str]) -> Sequence[str]:
    for arch in archs:
        if arch not in DEVICES:
            raise UsageError(f"unknown architecture {arch}; known are {', '.join(DEVICES)}")
    return archs


def _listed(places: Collection[tuple[str, Size]] | None) -> list[tuple[str, Size]] | None:
    return None if places is None else list(places)


def _task(what: str, packages: Sequence[Package], **options: Any) -> dict[str, Any]:
    return {"what": what, "packages": [asdict(package) for package in packages], **options}


def _require_libraries() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"running kernels without a GPU needs {', '.join(_NEEDED)}; not installed: {', '.join(missing)}"
            " (pip install 'flagen[torch,triton]' numpy)"
        )


def _work(task: Mapping[str, Any], *, interpret: bool, parts: int) -> list[dict[str, Any]]:
    """The rows that some processes find, each having a share of the task, in the task's order.

    There are as many as it has parts that are worth one, but no more than there are cores.
    """
    _require_libraries()
    count = max(1, min(parts, os.cpu_count() or 1, _MOST_PROCESSES))
    with ThreadPoolExecutor(count) as pool:
        shares = pool.map(lambda number: _start({**task, "share": (number, count)}, interpret), range(count))
        placed = [row for share in shares for row in share]
    return [row for _, row in sorted(placed, key=lambda each: each[0])]


def _start(task: Mapping[str, Any], interpret: bool) -> list[tuple[Any, dict[str, Any]]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(PACKAGE.parent), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths)} | ({"TRITON_INTERPRET": "1"} if interpret else {})
    # -P: no module of the working directory is to be taken for one of the libraries.
    command = [sys.executable, "-P", "-m", "flagen.inspection.worker", json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InternalError(f"{task['what']} failed\n{done.stderr}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise UsageError(answer["error"])
    return [(place, row) for place, row in answer["rows"]]
