"""Parameters of tests that combine several lists: each value by default, every combination with the slow tests."""

import itertools
from collections.abc import Collection
from typing import Any

import pytest


def each_once(*lists: Collection[Any]) -> list[Any]:
    """All combinations of some lists. By default the lists are run in parallel, shorter ones again from their start, so
    that each value occurs; the other combinations are slow."""
    columns = [list(values) for values in lists]
    longest = max(map(len, columns))
    rows = {tuple(i % len(values) for values in columns) for i in range(longest)}
    return [
        pytest.param(
            *(values[i] for values, i in zip(columns, places, strict=True)),
            marks=() if places in rows else pytest.mark.slow,
        )
        for places in itertools.product(*(range(len(values)) for values in columns))
    ]


def first_only(first: int, values: Collection[Any]) -> list[Any]:
    """Some values, of which those after the first `first` are slow."""
    return [
        pytest.param(value, marks=pytest.mark.slow if i >= first else ()) for i, value in enumerate(values)
    ]
