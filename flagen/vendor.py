"""A variant's package taken out of its generated directory: a copy that stands alone, what it shares inside of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from flagen.collection import common_files, packages_in
from flagen.emit.banner import is_edited, replace_banner, seal
from flagen.emit.writer import Changes, ForeignFile, own_files, write_package
from flagen.project import Project, UsageError, nearest


def vendor(project: Project, name: str, directory: Path) -> Changes:
    """Write the package `name` of the project's generated directory, and what it needs of what packages share, into
    `directory`, where it imports nothing but itself, torch and Triton.

    Raises:
        UsageError: there is no such package, it is not as it was built, or `directory` cannot take it.
        OSError: a file cannot be read or written.
    """
    _refuse(project, name, directory)
    package, common = _package(project, name), common_files()
    files = standing_alone(name, package, {**common, **_beside(project, name, package, common)})
    try:
        return write_package(directory / name, files)
    except ForeignFile as error:
        raise UsageError(str(ForeignFile(Path(project.show(error.path))))) from error


def standing_alone(name: str, package: Mapping[str, str], common: Mapping[str, str]) -> dict[str, str]:
    """The files of the package `name` with those of `common`, of other packages' too, that they need, by paths in it.

    What is outside of the package, beside it, comes to be inside: the imports of it have a dot less.
    """
    from flagen.emit.format import lint_python

    again = f"run `flagen vendor {name}` again."
    moved = {path: _inwards(path, text) if path.endswith(".py") else text for path, text in package.items()}
    files = {**lint_python(moved), **{path: common[path] for path in _needed(package, common)}}
    return {path: seal(path, replace_banner(path, text, again)) for path, text in files.items()}


def _refuse(project: Project, name: str, directory: Path) -> None:
    packages = packages_in(project.generated)
    if name not in packages:
        where = f"{project.show(project.generated)}/"
        if (project.specs / f"{name}.yaml").is_file():
            raise UsageError(f"there is no package {name} in {where} yet; run `flagen build {name}`")
        raise UsageError(f"there is no package {name} in {where}{nearest(name, packages)}")
    if directory.resolve() == project.generated.resolve():
        raise UsageError(f"{directory} is where the package is; name another directory")
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is no directory")


def _package(project: Project, name: str) -> dict[str, str]:
    """The files of a package, as they were built."""
    root = project.generated / name
    files = {path: (root / path).read_bytes().decode() for path in sorted(own_files(root))}
    for path, text in files.items():
        if is_edited(text):
            where = project.show(root / path)
            raise UsageError(f"{where} was edited by hand; `flagen build {name}` makes it what it was")
    return files


def _beside(project: Project, name: str, package: Mapping[str, str], common: Mapping[str, str]) -> dict[str, str]:
    """The files of other packages that the package `name`, or what it needs of `common`, imports from: a layer may have
    a choice of operators, a convolution is one; and of those that these import from."""
    others = set(packages_in(project.generated)) - {name}
    found: dict[str, str] = {}
    while True:
        around = {**common, **found}
        files = {f"{name}/{path}": text for path, text in package.items()}
        files |= {path: around[path] for path in _needed(package, around)}
        imported = {module.partition(".")[0] for path, text in files.items() for module in _imported(path, text)}
        new = (imported & others) - {path.partition("/")[0] for path in found}
        if not new:
            return found
        for other in sorted(new):
            found |= {f"{other}/{path}": text for path, text in _package(project, other).items()}


def _needed(package: Mapping[str, str], common: Mapping[str, str]) -> list[str]:
    """The files of `common` that those of the package import, or that these do; and the mark that they are typed."""
    found = {"py.typed"} & common.keys()
    waiting = [module for path, text in package.items() for module in _imported(f"package/{path}", text)]
    while waiting:
        parts = waiting.pop().split(".")
        # What is imported may be a module or something in one; the packages around it are imported in any case.
        around = ("/".join(parts[:length]) for length in range(1, len(parts) + 1))
        for path in (candidate for module in around for candidate in (f"{module}.py", f"{module}/__init__.py")):
            if path in common and path not in found:
                found.add(path)
                waiting += _imported(path, common[path])
    return sorted(found)


def _imported(path: str, text: str) -> Iterator[str]:
    """The modules, or names in modules, that the file `path` of a generated directory imports by a relative import."""
    if not path.endswith(".py"):
        return
    for node in _relative_imports(text):
        outwards = PurePosixPath(path).parts[: -node.level]
        module = (*outwards, *(node.module.split(".") if node.module else ()))
        yield from (".".join((*module, alias.name)) for alias in node.names)


def _relative_imports(text: str) -> Iterator[ast.ImportFrom]:
    yield from (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level)


def _inwards(path: str, text: str) -> str:
    """`text` with its imports of what is beside the package turned into imports of what is in it."""
    outside = len(PurePosixPath(path).parts) + 1
    lines = text.split("\n")
    for node in _relative_imports(text):
        if node.level == outside:
            line = lines[node.lineno - 1]
            start = line[: node.col_offset] + re.sub(r"^from \.", "from ", line[node.col_offset :])
            lines[node.lineno - 1] = start
    return "\n".join(lines)
