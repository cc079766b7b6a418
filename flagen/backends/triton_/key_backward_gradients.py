"""The last kernel of the backward for decays of each key, which has a program for every chunk, as source lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flagen.backends.printed import Printed, product, total
from flagen.backends.triton_.key_backward_pairs import PARTS, Pairs
from flagen.backends.triton_.key_backward_walks import scaled_rows
from flagen.backends.triton_.key_rows import LOG2_E, Array, Score, decay_tiles
from flagen.backends.triton_.lines import live, names_in
from flagen.backends.triton_.rows import DOT, PrintedKernel, pointers, scalars
from flagen.plan.backward_levels import (
    BLOCK,
    DECAY_GRADIENT,
    HEAD,
    KEYS,
    OUTPUT_GRADIENT,
    R_GRADIENT,
    READ_GRADIENT,
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
from flagen.plan.key_backward import OWN, KeyBackwardPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import Part, RowLoad, RowSet
from flagen.plan.rows import TOKEN
from flagen.plan.schedule import Load, Set
from flagen.plan.tiles import Tile, Value, tiles_in
from flagen.spec.model import Dims, Input, Param


@dataclass(frozen=True)
class ValuePass:
    """What is done before a pass over blocks of values, with each block, with each block of keys beside it, with the
    block again, and after the pass."""

    before: list[str]
    block: list[str]
    after: list[str]
    keys: list[str] = field(default_factory=list)
    end: list[str] = field(default_factory=list)


class KeyGradients(Pairs, PrintedKernel[KeyKernelPlan]):
    """The kernel that has a program for every chunk of a key head."""

    def __init__(self, plan: KeyBackwardPlan) -> None:
        super().__init__(plan)
        self.value = self.plan.value
        self.state = self.name(self.plan.spec.states[0].name)
        self.started: set[str] = set()

    def _raw(self, load: RowLoad) -> bool:
        vector = self.plan.vector("v")
        return isinstance(vector, Value) and vector.name == load.source.name

    def tile(self, row: str, axis: str, dims: Dims) -> tuple[str, str]:
        """Rows from the address of a chunk's first on, as `_load` has those over the keys."""
        found = re.fullmatch(r"token \* (HV?) \+ (\w+)", row)
        if found is None:
            return super().tile(row, axis, dims)
        heads, head = found.groups()
        if not dims:
            return f"start * {heads} + {head} + {self.row_index} * {heads}", self.axes.mask(axis)
        (dim,) = dims
        within = f"{self.row_index}[:, None] * ({heads} * {dim}) + {self.axes.index(dim)}[None, :]"
        return f"(start * {heads} + {head}) * {dim} + {within}", self.axes.within((axis, dim))

    # -------------------------------------------------------------------------------------------------------- the frame

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_gradients_kernel"

    def context(self) -> Mapping[str, object]:
        """What a template needs to know of the kernel."""
        sections = self.sections()
        text = _lines(sections)
        return {
            "kernel": self.kernel,
            "parameters": self.parameters(),
            "members": any("members" in line for line in text),
            "ends_by_chunk": "chunk_row" in names_in(*self._head_end()),
            **sections,
        }

    def parameters(self) -> list[str]:
        plan, text = self.plan, names_in(*self.lines())
        arrays = ["U", R_GRADIENT, *(array.name for array in self._prepared())]
        names = [*pointers(plan, *self.parts), "do", "cu_seqlens", "chunk_sequence", "first_chunk", "states"]
        names += ["state_gradients", *(name for name in arrays if f"{name}_ptr" in text)]
        names += [f"{matrix.name}_gradient" for matrix in self.matrices]
        names += [gradient.called for gradient in self.backward.stored]
        sizes = ("H", "HV", self.key, self.value, "CHUNK", f"BLOCK_{self.key}", f"BLOCK_{self.value}")
        known = (*sizes, "MEMBERS", *decay_tiles(plan), "PRECISION")
        numbers = scalars(plan, *self.parts)
        return [*(f"{name}_ptr" for name in names), *numbers, "T", *(f"{name}: tl.constexpr" for name in known)]

    def lines(self) -> list[str]:
        return _lines(self.sections())

    def sections(self) -> dict[str, list[str] | list[ValuePass]]:
        """The kernel's statements, by the loops that they stand in."""
        self.started = set()
        zeros = self.backward.zeros
        sections: dict[str, list[str] | list[ValuePass]] = {
            "start": [*map(self._of_members, zeros[HEAD]), *map(self._zero, zeros[SHARED])],
            "passes": [*self._matrix_passes(), *self._values_pass()],
            "key_block": [*self._vector_zeros(), *map(self._zero, zeros[KEYS])],
        }
        block, end = self._state_block(), [*self._rows(), *self._decayed(), *self.pairs(), *self._own_actions()]
        head = self._head_rows(self.backward.keys, self.backward.written)
        sections["rows"] = live([*head, *self._part_zeros()], names_in(*block, *end))
        sections["states_block"] = live(block, names_in(*end, *PARTS.values()))
        sections["own"] = live(end, {*self._kept(), *PARTS.values()} & names_in(*end))
        sections["keys_end"] = self._actions(KEYS)
        sections["head_end"] = self._head_end()
        sections["end"] = self._actions(SHARED)
        return sections

    def _kept(self) -> set[str]:
        """What is added to beyond one value head."""
        return {*self.started, *(f"{gradient.called}_sums" for gradient in self.backward.zeros[HEAD])}

    def _zeros(self, *sizes: str) -> str:
        if not sizes:
            return "tl.full((), 0.0, tl.float32)"
        return f"tl.zeros(({', '.join(sizes)}{',' if len(sizes) == 1 else ''}), tl.float32)"

    def _extents(self, gradient: Gradient) -> list[str]:
        return ["CHUNK" if dim == TOKEN else f"BLOCK_{dim}" for dim in gradient.dims]

    def _zero(self, gradient: Gradient) -> str:
        self.started.add(gradient.called)
        return f"{gradient.called} = {self._zeros(*self._extents(gradient))}"

    def _of_members(self, gradient: Gradient) -> str:
        """What is added up for each value head: numbers of tokens, or one number."""
        return f"{gradient.called}_sums = {self._zeros(*self._extents(gradient), 'MEMBERS')}"

    def _prepared(self) -> list[Array]:
        """The rows and numbers that were prepared, of those that this kernel may load."""
        return [*scaled_rows(self.backward.forward), *self._read_matrices()]

    def _read_matrices(self) -> list[Array]:
        return [Array(matrix.name, ("CHUNK", "CHUNK")) for matrix in self._read_scores()]

    # ----------------------------------------------------------------------------------------------------- value blocks

    def _head_rows(self, *parts: Part) -> list[str]:
        """What a value head has that has neither keys nor values."""
        once = [action for part in parts for action in part.once if not self._over(action, self.key, self.value)]
        rows = [row for part in parts for row in part.rows if not self._over(row, self.key, self.value)]
        numbers = [array for array in scaled_rows(self.backward.forward) if array.dims == ("CHUNK",)]
        return [
            *self.fixed(list(dict.fromkeys(once)), reads_head=any(part.reads_head for part in parts)),
            *(array.loaded(self.row_index, self.key_index, "") for array in numbers),
            *self.rows(list(dict.fromkeys(rows))),
        ]

    def _of_values(self, part: Part) -> list[str]:
        """What of `part` has values."""
        once = [action for action in part.once if self._over(action, self.value)]
        return [*self.fixed(once), *self.rows([row for row in part.rows if self._over(row, self.value)])]

    def _over(self, action: Load | Set | RowLoad | RowSet, *dims: str) -> bool:
        over = action.value.dims if isinstance(action, Set | RowSet) else action.source.dims
        return bool(set(over) & set(dims))

    def _output_gradient(self) -> str:
        offset, mask = self.tile("token * HV + value_head", TOKEN, (self.value,))
        return f"{OUTPUT_GRADIENT} = tl.load(do_ptr + {offset}, mask={mask}, other=0.0).to(tl.float32)"

    def _reads(self) -> list[str]:
        """The gradient of the read, as an operand."""
        return [
            self._output_gradient(),
            f"{READ_GRADIENT} = {self.print(self.backward.read, TOKEN)}",
            f"read_operand = {READ_GRADIENT}.to(dtype)",
        ]

    def _walked(self, name: str) -> str:
        """What a walk left of the rows of a chunk, of a block of values."""
        value = self.axes.index(self.value)
        place = f"chunk_row * ({self.value} * CHUNK) + {value}[None, :] * CHUNK + {self.row_index}[:, None]"
        return f"{name} = tl.load({name}_ptr + {place}, mask={self.axes.mask(self.value)}[None, :], other=0.0)"

    def _block_operands(self) -> list[str]:
        return [
            *self._of_values(self.backward.written),
            *self.operands("v"),
            *self._reads(),
            self._walked("U"),
            self._walked(R_GRADIENT),
        ]

    def _matrix_passes(self) -> list[ValuePass]:
        """The gradients of the matrices. Four do not fit into registers beside one another."""
        readers = [("q", "y")] if len(self.matrices) <= 2 else [("q",), ("y",)]
        return [self._matrix_pass([matrix for matrix in self.matrices if matrix.reader in some]) for some in readers]

    def _matrix_pass(self, matrices: Sequence[Score]) -> ValuePass:
        operands = {"q": "read_operand", "y": R_GRADIENT, "w": "U"}
        if self.plan.write_key is not None:
            operands["k"] = self.operand("v")
        products = []
        for matrix in matrices:
            reader, writer, sums = operands[matrix.reader], operands[matrix.writer], f"{matrix.name}_gradient"
            products.append(f"{sums} = tl.dot({reader}, tl.trans({writer}), {sums}, {DOT})")
        block = live([*self._block_operands(), *products], [f"{matrix.name}_gradient" for matrix in matrices])
        head = live(self._head_rows(self.backward.written), names_in(*block))
        place, _ = Array("", ("CHUNK", "CHUNK")).place(self.row_index, self.key_index, "")
        return ValuePass(
            before=[*head, *(f"{m.name}_gradient = {self._zeros('CHUNK', 'CHUNK')}" for m in matrices)],
            block=block,
            after=[f"tl.store({m.name}_gradient_ptr + {place}, {m.name}_gradient.to(dtype))" for m in matrices],
        )

    def _values_pass(self) -> list[ValuePass]:
        """The gradients of what has values, and of what is summed over them."""
        if not self.backward.actions[BLOCK]:
            return []
        loads = [f"{self._walked(R_GRADIENT)}.to(tl.float32)"] if self.plan.delta is not None else []
        first = [*self._of_values(self.backward.values), *self._reads(), *loads]
        first.append(f"v_gradient = {self._zeros('CHUNK', f'BLOCK_{self.value}')}")
        keys, scored = self._written_values() if self.plan.write_key is not None else ([], [])
        end = [*scored, *self._actions(BLOCK)]
        end = live(end, self._kept())
        block = live(first, names_in(*end, *keys))
        head = live(self._head_rows(self.backward.values), names_in(*block, *end))
        return [ValuePass(head, block, [], keys, end)]

    def _written_values(self) -> tuple[list[str], list[str]]:
        """The gradients of written values: from that of the state, with each block of keys, then from the matrices."""
        operands = {"q": "read_operand", "y": f"{R_GRADIENT}.to(dtype)"}
        keys = [
            self._loaded("k_to_end"),
            self._state_tile("S_gradient", "state_gradients"),
            f"v_gradient = tl.dot(k_to_end, tl.trans(S_gradient), v_gradient, {DOT})",
        ]
        scored = [self._loaded(matrix.name) for matrix in self._read_scores()]
        scored += [
            f"v_gradient = tl.dot(tl.trans({matrix.name}), {operands[matrix.reader]}, v_gradient, {DOT})"
            for matrix in self._read_scores()
        ]
        return keys, scored

    def _read_scores(self) -> list[Score]:
        return [matrix for matrix in self.matrices if matrix.writer == "k"]

    def _loaded(self, name: str) -> str:
        array = next(array for array in self._prepared() if array.name == name)
        return array.loaded(self.row_index, self.key_index, self.axes.mask(self.key))

    def _state_tile(self, name: str, source: str) -> str:
        value, key = self.axes.index(self.value), self.key_index
        place = f"chunk_row * ({self.value} * {self.key}) + {value}[:, None] * {self.key} + {key}[None, :]"
        mask = f"{self.axes.mask(self.value)}[:, None] & {self.axes.mask(self.key)}[None, :]"
        return f"{name} = tl.load({source}_ptr + {place}, mask={mask}, other=0.0)"

    # ------------------------------------------------------------------------------------------------------- key blocks

    def _vector_zeros(self) -> list[str]:
        """The gradients of vectors that value heads share."""
        lines = []
        for name in dict.fromkeys(vector_gradient(self.plan, role) for role in self.roles if self._is_shared(role)):
            self.started.add(name)
            lines.append(f"{name} = {self._zeros('CHUNK', f'BLOCK_{self.key}')}")
        return lines

    def _is_shared(self, role: str) -> bool:
        return vector_gradient(self.plan, role) in self._shared

    @property
    def _shared(self) -> set[str]:
        """What is taken back to names only when all value heads have added to it."""
        used = names_in(*(self._text(action) for action in self.backward.actions[KEYS]))
        return {vector_gradient(self.plan, role) for role in self.roles} & used

    def _text(self, action: Action) -> str:
        return self.print(action.value, _axis_in(action.value)) if isinstance(action, Add) else ""

    def _rows(self) -> list[str]:
        """The rows of a block of keys of one value head, with all that scales them."""
        keys = self.backward.keys
        lines = [
            *self.fixed([action for action in keys.once if self._over(action, self.key)]),
            *self.rows([row for row in keys.rows if self._over(row, self.key)]),
            *self.vector_lines(),
        ]
        for role in self.roles:
            if factor := self.factor(role):
                lines.append(f"{self.full(role)} = {product(Printed(self.operand(role)), factor).text}")
        return lines

    def vector_lines(self) -> list[str]:
        """The vectors along the keys that are no plain inputs, and the log decay."""
        lines: list[str] = []
        done: set[Tile] = set()
        for role in self.roles:
            tile = self.plan.vector(role)
            if tile is not None and not isinstance(tile, Value) and tile not in done:
                done.add(tile)
                lines.append(f"{self.operand(role)} = {self.print(tile, TOKEN)}")
        return [*lines, *self._log_decay()]

    def _part_zeros(self) -> list[str]:
        lines = [f"{PARTS[role]} = {self._zeros('CHUNK', f'BLOCK_{self.key}')}" for role in self.roles]
        return [*lines, f"state_dot = {self._zeros(f'BLOCK_{self.key}')}"]

    def _state_block(self) -> list[str]:
        operands = {"q": "read_operand", "y": R_GRADIENT, "w": "U"}
        if self.plan.write_key is not None:
            operands["k"] = self.operand("v")
        lines = [
            *self._block_operands(),
            self._state_tile(self.state, "states"),
            self._state_tile("S_gradient", "state_gradients"),
        ]
        for role in self.roles:
            state = self.state if role in ("q", "y") else "S_gradient"
            lines.append(f"{PARTS[role]} = tl.dot({operands[role]}, {state}, {PARTS[role]}, {DOT})")
        if self.backward.decays:
            lines.append(f"state_dot += tl.sum({self.state}.to(tl.float32) * S_gradient.to(tl.float32), axis=0)")
        return lines

    def _decayed(self) -> list[str]:
        """What rows have of the states, with its decay; and what that means for the gradient of the decays."""
        if self.plan.log_decay is None:
            return []
        readers = [role for role in ("q", "y") if role in self.roles]
        lines = []
        for after, name, reads in ((True, "from_start", ">="), (False, "from_start_before", ">")):
            some = [role for role in readers if self.readers[role] == after]
            if some:
                lines.append(f"{name} = decay_over({self.rows_where(reads)}, log_decay, TERMS)")
                lines += [f"{PARTS[role]} *= {name}" for role in some]
        writers = [role for role in ("w", "k") if role in self.roles]
        lines.append(f"to_end = decay_over({self.rows_where('<')}, log_decay, TERMS)")
        lines += [f"{PARTS[role]} *= to_end" for role in writers]
        if not self.backward.decays:
            return lines
        for common in dict.fromkeys(self.common(role) for role in readers):
            some = [role for role in readers if self.common(role) == common]
            lines.append(f"{common} = {self._common(some).text}")
        if "common" not in {self.common(role) for role in readers}:
            lines.append(f"common = {self._zeros('CHUNK', f'BLOCK_{self.key}')}")
        return [*lines, f"kept = {self._common(writers).text}"]

    def _common(self, roles: Sequence[str]) -> Printed:
        """What the rows of `roles` have in common with what they get."""
        return total(*(product(Printed(self.full(role)), Printed(PARTS[role])) for role in roles))

    # ----------------------------------------------------------------------------------------------------- what is done

    def _own_actions(self) -> list[str]:
        """From what the rows of one value head get to the gradients of vectors, scales and decays, and of names."""
        lines, started = [], set(self.started)
        for role in self.roles:
            name, factor, part = vector_gradient(self.plan, role), self.factor(role), Printed(PARTS[role])
            if factor:
                common = product(Printed(self.operand(role)), part)
                lines.append(f"{scale_gradient(role)} = tl.sum({common.text}, axis=1)")
            lines.append(f"{name} {'+=' if name in started else '='} {product(part, factor).text}")
            started.add(name)
        if self.backward.decays:
            lines += self._decay_gradient()
        for gradient in self._numbers_used():
            lines.append(f"{gradient.called} = {self._taken(gradient)}")
        return [*lines, *map(self._zero, self.backward.zeros[OWN]), *self._actions(OWN)]

    def _numbers_used(self) -> list[Gradient]:
        """The gradients of prepared numbers, which are known before the keys."""
        found = (self.backward.number_gradient(number.target) for number in self.plan.numbers)
        used = names_in(*(self._text(action) for action in self.backward.actions[OWN]))
        return [gradient for gradient in found if gradient is not None and gradient.called in used]

    def _decay_gradient(self) -> list[str]:
        """From a token to the chunk's end, of what decays with it: what rows have in common with their gradients; of
        rows before it, what the state keeps until then; and what it keeps of the state before the chunk."""
        lines = [f"{DECAY_GRADIENT} = tl.cumsum(common, axis=0, reverse=True)"]
        if "common_before" in {self.common(role) for role in self.readers}:
            lines.append(f"{DECAY_GRADIENT} += sum_of_later(common_before)")
        lines += [
            f"{DECAY_GRADIENT} += sum_of_earlier(kept)",
            f"whole = tl.exp2(tl.sum(log_decay, axis=0) * {LOG2_E})",
            f"{DECAY_GRADIENT} += (whole * state_dot)[None, :]",
        ]
        mask = f"{self.axes.mask(TOKEN)}[:, None]"
        return [*lines, f"{DECAY_GRADIENT} = tl.where({mask}, {DECAY_GRADIENT}, 0.0)"]

    def _taken(self, gradient: Gradient) -> str:
        sums = f"{gradient.called}_sums"
        if gradient.dims:
            return f"take({sums}, member, MEMBERS)"
        return f"tl.sum(tl.where(members == member, {sums}, 0.0), axis=0)"

    def _head_end(self) -> list[str]:
        taken = [f"{gradient.called} = {self._taken(gradient)}" for gradient in self.backward.zeros[HEAD]]
        self.started |= {gradient.called for gradient in self.backward.zeros[HEAD]}
        actions = self._actions(HEAD)
        lines = live([*self._head_rows(self.backward.heads), *taken, *actions], self.started - names_in(*taken))
        return lines

    def _actions(self, level: Level) -> list[str]:
        return [line for action in self.backward.actions[level] for line in self._action(action, level)]

    def _action(self, action: Action, level: Level) -> list[str]:
        match action:
            case Add(target, value):
                gathered = target.level == HEAD and level in (BLOCK, OWN)
                started = target.called in self.started and not gathered
                shape = () if started else self._extents(target)
                return [self._add(target, self.added(value, _axis_in(value), target.dims, shape), gathered=gathered)]
            case Store(target):
                return [f"if {target.called}_ptr is not None:", f"    {self._store(target)}"]
            case Fold():
                raise AssertionError("a token has one row")

    def _add(self, target: Gradient, text: str, *, gathered: bool) -> str:
        if gathered:
            if target.dims:
                return f"{target.called}_sums += put({text}, member, MEMBERS)"
            return f"{target.called}_sums += tl.where(members == member, {text}, 0.0)"
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
            heads, head = ("H", "key_head") if source.heads == "H" else ("HV", "value_head")
            offset, mask = self.tile(f"token * {heads} + {head}", gradient.axis, source.dims)
        else:
            offset = self.axes.address("chunk * H + key_head" if shared else "chunk_row", source.dims)
            mask = self.axes.within(source.dims)
        where = f", mask={mask}" if mask else ""
        return f"tl.store({pointer} + {offset}, {gradient.called}.to({pointer}.dtype.element_ty){where})"


def _lines(sections: Mapping[str, list[str] | list[ValuePass]]) -> list[str]:
    return [line for section in sections.values() for part in section for line in _of(part)]


def _of(part: str | ValuePass) -> Iterable[str]:
    return [part] if isinstance(part, str) else [*part.before, *part.block, *part.keys, *part.end, *part.after]


def _axis_in(tile: Tile) -> str:
    """The axis of a chunk that something in `tile` lies along."""
    return TOKEN if any(TOKEN in part.dims for part in tiles_in(tile)) else ""
