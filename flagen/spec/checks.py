"""Checks over the whole spec, once every section is read: nothing unused, and nothing that says other than it does."""

from __future__ import annotations

from flagen.spec.model import Derived, Expr, Input, Param, Spec, Steps
from flagen.spec.names import Symbol, Symbols, listed, misspelt
from flagen.spec.report import Report
from flagen.spec.scope import Scope
from flagen.spec.usage import Role, Roles, assignments, names_in, reaching


def check_unused(symbols: Symbols, scope: Scope, report: Report) -> None:
    """Every input, param, derived name and local is read somewhere, and every dim that follows from others is had."""
    states = [symbol.name for symbol in symbols.of_kind("state")]
    sized = [symbol for symbol in symbols.of_kind("dim") if symbol.name in symbols.sized]
    for symbol in (*symbols.of_kind("input", "param", "derived", "local"), *sized):
        if symbol.used or symbol.name in scope.mentioned | symbols.doubtful:
            continue
        near = misspelt(symbol.name, states) if symbol.kind == "local" else None
        hint = f"did you mean the state `{near}`?" if near is not None else "use it or remove it"
        report.error("E305", symbol.span, f"`{symbol.name}` is {symbol.described} that nothing uses", hint)
        scope.mentioned.add(near or "")


def check_updated(symbols: Symbols, scope: Scope, updated: set[str], report: Report) -> None:
    """Every state has a statement that assigns it."""
    for symbol in symbols.of_kind("state"):
        if symbol.name not in updated and symbol.name not in scope.mentioned:
            message = f"no statement of the update assigns the state `{symbol.name}`"
            report.error("E601", symbol.span, message, f"add `{symbol.name} = ...`, or remove it")


def check_steps(steps: Steps | None, repeats: bool, report: Report) -> None:
    if steps is not None and not repeats:
        hint = f"put the statements of one step in `repeat: {steps.symbol}`, or remove `steps`"
        report.error("E602", steps.span, "`steps` is declared, and the update has no `repeat`", hint)


def check_sizes(symbols: Symbols, inputs: tuple[Input, ...], params: tuple[Param, ...], report: Report) -> None:
    """The size of every dim can be read off an argument that is always there."""
    known = {dim for decl in inputs for dim in decl.dims}
    known |= {dim for param in params if param.default is None for dim in param.dims}
    known |= symbols.sized
    lost: dict[int, list[Symbol]] = {}
    for symbol in symbols.of_kind("dim"):
        if symbol.name not in known:
            lost.setdefault(symbol.span.line, []).append(symbol)
    for unknown in lost.values():
        what, size, this = "dim", "its size is", "this dim"
        if len(unknown) > 1:
            what, size, this = "dims", "their sizes are", "these dims"
        message = f"no input has the {what} {listed(symbol.name for symbol in unknown)}, so {size} unknown"
        report.error("E510", unknown[0].span, message, f"give an input, or a param without default, {this}")
        # It may be one of theirs under another name.
        symbols.doubtful |= {symbol.name for symbol in unknown}


def check_meaning(spec: Spec, report: Report) -> None:
    """What the statements do together: the output reads the states, decays decay, gates gate."""
    values: dict[str, list[Expr]] = {entry.name: [entry.value] for entry in spec.derived}
    for assign in (*assignments(spec.update), *spec.output):
        values.setdefault(assign.target, []).append(assign.value)
    _check_reach(spec, values, report)
    roles = Roles(spec.update, spec.derived, frozenset(state.name for state in spec.states if state.meaning))
    read_by_output = {name for assign in spec.output for name in names_in(assign.value)}
    read = {name for exprs in values.values() for value in exprs for name in names_in(value)}
    # What nothing reads is reported as that, and so is a local that was to be a state: what it reads has no role yet.
    idle = [assign for assign in assignments(spec.update) if not assign.to_state and assign.target not in read]
    lost = reaching({assign.target for assign in idle}, values)
    for entry in spec.derived:
        if entry.section != "let" and entry.name in read - lost:
            _check_role(entry, roles.of(entry.name), entry.name in read_by_output, report)


def _check_reach(spec: Spec, values: dict[str, list[Expr]], report: Report) -> None:
    """The output depends on every state; on one that nothing updates, too, but that is reported as that."""
    reached = reaching({"o"}, values)
    idle = [state for state in spec.states if state.name not in reached and state.name in values]
    if idle and reached.isdisjoint(state.name for state in spec.states):
        span = spec.output[-1].span
        report.error("E606", span, "the output depends on no state", "read a state, as in `o = S.T @ q`")
    else:
        for state in idle:
            message = f"the state `{state.name}` never reaches the output"
            report.error("E314", state.span, message, "read it in `output` or in another state's update, or remove it")


def _check_role(entry: Derived, roles: set[Role], in_output: bool, report: Report) -> None:
    wanted: Role = "scales a state" if entry.section == "decay" else "scales a write"
    if wanted in roles:
        return
    does, section = "neither multiplies a state nor scales a write", "let"
    if "scales a write" in roles:
        does, section = "only scales what is written", "gate"
    elif "scales a state" in roles:
        does, section = "only multiplies a state", "decay"
    elif "scales a read" in roles:
        does = "only scales what is read from a state"
    elif in_output:
        does = "only stands in the output"
    code, says = ("E607", "multiplies a state") if entry.section == "decay" else ("E608", "scales a write")
    message = f"a {entry.section} {says}; `{entry.name}` {does}"
    report.error(code, entry.span, message, f"declare it under `{section}`")
