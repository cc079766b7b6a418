"""The two walks of the backward as source lines: of the states forward, of their gradients in reverse."""

from __future__ import annotations

import re
from collections import Counter

from flagen.backends.triton_.chunk_kernel import FACTORS, ScalarDecayRows, ScalarPlacement, Walk, scratch, tiles
from flagen.backends.triton_.rows import ROLES, RowWriter, pointers, scalars, steps_symbol
from flagen.backends.triton_.walk_equations import WalkPrinter
from flagen.kernel import walks
from flagen.plan.backward_levels import OUTPUT_GRADIENT, READ_GRADIENT
from flagen.plan.chunk_backward import STATES_EVERY, ChunkBackwardPlan
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.free_names import initial_of
from flagen.plan.rows import TOKEN


class States(Walk):
    """The kernel that walks the chunks forward and stores the states between them."""

    def __init__(self, plan: ChunkBackwardPlan) -> None:
        RowWriter.__init__(self, plan.forward, plan.states)
        self.value, self.key = self.plan.value, self.plan.key
        self.state = self.name(self.plan.state.name)

    @property
    def carried(self) -> list[str]:
        """What goes from chunk to chunk."""
        rider = self.plan.rider
        return [self.state] if rider is None else [self.state, self.name(rider.state.name)]

    def rider_lines(self) -> dict[str, list[str]]:
        """How the walk comes by the vector state that rides along, and how it stores it."""
        rider = self.plan.rider
        if rider is None:
            return {"rider_start": [], "rider_store": []}
        name, key = self.name(rider.state.name), self.axes.index(self.key)
        place = f"column_states_ptr + (state * HV + value_head) * {self.key} + {key}"
        return {
            "rider_start": self.first_column_state(rider.state),
            "rider_store": [
                f"wanted = {key} < tl.where((within % {STATES_EVERY} == 0) & (block == 0), {self.key}, 0)",
                f"tl.store({place}, {name}, mask=wanted)",
            ],
        }

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_kept_states_kernel"

    def parameters(self) -> list[str]:
        states = [self.plan.state] if self.plan.rider is None else self.plan.spec.states
        first = [initial_of(self.plan.spec, state) for state in states]
        given = [*pointers(self.plan, *self.parts), *first, "cu_seqlens", "first_chunk"]
        column = [] if self.plan.rider is None else ["column_states"]
        return parameters_of(self, [*given, *kept(self.plan), "states", *self._rows_out(), *column])

    def step(self, *, declared: bool) -> list[str]:
        """What `state_after_chunk` takes, as it declares it or as a call passes it."""
        names = [*pointers(self.plan, *self.parts), *kept(self.plan), *self._rows_out()]
        return step_of(self, self.carried, names, declared=declared)

    def _rows_out(self) -> list[str]:
        return ["U"] if self.plan.delta is not None else []

    def sections(self) -> dict[str, list[str]]:
        additive = self.plan.delta is None
        sections = {
            "once": self.once(),
            "loads": [*self.loads(self.parts[0]), *([] if additive else self.load_scratch(*kept(self.plan)))],
            "operands": self.operands(*(role for role in ROLES if role != "q")),
            "decays": inline_decays(self) if additive else [],
            "solve": [] if additive else [*self.solved(), store_rows(self, "U")],
            "next_state": self.next_state(),
        }
        if self.plan.rider is not None:
            sections["next_state"] += self.next_column_state()
        return trimmed(sections, *self.carried)


