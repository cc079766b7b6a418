"""What other languages and papers write, and what a person is told who writes it here."""

from __future__ import annotations

import re

import pytest

from flagen.spec import check_spec, idioms
from flagen.spec.idioms import ascii_name
from flagen.spec.names import functions

SPEC = """
flagen: 1
name: idioms
state: {{S: [K, V]}}
inputs: {{q: [K], k: [K], v: [V], g: {{dims: [], range: [-.inf, 0]}}}}
update: S = exp(g) * S + outer(k, v)
output: "o = {}"
"""


def told(expression: str, text: str = SPEC) -> tuple[str, str]:
    """The code and the hint of the one thing that is wrong with an output."""
    (found,) = check_spec(text.format(expression))[1]
    return found.code, found.hint


@pytest.mark.parametrize("name", sorted({**idioms._FUNCTIONS, **idioms._FUNCTIONS_OF_VERSION_2}))
def test_a_function_of_another_library_is_one_mistake_with_a_hint(name: str) -> None:
    assert name not in functions(2)
    assert told(f"S.T @ {name}(q)") == ("E408", idioms.function_hint(name, 1))
    of_version_2 = SPEC.replace("flagen: 1", "flagen: 2")
    assert told(f"S.T @ {name}(q)", of_version_2) == ("E408", idioms.function_hint(name, 2))


@pytest.mark.parametrize("name", sorted(idioms._FUNCTIONS_OF_VERSION_2))
def test_what_only_version_2_can_write_is_told_with_the_version(name: str) -> None:
    assert "`flagen: 2`" in idioms.function_hint(name, 1)
    assert "version" not in idioms.function_hint(name, 2)


@pytest.mark.parametrize(
    "hint",
    sorted({*idioms._FUNCTIONS.values(), *idioms._NAMES.values(), *idioms._FUNCTIONS_OF_VERSION_2.values()}),
)
def test_what_a_hint_tells_to_write_is_in_the_language(hint: str) -> None:
    for text in re.findall(r"(?:[Ww]rite|written|is|of two:) `([^`=]*)`", hint):
        if "k^T" in text or text in (".T", "self."):
            continue
        names = dict.fromkeys(re.findall(r"(?<![.\w])[A-Za-z]\w*", re.sub(r"[0-9.]+e-?[0-9]+", "", text)))
        local = "\n".join(f"  - {name} = norm(v)" for name in names if name in ("a", "b", "x", "y"))
        value = f"0 * ({text})" if "S" not in text and "@" not in text else text
        of_version_2 = hint in idioms._FUNCTIONS_OF_VERSION_2.values()
        version = SPEC.replace("flagen: 1", "flagen: 2") if of_version_2 else SPEC
        spec = version.format("PLACEHOLDER").replace(
            'output: "o = PLACEHOLDER"', f"output:\n{local}\n  - probe = {value}\n"
        )
        codes = {found.code for found in check_spec(spec + "  - o = S.T @ q\n")[1]}
        assert not codes & {"E401", "E402", "E403", "E404", "E406", "E407", "E408", "E409", "E410", "E411"}, text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *(
            ("\u03b2", "beta"),
            ("\u0394", "Delta"),
            ("\u03bb", "lam"),
            ("\u03b2\u2081", "beta_1"),
            ("\u03b3_t", "gamma_t"),
        ),
        *(("\u03f5", "epsilon"), ("\u03d5", "phi"), ("\U0001d6fc", "alpha"), ("\u03c2", "sigma"), ("\u2113", "l")),
        *(("\u00e9t\u00e9", "ete"), ("my-key", "my_key"), ("lambda", "lambda_"), ("\u2202", None), ("64", None)),
    ],
)
def test_a_name_is_spelled_in_ascii(text: str, name: str | None) -> None:
    assert ascii_name(text) == name


@pytest.mark.parametrize("character", sorted(idioms.CHARACTERS))
def test_a_character_of_another_notation_is_one_mistake_with_a_hint(character: str) -> None:
    code, hint = told(f"S.T @ q {character} q" if character not in '"\\' else f"S.T @ q \\{character} q")
    assert code in ("E402", "E410", "E413") and hint


@pytest.mark.parametrize(
    ("expression", "hint"),
    [
        ("S[t-1].T @ q", "`S_prev`"),
        ("S_{t-1}.T @ q", "`S_prev`"),
        ("S(t - 1).T @ q", "`S_prev`"),
        ("S_old.T @ q", "`S_prev`"),
        ("S_T @ q", "`S.T`"),
        ("S.T @ q_t", "`q` is the value at this token"),
        ("S' @ q", "`.T`"),
        ("S.t() @ q", "`.T`"),
        ("S.mT @ q", "`.T`"),
        ("S^T @ q", "`.T`"),
        ("torch.transpose(S, 0, 1) @ q", "`.T`"),
        ("einsum('kv,k->v', S, q)", "`a @ b`"),
        ("torch.matmul(S.T, q)", "`a @ b`"),
        ("torch.exp(S.T @ q)", "`exp(...)`"),
        ("e ** g * S.T @ q", "`exp(x)`"),
        ("S.T @ softmax(q, dim=-1)", "by position"),
        ("2q @ S", "`2 * q`"),
        ("exp g * S.T @ q", "`exp(g)`"),
        ("S.T q", "`a @ b`"),
        ("S.T @ (I - g) @ q", "an identity is not written"),
        ("S.T @ q if g else q", "`clamp`"),
    ],
)
def test_one_mistake_is_told_once_with_its_mend(expression: str, hint: str) -> None:
    assert hint in told(expression)[1]
