"""Random specs within the language, as YAML text.

Half of them are made of the statements that papers write (decay, write, erase and write, on either side, alone or a
few in one rule), so that most of those have a chunk form; the other half assigns arbitrary expressions over one or
more states. Either kind may be refused, never mistreated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")
Dims = tuple[str, ...]

_IDENTIFIER = re.compile(r"\b[A-Za-z_]\w*")
_UNARY = "tanh sigmoid abs sign relu silu softplus logsigmoid".split()
_GUARDED = ("exp(-abs({}))", "log(1 + ({}) ** 2)", "log1p(({0}) * ({0}))", "sqrt(1 + ({}) ** 2)", "expm1(tanh({}))")
_BINARY = ("minimum({}, {})", "maximum({}, {})", "logaddexp({}, {})", "clamp({}, -1, abs({}))")


@dataclass(frozen=True)
class Decl:
    """An input or a param that a spec may declare: its dims, its other fields, whether it is one per micro-step."""

    dims: Dims
    fields: str = ""
    step: bool = False


@dataclass(frozen=True)
class Place:
    """What an expression may name: per-step inputs, locals, states (by name, `S_prev` included)."""

    step: bool = False
    locals: tuple[tuple[str, Dims], ...] = ()
    states: tuple[tuple[str, Dims], ...] = ()


@dataclass
class Author:
    """Writes one spec, a choice at a time."""

    below: Callable[[int], int]
    """Chooses a number from 0 up to the one that it is given."""
    states: dict[str, Dims] = field(default_factory=dict)
    begin_at: dict[str, str] = field(default_factory=dict)
    let: dict[str, str] = field(default_factory=dict)
    decay: dict[str, str] = field(default_factory=dict)
    derived: list[tuple[str, Dims, bool]] = field(default_factory=list)
    names: int = 0

    # ------------------------------------------------------------------------------------------------------- choices

    def pick(self, *options: T) -> T:
        return options[self.below(len(options))]

    def chance(self, percent: int) -> bool:
        return self.below(100) >= 100 - percent

    def new_name(self, stem: str) -> str:
        self.names += 1
        return f"{stem}{self.names}"

    # -------------------------------------------------------------------------------------------------- declarations

    def declare(self) -> None:
        self.rows, self.columns = self.pick(("K", "V"), ("K", "V"), ("N", "P"), ("D", "B"))
        rows, columns = (self.rows,), (self.columns,)
        heads = {name: self.pick("", "heads: HV") for name in "qkavcxsr"}
        bounded, log_decay, positive = "range: [0, 1]", "range: [-.inf, 0]", "range: [0.2, 0.9]"
        self.inputs = {
            **{name: Decl(rows, heads[name]) for name in "qka"},
            **{name: Decl(columns, heads[name]) for name in "vcx"},
            **{name: Decl((), heads[name]) for name in "sr"},
            "beta": Decl((), "heads: HV, " + bounded),
            "keep": Decl((), positive),
            "g": Decl((), "heads: HV, " + log_decay),
            "gk": Decl(rows, log_decay),
            "gv": Decl(columns, log_decay),
            "m": Decl((*rows, *columns)),
            "u": Decl(("M",), "heads: HV"),
            "mk": Decl((*rows, "M")),
            "mv": Decl(("M", *columns), "heads: HV"),
            "kj": Decl(rows, "", step=True),
            "aj": Decl(rows, "heads: HV", step=True),
            "vj": Decl(columns, "heads: HV", step=True),
            "xj": Decl(columns, "", step=True),
            "bj": Decl((), bounded, step=True),
            "gj": Decl((), "heads: HV, " + log_decay, step=True),
            "gkj": Decl(rows, log_decay, step=True),
            "gvj": Decl(columns, log_decay, step=True),
        }
        self.params = {
            "scale": Decl((), f"default: {self.rows} ** -0.5"),
            "eps": Decl((), "range: [0.1, 1]"),
            "A": Decl((), "per: head, range: [-.inf, 0]"),
            "skip": Decl((), "per: head"),
            "bonus": Decl(rows, "per: head"),
            "shift": Decl(columns, ""),
            "sink": Decl(rows, "default: HV ** -0.5"),
            "W": Decl((*columns, *rows), ""),
        }

    # --------------------------------------------------------------------------------------------------- expressions

    def expr(self, dims: Dims, place: Place, depth: int = 2) -> str:
        """Any expression over `dims`, in parentheses where it needs them."""
        if depth <= 0 or self.chance(30):
            return self.leaf(dims, place)
        below = depth - 1
        options: list[Callable[[], str]] = [
            lambda: (
                f"({self.expr(dims, place, below)} {self.pick('+', '-')} {self.expr(self.same(dims), place, below)})"
            ),
            lambda: f"({self.expr(self.part(dims), place, below)} * {self.expr(dims, place, below)})",
            lambda: f"({self.expr(dims, place, below)} * {self.expr(self.part(dims), place, below)})",
            lambda: f"({self.expr(dims, place, below)} / {self.divisor(self.part(dims), place)})",
            lambda: f"-{self.expr(dims, place, below)}",
            lambda: f"({self.expr(dims, place, below)} ** {self.pick('2', '3')})",
            lambda: f"{self.pick(*_UNARY)}({self.expr(dims, place, below)})",
            lambda: self.pick(*_GUARDED).format(self.expr(dims, place, below)),
            lambda: self.pick(*_BINARY).format(self.expr(dims, place, below), self.expr(self.same(dims), place, below)),
            lambda: self.reduction(dims, place, below),
            lambda: self.contraction(dims, place, below),
        ]
        if len(dims) == 1:
            options += [lambda: f"{self.pick('l2norm', 'softmax')}({self.expr(dims, place, below)})"] * 2
        if len(dims) >= 2:
            cut = 1 + self.below(len(dims) - 1)
            outer = lambda: f"outer({self.expr(dims[:cut], place, below)}, {self.expr(dims[cut:], place, below)})"  # noqa: E731
            options += [outer, outer, lambda: f"({self.expr(dims[::-1], place, below)}).T"]
        return self.pick(*options)()

    def leaf(self, dims: Dims, place: Place) -> str:
        found = [name for name, decl in self.inputs.items() if decl.dims == dims and (place.step or not decl.step)]
        found += [name for name, decl in self.params.items() if decl.dims == dims]
        found += [name for name, has, step in self.derived if has == dims and (place.step or not step)]
        found += [name for name, has in (*place.locals, *place.states, *place.states) if has == dims]
        found += [f"{name}.T" for name, has in (*place.locals, *place.states) if len(dims) > 1 and has == dims[::-1]]
        if not dims:
            found += ["0.5", "2", "1 / 3", "HV", self.rows, "head", "1e-2"]
        if found:
            return self.pick(*found)
        if len(dims) == 1:
            raise AssertionError(f"nothing is over {dims}")
        return f"outer({self.leaf(dims[:1], place)}, {self.leaf(dims[1:], place)})"

    def same(self, dims: Dims) -> Dims:
        return () if self.chance(25) else dims

    def part(self, dims: Dims) -> Dims:
        return tuple(dim for dim in dims if self.chance(50))

    def divisor(self, dims: Dims, place: Place) -> str:
        return self.pick("(1 + abs({}))", "(2 + tanh({}))", "(0.5 + ({}) ** 2)").format(self.leaf(dims, place))

    def other_dim(self, dims: Dims) -> str | None:
        free = [dim for dim in (self.rows, self.columns, self.rows, self.columns, "M") if dim not in dims]
        return self.pick(*free) if free else None

    def reduction(self, dims: Dims, place: Place, depth: int) -> str:
        dim, function = self.other_dim(dims), self.pick("sum", "mean", "norm")
        if dim is None:
            return self.leaf(dims, place)
        at = self.below(len(dims) + 1)
        inner = self.expr((*dims[:at], dim, *dims[at:]), place, depth)
        return f"{function}({inner})" if not dims and self.chance(50) else f"{function}({inner}, {dim})"

    def contraction(self, dims: Dims, place: Place, depth: int) -> str:
        dim = self.other_dim(dims)
        if dim is None:
            return self.leaf(dims, place)
        cut = self.below(len(dims) + 1)
        left, right = self.expr((*dims[:cut], dim), place, depth), self.expr((dim, *dims[cut:]), place, depth)
        return f"dot({left}, {right})" if not dims and self.chance(50) else f"({left} @ {right})"

    # ------------------------------------------------------------------------------------- what updates consist of

    def free(self, dims: Dims, place: Place) -> str:
        """A state-free expression."""
        here = replace(place, states=())
        if self.chance(60):
            return self.leaf(dims, here)
        if self.chance(80):
            return self.expr(dims, here, self.pick(1, 1, 2))
        # What a name of `let` stands for is known before the update: no locals.
        name = self.new_name("w")
        self.let[name] = self.expr(dims, replace(here, locals=()), 2)
        self.derived.append((name, dims, here.step))
        return name

    def decay_factor(self, place: Place, side: Dims | None = None) -> str:
        """Something that the declared ranges prove positive; over `side`, over one of the state's dims, or a scalar."""
        row, column = (self.rows,), (self.columns,)
        side = self.pick((), (), row, row, column) if side is None else side
        step = place.step and self.chance(70)
        g = {(): "gj" if step else "g", row: "gkj" if step else "gk", column: "gvj" if step else "gv"}[side]
        options = [
            f"exp({g})",
            f"exp({g})",
            f"exp(0.5 * {g})",
            f"exp({g}) ** 2",
            f"(exp({g}) * keep)",
            f"sqrt(exp({g}))",
        ]
        if not side:
            options += [
                "keep",
                "(1 - keep)",
                "0.9",
                "(1 - 2 ** (-5 - head))",
                "sigmoid(s)",
                "exp(s * A * s)",
                "sigmoid(A)",
            ]
        if side:
            options += [f"sigmoid({self.free(side, place)})", f"(exp({g}) / (1 + keep))"]
        factor = self.pick(*options)
        if not place.step and self.chance(40):
            name = self.new_name("alpha")
            self.decay[name] = factor
            return name
        return factor

    def product(self, one: str, other: str) -> str:
        """`one`, a scalar or a vector, times `other`."""
        return f"{one} * {other}" if self.chance(75) else f"{other} * {one}"

    def statement(self, S: str, place: Place, side: str) -> str:
        """One affine update of the matrix state `S`, acting on its `side`."""
        left = side == self.rows
        row, column = (self.rows,), (self.columns,)
        key = lambda: self.free(row, place)  # noqa: E731
        value = lambda: self.free(column, place)  # noqa: E731
        number = lambda: self.free((), place)  # noqa: E731
        alpha = lambda: self.decay_factor(place, self.pick((), (side,)))  # noqa: E731
        write = lambda: self.pick("outer({k}, {v})", "{s} * outer({k}, {v})", "outer({k}, {v}) / {d}").format(  # noqa: E731
            k=key(), v=value(), s=number(), d=self.divisor((), place)
        )

        def erase(read_from: str) -> str:
            k, v = key(), value()
            if left:
                read = self.pick(f"{read_from}.T @ {k}", f"{k} @ {read_from}", f"{read_from}.T @ {key()}")
                if self.chance(10):
                    read = f"{self.pick('sum', 'mean')}({read_from}, {self.rows})"
                inner = self.pick(f"outer({k}, {v} - {read})", f"-outer({k}, {read})", f"outer({key()}, {read})")
            else:
                read = self.pick(f"{read_from} @ {v}", f"{v} @ {read_from}.T", f"{read_from} @ {value()}")
                inner = self.pick(f"outer({k} - {read}, {v})", f"-outer({read}, {v})", f"outer({read}, {value()})")
            return self.pick(f"{number()} * {inner}", f"({inner}) * {self.pick('beta', '0.5')}", inner)

        local = [name for name, dims in place.locals if dims == (column if left else row) and name.startswith("read")]
        options = [
            lambda: f"{self.product(alpha(), S)}",
            lambda: f"{S} + {write()}",
            lambda: f"{self.product(alpha(), S)} + {write()}",
            lambda: f"{S} + {erase(S)}",
            lambda: f"{S} + {erase(S)}",
            lambda: f"{self.product(alpha(), S)} + {erase(S)} + {write()}",
            lambda: f"{self.product(alpha(), S)} + {erase(f'{S}_prev')} + {write()}",
            lambda: f"{alpha()} * ({S} + {erase(S)}) + {write()}",
            lambda: f"{S} + {erase(S)} + {erase(S)}",
            lambda: f"{S} - (1 - {alpha()}) * {S} + {write()}",
            lambda: f"{write()} - {write()}",
            lambda: f"1 * {S}",
            lambda: f"({S} + {erase(S)}) / {self.divisor((), place)}",
        ]
        if local:
            u = self.pick(*local)
            k, v = key(), value()
            options += [lambda: f"{S} + " + (f"outer({k}, {v} - {u})" if left else f"outer({k} - {u}, {v})")] * 6
        return f"{S} = {self.pick(*options)()}"

    def read(self, S: str, place: Place) -> tuple[str, Dims]:
        q, c = self.free((self.rows,), place), self.free((self.columns,), place)
        if self.chance(70):
            return f"{S}.T @ {q}", (self.columns,)
        return f"{S} @ {c}", (self.rows,)

    # ------------------------------------------------------------------------------------------------------ whole specs

    def affine(self) -> str:
        """One matrix state under the statements that papers write."""
        self.declare()
        rows, columns = self.rows, self.columns
        self.states = {"S": (rows, columns)}
        side = self.pick(rows, rows, columns)
        place = Place()
        update: list[str | list[str]] = []
        for _ in range(self.pick(1, 1, 2, 3)):
            if self.chance(30):
                place = self.affine_repeat(update, place, side)
            else:
                place = self.affine_statements(update, place, side)
        output = self.affine_output(place)
        return self.text(update, output)

    def affine_statements(self, update: list, place: Place, side: str) -> Place:
        if self.chance(20):
            name = self.new_name("read")
            value, dims = self.read(self.pick("S", "S", "S_prev"), place)
            update.append(f"{name} = {value}")
            place = replace(place, locals=(*place.locals, (name, dims)))
        if self.chance(8):
            side = self.pick(self.rows, self.columns)
        update.append(self.statement("S", place, side))
        return place

    def affine_repeat(self, update: list, place: Place, side: str) -> Place:
        body: list[str] = []
        inner = replace(place, step=True)
        for _ in range(self.pick(1, 1, 2)):
            inner = self.affine_statements(body, inner, side)
        update.append(body)
        return place

    def affine_output(self, place: Place) -> list[str]:
        left = self.chance(75)
        q = lambda: self.free((self.rows,) if left else (self.columns,), place)  # noqa: E731
        read = lambda S="S": f"{S}.T @ {q()}" if left else f"{S} @ {q()}"  # noqa: E731
        dims = (self.columns,) if left else (self.rows,)
        other = lambda: self.free(dims, place)  # noqa: E731
        usable = [name for name, has in place.locals if has == dims]
        options = [
            lambda: f"scale * ({read()})",
            lambda: read(),
            lambda: f"{read()} + {other()}",
            lambda: f"{read()} - s * ({read()})",
            lambda: f"{read('S_prev')} + (bonus @ k) * {self.free(dims, place)}",
            lambda: f"scale * ({read()}) + {read('S_prev')}",
            lambda: f"tanh({read()}) / (1 + abs({read()}))",
            lambda: f"l2norm({read()}) * {other()}",
            lambda: f"outer({read()}, {self.free((), place)} * {q()})",
            lambda: f"sum({read()}) * {other()}",
            lambda: f"dot({read()}, {other()})",
            lambda: f"{self.pick('sum', 'mean')}(S, {self.rows if left else self.columns})",
        ]
        options += [lambda: f"{self.pick(*usable)} + {read()}"] * (4 if usable else 0)
        result = self.pick(*options)()
        if self.chance(20):
            return [f"y = {result}", "o = sigmoid(r) * y"]
        return [f"o = {result}"]

    def wild(self) -> str:
        """One to three states of any dims, each under arbitrary expressions."""
        self.declare()
        rows, columns = self.rows, self.columns
        shapes = [(rows, columns), (rows,), (columns,), (columns, rows), ()]
        self.states = {name: self.pick(*shapes) for name in ("S", "z", "h")[: self.pick(1, 1, 2, 3)]}
        place = Place(states=tuple(self.states.items()) + tuple((f"{s}_prev", d) for s, d in self.states.items()))
        update: list[str | list[str]] = []
        for name in self.states:
            if self.chance(25):
                local = self.new_name("y")
                dims = self.pick(*shapes[1:])
                update.append(f"{local} = {self.expr(dims, place, 2)}")
                place = replace(place, locals=(*place.locals, (local, dims)))
            if self.chance(20):
                update.append([self.assignment(name, replace(place, step=True))])
            else:
                update.append(self.assignment(name, place))
        dims = self.pick((rows,), (columns,), (), (rows, columns), (columns, rows))
        reach = [f"{self.reaching(name, dims)}" for name in self.states]
        return self.text(update, [f"o = {self.expr(dims, place, 2)} + {' + '.join(reach)}"])

    def assignment(self, name: str, place: Place) -> str:
        dims = self.states[name]
        value = self.expr(dims, place, 3)
        if self.chance(60):
            value = f"{self.decay_factor(place, self.part(dims)[:1])} * {name} + {value}"
        return f"{name} = {value}"

    def reaching(self, name: str, dims: Dims) -> str:
        has = self.states[name]
        if has == dims:
            return name
        return f"sum({name})" if has else name

    # ------------------------------------------------------------------------------------------------------------- text

    def text(self, update: Sequence[str | list[str]], output: Sequence[str]) -> str:
        """The spec, declaring what it uses and nothing else."""
        update = _without_unused_locals(update, output, self.states)
        used = self.used(update, output)
        inputs = {name: decl for name, decl in self.inputs.items() if name in used}
        params = {name: decl for name, decl in self.params.items() if name in used}
        more = self.sizing(used, inputs, params) or ([] if inputs else ["s"])
        inputs |= {name: self.inputs[name] for name in more}
        output = [*output[:-1], " + ".join([output[-1], *(f"sum({name})" if name != "s" else name for name in more)])]

        rows = ["flagen: 1", "name: random_spec", "state:"]
        rows += [f"  {name}: {self.state(name)}" for name in self.states]
        rows += ["inputs:", *(f"  {name}: {{{_declared(decl)}}}" for name, decl in inputs.items())]
        if params:
            rows += ["params:", *(f"  {name}: {{{_declared(decl)}}}" for name, decl in params.items())]
        if any(isinstance(item, list) for item in update):
            rows.append("steps: {n: num_steps, default: 2}")
        for section, entries in (("let", self.let), ("decay", self.decay)):
            lines = [f"  {name}: {value}" for name, value in entries.items() if name in used]
            rows += [f"{section}:", *lines] if lines else []
        rows.append("update:")
        for item in update:
            lines = [f"  - {item}"] if isinstance(item, str) else ["  - repeat: n", "    do:"]
            rows += lines if isinstance(item, str) else [*lines, *(f"      - {line}" for line in item)]
        return "\n".join([*rows, "output:", *(f"  - {line}" for line in output)]) + "\n"

    def state(self, name: str) -> str:
        """The declaration of a state."""
        dims = f"[{', '.join(self.states[name])}]"
        return f"{{dims: {dims}, init: {self.begin_at[name]}}}" if name in self.begin_at else dims

    def used(self, update: Sequence[str | list[str]], output: Sequence[str]) -> set[str]:
        """Every name that the statements need, through the definitions of derived names."""
        used = set(_IDENTIFIER.findall(" ".join([*_lines(update), *output])))
        derived = {**self.let, **self.decay}
        for name in reversed(derived):
            if name in used:
                used |= set(_IDENTIFIER.findall(derived[name]))
        return used

    def sizing(self, used: set[str], inputs: Mapping[str, Decl], params: Mapping[str, Decl]) -> list[str]:
        """Inputs to add, so that the size of every dim can be read off one."""
        sized = {dim for decl in inputs.values() for dim in decl.dims}
        needed = {dim for dims in self.states.values() for dim in dims} | (used & {self.rows, self.columns, "M"})
        needed |= {dim for decl in params.values() for dim in decl.dims} | ({self.rows} if "scale" in params else set())
        vectors = {decl.dims[0]: name for name, decl in self.inputs.items() if len(decl.dims) == 1 and not decl.step}
        return [vectors[dim] for dim in sorted(needed - sized)]


