"""How the names of a layer's section are written in its methods, and which dims the constructor keeps for others."""

from __future__ import annotations

from flagen.backends.torch_.layer_printer import LayerPrinter
from flagen.diagnostics import InternalError
from flagen.spec.layer.model import Expr, Layer, Name

BASE = ("mode", "layer_idx")
"""What the base class keeps."""


class LayerNames:
    """The names of one layer. Methods other than the constructor are written first: what they read, it keeps.

    kept_dims: the dims that methods read as attributes, in the order in which they do.
    read_first: those that the constructor reads as locals.
    computed: the values of attributes that are more than a name, and how these are written.
    """

    def __init__(self, layer: Layer) -> None:
        self.dims = {dim.name: dim.value for dim in layer.dims}
        self.attributes = {attribute.name: attribute.value for attribute in layer.attributes}
        self.modules = {module.name: module.value for module in layer.modules}
        self.kept_dims: dict[str, None] = {}
        self.read_first: set[str] = set()
        values = self.attributes.items()
        self.computed: dict[Expr, str] = {v: f"self.{name}" for name, v in values if not isinstance(v, Name)}

    def constructor_printer(self) -> LayerPrinter:
        """Prints in the constructor, where a dim that an attribute has is a local."""
        dims = set(self.dims.values())
        return LayerPrinter(self.in_constructor, {k: v for k, v in self.computed.items() if k not in dims})

    def in_constructor(self, name: Name) -> str:
        """A name in the constructor: arguments, and locals for dims."""
        if name.kind == "dim":
            value = self.dims[name.name]
            if isinstance(value, Name) and value.kind == "config":
                return value.name
            self.read_first.add(name.name)
        return name.name if name.kind in ("config", "dim") else _constant(name)

    def elsewhere(self, name: Name) -> str:
        """A name in another method: attributes, and locals of `forward`."""
        match name.kind:
            case "config":
                return f"self.{self.attribute_of_config(name.name)}"
            case "dim":
                value = self.dims[name.name]
                if isinstance(value, Name) and value.kind == "config" and value.name not in self.attributes:
                    return self.elsewhere(value)
                attribute = next((a for a, value in self.attributes.items() if is_dim(value, name.name)), None)
                if attribute is not None:
                    return f"self.{attribute}"
                self.kept_dims[name.name] = None
                return f"self.{name.name}"
            case "param":
                return f"self.{name.name}"
            case "input" | "local":
                return name.name
            case _:
                return _constant(name)

    def attribute_of_config(self, name: str) -> str:
        """Where a config is kept: under its name, unless a module or an attribute has that."""
        return f"_{name}" if name in self.modules or name in self.attributes else name

    def shown(self, name: Name) -> str:
        """A name as a message has it: what a reader finds on the module."""
        return self.elsewhere(name).removeprefix("self.").removeprefix("_") if name.kind != "constant" else name.name


def is_dim(value: Expr, name: str) -> bool:
    """Whether `value` is the dim called `name`, and no more."""
    return isinstance(value, Name) and value.kind == "dim" and value.name == name


def _constant(name: Name) -> str:
    if name.name not in ("inf", "pi"):
        raise InternalError(f"{name.name} is a {name.kind}, and not known here")
    return f"math.{name.name}"
