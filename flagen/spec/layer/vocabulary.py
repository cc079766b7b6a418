"""The words of a layer: every module constructor, function and init rule that there is, in one table.

A word says how it is called, what the parameters of such a module are, and what becomes of the shapes. Nothing outside
the table can be named in a spec, and nothing here knows a layer by its name.
"""

from __future__ import annotations

from collections.abc import Callable

from flagen.spec.layer.shapes import (
    Misfit,
    Shape,
    broadcast,
    grouped,
    head_steps,
    last_dim,
    mapped_heads,
    merged,
    parted,
    per_head,
    repeated_first,
    repeated_heads,
    same_shape,
    spread_steps,
    summed,
    widened,
)
from flagen.spec.layer.words import ACTIVATIONS, Constructor, Function, Given, Parameter, Rule, parameters

# ---------------------------------------------------------------------------------------------- module constructors


def _no_weights(_: Given) -> dict[str, tuple[int, ...]]:
    return {}


def _linear(given: Given, inner: str = "inner", outer: str = "outer", name: str = "") -> dict[str, tuple[int, ...]]:
    weights: dict[str, tuple[int, ...]] = {f"{name}weight": (given[outer], given[inner])}
    return weights | ({f"{name}bias": (given[outer],)} if given.get("bias", True) else {})


def _low_rank(given: Given, first: str, second: str) -> dict[str, tuple[int, ...]]:
    down = {f"{first}.weight": (given["rank"], given["inner"])}
    return down | _linear(given, "rank", "outer", f"{second}.")


def _conv(given: Given) -> dict[str, tuple[int, ...]]:
    size: int = given["size"]
    weights: dict[str, tuple[int, ...]] = {"weight": (size, 1, given["width"])}
    return weights | ({"bias": (size,)} if given["bias"] else {})


def _affine(given: Given) -> dict[str, tuple[int, ...]]:
    size: int = given["size"]
    names = ("weight", "bias") if given.get("bias") else ("weight",)
    return dict.fromkeys(names, (size,)) if given.get("elementwise_affine", True) else {}


def _scale_and_shift(given: Given) -> dict[str, tuple[int, ...]]:
    return {name: (given["size"],) for name in ("gamma", "beta") if given.get(name, True)}


def _maps(*names: str, bias: bool = True) -> Callable[[Given], dict[str, tuple[int, ...]]]:
    def weights(given: Given) -> dict[str, tuple[int, ...]]:
        square = {"size": given["head_dim"], "bias": bias}
        return {key: shape for name in names for key, shape in _linear(square, "size", "size", f"{name}.").items()}

    return weights


def _mixing(given: Given) -> dict[str, tuple[int, ...]]:
    if given["rank"] is None:
        return _linear({**given, "bias": False}, name="linear.")
    return {f"linear.{below}": shape for below, shape in _low_rank(given, "lora.0", "lora.2").items()}


def _mixes(given: Given) -> dict[str, tuple[int, ...]]:
    inner, ranks = given["inner"], given["n"] * given["rank"]
    return {"0.mu": (inner,), "0.linear.weight": (ranks, inner), "2.weight": (inner, ranks)}


def _mixed(given: Given, called: Given) -> Shape:
    shape = broadcast(called["x"], called["mu"], called["delta"])
    return (*last_dim(shape, given["inner"], "x"), given["outer"])


def _to(outer: str, inner: str) -> Callable[[Given, Given], Shape]:
    """The last dim is `inner` before, `outer` after."""

    def result(given: Given, called: Given) -> Shape:
        return (*last_dim(called["x"], given[inner], "x"), given[outer])

    return result


def _gated(given: Given, called: Given) -> Shape:
    last_dim(called["x"], given["size"], "x")
    return same_shape(called["x"], called["gate"], "x", "gate")


