"""A new variant's spec, made from another's."""

from __future__ import annotations

import re
from pathlib import Path

from flagen.project import VARIANT, Project, UsageError, bundled


def write_spec(project: Project, name: str, like: str) -> tuple[Path, ...]:
    """Write `specs/<name>.yaml`, the spec of the variant `like` under the new name, and return its path.

    The specs whose operators its layer is around or uses come along where the project has none of their names; their
    paths follow.

    Raises:
        UsageError: the name is taken or is no variant's name, or there is no variant `like`.
        SpecError: flagen refuses the name, or the spec it is to be like.
    """
    from flagen.spec import load_spec, parse_spec

    if not VARIANT.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a variant: use lower-case letters, digits and _, a letter first")
    source = project.find_spec(like, bundled("specs"))
    model = load_spec(source)
    path = project.specs / f"{name}.yaml"
    if path.exists():
        raise UsageError(f"{project.show(path)} exists; choose another name, or remove it first")
    text = _renamed(model.source.text, name)
    parse_spec(text, project.show(path), beside=source)
    around = () if model.recurrence_of is None else (model.recurrence_of,)
    texts = {path: text}
    for other in (*around, *model.used.values()):
        texts[project.specs / f"{other.name}.yaml"] = other.source.text
    written = tuple(target for target in texts if not target.exists())
    path.parent.mkdir(parents=True, exist_ok=True)
    for target in written:
        with target.open("x", encoding="utf-8") as file:
            file.write(texts[target])
    return written


def _renamed(text: str, name: str) -> str:
    """The spec `text` under the name `name`, titled after it; its classes are named after it too."""
    import yaml

    from flagen.spec.names import camel_case

    tree = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(tree, yaml.MappingNode), "the spec was loaded, so it is a mapping"
    title = re.sub(r"^.", lambda match: match[0].upper(), name.replace("_", " ").strip())
    fields = {"name": name, "title": title}
    for key, value in reversed(tree.value):
        start, end = value.start_mark.index, value.end_mark.index
        if key.value in fields:
            text = f"{text[:start]}{fields[key.value]}\n{text[end:].lstrip(' ').removeprefix(chr(10))}"
        elif key.value == "class_name":
            text = text[: key.start_mark.index] + text[end:].removeprefix("\n")
        elif key.value == "layer" and isinstance(value, yaml.MappingNode):
            named = next(inner for outer, inner in value.value if outer.value == "class_name")
            text = text[: named.start_mark.index] + camel_case(name) + text[named.end_mark.index :]
    return text
