"""The kernel that puts out what a right read reads: a vector over the keys, decayed on its own side of the products."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.triton_.key_rows import LOG2_E, KeyRows, arrays, indented
from flagen.backends.triton_.lines import live, names_in
from flagen.backends.triton_.rows import DOT, PrintedKernel, is_input, pointers, scalars
from flagen.backends.triton_.walk import PACKING
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import RowLoad, RowSet
from flagen.plan.rows import TOKEN
from flagen.plan.schedule import Load, Set
from flagen.plan.tiles import Value


class RightOutput(KeyRows, PrintedKernel[KeyKernelPlan]):
    """Owns a block of keys of one chunk, for which it passes over the values once."""

    def __init__(self, plan: KeyKernelPlan) -> None:
        assert plan.outputs is not None
        super().__init__(plan, plan.outputs, plan.prepare.part)
        self.part = plan.outputs
        self.value = plan.value
        self.key_roles = ("w", "k")
        self.writers = {"w": "scores", "k": "write_scores" if plan.delta is not None else "scores"}
        self.writers = {role: name for role, name in self.writers.items() if plan.vector(role) is not None}

    def _raw(self, load: RowLoad) -> bool:
        plain = [self.plan.vector(role) for role in ("q", "v")]
        return any(isinstance(tile, Value) and tile.name == load.source.name for tile in plain)

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_output_kernel"

    def context(self) -> Mapping[str, object]:
        """What a template needs to know of the kernel."""
        body = self.body()
        return {
            "kernel": self.kernel,
            "parameters": self.parameters(),
            "once": self._once(),
            "body": body,
            "indices": self.indices(),
            "places": self.places(),
            "split": self.key,
            "key_heads": "key_head" in names_in(*body),
            "dtype_of": "states",
        }

    def lines(self) -> list[str]:
        return [*self._once(), *self.body()]

    def parameters(self) -> list[str]:
        plan, given = self.plan, names_in(*self.lines()) | {"cu_seqlens_ptr", "chunk_sequence_ptr", "first_chunk_ptr"}
        candidates = [
            *pointers(plan, *self.parts),
            *PACKING,
            *(array.name for array in arrays(plan)),
            "states",
            "U",
            "o",
        ]
        found = [f"{name}_ptr" for name in candidates if f"{name}_ptr" in given or name == "states"]
        numbers = [name for name in scalars(plan, *self.parts) if name in given]
        heads = ["H", "HV"] if {"H", "key_head"} & given else ["HV"]
        decays = (
            ["LEVELS", *([] if plan.leaf.is_one else ["LEAF_LEVELS"]), "TERMS"] if plan.log_decay is not None else []
        )
        tiles = [self.key, self.value, "CHUNK", f"BLOCK_{self.key}", f"BLOCK_{self.value}", *decays, "PRECISION"]
        return [*found, *numbers, "T", *(f"{name}: tl.constexpr" for name in (*heads, *tiles))]

    def body(self) -> list[str]:
        return live([*self._over_values(), "", *self._keys(), *self._decayed_reads(), *self._put()])

    def _once(self) -> list[str]:
        fixed = [*self.part.once, *self.plan.prepare.once]
        lines = self.fixed(
            [x for x in fixed if not self._over(x, self.value, self.key)],
            reads_head=self.part.reads_head or self.plan.prepare.part.reads_head,
        )
        return live(lines, names_in(*self.body()))

    def _over(self, action: Load | Set | RowLoad | RowSet, *dims: str) -> bool:
        over = action.value.dims if isinstance(action, Set | RowSet) else action.source.dims
        return bool(set(over) & set(dims))

    def _numbers(self) -> list[str]:
        """What has neither values nor keys: one number for each row."""
        prepared = [array for array in arrays(self.plan) if array.dims == ("CHUNK",)]
        rows = [row for row in self.part.rows if not self._over(row, self.value, self.key)]
        return [
            *(array.loaded(self.row_index, self.key_index, self.axes.mask(self.key)) for array in prepared),
            *self.rows(list(dict.fromkeys((*self.plan.prepare.rows, *rows)))),
        ]

    # ---------------------------------------------------------------------------------------------------------- values

    def _over_values(self) -> list[str]:
        """Scores of the reads with what was written, and their reads of the state before the chunk."""
        value, mask = self.axes.index(self.value), self.axes.mask(self.value)
        names = dict.fromkeys(self.writers.values())
        rows = [row for row in self.part.rows if self._over(row, self.value)]
        once = [action for action in self.part.once if self._over(action, self.value)]
        return [
            *(f"{name} = tl.zeros((CHUNK, CHUNK), tl.float32)" for name in names),
            f"read = tl.zeros((CHUNK, BLOCK_{self.key}), tl.float32)",
            *self._block_of_keys(),
            *self._numbers(),
            f"for value_start in range(0, {self.value}, BLOCK_{self.value}):",
            *indented(
                [
                    f"{value} = value_start + tl.arange(0, BLOCK_{self.value})",
                    f"{mask} = {value} < {self.value}",
                    *self.fixed(once),
                    *self.rows(rows),
                    *self._operand("q"),
                    *self._state_and_updates(),
                    *self._scores(),
                ]
            ),
        ]

    def _block_of_keys(self) -> list[str]:
        return [
            f"{self.key_index} = block * BLOCK_{self.key} + tl.arange(0, BLOCK_{self.key})",
            f"{self.axes.mask(self.key)} = {self.key_index} < {self.key}",
        ]

    def _operand(self, role: str) -> list[str]:
        tile = self.plan.vector(role)
        if is_input(tile):
            return [f"{role}_operand = tl.trans({self.operand(role)})"]
        return [] if tile is None else [f"{role}_operand = tl.trans({self.print(tile, TOKEN)}).to(dtype)"]

    def _state_and_updates(self) -> list[str]:
        value, mask = self.axes.index(self.value), f"{self.axes.mask(self.value)}[:, None]"
        arrays = [("S", "states", self.key, self.key_index, f"{mask} & {self.axes.mask(self.key)}[None, :]")]
        if self.plan.delta is not None:
            arrays.append(("U", "U", "CHUNK", self.row_index, mask))
        lines = []
        for operand, array, size, index, within in arrays:
            place = f"chunk_row * ({self.value} * {size}) + {value}[:, None] * {size} + {index}[None, :]"
            lines.append(f"{operand}_operand = tl.load({array}_ptr + {place}, mask={within}, other=0.0)")
        return lines

    def _scores(self) -> list[str]:
        lines = [f"read = tl.dot(q_operand, S_operand, read, {DOT})"]
        for role, name in self.writers.items():
            vector = self.plan.vector("v")
            if role == "w" or vector is None:
                written = "U_operand"
            else:
                written = self.operand("v") if is_input(vector) else f"({self.print(vector, TOKEN)}).to(dtype)"
            lines.append(f"{name} = tl.dot(q_operand, {written}, {name}, {DOT})")
        return lines

    # ------------------------------------------------------------------------------------------------------------ keys

    def _keys(self) -> list[str]:
        """The rows of the block of keys."""
        rows = [row for row in self.part.rows if self._over(row, self.key)]
        once = [action for action in self.part.once if self._over(action, self.key)]
        return [*self.fixed(once), *self.rows(rows), *self.of_keys()]

    def _decayed_reads(self) -> list[str]:
        """What is read of the chunk itself: scores times rows, whose decay belongs to the keys, not to the scores."""
        plan = self.plan
        lines = []
        for role, name in self.writers.items():
            factor = self.factor(role, columns=True)
            lines += [f"{name} *= {factor.text}"] if factor else []
        sees = self.rows_where(">=" if plan.reads_itself else ">")
        if plan.log_decay is None:
            return [*lines, *(self._read(f"tl.where({sees}, {{}}, 0.0)", "", role) for role in self.writers)]
        lines.append(f"read *= decay_over({self.rows_where('>=' if plan.read_after else '>')}, log_decay, TERMS)")
        if plan.leaf.is_one:
            lines += self._diagonals() if plan.reads_itself else []
            levels = "LEVELS"
        else:
            lines += self._leaf(sees)
            levels = "LEAF_LEVELS, LEVELS"
        level = [
            f"decay = decay_to_cut({self.row_index}, level, log_decay, {int(plan.read_after)}, TERMS)",
            f"seen = seen_across_cut({self.row_index}, level)",
            *(self._read("tl.where(seen, {}, 0.0)", "decay", role) for role in self.writers),
        ]
        return [*lines, f"for level in range({levels}):", *indented(level)]

    def _diagonals(self) -> list[str]:
        here = self.rows_where("==")
        return [
            f"read += tl.sum(tl.where({here}, {name}, 0.0), axis=1)[:, None] * {self.operand(role)}"
            for role, name in self.writers.items()
        ]

    def _leaf(self, sees: str) -> list[str]:
        lines = [
            "LEAF: tl.constexpr = 1 << LEAF_LEVELS",
            f"exponent = from_middle({self.row_index}, log_decay, LEAF, TERMS)",
            "writing = tl.exp2(-exponent)",
            f"near = ({self.row_index}[:, None] // LEAF == {self.row_index}[None, :] // LEAF) & ({sees})",
        ]
        exponent = "exponent" if self.plan.read_after else f"exponent - log_decay * {LOG2_E}"
        lines.append(f"reading = tl.exp2({exponent})")
        return [*lines, *(self._read("tl.where(near, {}, 0.0)", "reading", role, "writing") for role in self.writers)]

    def _read(self, masked: str, reading: str, role: str, writing: str = "") -> str:
        factor = writing or reading
        row = f"({self.operand(role)} * {factor})" if factor else self.operand(role)
        product = f"tl.dot({masked.format(self.writers[role])}.to(dtype), {row}.to(dtype), {DOT})"
        return f"read += {reading} * {product}" if reading else f"read += {product}"

    def _put(self) -> list[str]:
        offset, mask = self.tile("token * HV + value_head", TOKEN, (self.key,))
        scale = self.factor("q")
        return [
            *([f"read *= {scale.text}"] if scale else []),
            f"o = {self.print(self.plan.output, TOKEN)}",
            f"tl.store(o_ptr + {offset}, o.to(o_ptr.dtype.element_ty), mask={mask})",
        ]
