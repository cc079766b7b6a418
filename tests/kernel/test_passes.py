"""What of a body is needed."""

from __future__ import annotations

from flagen.kernel.ir import Add, Apply, Array, Fill, Given, If, Let, Load, Loop, Note, Routine, Store, access
from flagen.kernel.passes import live
from flagen.plan.tiles import Product, Value

X, Y, OUT = (Array(name, ("token",)) for name in ("x", "y", "out"))


def tile(name: str) -> Value:
    return Value(name, "local", ())


def loop(*body: object) -> Loop:
    return Loop("token", body)  # type: ignore[arg-type]


def test_what_the_next_turn_of_a_loop_reads_is_kept():
    """`b` is read before it is made: in the turn before."""
    body = (Fill("b", ()), Fill("c", ()), loop(Let("c", Product((tile("b"), tile("c")), ())), Load("b", access(X))))
    assert live(body, ["c"]) == body


def test_what_only_the_turns_of_a_loop_hand_to_each_other_is_left_out():
    body = (Fill("a", ()), Fill("b", ()), loop(Add("a", tile("b"), ()), Let("b", tile("a"))))
    assert live(body, ()) == ()


def test_a_loop_in_a_loop():
    """Both turns read what is there from before; what nobody reads goes from inside both."""
    inner = loop(Add("a", tile("x"), ()), Add("b", tile("x"), ()))
    outer = loop(Load("x", access(X)), Load("y", access(Y)), inner, Store(access(OUT), tile("a")))
    kept = live((Fill("a", ()), Fill("b", ()), outer), ())
    assert kept == (
        Fill("a", ()),
        loop(Load("x", access(X)), loop(Add("a", tile("x"), ())), Store(access(OUT), tile("a"))),
    )


def test_a_loop_that_does_nothing_goes_with_its_comments():
    assert live((loop(Note("nothing"), Load("x", access(X))),), ()) == ()


def test_a_condition_keeps_what_one_of_its_sides_needs():
    first = If((Given(X),), (Load("a", access(X)),), (Fill("a", ()),))
    assert live((first,), ["a"]) == (first,)
    assert live((first,), ()) == ()
    either = If((Given(X),), (Load("a", access(X)), Load("b", access(Y))), (Fill("a", ()),))
    assert live((either,), ["a"]) == (first,)


def test_a_routine_that_stores_is_applied_and_one_that_nobody_asks_for_is_not():
    def routine(*body: object) -> Apply:
        return Apply(Routine("across", ("a",), (), (), (), "", body))  # type: ignore[arg-type]

    stores, changes = routine(Store(access(OUT), tile("a"))), routine(Add("a", tile("a"), ()))
    start = Fill("a", ())
    assert live((start, stores), ()) == (start, stores)
    assert live((start, changes), ["a"]) == (start, changes)
    assert live((start, changes), ()) == ()