def _declared(decl: Decl) -> str:
    """The fields of a declaration."""
    fields = [f"dims: [{', '.join(decl.dims)}]", decl.fields, "per: step" if decl.step else ""]
    return ", ".join(field for field in fields if field)


def _lines(update: Sequence[str | list[str]]) -> list[str]:
    return [line for item in update for line in (item if isinstance(item, list) else [item])]


def _without_unused_locals(
    update: Sequence[str | list[str]], output: Sequence[str], states: Iterable[str]
) -> list[str | list[str]]:
    """`update` without the assignments of locals that nothing reads."""
    kept: list[str | list[str]] = []
    used = set(_IDENTIFIER.findall(" ".join(output)))

    def wanted(line: str) -> bool:
        target, _, value = line.partition(" = ")
        if target in used or target in states:
            used.update(_IDENTIFIER.findall(value))
            return True
        return False

    for item in reversed(update):
        if isinstance(item, str):
            kept += [item] if wanted(item) else []
        else:
            body = [line for line in reversed(item) if wanted(line)]
            kept += [body[::-1]] if body else []
    return kept[::-1]


def drawn(draw: Callable) -> Callable[[int], int]:
    """An author's choices, drawn by hypothesis."""
    return lambda count: draw(st.integers(0, count - 1))


@st.composite
def affine_specs(draw: Callable) -> str:
    """Specs of one matrix state; most have a chunk form."""
    return Author(drawn(draw)).affine()


@st.composite
def wild_specs(draw: Callable) -> str:
    """Specs of any states and any expressions; few have a chunk form."""
    return Author(drawn(draw)).wild()
