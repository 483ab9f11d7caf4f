"""Checks that a saved state has the form that a run writes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def check_facts(value: Any, example: Any) -> None:
    """Check that a JSON value is like an example: the kinds agree, and no number is negative.

    Args:
        example: objects have its keys or fewer, and lists have items like its first one, or none if it is empty.

    Raises:
        ValueError: if it is not.
    """
    found, expected = type(value), type(example)
    if found is not expected and (found, expected) != (int, float):
        raise ValueError(f"{found.__name__}, expected {expected.__name__}")
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_facts(item, example[key])
    elif isinstance(value, list):
        for item in value:
            check_facts(item, example[0])
    # The comparison also refuses NaN.
    elif not isinstance(value, str) and not value >= 0:
        raise ValueError(f"{value} is negative")


def check_tensors(tensors: Mapping[str, Tensor], examples: Mapping[str, Tensor]) -> None:
    """Check that there is a tensor like each example: of its shape, and of floats if it is.

    Raises:
        ValueError: if it is not.
        KeyError: if there is none.
    """
    for name, example in examples.items():
        tensor = tensors[name]
        if tensor.shape != example.shape or tensor.is_floating_point() != example.is_floating_point():
            raise ValueError(f"{name} of shape {tuple(tensor.shape)}")
