"""The context of `layer.py`: the module around the operators, as a person would write it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import TypeGuard

from flagen.backends.protocol import Rendering
from flagen.backends.text import free_name, one_line, wrapped
from flagen.backends.torch_.layer_printer import MODULES, LayerPrinter, literal
from flagen.diagnostics import InternalError
from flagen.plan.layer import Choose, LayerPlan, Operator, Set, Step, conditions_of, in_order, may_have
from flagen.spec.layer.model import Call, Config, Dim, Expr, IfElse, Init, Name, Require, walk
from flagen.spec.model import Spec

_CLASS_DOC_WIDTH = 112
_DOC_WIDTH = 108  # of a line of a docstring in a method, under its indent

_MESSAGE_WIDTH = 72

_FILE_OF_FORM = {
    "naive_recurrent": "naive",
    "naive_chunk": "chunk",
    "fused_recurrent": "fused_recurrent",
    "chunk": "chunk_fused",
}

_BASE = ("mode", "layer_idx")
"""What the base class keeps."""

_OWN = (
    "hidden_states attention_mask past_key_values use_cache output_attentions cu_seqlens kwargs packing self"
).split()
_OWN += "torch math nn F Tensor Any Layer Packing Forms shift activate l2norm".split()
"""Names of a method that nothing else may have."""

COMMON = {
    "hidden_size": "channels of the input and the output.",
    "num_heads": "heads of queries and keys.",
    "num_v_heads": "heads of values, a multiple of num_heads; default num_heads.",
    "num_kv_heads": "heads of keys and values, a divisor of num_heads; default num_heads.",
    "head_dim": "channels of a head.",
    "expand_k": "channels of all queries together, in hidden_size.",
    "expand_v": "channels of values, in those of keys.",
    "mode": "the form that long inputs without gradients take, 'chunk' or 'fused_recurrent'.",
    "use_short_conv": "whether short convolutions come before the operator.",
    "conv_size": "tokens that a short convolution reaches over.",
    "conv_bias": "whether short convolutions have a bias.",
    "layer_idx": "the layer's place in the model: where a cache keeps its states.",
    "norm_eps": "what norms add to a mean square.",
    "elementwise_affine": "whether norms have a weight.",
    "allow_neg_eigval": "write with strengths up to 2, not 1.",
    "use_output_gate": "whether the output is gated.",
    "output_gate_activation": "the activation of the output's gate.",
}
"""What arguments are that many layers have, where a spec doesn't say."""


def layer_file(plan: LayerPlan, spec: Spec) -> Rendering:
    """`layer.py` of a package."""
    return Rendering("layer.py", "torch/layer.py.j2", _Writer(plan, spec).context())


