"""The whole reading of a spec: sections in their order, then statements, then the checks over all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from flagen.spec.bounds import warn_growing
from flagen.spec.checks import (
    check_meaning,
    check_sizes,
    check_steps,
    check_unused,
    check_updated,
)
from flagen.spec.fields import Field, Fields
from flagen.spec.loader import Mapping, Node, Scalar
from flagen.spec.model import ChunkHints, Spec
from flagen.spec.names import VERSIONS, Symbols, camel_case, later_version, package_name_problem, quoted
from flagen.spec.report import Abandon, Report
from flagen.spec.scope import Scope
from flagen.spec.sections import Sections
from flagen.spec.statements import Statements

if TYPE_CHECKING:
    from flagen.spec.layer.model import Use

_TEXTS = ("title", "paper", "description")
_REQUIRED = ("flagen", "name", "inputs", "output")
_KEYS = (
    *("flagen", "name", *_TEXTS, "class_name", "state", "inputs", "params", "steps"),
    *("let", "decay", "gate", "update", "output", "chunk", "layer"),
)
_AROUND = ("flagen", "name", *_TEXTS, "recurrence", "layer")
"""The keys of a layer around the operators of another spec."""
_SINCE = {"dims": 2, "recurrence": 2}
"""The version of the language that a key came with; all others were there from the start."""
_UNTIL = {"update": 1}
"""The last version in which a key is required: what `prev` keeps from token to token needs no update of its own."""


Find = Callable[[str], "Spec | str"]
"""The spec of a name, for a layer that uses its operators; or why there is none."""


def read_spec(root: Mapping, report: Report, sha256: str, find: Find | None = None) -> Spec | None:
    """The spec below the root node; None where it has errors, all of which are in the report."""
    try:
        spec = _Reader(root, report, find).spec(sha256)
    except Abandon:
        return None
    if report.failed():
        return None
    if spec.recurrence_of is None:
        warn_growing(_as_meant(spec), report)
    return spec


def _as_meant(spec: Spec) -> Spec:
    """`spec` as its author thinks of it: of a state in levels, the sum of these."""
    return spec if spec.levels is None else spec.levels.whole


class _Reader:
    def __init__(self, root: Mapping, report: Report, find: Find | None) -> None:
        self.root = root
        self.find = find
        self.report = report
        self.fields = Fields(report)
        self.symbols = Symbols(report)
        self.scope = Scope(self.symbols, report)
        self.sections = Sections(self.fields, self.symbols, self.scope, report)
        self.statements = Statements(self.sections, self.fields, self.symbols, self.scope, report)

    def spec(self, sha256: str) -> Spec:
        given = self._keys()
        self._check_version(given)
        if "recurrence" in given:
            return self._around(given, sha256)
        read = {field.key.text for field in given.values()}
        if any(key.text not in read and isinstance(value, Mapping) for key, value in self.root.entries):
            self.symbols.complete = False  # It may declare what is unknown then.
        sections = self.sections
        name = self._name(given)
        class_name = sections.class_name(given["class_name"].value, name) if "class_name" in given else camel_case(name)
        texts = self._read_texts(given)
        self._expect_declarations(given)
        sections.steps_given = "steps" in given
        dims = sections.dims(given["dims"].value) if "dims" in given else []
        states = sections.states(given["state"].value) if "state" in given else ()
        inputs = sections.inputs(given["inputs"].value) if "inputs" in given else ()
        steps = sections.steps(given["steps"].value) if "steps" in given else None
        params = sections.params(given["params"].value) if "params" in given else ()
        following = sections.following(dims)
        if self.symbols.complete and sections.sizes_known:
            check_sizes(self.symbols, inputs, params, self.report)
        self._expect_later(given)
        derived = (
            *(sections.derived(given["let"].value, "let") if "let" in given else ()),
            *(sections.derived(given["decay"].value, "decay") if "decay" in given else ()),
            *(sections.derived(given["gate"].value, "gate") if "gate" in given else ()),
        )
        update = self.statements.update(given["update"].value, steps) if "update" in given else ()
        output = self.statements.output(given["output"].value) if "output" in given else ()
        chunk = sections.chunk(given["chunk"].value) if "chunk" in given else ChunkHints()
        look_back, positions = sections.look_back, sections.positions
        spec = Spec(
            name=name,
            title=texts.get("title", ""),
            paper=texts.get("paper", ""),
            description=texts.get("description", ""),
            class_name=class_name,
            states=(*states, *look_back.states(), *positions.states()),
            inputs=inputs,
            params=params,
            steps=steps,
            derived=derived,
            update=(*positions.before(), *update, *look_back.statements(), *positions.behind()),
            output=output,
            chunk=chunk,
            version=self.report.version,
            source=self.report.source,
            sha256=sha256,
            following=following,
            firsts=positions.firsts(),
        )
        spec = sections.levels.written_out(spec)
        self._expect_states(spec, given)
        self._check_whole(_as_meant(spec), {"update", "output"} <= given.keys() or self.report.version > 1)
        return self._with_layer(given["layer"].value, spec) if "layer" in given else spec

    def _keys(self) -> dict[str, Field]:
        """The sections of the file."""
        stated = next((value for key, value in self.root.entries if key.text == "flagen"), None)
        version = int(stated.text) if isinstance(stated, Scalar) and stated.text in map(str, VERSIONS) else VERSIONS[0]
        if version >= _SINCE["recurrence"] and any(key.text == "recurrence" for key, _ in self.root.entries):
            what = "a layer around the operators of another spec has this key"
            hint = "leave it out, or `recurrence`: that is another spec's, and this has none of its own"
            own = dict.fromkeys({*_KEYS, *_SINCE} - {*_AROUND}, hint)
            return self.fields.known(self.root, what, _AROUND, ("flagen", "name", "recurrence", "layer"), own) or {}
        later = {key: since for key, since in _SINCE.items() if since > version}
        keys = (*_KEYS, *(key for key in _SINCE if key not in later))
        elsewhere = {key: later_version(since) for key, since in later.items()}
        required = (*_REQUIRED, *(key for key, until in _UNTIL.items() if version <= until))
        return self.fields.known(self.root, "a spec has this key", keys, required, elsewhere) or {}

    def _name(self, given: dict[str, Field]) -> str:
        return self.sections.package_name(given["name"].value) if "name" in given else ""

    def _read_texts(self, given: dict[str, Field]) -> dict[str, str]:
        return {key: self.fields.text(given[key].value, f"`{key}` is text") for key in _TEXTS if key in given}

    def _around(self, given: dict[str, Field], sha256: str) -> Spec:
        """The layer around the operators of another spec, whose recurrence is this one's, too."""
        name, texts = self._name(given), self._read_texts(given)
        other = self._recurrence(given["recurrence"].value, name)
        if other is None or "layer" not in given:
            raise Abandon
        spec = replace(
            other,
            name=name,
            title=texts.get("title", ""),
            paper=texts.get("paper", ""),
            description=texts.get("description", ""),
            class_name=camel_case(name),
            version=self.report.version,
            source=self.report.source,
            sha256=sha256,
            layer=None,
            used={},
            recurrence_of=other,
        )
        return self._with_layer(given["layer"].value, spec)

    def _recurrence(self, node: Node, name: str) -> Spec | None:
        """The spec that is named, where it can be found and has a recurrence of its own."""
        scalar = self.fields.scalar(node, "`recurrence` is the name of another spec, whose recurrence this one has")
        if scalar is None:
            return None
        if (problem := package_name_problem(scalar.text)) is not None or scalar.text == name:
            problem = problem or "a spec that has its own recurrence states it"
            self.report.error("E206", scalar.span, f"{quoted(scalar.text)} is no other spec's name", problem)
            return None
        found = "it is looked for beside a spec's file" if self.find is None else self.find(scalar.text)
        if isinstance(found, Spec):
            return found
        self.report.error("E812", scalar.span, f"`{scalar.text}` cannot be used: {found}")
        return None

    def _with_layer(self, node: Node, spec: Spec) -> Spec:
        """`spec` with the layer that `node` describes, and what this uses."""
        # Most specs have none, and need nothing of what reads one.
        from flagen.spec.layer.checks import check_layer
        from flagen.spec.layer.reader import LayerReader
        from flagen.spec.layer.scope import OPERATOR

        operator = None if self.report.failed() else spec
        reader = LayerReader(spec.name, self.fields, self.report)
        layer = reader.layer(node)
        if layer is None:
            return spec
        used = self._used(layer.uses)
        if reader.sound and reader.scope.complete:
            operators = {OPERATOR: operator} | {use.name: used.get(use.name) for use in layer.uses}
            check_layer(layer, operators, reader.scope, self.report)
        return replace(spec, layer=layer, used=used)

    def _used(self, uses: tuple[Use, ...]) -> dict[str, Spec]:
        """The specs that the layer uses, where they can be found."""
        used: dict[str, Spec] = {}
        if self.find is None:
            return used
        for use in uses:
            found = self.find(use.package)
            if isinstance(found, Spec):
                used[use.name] = found
            else:
                self.report.error("E812", use.span, f"`{use.package}` cannot be used: {found}")
        return used

    def _check_version(self, given: dict[str, Field]) -> None:
        """Another version may mean anything: nothing else in the file is worth a word then."""
        if "flagen" not in given:
            return
        node = given["flagen"].value
        if isinstance(node, Scalar) and node.plain and node.text in map(str, VERSIONS):
            self.report.version = int(node.text)
            return
        first, last = VERSIONS[0], VERSIONS[-1]
        message = f"this flagen reads the versions {first} and {last} of the language"
        self.report.error("E205", node.span, message, f"write `flagen: {last}`")
        raise Abandon

    def _expect_declarations(self, given: dict[str, Field]) -> None:
        if "state" not in given and self.report.version == 1:
            hint = "declare what the recurrence carries, as in `state: {S: [K, V]}`"
            self.report.error("E210", self.root.span, "a spec without `state` is not supported yet", hint)
            self.symbols.complete = False
        if "inputs" not in given:
            self.symbols.complete = False

    def _expect_states(self, spec: Spec, given: dict[str, Field]) -> None:
        """Whether there is anything that goes from token to token."""
        if spec.states or "state" in given or self.report.failed() or self.report.version == 1:
            return
        message = "a spec in which no token depends on earlier ones is not supported"
        hint = "declare what is carried, as in `state: {S: [K, V]}`, or take values of earlier tokens, `prev(x)`"
        self.report.error("E210", self.root.span, message, hint)

    def _expect_later(self, given: dict[str, Field]) -> None:
        """Tell the scope which names are defined further on, so that using one early is called just that."""
        for section in ("let", "decay", "gate"):
            node = given[section].value if section in given else None
            for key, _ in node.entries if isinstance(node, Mapping) else ():
                if self.symbols.get(key.text) is None:
                    self.scope.later.setdefault(key.text, key.span.line)
        self.statements.expect_locals(*(given[key].value for key in ("update", "output") if key in given))

    def _check_whole(self, spec: Spec, has_statements: bool) -> None:
        if has_statements and self.symbols.complete and not self.report.obscured:
            if not self.report.unread:
                check_unused(self.symbols, self.scope, self.report)
            check_updated(self.symbols, self.scope, self.statements.updated, self.report)
            check_steps(spec.steps, self.statements.repeats, self.report)
            if self.statements.sound:
                check_meaning(spec, self.report)
