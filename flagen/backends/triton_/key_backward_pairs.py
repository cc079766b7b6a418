"""What the rows of a chunk get from one another, as source lines: level by level, as the preparation takes them."""

from __future__ import annotations

from flagen.backends.triton_.key_rows import LOG2_E, Array, KeyRows, Score, indented, scores_of
from flagen.backends.triton_.rows import DOT
from flagen.plan.backward_levels import ROLES
from flagen.plan.key_backward import KeyBackwardPlan

PARTS = {"q": "read_part", "y": "erased_part", "w": "written_part", "k": "values_part"}
"""What each row along the keys gets, before what scales it."""


class Pairs(KeyRows):
    """Writes what the gradient of each matrix means for the rows that read in it, and for those that wrote."""

    def __init__(self, plan: KeyBackwardPlan) -> None:
        super().__init__(plan.rows, plan.values, plan.written, plan.keys, plan.heads)
        self.backward = plan
        self.matrices = scores_of(self.plan)
        self.roles = [role for role in ROLES if self.plan.vector(role) is not None]

    def full(self, role: str) -> str:
        """What the rows of `role` are called with all their factors."""
        return f"{role}_scaled" if self.plan.scale(role) is not None else self.operand(role)

    def common(self, role: str) -> str:
        """Where what rows have in common with their gradients is added up: a read before its own decay apart."""
        return "common" if self.readers.get(role, True) else "common_before"

    def pairs(self) -> list[str]:
        """What rows of a chunk get from one another."""
        own = [*self._of_own_token(), *self._of_token_before()]
        if self.plan.log_decay is None:
            operands = [f"{self.full(role)}_operand = {self.full(role)}.to(dtype)" for role in self._once_each()]
            products = [
                line
                for matrix in self.matrices
                for line in self._pair(
                    matrix,
                    self._earlier(),
                    f"{self.full(matrix.reader)}_operand",
                    f"{self.full(matrix.writer)}_operand",
                )
            ]
            return [*own, *operands, *products]
        if self.plan.leaf.is_one:
            return [*own, "for level in tl.range(0, LEVELS, disable_licm=True):", *indented(self._level())]
        level = ["for level in tl.range(LEAF_LEVELS, LEVELS, disable_licm=True):", *indented(self._level())]
        return [*own, *self._leaf(), *level]

    def _once_each(self) -> list[str]:
        """A role for each different row."""
        return list({self.full(role): role for role in reversed(self.roles)}.values())[::-1]

    def _of_own_token(self) -> list[str]:
        """What a read sees of its own token, which does not decay."""
        if not self.plan.reads_itself:
            return []
        lines = []
        for matrix in self.matrices:
            if matrix.reader == "q":
                place = f"{matrix.name}_gradient_ptr + chunk_row * (CHUNK * CHUNK) + {self.row_index} * (CHUNK + 1)"
                lines += [
                    f"own_gradient = tl.load({place}).to(tl.float32)[:, None]",
                    f"{PARTS['q']} += own_gradient * {self.full(matrix.writer)}",
                    f"{PARTS[matrix.writer]} += own_gradient * {self.full('q')}",
                ]
        return lines

    def _of_token_before(self) -> list[str]:
        """What those read before their own decay of the token just before, which does not decay between the two either:
        beside strong decays it would drown what has to do with them."""
        lines = []
        for matrix in filter(self._apart, self.matrices):
            reader, writer = self.full(matrix.reader), self.full(matrix.writer)
            seen = f"{self.row_index}[:, None] == {self.row_index}[None, :] + 1"
            lines += self._pair(matrix, seen, f"{reader}.to(dtype)", f"{writer}.to(dtype)", decays=False)
        return lines

    def _apart(self, matrix: Score) -> bool:
        """Whether rows next to one another are kept out of what decays."""
        return self.backward.decays and self.plan.leaf.is_one and not self.readers[matrix.reader]

    def _earlier(self) -> str:
        return self.rows_where(">")

    def _leaf(self) -> list[str]:
        """All pairs of rows in a block, which meet at its middle."""
        moments = set(self.readers.values())
        lines = [
            f"exponent = from_middle({self.row_index}, log_decay, LEAF, TERMS)",
            *(["reading = tl.exp2(exponent)"] if True in moments else []),
            *([f"reading_before = tl.exp2(exponent - log_decay * {LOG2_E})"] if False in moments else []),
            "writing = tl.exp2(-exponent)",
            f"near = ({self.row_index} // LEAF * LEAF)[:, None] <= {self.row_index}[None, :]",
            f"near &= {self._earlier()}",
        ]
        factors = {role: "reading" if after else "reading_before" for role, after in self.readers.items()}
        lines += [f"{role}_reading = ({self.full(role)} * {factors[role]}).to(dtype)" for role in self.readers]
        writers = [role for role in ("w", "k") if role in self.roles]
        lines += [f"{role}_writing = ({self.full(role)} * writing).to(dtype)" for role in writers]
        for matrix in self.matrices:
            reader, writer = f"{matrix.reader}_reading", f"{matrix.writer}_writing"
            lines += self._pair(matrix, "near", reader, writer, factors[matrix.reader], "writing")
        return lines

    def _level(self) -> list[str]:
        """The pairs of rows of one level: those of an upper half read what those of its lower half wrote."""
        row = self.row_index
        first = self.readers["q"]
        lines = [f"decay = decay_to_cut({row}, level, log_decay, {int(first)}, TERMS)"]
        factors = dict.fromkeys(self.roles, "decay")
        names = {role: f"{self.full(role)}_decayed" for role in self.roles}
        if self.readers.get("y", first) != first:
            factors["y"], names["y"] = "erased_decay", f"{self.full('y')}_erasing"
            lines.append(f"erased_decay = decay_to_cut({row}, level, log_decay, {int(self.readers['y'])}, TERMS)")
        lines.append(f"seen = seen_across_cut({row}, level)")
        if any(map(self._apart, self.matrices)):
            lines.append(f"seen_apart = seen & ({row}[:, None] > {row}[None, :] + 1)")
        lines += dict.fromkeys(
            f"{names[role]} = ({self.full(role)} * {factors[role]}).to(dtype)" for role in self.roles
        )
        for matrix in self.matrices:
            reader, writer = names[matrix.reader], names[matrix.writer]
            seen = "seen_apart" if self._apart(matrix) else "seen"
            lines += self._pair(matrix, seen, reader, writer, factors[matrix.reader], "decay")
        return lines

    def _pair(
        self,
        matrix: Score,
        seen: str,
        reader: str,
        writer: str,
        reading: str = "",
        writing: str = "",
        *,
        decays: bool = True,
    ) -> list[str]:
        """What the rows of one matrix get from one another; what they then have in common with their gradients is made
        of the same rounded rows, so that what they share cancels in the sums over tokens."""
        place, _ = Array("", ("CHUNK", "CHUNK")).place(self.row_index, self.key_index, "")
        part, written = PARTS[matrix.reader], PARTS[matrix.writer]
        lines = [
            f"pairs = tl.load({matrix.name}_gradient_ptr + {place}, mask={seen}, other=0.0)",
            f"onto_reader = tl.dot(pairs, {writer}, {DOT})",
            f"{part} += onto_reader{f' * {reading}' if reading else ''}",
            f"onto_writer = tl.dot(tl.trans(pairs), {reader}, {DOT})",
            f"{written} += onto_writer{f' * {writing}' if writing else ''}",
        ]
        if decays and self.backward.decays:
            lines.insert(3, f"{self.common(matrix.reader)} += {reader} * onto_reader")
            lines.append(f"common -= {writer} * onto_writer")
        return lines
