"""How kernels reach the interpreter: their arguments, their loops, the names they import, their configurations.

Where a kernel under the stock interpreter is not the kernel that gets compiled, or does not run:

- A float argument stays a Python float, which takes the type of whatever it meets: `scale * b_q` is rounded to
  bfloat16, `scale` included. Compiled, a float argument is a float32 scalar and the product is float32.
- `for i in range(n)` gives Python integers. Compiled, a loop variable is an int32 tensor, or int64 if a bound is, with
  methods such as `i.to(tl.int64)` and the wrap-around of its type. (`tl.static_range` does give constants.)
- Builtins are made interpretable by replacing the attributes of `triton.language`, so that those a kernel's module
  holds under names of its own (`from triton.language import exp`) raise.
- A scalar used where Python wants an integer, in a grid or a loop's bounds, raises under recent numpy in Triton 3.6.
- An autotuned kernel wants a GPU's driver to time its configurations.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import getmembers
from typing import Any

import numpy as np

from flagen.triton_cpu.border import Patch, autotuner, interpreter, stock, tl

_LOOP_RANGE = "_flagen_loop_range"
_STATIC_RANGE = "_flagen_static_range"

_autotune_choice: ContextVar[int] = ContextVar("autotune_choice", default=0)


@contextmanager
def autotune_choice(index: int) -> Iterator[None]:
    """Within it, autotuned kernels run configuration `index`, of those that pruning leaves, instead of the first."""
    token = _autotune_choice.set(index)
    try:
        yield
    finally:
        _autotune_choice.reset(token)


def patches() -> list[Patch]:
    """The interpreter's rewriting and launching of kernels, and the autotuner's run."""
    transformer, rewriter = stock(interpreter, "ASTTransformer"), stock(interpreter, "FunctionRewriter")
    tuner = stock(autotuner, "Autotuner")
    for name in ("run", "prune_configs"):
        stock(tuner, name)
    return [
        Patch(interpreter, "_implicit_cvt", _argument(stock(interpreter, "_implicit_cvt"))),
        Patch(interpreter, "_patch_lang_tensor", _tensor_methods(stock(interpreter, "_patch_lang_tensor"))),
        # The interpreter shows a rewritten kernel everything its own module holds: the names its loops are given.
        Patch(interpreter, _LOOP_RANGE, _loop_range),
        Patch(interpreter, _STATIC_RANGE, _static_range),
        Patch(transformer, "visit_For", _visit_for),
        Patch(rewriter, "_compile_and_exec", _compile(stock(rewriter, "_compile_and_exec"), _builtins())),
        Patch(tuner, "run", _run_without_tuning),
    ]


def _argument(stock_conversion: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def convert(argument: Any) -> Any:
        if isinstance(argument, float):
            return _scalar(argument, tl.float32, np.float32)
        return stock_conversion(argument)

    return convert


def _tensor_methods(stock_methods: Callable[..., None]) -> Callable[..., None]:
    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        stock_methods(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patch_lang_tensor


def _scalar(value: float, dtype: Any, numpy_type: type[np.generic]) -> Any:
    return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=numpy_type), dtype), dtype)


def _loop_range(arg1: Any, arg2: Any = None, step: Any = 1, **_hints: Any) -> Iterator[Any]:
    """`range` and `tl.range` of a rewritten kernel; the hints of `tl.range` steer the compiler's pipeliner only."""
    bounds = (0, arg1) if arg2 is None else (arg1, arg2)
    values = [_integer(bound) for bound in (*bounds, step)]
    wide = any(getattr(bound, "dtype", None) == tl.int64 for bound in (*bounds, step))
    wide = wide or any(not -(2**31) <= value < 2**31 for value in values)
    for value in range(*values):
        yield _scalar(value, tl.int64, np.int64) if wide else _scalar(value, tl.int32, np.int32)


def _static_range(arg1: Any, arg2: Any = None, step: Any = 1) -> range:
    """`tl.static_range` of a rewritten kernel."""
    bounds = (0, arg1) if arg2 is None else (arg1, arg2)
    return range(*(_integer(bound) for bound in (*bounds, step)))


def _integer(bound: Any) -> int:
    if isinstance(bound, tl.tensor):
        return int(bound.handle.data.item())
    return int(getattr(bound, "value", bound))


def _visit_for(self: Any, node: ast.For) -> ast.AST:
    """Name the loop's iterator, which `range`, `tl.range` and `tl.static_range` are in every spelling."""
    if isinstance(node.iter, ast.Call):
        called = node.iter.func
        name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
        replacement = {"range": _LOOP_RANGE, "static_range": _STATIC_RANGE}.get(name)
        if replacement:
            node.iter.func = ast.copy_location(ast.Name(id=replacement, ctx=ast.Load()), called)
    visited: ast.AST = self.generic_visit(node)
    return visited


def _builtins() -> dict[int, tuple[Any, Any, str]]:
    """Each builtin of Triton's language by its id, and where it lives, while none is replaced; `tl` itself if it does.

    It is held here: the id of one that is gone may be that of anything."""
    return {
        id(member): (member, module, name)
        for module in (tl.math, tl.core, tl)
        for name, member in getmembers(module)
        if callable(member) and tl.core.is_builtin(member)
    }


def _compile(stock_compile: Callable[..., Any], builtins: dict[int, tuple[Any, Any, str]]) -> Callable[..., Any]:
    def compile_and_exec(self: Any, tree: Any) -> Any:
        names = self.fn.__globals__
        for name, value in list(names.items()):
            if id(value) in builtins:
                _, module, called = builtins[id(value)]
                names[name] = _late_bound(module, called)
        return stock_compile(self, tree)

    return compile_and_exec


def _late_bound(module: Any, name: str) -> Callable[..., Any]:
    """A builtin looked up when called: during a launch its module holds the interpreted one."""

    def call(*arguments: Any, **named: Any) -> Any:
        return getattr(module, name)(*arguments, **named)

    call.__name__ = name
    return call


def _run_without_tuning(self: Any, *arguments: Any, **named: Any) -> Any:
    """`Autotuner.run` with the chosen configuration and its hook, and no timing."""
    self.nargs = dict(zip(self.arg_names, arguments, strict=False))
    configurations = self.prune_configs(named)
    index = _autotune_choice.get()
    if index >= len(configurations):
        raise IndexError(f"{self.base_fn.__name__} has {len(configurations)} configurations, and no number {index}")
    self.best_config = configurations[index]
    chosen = self.best_config.all_kwargs()
    if self.best_config.pre_hook is not None:
        self.best_config.pre_hook({**self.nargs, **named, **chosen})
    return self.fn.run(*arguments, **named, **chosen)
