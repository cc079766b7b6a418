"""The kernel language: what a kernel does, as data. Its whole grammar:

    Program    kernels, launched one after the other
    Kernel     a program for every value head of every run, and every block of a dim; arrays; a body
    Routine    what kernels do with one chunk, with names of its own
    Statement  Load | Let | Bind | Add | Scale | Fill | Choose | Store | Loop | If | Apply | Row | Operands | Barrier |
               Note
    Condition  Given | FirstBlock | LastToken | HasStart | HasEnd | Alone
    Access     an array, and an Index for each of the spaces that its rows lie in
    values     the tiles of `flagen.plan.tiles`

Coordinates have names: a loop, or the grid, gives one a value, and an access names those of its row. How a program
finds them from its number, and a row its address, is for whoever prints a kernel: nothing here is added up wrongly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from flagen.plan.rows import BETWEEN, MEMBER, ROW, TOKEN, WRITTEN
from flagen.plan.tiles import Tile, tiles_in
from flagen.spec.model import Dims

Space = Literal[
    "sequence",
    "segment",
    "chunk",
    "stretch",
    "counted_chunk",
    "slot",
    "token",
    "row",
    "micro_step",
    "head",
    "key_head",
    "block",
    "place",
    "loop",
    "border",
]
"""What rows of an array are counted by. A token, segment or chunk is one of all sequences together; `place` is that of
a token in its segment, `loop` a loop over micro-steps, or one of several states, `border` one of the ends of packed
sequences. A `row` is a micro-step of a token. Chunks are counted with room for one more in each sequence, as
`counted_chunk` without gaps; every two of one have a `slot`. A stretch is as long as a chunk, with one for the end."""

Turns = Literal["segment", "chunk", "token", "micro_step", "earlier", "later", "member", "block", "level", "below"]

Run = Literal["sequence", "segment", "chunk", "stretch"]
"""What a program walks: a whole sequence, or a segment of one, or a single chunk, or a stretch: the place behind the
last token of a sequence is one of a stretch of it."""


# --------------------------------------------------------------------------------------------------------------- arrays


Life = Literal["argument", "begin", "scratch", "residual", "result", "cotangent", "gradient"]
"""Where the elements of an array come from, and who asks for them: a caller gives an `argument`, and the gradient of a
result, its `cotangent`, and is given a `result`, or the `gradient` of an argument; `begin` says where sequences and
segments begin; `scratch` is what kernels of a program have between them, a `residual` what the forward leaves for the
backward."""


@dataclass(frozen=True)
class Array:
    """An array in memory: the spaces of its rows, the slowest first, then the dims of a row.

    life, of: what it is, and of which input, param, state or output.
    own_dtype: it has the dtype of the call, and not float32.
    optional: a launch may go without it. loops: the extent of the space `loop`.

    Where rows of a chunk are among its dims, it has room for as many as a tile has lanes.
    """

    name: str
    spaces: tuple[Space, ...]
    dims: Dims = ()
    life: Life = "scratch"
    of: str = ""
    own_dtype: bool = False
    optional: bool = False
    loops: int = 1


@dataclass(frozen=True)
class Index:
    """A coordinate of a row: where the program stands in a space, a number, or the place of each lane along an axis; or
    of what is `ago` tokens before, or behind where that is negative, as far as the sequence has it."""

    space: Space
    number: int | None = None
    axis: str | None = None
    ago: int = 0


@dataclass(frozen=True)
class Access:
    """A tile of an array: a row, or those along an axis, all lanes of its dims, none beyond the ends of `within`.

    places: the index of a dim of the array, where it is not that of each lane along it.
    ends: where dims of `within` end, where that is not their own end.
    where: beside that, which lanes there are.
    in_memory_order: its address and mask are those of a tile whose axes are in the order of memory.
    address: that of each of its `rows`; or that of the chunk's first, in 64 bits, which take twice the registers, and
        from there, in 32, how far each is: by the `strides` of the array, or in rows `from start`.
    """

    array: Array
    at: tuple[Index, ...]
    within: Dims
    places: tuple[tuple[str, Tile], ...] = ()
    ends: tuple[tuple[str, Tile], ...] = ()
    where: Tile | None = None
    in_memory_order: bool = False
    address: Literal["rows", "strides", "from start"] = "rows"

    @cached_property
    def rows(self) -> Dims:
        """The axes along which its rows lie."""
        return tuple(index.axis for index in self.at if index.axis is not None)

    @cached_property
    def ago(self) -> int:
        """How many tokens before those of the lanes its rows are."""
        return next((index.ago for index in self.at if index.axis is not None), 0)

    @cached_property
    def dims(self) -> Dims:
        """What the tile lies over."""
        placed = dict(self.places)
        over = (dim for d in self.array.dims for dim in (placed[d].dims if d in placed else (d,)))
        return tuple(dict.fromkeys((*self.rows, *over)))

    @property
    def of_first_share(self) -> Access:
        """The same of an array whose rows have no shares."""
        kept = tuple(index for index in self.at if index.space != "block")
        return replace(self, array=replace(self.array, spaces=tuple(index.space for index in kept)), at=kept)

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """The expressions in it."""
        named = (tile for _, tile in (*self.places, *self.ends))
        return (*named, *(() if self.where is None else (self.where,)))


def access(array: Array, *, loop: int = 0) -> Access:
    """The row of `array` where the program stands."""
    return Access(array, tuple(Index(space, loop if space == "loop" else None) for space in array.spaces), array.dims)


def access_rows(array: Array, ago: int = 0) -> Access:
    """The rows of `array` of every token of the chunk, or of those that many tokens before."""
    at = tuple(Index(space, axis=TOKEN, ago=ago) if space == "token" else Index(space) for space in array.spaces)
    return Access(array, at, (TOKEN, *array.dims))


# ----------------------------------------------------------------------------------------------------------- statements


@dataclass(frozen=True)
class Load:
    """Load a tile; beyond the ends of its dims it is `fill`. With `once` it is zero in all blocks but the first: a
    share that comes in once.

    wide: whether it is cast to float32; if nobody says so, where it may have another dtype.
    shares: it is the sum of what each block of another kernel has left, block after block.
    """

    target: str
    source: Access
    fill: float = 0.0
    once: bool = False
    wide: bool | None = None
    shares: bool = False


@dataclass(frozen=True)
class Let:
    """Evaluate a tile and give it a name."""

    target: str
    value: Tile


@dataclass(frozen=True)
class Bind:
    """Evaluate several tiles in one line and give them names: those of what one function returns, or of each."""

    targets: tuple[str, ...]
    values: tuple[Tile, ...]


@dataclass(frozen=True)
class Add:
    """Add a tile to what has a name and lies over `dims`: the same along those that `value` lacks. It may be subtracted
    instead."""

    target: str
    value: Tile
    dims: Dims
    subtracts: bool = False


@dataclass(frozen=True)
class Scale:
    """Multiply what has a name and lies over `dims` by a tile: by the same along those that `value` lacks."""

    target: str
    value: Tile
    dims: Dims


@dataclass(frozen=True)
class Fill:
    """A tile over `dims` that is the same number everywhere, or zero; with `ends` zero beyond the ends of its dims."""

    target: str
    dims: Dims
    number: float | None = None
    ends: bool = False


@dataclass(frozen=True)
class Choose:
    """`target` stays what it is where the condition holds, and is `value` otherwise."""

    condition: Condition
    target: str
    value: Tile


@dataclass(frozen=True)
class Store:
    """Store a tile: the same along the dims of the array that it lacks."""

    target: Access
    value: Tile


@dataclass(frozen=True)
class Loop:
    """Run the body for each segment or chunk of the sequence, each token of the segment (or of the sequence, outside of
    one), or each micro-step of the token; in reverse the last one first. The tokens of a chunk lie along an axis.

    Where programs have chunks, for each before the chunk (`earlier`) or behind it (`later`, the last one first) that
    has a slot with it; for each value head of the key head; for each block of `dim`; for each level at which a chunk is
    cut in halves, from the size `first` up, or each that is `below` the level at hand; for each step of a solution, of
    which a launch says how many.

    stages: how many turns are under way at once, one waiting for what the other loads.
    but_last: not for the tokens of a sequence's last segment.
    counted: chunks have numbers in their sequence, from which their tokens follow, and not the other way round.
    aligned: what counts the tokens before the sequence, from which its chunks, of LENGTH tokens, are counted then.
    whole: a block of `dim` is all of it, since something sums over it: there is one turn.
    keeps: what does not change is held in registers, and not computed again in each turn.
    wanted: a choice that a launch makes, without which the loop has no turns. note: a comment.
    """

    over: Turns | Literal["iteration"]
    body: tuple[Statement, ...]
    reverse: bool = False
    stages: int = 1
    but_last: bool = False
    counted: bool = False
    aligned: str = ""
    dim: str = ""
    first: str = ""
    whole: bool = False
    keeps: bool = True
    wanted: str = ""
    note: str = ""


@dataclass(frozen=True)
class If:
    """Run `then` where all conditions hold, and `otherwise` where one does not."""

    conditions: tuple[Condition, ...]
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...] = ()


@dataclass(frozen=True)
class Apply:
    """Run a routine on the chunk where the loop stands: what is `carried` goes in, and comes out changed."""

    routine: Routine


@dataclass(frozen=True)
class Operands:
    """Say what operands of matrix products are rounded to: the dtype of an array."""

    of: Array


@dataclass(frozen=True)
class Row:
    """Give the number of a row a name, under which the addresses of its accesses are printed; with `dims` that of the
    row's first element."""

    name: str
    spaces: tuple[Space, ...]
    dims: Dims = ()


