"""Which names a spec may declare, and the table of what it declared: one name is one thing."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from flagen.diagnostics import Span
from flagen.functions import FUNCTIONS
from flagen.spec.idioms import ascii_name
from flagen.spec.model import REDUCTIONS, ROTATIONS, ROW_MAPS, Dims, Following
from flagen.spec.report import Report

SIZES = frozenset(("H", "HV"))
"""The sizes every spec has; the others are its dims."""


SymbolKind = Literal["dim", "step count", "step argument", "state", "input", "param", "derived", "local"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PYTHON_BUILTINS = _words("""
    all any ascii bin bool breakpoint bytearray bytes callable chr classmethod compile complex copyright credits delattr
    dict dir divmod enumerate eval exec exit filter float format frozenset getattr globals hasattr hash help hex id
    input int isinstance issubclass iter len license list locals map max memoryview min next object oct open ord pow
    print property quit range repr reversed round set setattr slice sorted staticmethod str super tuple type vars zip
""")

ARGUMENTS = _words("chunk_size cu_seqlens initial_state output_final_state save_states self")
"""Arguments that generated functions and modules have beside those of a spec."""

_LATER_ARGUMENTS = _words("max_iterations")
"""Those of version 2."""

_OF_CLASSES = PYTHON_BUILTINS | _words("""
    CALL Ellipsis Exception ImportError Module NoneType NotImplementedError Parameter Recurrence RuntimeError Tensor
    TypeError ValueError annotations math nn torch
""")
"""What stands beside the class of a module, or in it."""

MODULE_ATTRIBUTES = _words("""
    T_destination add_module apply bfloat16 buffers call_super_init carry_state children compile cpu cuda device double
    dtype dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu
    load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters requires_grad_
    reset_parameters reset_state set_extra_state set_submodule share_memory state state_dict to to_empty train training
    type xpu zero_grad
""")

_TAKEN: tuple[SymbolKind, ...] = ("input", "param", "step argument")
"""What generated functions take as arguments."""

_MODULE_OWNS: tuple[SymbolKind, ...] = ("dim", "param", "step argument")
"""What a generated module has as attributes: its params, the sizes that they need, and the step count."""

PACKAGE_MODULES = _words("""
    arguments chunk chunk_backward chunk_backward_across chunk_backward_gradients chunk_backward_kernels
    chunk_backward_prepare chunk_backward_walks chunk_kernels chunk_launch chunk_prepare chunk_residuals chunk_tuning
    fused_recurrent fused_recurrent_backward fused_recurrent_backward_kernels fused_recurrent_kernels module
    naive_chunk naive_recurrent operators
""")
"""The modules of a generated package."""

SHIPPED = _words("shared modules compat models ops layers")
"""What stands in a generated directory beside the packages."""

_FUNCTION_PREFIXES = _words("""
    naive_recurrent naive_chunk fused_recurrent fused_recurrent_backward chunk chunk_backward tune_chunk
""")

_PACKAGE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\Z")


_KIND_WORDS: dict[SymbolKind, str] = {
    "dim": "a dim",
    "step count": "the step count",
    "step argument": "the argument of the step count",
    "state": "a state",
    "input": "an input",
    "param": "a param",
    "derived": "a derived name",
    "local": "a local",
}


VERSIONS = (1, 2)
"""The versions of the language, the newest last."""


def functions(version: int = VERSIONS[-1]) -> frozenset[str]:
    """Every function of a version of the language."""
    elementwise = (name for name, row in FUNCTIONS.items() if row.since <= version)
    later = (*ROTATIONS, "over", "index", "prev", "first", "levels", "solve") if version > 1 else ()
    return frozenset((*elementwise, *REDUCTIONS, *ROW_MAPS, *later, "outer", "dot"))


def later_hint(name: str, version: int) -> str:
    """Which version of the language has a function that this one lacks, or nothing."""
    later = next((number for number in VERSIONS if number > version and name in functions(number)), None)
    return "" if later is None else later_version(later)


def later_version(version: int) -> str:
    """A hint where something came with a later version of the language."""
    return f"version {version} of the language has it: write `flagen: {version}`"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name the user most likely meant, if one is near."""
    import difflib  # Only needed once something is wrong.

    candidates = sorted(known)
    by_case = [candidate for candidate in candidates if candidate.lower() == name.lower()]
    close = by_case or difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return close[0] if close else None


def misspelt(name: str, states: list[str]) -> str | None:
    """The state that a local named `name` was probably meant to be: `s` or `S_t` for `S`."""
    return name.rpartition("_")[0] if name.rpartition("_")[0] in states else nearest(name, states)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint naming the nearest known name, or `otherwise`."""
    near = nearest(name, known)
    return f"did you mean `{near}`?" if near is not None else otherwise


def quoted(text: str) -> str:
    """Any text of the spec for a message: on one line, printable, and not too long."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:41])
    return f"`{shown}`" if len(text) <= 40 else f"`{shown[:36]}...`"


def listed(names: Iterable[str]) -> str:
    """Names for a message: `a`, `b` and `c`."""
    marked = [f"`{name}`" for name in names]
    return " and ".join([", ".join(marked[:-1]), marked[-1]] if len(marked) > 1 else marked)


