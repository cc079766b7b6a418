"""Which blocks and how many warps recurrent kernels and those of scans are launched with: rules by size.

The numbers come from compiling every variant for sm_80, sm_90, sm_100 and gfx942 (decisions 052 and 054, and those on
splitting the state and on elementwise scans).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from flagen.plan.fused import FusedPlan
from flagen.plan.fused_backward import FusedBackwardPlan
from flagen.plan.pieces import PieceKernelPlan
from flagen.plan.reverse_mode import ReversePlan
from flagen.plan.scan_kernel import ScanKernelPlan
from flagen.plan.split import Split
from flagen.plan.tiles import MAX_DIMS
from flagen.plan.tiling import Choice, Tiles, Tiling
from flagen.printing import PRODUCT, Printed, joined
from flagen.spec.model import Dims, Spec

MIN_MATRIX_BLOCK = 16
"""`tl.dot` takes no smaller operands."""

_VALUES, _VALUES_PER_WARP = 12288, 1536
"""How much of its tiles a program of a transposed walk holds, and a warp: three tiles of 128 x 32 in 8 warps, 48 values
a thread."""


def fused_tiling(plan: FusedPlan) -> Tiling:
    """The rule for the recurrent kernel."""
    docs = (
        "Blocks and warps for these sizes: about 64 values of the state a thread leave registers for the token's rows."
    )
    return _tiling(plan.spec, plan.order, docs, _fused(plan))


def reverse_mode_tiling(plan: ReversePlan) -> Tiling:
    """The rule for the kernels that transpose statements."""
    docs = (
        "Blocks and warps of the gradients for these sizes: a state before and after a statement and its gradient stay "
        "in\nregisters, 48 values a thread. The states are walked with the blocks of the forward kernel."
    )
    return _tiling(plan.forward.spec, plan.forward.order, docs, _reverse_mode(plan))


def scan_tiling(plan: ScanKernelPlan, *, backward: bool) -> Tiling:
    """The rule for the kernel of elementwise scans: a thread holds up to twenty tiles of a chunk at once, so eight to
    sixteen values of each fit."""
    rule = _tiling(plan.spec, plan.order[1:], "Blocks and warps for these sizes.", _scan(plan, backward=backward))
    return Tiling(rule.function, ("CHUNK: int", *rule.parameters), rule.returns, rule.docs, rule.body)


def piece_tiling(plan: PieceKernelPlan) -> Tiling:
    """The rule for the kernels that walk mini-batches: a program has all of its matrices in registers."""
    docs = (
        "Blocks and warps for these sizes: 32 values of a matrix a thread, and no more than 8 warps, as a product of\n"
        "warp groups needs more registers than a thread has then. Loads wait: in stages they take the shared memory "
        "of operands."
    )
    spec = plan.spec
    rule = _tiling(spec, spec.axes, docs, _pieces(plan), {"num_stages": "1"})
    return Tiling(rule.function, ("CHUNK: int", *rule.parameters), rule.returns, rule.docs, rule.body)


def fused_backward_tiling(plan: FusedBackwardPlan) -> Tiling:
    """The rule for the kernels of the recurrent backward: for those that walk a sequence, and those of a segment."""
    docs = (
        "Blocks and warps for these sizes: of the kernels that walk a sequence, and of those that have a segment.\n\n"
        f"A walk sums over {plan.key} alone: small blocks of {plan.value}, many programs. In a segment there are sums "
        f"over {plan.value}, too:\nas much of the state as registers hold."
    )
    spec = plan.forward.spec
    parameters = tuple(f"{dim}: int" for dim in spec.axes if dim not in spec.pairs)
    body = tuple(_fused_backward(plan))
    return Tiling("launch_config", parameters, "tuple[dict[str, int], dict[str, int]]", docs, body)


def _tiling(
    spec: Spec, dims: Dims, docs: str, choices: Iterable[Choice], options: Mapping[str, str] | None = None
) -> Tiling:
    sizes = tuple(f"{dim}: int" for dim in dims if dim not in spec.pairs)
    blocks = tuple(Choice(f"BLOCK_{dim}", f"BLOCK_{dim}") for dim in dims)
    others = (Choice(name, value) for name, value in (options or {}).items())
    tiles = Tiles("", (*blocks, Choice("num_warps", "num_warps"), *others))
    return Tiling("launch_config", sizes, "dict[str, int]", docs, (*choices, tiles))


# ----------------------------------------------------------------------------------------------------------- recurrent


def _fused(plan: FusedPlan) -> Iterator[Choice]:
    for dim in plan.order:
        if plan.split is None or dim != plan.split.dim:
            yield Choice(f"BLOCK_{dim}", _padded(plan.spec, dim, plan.matrix_dims))
    if plan.split is not None:
        yield _fused_block(plan, plan.split)
    yield Choice("num_warps", _fused_warps(plan))


def _fused_block(plan: FusedPlan, split: Split) -> Choice:
    tiles = [_without(split, dims) for dims in _large(plan) if split.dim in dims]
    indices = f"1024 // {_sum_of_blocks(tiles)}" if tiles else "1024"
    if len(tiles) > 1:  # The sum of their blocks may be no power of two.
        indices = f"triton.next_power_of_2({indices})"
    if split.partial:
        why = f"Every block of {split.dim} writes an output of its own: twice as many indices, half as many outputs."
        limits = f"max(16, {indices})"
    elif any(split.dim not in dims for dims in _large(plan)):
        why = f"Every block of {split.dim} computes what does not have {split.dim} over again: few blocks."
        limits = "64"
    else:
        why = f"Small blocks of {split.dim}: many programs hide latency; eight float32 are one sector of memory."
        limits = f"128, max(8, {indices})"
    return Choice(f"BLOCK_{split.dim}", _cut(plan.spec, split.dim, limits, plan.matrix_dims), (why,))


def _fused_warps(plan: FusedPlan) -> str:
    large = _large(plan)
    if not large or not large[0]:
        return "1"
    total = _product_of_blocks(large[0]) if len(large) == 1 else _sum_of_blocks(large)
    # 64 values a thread; `tl.dot` in full precision needs the registers itself.
    warps = f"min(16, max(1, {total} // {512 if plan.matrix_dims else 2048}))"
    return warps if len(large) == 1 else f"triton.next_power_of_2({warps})"


def _large(plan: FusedPlan) -> list[Dims]:
    """The tiles that decide how many registers a program needs: those with the most dims."""
    most = max(len(dims) for dims in plan.tiles)
    return [dims for dims in plan.tiles if len(dims) == most]


# ----------------------------------------------------------------------------------------------------------- backwards


def _fused_backward(plan: FusedBackwardPlan) -> Iterator[Choice | Tiles]:
    key, value = f"BLOCK_{plan.key}", f"BLOCK_{plan.value}"
    size = f"triton.next_power_of_2({plan.value})"
    spec = plan.forward.spec
    others = [f"BLOCK_{dim}" for dim in spec.axes if dim not in (plan.key, plan.value)]
    warps = Choice("num_warps", f"min(16, max(1, {key} * {value} // 2048))")
    constants = (*(Choice(block, block) for block in (key, value, *others)), warps)
    if plan.key not in spec.pairs:
        yield Choice(key, f"triton.next_power_of_2({plan.key})")
    for block in others:
        yield Choice(block, f"triton.next_power_of_2({block.removeprefix('BLOCK_')})")
    if plan.key in spec.pairs:
        yield Choice(key, _product_of_blocks(spec.pairs[plan.key]))
    if plan.whole_values:
        yield Choice(value, size)
        yield Tiles("walk = inside", constants)
        return
    yield Choice(value, f"min({size}, 128, max(8, 1024 // {key}))")
    yield Tiles("walk", constants)
    # Half as much of the state where a program of a segment keeps a second tile.
    most = 8192 if plan.reads.kept or plan.gradients.kept else 16384
    yield Choice(value, f"min({size}, max(16, {most} // {key}))")
    yield Tiles("inside", constants)


def _reverse_mode(plan: ReversePlan) -> Iterator[Choice]:
    split, tiles = plan.forward.split, plan.held_tiles
    for dim in plan.forward.order:
        if split is None or dim != split.dim:
            yield Choice(f"BLOCK_{dim}", _padded(plan.forward.spec, dim, plan.matrix_dims))
    if split is not None:
        yield _reverse_block(plan, split)
    why = "More than 8 warps leave a thread too few registers for what it needs besides."
    warps = f"triton.next_power_of_2(min(8, max(1, {_sum_of_blocks(tiles)} // {_VALUES_PER_WARP})))"
    yield Choice("num_warps", warps, (why,))


def _reverse_block(plan: ReversePlan, split: Split) -> Choice:
    cut = [_without(split, dims) for dims in plan.held_tiles if split.dim in dims]
    if len(cut) < len(plan.held_tiles):
        why = f"Every block of {split.dim} does what does not have {split.dim} over again: few blocks."
        limit = str(MIN_MATRIX_BLOCK if plan.matrix_dims else 64)
    else:
        why = f"As many indices of {split.dim} as registers hold: every block has its share of the other gradients."
        limit = f"min(128, max(8, triton.next_power_of_2({_VALUES} // {_sum_of_blocks(cut)} + 1) // 2))"
    return Choice(f"BLOCK_{split.dim}", _cut(plan.forward.spec, split.dim, limit, plan.matrix_dims), (why,))


# --------------------------------------------------------------------------------------------------------------- scans


def _scan(plan: ScanKernelPlan, *, backward: bool) -> Iterator[Choice]:
    for dim in plan.order[1:]:
        if dim != plan.split:
            yield Choice(f"BLOCK_{dim}", _padded(plan.spec, dim, frozenset()))
    wide = _widest(plan)
    if plan.split is not None:
        whole = _product("CHUNK", *(f"BLOCK_{dim}" for dim in wide if dim != plan.split))
        least, values = (1, 4096) if len(wide) > 1 else (16, 1024)
        shares = f"Every block of {plan.split} writes shares of the gradients that lack it: few blocks."
        why = (shares,) if backward and len(wide) > 1 else ()
        block = f"min(triton.next_power_of_2({plan.split}), max({least}, {values} // ({whole})))"
        yield Choice(f"BLOCK_{plan.split}", block, why)
    tile = _product("CHUNK", *(f"BLOCK_{dim}" for dim in wide))
    each = 256 if len(wide) < 2 and backward else 512
    yield Choice("num_warps", f"min({8 if backward else 16}, max(1, {tile} // {each}))")


def _pieces(plan: PieceKernelPlan) -> Iterator[Choice]:
    matrix = next(state.dims for state in plan.spec.states if len(state.dims) == MAX_DIMS)
    for dim in plan.spec.axes:
        yield Choice(f"BLOCK_{dim}", _padded(plan.spec, dim, frozenset(plan.spec.axes)))
    yield Choice("num_warps", f"min(8, max(4, {_product_of_blocks(matrix)} // 512))")


def _widest(plan: ScanKernelPlan) -> Dims:
    """The dims of the largest tile that has a row for every token."""
    tiles = [state.dims for state in plan.spec.states] + [decl.dims for decl in plan.spec.inputs]
    tiles += [result.dims for result in plan.plan.results]
    return max(tiles, key=lambda dims: (len(dims), plan.split in dims))


# -------------------------------------------------------------------------------------------------------------- shared


def _padded(spec: Spec, dim: str, matrix_dims: frozenset[str]) -> str:
    if dim in spec.pairs:
        return _product_of_blocks(spec.pairs[dim])
    power = f"triton.next_power_of_2({dim})"
    return f"max({MIN_MATRIX_BLOCK}, {power})" if dim in matrix_dims else power


def _cut(spec: Spec, dim: str, limits: str, matrix_dims: frozenset[str]) -> str:
    block = f"min({_padded(spec, dim, matrix_dims)}, {limits})"
    return f"max({MIN_MATRIX_BLOCK}, {block})" if dim in matrix_dims else block


def _without(split: Split, dims: Dims) -> Dims:
    return tuple(dim for dim in dims if dim != split.dim)


def _product(*names: str) -> str:
    return joined("*", *map(Printed, names)).text if names else "1"


def _product_of_blocks(dims: Dims) -> str:
    return _product(*(f"BLOCK_{dim}" for dim in dims))


def _sum_of_blocks(tiles: Sequence[Dims]) -> str:
    """How many values tiles over these dims have together."""
    counts: dict[str, int] = {}
    for dims in tiles:
        product = _product_of_blocks(dims)
        counts[product] = counts.get(product, 0) + 1
    terms = [product if count == 1 else f"{count} * {product}" for product, count in counts.items()]
    if len(terms) == 1 and "*" not in terms[0]:
        return terms[0]
    return joined("+", *(Printed(term, PRODUCT) for term in terms)).bracketed()