class _Writer:
    """Writes the methods of one layer. Those that run later come first: what they need, the constructor keeps."""

    def __init__(self, plan: LayerPlan, spec: Spec) -> None:
        self.plan = plan
        self.layer = plan.layer
        self.spec = spec
        self.dims = {dim.name: dim.value for dim in self.layer.dims}
        self.attributes = {attribute.name: attribute.value for attribute in self.layer.attributes}
        self.modules = {module.name: module.value for module in self.layer.modules}
        self.kept_dims: dict[str, None] = {}
        self.read_first: set[str] = set()
        self.registered: set[str] = set()
        attributes = self.attributes.items()
        computed: dict[Expr, str] = {v: f"self.{name}" for name, v in attributes if not isinstance(v, Name)}
        self.later = LayerPrinter(self._name_later, computed, self._module_call)
        self.first = LayerPrinter(self._name_first, {k: v for k, v in computed.items() if k not in self._dim_values()})
        taken = {*_OWN, *(name for statement in self.layer.forward for name in statement.targets), "x"}
        taken |= {decl.name for decl in self.layer.inputs} | _temporaries(plan.forward)
        self.past, self.keep, self.run, self.state = (free_name(n, taken) for n in ("past", "keep", "run", "state"))
        self.cached = {name: free_name(f"{name.removesuffix('1d')}_state", taken) for name in plan.keeping}
        self.constants: dict[str, str] = {}
        for operator in plan.operators:
            others = taken | {self.layer.class_name, *self.constants.values()}
            self.constants[operator.name] = free_name(operator.name.upper(), others)

    def context(self) -> dict[str, object]:
        layer, spec = self.layer, self.spec
        forward = list(self.forward())
        resets = list(self.resets())
        unmarked = self.unmarked()
        construction = self.construction()
        body = "\n".join((*forward, *resets, *construction))
        return {
            "title": one_line(spec.title or spec.name),
            "paper": one_line(spec.paper),
            "class_name": layer.class_name,
            "doc": list(self.doc()),
            "base": ", ".join(f"{name}={name}" for name in _BASE if name in {config.name for config in layer.config}),
            "config": [self.argument(config) for config in layer.config],
            "config_docs": [line for config in layer.config for line in self.argument_doc(config)],
            "kwargs": layer.kwargs,
            "checked": bool(layer.require) or any(c.one_of for c in layer.config) or "integer(" in body,
            "operators": [self.operator(operator) for operator in self.plan.operators],
            "imports": self.imports(body),
            "construction": construction,
            "resets": resets,
            "unmarked": unmarked,
            "inputs": [(i.name, _annotation(i.default), literal(i.default)) for i in layer.inputs],
            "input_docs": [line for i in layer.inputs for line in self.input_doc(i.name, i.per, i.description)],
            "keywords": "".join(f', "{i.name}"' for i in layer.inputs),
            "multiply": layer.mask == "multiply",
            "packs": [i.name for i in layer.inputs if i.per == "token" and layer.mask == "unpad"],
            "outputs": layer.outputs,
            "forward": forward,
            "past": self.past,
            "keep": self.keep,
            "cached": list(self.cached.values()),
            "nothing": ", ".join("None" for _ in self.cached),
            "leaving": list(self.leaving()),
        }

    def doc(self) -> Iterator[str]:
        """The class's docstring, before its arguments."""
        paper = f" ({one_line(self.spec.paper)})" if self.spec.paper else ""
        yield from textwrap.wrap(f"{one_line(self.spec.title or self.spec.name)}{paper}.", _CLASS_DOC_WIDTH)
        for text in (self.spec.description, self.layer.notes):
            if text:
                yield ""
                yield from textwrap.wrap(
                    one_line(text), _CLASS_DOC_WIDTH, break_long_words=False, break_on_hyphens=False
                )

    # ------------------------------------------------------------------------------------------------------- names

    def _dim_values(self) -> set[Expr]:
        return set(self.dims.values())

    def _name_first(self, name: Name) -> str:
        """A name in the constructor: arguments, and locals for dims."""
        if name.kind == "dim":
            value = self.dims[name.name]
            if isinstance(value, Name) and value.kind == "config":
                return value.name
            self.read_first.add(name.name)
        return name.name if name.kind in ("config", "dim") else _constant(name)

    def _name_later(self, name: Name) -> str:
        """A name in another method: attributes, and locals of `forward`."""
        match name.kind:
            case "config":
                return f"self.{self._attribute_of_config(name.name)}"
            case "dim":
                value = self.dims[name.name]
                if isinstance(value, Name) and value.kind == "config" and value.name not in self.attributes:
                    return self._name_later(value)
                attribute = next((a for a, value in self.attributes.items() if _is_dim(value, name.name)), None)
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

    def _attribute_of_config(self, name: str) -> str:
        """Where a config is kept: under its name, unless a module or an attribute has that."""
        return f"_{name}" if name in self.modules or name in self.attributes else name

    # ------------------------------------------------------------------------------------------------- constructor

    def argument(self, config: Config) -> str:
        annotation = "Any" if config.default is config.type is None else _annotation(config.default, config.type)
        return f"{config.name}: {annotation} = {literal(config.default)}"

    def argument_doc(self, config: Config) -> Iterator[str]:
        text = one_line(config.description).rstrip(".")
        text = f"{text}." if text else COMMON.get(config.name, f"{config.name.replace('_', ' ')}.")
        if config.ignored:
            text += " Taken for the signature's sake: it has no effect."
        yield from wrapped(f"{config.name}: {text}", _DOC_WIDTH)

    def construction(self) -> list[str]:
        """The constructor's body, after that of the base class. Dims are locals where something reads them."""
        read = frozenset(self.dims)
        while True:
            self.read_first.clear()
            self.registered.clear()
            lines = list(self._construction(read))
            if self.read_first >= read:
                return lines
            read = frozenset(self.read_first & read)

    def _construction(self, read: frozenset[str]) -> Iterator[str]:
        for config in self.layer.config:
            if config.one_of:
                yield from _one_of(config)
        for config in self.layer.config:
            if config.name not in _BASE and config.name not in self.attributes and not config.ignored:
                yield f"self.{self._attribute_of_config(config.name)} = {config.name}"
        for require in self.layer.require:
            if not _of_dims(require.condition):
                yield from self._require(require)
        for name in self.attributes:
            if name in self._asked_later():
                yield f"self._{name} = {name}"
        left = dict(self.attributes)
        for dim in self.layer.dims:
            yield from self._dim(dim, read, left)
            for name in [name for name, value in left.items() if self._ready(value, dim)]:
                yield f"self.{name} = {self._attribute_value(left.pop(name))}"
        for name, value in left.items():
            yield f"self.{name} = {self._attribute_value(value)}"
        for require in self.layer.require:
            if _of_dims(require.condition):
                yield from self._require(require)
        yield ""
        shapes = {param.name: param for param in self.layer.params}
        for line in self._block(self.plan.params, lambda step: self._parameter(shapes[step.targets[0]].name)):
            yield line
        for line in self._block(self.plan.modules, self._registered):
            yield line

    def _asked_later(self) -> set[str]:
        """Configs whose name an attribute has, and that another method asks for itself."""
        expressions = [statement.value for statement in self.layer.forward]
        expressions += [param.init for param in self.layer.params] + [init.value for init in self.layer.init]
        names = (
            node for expr in expressions for node in walk(expr) if isinstance(node, Name) and node.kind == "config"
        )
        return {node.name for node in names if node.name in self.attributes}

    def _ready(self, value: Expr, after: Dim) -> bool:
        """Whether `after` is the last dim that an attribute is computed from."""
        names = [node.name for node in walk(value) if isinstance(node, Name) and node.kind == "dim"]
        order = [dim.name for dim in self.layer.dims]
        return bool(names) and max(map(order.index, names)) == order.index(after.name)

    def _attribute_value(self, value: Expr) -> str:
        return LayerPrinter(self._name_first).text(value)

    def _dim(self, dim: Dim, read: frozenset[str], left: dict[str, Expr]) -> Iterator[str]:
        """A dim as a local, and under the first attribute that is this dim."""
        if isinstance(dim.value, Name) and dim.value.kind == "config":
            if dim.name in self.kept_dims:
                yield f"self.{dim.name} = {dim.value.name}"
            return
        attribute = next((n for n, value in left.items() if _is_dim(value, dim.name)), None)
        targets = [f"self.{attribute}"] if attribute is not None else []
        if attribute is not None:
            left.pop(attribute)
        elif dim.name in self.kept_dims:
            targets.append(f"self.{dim.name}")
        if dim.name in read:
            targets.append(dim.name)
        if targets:
            yield " = ".join((*targets, self._attribute_value(dim.value)))

    def _require(self, require: Require) -> Iterator[str]:
        nodes = [node for node in walk(require.condition) if isinstance(node, Name) and node.kind in ("config", "dim")]
        configs = {self._shown(node) for node in nodes if node.kind == "config"}

        def shown(name: Name) -> str:
            found = self._shown(name)
            return name.name if name.kind == "dim" and found in configs else found

        names = dict.fromkeys((shown(node), self._name_first(node)) for node in nodes)
        expected = LayerPrinter(shown, plain=True).text(require.condition).replace('"', "'")
        given = ", ".join(f"{name} = {{{local}}}" for name, local in names)
        yield f"if {self.first.negated(require.condition)}:"
        if len(expected) + len(given) < _MESSAGE_WIDTH:
            yield f'    raise ValueError(f"expected {expected}, got {given}")'
            return
        yield "    raise ValueError("
        yield f'        "expected {expected}, "'
        yield f'        f"got {given}"'
        yield "    )"

    def _shown(self, name: Name) -> str:
        """A name as a message has it: what a reader finds on the module."""
        return self._name_later(name).removeprefix("self.").removeprefix("_") if name.kind != "constant" else name.name

    def _parameter(self, name: str) -> str:
        param = next(param for param in self.layer.params if param.name == name)
        sizes = [self.first.text(size) for size in param.shape]
        dtype = "" if param.dtype is None else f", dtype=torch.{param.dtype}"
        return f"self.{name} = nn.Parameter(torch.empty({', '.join(sizes)}{dtype}))"

    def _registered(self, step: Set) -> str:
        (name,) = step.targets
        made = {node.name for node in walk(self.modules[name]) if _is_module(node)}
        annotation = ": nn.Module" if len(made) > 1 and name not in self.registered else ""
        self.registered.add(name)
        if isinstance(step.value, Name):
            return f"self.{name}{annotation} = self.{step.value.name}"
        assert isinstance(step.value, Call)
        if step.value.name == "shift":
            return ""
        return f"self.{name}{annotation} = {self.first.constructor(step.value)}"

    # ------------------------------------------------------------------------------------------------------ starts

    def resets(self) -> Iterator[str]:
        """How the parameters start that are the layer's own, or that a module would start otherwise."""
        yield from self._block(self._starts(), lambda step: self._start(step), self.later)

    def _starts(self) -> tuple[Step, ...]:
        steps: list[Step] = list(self.plan.params)
        steps += (step for init in self.layer.init for step in self._started(init))
        return in_order(map(_chosen, steps))

    def _started(self, init: Init) -> tuple[Step, ...]:
        """The start of a module's parameter, where there is such."""
        step: Step = Set((init.path,), init.value)
        if init.condition is not None:
            step = Choose(init.condition, (step,), ())
        name, _, below = init.path.partition(".")
        return self._where(self.modules[name], below, step) if name in self.modules else (step,)

    def _where(self, module: Expr, below: str, step: Step) -> tuple[Step, ...]:
        """`step` where a module has the parameter called `below`."""
        match module:
            case IfElse(condition, then, otherwise):
                choice = self._where(then, below, step), self._where(otherwise, below, step)
                if choice[0] == choice[1]:
                    return choice[0]
                return (Choose(condition, *choice),)
            case Name(name):
                return self._where(self.modules[name], below, step)
            case Call():
                for condition in conditions_of(module, below):
                    step = Choose(condition, (step,), ())
                return (step,) if may_have(module, below) else ()
            case _:
                return ()

    def _start(self, step: Set) -> str:
        return self.later.start(_path(step.targets[0]), step.value)

    def unmarked(self) -> list[str]:
        """The lines that take parameters out of weight decay."""
        always = [f"self.{p.name}" for p in self.layer.params if not p.weight_decay and p.condition is None]
        lines = [f"no_weight_decay({', '.join(always)})"] if always else []
        rest: list[Step] = [
            Choose(p.condition, (Set((p.name,), p.init),), ())
            for p in self.layer.params
            if not p.weight_decay and p.condition is not None
        ]
        rest += [step for init in self.layer.init if not init.weight_decay for step in self._started(init)]
        lines += self._block(in_order(rest), lambda step: f"no_weight_decay({_path(step.targets[0])})")
        return lines

    # ----------------------------------------------------------------------------------------------------- forward

    def forward(self) -> Iterator[str]:
        yield from self._block(self.plan.forward, self._statement, self.later)

    def _statement(self, step: Set) -> str:
        value, targets = step.value, ", ".join(step.targets)
        if isinstance(value, Call) and value.kind == "recurrence":
            return self._operator_call(value, targets)
        if isinstance(value, Call) and value.name in self.plan.keeping:
            return self._keeping_call(value, targets)
        return f"{targets} = {self.later.text(value)}"

    def _keeping_call(self, call: Call, targets: str) -> str:
        called = "shift" if self.plan.keeping[call.name] == "token" else f"self.{call.name}"
        state = self.cached[call.name]
        given = ", ".join(map(self.later.text, call.args))
        rest = f"cache={state}, output_final_state={self.keep}, cu_seqlens=cu_seqlens"
        return f"{targets}, {state} = {called}({given}, {rest})"

    def _operator_call(self, call: Call, targets: str) -> str:
        given = [self.later.text(arg) for arg in call.args]
        given += [f"{key}={self.later.text(value)}" for key, value in call.keywords]
        given += [f"initial_state={self._initial()}", f"output_final_state={self.keep}", "cu_seqlens=cu_seqlens"]
        forms = self.constants[call.name]
        return (
            f"{self.run} = self.choose({forms}, hidden_states)\n"
            f"{targets}, {self.state} = {self.run}({', '.join(given)})"
        )

    def _module_call(self, call: Call) -> str:
        given = ", ".join(self.later.text(arg) for arg in call.args)
        if call.name in self.plan.placed:
            seen = "packing.first_positions(self.seen_tokens(past_key_values))"
            return f"self.{call.name}({given}, seqlen_offset={seen}, cu_seqlens=cu_seqlens)"
        return f"self.{call.name}({given})"

    def _entries(self) -> dict[str, list[str]]:
        """The entries of the cache, and which states each has."""
        where: dict[str, str] = {kept.state: kept.entry for kept in self.layer.cache}
        entries: dict[str, list[str]] = {}
        for state in self.spec.states:
            entries.setdefault(where.get(state.name, "recurrent_state"), []).append(state.name)
        return entries

    def _initial(self) -> str:
        entries = self._entries()
        if len(entries) == 1:
            return f'{self.past}["{next(iter(entries))}"]'
        where = {state: entry for entry, states in entries.items() for state in states}
        parts = []
        for state in self.spec.states:
            entry, states = where[state.name], entries[where[state.name]]
            place = f"[{states.index(state.name)}]" if len(states) > 1 else ""
            parts.append(f'{self.past}["{entry}"]{place}')
        first = f'{self.past}["{where[self.spec.states[0].name]}"]'
        return f"None if {first} is None else ({', '.join(parts)})"

    def leaving(self) -> Iterator[str]:
        """What the layer leaves in the cache, as keyword arguments."""
        entries = self._entries()
        order = [state.name for state in self.spec.states]
        for entry, states in entries.items():
            parts = [f"{self.state}[{order.index(state)}]" for state in states]
            if len(entries) == 1:
                yield f"{entry}={self.state}"
            else:
                yield f"{entry}={parts[0]}" if len(parts) == 1 else f"{entry}=({', '.join(parts)})"
        if self.cached:
            states = list(self.cached.values())
            yield f"conv_state={states[0]}" if len(states) == 1 else f"conv_state=({', '.join(states)})"

    def input_doc(self, name: str, per: str, description: str) -> Iterator[str]:
        text = one_line(description).rstrip(".")
        shape = "[B, T, ...]" if per == "token" else "one value for all tokens"
        yield from wrapped(f"{name}: {', '.join(filter(None, (text, '' if '[' in text else shape)))}.", _DOC_WIDTH)

    # --------------------------------------------------------------------------------------------------- operators

    def operator(self, operator: Operator) -> dict[str, object]:
        package = f"..{operator.spec.name}" if operator.elsewhere else ""
        return {
            "constant": self.constants[operator.name],
            "imports": [
                (f"{package}.{_FILE_OF_FORM[form]}", f"{form}_{operator.spec.name}") for form in operator.forms
            ],
            "forms": [(form, f"{form}_{operator.spec.name}") for form in operator.forms],
        }

    def imports(self, body: str) -> list[tuple[str, list[str]]]:
        """What to import from the files that all packages share, file by file."""
        files = {
            **MODULES,
            "shared.functional": ("activate", "l2norm"),
            "shared.initialize": (
                *("integer", "inverse_softplus", "log_uniform"),
                *("no_weight_decay", "normal", "positions", "uniform"),
            ),
            "shared.shift": ("shift",),
        }
        text = "\n".join(("", body, *self.unmarked()))
        found = ((file, [name for name in names if _calls(text, name)]) for file, names in files.items())
        return [(file, names) for file, names in found if names]

    # ------------------------------------------------------------------------------------------------------ blocks

    def _block(
        self,
        steps: Iterable[Step],
        write: object,
        conditions: LayerPrinter | None = None,
        word: str = "if",
    ) -> Iterator[str]:
        """Steps as lines, each under its conditions."""
        assert callable(write)
        printer = conditions or self.first
        for step in steps:
            if isinstance(step, Set):
                yield from (line for line in str(write(step)).split("\n") if line)
                continue
            yield from self._choice(step, write, printer)

    def _choice(self, step: Choose, write: object, printer: LayerPrinter) -> Iterator[str]:
        then = [f"    {line}" for line in self._block(step.then, write, printer)]
        otherwise = list(self._block(step.otherwise, write, printer))
        if not then:
            if otherwise:
                yield f"if {printer.negated(step.condition)}:"
                yield from (f"    {line}" for line in otherwise)
            return
        yield f"if {printer.text(step.condition)}:"
        yield from then
        if not otherwise:
            return
        if len(step.otherwise) == 1 and isinstance(step.otherwise[0], Choose) and otherwise[0].startswith("if "):
            yield f"el{otherwise[0]}"
            yield from otherwise[1:]
            return
        yield "else:"
        yield from (f"    {line}" for line in otherwise)


