"""What torch knows a function with kernels as: an operator, its arguments in their order, its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from flagen.backends.signature import Parameter, output_dtype, parameters
from flagen.backends.text import tuple_of
from flagen.backends.torch_.common import check_call
from flagen.backends.triton_.kernel import tensor_names
from flagen.plan.free_names import final_name, free_name, initial_name
from flagen.plan.schedule import declared_names
from flagen.spec.model import Dims, Spec

SYMBOLIC = "SymInt"
"""The type of a number of micro-steps: torch.compile traces it once for all numbers."""

SCHEMA = {"float": "float", "float | None": "float?", "int": "int", "bool": "bool"}
"""Types of arguments that are no tensors, as torch writes them."""

MOST_PAIRS = 1024
"""For how many pairs of keys there are kernels over the tokens of a chunk: a program has all of them in registers."""


@dataclass(frozen=True)
class Operator:
    """A registered operator and the PyTorch form it falls back on.

    It takes the arguments of the function, in another order: first the tensors that can have a gradient, each state on
    its own, then `cu_seqlens`, then what is no tensor. It returns the output and every final state.

    rows_of_form: how many rows of a token `chunk_size` counts, where the PyTorch form counts tokens.
    most_steps: for how many micro-steps a token there are kernels.
    pairs: the dim of pairs of which a program has all, and for `MOST_PAIRS` of which there are kernels.
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
    chunk_size: Parameter | None = None
    rows_of_form: str = ""
    most_steps: int | None = None
    pairs: str = ""
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

    def context(self) -> Mapping[str, object]:
        """Every value `triton/_operator.py.j2` uses, but for those that all files of a package use."""
        declared = {p.name: f"{p.name}: {p.annotation}" for p in self.parameters}
        arguments = (*self.differentiated, *self.settings)
        annotations = {p.name: p.annotation for p in self.parameters}
        _, *others = self.settings
        steps = self.spec.steps.argument if self.spec.steps else None
        return {
            "operator": self.name,
            "form": self.pytorch_form,
            "falls_back_on": "_in_pytorch" if self.rows_of_form else self.pytorch_form,
            "rows_of_form": self.rows_of_form,
            "backward": self.backward,
            "finals": self.finals,
            "initials": self.initials,
            "declarations": [declared[name] for name in arguments],
            "arguments": arguments,
            "given": tuple_of(tensor_names(self.spec)),
            "passed": [name for name in self.settings if not self.kept or name != self.keep],
            "schema": {name: SYMBOLIC if name == steps else SCHEMA[annotations[name]] for name in others},
            "returned": self.returned,
            "most_steps": self.most_steps,
            "most_pairs": (self.pairs, MOST_PAIRS) if self.pairs else None,
            "takes_output": self.takes_output,
            "keep": self.keep if self.kept else None,
            "kept": self.kept,
            "sizes_of_kept": self.sizes_of_kept,
            "products": self.products,
            "handed_on": [keyword.split("=", 1) for keyword in self.keywords],
            "check": check_call(self.spec, shapes_only="torch.compiler.is_compiling()"),
        }

    @property
    def returned(self) -> list[str]:
        """What is returned for every token, as the operator is told."""
        return [result_of(self.spec.output_dims, output_dtype(self.spec))]


def result_of(dims: Dims, dtype: str) -> str:
    """A result over `dims` whose dtype a function writes as `dtype`."""
    like = f'"{dtype.removesuffix(".dtype")}"' if dtype.endswith(".dtype") else dtype
    last = "" if dtype == "args.dtype" else f", {like}"
    return f"operators.Result({tuple_of(map(repr, dims))}{last})"
