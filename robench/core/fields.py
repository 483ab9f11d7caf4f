"""Validation of values against the fields of a data class: tables of TOML files, and settings of methods.

Pydantic is not used because it copies strings into plain `str`, and strings read from a file must stay `Written`
(see `robench.core.trust`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from robench.core.errors import UsageError, some

# Maximum length of a string in a table, in characters.
_LONGEST = 10_000
_WORDS = {
    bool: "True or False", int: "a whole number", float: "a number", str: "a string", list: "a list", dict: "a table",
    None: "None", NoneType: "None",
}  # fmt: skip


@dataclass(frozen=True)
class Range:
    """The range of numbers that a field accepts, as in `Annotated[float, BELOW_ONE]`.

    Attributes:
        words: description of the range for error messages.
        holds: whether a number lies in the range.
    """

    words: str
    holds: Callable[[float], bool]


NOT_NEGATIVE = Range("a finite number, at least 0", lambda value: 0 <= value < math.inf)
AT_LEAST_ONE = Range("at least 1", lambda value: value >= 1)
AT_MOST_ONE = Range("at most 1", lambda value: value <= 1)
BETWEEN = Range("above 0 and below 1", lambda value: 0 < value < 1)
BELOW_ONE = Range("at least 0 and below 1", lambda value: 0 <= value < 1)
PERCENT = Range("a percentage, 0 to 100", lambda value: 0 <= value <= 100)
ABOVE_ZERO = Range("above 0", lambda value: value > 0)


def check_table(
    table: Any,
    kind: type,
    source: str,
    *,
    inside: str = ": ",
    without: Sequence[str] = (),
    ranges: Sequence[Range] = (),
) -> None:
    """Check a table of a TOML file against a data class.

    Args:
        kind: the data class; its annotations declare the type of each field.
        source: file and name of the table, for messages.
        inside: separator between `source` and the name of a field, for messages.
        without: fields of `kind` that a table may not set.
        ranges: ranges that every number must satisfy, besides those its field is annotated with.

    Raises:
        UsageError: if `table` is not a table, or a field is unknown, missing, of the wrong type or out of range.
    """
    if not isinstance(table, Mapping):
        raise UsageError(f"{source}: {table!r:.100} is not a {kind.__name__.lower()}: expected a table")
    known = {item.name: item for item in fields(kind) if item.name not in without}
    for key, value in table.items():
        if key not in known:
            raise UsageError(f'{source}: unknown field "{key}": expected some of {some(known, str(key))}')
        try:
            check_value(f"{source}{inside}{key}", value, known[key].type, ranges, sign=" = ")
        except ValueError as error:
            raise UsageError(str(error)) from None
    for key, item in known.items():
        if key not in table and item.default is MISSING and item.default_factory is MISSING:
            raise UsageError(f"{source}: the field {key} is missing")


def check_settings(settings: Any) -> None:
    """Check that each field of a frozen data class has its declared type, and that numbers are finite and at least 0.

    A subclass with stricter rules extends `__post_init__`.

    Raises:
        ValueError: naming the field, its value and what is expected.
    """
    for item in fields(settings):
        check_value(item.name, getattr(settings, item.name), item.type, (NOT_NEGATIVE,))


def check_value(
    name: str, value: Any, annotation: Any, ranges: Sequence[Range] = (), sign: str = "="
) -> None:
    """Check one value, including the items of lists and tables, against an annotation.

    Integers are accepted as `float`; booleans are not accepted as numbers. A class whose `from_text` is true is written
    as text in a file and parsed by the data class. Annotations of any other form are not checked.

    Args:
        name: name of the value, for messages.
        ranges: ranges that every number in the value must satisfy.
        sign: separator between name and value, for messages.

    Raises:
        ValueError: with a one-line message.
    """
    kind, inner = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Annotated:
        check_value(name, value, inner[0], (*inner[1:], *ranges), sign)
        return
    shown = f"{name}{sign}{value!r:.100}"
    choices = inner if kind in (Union, UnionType) else (annotation,)
    if kind is Literal:
        if value not in inner:
            raise ValueError(f"{shown}: expected {' or '.join(map(str, inner))}")
    elif not any(_fits(value, get_origin(choice) or choice) for choice in choices):
        raise ValueError(f"{shown}: expected {' or '.join(map(_name, choices))}")
    if isinstance(value, str):
        if len(value) > _LONGEST:
            raise ValueError(f"{name} has {len(value)} characters: expected at most {_LONGEST}")
        if "\0" in value:
            raise ValueError(f"{shown} holds a null byte: expected text")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        for allowed in ranges:
            if not allowed.holds(value):
                raise ValueError(f"{shown}: expected {allowed.words}")
    elif isinstance(value, list | tuple) and kind in (list, tuple) and inner:
        for place, item in enumerate(value, 1):
            check_value(f"{name}, item {place},", item, inner[0], ranges, sign)
    elif isinstance(value, dict) and kind is dict and inner:
        for key, item in value.items():
            check_value(f"{name}.{key}", item, inner[1], ranges, sign)


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any or not isinstance(kind, type):
        return True
    if getattr(kind, "from_text", False):
        kind = str
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _name(kind: Any) -> str:
    kind = str if getattr(kind, "from_text", False) else get_origin(kind) or kind
    return _WORDS.get(kind) or getattr(kind, "__name__", str(kind))
