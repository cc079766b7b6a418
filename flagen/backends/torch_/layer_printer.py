"""Prints the expressions of a layer as the PyTorch that a module's methods are written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flagen.diagnostics import InternalError
from flagen.plan.layer import has_tensor
from flagen.printing import ATOM, NOT, SIGN, SUM, Printed, choice, joined, negative, opposite
from flagen.spec.layer.model import (
    Binary,
    Call,
    Compare,
    Expr,
    IfElse,
    Logic,
    Name,
    Several,
    Unary,
    Value,
)
from flagen.spec.layer.vocabulary import CONSTRUCTORS, FUNCTIONS, RULES
from flagen.spec.layer.words import Parameter

_NEGATED = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">", "is": "is not", "is not": "is"}

_METHODS = ("exp", "log", "log1p", "sqrt", "abs", "sigmoid", "tanh", "relu", "float", "detach")
_FUNCTIONAL = ("silu", "softplus", "logsigmoid")

_WRITTEN: Mapping[str, tuple[str, int]] = {
    "elu_p1": ("F.elu({x}) + 1", SUM),
    "logaddexp": ("torch.logaddexp({a}, {b})", ATOM),
    "lerp": ("lerp({start}, {end}, {weight})", ATOM),
    "act": ("activate({x}, {name})", ATOM),
    "ones_like": ("torch.ones_like({x})", ATOM),
    "masked": ("packing.masked({x})", ATOM),
    "l2norm": ("l2norm({x})", ATOM),
    "l1norm": ("F.normalize({x}, p=1, dim=-1, eps=1e-6)", ATOM),
    "sum": ("{x!}.sum(-1, keepdim=True)", ATOM),
    "heads": ("{x!}.unflatten(-1, ({n}, -1))", ATOM),
    "merge": ("{x!}.flatten(-2)", ATOM),
    "map_heads": ('torch.einsum("...ni,nio->...no", {x}, {weight})', ATOM),
    "repeat_heads": ("{x!}.repeat_interleave({n}, dim=2)", ATOM),
    "repeat": ("{x!}.repeat_interleave({n}, dim=0)", ATOM),
    "steps": ("{x!}.unflatten(-1, ({n}, -1)).flatten(1, 2)", ATOM),
    "per_head": ("{x!}.unsqueeze(-1)", ATOM),
    "zeros": ("{x!}.new_zeros(*{x!}.shape[:-1], {n})", ATOM),
}
"""Functions of tensors by the names of their parameters; `{x!}` is x as the object of a method."""

_NUMBERS = {
    "round": "round({0})",
    "floor": "math.floor({0})",
    "ceil": "math.ceil({0})",
    "sqrt": "math.sqrt({0})",
    "exp": "math.exp({0})",
    "log": "math.log({0})",
    "abs": "abs({0})",
}


@dataclass
class LayerPrinter:
    """Prints expressions in one place of the generated module.

    `name` writes names; `known` has the expressions that are kept under one; `call` writes calls of modules. What is
    `plain` is for a person to read, and not run.
    """

    name: Callable[[Name], str]
    known: Mapping[Expr, str] = field(default_factory=dict)
    call: Callable[[Call], str] | None = None
    plain: bool = False

    def text(self, expr: Expr) -> str:
        return self.print(expr).text

    def print(self, expr: Expr) -> Printed:
        if expr in self.known:
            return Printed(self.known[expr])
        match expr:
            case Value(value):
                return Printed(literal(value), SIGN if literal(value).startswith("-") else ATOM)
            case Name():
                return Printed(self.name(expr))
            case Unary("not", value):
                return opposite(self.print(value))
            case Unary(_, value):
                return negative(self.print(value))
            case Binary(op, left, right) | Compare(op, left, right):
                return joined(op, self.print(left), self.print(right))
            case Logic(op, values):
                return joined(op, *map(self.print, values))
            case IfElse(condition, then, otherwise):
                return choice(self.print(then), self.print(condition), self.print(otherwise))
            case Several(items):
                parts_of = [self.text(item) for item in items]
                return Printed(f"({parts_of[0]},)" if len(parts_of) == 1 else f"({', '.join(parts_of)})")
            case Call():
                return self._call(expr)

    def condition(self, condition: Expr) -> str:
        """`condition`, as a person writes it after `and`."""
        if isinstance(condition, Unary) and condition.op == "not":
            return self.negated(condition.value)
        return self.print(condition).within(NOT)

    def negated(self, condition: Expr) -> str:
        """`not condition`, as a person writes it."""
        match condition:
            case Unary("not", value):
                return self.text(value)
            case Compare(op, left, right):
                return joined(_NEGATED[op], self.print(left), self.print(right)).text
            case _:
                return opposite(self.print(condition)).text

    def bound(self, call: Call, parameters: tuple[Parameter, ...]) -> dict[str, Expr]:
        """The arguments of a call by the names of what they are for; those left out are left out here."""
        by_place = zip((parameter.name for parameter in parameters), call.args, strict=False)
        return {**dict(by_place), **dict(call.keywords)}

    def _call(self, call: Call) -> Printed:
        if call.kind in ("module", "recurrence"):
            if self.call is None:
                raise InternalError(f"{call.name} is called where there are numbers alone")
            return Printed(self.call(call))
        if call.kind != "function":
            raise InternalError(f"{call.name} is a {call.kind}, and no function")
        if not has_tensor(call) and call.name not in ("zeros", "ones_like"):
            return self._number(call)
        given = self.bound(call, FUNCTIONS[call.name].given)
        if call.name in _METHODS:
            return Printed(f"{self.print(given['x']).atom}.{call.name}()")
        if call.name in _FUNCTIONAL:
            return Printed(f"F.{call.name}({self.text(given['x'])})")
        if call.name == "clamp":
            limits = [
                f"{key}={self.text(given[word])}" for key, word in (("min", "low"), ("max", "high")) if word in given
            ]
            return Printed(f"{self.print(given['x']).atom}.clamp({', '.join(limits)})")
        if call.name == "split":
            sizes = given["sizes"]
            parts = ", ".join(map(self.text, sizes.items)) if isinstance(sizes, Several) else self.text(sizes)
            return Printed(f"{self.print(given['x']).atom}.split([{parts}], dim=-1)")
        if call.name not in _WRITTEN:
            raise InternalError(f"the PyTorch printer of layers has no {call.name}")
        written, binding = _WRITTEN[call.name]
        for name, value in given.items():
            code = self.print(value)
            written = written.replace(f"{{{name}!}}", code.atom).replace(f"{{{name}}}", code.text)
        return Printed(written, binding)

    def _number(self, call: Call) -> Printed:
        texts = [self.text(arg) for arg in call.args]
        match call.name:
            case "integer" if self.plain:
                return self.print(call.args[0])
            case "integer":
                return Printed(f'integer({texts[0]}, "{texts[0]}")')
            case "max" | "min":
                return Printed(f"{call.name}({', '.join(texts)})")
            case "item":
                return Printed(f"{self.print(call.args[0]).atom}[{texts[1]}]")
            case name if name in _NUMBERS:
                return Printed(_NUMBERS[name].format(*texts))
            case name:
                raise InternalError(f"the PyTorch printer of layers has no {name} of numbers")

    # ------------------------------------------------------------------------------------------------- constructors

    def constructor(self, call: Call) -> str:
        """What makes a module."""
        given = {name: self.text(value) for name, value in self.bound(call, CONSTRUCTORS[call.name].given).items()}
        flags = {name: given[name] for name in ("bias", "elementwise_affine") if name in given}
        match call.name:
            case "linear":
                return f"nn.Linear({given['inner']}, {given['outer']}, bias={flags.get('bias', 'False')})"
            case "low_rank":
                inner, rank, outer = given["inner"], given["rank"], given["outer"]
                down = f"nn.Linear({inner}, {rank}, bias=False)"
                return f"nn.Sequential({down}, nn.Linear({rank}, {outer}, bias={flags.get('bias', 'False')}))"
            case "lora":
                given = {"activation": "None", **given}
                return _made("LoRA", given, ("inner", "outer", "rank"), "bias", "activation")
            case "short_conv":
                return _made("ShortConvolution", given, ("size", "width"), "bias", "activation")
            case "rms_norm":
                return _made("RMSNorm", given, ("size",), "elementwise_affine", "eps")
            case "rms_norm_gated":
                return _made("FusedRMSNormGated", given, ("size",), "elementwise_affine", "eps", "activation")
            case "rms_norm_gate_first":
                given = {"norm_before_gate": "False", **given, "group_size": given["group"]}
                return _made("RMSNormGated", given, ("size",), "eps", "group_size", "norm_before_gate")
            case "group_norm":
                given = {"bias": "True", **given}
                return _made("GroupNorm", given, ("groups", "size"), "elementwise_affine", "bias", "eps")
            case "ddlerp":
                given = {"low_rank_dim": given["rank"], **given} if "rank" in given else given
                return _made("DDLerpLinear", given, ("inner", "outer"), "low_rank_dim")
            case "token_mix":
                return _made("TokenMix", given, ("inner", "rank", "n"))
            case "rotary":
                return _made("RotaryEmbedding", given, ("dim",), "base")
            case name if name in _FEATURE_MAPS:
                return _made(_FEATURE_MAPS[name], given, ("head_dim",), "nu")
            case "affine":
                given |= {f"use_{name}": given[name] for name in ("gamma", "beta") if name in given}
                return _made("Affine", given, ("size",), "use_gamma", "use_beta", "normalize")
            case name:
                raise InternalError(f"the PyTorch printer of layers has no module {name}")

    def start(self, parameter: str, value: Expr) -> str:
        """The statement by which a parameter, `self.A_log`, starts."""
        match value:
            case Call("full", "init", args, keywords):
                filled = self.text((*args, *(kept for _, kept in keywords))[0])
                return f"{parameter}.zero_()" if filled in ("0", "0.0") else f"{parameter}.fill_({filled})"
            case Call("xavier_uniform" | "orthogonal" as name, "init"):
                gain = self.text(self.bound(value, RULES[name].given)["gain"])
                return f"nn.init.{name}_({parameter}, gain={gain})"
            case Call("identity", "init"):
                return f"{parameter}.copy_(torch.eye(*{parameter}.shape[-2:]))"
            case _:
                filled_by = "copy_" if _drawn(value) else "fill_"
                return f"{parameter}.{filled_by}({_Start(self, parameter).print(value).text})"


_FEATURE_MAPS = {
    "hedgehog": "HedgehogFeatureMap",
    "t2r": "T2RFeatureMap",
    "hadamard": "HadamardFeatureMap",
    "dpfp": "DPFPFeatureMap",
}

MODULES: Mapping[str, tuple[str, ...]] = {
    "modules": (
        *("LoRA", "ShortConvolution", "RMSNorm", "FusedRMSNormGated", "RMSNormGated", "GroupNorm"),
        "RotaryEmbedding",
    ),
    "modules.feature_map": (*_FEATURE_MAPS.values(), "Affine"),
    "modules.token_mix": ("DDLerpLinear", "TokenMix"),
}
"""The classes of modules that a layer can be made of, beside torch's own, by where they are imported from."""