def package_name_problem(name: str) -> str | None:
    """Why `name` cannot name a generated package, or None."""
    if not _PACKAGE_NAME.match(name):
        return "a name is a lower-case letter, then at most 63 lower-case letters, digits and `_`"
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return f"`{name}` is a keyword of Python"
    if name in sys.stdlib_module_names:
        return f"`{name}` is a module of Python's standard library"
    if name in PACKAGE_MODULES:
        return f"`{name}` is a module inside every generated package"
    if name in ("flagen", "torch", "triton"):
        return f"`{name}` is a package that generated code lives beside"
    return None


def class_name_problem(class_name: str, name: str) -> str | None:
    """Why `class_name` cannot name the module's class, or None."""
    if not _NAME.match(class_name):
        return "a class name is a letter, then at most 63 letters, digits and `_`"
    if keyword.iskeyword(class_name):
        return f"`{class_name}` is a keyword of Python"
    if class_name in _OF_CLASSES:
        return f"`{class_name}` is a name the generated code uses"
    if class_name in [f"{function}_{name}" for function in _FUNCTION_PREFIXES]:
        return f"`{class_name}` is a function of the generated package"
    return None


def camel_case(name: str) -> str:
    """The class name that goes with a package's name: `gated_delta_rule` → `GatedDeltaRule`."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def identifier_problem(name: str, kind: SymbolKind, version: int = VERSIONS[-1]) -> tuple[str, str, str] | None:
    """Why a spec cannot declare `name`: code, message and hint; or None."""
    if not _NAME.match(name):
        near = ascii_name(name)
        hint = "a letter, then at most 63 letters, digits and `_`, all of ASCII"
        return "E301", f"{quoted(name)} is not a name", f"{hint}: `{near}`" if near and _NAME.match(near) else hint
    reason = _reserved_because(name, version)
    if reason is None and kind in _TAKEN and (name in ARGUMENTS or (version > 1 and name in _LATER_ARGUMENTS)):
        reason = "generated functions have an argument of this name"
    if reason is None and kind in _MODULE_OWNS and (name in MODULE_ATTRIBUTES or name.startswith("register_")):
        reason = "the generated module has an attribute of this name"
    if reason is None:
        return None
    other = f"choose another name, such as `{name}_`" if keyword.iskeyword(name) else "choose another name"
    return "E302", f"`{name}` is reserved: {reason}", other


def _reserved_because(name: str, version: int) -> str | None:
    if name in functions(version):
        return "it is a function of the language"
    if name == "head":
        return "it is the index of the value head"
    if name in SIZES:
        return "it is a number of heads"
    if name == "o":
        return "it is the output"
    if name.endswith("_prev"):
        return "a name ending in `_prev` is the value of a state before the token"
    if keyword.iskeyword(name):
        return "it is a keyword of Python"
    return None


@dataclass
class Symbol:
    """A declared name. `dims` is None where its declaration is wrong: then expressions over it stay unchecked."""

    name: str
    kind: SymbolKind
    span: Span
    dims: Dims | None = ()
    per: Literal["token", "step"] = "token"
    used: bool = False
    closed: bool = False
    """A local whose `repeat` has ended."""

    @property
    def described(self) -> str:
        return _KIND_WORDS[self.kind]


class Symbols:
    """Every name of a spec. `complete` is False once a section of declarations could not be read: then a name that is
    not here may have been meant to be, and is not reported."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.complete = True
        self.doubtful: set[str] = set()
        """Names that are declared as two things; what has such a dim stays unchecked."""
        self.sized: set[str] = set()
        """The dims that have an entry in the section `dims`."""
        self.following: tuple[Following, ...] = ()
        """The sizes that follow from others, each behind those it follows from; without those that cannot be."""
        self._symbols: dict[str, Symbol] = {}

    def get(self, name: str) -> Symbol | None:
        return self._symbols.get(name)

    def names(self) -> frozenset[str]:
        """Every declared name."""
        return frozenset(self._symbols)

    def of_kind(self, *kinds: SymbolKind) -> list[Symbol]:
        return [symbol for symbol in self._symbols.values() if symbol.kind in kinds]

    def declare(self, name: str, kind: SymbolKind, span: Span, dims: Dims | None = ()) -> Symbol | None:
        """Enter a name; None, and a diagnostic, where it cannot be declared.

        A reserved name is entered all the same, so that its uses are not reported as unknown names.
        """
        problem = identifier_problem(name, kind, self.report.version)
        if problem is not None:
            self.report.error(problem[0], span, problem[1], problem[2])
            self.report.misnamed.add(name)
            if problem[0] == "E302" and name not in self._symbols:
                self.enter(Symbol(name, kind, span, dims, used=True))
            self.complete = self.complete and problem[0] != "E301"
            return None
        if (other := self._symbols.get(name)) is not None:
            message = f"`{name}` is already {other.described}, declared on line {other.span.line}"
            self.report.error("E303", span, message, "one name is one thing: rename one of them")
            # Which of the two an expression means cannot be told.
            other.dims = None
            self.doubtful.add(name)
            return None
        return self.enter(Symbol(name, kind, span, dims))

    def enter(self, symbol: Symbol) -> Symbol:
        self._symbols[symbol.name] = symbol
        return symbol

    def declare_dim(self, name: str, span: Span) -> bool:
        """Enter a dim, or meet it again."""
        other = self._symbols.get(name)
        if other is not None and other.kind == "dim":
            other.used = True
            return True
        return self.declare(name, "dim", span) is not None
