"""What a name means where an expression stands.

The names in scope of an expression:

- in a size of `dims`, and in a param's default: the dims, `H` and `HV`;
- in `let`, `decay` and `gate`: these, the step count, `head`, every input and param, and the names defined before;
- in `update` and `output`: all of these, the states (`S` as it stands, `S_prev` before the token) and the locals
  assigned before. A per-step name, an input or one derived from it, has one value per step: only a `repeat` names it,
  and a local of a `repeat` is gone after it.
"""

from __future__ import annotations

import re
from typing import Literal

from flagen.diagnostics import Span
from flagen.spec.idioms import PREVIOUS, ascii_name, name_hint
from flagen.spec.model import Expr, Name, NameKind, StateRead
from flagen.spec.names import SIZES, Symbol, SymbolKind, Symbols, did_you_mean, functions, listed, nearest
from flagen.spec.report import Report

Place = Literal["dims", "default", "derived", "update", "output"]

_OF_SIZES: dict[str, tuple[str, str]] = {"dims": ("E512", "size"), "default": ("E313", "default")}
"""The places of expressions over sizes: the code of another name in one, and what such an expression is."""

_OF_A_CALL = frozenset(("T", "t", "B"))
"""What papers call the length of a sequence, and how many there are."""

_SIGN = re.compile(r"[-+*/@:]*=|<-|:|\u2190|\u2254|$")
"""What parts the sides of a statement, here or in other notations."""
_WORD = re.compile(r"[^\W\d]\w*")

_NAME_KINDS: dict[SymbolKind, NameKind] = {
    "dim": "size",
    "step count": "size",
    "input": "input",
    "param": "param",
    "derived": "derived",
    "local": "local",
}