@dataclass(frozen=True)
class Barrier:
    """Wait until every thread of the program has stored, or loaded, what it had to."""

    note: str = ""


@dataclass(frozen=True)
class Note:
    """A comment; without text a blank line."""

    text: str = ""


Statement = (
    Load | Let | Bind | Add | Scale | Fill | Choose | Store | Loop | If | Apply | Row | Operands | Barrier | Note
)


# ----------------------------------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Given:
    """The launch has this array, or (`given` is false) goes without it."""

    array: Array
    given: bool = True


@dataclass(frozen=True)
class FirstBlock:
    """The program has the first block: one of those that all have the same."""


@dataclass(frozen=True)
class LastToken:
    """The token is the last one of the program's segment."""


@dataclass(frozen=True)
class HasStart:
    """The first place of its sequence is one of the program's stretch."""


@dataclass(frozen=True)
class HasEnd:
    """The place behind the last token of its sequence is one of the program's stretch."""


@dataclass(frozen=True)
class Alone:
    """A key head has one value head, and a block of `dim` is all of it."""

    dim: str


Condition = Given | FirstBlock | LastToken | HasStart | HasEnd | Alone


# -------------------------------------------------------------------------------------------------------------- kernels


@dataclass(frozen=True)
class Routine:
    """What kernels do with one chunk, in a function of its own: names there are its own.

    carried: the tiles that it is given, and returns.
    docs: what it says of itself.
    place: what it is told of where it stands, beside its chunk; it finds the rest by itself.
    lanes: the dims of which it is told which lanes it has; it has all of the others.
    """

    name: str
    carried: tuple[str, ...]
    arrays: tuple[Array, ...]
    numbers: tuple[str, ...]
    sizes: tuple[str, ...]
    docs: str
    body: tuple[Statement, ...]
    place: tuple[Space, ...] = ()
    lanes: Dims = ()