def _sequence(size: str) -> Callable[[Given, Given], Shape]:
    """Runs over tokens: a value a token and channel."""

    def result(given: Given, called: Given) -> Shape:
        shape: Shape = called["x"]
        if len(shape) != 3:
            raise Misfit("a value that runs over tokens has channels, and no heads", "call it before `heads`")
        return shape if not size else (*last_dim(shape, given[size], "x"), given[size])

    return result


def _rotated(given: Given, called: Given) -> tuple[Shape, ...]:
    for name in ("q", "k"):
        head_steps(called[name], name)
        last_dim(called[name], given["dim"], name)
    return called["q"], called["k"]


def _mapped(factor: Callable[[Given], int]) -> Callable[[Given, Given], Shape]:
    def result(given: Given, called: Given) -> Shape:
        return (*last_dim(called["x"], given["head_dim"], "x"), factor(given))

    return result


def _group_normed(given: Given, called: Given) -> Shape:
    grouped(given["size"], given["groups"], "size", "groups")
    return (*last_dim(called["x"], given["size"], "x"), given["size"])


def _gate_first(given: Given, called: Given) -> Shape:
    grouped(given["size"], given["group"], "size", "group")
    return _gated(given, called)


_X, _X_GATE, _Q_K = parameters("x"), parameters("x, gate"), parameters("q, k")

CONSTRUCTORS: dict[str, Constructor] = {
    word.name: word
    for word in (
        Constructor(
            "linear", parameters("inner, outer, bias=False"), _X, _linear, _to("outer", "inner"), "a linear map"
        ),
        Constructor(
            "low_rank",
            parameters("inner, rank, outer, bias=False"),
            _X,
            lambda given: _low_rank(given, "0", "1"),
            _to("outer", "inner"),
            "two linear maps, the first one to `rank` channels",
        ),
        Constructor(
            "lora",
            parameters("inner, outer, rank, activation=None, bias=True"),
            _X,
            lambda given: _low_rank(given, "lora.0", "lora.2"),
            _to("outer", "inner"),
            "two linear maps with an activation between them",
        ),
        Constructor(
            "short_conv",
            parameters("size, width, activation='silu', bias=False"),
            _X,
            _conv,
            _sequence("size"),
            "each channel's weighted sum over the last `width` tokens, then an activation",
            keeps="inputs",
        ),
        Constructor(
            "shift", (), _X, _no_weights, _sequence(""), "the token before; zero before the first", keeps="token"
        ),
        Constructor(
            "rms_norm",
            parameters("size, eps, elementwise_affine=True"),
            _X,
            _affine,
            _to("size", "size"),
            "divided by the root of the mean square, times a weight",
        ),
        Constructor(
            "rms_norm_gated",
            parameters("size, eps, activation='swish', elementwise_affine=True"),
            _X_GATE,
            _affine,
            _gated,
            "`rms_norm`, times the activation of a gate",
        ),
        Constructor(
            "rms_norm_gate_first",
            parameters("size, group, eps, norm_before_gate=False"),
            _X_GATE,
            _affine,
            _gate_first,
            "times the silu of a gate, then `rms_norm` of each `group` channels; or the other way round",
        ),
        Constructor(
            "group_norm",
            parameters("groups, size, eps, bias=True, elementwise_affine=True"),
            _X,
            _affine,
            _group_normed,
            "mean 0 and variance 1 in each of the groups of channels, then a weight and a bias",
        ),
        Constructor(
            "affine",
            parameters("size, gamma=True, beta=True, normalize=True"),
            _X,
            _scale_and_shift,
            _to("size", "size"),
            "mean 0 and variance 1 over the channels, times `gamma`, plus `beta`: each where it is true",
            since=2,
        ),
        Constructor(
            "ddlerp",
            parameters("inner, outer, rank=None"),
            parameters("x, mu, delta"),
            _mixing,
            _mixed,
            "a linear map of `x + delta * mu`, or with a rank a `lora`: channels mixed with those of the token before",
        ),
        Constructor(
            "token_mix",
            parameters("inner, rank, n"),
            parameters("x, delta"),
            _mixes,
            lambda given, called: (
                *last_dim(same_shape(called["x"], called["delta"], "x", "delta"), given["inner"], "x"),
                *(given["n"], given["inner"]),
            ),
            "`n` mixes for `ddlerp`, [..., n, inner], of how far to go from `x` to the token before",
        ),
        Constructor(
            "rotary",
            parameters("dim, base=10000.0"),
            _Q_K,
            _no_weights,
            _rotated,
            "queries and keys rotated by their positions; gives both",
            keeps="position",
        ),
        Constructor(
            "hedgehog",
            parameters("head_dim"),
            _X,
            _maps("layer"),
            _mapped(lambda given: 2 * given["head_dim"]),
            "the softmax of a linear map and its negative",
        ),
        Constructor(
            "t2r",
            parameters("head_dim"),
            _X,
            _maps("layer", bias=False),
            _mapped(lambda given: given["head_dim"]),
            "the relu of a linear map",
        ),
        Constructor(
            "hadamard",
            parameters("head_dim"),
            _X,
            _maps("layer1", "layer2"),
            _mapped(lambda given: given["head_dim"]),
            "the product of two linear maps",
        ),
        Constructor(
            "dpfp",
            parameters("head_dim, nu=4"),
            _X,
            _no_weights,
            _mapped(lambda given: round(2 * given["nu"] * given["head_dim"])),
            "products of the positive and negative parts with their `nu` shifts",
        ),
    )
}
"""What a module can be."""


