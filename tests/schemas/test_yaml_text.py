"""YAML by the core schema of 1.2, and texts that are refused in one line."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from talkforge.schemas.yaml_text import MAX_ALIASED, YamlError, dump, load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("NO", "NO"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("n", "n"),
        ("true", True), ("True", True), ("FALSE", False), ("tRue", "tRue"),
        ("null", None), ("~", None), ("", None), ("Null", None), ("nUll", "nUll"), ("none", "none"),
        ("010", 10), ("-010", -10), ("0o10", 8), ("0x1f", 31), ("1_0", "1_0"), ("1_0.5", "1_0.5"),
        ("0b11", "0b11"), ("+1", 1), ("1:30", "1:30"),
        ("1e3", 1000.0), ("1E-4", 0.0001), ("1.", 1.0), (".5", 0.5), ("-.5", -0.5), ("1.5e3", 1500.0),
        (".inf", math.inf), ("-.INF", -math.inf), ("inf", "inf"), ("nan", "nan"),
        ("2026-01-01", "2026-01-01"), ("=", "="), ("<<", "<<"),
        ("'010'", "010"), ('"true"', "true"), ("!!str 5", "5"), ("!!float 5", 5.0), ("|\n 5\n", "5\n"),
        ("[no, 1, a]", ["no", 1, "a"]), ("{a: {b: on}}", {"a": {"b": "on"}}), ("1: a", {"1": "a"}),
    ],
)  # fmt: skip
def test_a_scalar_is_what_yaml_1_2_says(text: str, value: Any) -> None:
    found, _ = load(text)
    assert found == value and type(found) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(load(".nan")[0])


def test_every_key_has_its_line() -> None:
    data, lines = load("# head\na: 1\nb:\n  c: [1,\n    2]\n  d: {e: 3}\n")
    assert data == {"a": 1, "b": {"c": [1, 2], "d": {"e": 3}}}
    assert lines == {
        (): 2, ("a",): 2, ("b",): 3, ("b", "c"): 4, ("b", "c", 0): 4, ("b", "c", 1): 5,
        ("b", "d"): 6, ("b", "d", "e"): 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: a is there twice, first in line 1"),
        ("s: {k: 1, k: 1}", "line 1: s.k is there twice, first in line 1"),
        ("a: 1\n---\na: 2", "line 2: but found another document"),
        ("a: [1", "line 1: expected ',' or ']', but got '<stream end>'"),
        ("a:\n  - b\n c: 1", "line 3: expected <block end>, but found '<block mapping start>'"),
        ("a: !!python/name:os x", "line 1: the tag tag:yaml.org,2002:python/name:os is not supported"),
        ("a: !secret x", "line 1: the tag !secret is not supported"),
        ("!!int x", "line 1: 'x' is no int"),
        ("? [a]\n: 1", "line 1: expected a name as key, found a list or a section"),
        ("&a [1, *a]", "line 1: an alias names what it lies in"),
        ("a: *nobody", "line 1: found undefined alias 'nobody'"),
        ("x: " + "[" * 5000, "is nested too deeply"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_plain_data_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(YamlError) as caught:
        load(text)
    assert str(caught.value) == message


def test_aliases_stand_for_what_they_name() -> None:
    assert load("a: &x [1, 2]\nb: *x")[0] == {"a": [1, 2], "b": [1, 2]}
    assert len(load("\n".join(f"- {n}" for n in range(2 * MAX_ALIASED)))[0]) == 2 * MAX_ALIASED


def test_aliases_that_multiply_are_refused() -> None:
    levels = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    with pytest.raises(YamlError, match=f"^its aliases expand to more than {MAX_ALIASED} values$"):
        load("\n".join(levels))


def test_what_is_written_is_read_back_by_both_versions() -> None:
    data = {
        "z": ["no", "on", "1e3", "0o10", "010", "1_0", "null", "", "1:30", "text", "~", "ä"],
        "a": {"i": 10, "f": 1e-05, "g": 1000.0, "t": True, "n": None, "none": {}},
    }
    text = dump(data)
    assert load(text)[0] == data
    assert yaml.safe_load(text) == data
    assert text.index("z:") < text.index("a:")