@dataclass(frozen=True)
class Kernel:
    """A program for each run, value head and block.

    name: which of its program's kernels it is; empty for the only one.
    run: a whole sequence, or one segment, chunk or stretch of one.
    block_of: the dim of which a program has a block, and not all.
    order: the order of a tile's axes; where it takes whole chunks, first that of their tokens.
    of_key_heads: there is a program for each key head, which has all value heads of it.
    steps: what the number of micro-steps is called, where a chunk's rows are those of its tokens.
    whole: its block is all of the dim, since something sums over that.
    choices: those that a launch makes: each is made where a gradient is asked for of something but these.
    arrays, numbers, lengths, sizes: the parameters, in order; it is compiled for its `sizes`, not for its `lengths`.
    names: every name that the spec declares or the plan made up.
    pairs: each dim of pairs, and the two it is of.
    """

    name: str
    run: Run
    block_of: str | None
    order: Dims
    arrays: tuple[Array, ...]
    numbers: tuple[str, ...]
    lengths: tuple[str, ...]
    sizes: tuple[str, ...]
    names: frozenset[str]
    body: tuple[Statement, ...]
    of_key_heads: bool = False
    steps: str = ""
    whole: bool = False
    choices: tuple[tuple[str, tuple[str, ...]], ...] = ()
    pairs: tuple[tuple[str, Dims], ...] = ()

    @property
    def dims(self) -> Dims:
        """The axes that are dims of the spec."""
        return tuple(axis for axis in self.order if axis not in (TOKEN, ROW, BETWEEN, WRITTEN, MEMBER))


@dataclass(frozen=True)
class Program:
    """The kernels of an operator, in the order of their launches.

    ways: where not all of them are launched, the names of those that are, for each way in which the operator runs.
    """

    name: str
    kernels: tuple[Kernel, ...]
    ways: tuple[tuple[str, ...], ...] = ()

    def kernel(self, name: str) -> Kernel:
        return next(kernel for kernel in self.kernels if kernel.name == name)


# -------------------------------------------------------------------------------------------------- what is in a kernel


def statements_in(body: Iterable[Statement]) -> Iterator[Statement]:
    """Every statement, with those inside of others."""
    for statement in body:
        yield statement
        match statement:
            case Loop(_, inner):
                yield from statements_in(inner)
            case If(_, then, otherwise):
                yield from statements_in((*then, *otherwise))
            case Apply(routine):
                yield from statements_in(routine.body)


def routines_in(body: Iterable[Statement]) -> tuple[Routine, ...]:
    """The routines that it applies."""
    return tuple(dict.fromkeys(s.routine for s in statements_in(body) if isinstance(s, Apply)))


def accesses_in(body: Iterable[Statement]) -> Iterator[Access]:
    """Every tile that is loaded or stored."""
    for statement in statements_in(body):
        match statement:
            case Load(_, source):
                yield source
            case Store(target):
                yield target


def values_of(body: Iterable[Statement]) -> Iterator[Tile]:
    """Every expression and every part of one."""
    for statement in statements_in(body):
        match statement:
            case Let(_, value) | Add(_, value) | Scale(_, value) | Choose(_, _, value) | Store(_, value):
                yield from tiles_in(value)
            case Bind(_, values):
                for value in values:
                    yield from tiles_in(value)
        match statement:
            case Load(_, at) | Store(at):
                for tile in at.tiles:
                    yield from tiles_in(tile)
