"""Mistakes that could be in a file of kernels, one at a time, made in its syntax tree.

Of five classes: decays, masks, offsets, operands and stores. What is an offset is told by what it is made of: indices,
sizes, and what is loaded from the tables of sequences and chunks.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

CLASSES = ("decays", "masks", "offsets", "operands", "stores")

INTEGRAL_CALLS = {
    "tl.program_id",
    "tl.arange",
    "tl.cdiv",
    "tl.minimum",
    "tl.maximum",
    "tl.range",
    "range",
    "min",
    "max",
}
TABLES = {"cu_seqlens_ptr"} | {
    f"{name}_ptr" for space in ("chunk", "segment", "stretch") for name in (f"{space}_sequence", f"first_{space}")
}
SWAPPED = {"K": "V", "V": "K", "M": "V", "D": "HV", "H": "HV", "HV": "H"}
"""Sizes that are mistaken for one another, where a kernel has both."""


DIFFER = "differ"
"""What a probe calls: it returns the first of its arguments."""


@dataclass(frozen=True)
class Mutant:
    """A file with one mistake: in which of its functions, of which class, what it said and what it says instead."""

    function: str
    kind: str
    line: int
    was: str
    now: str
    make: Callable[[], str]
    """The text of the file with the mistake in it."""
    probe: Callable[[], str] | None
    """The text of the file where `differ` is asked about what it said and what it says instead; of a statement none."""

    def __str__(self) -> str:
        return f"{self.function}:{self.line} [{self.kind}] {self.was}  ->  {self.now}"


@dataclass(frozen=True)
class Change:
    """Where in the tree, in the order of `ast.walk`, and what stands there instead; None takes a statement out."""

    place: int
    kind: str
    instead: ast.AST | None


def mutants(text: str) -> Iterator[Mutant]:
    """Every mutant of a file of kernels, always in the same order."""
    tree = ast.parse(text)

    def make(number: int, place: int, instead: ast.AST | None) -> str:
        mutated = copy.deepcopy(tree)
        replace(mutated.body[number], place, instead)
        return ast.unparse(mutated)

    for number, function in enumerate(tree.body):
        if isinstance(function, ast.FunctionDef) and any(
            "triton.jit" in ast.unparse(d) for d in function.decorator_list
        ):
            nodes = list(ast.walk(function))
            for change in Changes(function).all():
                node, instead = nodes[change.place], change.instead
                was, now = short(node), "nothing" if instead is None else short(instead)
                probe = None
                if isinstance(node, ast.expr) and isinstance(instead, ast.expr):
                    both = ast.Call(ast.Name(DIFFER, ast.Load()), [node, instead], [])
                    probe = partial(make, number, change.place, both)
                if was != now:
                    whole = partial(make, number, change.place, instead)
                    yield Mutant(function.name, change.kind, node.lineno, was, now, whole, probe)


def is_kernel(function: ast.FunctionDef) -> bool:
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else f"{text[:60]} ... {text[-25:]}"


def replace(function: ast.AST, place: int, instead: ast.AST | None) -> None:
    """Put `instead` where the node numbered `place` stands in `function`."""
    target = list(ast.walk(function))[place]
    for parent in ast.walk(function):
        for name, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, name, instead)
                return
            if isinstance(value, list) and any(item is target for item in value):
                value[[item is target for item in value].index(True)] = ast.Pass() if instead is None else instead
                return
    raise AssertionError("no such place")


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def decays(node: ast.AST) -> bool:
    """Whether an expression has an exponential in it, or calls a helper for one."""
    names = {called(inner) for inner in ast.walk(node)}
    return bool(names & {"tl.exp", "tl.exp2"}) or any(name.startswith("decay_") for name in names)


class Changes:
    """What may be changed in one function."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self.function = function
        self.places = {id(node): place for place, node in enumerate(ast.walk(function))}
        arguments = function.args.args
        self.sizes = {a.arg for a in arguments if a.annotation is not None and "constexpr" in ast.unparse(a.annotation)}
        self.integral = self.sizes | {"T", "token", "start", "earlier", "later", "end_token", "key_head", "value_head"}
        self.integral |= {a.arg for a in arguments if a.arg.endswith(("_index", "_row", "_start"))}
        self._find_indices()
        self.decaying = {
            node.targets[0].id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and decays(node.value)
        }

    def _find_indices(self) -> None:
        """Names that hold indices, from top to bottom."""
        for node in sorted((n for n in ast.walk(self.function) if hasattr(n, "lineno")), key=lambda n: n.lineno):
            if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
                self.integral.add(node.target.id)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and self.counts(node.value):
                self.integral.add(node.targets[0].id)

    def counts(self, node: ast.AST) -> bool:
        """Whether an expression is made of indices and sizes."""
        match node:
            case ast.Name():
                return node.id in self.integral
            case ast.Constant():
                return isinstance(node.value, int) and not isinstance(node.value, bool)
            case ast.BinOp():
                return self.counts(node.left) and self.counts(node.right)
            case ast.UnaryOp():
                return self.counts(node.operand)
            case ast.Subscript():
                return self.counts(node.value)
            case ast.Call(func=ast.Attribute(attr="to", value=value)):
                return self.counts(value)
            case ast.Call():
                if called(node) == "tl.load":
                    return any(isinstance(n, ast.Name) and n.id in TABLES for n in ast.walk(node.args[0]))
                return called(node) in INTEGRAL_CALLS and all(self.counts(x) for x in node.args)
        return False

    def all(self) -> Iterator[Change]:
        for node in ast.walk(self.function):
            for kind, make in self.of(node):
                yield Change(self.places[id(node)], kind, make)

    def of(self, node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
        match node:
            case ast.Expr(value=ast.Call()) if called(node.value) == "tl.store":
                yield "stores", None
            case ast.Call():
                yield from self.of_call(node)
            case ast.Compare():
                yield from (("masks", changed) for changed in compared(node))
            case ast.BinOp(op=ast.BitAnd()):
                yield "masks", node.left
                yield "masks", node.right
            case ast.BinOp() if self.is_address(node):
                # A pointer and what is added to it.
                yield "offsets", node.left
            case ast.BinOp() if self.counts(node):
                yield "offsets", node.left
            case ast.BinOp():
                # A factor that fades is a decay, whatever it is a factor of.
                kind = "decays" if any(self.fades(side) for side in (node.left, node.right)) else "operands"
                yield from ((kind, changed) for changed in computed(node))
            case ast.UnaryOp(op=ast.USub()) if not self.counts(node):
                yield "operands", node.operand
            case ast.AugAssign():
                yield from self.of_sum(node)
            case ast.Name(ctx=ast.Load()) if node.id in SWAPPED and {node.id, SWAPPED[node.id]} <= self.sizes:
                yield "offsets", ast.Name(SWAPPED[node.id], ast.Load())

    def is_address(self, node: ast.BinOp) -> bool:
        first: ast.AST = node
        while isinstance(first, ast.BinOp) and isinstance(first.op, ast.Add):
            first = first.left
        return first is not node and isinstance(first, ast.Name) and first.id.endswith("_ptr")

    def fades(self, node: ast.AST) -> bool:
        while isinstance(node, ast.Subscript):
            node = node.value
        return isinstance(node, ast.Name) and node.id in self.decaying

    def of_call(self, node: ast.Call) -> Iterator[tuple[str, ast.AST | None]]:
        name = called(node)
        if name in ("tl.exp", "tl.exp2", "tl.log", "tl.log2"):
            yield "decays", ast.Call(node.func, [halved(node.args[0])], [])
        elif name == "tl.cumsum":
            yield "decays", node.args[0]
        elif name in ("tl.maximum", "tl.minimum"):
            # A bound of indices, or that of a log decay.
            yield "offsets" if self.counts(node) else "decays", node.args[0]
        elif name == "tl.where":
            yield "masks", node.args[1]
        elif name == "tl.load" and (other := [k for k in node.keywords if k.arg == "other"]):
            filled = ast.keyword("other", ast.Constant(1.0 if ast.unparse(other[0].value) == "0.0" else 0.0))
            yield "masks", ast.Call(node.func, node.args, [k for k in node.keywords if k.arg != "other"] + [filled])
        elif name == "tl.dot":
            first, second, *total = node.args
            if total:
                yield "operands", ast.Call(node.func, [first, second], node.keywords)
                yield "operands", total[0]
            yield "operands", ast.Call(node.func, [halved(first), second, *total], node.keywords)
            if isinstance(second, ast.Call) and called(second) == "tl.trans":
                yield "operands", ast.Call(node.func, [first, second.args[0], *total], node.keywords)
        elif name == "tl.trans":
            yield "operands", node.args[0]

    def of_sum(self, node: ast.AugAssign) -> Iterator[tuple[str, ast.AST | None]]:
        kind = "offsets" if self.counts(node.target) else "operands"
        yield kind, None
        other = {ast.Add: ast.Sub(), ast.Sub: ast.Add()}.get(type(node.op))
        if other is not None:
            yield kind, ast.AugAssign(node.target, other, node.value)
        if kind == "operands":
            yield kind, ast.Assign([node.target], node.value, lineno=node.lineno)


def halved(node: ast.expr) -> ast.expr:
    return ast.BinOp(ast.Constant(0.5), ast.Mult(), node)


def compared(node: ast.Compare) -> Iterator[ast.AST]:
    """A bound that is off by one, on either side."""
    (op,), (right,) = node.ops, node.comparators
    if isinstance(op, ast.Is | ast.IsNot):
        return
    looser: dict[type, ast.cmpop] = {ast.Lt: ast.LtE(), ast.LtE: ast.Lt(), ast.Gt: ast.GtE(), ast.GtE: ast.Gt()}
    if type(op) in looser:
        yield ast.Compare(node.left, [looser[type(op)]], [right])
    less = ast.Sub() if isinstance(op, ast.Lt | ast.LtE) else ast.Add()
    yield ast.Compare(node.left, [op], [ast.BinOp(right, less, ast.Constant(1))])


def computed(node: ast.BinOp) -> Iterator[ast.AST]:
    swapped: dict[type, Callable[[], ast.operator]] = {ast.Add: ast.Sub, ast.Sub: ast.Add}
    if type(node.op) in swapped:
        yield ast.BinOp(node.left, swapped[type(node.op)](), node.right)
    if isinstance(node.op, ast.Mult | ast.Div | ast.Add | ast.Sub):
        yield node.left
    if isinstance(node.op, ast.Mult | ast.Add):
        yield node.right
