"""The settings of a method or of a way to train a purifier: the fields of a frozen data class, checked."""

import math
from dataclasses import fields
from typing import Any


def check_settings(settings: Any) -> None:
    """Refuse numbers that are not finite or below 0, and whatever is of another type than its field.

    Fields declared int, float or str are checked for their type, and every number for its range; a subclass that
    knows better extends `__post_init__`.

    Raises:
        ValueError: naming the field, what it got and what it expects.
    """
    for item in fields(settings):
        kind = item.type
        value: Any = getattr(settings, item.name)
        if kind is str and not isinstance(value, str):
            raise ValueError(f"{item.name}={value!r}: expected str")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind in (int, float) and not (number and isinstance(value, (int, kind))):
            raise ValueError(f"{item.name}={value!r}: expected {'int' if kind is int else 'float'}")
        if isinstance(value, int | float) and number and not 0 <= value < math.inf:
            raise ValueError(f"{item.name}={value!r}: expected a finite number, at least 0")