class Reverse(Walk):
    """The kernel that walks the chunks backward with the gradient of the state."""

    def __init__(self, plan: ChunkBackwardPlan) -> None:
        RowWriter.__init__(self, plan.forward, plan.reverse)
        self.backward = plan
        self.value, self.key = self.plan.value, self.plan.key

    @property
    def carried(self) -> list[str]:
        """What goes from chunk to chunk."""
        return ["S_gradient"] if self.plan.rider is None else ["S_gradient", "column_state_gradient"]

    def rider_lines(self) -> dict[str, list[str]]:
        """Where the gradient of the vector state that rides along comes from, and where it goes: each block of values
        has its own share of it, the first block the final state's."""
        if self.plan.rider is None:
            return {"rider_start": [], "rider_store": [], "rider_end": []}
        key, mask, dim = self.axes.index(self.key), self.axes.mask(self.key), self.key
        first = f"column_final_gradient_ptr + (sequence * HV + value_head) * {dim} + {key}"
        place = f"column_state_gradients_ptr + ((state * HV + value_head) * blocks + block) * {dim} + {key}"
        last = f"column_initial_gradient_ptr + ((sequence * HV + value_head) * blocks + block) * {dim} + {key}"
        return {
            "rider_start": [
                f"column_state_gradient = tl.zeros((BLOCK_{dim},), tl.float32)",
                "if column_final_gradient_ptr is not None:",
                f"    column_state_gradient += tl.load({first}, mask={self.in_first_block()}, other=0.0)",
            ],
            "rider_store": [f"tl.store({place}, column_state_gradient, mask={key} < tl.where(is_last, {dim}, 0))"],
            "rider_end": [
                "if column_initial_gradient_ptr is not None:",
                f"    tl.store({last}, column_state_gradient, mask={mask})",
            ],
        }

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_reverse_kernel"

    def parameters(self) -> list[str]:
        given, rides = [*pointers(self.plan, *self.parts), "do", "final_gradient"], self.plan.rider is not None
        given += ["column_final_gradient"] if rides else []
        given += ["cu_seqlens", "first_chunk", *self._rows_in(), "state_gradients"]
        given += ["column_state_gradients"] if rides else []
        last = ["column_initial_gradient"] if rides else []
        return parameters_of(self, [*given, *self._rows_out(), "initial_gradient", *last])

    def step(self, *, declared: bool) -> list[str]:
        """What `gradient_before_chunk` takes, as it declares it or as a call passes it."""
        names = [*pointers(self.plan, *self.parts), "do", *self._rows_in(), *self._rows_out()]
        blocks = [] if self.plan.rider is None else ["block", "blocks"]
        return step_of(self, self.carried, names, *blocks, declared=declared)

    def _rows_in(self) -> list[str]:
        if self.plan.rider is not None:
            return ["o", "column"]
        return ["inverse"] if self.plan.delta is not None else []

    def _rows_out(self) -> list[str]:
        if self.plan.rider is not None:
            return ["column_gradients"]
        return ["R_gradient"] if self.plan.delta is not None else []

    def sections(self) -> dict[str, list[str]]:
        additive = self.plan.delta is None
        sections = {
            "once": self.once(),
            "loads": self.loads(self.parts[0]),
            "operands": self.operands("q") if additive else self.operands("q", "w", "y"),
            "decays": [*inline_decays(self), *([] if additive else self._scores())],
            "before": self._before(),
        }
        return trimmed(sections, *self.carried)

    def _scores(self) -> list[str]:
        """What tokens read of the rows of a chunk: a product more, and a matrix less to hand on and to read."""
        decay = [f"decay = {self.between('q')}"] if self.plan.row_decay is not None else []
        return [*decay, *self.scores("scores", "q", "w", None, self.scale("w")), "scores = scores.to(dtype)"]

    def _before(self) -> list[str]:
        """The gradient of the state before a chunk, from that of the state after it."""
        plan, over_tokens = self.plan, (self.value, TOKEN)
        given = {"dS1": "S_operand", "dO0": f"{READ_GRADIENT}.to(dtype)", "dR": "R_gradient.to(dtype)"}
        placement = ScalarPlacement(self, "S_gradient", given, {"dO0": READ_GRADIENT, "dR": "R_gradient"})
        equations = WalkPrinter(placement, {"dU": "U_gradient", "dR": "R_gradient", "dS0": "S_gradient"})
        offset, mask = self.tile("token * HV + value_head", TOKEN, (self.value,))
        lines = [
            f"{OUTPUT_GRADIENT} = tl.load(do_ptr + {offset}, mask={mask}, other=0.0).to(tl.float32)",
            *self._column_gradient(),
            f"{READ_GRADIENT} = {self.print(self.backward.walk_read, TOKEN)}",
        ]
        if scale := self.scale("q"):
            lines.append(f"{READ_GRADIENT} = {self.rows_by(READ_GRADIENT, scale, TOKEN, over_tokens).text}")
        if (found := walks.solved_back(plan.chunk.adjoint)) is not None:
            # The scores have the scale of w in them, which the state's part lacks.
            of_updates, solution = found
            lines += [
                *self.load_scratch("inverse"),
                *equations.sum(of_updates),
                equations.inverted(solution),
                store_rows(self, "R_gradient"),
            ]
        return [*lines, *equations.sum(walks.state_before(self.plan.chunk.adjoint))]

    def _column_gradient(self) -> list[str]:
        """The block's share of the gradient of what is read of the vector state that rides along, and of the state's
        before the chunk."""
        if self.backward.rider is None:
            return []
        place, token = "(token * HV + value_head)", self.axes.mask(TOKEN)
        offset, mask = self.tile("token * HV + value_head", TOKEN, (self.value,))
        decaying = self.plan.row_decay is not None
        kept = "whole * column_state_gradient" if decaying else "column_state_gradient"
        read = self.column_read_gradient()
        return [
            f"o = tl.load(o_ptr + {offset}, mask={mask}, other=0.0).to(tl.float32)",
            f"column = tl.load(column_ptr + {place}, mask={token}, other=0.0)",
            f"column_gradient = {self.print(self.backward.rider.read, TOKEN)}",
            f"tl.store(column_gradients_ptr + {place} * blocks + block, column_gradient, mask={token})",
            f"column_state_gradient = {kept} + {read}",
        ]


