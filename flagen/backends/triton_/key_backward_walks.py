"""The kernels of the backward for decays of each key before its last one, as source lines: the rows scaled again, the
walk of the states forward, and that of their gradients in reverse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagen.backends.triton_.key_kernel import KeyPlacement, Pass, Prepare, Walk
from flagen.backends.triton_.key_rows import Array, KeyRows, arrays
from flagen.backends.triton_.lines import live, names_in
from flagen.backends.triton_.rows import PrintedKernel, pointers, scalars
from flagen.backends.triton_.walk import Form
from flagen.backends.triton_.walk_equations import WalkPrinter
from flagen.kernel import walks
from flagen.plan.backward_levels import OUTPUT_GRADIENT, R_GRADIENT, READ_GRADIENT
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import RowLoad
from flagen.plan.rows import TOKEN

SQUARE = ("CHUNK", "CHUNK")


def matrices(plan: KeyKernelPlan) -> tuple[Array, ...]:
    """What is prepared of a chunk that is no larger than it: a forward call can hand it on."""
    return tuple(array for array in arrays(plan) if array.dims == SQUARE)


def scaled_rows(plan: KeyKernelPlan) -> tuple[Array, ...]:
    """What else is prepared."""
    return tuple(array for array in arrays(plan) if array.dims != SQUARE)


class OwnPrepare(Prepare):
    """Prepares the chunks with nothing folded into their rows, where the forward kernels fold."""

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_unfolded_kernel"


class TurnedPrepare(Prepare):
    """Prepares the chunks for a left read, where the forward kernels read from the right."""

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_turned_prepare_kernel"


class Scale(Prepare):
    """Scales the rows of all chunks, whose matrices are known."""

    def __init__(self, plan: KeyKernelPlan) -> None:
        super().__init__(plan)
        self.scores = ()

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_scale_kernel"

    def parameters(self) -> list[str]:
        unused = [f"{array.name}_ptr" for array in matrices(self.plan)]
        unused += [f"{name}: tl.constexpr" for name in ("LEVELS", "LEAF_LEVELS", "PRECISION")]
        return [parameter for parameter in super().parameters() if parameter not in unused]

    def passes(self) -> list[Pass]:
        sums = self._adding((), first=True)
        return [*([sums] if sums.block or sums.after else []), Pass([], self._of_block(self._ends()), [])]


class OwnStates(Walk):
    """Walks with the state and stores it, and U, where the forward kernels have both folded together."""

    def __init__(self, plan: KeyKernelPlan) -> None:
        super().__init__(plan, Form.STATES)

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_kept_states_kernel"


class OwnOutputs(Walk):
    """Walks with the state, puts out what is read and keeps what `OwnStates` stores."""

    def __init__(self, plan: KeyKernelPlan) -> None:
        super().__init__(plan, Form.FUSED, keeps=True)

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_keeping_kernel"


class TurnedWalk(Walk):
    """Walks with the state and stores it, and U, and what is read from the left, if that is wanted."""

    def __init__(self, plan: KeyKernelPlan) -> None:
        super().__init__(plan, Form.FUSED, keeps=True)

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_turned_walk_kernel"

    def _if_given(self, array: str, lines: list[str]) -> list[str]:
        """There are always states and U to leave."""
        return lines

    def _put(self) -> list[str]:
        output, store = super()._put()
        return [output, "if o_ptr is not None:", f"    {store}"]


class TurnedOutput(Walk):
    """Puts out what is read from the left, from the states before the chunks and U."""

    def __init__(self, plan: KeyKernelPlan) -> None:
        super().__init__(plan, Form.OUTPUT)

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_turned_output_kernel"


class Reverse(KeyRows, PrintedKernel[KeyKernelPlan]):
    """Walks the chunks backward with the gradient of the state, in the layout of the forward walks."""

    def __init__(self, plan: KeyBackwardPlan) -> None:
        super().__init__(plan.forward, plan.reverse)
        self.backward = plan
        self.value = self.plan.value

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_reverse_kernel"

    def parameters(self) -> list[str]:
        given = names_in(*self.body()) | {"first_chunk_ptr"}
        names = [*pointers(self.plan, *self.parts), "do", "final_gradient", "cu_seqlens", "first_chunk"]
        names += [array.name for array in arrays(self.plan) if f"{array.name}_ptr" in given]
        names += ["state_gradients", *([R_GRADIENT] if self.plan.delta is not None else []), "initial_gradient"]
        heads = ["H", "HV"] if {"H", "key_head"} & given else ["HV"]
        sizes = (*heads, self.key, self.value, "CHUNK", f"BLOCK_{self.key}", f"BLOCK_{self.value}", "PRECISION")
        numbers = scalars(self.plan, *self.parts)
        return [*(f"{name}_ptr" for name in names), *numbers, "T", *(f"{name}: tl.constexpr" for name in sizes)]

    def context(self) -> Mapping[str, object]:
        """What a template needs to know of the kernel."""
        body = self.body()
        return {
            "kernel": self.kernel,
            "parameters": self.parameters(),
            "once": self.once(),
            "body": body,
            "key_heads": "key_head" in names_in(*body),
        }

    def lines(self) -> list[str]:
        return [*self.once(), *self.body()]

    def body(self) -> list[str]:
        """The statements for one chunk, from its end to its start."""
        offset, mask = self.tile("token * HV + value_head", TOKEN, (self.value,))
        value, key = self.axes.index(self.value), self.axes.index(self.key)
        within = f"{self.axes.mask(self.value)}[:, None]"
        state = f"chunk_row * ({self.value} * {self.key}) + {value}[:, None] * {self.key} + {key}[None, :]"
        lines = [
            *self.loads(self.parts[0]),
            f"{OUTPUT_GRADIENT} = tl.load(do_ptr + {offset}, mask={mask}, other=0.0).to(tl.float32)",
            f"{READ_GRADIENT} = {self.print(self.backward.walk_read, TOKEN)}",
            *(array.loaded(self.row_index, key, self.axes.mask(self.key)) for array in arrays(self.plan)),
            "",
            "S_operand = S_gradient.to(dtype)",
            f"tl.store(state_gradients_ptr + {state}, S_operand, mask={within} & {self.axes.mask(self.key)}[None, :])",
            f"read_operand = {READ_GRADIENT}.to(dtype)",
            *self._solved(),
            *self.equations.sum(walks.state_before(self.plan.chunk.adjoint)),
        ]
        return live(lines, {"S_gradient"})

    @property
    def equations(self) -> WalkPrinter:
        """The printer of the equations of this walk."""
        given = {"dS1": "S_operand", "dO0": "read_operand", "dR": R_GRADIENT}
        called = {"dU": "U_gradient", "dR": R_GRADIENT, "dS0": "S_gradient"}
        return WalkPrinter(KeyPlacement(self, "S_gradient", given), called)

    def _solved(self) -> list[str]:
        """dR = (I - L)^-T (A^T dread + w dS)."""
        found = walks.solved_back(self.plan.chunk.adjoint)
        if found is None:
            return []
        place = f"chunk_row * ({self.value} * CHUNK) + {self.axes.index(self.value)}[:, None] * CHUNK"
        within = f"{self.axes.mask(self.value)}[:, None]"
        of_updates, solution = found
        return [
            *self.equations.sum(of_updates),
            f"{self.equations.inverted(solution)}.to(dtype)",
            f"tl.store({R_GRADIENT}_ptr + {place} + {self.row_index}[None, :], {R_GRADIENT}, mask={within})",
        ]

    def _raw(self, load: RowLoad) -> bool:
        return False


def kernels_of(plan: KeyBackwardPlan) -> tuple[Prepare, Walk]:
    """What prepares the chunks and walks with the state: the forward kernels, where they do nothing else."""
    forward = plan.forward
    if plan.puts_out:
        return TurnedPrepare(forward), TurnedWalk(forward)
    if plan.prepares:
        return OwnPrepare(forward), OwnStates(forward)
    return Prepare(forward), Walk(forward, Form.STATES)


Kernel = Any
