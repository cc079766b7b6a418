"""The kernels between the preparation of chunks and the output, as far as all families have them in common.

Fused, one kernel walks over the chunks of a sequence and puts out what its tokens read. Split, a walk leaves the state
before each chunk (and U, where rows erase) in memory, and a kernel of its own puts out all chunks at once: more bytes,
but less to do one after the other, where there are too few sequences and heads to fill a GPU.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from flagen.backends.triton_.device import OF_CHUNKS
from flagen.backends.triton_.lines import live, names_in
from flagen.backends.triton_.printer import literal
from flagen.backends.triton_.rows import P, PrintedKernel, RowPlan, RowWriter, pointers, scalars
from flagen.plan.free_names import final_of, initial_of
from flagen.plan.rows import TOKEN
from flagen.spec.model import State

PACKING = ("cu_seqlens", "chunk_sequence", "first_chunk")
"""Where packed sequences and their chunks begin."""


Documented = tuple[PrintedKernel[Any], Mapping[str, object]]
"""A kernel and what its docstring says."""


def walks_context(plan: RowPlan, walks: Sequence[Documented], output: Documented) -> Mapping[str, object]:
    """What the templates of all families use for the kernels that have the state."""
    states, _ = walks[-1]
    return {
        **state_context(plan, states),
        "device": OF_CHUNKS,
        "walks": [documented(walk, docs) for walk, docs in walks],
        "output": {**output[0].context(), "docs": output[1]},
    }


def documented(walk: PrintedKernel[Any], docs: Mapping[str, object]) -> Mapping[str, object]:
    """What a template needs to know of a walk, and what its docstring says."""
    kept = ""
    if isinstance(walk, WalkKernel) and walk.keeps:
        rider = walk.rider()
        what = "S and U" if walk.keeps_updates else "S" if rider is None else f"S, {rider.name} and column"
        kept = f" Given arrays for them, it stores {what} for the gradient, too."
    return {**walk.context(), "docs": {**docs, "text": f"{docs['text']}{kept}"}}


def state_context(plan: RowPlan, states: RowWriter[Any]) -> Mapping[str, object]:
    """What the templates call the state and its axes; `states` is a kernel that has it."""
    state = plan.state
    return {
        "name": plan.spec.name,
        "key": plan.key,
        "value": plan.value,
        "S": states.name(state.name),
        "initial": f"{initial_of(plan.spec, state)}_ptr",
        "final": f"{final_of(plan.spec, state)}_ptr",
        "init": literal(state.init).text,
        "key_index": states.axes.index(plan.key),
        "value_index": states.axes.index(plan.value),
        "key_mask": states.axes.mask(plan.key),
        "value_mask": states.axes.mask(plan.value),
    }


class Form(Enum):
    """What a kernel leaves behind: outputs; the state before each chunk; outputs, from these."""

    FUSED = ""
    STATES = "states_"
    OUTPUT = "output_"


class WalkKernel(PrintedKernel[P]):
    """Writes a kernel of `form` from the equations of a family; a fused one that `keeps` can leave behind, besides,
    what the backward would have to compute again."""

    def __init__(self, plan: P, form: Form, *, keeps: bool = False) -> None:
        super().__init__(plan, plan.walk)
        self.form = form
        self.keeps = keeps
        self.value, self.key = plan.value, plan.key
        self.state = self.name(plan.state.name)

    # What a family says.

    @abstractmethod
    def scratch(self) -> tuple[str, ...]:
        """What was prepared."""

    @abstractmethod
    def loaded(self) -> list[str]:
        """What a chunk reads, and what is evaluated from it before the state is needed."""

    @abstractmethod
    def solved(self) -> list[str]:
        """U from `S_operand`; nothing where no row erases."""

    @abstractmethod
    def read(self) -> list[str]:
        """What the tokens read."""

    @abstractmethod
    def next_state(self) -> list[str]:
        """The state after a chunk."""

    @abstractmethod
    def tiles(self) -> tuple[str, ...]:
        """The sizes of tiles that the kernel is compiled for."""

    @abstractmethod
    def operand_arrays(self) -> tuple[str, ...]:
        """Arrays of the dtype of the products."""

    @property
    @abstractmethod
    def keeps_updates(self) -> bool:
        """Whether the outputs need U."""

    def rider(self) -> State | None:
        """The vector state that rides along."""
        return None

    def kept_state(self) -> list[str]:
        """How a fused walk leaves behind the state before a chunk, `S_operand`."""
        return self._state_before(Form.STATES)[1:]

    def next_rider(self) -> list[str]:
        """In a fused walk the vector state after the chunk, once that before it is behind."""
        return []

    def kept_column(self) -> list[str]:
        """How it leaves behind what is read of a vector state that rides along."""
        return []

    def kept_updates(self) -> list[str]:
        """How it leaves behind `U_operand`."""
        return self._updates(Form.STATES)

    # What follows for every family.

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_{self.form.value}kernel"

    def context(self) -> Mapping[str, object]:
        """What a template needs to know of the kernel."""
        body = self.body()
        return {
            "kernel": self.kernel,
            "parameters": self.parameters(),
            "once": self._once(),
            "indices": self._indices(),
            "places": self._places(),
            "body": body,
            "key_heads": "key_head" in names_in(*body),
            "counts_chunks": self._counts_chunks(),
            "names_chunks": "chunk_row" in names_in(*body),
            "dtype_of": self._dtype_source(),
            "split": self.value,
            **self._rider_lines(),
        }

    def in_first_block(self) -> str:
        """The mask of a vector over the keys that every block of values has, and the first one stores."""
        return f"{self.axes.index(self.key)} < tl.where(block == 0, {self.key}, 0)"

    def first_column_state(self, state: State) -> list[str]:
        """The vector state that a run starts from."""
        name, key = self.name(state.name), self.axes.index(self.key)
        initial = f"{initial_of(self.plan.spec, state)}_ptr"
        place = f"{initial} + (sequence * HV + value_head) * {self.key} + {key}"
        return [
            f"if {initial} is None:",
            f"    {name} = tl.full((BLOCK_{self.key},), {literal(state.init).text}, tl.float32)",
            "else:",
            f"    {name} = tl.load({place}, mask={self.axes.mask(self.key)}, other=0.0).to(tl.float32)",
        ]

    def _rider_lines(self) -> Mapping[str, list[str]]:
        """How a walk comes by the vector state that rides along, and how it hands it on: every program has all of it,
        the first block stores it."""
        state = self.rider()
        if state is None:
            return {"rider_start": [], "rider_end": []}
        name, first = self.name(state.name), self.in_first_block()
        final = f"{final_of(self.plan.spec, state)}_ptr"
        place = f"(sequence * HV + value_head) * {self.key} + {self.axes.index(self.key)}"
        return {
            "rider_start": self.first_column_state(state),
            "rider_end": [
                f"if {final} is not None:",
                f"    tl.store({final} + {place}, {name}, mask={first})",
            ],
        }

    def _places(self) -> list[str]:
        """Which tokens and rows a chunk has, as far as the kernel asks."""
        return live(self.places(), names_in(*self.body(), *self._once()))

    def _indices(self) -> list[str]:
        """The indices of a program's lanes; a walk has them outside of its loop."""
        key, value = self.axes.index(self.key), self.axes.index(self.value)
        rows = live(self.indices(), names_in(*self.body(), *self._places()))
        if self.form is not Form.OUTPUT:
            return rows
        axes = [
            f"{key} = tl.arange(0, BLOCK_{self.key})",
            f"{self.axes.mask(self.key)} = {key} < {self.key}",
            f"{value} = block * BLOCK_{self.value} + tl.arange(0, BLOCK_{self.value})",
            f"{self.axes.mask(self.value)} = {value} < {self.value}",
        ]
        return [*live(axes, names_in(*self.body(), *self._once())), *rows]

    def _dtype_source(self) -> str | None:
        """An array of the dtype of the products, where a kernel rounds to that."""
        if self.form is Form.OUTPUT and not any(".to(dtype)" in line for line in self.body()):
            return None
        return next(name for name in (*self.operand_arrays(), "states") if f"{name}_ptr" in self.parameters())

    def body(self) -> list[str]:
        """The statements for one chunk; an empty line between the parts of its equations."""
        state_before, updates = self._state_before(self.form), self._updates(self.form)
        match self.form:
            case Form.FUSED:
                solved = [*self._if_given("states", self.kept_state()), *self.next_rider(), *self.solved()]
                read = [*self._if_given("U", self.kept_updates()), *self.read(), *self._column_left(), *self._put()]
                lines = [*self.loaded(), *state_before, *solved, *read, *self.next_state()]
            case Form.STATES:
                lines = [*self.loaded(), *state_before, *self.solved(), *updates, *self.next_state()]
            case Form.OUTPUT:
                lines = [*self.loaded(), *state_before, *updates, *self.read(), *self._column_left(), *self._put()]
        return live(lines, self._carried() if self.form is not Form.OUTPUT else ())

    def _carried(self) -> set[str]:
        """The states that go from chunk to chunk."""
        rider = self.rider()
        return {self.state} if rider is None else {self.state, self.name(rider.name)}

    def parameters(self) -> list[str]:
        plan: RowPlan = self.plan
        given, rider = names_in(*self.lines()), self.rider()
        states = [plan.state] if rider is None else plan.spec.states
        first, last = ([of(plan.spec, state) for state in states] for of in (initial_of, final_of))
        walks = self.form is not Form.OUTPUT
        candidates = [*pointers(plan, plan.walk), *(first if walks else []), *PACKING]
        candidates += [*self.scratch(), "states", "U", "column_states", "column", "o", *(last if walks else [])]
        given |= {f"{name}_ptr" for name in (*first, *last, "cu_seqlens")}
        if self._counts_chunks():
            given |= {"first_chunk_ptr"} if walks else {"first_chunk_ptr", "chunk_sequence_ptr"}
        found = [f"{name}_ptr" for name in candidates if f"{name}_ptr" in given]
        numbers = [name for name in scalars(plan, plan.walk) if name in given]
        sizes = ["H", "HV"] if {"H", "key_head"} & given else ["HV"]
        return [*found, *numbers, "T", *(f"{name}: tl.constexpr" for name in (*self.steps(), *sizes, *self.tiles()))]

    def steps(self) -> list[str]:
        return []

    def lines(self) -> list[str]:
        return [*self._once(), *self.body()]

    def _once(self) -> list[str]:
        return live(self.once(), names_in(*self.body()))

    def _counts_chunks(self) -> bool:
        return not names_in(*self.body()).isdisjoint(("chunk", "chunk_row"))

    def _if_given(self, array: str, lines: list[str]) -> list[str]:
        """What a fused walk does where it is given an array that is not there for its outputs."""
        if not self.keeps or not lines:
            return []
        return [f"if {array}_ptr is not None:", *(f"    {line}" for line in lines)]

    def _column_left(self) -> list[str]:
        return self._if_given("column", self.kept_column())

    def _state_before(self, form: Form) -> list[str]:
        if form is Form.FUSED:
            return [f"S_operand = {self.state}.to(dtype)"]
        place, mask = self._tile_place(self.key, self.axes.index(self.key), self.axes.mask(self.key))
        if form is Form.OUTPUT:
            return [f"S_operand = tl.load(states_ptr + {place}, mask={mask}, other=0.0)"]
        return [f"S_operand = {self.state}.to(dtype)", f"tl.store(states_ptr + {place}, S_operand, mask={mask})"]

    def _updates(self, form: Form) -> list[str]:
        if not self.keeps_updates:
            return []
        place, mask = self._tile_place("CHUNK", self.axes.index(self.row), "")
        if form is Form.OUTPUT:
            return [f"U_operand = tl.load(U_ptr + {place}, mask={mask}, other=0.0)"]
        return [f"tl.store(U_ptr + {place}, U_operand, mask={mask})"]

    def _tile_place(self, size: str, index: str, mask: str) -> tuple[str, str]:
        """Where a chunk has its tile over the values and another axis, and the mask of it."""
        value, within = self.axes.index(self.value), f"{self.axes.mask(self.value)}[:, None]"
        place = f"chunk_row * ({self.value} * {size}) + {value}[:, None] * {size} + {index}[None, :]"
        return place, f"{within} & {mask}[None, :]" if mask else within

    def _put(self) -> list[str]:
        offset, mask = self.tile("token * HV + value_head", TOKEN, (self.value,))
        return [
            f"o = {self.print(self.plan.output, TOKEN)}",
            f"tl.store(o_ptr + {offset}, o.to(o_ptr.dtype.element_ty), mask={mask})",
        ]
