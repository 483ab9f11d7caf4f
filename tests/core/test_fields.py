"""Validation of tables and settings by annotations, with one-line errors."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from robench.core.errors import UsageError
from robench.core.fields import AT_LEAST_ONE, NOT_NEGATIVE, check_settings, check_table
from robench.core.trust import Written


@dataclass(frozen=True)
class Kind:
    name: str
    count: Annotated[int, AT_LEAST_ONE] = 1
    rate: float = 0.5
    flag: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    names: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    claims: list[dict[str, Any]] = field(default_factory=list)
    limit: int | None = None
    odd: "something that nothing here knows" = 0  # type: ignore  # noqa: F722
    path: str = ""


@pytest.mark.parametrize(
    "table",
    [
        {"name": "a"},
        {"name": "a", "rate": 3, "flag": True, "limit": None, "figures": {"x": 1}},
        {"name": "a", "claims": [{"x": True, "y": [1]}], "limit": 3, "odd": object()},
        {"name": Written("a", "file"), "names": ["a", Written("b", "file")], "precision": "bf16"},
    ],
)
def test_valid_tables_are_accepted(table):
    check_table(table, Kind, "a.toml", without=("path",))
    Kind(**table)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (3, "a.toml: 3 is not a kind: expected a table"),
        ({}, "a.toml: the field name is missing"),
        ({"nam": "a"}, 'a.toml: unknown field "nam": expected some of name, names'),
        ({"name": "a", "path": "b"}, 'a.toml: unknown field "path"'),
        ({"name": 3}, "a.toml: name = 3: expected a string"),
        ({"name": "a\0"}, "holds a null byte: expected text"),
        ({"name": "a" * 10_001}, "a.toml: name has 10001 characters: expected at most 10000"),
        ({"name": "a", "count": 0}, "a.toml: count = 0: expected at least 1"),
        ({"name": "a", "count": 1.0}, "a.toml: count = 1.0: expected a whole number"),
        ({"name": "a", "count": True}, "a.toml: count = True: expected a whole number"),
        ({"name": "a", "rate": "0.5"}, "a.toml: rate = '0.5': expected a number"),
        ({"name": "a", "rate": -1}, "a.toml: rate = -1: expected a finite number, at least 0"),
        ({"name": "a", "rate": float("inf")}, "expected a finite number"),
        ({"name": "a", "flag": 1}, "a.toml: flag = 1: expected True or False"),
        ({"name": "a", "precision": "fp16"}, "a.toml: precision = 'fp16': expected fp32 or bf16"),
        ({"name": "a", "names": "b"}, "a.toml: names = 'b': expected a list"),
        ({"name": "a", "names": ["b", 3]}, "a.toml: names, item 2, = 3: expected a string"),
        ({"name": "a", "figures": {"x": "y"}}, "a.toml: figures.x = 'y': expected a number"),
        ({"name": "a", "limit": "3"}, "a.toml: limit = '3': expected a whole number or None"),
    ],
)
def test_invalid_tables_are_refused(table, text):
    with pytest.raises(UsageError) as raised:
        check_table(table, Kind, "a.toml", without=("path",), ranges=(NOT_NEGATIVE,))
    assert text in str(raised.value) and "\n" not in str(raised.value)


def test_settings_are_named_as_in_a_spec():
    check_settings(Kind("a"))
    with pytest.raises(ValueError, match=r"^rate=-0.5: expected a finite number, at least 0$"):
        check_settings(Kind("a", rate=-0.5))
    with pytest.raises(ValueError, match=r"^name=3: expected a string$"):
        check_settings(Kind(3))  # type: ignore[arg-type]