def _made(name: str, given: Mapping[str, str], places: tuple[str, ...], *keywords: str) -> str:
    named = [f"{keyword}={given[keyword]}" for keyword in keywords if keyword in given]
    return f"{name}({', '.join([*(given[place] for place in places), *named])})"


class _Start:
    """Prints what a parameter starts from: rules draw in its shape, dtype and place."""

    def __init__(self, printer: LayerPrinter, parameter: str) -> None:
        self.printer = printer
        self.parameter = parameter

    def print(self, value: Expr) -> Printed:
        match value:
            case Name("index", "constant"):
                return Printed(f"positions({self.parameter})")
            case Binary(op, left, right):
                return joined(op, self.print(left), self.print(right))
            case Unary("-", inner):
                return negative(self.print(inner))
            case IfElse(condition, then, otherwise):
                return choice(self.print(then), self.printer.print(condition), self.print(otherwise))
            case Call(name, "init", args) if name in ("uniform", "log_uniform", "normal"):
                limits = ", ".join(self.printer.text(arg) for arg in args)
                return Printed(f"{name}({self.parameter}, {limits})")
            case Call("full", "init", (filled,)):
                return Printed(f"torch.full_like({self.parameter}, {self.printer.text(filled)})")
            case Call("maximum" | "minimum" as name, "init", (x, limit)) if _drawn(x):
                bound = "min" if name == "maximum" else "max"
                return Printed(f"{self.print(x).atom}.clamp({bound}={self.print(limit).text})")
            case Call("inverse_softplus", "init", (x,)):
                return Printed(f"inverse_softplus({self.print(x).text})")
            case Call("log" | "exp" | "sqrt" | "abs" as name, _, (x,)) if _drawn(x):
                return Printed(f"{self.print(x).atom}.{name}()")
            case Call("log" | "exp" | "sqrt" | "abs" as name, "init", args):
                return self.printer.print(Call(name, "function", args))
            case _:
                return self.printer.print(value)


def _drawn(value: Expr) -> bool:
    """Whether a start is a tensor, drawn or by its place, and not one number."""
    match value:
        case Name("index", "constant"):
            return True
        case Call(name, "init") if name in ("uniform", "log_uniform", "normal", "full"):
            return True
        case Binary(_, left, right):
            return _drawn(left) or _drawn(right)
        case Unary(_, inner):
            return _drawn(inner)
        case IfElse(_, then, otherwise):
            return _drawn(then) or _drawn(otherwise)
        case Call(_, _, args):
            return any(map(_drawn, args))
        case _:
            return False


def literal(value: object) -> str:
    """A constant of a config as it is written in Python."""
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, str):
        return f'"{value}"' if '"' not in value and "\\" not in value else repr(value)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "math.inf" if value > 0 else "-math.inf"
    if isinstance(value, float) and "e" in repr(value):
        mantissa, _, power = repr(value).partition("e")
        return f"{mantissa}e{int(power)}"
    return repr(value)
