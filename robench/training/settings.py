"""The settings of a method or of a way to train a purifier: the fields of a frozen data class, checked."""

import math
from dataclasses import fields
from typing import Any


def check_settings(settings: Any) -> None:
    """Refuse numbers that are not finite or below 0, and whatever is of another type than its field.

    Fields declared int, float or str are checked; a subclass that knows better extends `__post_init__`.

    Raises:
        ValueError: naming the field, what it got and what it expects.
    """
    for item in fields(settings):
        value, kind = getattr(settings, item.name), item.type
        if kind is str and not isinstance(value, str):
            raise ValueError(f"{item.name}={value!r}: expected str")
        if kind not in (int, float):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (kind is int and not isinstance(value, int)):
            raise ValueError(f"{item.name}={value!r}: expected {'int' if kind is int else 'float'}")
        if not 0 <= value < math.inf:
            raise ValueError(f"{item.name}={value!r}: expected a finite number, at least 0")
