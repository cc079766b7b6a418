"""What the last kernel of the backward has for a vector state that rides along: one more column of the values."""

from __future__ import annotations

from flagen.backends.printed import Printed, product, total
from flagen.backends.triton_.backward_rows import AcrossColumn, BackwardRows

PARTS = {"q": "read_part", "y": "erased_part", "w": "written_part", "k": "values_part"}
"""What each row along the keys gets, before what scales it."""


class ColumnGradients(BackwardRows):
    """The lines of a kernel that are there for the column alone; none where nothing rides."""

    def _column_onto_keys(self, factors: list[str]) -> list[str]:
        """What q and k get through the vector state that rides along, around the factors of what the matrix gives."""
        keys, row = Printed("column_state_gradient[None, :]"), self.column_scale_of(columns=False, decay=self.to_end)
        keys = keys if row is None else product(row, keys)
        return [
            f"{PARTS['q']} += column_gradient[:, None] * {self.column_state}[None, :]",
            *factors,
            f"{PARTS['k']} += {keys.text}",
            *([f"state_dot += tl.sum({self.column_state} * column_state_gradient)"] if self.backward.decays else []),
        ]

    @property
    def _varies_column(self) -> bool:
        """Whether what the column is has a gradient."""
        return self.backward.rider is not None and self.backward.rider.varied

    @property
    def _scales_apart(self) -> bool:
        """Whether what scales the values has to go onto the gradient of the scores before the column's share does."""
        rider = self.plan.rider
        return rider is not None and not rider.shares and (rider.scale is not None or bool(self.scale("v")))

    def _values_column(self) -> list[str]:
        return [self.column_gradient()] if self._varies_column else []

    def _column_states(self) -> list[str]:
        """A block of the vector state before the chunk and of its gradient after it, and the gradient of what is read
        of it."""
        if self.backward.rider is None:
            return []
        key, mask, z = self.axes.index(self.key), self.axes.mask(self.key), self.column_state
        place = f"column_states_ptr + (state * HV + value_head) * {self.key} + {key}"
        after = ", ".join(AcrossColumn(self.backward, after=True).step(declared=False))
        return [
            self.column_gradient(),
            f"{z} = tl.load({place}, mask={mask}, other=0.0)",
            "for earlier in range(first, start, TOKENS):",
            f"    {z} = column_across({after})",
            *self._column_state_gradient(),
        ]

    def _column_state_gradient(self) -> list[str]:
        key, mask = self.axes.index(self.key), self.axes.mask(self.key)
        place = f"column_state_gradients_ptr + (state * HV + value_head) * shares * {self.key} + {key}"
        before = ", ".join(AcrossColumn(self.backward, after=False).step(declared=False))
        return [
            f"column_state_gradient = sum_of_shares({place}, {self.key}, shares, {mask})",
            "for back in range(0, last - start, TOKENS):",
            "    later = last - back",
            f"    column_state_gradient = column_gradient_across({before})",
        ]

    def _column_onto_scores(self, gradient: str) -> list[str]:
        """The column's share of the gradient of the scores: as that of one more value."""
        rider = self.plan.rider
        if rider is None:
            return []
        if not self._scales_apart:
            return [f"{gradient} += column_gradient[:, None]"]
        scale = self.scale("v")
        values = product(Printed(gradient), scale and scale.of_columns())
        column = product(Printed("column_gradient[:, None]"), self.column_scale_of(columns=True))
        return [f"{gradient} = {total(values, column).text}"]
