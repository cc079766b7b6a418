"""The contexts of the files of a stage that solves a system: kernels, their launches, the operator, its gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flagen.backends.protocol import Rendering
from flagen.backends.signature import Parameter
from flagen.backends.solutions import MAX_ITERATIONS
from flagen.backends.text import listed
from flagen.backends.torch_.common import check_call, common_context
from flagen.backends.triton_.chunk_launcher import PACKED, START
from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.backends.triton_.device import OF_CHUNKS
from flagen.backends.triton_.kernel import Docs, function_context, tensor_names
from flagen.backends.triton_.launched import Launched
from flagen.backends.triton_.tiling_printer import tiling_context
from flagen.kernel.ir import Array, Kernel, Program
from flagen.kernel.rows import ITERATIONS
from flagen.kernel.solves import Solve
from flagen.plan.chunk_families import SIZES, sizes_in_words
from flagen.plan.free_names import asked_name, final_of, free_name, initial_of
from flagen.plan.kernel_names import kernel_name
from flagen.plan.model import Plan, SolvedPlan
from flagen.plan.schedule import declared_names
from flagen.plan.solution_tiling import solution_tiling
from flagen.plan.unavailable import Unavailable
from flagen.spec.model import Input, Param

_WALK = "Walk the chunks of one sequence of one value head and leave behind the matrix before each of them."
_SOLVE = "Solve the system of every token of one chunk of one value head, by steps of conjugate gradients."
_STEP = "With r what is left of the right side, and p = r before the first step, each of them is"


def solution_renderings(
    plan: Plan, solved: SolvedPlan, program: Program, about: Mapping[str, object]
) -> tuple[Rendering, ...]:
    """The files of the kernels, and of what launches them; `about`: what the public function says and checks."""
    context = _Context(plan, solved, program)
    files = [
        Rendering("chunk_kernels.py", "triton/solution_kernels.py.j2", context.of_kernels()),
        Rendering("chunk_solution.py", "triton/solution_launch.py.j2", context.of_launch()),
        Rendering("chunk.py", "triton/solution.py.j2", {**context.of_call(), **about}),
    ]
    if context.backward:
        files.append(Rendering("chunk_backward.py", "triton/solution_backward.py.j2", context.of_gradients()))
    return tuple(files)


class _Context:
    """What the files are printed from."""

    def __init__(self, plan: Plan, solved: SolvedPlan, program: Program) -> None:
        self.plan, self.solved, self.program = plan, solved, program
        self.spec, self.rows, self.read = plan.spec, solved.rows.solve, solved.rows.read
        self.backward = "" if isinstance(plan.chunk_backward, Unavailable) else f"chunk_backward_{self.spec.name}"
        self.taken = set(declared_names(self.spec))

    @property
    def _size(self) -> Parameter:
        return Parameter(
            "chunk_size", "int", str(self.solved.size), True, f"the most tokens per chunk: {sizes_in_words()}."
        )

    @property
    def _x(self) -> str:
        """What the solution is called beside the arguments of a call."""
        return free_name("solution", self.taken)

    def _common(self) -> dict[str, object]:
        """What all files have."""
        shared = common_context(self.spec, self._size, MAX_ITERATIONS)
        about = {name: shared[name] for name in ("name", "title", "cited", "equations")}
        return {**about, "tensors": tensor_names(self.spec), "solution": self._x}

    @property
    def _check(self) -> str:
        return check_call(self.spec, shapes_only="torch.compiler.is_compiling()")

    # --------------------------------------------------------------------------------------------------------- kernels

    def of_kernels(self) -> Mapping[str, object]:
        docs = {"states": self._about_walk(), "solve": self._about_solve()}
        return {
            "name": self.spec.name,
            "device": OF_CHUNKS,
            "tiling": tiling_context(solution_tiling(self.solved.rows)),
            "kernels": [
                function_context(Launched(self.program, name).kernel, self.program.kernel(name), said, ChunkPrinter)
                for name, said in docs.items()
            ],
        }

    @property
    def _matrix(self) -> str:
        return self.read.spec.states[0].name

    def _about_walk(self) -> Docs:
        key, value, matrix = self.rows.key, self.rows.value, self._matrix
        whole = f"whole {matrix}" if self.rows.row_decay is not None else matrix
        owned = (
            f"A program owns BLOCK_{value} indices of {value} of {matrix} of one head of one sequence, transposed: "
            f"[{value}, {key}]. w is what multiplies the square of a key, decay to the chunk's end and all. Each token "
            f"of a head reads {value} + {key} elements and its numbers; each chunk writes {value}*{key}, in float32."
        )
        return Docs(_WALK, [f"{matrix} = {whole} + (w k)^T k"], (owned,))

    def _about_solve(self) -> Docs:
        key, value, matrix = self.rows.key, self.rows.value, self._matrix
        start = "e^G " if self.rows.row_decay is not None else ""
        decay = " e^(G_i - G_j)" if self.rows.row_decay is not None else ""
        lines = [
            f"A_ij = p_i . k_j w_j{decay}, j <= i",
            f"q = {start}p {matrix} + A k + {self.read.shift.name} p",
            "x = x + (r.r / p.q) p",
            "r' = r - (r.r / p.q) q",
            "p = r' + (r'.r' / r.r) p",
        ]
        owned = (
            f"A program has all of a chunk of one head, and {matrix} before it, as [{value}, {key}]; w "
            "is what multiplies the square of a key. Right sides are scaled to a sum of 1, and a token whose residual "
            f"is nothing beside that takes no more steps. Each token of a head reads {value} elements of its right side"
            f" and {value} + {key} of its keys, and writes {value}; each chunk reads {value}*{key} of {matrix}, once."
        )
        return Docs(_SOLVE, lines, (owned,), _STEP)

    # -------------------------------------------------------------------------------------------------------- launches

    def of_launch(self) -> Mapping[str, object]:
        key, value = self.rows.key, self.rows.value
        return {
            **self._common(),
            "kernels": [Launched(self.program, name).kernel for name in ("states", "solve")],
            "prepared": list(self._prepared()),
            "of_products": ", ".join(self._vectors()),
            "states_shape": f"args.{value}, args.{key}",
            "final_shape": f"args.{value}, args.{key}",
            "key": key,
            "value": value,
            "walk_arguments": self._arguments("states"),
            "solve_arguments": self._arguments("solve"),
        }

    def _vectors(self) -> Iterator[str]:
        """The inputs that products are of."""
        yield from dict.fromkeys([self.read.right.name, *(s.name for s in self.read.sources.values() if s.dims)])

    def _given(self) -> Iterator[tuple[str, str]]:
        """What the launch calls each tensor of the read, and what it is of the arguments."""
        declared: tuple[Input | Param, ...] = (*self.read.spec.inputs, *self.read.spec.params)
        for decl in declared:
            if decl.name == self.read.direction or (isinstance(decl, Param) and not decl.is_tensor):
                continue
            source = self.read.sources.get(decl.name)
            name = decl.name if source is None else source.name
            spread = isinstance(decl, Input) and source is not None and decl.heads != source.heads
            yield decl.name, f"launches.of_value_heads({name}, args.HV)" if spread else name

    def _prepared(self) -> Iterator[tuple[str, str]]:
        """Each of them as kernels take it: products of float32 have operands of float32."""
        for name, value in self._given():
            source = self.read.sources.get(name)
            wide = f"{value}.to(torch.float32)" if source is not None and source.dims else value
            yield free_name(f"{name}_rows", self.taken), f"{wide}.contiguous()"

    def _arguments(self, kernel: str) -> list[str]:
        """The arguments of a launch but for the tiles."""
        data = self.program.kernel(kernel)
        arrays = {**self._shared_arrays(), **{f"{a.name}_ptr": self._of_system(a) for a in self._own_arrays(data)}}
        found = []
        for parameter in ChunkPrinter(data).parameters():
            name = parameter.removesuffix(": tl.constexpr")
            if name == parameter:
                found.append(arrays[name])
            elif name in ("H", "HV", *self.spec.dims):
                found.append(f"{name}=args.{name}")
        return found

    def _shared_arrays(self) -> dict[str, str]:
        """What launches call the tensors of the read, and what both of them have, by the parameters of kernels."""
        read = self.read.spec
        (state,) = read.states
        rows = (called for called, _ in self._prepared())
        return {
            **{f"{kernel_name(name)}_ptr": called for (name, _), called in zip(self._given(), rows, strict=True)},
            f"{initial_of(read, state)}_ptr": START,
            f"{final_of(read, state)}_ptr": "final",
            "cu_seqlens_ptr": PACKED,
            "chunk_sequence_ptr": "chunk_sequence",
            "first_chunk_ptr": "first_chunk",
            "states_ptr": "states",
            "o_ptr": self._x,
            ITERATIONS: ITERATIONS,
            "T": "args.tokens",
        }

    def _own_arrays(self, kernel: Kernel) -> Iterator[Array]:
        """Arguments of a kernel that are none of the read: a right side, and what is on the diagonal."""
        known = {kernel_name(name) for name, _ in self._given()}
        states = {state.name for state in self.read.spec.states}
        yield from (a for a in kernel.arrays if a.life == "argument" and a.name not in known and a.of not in states)

    def _of_system(self, array: Array) -> str:
        right = Solve(self.solved.rows).right.array
        return "right_side" if array.name == right.name else f"{array.of}.contiguous()"

    # ------------------------------------------------------------------------------------------------------------ call

    def of_call(self) -> Mapping[str, object]:
        dims = ", ".join(map(repr, self.spec.output_dims))
        right = self.read.right
        documented = common_context(self.spec, self._size, MAX_ITERATIONS)
        del documented["output_dtype"]
        return {
            **documented,
            **self._common(),
            "check": self._check,
            "backward": self.backward,
            "sizes": SIZES,
            "result": f"operators.Result(({dims},))",
            "right": f"launches.of_value_heads({right.name}, args.HV)" if right.heads == "H" else right.name,
            "matrices": (self.rows.key, self.rows.value),
            "about": self._about(),
        }

    def _about(self) -> str:
        name = self.spec.name
        gradients = (
            f"Gradients have kernels, too: those of `{self.backward}`."
            if self.backward
            else "The kernels go forward only."
        )
        where = "" if self.backward else "where a gradient is wanted (grad mode is on and an argument requires one), "
        return (
            "Matrix products are of float32, for inputs of 16 bits of their first digits alone (tf32), and the rest is "
            f"float32 as well. {gradients} `naive_chunk_{name}` runs in their place {where}for float64, for sizes of "
            f"{listed(dict.fromkeys((self.rows.value, self.rows.key)))} above 128, or 64 before Hopper, and for "
            "tensors that are not on a GPU, unless Triton's interpreter is on (TRITON_INTERPRET=1)."
        )

    # ------------------------------------------------------------------------------------------------------- gradients

    def of_gradients(self) -> Mapping[str, object]:
        read, shift, right = self.solved.read.spec, self.read.shift, self.read.right
        sources = {name: decl.name for name, decl in self.read.sources.items()}
        sources |= {param.name: param.name for param in read.params if param.is_tensor}
        given = dict(self._given())
        return {
            **self._common(),
            "check": self._check,
            "backward": self.backward,
            "size": self._size.default,
            "steps": MAX_ITERATIONS.default,
            "of_read": f"chunk_backward_{read.name}",
            "asked_by_read": asked_name(read),
            "right": right.name,
            "sources": {name: sources[name] for name in tensor_names(read) if name != self.read.direction},
            "given": [given.get(name, self._x) for name in tensor_names(read)],
            "read_names": [repr(name) for name in tensor_names(read)],
            "shift": shift.name,
            "of_shift": self._of_shift(shift),
        }

    def _of_shift(self, shift: Input | Param) -> str:
        """The gradient of what is on the diagonal, from that of each of its elements for each token and head."""
        if isinstance(shift, Param):
            return f"{self._along(shift)}.sum((0, 1)).to({shift.name}.dtype)"
        return f"launches.of_key_heads({self._along(shift)}, {shift.name}).to({shift.name}.dtype)"

    def _along(self, shift: Input | Param) -> str:
        return "on_diagonal" if shift.dims else "on_diagonal.sum(-1)"
