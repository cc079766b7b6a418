"""Mistakes that could be in a kernel, one at a time, made in its data.

Of eight kinds: decays, masks, offsets, bounds, operands, accumulations, stores, residuals. A mutant is a kernel that
could have been written: its tiles still fit, so that only what it computes, or where it reads and writes, tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any

from flagen.diagnostics import InternalError
from flagen.kernel.check import check
from flagen.kernel.ir import (
    Access,
    Add,
    Apply,
    Array,
    Barrier,
    Bind,
    Choose,
    Fill,
    If,
    Index,
    Kernel,
    Let,
    Load,
    Loop,
    Note,
    Operands,
    Row,
    Scale,
    Statement,
    Store,
    accesses_in,
    statements_in,
)
from flagen.plan.tiles import (
    Arithmetic,
    Both,
    Call,
    Compare,
    Constant,
    Coordinate,
    Cumulative,
    Dot,
    Edge,
    Function,
    InSequence,
    Masked,
    Negative,
    OfAngles,
    Once,
    Product,
    Rotated,
    Scan,
    Select,
    Shifted,
    Spread,
    StateTile,
    Value,
    Whole,
    tiles_in,
)

KINDS = ("decays", "masks", "offsets", "bounds", "operands", "accumulations", "stores", "residuals")


@dataclass(frozen=True)
class Mutant:
    """A kernel with one mistake: of which kind, what it said, what it says instead, the statements around it, the
    outermost first, and what the last of them is instead."""

    kernel: Kernel
    kind: str
    was: Any
    now: Any
    around: tuple[Any, ...]
    instead: Statement | None

    def __str__(self) -> str:
        return f"{self.kernel.name or 'forward'} [{self.kind}] {short(self.was)} -> {short(self.now)}"

    def changes(self, field: str) -> bool:
        """Whether a field of what it said is all that has changed."""
        return type(self.was) is type(self.now) and self.now == replace(self.was, **{field: getattr(self.now, field)})


def mutants(kernel: Kernel, step: int = 1) -> Iterator[Mutant]:
    """Every mutant of a kernel, always in the same order; or of every `step`-th change, from one on that differs from
    kernel to kernel."""
    changes = _Changes(kernel).of(kernel.body)
    for kind, was, now, body, around, (instead,) in islice(changes, len(kernel.name) % step, None, step):
        if was == now:  # Beyond all numbers one more is no other.
            continue
        mutant = replace(kernel, body=body)
        try:
            check(mutant)
        except InternalError:
            continue
        yield Mutant(mutant, kind, was, now, around, instead)


def short(node: object) -> str:
    text = " ".join(repr(node).split())
    return text if len(text) <= 160 else f"{text[:100]} ... {text[-50:]}"


Change = tuple[str, Any, Any, Any, tuple[Any, ...], tuple[Statement | None, ...]]
"""Of which kind, what was there, what is there instead, all of it with that, the statements around it, and what the
last of them is instead."""


class _Changes:
    def __init__(self, kernel: Kernel) -> None:
        self.arrays = tuple(dict.fromkeys(access.array for access in accesses_in(kernel.body)))
        self.run = kernel.run
        self.has_segments = any(isinstance(s, Loop) and s.over == "segment" for s in statements_in(kernel.body))
        self.named: dict[tuple[str, ...], list[str]] = {}
        self.made: set[str] = set()
        """Names that have had a value where the walk stands."""
        lets = [s for s in statements_in(kernel.body) if isinstance(s, Let)]
        once = [let for let in lets if sum(other.target == let.target for other in lets) == 1]
        bare = {let.target: let.value.value if isinstance(let.value, Spread) else let.value for let in once}
        self.aliases = {name: tile.name for name, tile in bare.items() if isinstance(tile, Value | StateTile)}
        for statement in statements_in(kernel.body):
            match statement:
                case Let(target, value):
                    self._name(target, value.dims)
                case Bind(targets, values) if len(targets) == len(values):
                    for target, value in zip(targets, values, strict=True):
                        self._name(target, value.dims)
                case Load(target, source):
                    self._name(target, tuple(d for d in kernel.order if d in source.dims))

    def _of(self, name: str) -> str:
        """What a name is another name for."""
        return self._of(self.aliases[name]) if name in self.aliases else name

    def _name(self, name: str, dims: tuple[str, ...]) -> None:
        if name not in self.named.setdefault(dims, []):
            self.named[dims].append(name)

    def of(self, node: Any) -> Iterator[Change]:
        """Every change inside of `node`."""
        is_statement = isinstance(node, Statement)
        around = (node,) if is_statement else ()
        for kind, instead in self._here(node):
            yield kind, node, instead, instead, around, (instead,) if is_statement else ()
        if isinstance(node, tuple):
            for place, item in enumerate(node):
                for kind, was, now, whole, inner, last in self.of(item):
                    kept = () if whole is None else (whole,)
                    yield kind, was, now, (*node[:place], *kept, *node[place + 1 :]), inner, last
        elif is_dataclass(node) and not isinstance(node, Array | Index):
            for field in fields(node):
                for kind, was, now, part, inner, last in self.of(getattr(node, field.name)):
                    whole = replace(node, **{field.name: part})
                    yield kind, was, now, whole, (*around, *inner), last or ((whole,) if is_statement else ())

    def _here(self, node: Any) -> Iterator[tuple[str, Any]]:
        """What may stand in the place of `node`; None for nothing."""
        match node:
            case Product(factors, dims):
                for factor in factors:
                    rest = tuple(other for other in factors if other is not factor)
                    yield "decays" if _decays(factor) else "operands", Product((*rest, Constant(Fraction(1))), dims)
            case Arithmetic(("+" | "-") as op, left, right, dims):
                yield "operands", Arithmetic("-" if op == "+" else "+", left, right, dims)
                for term in (left, right):
                    yield "accumulations", Product((term, Constant(Fraction(1))), dims)
            case Negative(value, dims):
                yield "operands", Product((value, Constant(Fraction(1))), dims)
            case Function("exp" | "exp2", (argument,), dims):
                yield "decays", Function("exp", (Negative(argument, dims),), dims)
            case Masked(value, _, _, dims):
                yield "masks", Product((value, Constant(Fraction(1))), dims)
            case Once(value, dims):
                yield "masks", Product((value, Constant(Fraction(1))), dims)
            case Scan(combine, factor, term, first, _, reverse, dims):
                one = Spread(Constant(Fraction(1)), dims)
                if factor is None:
                    yield "operands", replace(node, combine="affine", factor=one)
                    yield "operands", replace(node, term=Spread(Constant(Fraction(0)), dims))
                else:
                    yield "operands", replace(node, combine="logaddexp" if combine == "affine" else "affine")
                    yield "operands", replace(node, factor=term, term=factor)
                    yield "decays", replace(node, factor=one)
                yield "accumulations", replace(node, first=Spread(Constant(Fraction(0)), first.dims))
                yield "bounds", replace(node, reverse=not reverse)
            case Shifted(value, first, _, reverse, _):
                yield "offsets", value
                yield "offsets", replace(node, reverse=not reverse)
                yield "operands", replace(node, first=Spread(Constant(Fraction(0)), first.dims))
            case Edge(_, _, reverse):
                yield "offsets", replace(node, reverse=not reverse)
            case Rotated(value, angle, half=half, dims=dims):
                yield "operands", replace(node, angle=Negative(angle, angle.dims))
                yield "operands", Spread(value, dims)
                yield "offsets", replace(node, half=not half)
            case OfAngles(gradient, turned, half=half):
                yield "operands", replace(node, gradient=turned, turned=gradient)
                yield "offsets", replace(node, half=not half)
            case Select(where, value, other, dims):
                yield "masks", Product((value, Constant(Fraction(1))), dims) if value.dims == dims else value
                yield "masks", Select(where, other, value, dims)
            case Compare(op):
                yield "masks", replace(node, op=_NEIGHBOURS[op])
            case Both(left, right):
                yield from (("masks", side) for side in (left, right) if side.dims == node.dims)
            case Dot(_, _, _, onto):
                yield from () if onto is None else (("accumulations", replace(node, onto=None)),)
            case Cumulative(value):
                yield "bounds", replace(node, reverse=not node.reverse)
                yield "offsets", value
            case Call(function, args, dims):
                if function in _DECAYS:
                    yield "decays", Spread(Constant(Fraction(1)), dims)
                if function not in _RETURN_TWO:
                    yield from (("operands", arg) for arg in args[:1] if arg.dims == dims)
            case InSequence(place, ago):
                yield "offsets", replace(node, ago=ago + 1)
                yield "bounds", replace(node, place="end" if place == "start" else "start")
            case Whole(number):
                yield "offsets", Whole(number + 1)
            case Coordinate():
                yield "offsets", Whole(0)
            case Value(name, _, dims):
                others = [other for other in self.named.get(dims, []) if self._of(other) != self._of(name)]
                yield from (("operands", replace(node, name=other)) for other in others[:2])
            case Access(array, at, within):
                yield from (("masks", replace(node, within=tuple(d for d in within if d != dim))) for dim in within)
                for field in ("places", "ends"):
                    if getattr(node, field):
                        yield "offsets" if field == "places" else "masks", replace(node, **{field: ()})
                if node.where is not None:
                    yield "masks", replace(node, where=None)
                yield from self._elsewhere(node, array, at)
            case Load():
                yield "bounds", replace(node, once=not node.once)
                if node.shares:
                    yield "accumulations", replace(node, shares=False)
            case Store():
                yield "stores", None
            case Let(target) if target in self.made:
                yield "accumulations", None
            case Let(target):
                self.made.add(target)
            case Add(target, value):
                yield "accumulations", None
                yield "accumulations", Let(target, Product((value, Constant(Fraction(1))), node.dims))
                yield "operands", replace(node, subtracts=not node.subtracts)
            case Fill(_, _, number):
                yield "operands", replace(node, number=1.0 if number is None else number + 1)
                if node.ends:
                    yield "masks", replace(node, ends=False)
            case Choose(_, target, value):
                yield "bounds", None
                yield "bounds", Let(target, value)
            case Scale():
                yield "decays" if _decays(node.value) else "accumulations", None
            case Apply():
                yield "accumulations", None
            case Loop("block" | "member" | "level" | "below" | "earlier" | "later" | "iteration" as over):
                yield "bounds", None
                if over in ("earlier", "later"):
                    yield "bounds", replace(node, over="later" if over == "earlier" else "earlier")
                if node.whole:
                    yield "bounds", replace(node, whole=False)
                if node.first:
                    yield "bounds", replace(node, first="")
                if node.reverse:
                    yield "bounds", replace(node, reverse=False)
            case Loop(over):
                yield "bounds", replace(node, reverse=not node.reverse)
                if over == "token" and self.has_segments:
                    yield "bounds", replace(node, but_last=not node.but_last)
            case If(conditions, then, otherwise):
                yield "bounds", replace(node, then=otherwise, otherwise=then)
                for condition in conditions if len(conditions) > 1 else ():
                    yield "bounds", replace(node, conditions=tuple(c for c in conditions if c is not condition))
            case Barrier():
                yield "bounds", None
            case Note() | Row() | StateTile() | Operands() | Bind():
                pass

    def _elsewhere(self, node: Access, array: Array, at: Sequence[Index]) -> Iterator[tuple[str, Any]]:
        """Another array, or another row of this one."""
        for place, index in enumerate(at):
            elsewhere = Index(index.space, 0 if index.number is None else index.number + 1)
            if self.run == "stretch" and index.axis is not None:
                elsewhere = replace(index, ago=index.ago + 1)
            yield "offsets", replace(node, at=(*at[:place], elsewhere, *at[place + 1 :]))
        alike = [a for a in self.arrays if a != array and (a.spaces, a.dims) == (array.spaces, array.dims)]
        for other in alike[:2]:
            kind = "residuals" if "scratch" in (array.life, other.life) else "operands"
            yield kind, replace(node, array=other)


_NEIGHBOURS = {">=": ">", ">": ">=", "<": "<=", "<=": "<", "==": ">="}
_DECAYS = ("decay_over", "decay_to_cut")
_RETURN_TWO = ("split_log_decay",)


def _decays(tile: Any) -> bool:
    """Whether a factor is a decay: an exponential, or what goes by a decay's name."""
    return any(isinstance(part, Function) and part.name in ("exp", "exp2") for part in tiles_in(tile)) or (
        isinstance(tile, Value) and tile.kind == "derived"
    )
