"""`repair()` makes Triton's interpreter compute what the compiled kernel would, closely enough to test kernels by."""

from __future__ import annotations

from flagen.triton_cpu import arithmetic, dots, launches, reductions, shortcuts
from flagen.triton_cpu.border import interpreter, require_interpreter, stock

_MARK = "_flagen_repaired"


def repair() -> None:
    """Repair the interpreter of this process, once; call it as often as you like.

    The modules `arithmetic`, `reductions`, `dots` and `launches` tell what stock Triton does wrong and how each repair
    acts. Raises InterpreterOffError unless TRITON_INTERPRET=1 was set before triton was imported, and
    UnsupportedTritonError, naming the version and what it lacks, when a repair has nothing to stand on; then nothing
    has been changed.
    """
    require_interpreter()
    if hasattr(interpreter, _MARK):
        return
    rewritten = stock(stock(interpreter, "InterpretedFunction"), "rewritten_fn")
    every = [arithmetic, reductions, dots, launches, shortcuts]
    for patch in [patch for module in every for patch in module.patches()]:
        patch.apply()
    # Kernels that ran before were rewritten the stock way.
    rewritten.clear()
    setattr(interpreter, _MARK, True)