def _chosen(step: Step) -> Step:
    """A start that is chosen by a condition, as a block."""
    if isinstance(step, Set) and isinstance(step.value, IfElse):
        then, otherwise = Set(step.targets, step.value.then), Set(step.targets, step.value.otherwise)
        return Choose(step.value.condition, (_chosen(then),), (_chosen(otherwise),))
    if isinstance(step, Choose):
        return Choose(step.condition, tuple(map(_chosen, step.then)), tuple(map(_chosen, step.otherwise)))
    return step


def _is_module(node: Expr) -> TypeGuard[Call | Name]:
    return (isinstance(node, Call) and node.kind == "constructor") or (isinstance(node, Name) and node.kind == "module")


def _is_dim(value: Expr, name: str) -> bool:
    return isinstance(value, Name) and value.kind == "dim" and value.name == name


def _of_dims(expr: Expr) -> bool:
    return any(isinstance(node, Name) and node.kind == "dim" for node in walk(expr))


def _path(path: str) -> str:
    """A parameter by its path: `self.x_proj[0].mu` of `x_proj.0.mu`."""
    return "self" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path.split("."))


def _temporaries(steps: Iterable[Step]) -> set[str]:
    found: set[str] = set()
    for step in steps:
        found |= set(step.targets) if isinstance(step, Set) else _temporaries((*step.then, *step.otherwise))
    return found


