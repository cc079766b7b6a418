"""Tiles as PyTorch: their axes are those of programs, then their dims.

A register goes by its name and an underscore, which nothing else here ends with.
"""

from __future__ import annotations

import math
from fractions import Fraction

from flagen.diagnostics import InternalError
from flagen.functions import FUNCTIONS, OF_KERNELS
from flagen.plan.tiles import (
    Along,
    Arithmetic,
    AtLeast,
    Both,
    Call,
    Compare,
    Constant,
    Coordinate,
    Cumulative,
    Dot,
    Edge,
    Either,
    Function,
    Head,
    InSequence,
    Lane,
    Masked,
    MatMul,
    Negative,
    Normalize,
    OfAngles,
    OfPairs,
    Once,
    Paired,
    Product,
    Rotated,
    Rounded,
    Scan,
    Select,
    Shifted,
    Size,
    Spread,
    StateTile,
    Sum,
    Tile,
    Value,
    Whole,
    Widened,
    operands,
    tiles_in,
)
from flagen.spec.model import Dims


def register(name: str) -> str:
    return f"{name}_"


def printed(tile: Tile) -> str:
    """`tile` as an expression that binds like a name: a tensor, or a Python number of what is one."""
    match tile:
        case Constant(value):
            return literal(value)
        case Whole(value):
            return f"({value})"
        case Size(name):
            return f"here.size[{name!r}]"
        case Value(name):
            return register(name)
        case StateTile(name, previous):
            return register(f"{name}_prev" if previous else name)
        case Head():
            return "here.head"
        case Negative(value, dims):
            return f"(-{over(value, dims)})"
        case Product(factors, dims):
            return _joined(" * ", factors, dims)
        case Arithmetic("**", left, right, dims):
            return f"device.power({_real(left, dims)}, {_real(right, dims)})"
        case Arithmetic(op, left, right, dims) | Compare(op, left, right, dims):
            return _joined(f" {op} ", (left, right), dims)
        case Both(left, right, dims):
            return _joined(" & ", (left, right), dims)
        case Either(left, right, dims):
            return _joined(" | ", (left, right), dims)
        case Function(name, args, dims):
            return _function(name, [_real(arg, dims) for arg in args])
        case Select(where, value, other, dims):
            return f"torch.where({over(where, dims)}, {tensor(value, dims)}, {tensor(other, dims)})"
        case Sum(value, dim):
            return f"{_own(value)}.sum({_axis(dim, value.dims)})"
        case MatMul(left, right, dim, dims):
            return _matrix_product(left, right, dim, dims)
        case Dot(left, right, dim, onto, dims):
            product = _matrix_product(left, right, dim, dims)
            return product if onto is None else f"({over(onto, dims)} + {product})"
        case Normalize(function, value):
            return f"device.{function}({_own(value)})"
        case Rotated(value, angle, size, pairs, half, dims):
            by = (*(dim for dim in dims if dim != tile.channel), tile.pair)
            given = full(value, dims), full(angle, by), printed(size), printed(pairs)
            return f"device.rotated({', '.join(given)}, half={half})"
        case OfAngles(gradient, turned, size, pairs, half, pair, dims):
            lies = (*(dim for dim in dims if dim != pair), turned.dims[-1])
            given = full(gradient, lies), full(turned, lies), printed(size), printed(pairs)
            return f"device.of_angles({', '.join(given)}, here.launch.sizes.blocks[{pair!r}], half={half})"
        case Paired(left, right, dims):
            both = (full(side, (*dims[:-1], side.dims[-1])) for side in (left, right))
            return f"device.all_pairs({', '.join(both)})"
        case OfPairs(gradient, other, second, dims):
            both = (full(each, (*dims[:-1], each.dims[-1])) for each in (gradient, other))
            return f"device.of_pairs({', '.join(both)}, second={second})"
        case Masked(value, dim, fill, dims):
            inside = _spread(f"here.inside({dim!r})", (dim,), dims)
            return f"torch.where({inside}, {over(value, dims)}, {literal(fill)})"
        case Once(value):
            return f"here.once({_own(value)})"
        case Spread(value, dims):
            return full(value, dims)
        case Scan(combine, _, _, first, _, reverse, dims):
            parts = ", ".join(full(each, dims) for each in operands(tile)[:-1])
            return f"device.scan_{combine}({parts}, {full(first, dims[1:])}, reverse={reverse})"
        case Shifted(value, first, _, reverse, dims):
            return f"device.shifted({full(value, dims)}, {full(first, dims[1:])}, reverse={reverse})"
        case Edge(value, _, reverse):
            return f"{_own(value)}[:, {0 if reverse else -1}]"
        case InSequence(place, ago):
            return f"here.in_sequence({place!r}, {ago})"
        case Coordinate(of):
            return f"here.coordinate({of!r})"
        case Lane(axis):
            return f"here.indices({axis!r})"
        case Rounded(value):
            return f"here.rounded({_own(value)})"
        case Widened(value) | Along(value):
            return _own(value)
        case AtLeast(value, least):
            return f"{_own(value)}.clamp(min={least!r})"
        case Cumulative(value, axis, reverse, dims):
            return f"device.cumulative({full(value, dims)}, {_axis(axis, dims)}, reverse={reverse})"
        case Call(function, args):
            return f"device.{function}({', '.join(('here', *map(printed, args)))})"
    raise InternalError(f"the PyTorch printer of kernels does not know {type(tile).__name__}: {tile!r}")


