"""A generated directory around its packages: what all of them share, and where everything in it is imported from.

What they share is text of flagen's own, the same in every project. What there is to import depends on the packages:
`ops.py` has the functions of all of them, `layers.py` their layers, each imported when it is first asked for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from flagen import __version__
from flagen.emit.banner import add_common_banner, has_banner, seal
from flagen.emit.writer import Changes, differences, own_files, pending_changes, write_package
from flagen.freshness import fingerprint, fresh_files, record_path, remember
from flagen.project import RUNTIME, bundled

DIRECTORIES = ("shared", "modules", "compat", "models")
"""What flagen's own text is in, beside the packages of specs: none of these has such a name."""

Exports = Mapping[str, tuple[str, ...]]
"""Names to import from a package, by the module that they are in."""


def common_files() -> dict[str, str]:
    """What packages share, by paths in the generated directory."""
    texts = {"py.typed": ""}
    for path in sorted(RUNTIME.glob("*/**/*.py")):
        texts[path.relative_to(RUNTIME).as_posix()] = path.read_bytes().decode()
    source = "what flagen has for all packages"
    return {path: seal(path, add_common_banner(path, text, __version__, source)) for path, text in texts.items()}


LISTINGS = ("__init__.py", "layers.py", "ops.py")


def listing_files(packages: Mapping[str, Exports]) -> dict[str, str]:
    """LISTINGS, from which all there is can be imported: `packages`, by name, and what flagen has besides."""
    from flagen.emit.env import environment, render
    from flagen.emit.format import format_python

    functions: dict[str, list[str]] = {}
    layers: dict[str, list[str]] = {}
    for package, exports in sorted(packages.items()):
        names = [name for module, names in exports.items() if module not in ("module", "layer") for name in names]
        functions[package] = sorted(names)
        # A build refuses two of one name; of two that are there all the same, a package whose spec is gone has one.
        listed = {name for others in layers.values() for name in others}
        layers[package] = sorted({*exports.get("layer", ())} - listed)
    compat = {"compat": ["as_fla"]} if (RUNTIME / "compat").is_dir() else {}
    listings = {
        "__init__.py": ("Operators of linear attention, as `ops`, and what is built of them.", compat),
        "ops.py": ("The operators of every package here, each imported when it is first asked for.", functions),
        "layers.py": ("The layers of every package here, each imported when it is first asked for.", layers),
    }
    env = environment(bundled("templates"))
    files = {}
    for path, (title, modules) in listings.items():
        modules = {module: names for module, names in modules.items() if names}
        title = title if modules or path != "layers.py" else "The layers of every package here: there are none."
        names = sorted({name for names in modules.values() for name in names})
        files[path] = render(env, "torch/listing.py.j2", {"title": title, "modules": modules, "names": names})
    source = "the packages beside it"
    bannered = {path: add_common_banner(path, text, __version__, source) for path, text in files.items()}
    return {path: seal(path, text) for path, text in format_python(bannered).items()}


def packages_in(out: Path) -> dict[str, Exports]:
    """The packages in the directory `out` that flagen wrote, and what they export."""
    found = {}
    for path in sorted(out.glob("*/__init__.py")):
        name = path.parent.name
        if name in DIRECTORIES:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # Gone again, or nothing that flagen wrote.
        if has_banner(text):
            found[name] = exports_of(text)
    return found


def exports_of(init: str) -> Exports:
    """What a package's `__init__.py` imports, by module; nothing if it was edited so that it does not parse."""
    try:
        tree = ast.parse(init)
    except SyntaxError:
        return {}
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module)
    exports: dict[str, tuple[str, ...]] = {}
    for node in imports:
        exports[str(node.module)] = (*exports.get(str(node.module), ()), *(alias.name for alias in node.names))
    return exports


class Surroundings:
    """What is in the directory `out` beside its packages; `memory` is where it is remembered."""

    def __init__(self, out: Path, memory: Path) -> None:
        self.out, self.memory = out, memory

    def write_common(self) -> Changes:
        """Write what packages share; raises ForeignFile and OSError, as the other methods do."""
        return write_package(self.out, common_files(), [path for path in self._own_files() if path not in LISTINGS])

    def write_listings(self) -> Changes:
        """Write the lists of what there is to import."""
        changes, packages = Changes(), packages_in(self.out)
        while True:
            changes |= write_package(self.out, self._listings(packages), ())
            # Another build may have added a package, and listed it, before its lists were written over.
            before, packages = packages, packages_in(self.out)
            if packages == before:
                return changes

    def compare(self, built: Mapping[str, Exports], shown: str) -> tuple[Changes, str]:
        """What would have to change where the packages `built` are on disk, too, and how it differs: `out` is called
        `shown` there."""
        files = {**common_files(), **listing_files({**packages_in(self.out), **built})}
        own = list(self._own_files())
        return pending_changes(self.out, files, own), differences(self.out, shown, files, own)

    def _listings(self, packages: Mapping[str, Exports]) -> dict[str, str]:
        """The lists; where they are still there from the last build, its texts: formatting takes time."""
        record = record_path(self.memory, self.out, self.out)
        key = fingerprint(repr(sorted(packages.items())).encode(), "")
        files = fresh_files(record, key, self.out)
        if not files:
            files = listing_files(packages)
            with suppress(OSError):
                remember(record, key, "", files)
        return files

    def _own_files(self) -> Iterator[str]:
        """The files that flagen wrote and that are in none of the packages."""
        for name in DIRECTORIES:
            yield from (f"{name}/{path}" for path in own_files(self.out / name))
        yield from own_files(self.out, "*")
