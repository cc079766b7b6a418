"""Jinja2, set up so that a template can only lay out what its context hands it.

A missing value is an error, and so is a value that no template asked for: the two are written in different places, and
what one of them forgot would otherwise show up as a hole in somebody's generated code.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.idtracking import VAR_LOAD_RESOLVE

from flagen.diagnostics import InternalError
from flagen.emit.template_cache import TemplateCache, cache_directory


@cache
def environment(templates: Path) -> Environment:
    """The environment every template is rendered in; `templates` is the directory their paths are relative to.

    One for all specs that a process builds: a template is compiled once, and again when its file has changed.
    """
    directory = cache_directory()
    env = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        autoescape=False,  # The output is Python and Markdown, not HTML.
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        bytecode_cache=None if directory is None else TemplateCache(directory),
    )
    env.code_generator_class = _Generator
    env.filters["as_tuple"] = as_tuple
    return env


def as_tuple(names: Sequence[str]) -> str:
    """Names as a tuple without its parentheses: one alone has a comma behind it."""
    return ", ".join(names) + ("," if len(names) == 1 else "")


def render(env: Environment, template: str, context: Mapping[str, object], **known: object) -> str:
    """`template` filled from `context`, whose keys are exactly the names that the template uses; of those that are
    `known` for every file, it may use any.

    Raises:
        InternalError: the two disagree about a name, or the template itself is wrong.
    """
    try:
        _check_names(env, template, context, known.keys())
        return env.get_template(template).render({**known, **context})
    except TemplateError as error:
        raise InternalError(f"template {template}: {error}") from error


def _check_names(env: Environment, template: str, context: Mapping[str, object], known: Collection[str]) -> None:
    used = _names_used(env, template) - set(known)
    missing, unused = sorted(used - context.keys()), sorted(context.keys() - used)
    if missing:
        raise InternalError(f"template {template} uses {', '.join(missing)}, which its context does not have")
    if unused:
        raise InternalError(f"the context of template {template} has {', '.join(unused)}, which it does not use")


def _names_used(env: Environment, template: str) -> frozenset[str]:
    """The names that `template`, or what it includes, expects of its context."""
    own, included = _names_in(env.get_template(template))
    return own.union(*(_names_used(env, name) for name in included))


def _names_in(template: Template) -> tuple[frozenset[str], tuple[str, ...]]:
    """The names that a template alone expects, and the templates that it hands its context to."""
    compiled = template.root_render_func.__globals__
    return frozenset(compiled[_USED]), compiled[_INCLUDED]


_USED, _INCLUDED = "names_used", "templates_included"


class _Generator(CodeGenerator):
    """Compiles a template to code that knows what it uses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.used: set[str] = set()

    def enter_frame(self, frame: Frame) -> None:
        super().enter_frame(frame)
        looked_up = {name for action, name in frame.symbols.loads.values() if action == VAR_LOAD_RESOLVE}
        self.used |= looked_up - self.environment.globals.keys()

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:  # The name is Jinja2's.
        super().visit_Template(node, frame)
        self.writeline(f"{_USED} = {sorted(self.used)!r}")
        self.writeline(f"{_INCLUDED} = {tuple(_sharing_context(node))!r}")


def _sharing_context(tree: nodes.Template) -> Iterator[str]:
    """The templates that `tree` pulls in and hands its own context to."""
    for node in tree.find_all((nodes.Include, nodes.Extends, nodes.Import, nodes.FromImport)):
        if not getattr(node, "with_context", True):
            continue
        name = getattr(node, "template", None)
        if not isinstance(name, nodes.Const):
            raise InternalError(f"line {node.lineno} of a template: the path of another template must be a literal")
        yield str(name.value)
