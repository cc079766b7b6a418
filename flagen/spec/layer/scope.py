"""The names of a layer: what each is, where it may stand, and whether anything uses it."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flagen.diagnostics import Span
from flagen.spec.layer.model import CallKind, Expr, Name, NameKind, Value
from flagen.spec.layer.vocabulary import CONSTANTS, CONSTRUCTORS, FUNCTIONS, NUMBER_FUNCTIONS, RULES
from flagen.spec.layer.words import Word
from flagen.spec.names import MODULE_ATTRIBUTES, did_you_mean, later_version, listed, nearest, quoted
from flagen.spec.report import Report

Kind = Literal["config", "dim", "param", "module", "input", "local", "operator"]
Place = Literal["number", "modules", "init", "forward"]
"""What an expression is about: numbers, a module, what a parameter starts from, or tensors."""

OPERATOR = "recurrence"
RESULT = "y"
HIDDEN = "x"

_WORDS: dict[Kind, str] = {
    "config": "an argument of the config",
    "dim": "a name of `dims`",
    "param": "a param",
    "module": "a module",
    "input": "an input",
    "local": "a value of `forward`",
    "operator": "an operator",
}
_VALUES: dict[Kind, NameKind] = {
    "config": "config",
    "dim": "dim",
    "param": "param",
    "input": "input",
    "local": "local",
}
_OWNED: tuple[Kind, ...] = ("config", "param", "module")
"""What a module has as its attributes."""
_LITERALS = {"true": True, "false": False, "null": None}

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\Z")

CONSTRUCTOR_ARGUMENTS = frozenset(("self", "kwargs"))
FORWARD_ARGUMENTS = frozenset(
    "self hidden_states attention_mask past_key_values use_cache output_attentions cu_seqlens kwargs".split()
)
"""What every layer takes, beside its config and its inputs."""

BASE_ATTRIBUTES = frozenset(
    "KEYWORDS check_keywords choose find_tokens first_positions leave_states outputs past_states seen_tokens".split()
)
"""What every generated layer has of its base."""

BASE_CONFIG = frozenset(("mode", "layer_idx"))
"""What the base keeps of the config, under these names."""


@dataclass
class Declared:
    name: str
    kind: Kind
    span: Span
    used: bool = False
    sure: bool = True
    """Whether it was read without a mistake."""

    @property
    def described(self) -> str:
        return _WORDS[self.kind]


class LayerScope:
    """Every name of a layer, one section at a time."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.place: Place = "number"
        self.complete = True
        """Whether every declaration could be read; what isn't known may be one that could not, else."""
        self.later: dict[str, int] = {}
        """Names that are declared or assigned further on, with their line."""
        self._names: dict[str, Declared] = {}
        self._modules: dict[str, Declared] = {}
        """The modules that have the name of a config: a call is the module, the name alone the config."""
        self._unknown: set[str] = set()

    def get(self, name: str) -> Declared | None:
        return self._names.get(name)

    def of_kind(self, *kinds: Kind) -> list[Declared]:
        every = (*self._names.values(), *self._modules.values())
        return [declared for declared in every if declared.kind in kinds]

    def own(self, span: Span) -> None:
        """Enter what every layer has: its operator, and what it is given."""
        self._names[OPERATOR] = Declared(OPERATOR, "operator", span)
        self._names[HIDDEN] = Declared(HIDDEN, "local", span)

    def declare(self, name: str, kind: Kind, span: Span) -> Declared | None:
        """Enter a name; None, and a diagnostic, where it cannot be one."""
        self.later.pop(name, None)
        problem = _problem(name, kind, self.report.version)
        if problem is not None:
            self.report.error(problem[0], span, problem[1], problem[2])
            self.report.misnamed.add(name)
            self._unknown.add(name)
            return None
        other = self._names.get(name)
        if other is not None and other.kind == "config" and kind == "module" and name not in self._modules:
            self._modules[name] = Declared(name, kind, span)
            return self._modules[name]
        if other is not None:
            message = f"`{name}` is already {other.described}, declared on line {other.span.line}"
            self.report.error("E303", span, message, "one name is one thing: rename one of them")
            other.used = True
            return None
        self._names[name] = Declared(name, kind, span)
        return self._names[name]

    def assign(self, name: str, span: Span) -> bool:
        """Enter what a statement of `forward` assigns; again and again, if it likes."""
        other = self._names.get(name)
        if other is None:
            return self.declare(name, "local", span) is not None
        if other.kind in ("local", "input"):
            return True
        message = f"`{name}` is {other.described}; a statement assigns a value of its own"
        self.report.error("E310", span, message, "choose another name")
        return False

    def mention(self, text: str) -> None:
        """Take every name in a text that is not understood for used."""
        for word in re.findall(r"[A-Za-z_]\w*", text):
            for declared in (self._names.get(word), self._modules.get(word)):
                if declared is not None:
                    declared.used = True

    def resolve(self, name: str, span: Span) -> Expr | None:
        """What a name means here; None after a diagnostic."""
        declared = self._names.get(name)
        if declared is not None and (kind := _VALUES.get(declared.kind)) is not None:
            declared.used = True
            if self.place != "forward" and kind in ("param", "input", "local"):
                self._not_here(name, declared, span)
                return None
            return Name(name, kind, span) if declared.sure else None
        if declared is not None and declared.kind == "module" and self.place == "modules":
            return Name(name, "module", span)
        if declared is not None:
            declared.used = True
            self.report.error(
                "E312", span, f"`{name}` is {declared.described}, and no value", f"call it: `{name}(...)`"
            )
            return None
        if name in _LITERALS:
            return Value(_LITERALS[name], span)
        if name in CONSTANTS or (name == "index" and self.place == "init"):
            return Name(name, "constant", span)
        self._unknown_name(name, span)
        return None

    def called(self, name: str, span: Span) -> CallKind | None:
        """What a call by this name is, here; None after a diagnostic."""
        declared = self._modules.get(name) or self._names.get(name)
        if declared is not None and declared.kind in ("module", "operator"):
            declared.used = True
            if self.place == "forward":
                return "module" if declared.kind == "module" else "recurrence"
            self._not_here(name, declared, span)
            return None
        if declared is not None:
            declared.used = True
            message = f"`{name}` is {declared.described}, and cannot be called"
            self.report.error("E408", span, message, f"a product is written `{name} * (...)`")
            return None
        if name in self.report.misnamed:
            return None  # Reported where it is declared.
        if name in self._callable():
            return self._callable()[name]
        self._unknown_call(name, span)
        return None

    def _callable(self) -> dict[str, CallKind]:
        words: dict[str, CallKind] = dict.fromkeys(NUMBER_FUNCTIONS, "function")
        if self.place == "modules":
            words |= dict.fromkeys(self._here(), "constructor")
        if self.place == "init":
            words |= dict.fromkeys(self._here(), "init")
        if self.place == "forward":
            words |= dict.fromkeys(self._here(), "function")
        return words

    def _here(self) -> list[str]:
        """The words of this place alone, as far as this version of the language has them."""
        words = _STANDING.get(self.place, {}).values()
        return [word.name for word in words if word.since <= self.report.version]

    def _elsewhere(self, name: str) -> str | None:
        """Where else the word `name` stands."""
        since = _since(name)
        return None if since is None or since > self.report.version else _ALL_WORDS[name]

    def _not_here(self, name: str, declared: Declared, span: Span) -> None:
        message = f"`{name}` is {declared.described}, and is there only in `forward`"
        self.report.error("E304", span, message, "here stand the config and `dims`")

    def _unknown_name(self, name: str, span: Span) -> None:
        if name in self.report.misnamed:
            return  # Reported where it is declared.
        if name in self.later:
            message = f"`{name}` is defined on line {self.later[name]}, after this"
            self.report.error("E308", span, message, "expressions use the names before them")
        elif self._elsewhere(name) is not None or name == OPERATOR:
            self.report.error("E312", span, f"`{name}` is a function", f"give it its arguments: `{name}(...)`")
        elif self.complete and name not in self._unknown:
            self._unknown.add(name)
            kinds: tuple[Kind, ...] = ("config", "dim")
            kinds = (*kinds, "param", "input", "local") if self.place == "forward" else kinds
            known = [declared.name for declared in self.of_kind(*kinds)]
            if (near := self._names.get(nearest(name, known) or "")) is not None:
                near.used = True
            hint = did_you_mean(name, known, f"the names here are {listed(known)}" if known else "")
            self.report.error("E304", span, f"unknown name `{name}`", hint)

    def _unknown_call(self, name: str, span: Span) -> None:
        known = [*self._callable()]
        if self.place == "forward":
            known += [declared.name for declared in self.of_kind("module", "operator")]
        if (near := self._names.get(nearest(name, known) or "")) is not None:
            near.used = True
        what = {"modules": "a module", "init": "an init rule", "forward": "a function or module"}
        message = f"`{name}` is not {what.get(self.place, 'a function')} of the language"
        elsewhere = self._elsewhere(name)
        if name in self.later:
            message, hint = f"`{name}` is assigned on line {self.later[name]}, and cannot be called", ""
        elif elsewhere is not None:
            hint = f"it stands in `{elsewhere}`"
        elif (since := _since(name)) is not None:
            hint = later_version(since)
        else:
            there = ", ".join(sorted(self._here() or NUMBER_FUNCTIONS))
            hint = did_you_mean(name, known, f"there are {there}")
        if self.complete and name not in self._unknown:
            self._unknown.add(name)
            self.report.error("E408", span, message, hint)