# --------------------------------------------------------------------------------------------------------- functions


def _same(given: Given) -> Shape:
    shape: Shape = given["x"]
    return shape


def _elementwise(name: str, doc: str, tensors: str = "x", known: str = "") -> Function:
    names = [parameter.name for parameter in parameters(tensors)]
    return Function(
        name, parameters(tensors), parameters(known), lambda given: broadcast(*(given[name] for name in names)), doc
    )


FUNCTIONS: dict[str, Function] = {
    word.name: word
    for word in (
        _elementwise("silu", "`x * sigmoid(x)`"),
        _elementwise("relu", "the positive part"),
        _elementwise("sigmoid", "as in PyTorch"),
        _elementwise("tanh", "as in PyTorch"),
        _elementwise("exp", "as in PyTorch"),
        _elementwise("log", "as in PyTorch"),
        _elementwise("log1p", "as in PyTorch"),
        _elementwise("sqrt", "as in PyTorch"),
        _elementwise("abs", "as in PyTorch"),
        _elementwise("softplus", "as in PyTorch"),
        _elementwise("logsigmoid", "as in PyTorch"),
        _elementwise("elu_p1", "`elu(x) + 1`"),
        _elementwise("logaddexp", "as in PyTorch", "a, b"),
        _elementwise("lerp", "`start + weight * (end - start)`", "start, end, weight"),
        _elementwise(
            "clamp", "no less than `low`, no more than `high`, where these are given", "x", "low=None, high=None"
        ),
        _elementwise("act", "the activation that a config names: " + " ".join(ACTIVATIONS), "x", "name"),
        _elementwise("float", "in float32"),
        _elementwise("ones_like", "ones"),
        Function(
            "masked",
            parameters("x"),
            (),
            lambda given: spread_steps(given["x"], 1, "x"),
            "zero where the mask says that there is no token; with `mask: multiply`",
        ),
        Function("sum", parameters("x"), (), lambda given: summed(given["x"]), "over the last dim, which stays, as 1"),
        Function("l2norm", parameters("x"), (), _same, "`x * rsqrt(sum(x * x) + 1e-6)`, over the last dim"),
        Function("l1norm", parameters("x"), (), _same, "divided by the sum of the absolute values, over the last dim"),
        Function(
            "heads",
            parameters("x"),
            parameters("n"),
            lambda given: parted(given["x"], given["n"]),
            "the channels as `n` heads: `[..., n * d]` becomes `[..., n, d]`",
        ),
        Function(
            "merge",
            parameters("x"),
            (),
            lambda given: merged(given["x"]),
            "the heads as channels: `[..., n, d]` becomes `[..., n * d]`",
        ),
        Function(
            "map_heads",
            parameters("x, weight"),
            (),
            lambda given: mapped_heads(given["x"], given["weight"]),
            "each head times a matrix of its own: of `[..., n, i]` and `[n, i, o]`, `[..., n, o]`",
            since=2,
        ),
        Function(
            "repeat_heads",
            parameters("x"),
            parameters("n"),
            lambda given: repeated_heads(given["x"], given["n"]),
            "each head `n` times, one after the other",
        ),
        Function(
            "steps",
            parameters("x"),
            parameters("n"),
            lambda given: spread_steps(given["x"], given["n"], "x", channels=True),
            "the channels as `n` micro-steps of the token: `[B, T, n * d]` becomes `[B, T * n, d]`",
        ),
        Function(
            "split",
            parameters("x"),
            parameters("sizes"),
            lambda given: widened(given["x"], given["sizes"]),
            "the channels in parts: `a, b = split(x, (n, m))`",
        ),
        Function(
            "zeros",
            parameters("x"),
            parameters("n"),
            lambda given: (*given["x"][:-1], given["n"]),
            "zeros of the shape of `x`, with `n` for its last dim",
        ),
        Function(
            "repeat",
            parameters("x"),
            parameters("n"),
            lambda given: repeated_first(given["x"], given["n"]),
            "a param's first dim: each of its elements `n` times, one after the other",
        ),
        Function("detach", parameters("x"), (), _same, "`x`, and no gradient goes through it", since=2),
        Function("per_head", parameters("x"), (), lambda given: per_head(given["x"]), "`[n]` as `[n, 1]`: one a head"),
    )
}
"""What a statement of `forward` can call, beside the modules and the operators."""

