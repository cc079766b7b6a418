"""The kernel of the backward that has a program for every chunk, as source lines."""

from __future__ import annotations

from flagen.backends.printed import Printed, common_factor, product, total
from flagen.backends.triton_.backward_column import PARTS, ColumnGradients
from flagen.backends.triton_.backward_rows import Scores
from flagen.backends.triton_.backward_walks import compile_time, trimmed
from flagen.backends.triton_.rows import DOT, RowKernel, pointers, scalars, steps_symbol
from flagen.plan.backward_levels import (
    BLOCK,
    COLUMN_SCALE_GRADIENT,
    DECAY_GRADIENT,
    HEAD,
    KEYS,
    OUTPUT_GRADIENT,
    R_GRADIENT,
    ROLES,
    SHARED,
    Action,
    Add,
    Fold,
    Gradient,
    Level,
    Store,
    scale_gradient,
    vector_gradient,
)
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.row_planner import Part
from flagen.plan.rows import ROW, TOKEN
from flagen.plan.tiles import Tile, tiles_in
from flagen.spec.model import Input, Param

KERNEL_CHOICES = ("MEMBERS", "WANTS_KEYS", "WANTS_VALUES")
"""What the last kernel is compiled for beside sizes: value heads of a key head, and which gradients are asked for."""