_STANDING: Mapping[Place, Mapping[str, Word]] = {"modules": CONSTRUCTORS, "init": RULES, "forward": FUNCTIONS}
"""The words that stand in one place alone."""

_ALL_WORDS: dict[str, str] = {
    **dict.fromkeys(NUMBER_FUNCTIONS, "dims"),
    **dict.fromkeys(RULES, "init"),
    **dict.fromkeys(CONSTRUCTORS, "modules"),
    **dict.fromkeys(FUNCTIONS, "forward"),
}
"""Every word, and where it stands."""


def _since(name: str) -> int | None:
    """The first version of the language that has the word `name`; None where no version has."""
    found = [words[name].since for words in _STANDING.values() if name in words]
    return min(found, default=1 if name in NUMBER_FUNCTIONS else None)


def _problem(name: str, kind: Kind, version: int) -> tuple[str, str, str] | None:
    """Why a layer cannot declare `name`: code, message and hint; or None."""
    if not _NAME.match(name):
        return (
            "E301",
            f"{quoted(name)} is not a name",
            "a letter, then at most 63 letters, digits and `_`, all of ASCII",
        )
    reason = None
    if keyword.iskeyword(name) or name in ("true", "false", "null"):
        reason = "it is a keyword"
    elif (since := _since(name)) is not None and since <= version and (name not in CONSTRUCTORS or kind != "module"):
        reason = "it is a function of the language"
    elif name == OPERATOR:
        reason = "it is the operator"
    elif name in CONSTANTS or name == "index":
        reason = "it is a constant"
    elif name in (HIDDEN, RESULT) and kind != "local":
        reason = "it is what the layer is given" if name == HIDDEN else "it is what the layer gives back"
    elif (kind == "config" and name in CONSTRUCTOR_ARGUMENTS) or (kind == "input" and name in FORWARD_ARGUMENTS):
        reason = "every layer has an argument of this name"
    elif kind in _OWNED and (name in MODULE_ATTRIBUTES or name.startswith("register_")):
        reason = "every module has an attribute of this name"
    elif kind in _OWNED and (name in BASE_ATTRIBUTES or (name in BASE_CONFIG and kind != "config")):
        reason = "every layer has an attribute of this name"
    return None if reason is None else ("E302", f"`{name}` is reserved: {reason}", "choose another name")


def attribute_problem(name: str) -> str | None:
    """Why a module cannot keep a value under `name`, or None."""
    if not _NAME.match(name):
        return "a letter, then at most 63 letters, digits and `_`, all of ASCII"
    if keyword.iskeyword(name) or name in MODULE_ATTRIBUTES or name.startswith("register_"):
        return "every module has an attribute of this name, or Python a keyword"
    if name in BASE_ATTRIBUTES | BASE_CONFIG:
        return "every layer has an attribute of this name"
    return None