READ_SCORES = ("scores", "write_scores")
"""What the states do not need of a prepared chunk."""


def kept(plan: ChunkKernelPlan) -> tuple[str, ...]:
    """What the backward needs of the prepared chunks."""
    return tuple(name for name in scratch(plan) if name not in READ_SCORES)


def compile_time(plan: ChunkKernelPlan) -> tuple[str, ...]:
    """Every size that a kernel of the backward is compiled for."""
    symbol = steps_symbol(plan)
    return (*([symbol] if symbol else []), "H", "HV", *tiles(plan, plan.key, plan.value))


def store_rows(kernel: RowWriter[ChunkKernelPlan], name: str) -> str:
    """The store of what a walk finds for each row and value."""
    axis = kernel.plan.row_axis
    offset, mask = kernel.tile(f"{place_of(kernel)} * HV + value_head", axis, (kernel.plan.value,))
    return f"tl.store({name}_ptr + {offset}, {name}.to(dtype), mask={mask})"


def place_of(kernel: RowWriter[ChunkKernelPlan]) -> str:
    """The numbers of a chunk's rows."""
    return "row" if kernel.grouped else "token"


def parameters_of(kernel: RowWriter[ChunkKernelPlan], names: list[str]) -> list[str]:
    """A walk's parameters: pointers, numbers, sizes."""
    sizes = [f"{name}: tl.constexpr" for name in compile_time(kernel.plan)]
    return [*(f"{name}_ptr" for name in names), *scalars(kernel.plan, *kernel.parts), "T", *sizes]


def step_of(
    kernel: RowWriter[ChunkKernelPlan], states: list[str], names: list[str], *blocks: str, declared: bool
) -> list[str]:
    """What the step of a walk over one chunk takes: the states it has, pointers, the chunk, numbers, sizes; `blocks`
    are the number of its block of values and how many there are, where it asks."""
    chunk = ["chunk_row"] if kernel.plan.delta is not None else []
    given = [*states, *(f"{name}_ptr" for name in names), *scalars(kernel.plan, *kernel.parts)]
    place = ["start", "end_token", "value_head", *chunk, *blocks, kernel.axes.index(kernel.plan.value)]
    fixed = [*compile_time(kernel.plan)]
    fixed.remove(f"BLOCK_{kernel.plan.value}")
    fixed.append("dtype")
    return [*given, *place, *(f"{name}: tl.constexpr" if declared else name for name in fixed)]


def trimmed(sections: dict[str, list[str]], *used: str) -> dict[str, list[str]]:
    """`sections` without assignments of names that nothing reads; `used` are those the template reads."""
    every = [*used, *(line for lines in sections.values() for line in lines)]
    read = Counter(re.findall(r"\w+", "\n".join(every)))
    read.subtract(name for line in every for name in _assigned(line))

    def is_read(line: str) -> bool:
        names = _assigned(line)
        return not names or any(read[name] > 0 for name in names)

    kept = {name: list(filter(is_read, lines)) for name, lines in sections.items()}
    return kept if kept == sections else trimmed(kept, *used)


def _assigned(line: str) -> list[str]:
    """The names that a line assigns."""
    found = re.match(r"\w+(, \w+)* = ", line)
    return re.findall(r"\w+", found[0]) if found else []


def inline_decays(kernel: ScalarDecayRows) -> list[str]:
    """The factors of a decay that nothing was prepared of."""
    if kernel.plan.row_decay is None:
        return []
    return [*kernel.decays(), *FACTORS, *kernel.moments(), "whole = tl.exp2(coarse_end + fine_end)"]
