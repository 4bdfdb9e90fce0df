"""Run files as trees: scalars, duplicates, lines, overrides, and writing back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfire.errors import ConfigError
from backfire.runfile import dump, override, parse


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1e-5", 1e-5), ("5E-7", 5e-7), (".5", 0.5), ("1.", 1.0), ("-3", -3), ("+2", 2), ("0", 0),
        ("no", "no"), ("on", "on"), ("true", True), ("null", None), ("~", None), ("", None),
        ("12:30", "12:30"), ("2026-01-02", "2026-01-02"), ("1_000", "1_000"), ("'1e-5'", "1e-5"),
        ("none", "none"), (".inf", float("inf")),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(written: str, read: Any) -> None:
    found = parse(f"a: {written}").tree["a"]
    assert found == read
    assert type(found) is type(read)


def test_every_key_given_twice_is_named_with_both_lines() -> None:
    parsed = parse("a: 1\nb:\n  - {c: 1, c: 2}\na: 2\n")
    assert len(parsed.mistakes) == 2
    assert parsed.mistakes[1].startswith("a (line 4)")
    assert "line 1" in parsed.mistakes[1]
    assert "b.0.c (line 3)" in parsed.mistakes[0]


@pytest.mark.parametrize(
    "text", ["a: [1", "a: b: c", "a: &x [1]\nb: *x", "a: \x00", "!!python/name:os.x 1"]
)
def test_what_is_not_plain_yaml_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse(text)


def test_overrides_set_values_lists_and_new_mappings_and_leave_the_original_alone() -> None:
    tree = {"attacks": [{"shots": 10}], "chat": None}
    changed, mistakes = override(
        tree, ["attacks.0.shots=50", "chat.system=be kind", "verdict.rho=8e-1", "seeds=[0, 1]"]
    )
    assert mistakes == []
    assert changed == {
        "attacks": [{"shots": 50}],
        "chat": {"system": "be kind"},
        "verdict": {"rho": 0.8},
        "seeds": [0, 1],
    }
    assert tree == {"attacks": [{"shots": 10}], "chat": None}


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("seeds", "key.path=value"),
        ("attacks.3.shots=1", "index from 0 to 0"),
        ("attacks.x.shots=1", "met 'x'"),
        ("name.deeper=1", "nothing below it"),
        ("empty.0=1", "no item to set"),
        ("absent.0.name=x", "give the whole one, absent=[...]"),
        ("name=[1", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_said_not_raised(assignment: str, said: str) -> None:
    _, mistakes = override({"attacks": [{}], "name": "x", "empty": []}, [assignment])
    assert len(mistakes) == 1
    assert said in mistakes[0]


_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12
)  # fmt: skip
_keys = st.text("abcdefgh_", min_size=1, max_size=6)
_trees = st.dictionaries(
    _keys,
    st.recursive(
        _scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(_keys, x, max_size=3)
    ),
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(_trees)
def test_what_is_written_is_read_back(tree: dict[str, Any]) -> None:
    assert parse(dump(tree, comment="why?")).tree == (tree or {})


@settings(max_examples=40, deadline=None)
@given(_trees, _keys, st.integers() | st.booleans())
def test_overriding_twice_is_overriding_once(tree: dict[str, Any], key: str, value: Any) -> None:
    text = [f"{key}={str(value).lower()}"]
    once, _ = override(tree, text)
    twice, _ = override(once, text)
    assert once == twice
    assert once[key] == value
