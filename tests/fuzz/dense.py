"""Random specs in which everything that may be an expression is one, as YAML text.

The authors of `specs` and `staged` choose what a recurrence does; here each of its parts, whatever its role, is a sum,
a quotient, a negation, a power, a map, a number of a head. Outputs read the state several times, read what a read gave,
and are gated by reads. What is erased stays small, so that there is something to compare.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from flagen.spec.names import identifier_problem
from tests.fuzz.specs import Decl, Dims, Place, drawn
from tests.fuzz.staged import Feed, StagedAuthor

MAPS = "l2norm l2norm silu sigmoid tanh softmax relu abs".split()
NAMES = """
    a b c d e g i l m p r u w x y z E F Q R U X Y Z dA dB do dq ds dt d_k d_q d_v eps exponent gate key keys last left
    length lower mask mean_k offset out padding pointer position q_ k_ v_ read read0 read1 right scale_ score scores
    seen size span state_ states step steps stop stride sums token_ upper value values width zero zeros A_log D_skip
    S_final S_first S_here S_new dtype_ index keep kept lead log_decay number order ready rest scaled sum_k term total
    U_operand decay decays decayed gradient gradients g_row head_ inverse K_ V_ output q_row query token_mask written
    alpha beta gamma lambda_ mu nu omega phi psi rho sigma tau theta kappa h0 x0 x1 t0 t_ w0 cos sin pi device_
""".split()
"""Names that papers, people and generated code use."""

SIZES = """
    B D E F G L N P R S_dim dk dv d n m x dim head_dim state_dim key_dim value_dim slots rank width size Dk Dv d_k
