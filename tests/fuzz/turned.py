"""Random specs of version 2, as YAML text: vectors that are turned by angles that are given, or that add up; dims that
follow from others, and dims by other names; places along a dim."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.fuzz.dense import DenseAuthor
from tests.fuzz.specs import Decl, Dims, Place

_TURN = "6.283185307179586 * "
_WORD = re.compile(r"\b[A-Za-z_]\w*")


@dataclass
class TurnedAuthor(DenseAuthor):
    """Writes the specs of version 1 with what version 2 has besides."""

    version: int = 2
    following: dict[str, str] = field(default_factory=dict)
    """What each dim that follows is."""
    turning: str = ""
    """How the angle that adds up does so, in the words of its statement; none in most specs."""

    def turned(self) -> str:
        """A spec of any family, its names now and then others than usual."""
        writers = [self.family] * 8 + [self.affine] * 3 + [self.staged] * 4 + [self.scan] * 3
        writers += [self.rows_in_a_row, self.wild]
        text = self.pick(*writers)()
        return self.renamed(text) if self.chance(40) else text

    # ------------------------------------------------------------------------------------------------------------- dims

    def declare(self) -> None:
        super().declare()
        rows, columns = self.rows, self.columns
        share = self.pick("{} / 2", "{} / 2", "{} / 4", "{} / 3")
        self.following = {"RK": share.format(rows), "RC": f"{columns} / 2", "J": rows, "JC": columns}
        if self.chance(25):  # Keys are as long as there are angles for, and not the other way round.
            self.following |= {rows: self.pick("2 * RK", "3 * RK", "4 * RK")}
            del self.following["RK"]
        if self.chance(25):
            self.following[columns] = self.pick(rows, f"2 * {rows}", "4", "2 * HV")
        if self.chance(30):
            self.following["M"] = self.pick("3", f"{rows} + 1", f"{rows} * {columns} / {columns}", "H + HV", "RK")
        self.inputs |= {
            "pr": Decl(("RK",), self.pick("", "heads: HV")),
            "pc": Decl(("RC",), "heads: HV"),
            "j": Decl(("J",), self.pick("", "heads: HV")),
            "jc": Decl(("JC",), "heads: HV"),
        }
        self.params["tilt"] = Decl(("RK",), self.pick("", "per: head"))
        rate = self.pick("keep", "s", "pr", "tanh(pr)", "beta", "0.3 * pr", "pr * s")
        self.turning = self.pick(f"fraction(turn + {rate})", f"fraction(turn + 0.5 * {rate})", f"turn + {rate}")
        if not self.chance(40) or not self.turns(rows):
            self.turning = ""

    def turns(self, dim: str) -> bool:
        """Whether there are angles for a vector over `dim`: at most half as many as it is long."""
        pairs = "RK" if dim == self.rows else "RC"
        return dim in (self.rows, self.columns) and (pairs in self.following or dim in self.following)

    # ------------------------------------------------------------------------------------------------------ expressions

    def free(self, dims: Dims, place: Place) -> str:
        value = super().free(dims, place)
        if len(dims) != 1 or not self.chance(35):
            return value
        return self.moved(value, dims[0], scanned=True)

    def vector(self, dims: Dims, place: Place, depth: int = 1) -> str:
        value = super().vector(dims, place, depth)
        return self.moved(value, dims[0], scanned=False) if self.chance(15) else value

    def number(self, place: Place, depth: int = 1) -> str:
        value = super().number(place, depth)
        if not self.chance(15):
            return value
        waves = ("cos({})", "sin({})", "fraction({})", "(0.5 * floor(2 * tanh({})))", "(cos({0}) * sin({0}))")
        return self.pick(*waves).format(value)

    def erasing(self, place: Place, dims: Dims) -> str:
        value = super().erasing(place, dims)
        return self.rotation(value, dims[0], True) if self.turns(dims[0]) and self.chance(25) else value

    def decay_factor(self, place: Place, side: Dims | None = None) -> str:
        factor = super().decay_factor(place, side)
        if side is None or not self.chance(15):
            return factor
        x = self.leaf(side, replace(place, states=(), locals=()))
        return self.pick(f"(0.6 + 0.3 * sin({x}))", f"exp(-fraction({x}))", f"exp(-1 - cos({x}))")

    def moved(self, value: str, dim: str, scanned: bool) -> str:
        """The vector turned, or by another name, or by its places; in `let` there is no angle that adds up."""
        other = {self.rows: ("j", "J"), self.columns: ("jc", "JC")}.get(dim)
        if self.turns(dim) and self.chance(70):
            return self.rotation(value, dim, scanned)
        waves = [f"({value} * cos(index({dim})))", f"({value} / (1 + index({dim})))", f"sin({value})"]
        if other is not None:
            name, source = other
            waves += [
                f"({value} + over({name}, {dim}))",
                f"over({name}, {source}, {dim})",
                f"over(tanh({name}), {dim})",
            ]
        if self.following.get(self.columns) == self.rows and dim == self.columns and not self.tame:
            waves += [f"over({self.vector((self.rows,), Place(), 0)}, {dim})"] * 3
        return self.pick(*waves)

    def rotation(self, value: str, dim: str, scanned: bool) -> str:
        """`value` turned; half of the angles are in turns."""
        pairs = "RK" if dim == self.rows else "RC"
        given = ("pr", "tilt") if pairs == "RK" else ("pc",)
        angles = [*given, f"{_TURN}{given[0]}", f"-{given[0]}", f"s * {given[-1]}", f"{given[0]} * index({pairs})"]
        if scanned and self.turning and pairs == "RK":
            angles = [f"{_TURN}turn", f"{_TURN}turn", f"-{_TURN}turn", f"{_TURN}turn + pr"]
        return f"{self.pick('rotate', 'rotate', 'rotate_half')}({value}, {self.pick(*angles)})"

    # ------------------------------------------------------------------------------------------------------------- text

    def text(self, update: Sequence[str | list[str]], output: Sequence[str]) -> str:
        if self.turning and "turn" in self.used(update, output):
            self.states = {"turn": ("RK",), **self.states}
            update = [f"turn = {self.turning}", *update]
        head, rest = super().text(update, output).split("state:\n", 1)
        dims = self.needed(rest)
        declared = "".join(f"  {dim}: {self.following[dim]}\n" for dim in self.following if dim in dims)
        return head.replace("flagen: 1", "flagen: 2") + (f"dims:\n{declared}" if declared else "") + f"state:\n{rest}"

    def needed(self, text: str) -> set[str]:
        """The words of a text, and those that the sizes among them follow from."""
        found = set(_WORD.findall(text))
        for _ in self.following:
            found |= {word for dim in self.following if dim in found for word in _WORD.findall(self.following[dim])}
        return found

    def sizing(self, used: set[str], inputs: Mapping[str, Decl], params: Mapping[str, Decl]) -> list[str]:
        """As for version 1, of the sizes that follow what they follow from."""
        given = {dim for decl in inputs.values() for dim in decl.dims}
        needed = {dim for dims in self.states.values() for dim in dims}
        needed |= {dim for decl in (*inputs.values(), *params.values()) for dim in decl.dims}
        needed |= used & {self.rows, self.columns, "M", *self.following}
        needed |= {self.rows} if "scale" in params else set()
        needed = self.needed(" ".join(needed)) - given - set(self.following) - {"H", "HV"}
        vectors = {decl.dims[0]: name for name, decl in self.inputs.items() if len(decl.dims) == 1 and not decl.step}
        return [vectors[dim] for dim in sorted(needed)]
