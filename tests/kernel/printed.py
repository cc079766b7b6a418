"""Addresses as kernels over rows have them printed: what each comes to, as a polynomial, and how wide its parts are.

A lane is called after its index vector, and after the axis of the tile that it lies along (`K_index@1`). Where a
program stands are names: what those are is shown elsewhere.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

Terms = Mapping[tuple[str, ...], int]


@dataclass(frozen=True)
class Polynomial:
    """A sum of products of names, with whole coefficients."""

    terms: Terms

    def __add__(self, other: Polynomial) -> Polynomial:
        return Polynomial(_some(Counter(self.terms), other.terms, 1))

    def __sub__(self, other: Polynomial) -> Polynomial:
        return Polynomial(_some(Counter(self.terms), other.terms, -1))

    def __mul__(self, other: Polynomial) -> Polynomial:
        terms: Counter[tuple[str, ...]] = Counter()
        for (one, x), (two, y) in product(self.terms.items(), other.terms.items()):
            terms[tuple(sorted((*one, *two)))] += x * y
        return Polynomial(_some(terms, {}, 1))

    def __floordiv__(self, other: Polynomial) -> Polynomial:
        return name(f"({self}) // ({other})")

    def __mod__(self, other: Polynomial) -> Polynomial:
        return name(f"({self}) % ({other})")

    def __str__(self) -> str:
        return " + ".join(f"{number} {' '.join(names)}".rstrip() for names, number in sorted(self.terms.items()))

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for names in self.terms for name in names)

    def renamed(self, change: Callable[[str], str]) -> Polynomial:
        """The same with other names, none of which are the same."""
        return Polynomial({tuple(sorted(map(change, names))): number for names, number in self.terms.items()})


def _some(terms: Counter[tuple[str, ...]], others: Terms, sign: int) -> Terms:
    for names, number in others.items():
        terms[names] += sign * number
    return {names: number for names, number in terms.items() if number}


def name(text: str) -> Polynomial:
    return Polynomial({(text,): 1})


def whole(number: int) -> Polynomial:
    return Polynomial({(): number} if number else {})


@dataclass(frozen=True)
class Printed:
    """What an expression comes to, in how many bits (none: it is known when the kernel is compiled), and the parts of
    it that are in 32."""

    value: Polynomial
    bits: int
    narrow: tuple[Polynomial, ...] = ()


@dataclass(frozen=True)
class Line:
    """A load or a store: the array, where in it, and what has to hold there."""

    array: str
    address: Printed
    mask: frozenset[str]


@dataclass
class Text:
    """The lines of a kernel or a routine, whose names are known from `known`; those of index vectors are lanes.

    fixed: names that stand for themselves, whatever they are printed to be, once they are as wide as that.
    """

    lines: Iterable[str]
    known: dict[str, Printed]
    lanes: frozenset[str]
    fixed: frozenset[str]
    accesses: list[Line] = field(default_factory=list)
    masks: dict[str, frozenset[str]] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, Printed | None]]] = field(default_factory=list)
    """Functions of the module, and what they are given, as it is written."""

    def __post_init__(self) -> None:
        self._body(ast.parse("\n".join(self.lines)).body)

    def _body(self, body: Iterable[ast.stmt]) -> None:
        for statement in body:
            match statement:
                case ast.AnnAssign(ast.Name(target), _, ast.expr() as value) | ast.Assign([ast.Name(target)], value):
                    self._find(value)
                    if target.endswith("_mask"):
                        self.masks[target] = self.conditions(value)
                    self._assign(target, self._evaluate(value))
                case ast.AugAssign(ast.Name(target), ast.Add(), value) if target in self.known:
                    added = self._evaluate(value)
                    self.known |= {target: self._joined(ast.Add(), self.known[target], added)} if added else {}
                case ast.For(ast.Name(target), ast.Call(_, args), body):
                    wide = [found for found in map(self._evaluate, args) if found is not None]
                    self.known[target] = Printed(name(target), max([32, *(each.bits for each in wide)]))
                    self._body(body)
                case ast.If(_, then, otherwise):
                    self._either(then, otherwise)
                case _:
                    self._find(statement)

    def _either(self, *bodies: list[ast.stmt]) -> None:
        """A name that is given values in two ways is as wide as the narrower of these."""
        before, found = dict(self.known), []
        for body in bodies:
            self.known = dict(before)
            self._body(body)
            found.append(self.known)
        self.known = dict(before)
        for target in found[0].keys() | found[1].keys():
            bits = [known[target].bits for known in found if target in known]
            if target not in before or any(known.get(target) != before[target] for known in found):
                self.known[target] = Printed(name(target), min(bits))

    def _assign(self, target: str, value: Printed | None) -> None:
        self.known.pop(target, None)
        if value is not None:
            itself = target in self.fixed | self.lanes
            self.known[target] = Printed(name(target), value.bits) if itself else value

    # ---------------------------------------------------------------------------------------------------------- access

    def _find(self, statement: ast.AST) -> None:
        for node in ast.walk(statement):
            match node:
                case ast.Call(ast.Attribute(attr="load" | "store"), [pointer, *_], keywords):
                    masks = [keyword.value for keyword in keywords if keyword.arg == "mask"]
                    self._access(pointer, masks)
                case ast.Call(ast.Name("sum_of_shares"), [pointer, _, _, mask]):
                    self._access(pointer, [mask])
                case ast.Call(ast.Name(function), args):
                    self.calls.append((function, {ast.unparse(arg): self._evaluate(arg) for arg in args}))

    def _access(self, pointer: ast.expr, masks: Iterable[ast.expr]) -> None:
        """What is added to a pointer, from left to right."""
        parts = []
        while isinstance(pointer, ast.BinOp):
            parts.append((pointer.op, pointer.right))
            pointer = pointer.left
        assert isinstance(pointer, ast.Name)
        address = Printed(whole(0), 64)
        for op, part in reversed(parts):
            added = self._evaluate(part) or Printed(name(ast.unparse(part)), 32)
            joined = self._joined(op, address, added)
            assert joined is not None
            address = joined
        found = (self.placed(each, 0) for mask in masks for each in self.conditions(mask))
        self.accesses.append(Line(pointer.id.removesuffix("_ptr"), self._along(address, 0), frozenset(found)))

    def conditions(self, node: ast.expr) -> frozenset[str]:
        """What has to hold, all of it."""
        match node:
            case ast.BinOp(left, ast.BitAnd(), right):
                return self.conditions(left) | self.conditions(right)
            case ast.Subscript(value, ast.Tuple([first, _])):
                axis = 0 if isinstance(first, ast.Slice) else 1
                return frozenset(self.placed(each, axis) for each in self.conditions(value))
            case ast.Name(mask) if mask in self.masks:
                return self.masks[mask]
            case ast.Compare(left, [ast.Lt()], [right]):
                one, two = self._evaluate(left), self._evaluate(right)
                if one is not None and two is not None:
                    return frozenset({f"{one.value} < {two.value}"})
        return frozenset({ast.unparse(node)})

    # ----------------------------------------------------------------------------------------------------- expressions

    def _evaluate(self, node: ast.expr) -> Printed | None:
        match node:
            case ast.Constant(int() as number):
                return Printed(whole(number), 0)
            case ast.Name(known):
                return self.known.get(known)
            case ast.BinOp(left, op, right):
                one, two = self._evaluate(left), self._evaluate(right)
                return None if one is None or two is None else self._joined(op, one, two)
            case ast.Subscript(value, ast.Tuple([first, _])):
                found = self._evaluate(value)
                return found and self._along(found, 0 if isinstance(first, ast.Slice) else 1)
            case ast.Call(ast.Attribute(value, "to"), [ast.Attribute(attr="int64")]):
                return Printed(name(ast.unparse(value)), 64)
            case ast.Call(ast.Attribute(attr="cdiv"), [left, right]):
                one, two = self._evaluate(left), self._evaluate(right)
                return one and two and Printed(name(ast.unparse(node)), max(one.bits, two.bits))
            case ast.Call(ast.Attribute(attr="minimum"), args):
                found = [self._evaluate(arg) for arg in args]
                return Printed(name(ast.unparse(node)), max(each.bits for each in found if each is not None))
            case ast.Call(ast.Attribute(attr="arange" | "program_id")):
                return Printed(name(ast.unparse(node)), 32)
            case ast.Call(ast.Attribute(attr="load"), [ast.BinOp(ast.Name("first_chunk_ptr" | "chunk_sequence_ptr"))]):
                return Printed(name(ast.unparse(node)), 64)
        return None

    def _joined(self, op: ast.operator, left: Printed, right: Printed) -> Printed | None:
        match op:
            case ast.Add():
                value = left.value + right.value
            case ast.Sub():
                value = left.value - right.value
            case ast.Mult():
                value = left.value * right.value
            case ast.FloorDiv():
                value = left.value // right.value
            case ast.Mod():
                value = left.value % right.value
            case _:
                return None
        bits = max(left.bits, right.bits)
        return Printed(value, bits, (*left.narrow, *right.narrow, *([value] if bits == 32 else [])))

    def _along(self, found: Printed, axis: int) -> Printed:
        """The same along an axis of a tile."""

        def placed(value: Polynomial) -> Polynomial:
            return value.renamed(lambda each: self.placed(each, axis))

        return Printed(placed(found.value), found.bits, tuple(map(placed, found.narrow)))

    def placed(self, text: str, axis: int) -> str:
        return re.sub(rf"\b({'|'.join(sorted(self.lanes))})\b(?!@)", rf"\1@{axis}", text)
