"""Plans that several tests look at, made once."""

from __future__ import annotations

from functools import cache

from flagen.pipeline import derive, make_plan
from flagen.plan import Plan
from flagen.spec import load_spec, parse_spec
from flagen.spec.model import Spec
from tests.backends.triton_odd import ODD
from tests.specs import OPERATORS


@cache
def spec_of(name: str) -> Spec:
    """An operator's spec, or an odd one."""
    return parse_spec(ODD[name]) if name in ODD else load_spec(OPERATORS[name])


@cache
def plan_of(name: str) -> Plan:
    return make_plan(spec_of(name), derive(spec_of(name)))
