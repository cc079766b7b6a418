"""Which tiles and how many warps kernels over the rows of chunks are launched with: rules by size, dtype and GPU.

A rule is a function of the package, so that whoever uses one reads and changes it there. Here it is data: names with
their values, which are expressions of Python over sizes, and the constants of each kernel. The numbers were chosen by
compiling every variant for each kind of GPU (decisions 084 and 085).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import others_of
from flagen.plan.rows import ROW
from flagen.printing import Printed, joined
from flagen.spec.model import Dims


@dataclass(frozen=True)
class Choice:
    """A name and its value, an expression of Python over what is known before it; and why, a line each."""

    name: str
    value: str
    why: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tiles:
    """The constants that a kernel is launched with; `base`: those of another kernel that it has, too.

    kernel: whose they are, `walk = inside` those of two; without a name they are what the rule returns.
    """

    kernel: str
    constants: tuple[Choice, ...]
    base: str = ""
    why: tuple[str, ...] = ()


@dataclass(frozen=True)
class Where:
    """The tiles that the rule returns where a condition holds."""

    condition: str
    tiles: Tiles


Part = Choice | Tiles | Where
"""A step of a rule."""


@dataclass(frozen=True)
class Tiling:
    """The rule for some kernels.

    function: what it is called in the package; parameters: the sizes that it takes; returns: the type of its result.
    docs: what it says of itself.
    """

    function: str
    parameters: tuple[str, ...]
    returns: str
    docs: str
    body: tuple[Part, ...]

    @property
    def returned(self) -> tuple[str, ...]:
        """The kernels whose tiles it returns, in order; of one kernel alone they have no name."""
        named = (part.kernel for part in self.body if isinstance(part, Tiles) and part.kernel not in ("", "tiles"))
        return tuple(kernel for names in named for kernel in names.split(" = "))

    def dump(self) -> str:
        """The rule as text."""
        lines = [f"{self.function}({', '.join(self.parameters)})"]
        for part in self.body:
            match part:
                case Choice(name, value):
                    lines.append(f"    {name} = {value}")
                case Tiles():
                    lines.append(f"    {_dumped(part)}")
                case Where(condition, tiles):
                    lines.append(f"    if {condition}: {_dumped(tiles)}")
        return "\n".join(lines)


def _dumped(tiles: Tiles) -> str:
    constants = [f"{constant.name} = {constant.value}" for constant in tiles.constants]
    return f"{tiles.kernel or 'tiles'}: {', '.join([*([tiles.base] if tiles.base else []), *constants])}"


_LAUNCH = (
    "Tiles and warps of the kernels for these sizes; `dtype` is that of the operands.\n\n"
    "Chosen for bf16 with {key} = {value} = 128 by what the compiled kernels would take. Wider keys need more room for "
    "a chunk's\nrows, float32 twice as much: they get smaller tiles."
)
_GRADIENTS = (
    "Tiles and warps of the kernel that has a program for every chunk, for `heads` value heads of a key head; "
    "`single`\ntells that the operands are float32, `capability` is the GPU's.\n\n"
    "Chosen for bf16 with {key} = {value} = 128: on sm_90 by the time that the compiled kernel would take, although "
    "some\nregisters spill; elsewhere to spill least."
)
_REVERSE = (
    "Tiles and warps of the walk in reverse, from those of the other walks; `single` tells that the operands are\n"
    "float32, `capability` the GPU's.\n\n"
    "The scores that it computes take registers. On sm_100 four warps have enough of them where the rows of the next "
    "two\nchunks are on their way; on sm_90 two programs side by side are worth more than a third stage."
)
_CROWDED = (
    "Rows that erase and rows that write: four matrices of a chunk do not fit beside one another for more rows.",
)
_TURNED = ("Rows that are evaluated here take registers in float32, and as many beside what they are turned with.",)
_SEVERAL = ("All of several states are in the registers of a program, so that it has fewer values of each.",)
_FROM_SHARED = (
    "From Hopper on, products of 64 rows take operands from shared memory: registers are left for wider blocks.",
)
_FEWER_WARPS = ("Four warps multiply 64 rows: with eight, both halves would compute some of the products.",)
_REFLECTED = (
    "Erasures of strength above 1 cancel one another, more of them where there are few channels: 16-bit products over",
    "longer chunks would lose the digits that are left.",
)
_WALK_WARPS = "4 if hopper and BLOCK_{key} <= 128 and not single else 8"


def tiling(plan: ChunkKernelPlan | KeyKernelPlan) -> Tiling:
    """The rule for the kernels of a chunk operator."""
    return _scalar_tiling(plan) if isinstance(plan, ChunkKernelPlan) else _key_tiling(plan)


def gradients_tiling(plan: ChunkBackwardPlan | KeyBackwardPlan) -> Tiling:
    """The rule for the kernel of the backward that has a program for every chunk."""
    rows = _rows_of(plan)
    docs = _GRADIENTS.format(key=rows.key, value=rows.value)
    docs += " Where operands stay in registers, tiles are narrower." if isinstance(plan, ChunkBackwardPlan) else ""
    body = _gradients(plan) if isinstance(plan, ChunkBackwardPlan) else _key_gradients(plan)
    parameters = (*_sizes(rows), "heads: int", "single: bool", "capability: int")
    return Tiling("gradients_config", parameters, "dict[str, int]", docs, tuple(body))


def tiles_reverse(plan: ChunkBackwardPlan) -> bool:
    """Whether the walk in reverse has tiles of its own: it computes scores, of as many tokens as rows."""
    return plan.rows.delta is not None and plan.rows.mixed is None and not _steps(plan.rows)


def reverse_tiling(plan: ChunkBackwardPlan) -> Tiling | None:
    """The rule for the walk in reverse, where it has tiles of its own."""
    if not tiles_reverse(plan):
        return None
    more = Tiles("", (Choice("num_warps", "4"), Choice("num_stages", "3")), base="walk")
    condition = f'capability > 9 and not single and walk["BLOCK_{plan.rows.key}"] <= 128'
    parameters = ("walk: dict[str, int]", "single: bool", "capability: int")
    body = (Where(condition, more), Tiles("", (), base="walk"))
    return Tiling("reverse_config", parameters, "dict[str, int]", _REVERSE, body)


# ------------------------------------------------------------------------------------------------------------- forward


def _launch_tiling(plan: ChunkKernelPlan | KeyKernelPlan, body: Iterator[Part], returns: str) -> Tiling:
    docs = _LAUNCH.format(key=plan.key, value=plan.value)
    steps = _steps(plan)
    counts = (f"{steps}: int",) if steps else ()
    parameters = (*_sizes(plan), *counts, "chunk_size: int", "dtype: torch.dtype")
    return Tiling("launch_config", parameters, returns, docs, tuple(body))


def _scalar_tiling(plan: ChunkKernelPlan) -> Tiling:
    return _launch_tiling(plan, _scalar_choices(plan), "tuple[dict[str, int], ...]")


def _scalar_choices(plan: ChunkKernelPlan) -> Iterator[Part]:
    key, steps = plan.key, _steps(plan)
    yield Choice("single", "dtype == torch.float32")
    yield from _padded_keys(plan)
    turned = bool(others_of(plan.chunk.normal_form))
    if plan.crowded or turned:
        yield Choice("rows", "min(chunk_size, 32)", _TURNED if turned else _CROWDED)
    else:
        yield _rows(_whole(plan))
    if plan.delta is not None and not plan.contracts:
        yield Choice("rows", f"min(rows, max(16, BLOCK_{key} // 2))", _REFLECTED)
    few_warps = plan.mixed is None and not turned
    if few_warps:
        yield Choice("hopper", "capability() == 9", _FEWER_WARPS)
    tiles = [Choice("CHUNK", "rows")]
    if steps:
        tiles.append(Choice("BLOCK_TOKENS", f"max(16, triton.next_power_of_2(rows // {steps}))"))
    tiles += [Choice(f"BLOCK_{dim}", f"BLOCK_{dim}") for dim in plan.keys]
    widest = "32 if single else 64" if plan.delta is None else f"32 if single or {_whole(plan)} > 128 else 64"
    if turned:
        widest = "32 if single or torch.version.hip else 64"
    if plan.key in plan.spec.pairs:
        widest = f"max(16, 8192 // BLOCK_{key})"
    if plan.mixed is not None:
        widest = f"16 if single or {key} > 128 else 32" if len(plan.mixed.states) == 2 else "16"
    walk = (
        Choice(f"BLOCK_{plan.value}", _block(plan.value, widest)),
        Choice("num_warps", _WALK_WARPS.format(key=key) if few_warps else "8"),
        Choice("num_stages", "1 if single else 2"),
    )
    if plan.prepare is not None:
        yield Tiles("tiles", tuple(tiles))
        warps = "8" if plan.crowded or plan.mixed is not None else "4 if hopper and rows == 64 else 8"
        why = "Without a loop there is nothing to fetch ahead."
        levels = [] if plan.mixed is None else [Choice("LEVELS", "rows.bit_length() - 1")]
        prepare = (*levels, Choice("num_warps", warps), Choice("num_stages", "1"))
        yield Tiles("prepare", prepare, base="tiles", why=(why,))
        yield Tiles("walk", walk, base="tiles", why=() if plan.mixed is None else _SEVERAL)
        return
    yield Tiles("walk", (*tiles, *walk))
    block = f'walk["BLOCK_{plan.value}"]'
    why = "Before Hopper a wide tile of outputs, with all scores of its chunk, does not fit the registers."
    narrower = f"{block} if capability() >= 9 else min({block}, 32)"
    yield Tiles("output", (Choice(f"BLOCK_{plan.value}", narrower),), base="walk", why=(why,))


def _key_tiling(plan: KeyKernelPlan) -> Tiling:
    returns = f"tuple[{', '.join(['dict[str, int]'] * (3 if plan.right else 2))}]"
    return _launch_tiling(plan, _key_choices(plan), returns)


def _key_choices(plan: KeyKernelPlan) -> Iterator[Part]:
    key, delta = plan.key, plan.delta is not None
    decays = plan.log_decay is not None
    leaf = decays and not plan.leaf.is_one
    yield Choice("single", "dtype == torch.float32")
    yield _padded(key)
    yield _rows(key)
    if delta and not plan.contracts:
        yield Choice("rows", f"min(rows, max(16, BLOCK_{key} // 2))", _REFLECTED)
    if decays:
        yield Choice("levels", "rows.bit_length() - 1")
    if leaf:
        why = "By the declared range of the decay, factors of so many rows, a power of two, stay finite both ways."
        yield Choice("leaf_levels", f"min(levels, {_leaf_levels(plan)})", (why,))
    yield Choice("hopper", "capability() == 9", _FEWER_WARPS)
    if plan.folded or (delta and not plan.whole_keys):
        yield Choice("modern", "capability() >= 9", _FROM_SHARED)
    if not plan.whole_keys:
        modern = "64 if modern and rows == 64 else 32" if delta else "64 if hopper and rows == 64 else 32"
        yield Choice("widest", "16 if single else 32" if plan.folded else modern)
    whole = f"BLOCK_{key}"
    levels = [Choice("LEVELS", "levels")] if decays else []
    leaves = [Choice("LEAF_LEVELS", "leaf_levels")] if leaf else []
    warps = Choice("num_warps", "4 if hopper or rows < 64 or torch.version.hip else 8", ("A warp of AMD's is two.",))
    yield Tiles(
        "prepare",
        (
            Choice("CHUNK", "rows"),
            Choice(whole, whole if plan.whole_keys else f"min({whole}, widest)"),
            *levels,
            *leaves,
            warps,
            Choice("num_stages", "1"),
        ),
    )
    widest = f"32 if single or {key} > 128{' or not modern' if plan.folded else ''} else 64"
    yield Tiles(
        "walk",
        (
            Choice("CHUNK", "rows"),
            Choice(whole, whole),
            Choice(f"BLOCK_{plan.value}", _block(plan.value, widest)),
            Choice("num_warps", _WALK_WARPS.format(key=key)),
            Choice("num_stages", "1 if single else 2"),
        ),
    )
    if plan.right:
        values = Choice(f"BLOCK_{plan.value}", f'min(walk["BLOCK_{plan.value}"], 32)')
        keys = Choice(whole, whole if plan.whole_keys else f"min({whole}, 64)")
        yield Tiles("output", (keys, values, Choice("num_warps", "4")), base="prepare")


def _leaf_levels(plan: KeyKernelPlan) -> str:
    """The levels that one product anchored at the middle stands for."""
    levels = {dtype: rows.bit_length() - 1 for dtype, rows in plan.leaf.rows.items()}
    if len(set(levels.values())) == 1:
        return str(levels["float32"])
    listed = ", ".join(f"torch.{dtype}: {level}" for dtype, level in levels.items())
    return f"{{{listed}}}[dtype]"


# ------------------------------------------------------------------------------------------------------------ backward

_MODERN = "Matrix products take operands from shared memory."
_TRANSPOSES = 'tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)'
_WRONG = "Before Triton 3.8 a product with the transpose of a product may be wrong where that is 64 columns wide."


def _gradients(plan: ChunkBackwardPlan) -> Iterator[Part]:
    rows, prepared, steps = plan.rows, plan.rows.prepare is not None, _steps(plan.rows)
    yield from map(_padded, rows.spec.pairs.get(rows.key, ()))
    modern = Choice("modern", "capability >= 9", (_MODERN,))
    if rows.mixed is not None:
        keys = _keys(plan, "16") if plan.whole_keys else Choice(f"BLOCK_{rows.key}", "16")
        tiles = _of_chunk(plan, keys, _block(rows.value, "32"), Choice("num_warps", "8"))
        yield Tiles("", tiles, why=("What rows get of each of several states is in registers at once.",))
        return
    if (prepared and (rows.crowded or rows.key not in rows.spec.pairs)) or not plan.whole_keys:
        yield modern
    if not (plan.whole_keys or rows.crowded):
        few_keys = prepared and bool(steps)
        if not few_keys:
            yield Choice("transposes", _TRANSPOSES, (_WRONG,))
        few = "128" if prepared else f"128 if transposes or {rows.value} > 64 else 32"
        keys = Choice(f"BLOCK_{rows.key}", _block(rows.key, "32" if few_keys else "64 if transposes else 32"))
        tiles = _of_chunk(plan, keys, _block(rows.value, few), Choice("num_warps", "4"))
        yield Where("capability == 9 and not single", Tiles("", tiles))
    if not plan.whole_keys:
        yield Choice("keys", ("16" if steps else "32 if modern else 16") if prepared else "64 if modern else 32")
        if not prepared:
            yield Choice("keys", "keys // 2 if heads > 1 else keys", ("Sums over the heads stay in registers, too.",))
    widest = "32 if single else 64 if modern else 16" if prepared else "32 if single else 64"
    if prepared and plan.whole_keys:
        widest = "64 if modern and not single else 32"
    if rows.key in rows.spec.pairs:
        widest = "16"
    warps = Choice("num_warps", "8")
    if rows.crowded:
        warps = Choice("num_warps", "4 if modern else 8", ("Chunks are shorter here.",))
    yield Tiles("", _of_chunk(plan, _keys(plan, "keys"), _block(rows.value, widest), warps))


def _key_gradients(plan: KeyBackwardPlan) -> Iterator[Part]:
    rows, additive = plan.forward, plan.forward.delta is None
    yield Choice("modern", "capability >= 9", (_MODERN,))
    if not plan.whole_keys:
        why = ["Not 64 keys: before Triton 3.7.1 such a product with the transpose of a product is wrong."]
        if plan.prepares:
            why.append("Four matrices of a chunk: what more keys would spill goes to memory.")
        few = Choice(f"BLOCK_{rows.key}", _block(rows.key, "16" if plan.prepares else "32"))
        values = _block(rows.value, "128" if additive else "64")
        tiles = _of_chunk(plan, few, values, Choice("num_warps", "4"))
        yield Where("capability == 9 and not single", Tiles("", tiles, why=tuple(why)))
    keys = _keys(plan, "32 if modern else 16" if additive else "16")
    values = _block(rows.value, "64 if modern and not single else 32")
    yield Tiles("", _of_chunk(plan, keys, values, Choice("num_warps", "8")))


def _keys(plan: ChunkBackwardPlan | KeyBackwardPlan, widest: str) -> Choice:
    """The block of keys of the kernel of gradients."""
    key = _rows_of(plan).key
    if plan.whole_keys:
        pair = _rows_of(plan).spec.pairs.get(key)
        whole = _padded(key).value if pair is None else _pairs(pair)
        return Choice(f"BLOCK_{key}", whole, ("Something sums over them.",))
    return Choice(f"BLOCK_{key}", _block(key, widest))


def _of_chunk(
    plan: ChunkBackwardPlan | KeyBackwardPlan, keys: Choice, values: str, warps: Choice
) -> tuple[Choice, ...]:
    members = Choice("MEMBERS", "triton.next_power_of_2(heads)")
    sides = _rows_of(plan).spec.pairs.get(_rows_of(plan).key, ())
    return (
        *(Choice(f"BLOCK_{side}", f"BLOCK_{side}") for side in sides),
        keys,
        Choice(f"BLOCK_{_rows_of(plan).value}", values),
        members,
        warps,
        Choice("num_stages", "1"),
    )


def _rows_of(plan: ChunkBackwardPlan | KeyBackwardPlan) -> ChunkKernelPlan | KeyKernelPlan:
    return plan.rows if isinstance(plan, ChunkBackwardPlan) else plan.forward


# -------------------------------------------------------------------------------------------------------------- shared


def _sizes(plan: ChunkKernelPlan | KeyKernelPlan) -> tuple[str, ...]:
    """The sizes that a rule takes: those of the keys, which may be pairs, and of the values."""
    return tuple(f"{dim}: int" for dim in sizes_of(plan))


def sizes_of(plan: ChunkKernelPlan | KeyKernelPlan) -> Dims:
    """The same by name; in front of them those that rows are made of."""
    nf = plan.chunk.normal_form
    return (*others_of(nf), *nf.spec.pairs.get(nf.key, (nf.key,)), nf.value)


def _whole(plan: ChunkKernelPlan) -> str:
    """How many keys there are, as a rule knows it."""
    return f"BLOCK_{plan.key}" if plan.key in plan.spec.pairs else plan.key


def _padded_keys(plan: ChunkKernelPlan | KeyKernelPlan) -> Iterator[Choice]:
    """All of the keys: of pairs, either side and then both."""
    pair = plan.spec.pairs.get(plan.key)
    yield from (Choice(f"BLOCK_{dim}", f"triton.next_power_of_2({dim})") for dim in others_of(plan.chunk.normal_form))
    if pair is None:
        yield _padded(plan.key)
        return
    yield from map(_padded, pair)
    yield Choice(f"BLOCK_{plan.key}", _pairs(pair))


def _pairs(pair: Dims) -> str:
    """The lanes of all pairs of two dims."""
    return joined("*", *(Printed(f"BLOCK_{side}") for side in pair)).text


def _padded(dim: str) -> Choice:
    """A whole dim, in a tile that matrix products take."""
    return Choice(f"BLOCK_{dim}", f"max(16, triton.next_power_of_2({dim}))")


def _block(dim: str, widest: str) -> str:
    """A block of a dim, no wider than some size."""
    return f"max(16, min({widest}, triton.next_power_of_2({dim})))"


def _rows(key: str) -> Choice:
    return Choice("rows", f"min(chunk_size, 32) if single or {key} > 128 else chunk_size")


def _steps(plan: ChunkKernelPlan | KeyKernelPlan) -> str:
    """The name of the step count, where a token has several rows."""
    if isinstance(plan, KeyKernelPlan) or plan.row_axis != ROW or plan.spec.steps is None:
        return ""
    return plan.spec.steps.symbol