def literal(value: Fraction | float) -> str:
    """A number, which binds like a name."""
    return f"({float(value)!r})" if math.isfinite(value) else f'float("{float(value)!r}")'


def over(tile: Tile, dims: Dims) -> str:
    """`tile` among tiles over `dims`."""
    return printed(tile) if _is_number(tile) else _spread(printed(tile), tile.dims, dims)


def tensor(tile: Tile, dims: Dims) -> str:
    """The same, and no Python number."""
    return f"here.tensor({printed(tile)})" if _is_number(tile) else over(tile, dims)


def _real(tile: Tile, dims: Dims) -> str:
    """The same, and no whole number: a head or a size is one."""
    return f"here.real({tensor(tile, dims)})"


def _own(tile: Tile) -> str:
    """`tile` over its own dims, as a tensor."""
    return tensor(tile, tile.dims)


def full(tile: Tile, dims: Dims) -> str:
    """`tile` over all of `dims`, where the shape counts."""
    return f"here.expanded({tensor(tile, dims)}, {dims!r})"


def _is_number(tile: Tile) -> bool:
    """Whether it is a Python number."""
    known = Constant | Size | Whole | Negative | Product | Arithmetic
    return all(isinstance(part, known) for part in tiles_in(tile))


def _joined(op: str, parts: tuple[Tile, ...], dims: Dims) -> str:
    return f"({op.join(over(part, dims) for part in parts)})"


def _spread(text: str, dims: Dims, over: Dims) -> str:
    if dims == over:
        return text
    if dims != tuple(dim for dim in over if dim in dims):
        raise InternalError(f"a tile over {dims} cannot be spread over {over}")
    return f"{text}[:, {', '.join(':' if dim in dims else 'None' for dim in over)}]"


def _axis(dim: str, dims: Dims) -> int:
    """Which axis of a tensor it is; the first is that of programs."""
    return 1 + dims.index(dim)


def _function(name: str, args: list[str]) -> str:
    if name in OF_KERNELS:
        return f"device.{name}({', '.join(args)})"
    if name not in FUNCTIONS:
        raise InternalError(f"the PyTorch printer of kernels does not know the function {name}")
    row = FUNCTIONS[name]
    return row.of_tensors(*args) if row.torch else f"device.defined({name!r})({', '.join(args)})"


def _matrix_product(left: Tile, right: Tile, dim: str, dims: Dims) -> str:
    """A product of matrices, summed over `dim`."""
    (row,), (column,) = ([d for d in side.dims if d != dim] for side in (left, right))
    sides = f"{_transposed(left, (row, dim))} @ {_transposed(right, (dim, column))}"
    if dims == (row, column):
        return f"({sides})"
    if dims == (column, row):
        return f"({sides}).mT"
    raise InternalError(f"a product over {(row, column)} is taken for one over {dims}")


def _transposed(matrix: Tile, dims: Dims) -> str:
    return printed(matrix) if matrix.dims == dims else f"{printed(matrix)}.mT"