def _calls(text: str, name: str) -> bool:
    """Whether code calls a function by its name alone."""
    return any(f"{before}{name}(" in text for before in (" ", "(", "-", "\n"))


def _constant(name: Name) -> str:
    if name.name not in ("inf", "pi"):
        raise InternalError(f"{name.name} is a {name.kind}, and not known here")
    return f"math.{name.name}"


def _annotation(default: object, kind: str | None = None) -> str:
    """The type of an argument, by its default and what is said of it."""
    if kind is None and default is None:
        return "Tensor | None"
    if isinstance(default, tuple):
        return "tuple[float, ...]"
    return f"{kind or type(default).__name__}{' | None' if default is None else ''}"


def _one_of(config: Config) -> Iterator[str]:
    names = [literal(value) for value in config.one_of]
    *others, last = map(repr, config.one_of)
    listed = f"{', '.join(others)} or {last}" if others else last
    yield f"if {config.name} not in ({', '.join(names)}{',' if len(names) == 1 else ''}):"
    if len(listed) + 2 * len(config.name) < _MESSAGE_WIDTH + 10:
        yield f'    raise ValueError(f"{config.name}: expected {listed}, got {{{config.name}!r}}")'
        return
    yield "    raise ValueError("
    yield f'        "{config.name}: expected {listed}, "'
    yield f'        f"got {{{config.name}!r}}"'
    yield "    )"
