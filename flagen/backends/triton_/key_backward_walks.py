"""The kernels of the backward for decays of each key that do again what a forward call does, as source lines: the rows
scaled again, and the walk of the states."""

from __future__ import annotations

from flagen.backends.triton_.key_kernel import Pass, Prepare, Walk
from flagen.backends.triton_.key_rows import Array, arrays
from flagen.backends.triton_.walk import Form
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.key_kernel import KeyKernelPlan

SQUARE = ("CHUNK", "CHUNK")


def matrices(plan: KeyKernelPlan) -> tuple[Array, ...]:
    """What is prepared of a chunk that is no larger than it: a forward call can hand it on."""
    return tuple(array for array in arrays(plan) if array.dims == SQUARE)


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


def kernels_of(plan: KeyBackwardPlan) -> tuple[Prepare, Walk]:
    """What prepares the chunks and walks with the state: the forward kernels, where they do nothing else."""
    forward = plan.forward
    if plan.puts_out:
        return TurnedPrepare(forward), TurnedWalk(forward)
    if plan.prepares:
        return OwnPrepare(forward), OwnStates(forward)
    return Prepare(forward), Walk(forward, Form.STATES)
