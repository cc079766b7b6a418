"""Names in generated kernels and launchers: the spec's, own words, and made-up ones that give way. No two meet."""

from __future__ import annotations

import ast
import builtins

import pytest

from flagen.backends.range_check import RANGES, range_check
from flagen.backends.triton_.fused_backward import reverse_kernels_context
from flagen.backends.triton_.kernel import kernel_context
from flagen.backends.triton_.launcher import launcher_context
from flagen.backends.triton_.reverse_launcher import reverse_launcher_context
from flagen.emit.env import environment, render
from flagen.functions import FUNCTIONS
from flagen.kernel.recurrent import fused_recurrent
from flagen.kernel.reverse import StateArrays, reverse_backward
from flagen.plan.free_names import final_name, free_name, initial_name
from flagen.plan.fused import FusedPlan, plan_fused_recurrent
from flagen.plan.own_names import WORDS
from flagen.plan.reverse_mode import plan_reverse_mode
from flagen.project import bundled
from flagen.spec import parse_spec
from flagen.spec.model import REDUCTIONS, ROW_MAPS
from tests.backends.triton_odd import ODD
from tests.fuzz.packages import build
from tests.specs import OPERATORS

EVERY = {name: path.read_text() for name, path in OPERATORS.items()}
SPECS = {name: text for name, text in EVERY.items() if isinstance(plan_fused_recurrent(parse_spec(text)), FusedPlan)}
KNOWN = {"shared": "..", "asked": "wanted"}
"""What every template is given."""
LANGUAGE = {*FUNCTIONS, *REDUCTIONS, *ROW_MAPS, "o", "head", "H", "HV"}


def functions(text: str, template: str) -> tuple[FusedPlan, list[ast.FunctionDef]]:
    """The plan of a spec, and the functions of one generated file that mention its names."""
    plan = plan_fused_recurrent(parse_spec(text))
    assert isinstance(plan, FusedPlan)
    if template == "fused_recurrent_kernels":
        context = kernel_context(plan, fused_recurrent(plan))
    else:
        context = {
            **launcher_context(plan, fused_recurrent(plan), "nothing"),
            "notes": (),
            RANGES: range_check(plan.spec),
        }
    tree = ast.parse(render(environment(bundled("templates")), f"triton/{template}.py.j2", context, **KNOWN))
    mention = ("fused_recurrent_", "launch_config") if template == "fused_recurrent_kernels" else ""
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith(mention)]
    assert found
    return plan, found


def identifiers(function: ast.FunctionDef) -> set[str]:
    nodes = list(ast.walk(function))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.arg for node in nodes if isinstance(node, ast.arg)}


def made_up(plan: FusedPlan) -> set[str]:
    """What stands in the generated code for something of the spec, under a name that is free."""
    states = [state.name for state in plan.spec.states]
    names = {name(state, plan.names) for state in states for name in (initial_name, final_name)}
    names |= {f"{state}_prev" for state in states}
    names |= {free_name(f"d{final_name(state, plan.names)}", plan.names) for state in states}
    names |= {free_name("do", plan.names), free_name("check_ranges", plan.names)}
    return names | {free_name(f"{dim}_{what}", plan.names) for dim in plan.order for what in ("index", "mask")}


@pytest.mark.parametrize("template", ["fused_recurrent_kernels", "fused_recurrent"])
@pytest.mark.parametrize("text", [*SPECS.values(), *ODD.values()], ids=[*SPECS, *ODD])
def test_every_identifier_is_accounted_for(text: str, template: str) -> None:
    plan, found = functions(text, template)
    known = WORDS | plan.names | made_up(plan) | LANGUAGE | set(dir(builtins))
    for function in found:
        unknown = {
            name
            for name in identifiers(function) - known
            if not name.startswith(("_", "BLOCK_", "fused_recurrent_", "naive_recurrent_"))
            and not name.endswith("_ptr")
        }
        assert unknown <= {"x"}, (
            "make it a word, or let it give way"
        )  # Bound by a comprehension, and seen nowhere else.


REVERSE = {"reverse": reverse_launcher_context, "reverse_kernels": reverse_kernels_context}


@pytest.mark.parametrize("template", REVERSE)
@pytest.mark.parametrize("text", [*SPECS.values(), *ODD.values()], ids=[*SPECS, *ODD])
def test_transposed_statements_take_no_name_twice(text: str, template: str) -> None:
    """Whatever the spec: it need not be one whose gradients are planned so."""
    forward = plan_fused_recurrent(parse_spec(text))
    assert isinstance(forward, FusedPlan)
    plan = plan_reverse_mode(forward)
    env = environment(bundled("templates"))
    tree = ast.parse(render(env, f"triton/{template}.py.j2", REVERSE[template](plan, reverse_backward(plan)), **KNOWN))
    mention = ("fused_recurrent_", "launch_config")
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith(mention)]
    assert len(found) == (3 if template == "reverse_kernels" else 1)
    arrays = {array.name for carried in plan.carried for array in vars(StateArrays(plan, carried)).values()}
    assert len(arrays) == 6 * len(plan.carried)
    assert not arrays & plan.names
    axes = {free_name(f"{dim}_{what}", plan.names) for dim in forward.order for what in ("index", "mask")}
    known = WORDS | plan.names | arrays | axes | LANGUAGE | set(dir(builtins))
    for function in found:
        names = identifiers(function)
        unknown = {n for n in names - known if not n.startswith(("_", "BLOCK_", "fused_")) and not n.endswith("_ptr")}
        assert unknown <= {"x", "initial_state", "Collection"}, "make it a word, or let it give way"
        arguments = [argument.arg for argument in function.args.args]
        assert len(arguments) == len(set(arguments))


def test_made_up_names_give_way_to_the_specs() -> None:
    plan, (_, kernel) = functions(ODD["names"], "fused_recurrent_kernels")
    arguments = [argument.arg for argument in kernel.args.args]
    assert len(arguments) == len(set(arguments))
    assert {"x_initial_ptr", "x_initial__ptr", "x_final_ptr", "x_final__ptr"} <= set(arguments)
    assert {"K_mask_mask", "K_mask_index", "V_index_", "V_mask"} <= made_up(plan)
    assert "x_fixed" in plan.names


def test_cotangents_give_way_to_the_specs() -> None:
    text = (
        "flagen: 1\nname: cotangents\nstate: {S: [K, V]}\ninputs: {do: [K], dS_final: [K], v: [V]}\n"
        "update: S = S + outer(dS_final, v)\noutput: o = S.T @ do\n"
    )
    files = build(parse_spec(text))
    forward = arguments_of(files["fused_recurrent.py"], "fused_recurrent_cotangents")
    assert forward[:3] == ["do", "dS_final", "v"]
    backward = arguments_of(files["fused_recurrent_backward.py"], "fused_recurrent_backward_cotangents")
    assert backward[:5] == ["do_2", "final_gradient", "do", "dS_final", "v"]


def arguments_of(text: str, name: str) -> list[str]:
    defined = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    return [argument.arg for function in defined if function.name == name for argument in function.args.args]
