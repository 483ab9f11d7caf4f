"""Which waiting rows are started: none of a sample for which a row has won."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robench.engine.attack_context import SampleResults
from robench.engine.supply import Supply


def supply(draws=1, minimise=False):
    """Three rows for each of three samples, and the results so far."""
    context: Any = SimpleNamespace(
        attack=SimpleNamespace(ranks=lambda classes: 3, minimise=minimise),
        problem=SimpleNamespace(num_classes=10, group=1),
        samples=SimpleNamespace(ids=torch.arange(4)),
        judge=SimpleNamespace(draws=draws),
        network=SimpleNamespace(shapes=None),
    )
    results = SampleResults.empty(4, 3)
    return Supply(context, [0, 1, 3], results, divisible=False), results


def started(starts):
    return [(start.rank, *start.counted) for start in starts]


@pytest.mark.parametrize(
    ("draws", "minimise", "rows"),
    [
        (1, False, [(1, 0), (1, 3), (2, 0), (2, 3)]),
        # The nearest example of all rows is kept.
        (1, True, [(1, 0), (1, 1), (1, 3), (2, 0), (2, 1), (2, 3)]),
        # Another row may fool more of the judge's draws.
        (2, False, [(1, 0), (1, 1), (1, 3), (2, 0), (2, 1), (2, 3)]),
    ],
)
def test_rows_of_a_sample_with_a_winner_are_not_started(draws, minimise, rows):
    queue, results = supply(draws, minimise)
    assert started(queue.next(3, [])) == [(0, 0), (0, 1), (0, 3)]
    results.draws[1] = 1
    assert started(queue.next(10, [0, 3])) == rows
    assert not queue.queue