class Scope:
    """Resolves names against the symbols, for one place of the spec at a time."""

    def __init__(self, symbols: Symbols, report: Report) -> None:
        self.symbols = symbols
        self.report = report
        self.place: Place = "default"
        self.in_repeat = False
        self.met_step = False
        """Whether a per-step name was met since this was last cleared."""
        self.later: dict[str, int] = {}
        """Names defined further on, with their line."""
        self.mentioned: set[str] = set()
        """Names that stand in a wrong place, or in text that could not be parsed: not to be called unused."""
        self._unknown: set[str] = set()

    def mention(self, text: str) -> None:
        """Take every name in a text that is not understood for used, one in Greek letters as it is spelled in ASCII."""
        for word in _WORD.findall(text):
            self.mentioned |= {word, ascii_name(word) or word}

    def expect(self, text: str) -> None:
        """Take the names on the left side of a statement that is not understood for names that it defines."""
        for line in text.splitlines():
            names = _WORD.findall(_SIGN.split(line, maxsplit=1)[0])
            self._unknown.update(names)
            for name in names:
                self.later.pop(name, None)

    def resolve(self, name: str, span: Span) -> Expr | None:
        if name in SIZES:
            return Name(name, "size", (), span)
        if name == "head":
            return self._head(span)
        symbol = self.symbols.get(name)
        if symbol is not None:
            return self._symbol(symbol, span)
        stem = self.symbols.get(name.removesuffix("_prev")) if name.endswith("_prev") else None
        if stem is not None:
            return self._previous(stem, span)
        self._unknown_name(name, span)
        return None

    def describe(self, name: str) -> str | None:
        """What kind of thing a declared name is, in words; None for any other name."""
        symbol = self.symbols.get(name)
        return None if symbol is None else symbol.described

    def _head(self, span: Span) -> Expr | None:
        if self.place in _OF_SIZES:
            self._no_size("head", span)
            return None
        return Name("head", "head", (), span)

    def _symbol(self, symbol: Symbol, span: Span) -> Expr | None:
        symbol.used = True
        if self.place in _OF_SIZES and symbol.kind != "dim":
            self._no_size(symbol.name, span)
            return None
        if symbol.kind == "state":
            return self._state(symbol, False, span)
        if symbol.kind == "step argument":
            self.report.error("E304", span, f"`{symbol.name}` is only the name of an argument", "use the step count")
            return None
        if symbol.closed:
            message = f"`{symbol.name}` is a local of the `repeat` on line {symbol.span.line}, with one value per step"
            hint = "assign it after the repeat, or keep it in a state"
            self.report.error("E309", span, message, hint)
            return None
        if symbol.per == "step" and self.place in ("update", "output") and not self.in_repeat:
            message = f"`{symbol.name}` has one value per step, and this is outside a `repeat`"
            self.report.error("E306", span, message, "name it in a `repeat`; without `per: step` an input is per token")
            return None
        if symbol.dims is None or not self.symbols.doubtful.isdisjoint(symbol.dims):
            return None
        self.met_step = self.met_step or symbol.per == "step"
        return Name(symbol.name, _NAME_KINDS[symbol.kind], symbol.dims, span)

    def _state(self, symbol: Symbol, previous: bool, span: Span) -> Expr | None:
        if self.place == "derived":
            message = f"`{symbol.name}` is a state; `let`, `decay` and `gate` are evaluated before the update"
            self.report.error("E307", span, message, "assign a local in the update instead")
            return None
        if symbol.dims is None or not self.symbols.doubtful.isdisjoint(symbol.dims):
            return None
        return StateRead(symbol.name, previous, symbol.dims, span)

    def _previous(self, symbol: Symbol, span: Span) -> Expr | None:
        if self.place in _OF_SIZES:
            self._no_size(f"{symbol.name}_prev", span)
            return None
        if symbol.kind == "state":
            return self._state(symbol, True, span)
        symbol.used = True
        message = f"only a state has a value before the token, and `{symbol.name}` is {symbol.described}"
        otherwise = "keep last token's value in a state of its own"
        hint = f"write `prev({symbol.name})`" if "prev" in functions(self.report.version) else otherwise
        self.report.error("E304", span, message, hint)
        return None

    def _no_size(self, name: str, span: Span) -> None:
        code, what = _OF_SIZES[self.place]
        self.report.error(code, span, f"a {what} is an expression over dims, `H` and `HV`; `{name}` is none")

    def _unknown_name(self, name: str, span: Span) -> None:
        self.mentioned.add(name)
        if name in functions(self.report.version):
            self.report.error("E312", span, f"`{name}` is a function", f"give it its arguments: `{name}(...)`")
        elif name in self.later and self.symbols.complete:
            message = f"`{name}` is defined on line {self.later[name]}, after this"
            self.report.error("E308", span, message, "expressions use the names before them")
        elif name == "o":
            self.report.error("E304", span, "`o` is the output, and nothing reads it", "assign a local before it")
        elif self.symbols.complete and name not in self._unknown:
            # Once is enough: the other uses of the name are the same mistake.
            self._unknown.add(name)
            known = self._visible()
            if (near := self.symbols.get(nearest(name, known) or "")) is not None:
                near.used = True
            if self.place == "dims":
                unlike = "give an input, or a param without default, this dim"
                if name in _OF_A_CALL:
                    unlike = "batch and time are not written: no size follows from them"
                hint = did_you_mean(name, known, unlike)
                self.report.error("E514", span, f"nothing has the dim `{name}`, so its size is unknown", hint)
                return
            hint = (
                self._part_of(name)
                or name_hint(name)
                or did_you_mean(name, known, f"the names here are {listed(known)}")
            )
            self.report.error("E304", span, f"unknown name `{name}`", hint)

    def _part_of(self, name: str) -> str:
        """A hint where `name` is that of something known with an index: `S_t`, `S_old`, `S_T`."""
        stem, _, index = name.rpartition("_")
        symbol = self.symbols.get(stem)
        for state in self.symbols.of_kind("state"):
            rest = name.removeprefix(state.name) if name.startswith(state.name) else name.removesuffix(state.name)
            if rest != name and rest.strip("_") in PREVIOUS:
                return f"`{state.name}` is the state now, `{state.name}_prev` before the token"
        if symbol is None:
            return ""
        symbol.used = True
        if index == "T":
            return f"a transpose is written `{stem}.T`"
        if symbol.kind == "state":
            return f"`{stem}` is the state now, `{stem}_prev` before the token"
        return f"`{stem}` is the value at this token: time is not written" if index in ("t", "i", "n") else ""

    def _visible(self) -> list[str]:
        kinds: tuple[SymbolKind, ...] = ("dim",)
        if self.place not in _OF_SIZES:
            kinds = ("input", "param", "derived", "dim", "step count")
        if self.place in ("update", "output"):
            kinds = ("state", "local", *kinds)
        return [symbol.name for kind in kinds for symbol in self.symbols.of_kind(kind)] + sorted(SIZES)
