"""Figures that differ by rounding alone are the same; anything more is not."""

import pytest

from robench.records.findings import equal, same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.5, 0.5 + 1e-10),
        ((0.1, 0.9), [0.1, 0.9 - 1e-12]),
        (
            {"clean": {"value": 1.0, "interval": [0.9, 1]}},
            {"clean": {"value": 1, "interval": (0.9 + 1e-15, 1.0)}},
        ),
        ("text", "text"),
        (float("inf"), float("inf")),
    ],
)
def test_what_rounding_can_explain(one, other):
    assert same(one, other) and equal("field", one, other, "of a test").held


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.5, 0.5 + 1e-8),
        ((0.1, 0.9), (0.1,)),
        ({"value": 1.0}, {"value": 1.0, "more": 2}),
        (3, 4),
        ("0.5", 0.5),
        (0.5, None),
        (float("nan"), 0.5),
        (10**18, 10**18 + 1),
    ],
)
def test_what_it_cannot(one, other):
    assert not same(one, other) and not equal("field", one, other, "of a test").held