class Gradients(ColumnGradients, RowKernel[ChunkKernelPlan]):
    """The kernel that has a program for every chunk."""

    def __init__(self, plan: ChunkBackwardPlan) -> None:
        super().__init__(plan, plan.keys, plan.heads, plan.values, plan.keys_written)
        self.started: set[str] = set()

    # -------------------------------------------------------------------------------------------------------- the frame

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_gradients_kernel"

    def parameters(self) -> list[str]:
        plan = self.plan
        rider = self.backward.rider
        across = () if rider is None else (rider.after, rider.before)
        every = (*self.parts, self.backward.after, self.backward.before, *across)
        names = [*pointers(plan, *every), "do", "cu_seqlens", "chunk_sequence", "first_chunk", "states"]
        names += ["state_gradients", *(["U", R_GRADIENT] if plan.delta is not None else [])]
        names += [] if rider is None else ["column", "column_gradients", "column_states", "column_state_gradients"]
        names += [gradient.called for gradient in self.backward.stored]
        sizes = [f"{name}: tl.constexpr" for name in (*compile_time(plan), *KERNEL_CHOICES)]
        numbers = [*scalars(plan, *every), *([] if rider is None else ["shares"])]
        return [*(f"{name}_ptr" for name in names), *numbers, "T", *sizes]

    def sections(self) -> dict[str, list[str]]:
        keys, heads, values, _ = self.parts
        sections = {
            "start": [*map(self._zero, self.backward.zeros[SHARED]), *self._sums_over_keys()],
            "key_block": [*self.given(keys, SHARED, KEYS), *self.operands(*ROLES), *self._vector_zeros()],
            "head": [*self.given(heads, SHARED, HEAD), *self.factors(), *self._column_states(), *self._part_zeros()],
            "states_block": self._block(heads),
            "products": self._state_products(),
            "states_end": [*self._vectors(), *self._state_factors()],
            "head_end": [*self._dots(), *self._onto_vectors()],
            "keys_end": self._actions(KEYS),
        }
        values_sections = {
            "values_head": [*self.given(values, SHARED, HEAD), *self._values_factors(), *self._values_column()],
            "values_zeros": self._values_zeros(),
            "values_keys": self._values_keys(),
            "values_scores": [
                *self._values_operands(),
                *map(self._zero, self.backward.zeros[HEAD]),
                *([f"{scale_gradient('v')} = {self._zeros('CHUNK')}"] if self._has_gradient("v") else []),
            ],
            "values_block": self._values_block(values),
            "values_keys_again": self._key_again(),
            "values_end": [*self._values_end(), *self._actions(BLOCK)],
            "values_head_end": [*self._taken(), *self._actions(HEAD)],
        }
        last = {"end": self._actions(SHARED)}
        used = (line for lines in last.values() for line in lines)
        read = [line for matrix in self.matrices() for lines in matrix.values() for line in lines]
        return trimmed({**sections, **trimmed(values_sections, *used), **last}, *read)

    def matrices(self) -> list[dict[str, list[str]]]:
        """What rows of a chunk get from one another, matrix by matrix: two at a time would not fit the registers."""
        return [
            trimmed(
                {
                    "zeros": [f"{matrix.gradient} = {self._zeros(self._rows_of(matrix.reader), 'CHUNK')}"],
                    "block": [*self._block(self.parts[1]), self._score_product(matrix)],
                    "onto_rows": [*self._column_onto_scores(matrix.gradient), *self._onto_rows(matrix)],
                }
            )
            for matrix in self._matrices
        ]

    def _zero(self, gradient: Gradient) -> str:
        self.started.add(gradient.called)
        return f"{gradient.called} = {self._zeros(*(self._extent(dim) for dim in gradient.dims))}"

    def _zeros(self, *sizes: str) -> str:
        if not sizes:
            return "tl.full((), 0.0, tl.float32)"
        return f"tl.zeros(({', '.join(sizes)}{',' if len(sizes) == 1 else ''}), tl.float32)"

    def _extent(self, dim: str) -> str:
        if dim == TOKEN:
            return "BLOCK_TOKENS" if self.grouped else "CHUNK"
        return "CHUNK" if dim == ROW else f"BLOCK_{dim}"

    def _rows_of(self, role: str) -> str:
        return self._extent(self.plan.axis_of(role))

    @property
    def _roles(self) -> list[str]:
        """The rows along the keys that there are."""
        return [role for role in ROLES if self.plan.vector(role) is not None]

    @property
    def _matrices(self) -> tuple[Scores, ...]:
        if self.plan.delta is None:
            return (Scores("scores", "q", "k", seen=True),)
        own = (Scores("scores", "q", "w", seen=True), Scores("erasures", "y", "w", seen=False))
        if self.plan.write_key is None:
            return own
        return (*own, Scores("write_scores", "q", "k", seen=True), Scores("erased_writes", "y", "k", seen=False))

    def _own_scale(self, role: str) -> Printed | None:
        """What scales the rows of `role` and is not in what they get; the values' scale is in what their keys get."""
        scale = None if role == "k" else self.scale(role)
        return scale and scale.of_rows()

    def _has_gradient(self, role: str) -> bool:
        """Whether what scales the rows of `role`, and is not in what they get, has a gradient."""
        return role in self.backward.scaled and role != "k"

    def _decayed(self, matrix: Scores, text: str) -> Printed:
        """The matrix `text` with the decay between its rows."""
        decay = Printed(self.between(matrix.reader)) if self.decaying else None
        return product(Printed(text), decay)

    # ---------------------------------------------------------------------------------------------- a block of the keys

    def _sums_over_keys(self) -> list[str]:
        """What blocks of the keys add up to, for each value head: gradients of sums of log decays and of scales."""
        lines = []
        if self.backward.decays:
            lines.append(f"row_sums = {self._zeros('CHUNK', 'MEMBERS')}")
            if self.grouped:
                lines.append(f"read_sums = {self._zeros('BLOCK_TOKENS', 'MEMBERS')}")
            lines.append(f"pair_sums = {self._zeros(self._extent(TOKEN), 'MEMBERS')}")
            lines.append(f"kept_sums = {self._zeros('CHUNK', 'MEMBERS')}")
            lines.append(f"end_sums = {self._zeros('MEMBERS')}")
        for role in self._roles:
            if self._has_gradient(role):
                lines.append(f"{role}_dots = {self._zeros(self._rows_of(role), 'MEMBERS')}")
        return lines

    def _vector_zeros(self) -> list[str]:
        named = {vector_gradient(self.plan, role): role for role in reversed(self._roles)}
        return [f"{name} = {self._zeros(self._rows_of(role), f'BLOCK_{self.key}')}" for name, role in named.items()]

    def _block(self, part: Part) -> list[str]:
        """What is loaded of a block of values."""
        operands = self.operands("v") if self.plan.write_key is not None else []
        rows = [*self.stored_rows("U"), *self.stored_rows(R_GRADIENT)]
        return [*self.given(part, BLOCK), *operands, *self.read_gradient(), *rows]

    def _score_product(self, matrix: Scores) -> str:
        reader = {"q": "read_operand", "y": R_GRADIENT}[matrix.reader]
        writer = "U" if matrix.writer == "w" else self.operand("v")
        return f"{matrix.gradient} = tl.dot({reader}, tl.trans({writer}), {matrix.gradient}, {DOT})"

    def _values_scale(self, matrix: Scores) -> Printed | None:
        """What scales the values that a matrix' columns write, where that is not in its gradient already."""
        return None if matrix.writer == "w" or self._scales_apart else self.scale("v")

    def _vector(self, role: str) -> str:
        """The rows of `role`, with what scales them, as an operand."""
        return self.operand(role) if self._own_scale(role) is None else f"{role}_scaled"

    def _vectors(self) -> list[str]:
        """Those that are not there yet."""
        scales = ((role, self._own_scale(role)) for role in self._roles)
        return [
            f"{self._vector(role)} = ({product(Printed(self._wide(role)), scale).text}).to(dtype)"
            for role, scale in scales
            if scale is not None
        ]

    def _part_zeros(self) -> list[str]:
        lines = [f"{PARTS[role]} = {self._zeros(self._rows_of(role), f'BLOCK_{self.key}')}" for role in self._roles]
        sums = {"pair_sum": (self._extent(TOKEN),), "state_dot": ()} if self.backward.decays else {}
        return [*lines, *(f"{name} = {self._zeros(*sizes)}" for name, sizes in sums.items())]

    def _state_products(self) -> list[str]:
        operands = {"q": "read_operand", "y": R_GRADIENT, "w": "U"}
        if self.plan.write_key is not None:
            operands["k"] = self.operand("v")
        lines = []
        for role in self._roles:
            state = self.state if role in ("q", "y") else "S_gradient"
            lines.append(f"{PARTS[role]} = tl.dot({operands[role]}, {state}, {PARTS[role]}, {DOT})")
        if self.backward.decays:
            lines.append(f"state_dot += tl.sum({self.state}.to(tl.float32) * S_gradient.to(tl.float32))")
        return lines

    def _state_factors(self) -> list[str]:
        """Decays of what comes from the states, and what of it the decay of the whole chunk has in common with."""
        factors = {"q": self.start_of("q"), "y": self.start_of("y"), "w": self.to_end}
        factors["k"] = common_factor(self.scale("v"), self.to_end)
        lines = [f"{PARTS[role]} *= {factor.of_rows().text}" for role in self._roles if (factor := factors[role])]
        if self.plan.rider is not None:
            lines = self._column_onto_keys(lines)
        if self.backward.decays:
            kept = []
            for role in (role for role in self._roles if role in ("w", "k")):
                kept.append(Printed(f"tl.sum({self._common(role, PARTS[role])}, axis=1)"))
            lines.append(f"kept_sums += put({total(*kept).text}, member, MEMBERS)")
            lines.append("end_sums += tl.where(members == member, whole * state_dot, 0.0)")
            started: set[str] = set()
            for role in (role for role in self._roles if role in ("q", "y")):
                lines.append(self._sum(role, PARTS[role], "+=" if self._sum_of(role) in started else "="))
                started.add(self._sum_of(role))
            if "row_sum" not in started:
                lines.append(f"row_sum = {self._zeros('CHUNK')}")
        return lines

    def _wide(self, role: str) -> str:
        return f"{self.operand(role)}.to(tl.float32)"

    def _common(self, role: str, part: str) -> str:
        """What the rows of `role` have in common with `part` of their gradients, before sums over the keys."""
        return f"{self._vector(role)}.to(tl.float32) * {part}"

    def _sum(self, role: str, part: str, sign: str) -> str:
        return f"{self._sum_of(role)} {sign} tl.sum({self._common(role, part)}, axis=1)"

    def _sum_of(self, role: str) -> str:
        if self.reads_before(role):
            return "erased_sum"
        return "read_sum" if role == "q" and self.grouped else "row_sum"

    def _onto_rows(self, matrix: Scores) -> list[str]:
        """What rows that read and rows that wrote get from one another."""
        gradient, operand, scale = matrix.gradient, f"{matrix.name}_operand", self._values_scale(matrix)
        scaled = product(self._decayed(matrix, gradient), scale and scale.of_columns())
        reader, writer = PARTS[matrix.reader], PARTS[matrix.writer]
        return [
            f"{gradient} = tl.where({self.mask(matrix)}, {scaled.text}, 0.0)",
            *(self._pairs(matrix) if self.backward.decays else []),
            f"{operand} = {gradient}.to(dtype)",
            f"{reader} = tl.dot({operand}, {self._vector(matrix.writer)}, {reader}, {DOT})",
            f"{writer} = tl.dot(tl.trans({operand}), {self._vector(matrix.reader)}, {writer}, {DOT})",
        ]

    def _pairs(self, matrix: Scores) -> list[str]:
        """What a decay has a part in: pairs of a row that reads after it and one written before it.

        What rows have in common with their gradients has all other pairs in it, too, and twice: they cancel but for
        their rounding, which is the same for all earlier tokens.
        """
        common = f"tl.dot({self._vector(matrix.reader)}, tl.trans({self._vector(matrix.writer)}), {DOT})"
        steps = f" // {steps_symbol(self.plan)}" if self.grouped else ""
        row, token = self.axes.index(self.row), self.axes.index(TOKEN)
        last = token if matrix.reader == "q" else f"{row}{steps}"
        last += " - 1" if self.reads_before(matrix.reader) else ""
        return [
            f"pairs = {common} * {matrix.gradient}",
            f"pair_sum += sum_of_pairs(pairs, {last}, {row}{steps}, {token}, PRECISION, dtype)",
        ]

    def _dots(self) -> list[str]:
        """What rows have in common with their gradients: the gradients of what scales them, and of their decays."""
        sums = ["row_sum", *(["read_sum"] if self.grouped else []), "pair_sum"] if self.backward.decays else []
        before = ["row_sum += onto_row_before(erased_sum, CHUNK)"] if sums and self.plan.erases_before else []
        return [
            *before,
            *(f"{name}s += put({name}, member, MEMBERS)" for name in sums),
            *(
                f"{role}_dots += put(tl.sum({self._wide(role)} * {PARTS[role]}, axis=1), member, MEMBERS)"
                for role in self._roles
                if self._has_gradient(role)
            ),
        ]

    def _onto_vectors(self) -> list[str]:
        lines = []
        for role in self._roles:
            scaled = product(Printed(PARTS[role]), self._own_scale(role))
            lines.append(f"{vector_gradient(self.plan, role)} += {scaled.text}")
        return lines

    # ------------------------------------------------------------------------------------------------------- the values

    @property
    def _written(self) -> tuple[Scores, ...]:
        """The matrices through which values that are written are read."""
        return tuple(matrix for matrix in self._matrices if matrix.writer == "k")

    def _values_factors(self) -> list[str]:
        return self.factors() if self._written else []

    def _values_zeros(self) -> list[str]:
        column = [f"column_keys = {self._zeros('CHUNK')}"] if self._varies_column else []
        return [*(f"{m.name} = {self._zeros(self._rows_of(m.reader), 'CHUNK')}" for m in self._written), *column]

    def _values_keys(self) -> list[str]:
        if not self._written:
            return []
        products = [
            f"{m.name} = tl.dot({self.operand(m.reader)}, tl.trans({self.operand('k')}), {m.name}, {DOT})"
            for m in self._written
        ]
        column = []
        if self._varies_column:
            product = f"{self._wide('k')} * column_state_gradient[None, :]"
            column = [*self._column_state_gradient(), f"column_keys += tl.sum({product}, axis=1)"]
        return [*self.given(self.parts[0], SHARED, KEYS), *self.operands(*ROLES), *products, *column]

    def _key_again(self) -> list[str]:
        """The keys that values are written along, beside a block of values."""
        if not self._written:
            return []
        keys = self.backward.keys_written
        return [*self.given(keys, SHARED, KEYS), *self.operands("k")]

    def _values_operands(self) -> list[str]:
        lines = []
        for m in self._written:
            scale = self.scale(m.reader)
            scaled = product(self._decayed(m, m.name), scale and scale.of_rows())
            scores = f"tl.where({self.mask(m)}, {scaled.text}, 0.0)"
            if self._varies_column:
                lines.append(f"{m.name} = {scores}")
                read = Printed(f"tl.sum({m.name} * column_gradient[:, None], axis=0)")
                left = product(Printed("column_keys"), self.to_end)
                lines.append(f"{COLUMN_SCALE_GRADIENT} = {total(read, left).text}")
                scores = m.name
            lines.append(f"{m.name} = {scores}.to(dtype)")
        return lines

    # ----------------------------------------------------------------------------- the vector state that rides along

    def _values_block(self, part: Part) -> list[str]:
        offset, mask = self.tile("token * HV + value_head", TOKEN, (self.value,))
        lines = self.given(part, BLOCK)
        if self._written:
            lines += [
                *self.operands("v"),
                *self.read_gradient(),
                f"v_gradient = {self._zeros('CHUNK', f'BLOCK_{self.value}')}",
            ]
        else:
            lines.append(f"{OUTPUT_GRADIENT} = tl.load(do_ptr + {offset}, mask={mask}, other=0.0).to(tl.float32)")
        widened = [f"{line}.to(tl.float32)" for line in self.stored_rows(R_GRADIENT)]
        return [*lines, *widened]

    def _values_end(self) -> list[str]:
        if not self._written:
            return []
        lines = [f"v_gradient *= {self.to_end.of_rows().text}"] if self.to_end else []
        operands = {"q": "read_operand", "y": f"{R_GRADIENT}.to(dtype)"}
        for m in self._written:
            lines.append(f"v_gradient = tl.dot(tl.trans({m.name}), {operands[m.reader]}, v_gradient, {DOT})")
        scale = self.scale("v")
        if scale:
            wide = f"{self.operand('v')}.to(tl.float32)"
            if self._has_gradient("v"):
                lines.append(f"{scale_gradient('v')} += tl.sum({wide} * v_gradient, axis=1)")
            lines.append(f"v_gradient *= {scale.of_rows().text}")
        return lines

    def _taken(self) -> list[str]:
        """The gradients of what scales a value head's rows, and of its log decays."""
        lines = []
        for role in self._roles:
            if self._has_gradient(role):
                lines.append(f"{scale_gradient(role)} = take({role}_dots, member, MEMBERS)")
        if not self.backward.decays:
            return lines
        sums = "take(row_sums, member, MEMBERS)"
        if self.grouped:
            of_rows = f"sum_of_steps({sums}, {steps_symbol(self.plan)}, BLOCK_TOKENS)"
            sums = f"take(read_sums, member, MEMBERS) + {of_rows}"
        mask, token = self.axes.mask(TOKEN), self.axes.index(TOKEN)
        rows = f"({self.axes.index(ROW)} // {steps_symbol(self.plan)})" if self.grouped else token
        return [
            *lines,
            # A decay takes part in what earlier rows kept until the chunk's end; sums of all of them would be coarser.
            "kept = take(kept_sums, member, MEMBERS)",
            f"kept = tl.sum(tl.where({token}[:, None] > {rows}[None, :], kept[None, :], 0.0), axis=1)",
            "kept += tl.sum(tl.where(members == member, end_sums, 0.0), axis=0)",
            f"{DECAY_GRADIENT} = tl.cumsum({sums}, axis=0, reverse=True) + kept",
            f"{DECAY_GRADIENT} += take(pair_sums, member, MEMBERS)",
            f"{DECAY_GRADIENT} = tl.where({mask}, {DECAY_GRADIENT}, 0.0)",
        ]

    # ---------------------------------------------------------------------------------------------------------- actions

    def _actions(self, level: Level) -> list[str]:
        return [line for action in self.backward.actions[level] for line in self._action(action)]

    def _action(self, action: Action) -> list[str]:
        match action:
            case Add(target, value):
                shape = () if target.called in self.started else map(self._extent, target.dims)
                return [self._add(target, self.added(value, _axis_in(value), target.dims, shape))]
            case Fold(target, source):
                steps = f"sum_of_steps({source.called}, {steps_symbol(self.plan)}, BLOCK_TOKENS)"
                return [self._add(target, steps)]
            case Store(target):
                return [f"if {target.called}_ptr is not None:", f"    {self._store(target)}"]

    def _add(self, target: Gradient, text: str) -> str:
        if target.called in self.started:
            return f"{target.called} += {text}"
        self.started.add(target.called)
        return f"{target.called} = {text}"

    def _store(self, gradient: Gradient) -> str:
        declared: tuple[Input | Param, ...] = (*self.plan.spec.inputs, *self.plan.spec.params)
        source = next(decl for decl in declared if decl.name == gradient.name)
        pointer = f"{gradient.called}_ptr"
        shared = gradient.level in (SHARED, KEYS)
        if isinstance(source, Input):
            heads, head = ("H", "key_head") if shared else ("HV", "value_head")
            place = "row" if source.per == "step" else "token"
            offset, mask = self.tile(f"{place} * {heads} + {head}", gradient.axis, source.dims)
        else:
            offset = self.axes.address("chunk * H + key_head" if shared else "chunk_row", source.dims)
            mask = self.axes.within(source.dims)
        where = f", mask={mask}" if mask else ""
        return f"tl.store({pointer} + {offset}, {gradient.called}.to({pointer}.dtype.element_ty){where})"


def _axis_in(tile: Tile) -> str:
    """The axis of a chunk that something in `tile` lies along."""
    dims = [dim for part in tiles_in(tile) for dim in part.dims]
    return next((axis for axis in (TOKEN, ROW) if axis in dims), "")
