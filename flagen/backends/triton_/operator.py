"""What torch knows a function with kernels as: an operator, its arguments in their order, its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from flagen.backends.signature import Parameter, parameters
from flagen.backends.text import tuple_of
from flagen.backends.torch_.common import check_call
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.names import final_name, free_name, initial_name
from flagen.plan.schedule import declared_names
from flagen.spec.model import Spec


@dataclass(frozen=True)
class Operator:
    """A registered operator and the PyTorch form it falls back on where not all of `has_kernel` holds.

    It takes the arguments of the function, in another order: first the tensors that can have a gradient, each state on
    its own, then `cu_seqlens`, then what is no tensor. It returns the output and every final state.

    kept: the arrays it returns besides, which its gradient takes; how many of them, an argument of its own says.
    sizes_of_kept: what their sizes depend on beside the sizes of the arguments; products: what says the dtype that most
    of them have.
    backward: the function that launches the kernels of its gradient, where there are any; beside what was passed to the
        call it takes `keywords`.
    takes_output: whether the gradient takes the output of the call, too, before the arrays that are kept.
    """

    spec: Spec
    name: str
    pytorch_form: str
    has_kernel: tuple[str, ...] = ("operators.has_kernel(args)",)
    chunk_size: Parameter | None = None
    tokens_of_chunk: str = "chunk_size"
    kept: tuple[str, ...] = ()
    sizes_of_kept: tuple[str, ...] = ()
    products: str = ""
    backward: str = ""
    keywords: tuple[str, ...] = ()
    takes_output: bool = False

    @cached_property
    def taken(self) -> frozenset[str]:
        return frozenset(declared_names(self.spec))

    @property
    def initials(self) -> tuple[str, ...]:
        """The states a call starts from."""
        states = self.spec.states
        return ("initial_state",) if len(states) == 1 else tuple(initial_name(s.name, self.taken) for s in states)

    @property
    def finals(self) -> tuple[str, ...]:
        """The states a call ends with."""
        return tuple(final_name(state.name, self.taken) for state in self.spec.states)

    @property
    def cotangents(self) -> tuple[str, ...]:
        """The gradients of what a call returned."""
        return tuple(free_name(name, self.taken) for name in ("do", *(f"d{final}" for final in self.finals)))

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Those of the function, `initial_state` split up and `chunk_size` added."""
        states = [Parameter(name, "Tensor | None", None, True, "") for name in self.initials]
        given = [p for p in parameters(self.spec) if p.name != "initial_state"]
        keep = [Parameter(self.keep, "int", None, True, "")] if self.kept else []
        return (*given, *states, *([] if self.chunk_size is None else [self.chunk_size]), *keep)

    @property
    def keep(self) -> str:
        """The argument that says what is kept for the gradient."""
        return free_name("keep", self.taken)

    @property
    def differentiated(self) -> tuple[str, ...]:
        """The arguments that can have a gradient: an operator's first."""
        return (*tensor_names(self.spec), *self.initials)

    @property
    def settings(self) -> tuple[str, ...]:
        """The other arguments."""
        others = (p.name for p in self.parameters if p.name not in (*self.differentiated, "cu_seqlens"))
        return ("cu_seqlens", *others)

    def _no_kernel(self) -> str:
        """When the PyTorch form runs."""
        first, *others = self.has_kernel
        return f"not ({' and '.join(self.has_kernel)})" if others else f"not {first}"

    def context(self) -> Mapping[str, object]:
        """Every value `triton/_operator.py.j2` uses, but for those that all files of a package use."""
        declared = {p.name: f"{p.name}: {p.annotation}" for p in self.parameters}
        arguments = (*self.differentiated, *self.settings)
        state_sizes = {state.name: ("runs", "HV", *state.dims) for state in self.spec.states}
        return {
            "operator": self.name,
            "backward": self.backward,
            "backward_call": self._backward_call(),
            "has_kernel": " and ".join(self.has_kernel),
            "no_kernel": self._no_kernel(),
            "finals": self.finals,
            "declarations": [declared[name] for name in arguments],
            "arguments": arguments,
            "differentiated": self.differentiated,
            "settings": self.settings,
            "cotangents": self.cotangents,
            "takes_output": self.takes_output,
            "keep": self.keep if self.kept else None,
            "kept": self.kept,
            "sizes_of_kept": self.sizes_of_kept,
            "products": self.products,
            "pytorch_call": self._pytorch_call(),
            "check_all": self._check(),
            "check_shapes": self._check(shapes_only="True"),
            "check": check_call(self.spec, shapes_only="torch.compiler.is_compiling()"),
            "sizes_of_output": _sizes(("batch", "tokens", "HV", *self.spec.output_dims)),
            "sizes_of_states": [(f, _sizes(s)) for f, s in zip(self.finals, state_sizes.values(), strict=True)],
        }

    def _check(self, **named: str) -> str:
        return check_call(self.spec, **{"initial_state": self._initial_state(), **named})

    def _pytorch_call(self) -> str:
        given = {"initial_state": self._initial_state(), "chunk_size": self.tokens_of_chunk}
        every = (*parameters(self.spec), *([] if self.chunk_size is None else [self.chunk_size]))
        passed = (f"{p.name}={given.get(p.name, p.name)}" if p.keyword else p.name for p in every)
        return f"{self.pytorch_form}({', '.join(passed)})"

    def _backward_call(self) -> str:
        """The call of `backward`; it takes the function's arguments after the gradients of its results."""
        given = [p for p in parameters(self.spec) if p.name != "output_final_state"]
        values = {"initial_state": self._initial_state()}
        passed = [f"{p.name}={values.get(p.name, p.name)}" if p.keyword else p.name for p in given]
        names = ", ".join(f'"{name}"' for name in self.differentiated)
        wanted = f"wanted=operators.asked(({names}), wanted)"
        return f"{self.backward}({', '.join((*self.cotangents, *passed, *self.keywords, wanted))})"

    def _initial_state(self) -> str:
        """The argument `initial_state` from the states that an operator is handed."""
        first, *others = self.initials
        return f"None if {first} is None else {tuple_of(self.initials)}" if others else first


def _sizes(names: tuple[str, ...]) -> str:
    return ", ".join(f"args.{name}" for name in names)