""".split()
"""The same for dims."""

_SUMS = re.compile("norm|softmax|sum|mean|dot")


@dataclass
class DenseAuthor(StagedAuthor):
    """Writes expressions wherever there is room for one."""

    tame: bool = False
    """Whether nothing sums over `value`, a dim of the state: kernels of chunks own blocks of it."""
    value: str = ""
    version: int = 1
    """Of the language, which says what is a name in it."""

    def dense(self) -> str:
        """A spec of any family, its names now and then others than usual."""
        writers = [self.family] * 8 + [self.affine] * 4 + [self.staged] * 4 + [self.scan] * 3
        writers += [self.rows_in_a_row, self.wild]
        text = self.pick(*writers)()
        return self.renamed(text) if self.chance(40) else text

    def declare(self) -> None:
        super().declare()
        self.inputs |= {name: Decl((self.rows,), self.pick("", "heads: HV")) for name in "ep"}
        sharing = self.pick("some", "values", "values", "none", "all")
        for name, decl in self.inputs.items():
            rest = ", ".join(part for part in decl.fields.split(", ") if part and not part.startswith("heads"))
            own = sharing == "all" or (sharing == "values" and self.columns in decl.dims)
            if sharing != "some":
                self.inputs[name] = replace(decl, fields=", ".join(filter(None, ["heads: HV" if own else "", rest])))

    # ---------------------------------------------------------------------------------------------------------- factors

    def free(self, dims: Dims, place: Place) -> str:
        here = replace(place, states=(), locals=tuple((n, d) for n, d in place.locals if n.startswith("local")))
        if self.chance(15):
            name = self.new_name("w")
            self.let[name] = self.part_of(dims, replace(here, locals=()), 1)
            self.derived.append((name, dims, here.step))
            return name
        return self.part_of(dims, here, self.pick(0, 1, 1, 2))

    def part_of(self, dims: Dims, place: Place, depth: int) -> str:
        """An expression over a vector's dim, or a number."""
        if len(dims) > 1 or (not self.tame and self.chance(8)):
            return self.expr(dims, place, depth)
        return self.vector(dims, place, depth) if dims else self.number(place, depth)

    def number(self, place: Place, depth: int = 1) -> str:
        if depth <= 0:
            return self.leaf((), place)
        a, b = self.number(place, depth - 1), self.number(place, depth - 1)
        row, column = (self.rows,), (self.columns,)
        options = [
            f"({a} * {b})",
            f"({a} + {b})",
            f"({a} - {b})",
            f"(1 - {a})",
            f"(-(1 - {a}))",
            f"-{a}",
            f"({a} / (1 + abs({b})))",
            f"(1 / (2 + tanh({a})))",
            f"({a} ** 2)",
            "(1 + beta) ** A",
            "keep ** 2",
            "sigmoid(A)",
            "skip * beta",
            "1 / (1 + head)",
            "(1 - 2 ** (-1 - head))",
        ]
        if self.tame and self.chance(80):
            return self.pick(*options)
        side = self.pick(row, column) if not self.tame else column if self.value == self.rows else row
        return self.pick(
            *options,
            f"{self.pick('sum', 'mean', 'norm')}({self.vector(side, place, 0)})",
            f"dot({self.vector(side, place, 0)}, {self.vector(side, place, 0)})",
            f"mean({self.pick('m', 'W', 'mk') if not self.tame else self.vector(side, place, 0)})",
        )

    def vector(self, dims: Dims, place: Place, depth: int = 1) -> str:
        x = self.leaf(dims, place)
        if depth <= 0:
            return x
        y, a = self.vector(dims, place, depth - 1), self.number(place, depth - 1)
        (dim,) = dims
        other = self.columns if dim == self.rows else self.rows
        options = [
            f"({a} * {x})",
            f"({x} * {a})",
            f"({x} / (1 + abs({a})))",
            f"(({a} + keep) * {x})",
            f"((1 - {a}) * {x})",
            f"(-(1 - {a}) * {x})",
            f"-{x}",
            f"({x} + {y})",
            f"({x} - {a})",
            f"(1 - {x})",
            f"({x} * {y})",
            f"({x} * {a} * {y})",
            f"({x} ** 2)",
            f"{self.pick(*MAPS)}({x})",
            f"{self.pick(*MAPS)}({y})",
            f"l2norm({self.pick(*MAPS)}({x}))",
            f"({x} * norm({y}))",
            f"(skip * {x})",
            f"((1 + beta) ** A * {x})",
            f"exp(-abs({x}))",
        ]
        if self.tame and dim == self.value:
            return self.pick(*(option for option in options if not _SUMS.search(option)))
        if dim in (self.rows, self.columns) and not (self.tame and other == self.value):
            options += [f"{self.pick('sum', 'mean')}({self.pick('m', 'W')}, {other})"] * 2
        return self.pick(*options)

    def decay_factor(self, place: Place, side: Dims | None = None) -> str:
        side = self.pick((), (self.rows,), (self.columns,)) if side is None else side
        if side not in ((), (self.rows,), (self.columns,)) or self.chance(40):
            return super().decay_factor(place, side)
        g = {(): "g", (self.rows,): "gk", (self.columns,): "gv"}[side]
        x = self.leaf(side, replace(place, states=(), locals=()))
        factor = self.pick(
            f"exp((1 + beta) * {g})",
            f"exp({g} / (1 + beta))",
            f"exp({g} - keep)",
            f"exp(-keep * abs({x}))",
            f"exp(-softplus({x}))",
            f"exp(A * softplus({x}))",
            f"exp(-exp(A) * softplus({x} + skip))",
            f"exp(-({x} ** 2))",
            f"exp(-abs({x}) ** 1.5)",
            f"exp(-(1 - beta) * keep * (1 + abs({x})))",
            f"(exp({g}) * (1 - 0.5 * keep))",
            f"(1 - 0.5 * sigmoid({x}))",
        )
        if not place.step and self.chance(30):
            name = self.new_name("alpha")
            self.decay[name] = factor
            return name
        return factor

    # ---------------------------------------------------------------------------------------------------------- updates

    def family(self) -> str:
        """One row of the normal form, of a kind that has kernels of its own, with something in each of its roles."""
        self.declare()
        self.states = {"S": (self.rows, self.columns)}
        rows, columns = (self.rows,), (self.columns,)
        left = self.chance(80)
        side, across = (rows, columns) if left else (columns, rows)
        self.tame, self.value = self.chance(70), across[0]
        place = Place()
        update: list[str | list[str]] = []
        if self.chance(25):
            name, dims = self.new_name("local"), self.pick((), rows, columns)
            update.append(f"{name} = {self.part_of(dims, place, 1)}")
            place = replace(place, locals=((name, dims),))
        kind = self.pick("none", "one", "one", "each", "each")
        step = replace(place, step=kind == "none" or self.chance(50))
        repeats = self.chance(20) and kind != "each"
        inner = step if repeats else place
        decay = "" if kind == "none" else self.decay_factor(place, () if kind == "one" else side)
        w, y, z = self.erasing(inner, side), self.erasing(inner, side), self.free(across, inner)
        y = w if self.chance(50) else y
        read = f"S.T @ {y}" if left else f"S @ {y}"
        outer = (lambda key, value: f"outer({key}, {value})") if left else (lambda key, value: f"outer({value}, {key})")
        small = "bj" if inner.step else "beta"
        gain = self.pick(small, small, "0.5", "keep", "(1 - keep)", f"({small} / (1 + keep))", f"({small} + keep) / 2")
        times = f"{gain} * " if self.chance(70) else ""
        erase = self.pick(f"{times}{outer(w, f'{z} - {read}')}", f"-{times}{outer(w, f'({read})')}")
        write = outer(self.free(side, inner), self.free(across, inner))
        body = self.pick(write, erase, erase, f"{erase} + {write}")
        if repeats:
            update += [f"S = {decay} * S"] if decay else []
            update.append([f"S = S + {body}"])
        elif decay and self.chance(50):
            update += [f"S = {decay} * S", f"S = S + {body}"]
        else:
            update.append(f"S = {decay} * S + {body}" if decay else f"S = S + {body}")
        return self.text(update, self.tame_output(place, left) if self.tame else self.affine_output(place))

    def tame_output(self, place: Place, left: bool) -> list[str]:
        """One read, now and then of the other side, and what kernels make of it."""
        turned = self.chance(10)
        S, dims = ("S.T", self.columns) if left != turned else ("S", self.rows)
        q = self.free((self.rows if left != turned else self.columns,), place)
        read = f"{S} @ {q}" if self.chance(80) else f"{S.replace('S', 'S_prev')} @ {q}"
        factor = self.pick("scale", "0.5", f"{self.rows} ** -0.5", "eps", "(1 - eps)", "head")
        vector = self.free((dims,), place)
        return [
            "o = "
            + self.pick(
                read,
                f"{factor} * ({read})",
                f"{factor} * ({read})",
                f"({read}) / (1 + eps)",
                f"-({read})",
                f"{read} + {vector}",
                f"{factor} * ({read}) - {vector}",
                f"{self.number(place, 1)} * ({read})",
                f"{vector} * ({read})",
                f"({read}) * skip + {vector}",
            )
        ]

    def leaf(self, dims: Dims, place: Place) -> str:
        if self.tame and len(dims) == 1 and self.chance(80):
            return self.pick(*(name for name, decl in self.inputs.items() if decl.dims == dims and not decl.step))
        return super().leaf(dims, place)

    def erasing(self, place: Place, dims: Dims) -> str:
        """A key that erases: about as long as 1, so that the state stays in bounds."""
        x = self.leaf(dims, replace(place, states=(), locals=()))
        other = self.leaf(dims, replace(place, states=(), locals=()))
        return self.pick(
            f"l2norm({self.vector(dims, replace(place, locals=()), 1)})",
            f"l2norm({self.vector(dims, replace(place, locals=()), 1)})",
            f"l2norm(silu({x}))",
            f"l2norm(1 - {x})",
            f"(0.2 * (1 - {x}))",
            f"({other} * {x})",
            f"softmax({x})",
            f"(beta * l2norm({x}))",
            f"(0.5 * ({x} + {other}))",
            f"-l2norm({x})",
            f"(l2norm({x}) / (1 + beta))",
            f"tanh({x}) / 2",
            x,
        )

    def affine_statements(self, update: list, place: Place, side: str) -> Place:
        if self.chance(25) and not place.step:
            name, dims = self.new_name("local"), self.pick((), (self.rows,), (self.columns,))
            update.append(f"{name} = {self.part_of(dims, replace(place, locals=()), 1)}")
            place = replace(place, locals=(*place.locals, (name, dims)))
        return super().affine_statements(update, place, side)

    def affine_output(self, place: Place) -> list[str]:
        if self.chance(40):
            return super().affine_output(place)
        left = self.chance(75)
        dims, across = ((self.columns,), (self.rows,)) if left else ((self.rows,), (self.columns,))
        q = lambda: self.free(across, place)  # noqa: E731
        read = lambda S="S": f"{S}.T @ {q()}" if left else f"{S} @ {q()}"  # noqa: E731
        number, vector = (lambda: self.free((), place)), (lambda: self.free(dims, place))
        result = self.pick(
            lambda: f"{number()} * ({read()})",
            lambda: f"({read()}) * {number()}",
            lambda: f"({read()}) / (1 + abs({number()}))",
            lambda: f"{vector()} * ({read()})",
            lambda: f"silu({vector()}) * ({read()})",
            lambda: f"sigmoid({read()}) * ({read()})",
            lambda: f"silu({read()}) * {vector()}",
            lambda: f"{number()} * ({read()}) + {number()} * {vector()}",
            lambda: f"({read()}) * {vector()} - {vector()}",
            lambda: f"-({read()})",
            lambda: f"({read()}) + ({read()})",
            lambda: f"{number()} * ({read('S_prev')}) + dot({q()}, {q()}) * {vector()}",
            lambda: f"l2norm({read()})",
            lambda: f"({read()}) * rsqrt(mean(({read()}) ** 2) + 1e-5)",
        )()
        if self.chance(20):
            name = self.new_name("local")
            return [f"{name} = {self.part_of((), replace(place, states=()), 1)}", f"y = {result}", f"o = {name} * y"]
        return [f"o = {result}"]

    def staged_output(self, feed: Feed, row: Dims, read: str) -> list[str]:
        if self.chance(50):
            return super().staged_output(feed, row, read)
        factor, scale = self.free((), Place()), self.free((), Place())
        over = [f"(1 + dot({name}, {scale} * {self.free(row, Place())}) ** 2)" for name in feed.divisors]
        name = self.new_name("local")
        lines = [f"{name} = {factor}"] if self.chance(50) else []
        return [*lines, f"o = {name if lines else factor} * {' / '.join([f'({read})', *over])}"]

    # ------------------------------------------------------------------------------------------------------ other specs

    def rows_in_a_row(self) -> str:
        """Two matrices of which one is read by what was read of either."""
        self.declare()
        rows, columns = self.rows, self.columns
        self.states = {"R": (rows, "M") if self.chance(50) else (rows, columns), "S": (rows, columns)}
        place = Place()
        other = self.states["R"][1:]
        decay, key, value = self.decay_factor(place, ()), self.free((rows,), place), self.free(other, place)
        update = [f"R = {decay} * R + outer({key}, {value})", self.statement("S", place, rows)]
        q = self.free((rows,), place)
        ways = [
            [f"y = R @ (R.T @ {q})", "o = S.T @ y"],
            [f"y = R @ {self.free(other, place)}", f"o = S.T @ ({self.free((), place)} * y)"],
            [f"y = R.T @ {q}", "z = R @ y", f"o = S.T @ ({q} + z)"],
            [f"y = S @ (S.T @ {q})", "o = S.T @ y + sum(R)"],
            [f"o = sigmoid(dot(R.T @ {q}, R.T @ {q})) * (S.T @ {q})"],
            [f"y = S.T @ {q}", f"o = y * dot(R.T @ {q}, {self.free(other, place)})"],
        ]
        return self.text(update, self.pick(*ways))

    def scan(self) -> str:
        """Vectors and numbers, each element on its own."""
        self.declare()
        dims = self.pick((self.rows,), (self.rows,), (), (self.columns,))
        place = Place()
        self.states = {"h": dims}
        update: list[str | list[str]] = []
        lines = [f"h = {self.decay_factor(place, dims)} * h + {self.free(dims, place)}"]
        if self.chance(30):
            self.begin_at["h"] = "-.inf"
            function, aging = self.pick("logaddexp", "maximum"), self.pick("A", "0.5 * A", "g")
            lines = [f"h = {function}(h + {aging}, {self.free(dims, place)})"]
        elif self.chance(20):
            lines = [f"h = maximum(h - {self.free(dims, place)}, {self.pick(self.free(dims, place), '0.1', '-1')})"]
        if self.chance(40):
            self.states["f"] = dims
            term = f"{self.free(dims, place)} * {self.pick('h', 'h_prev')}"
            lines.append(f"f = {self.decay_factor(place, dims)} * f + {term}")
            if "h" in self.begin_at:
                lines[-1] = f"f = exp(h_prev - h) * f + exp({self.free(dims, place)} - abs(h))"
        update += lines
        last = list(self.states)[-1]
        outputs = [f"{self.free(dims, place)} * {last}", f"{last} + {self.free(dims, place)}", f"tanh({last})", last]
        if len(self.states) > 1:
            gated = "f / (1 + exp(-abs(h)))"
            outputs = [gated] if "h" in self.begin_at else [f"{other} + {last} * tanh(h)" for other in outputs]
        return self.text(update, [f"o = {self.pick(*outputs)}"])

    # ------------------------------------------------------------------------------------------------------------ names

    def renamed(self, text: str) -> str:
        """The spec with other names for whatever it declares."""
        declared = set(re.findall(r"^  (\w+):|^  - (\w+) =|^      - (\w+) =", text, re.MULTILINE))
        dims = {dim for group in re.findall(r"\[([\w, ]*)\]", text) for dim in group.split(", ") if dim.isidentifier()}
        old = sorted({name for group in declared for name in group if name} | dims)
        fixed = {"o", "n", "do", "repeat", "H", "HV"}
        names: dict[str, str] = {}
        for name in old:
            free = set(SIZES if name in dims else NAMES) - set(old) - set(names.values())
            fitting = [new for new in sorted(free) if identifier_problem(new, "param", self.version) is None]
            if name not in fixed and self.chance(60):
                names[name] = self.pick(*fitting)
        names |= {f"{name}_prev": f"{new}_prev" for name, new in names.items()}
        head, *rest = re.split(r"(?<=random_spec\n)", text)
        keywords = "(?:dims|heads|per|range|default|init|inputs|state|params|let|decay|update|output|steps)"
        pattern = re.compile(rf"\b(?!{keywords}:)[A-Za-z_]\w*\b")
        return head + pattern.sub(lambda word: names.get(word[0], word[0]), "".join(rest))


@st.composite
def dense_specs(draw: Callable) -> str:
    """Specs with an expression wherever there is room for one."""
    return DenseAuthor(drawn(draw)).dense()
