"""The rows of one chunk in exact numbers: what its system is evaluated with, and along which directions they change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gmpy2 import mpq

from flagen.algebra.equations import System
from flagen.algebra.evaluate_system import decay_gradient
from flagen.algebra.exact import Dual, Tensor, evaluate, scalar
from flagen.algebra.normal_form import Decay, NormalForm, Numbers, Position, factors_of
from flagen.algebra.recurrence import Setting, Token
from flagen.algebra.timeline import Timeline, Values
from flagen.spec.model import Expr


class Chunk:
    """One chunk's rows, evaluated from the normal form: values for the system, tangents for the comparison."""

    def __init__(self, nf: NormalForm, setting: Setting, tokens: Sequence[Token]) -> None:
        self.nf, self.setting, self.tokens = nf, setting, tokens
        self.rows: dict[str, list[Tensor]] = {"w": [], "y": [], "z": [], "k": [], "v": []}
        self.sides = nf.spec.pairs.get(nf.key, ())
        self.factored = nf.factored
        self.rows |= {f"{name}{side}": [] for name in self.factored for side in "ab"}
        self.numbers: dict[str, list[tuple[Dual, ...]]] = {"aw": [], "cy": [], "ak": []}
        self.mixes: list[tuple[tuple[Dual, ...], ...]] = []
        self.factors: list[Tensor] = []
        self.groups: dict[str, list[int]] = {"delta": [], "write": []}
        self.after: list[bool] = []
        self.per_token = 0
        for token in tokens:
            self._add(token)
        self.per_token = len(self.factors) // len(tokens)
        for number, read in enumerate(nf.reads):
            self.rows[f"q{number}"] = []
            for token in tokens:
                self._add_row(f"q{number}", read.q, token.whole)
            self.numbers[f"cq{number}"] = [self._numbers(read.of, token.whole) for token in tokens]
        dims = {"w": nf.key, "y": nf.key, "z": nf.value, "k": nf.key, "v": nf.value}
        dims |= {f"q{n}": nf.key if read.side == "left" else nf.value for n, read in enumerate(nf.reads)}
        dims |= {f"{name}{side}": dim for name in self.factored for side, dim in zip("ab", self.sides, strict=True)}
        self.elements: dict[str, dict[tuple[int, ...], Dual]] = {
            name: {(r, c): t.at((dims[name],), (c,)) for r, t in enumerate(rows) for c in self._channels(dims[name])}
            for name, rows in self.rows.items()
        }
        """What the system is given, with tangents; a tensor that it does not use is not in its way."""
        self.elements |= {
            name: {(row, p): number for row, numbers in enumerate(rows) for p, number in enumerate(numbers)}
            for name, rows in self.numbers.items()
        }
        self.elements["mix"] = {
            (step, p, r): entry
            for step, mix in enumerate(self.mixes)
            for p, row in enumerate(mix)
            for r, entry in enumerate(row)
        }
        self.given: dict[str, Values] = {
            name: {index: element.value for index, element in elements.items()}
            for name, elements in self.elements.items()
        }
        self.timeline = self._timeline()

    def _evaluate(self, expr: Expr | None, *names: Mapping[str, Tensor]) -> Tensor:
        return scalar(Dual(mpq(0))) if expr is None else evaluate(expr, self.setting.scope(*names))

    def _add_row(self, name: str, expr: Expr | None, *names: Mapping[str, Tensor]) -> None:
        """A row, and both sides of one that is made of pairs."""
        self.rows[name].append(self._evaluate(expr, *names))
        if name in self.factored and expr is not None and (factors := factors_of(expr)) is not None:
            for side, factor in zip("ab", factors, strict=True):
                self.rows[f"{name}{side}"].append(self._evaluate(factor, *names))

    def _numbers(self, exprs: Numbers, *names: Mapping[str, Tensor]) -> tuple[Dual, ...]:
        return tuple(self._evaluate(expr, *names).data[()] for expr in exprs)

    def _channels(self, dim: str) -> range:
        return range(self.setting.sizes[dim])

    def _add(self, token: Token) -> None:
        for block in self.nf.blocks:
            for turn, names in enumerate(token.steps if block.repeated else [{}]):
                for place, step in enumerate(block.steps):
                    lead = block.lead if turn == 0 and place == 0 else None
                    self.factors.append(self._factor([d for d in (lead, step.decay) if d], token.whole, names))
                    self.mixes.append(tuple(self._numbers(row, token.whole, names) for row in step.mix))
                    for row in step.deltas:
                        self.numbers["aw"].append(self._numbers(row.into, token.whole, names))
                        self.numbers["cy"].append(self._numbers(row.of, token.whole, names))
                        self.groups["delta"].append(len(self.factors) - 1)
                        self.after.append(row.after_decay)
                        for name, expr in (("w", row.w), ("y", row.y), ("z", row.z)):
                            self._add_row(name, expr, token.whole, names)
                    for write in step.writes:
                        self.numbers["ak"].append(self._numbers(write.into, token.whole, names))
                        self.groups["write"].append(len(self.factors) - 1)
                        for name, expr in (("k", write.k), ("v", write.v)):
                            self._add_row(name, expr, token.whole, names)

    def _factor(self, decays: Sequence[Decay], *names: Mapping[str, Tensor]) -> Tensor:
        """e^g of a micro-step, over the key dim where any decay of the spec is."""
        tensors = [self._evaluate(decay.factor, *names) for decay in decays]
        dims = (self.nf.key,) if self.nf.decay_kind == "key" else ()

        def element(index: tuple[int, ...]) -> Dual:
            result = Dual(mpq(1))
            for tensor in tensors:
                result = result * tensor.at(dims, index)
            return result

        return self.setting.scope().build(dims, element)

    def _timeline(self) -> Timeline:
        key = self._channels(self.nf.key)
        delta, write = self.groups["delta"], self.groups["write"]
        seen: dict[str, tuple[int, ...]] = {"y": tuple(delta)}
        counts: dict[str, tuple[int, ...]] = {
            "Gw": tuple(group + 1 for group in delta),
            "Gk": tuple(group + 1 for group in write),
            "Gy": tuple(group + after for group, after in zip(delta, self.after, strict=True)),
            "Gend": (len(self.factors),),
        }
        for number, read in enumerate(self.nf.reads):
            at = self._steps_before(read.position)
            seen[f"q{number}"] = tuple(t * self.per_token + at for t in range(len(self.tokens)))
            counts[f"Gq{number}"] = tuple(s + read.position.after_decay for s in seen[f"q{number}"])
        sizes = {
            "delta": len(delta),
            "write": len(write),
            "token": len(self.tokens),
            "key": len(key),
            "value": len(self._channels(self.nf.value)),
            "first of pair": self.setting.sizes[self.sides[0]] if self.sides else 0,
            "second of pair": self.setting.sizes[self.sides[1]] if self.sides else 0,
            "register": len(self.nf.registers),
            "step": len(self.factors),
        }
        decays = tuple(
            tuple(f.at((self.nf.key,), (c,)).value for c in key) if self.nf.decay_kind == "key" else (f.data[()].value,)
            for f in self.factors
        )
        if self.nf.decay_kind != "key":
            decays = tuple(row * len(key) for row in decays)
        return Timeline(decays, seen, {"delta": tuple(delta), "write": tuple(write)}, counts, sizes)

    def _steps_before(self, position: Position) -> int:
        turns = [len(self.tokens[0].steps) if block.repeated else 1 for block in self.nf.blocks]
        done = sum(turns[b] * len(block.steps) for b, block in enumerate(self.nf.blocks[: position.block]))
        return done + position.step

    def pulled(self, gradients: Mapping[str, Values], system: System) -> Dual:
        """<gradients, derivatives of this chunk's rows and decays>."""
        result = Dual(mpq(0))
        for name, elements in self.elements.items():
            for index, slope in gradients.get(f"d{name}", {}).items():
                result = result + Dual(mpq(0), weighted(slope, elements[index]))
        if system.offsets:
            slopes = decay_gradient(system, self.timeline, gradients)
            for factor, gradient in zip(self.factors, slopes, strict=True):
                for element, slope in zip(factor.data.values(), gradient, strict=True):
                    if not element.tangents:
                        continue  # a constant decay, 0 perhaps
                    result = result + Dual(mpq(0), weighted(slope / element.value, element))
        return result


def weighted(weight: mpq, element: Dual) -> tuple[mpq, ...]:
    return tuple(weight * tangent for tangent in element.tangents)
