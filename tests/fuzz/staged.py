"""Random specs of several states, as YAML text.

Normalizers, slots, running log-sum-exps, preconditioners, hidden vectors and fast memories: each feeds what comes after
it; now and then the last feeds the first as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from tests.fuzz.specs import Author, Decl, Dims, Place, drawn


@dataclass(frozen=True)
class Feed:
    """What earlier states put into later ones: factors of their key (`whole_key` if that needs no other), addends of
    their values, decays of their rows and columns, and vectors that the output is divided by."""

    keys: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    decays: tuple[str, ...] = ()
    column_decays: tuple[str, ...] = ()
    divisors: tuple[str, ...] = ()
    whole_key: bool = False


@dataclass
class StagedAuthor(Author):
    """Writes a spec one state at a time."""

    def staged(self) -> str:
        """Up to three states that feed one that is written and read; or slots, whose softmax reads another memory."""
        self.declare()
        self.inputs["gu"] = Decl(("M",), "heads: HV, range: [-.inf, 0]")
        update: list[str | list[str]] = []
        slots = self.chance(35)
        feed, row = Feed(), ("M",) if slots else (self.rows,)
        makers = [self.hidden, self.preconditioner, self.log_sum, self.normalizer, self.fast_memory]
        for _ in range(self.pick(0, 1, 1, 2) if slots else self.pick(1, 1, 1, 2, 3)):
            maker = self.pick(*makers)
            makers.remove(maker)
            feed = maker(update, feed, row)
        if not slots:
            self.memory("S", update, feed, row, (self.columns,))
            return self.text(update, self.staged_output(feed, row, f"S.T @ {self.free(row, Place())}"))
        self.memory("Sk", update, feed, row, (self.rows,))
        self.memory("Sv", update, feed, row, (self.columns,))
        name = self.new_name("p")
        scores = f"Sk @ {self.free((self.rows,), Place())}"
        update.append(f"{name} = {self.pick('softmax({})', 'softmax(scale * ({}))', 'sigmoid({})').format(scores)}")
        return self.text(update, self.staged_output(feed, row, f"Sv.T @ {name}"))

    def staged_output(self, feed: Feed, row: Dims, read: str) -> list[str]:
        over = [f"(1 + abs(dot({name}, {self.free(row, Place())})))" for name in feed.divisors]
        more = f" + {self.free((self.columns,), Place())}" if self.chance(30) else ""
        return [f"o = {' / '.join([f'({read})', *over])}{more}"]

    def vector_decay(self, side: Dims) -> str:
        if side == ("M",):
            return self.pick("exp(gu)", "exp(0.5 * gu)", "sigmoid(u)", "exp(g)")
        return self.decay_factor(Place(), self.pick((), side))

    def memory(self, name: str, update: list, feed: Feed, row: Dims, column: Dims) -> None:
        """A matrix that is written under a key of `row`, by a delta rule or not, its parts those that are fed."""
        self.states[name] = (*row, *column)
        base = self.free(row, Place())
        key = " * ".join([*([] if feed.whole_key else [base]), *feed.keys])
        value = " + ".join([self.free(column, Place()), *(feed.values if column == (self.columns,) else [])])
        decay = " * ".join(feed.decays or [self.vector_decay(row)])
        sides = " * ".join([name, *(feed.column_decays if column == (self.columns,) else [])])
        if self.chance(50):
            update.append(f"{name} = ({decay}) * {sides} + outer({key}, {value})")
        else:
            update.append(f"{name} = ({decay}) * {sides}")
            update.append(f"{name} = {name} + beta * outer({key}, {value} - {name}.T @ l2norm({base}))")

    def hidden(self, update: list, feed: Feed, row: Dims) -> Feed:
        """A vector whose channels are on their own, in a key or among the values."""
        side = self.pick(row, (self.columns,))
        self.states["hid"] = side
        update.append(f"hid = {self.vector_decay(side)} * hid + {self.free(side, Place())}")
        read = self.pick("hid", "hid", "hid_prev", "tanh(hid)")
        return replace(feed, keys=(*feed.keys, read)) if side == row else replace(feed, values=(*feed.values, read))

    def preconditioner(self, update: list, feed: Feed, row: Dims) -> Feed:
        """A running second moment that scales the key."""
        self.states["mom"] = row
        one = self.free(row, Place())
        update.append(f"mom = {self.vector_decay(row)} * mom + {self.pick('', 'beta * ')}({one} * {one})")
        name = self.new_name("m")
        update.append(f"{name} = {self.pick('rsqrt(1 + abs(mom))', 'exp(-log(1 + abs(mom)))', '1 / (1 + mom ** 2)')}")
        return replace(feed, keys=(*feed.keys, name))

    def log_sum(self, update: list, feed: Feed, row: Dims) -> Feed:
        """A softmax over time, whose running denominator is the decay; or one that is scaled by its largest weight."""
        self.states["lse"] = row
        self.begin_at["lse"] = "-.inf"
        weight, aging = self.free(row, Place()), self.pick("", "", " + A") if row == ("M",) else self.pick("", " + gk")
        update.append(f"lse = {self.pick('logaddexp', 'logaddexp', 'maximum')}(lse{aging}, {weight})")
        keys = (*feed.keys, f"exp({weight} - lse)")
        return replace(feed, keys=keys, decays=(*feed.decays, f"exp(lse_prev{aging} - lse)"), whole_key=True)

    def normalizer(self, update: list, feed: Feed, row: Dims) -> Feed:
        """What the keys add up to, which the output is divided by."""
        self.states["nrm"] = row
        update.append(f"nrm = {self.vector_decay(row)} * nrm + {' * '.join([self.free(row, Place()), *feed.keys])}")
        over = self.pick("nrm", "nrm", "nrm_prev") if row == (self.rows,) else "nrm"
        return replace(feed, divisors=(*feed.divisors, over))

    def fast_memory(self, update: list, feed: Feed, row: Dims) -> Feed:
        """Another matrix, whose read is a value or decides what is kept; now and then it reads what it feeds."""
        self.states["fast"] = (self.rows, self.columns)
        value = self.free((self.columns,), Place())
        if row == (self.rows,) and self.chance(25):
            value = f"S_prev.T @ {self.free((self.rows,), Place())} / (1 + {self.rows})"
        decay = self.vector_decay((self.rows,))
        key = self.free((self.rows,), Place())
        update.append(f"fast = {decay} * fast + outer({key}, {value})")
        name = self.new_name("y")
        moment = self.pick("fast", "fast", "fast_prev")
        update.append(f"{name} = {moment}.T @ {self.free((self.rows,), Place())}")
        if self.chance(50):
            return replace(feed, values=(*feed.values, name))
        return replace(feed, column_decays=(*feed.column_decays, f"sigmoid({name})"))


@st.composite
def staged_specs(draw: Callable) -> str:
    """Specs of several states of which one feeds the next."""
    return StagedAuthor(drawn(draw)).staged()