NUMBER_FUNCTIONS: dict[str, tuple[tuple[Parameter, ...] | None, str]] = {
    "integer": (parameters("x"), "`x`, which has to be a whole number to within 1e-5"),
    "round": (parameters("x"), "the nearest whole number"),
    "floor": (parameters("x"), "the next whole number below"),
    "ceil": (parameters("x"), "the next whole number above"),
    "max": (None, "the largest of its arguments"),
    "min": (None, "the smallest of its arguments"),
    "item": (parameters("values, i"), "one of several values, counted from 0"),
    "sqrt": (parameters("x"), "of a number"),
    "exp": (parameters("x"), "of a number"),
    "log": (parameters("x"), "of a number"),
    "abs": (parameters("x"), "of a number"),
}
"""What computes numbers, in `dims`, shapes and arguments; None where a function takes any number of them."""

CONSTANTS = ("inf", "pi")


# --------------------------------------------------------------------------------------------------------- init rules

RULES: dict[str, Rule] = {
    word.name: word
    for word in (
        Rule("full", parameters("value"), "one value"),
        Rule("uniform", parameters("low, high"), "drawn evenly"),
        Rule("log_uniform", parameters("low, high"), "drawn so that the logarithm is even"),
        Rule("normal", parameters("mean, std"), "drawn from a normal distribution"),
        Rule("xavier_uniform", parameters("gain"), "drawn evenly, by the size of a matrix, times `gain`", whole=True),
        Rule("orthogonal", parameters("gain"), "an orthogonal matrix, times `gain`", whole=True),
        Rule("identity", (), "1 where the last two dims are at one place, else 0", whole=True, since=2),
        Rule("log", parameters("x"), "of every element"),
        Rule("exp", parameters("x"), "of every element"),
        Rule("sqrt", parameters("x"), "of every element"),
        Rule("abs", parameters("x"), "of every element"),
        Rule("inverse_softplus", parameters("x"), "what `softplus` takes to `x`"),
        Rule("maximum", parameters("x, value"), "the larger of the two"),
        Rule("minimum", parameters("x, value"), "the smaller of the two"),
    )
}
"""What a parameter can start from; `index` is the place in the last dim, from 0."""
