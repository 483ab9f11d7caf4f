"""Which waiting rows are started: none of a sample for which a row has won."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robench.engine.attack_context import SampleResults
from robench.engine.supply import Supply


def supply(draws=1, minimise=False, shapes=None):
    """Three rows for each of three samples, and the results so far."""
    context: Any = SimpleNamespace(
        attack=SimpleNamespace(ranks=lambda classes: 3, minimise=minimise, gradient_free=False),
        problem=SimpleNamespace(num_classes=10, group=1),
        samples=SimpleNamespace(ids=torch.arange(4)),
        judge=SimpleNamespace(draws=draws),
        network=SimpleNamespace(shapes=shapes),
    )
    results = SampleResults.empty(4, 3)
    return Supply(context, [0, 1, 3], results, divisible=shapes is not None), results


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


def shapes(padding=0, rigid=False):
    """Batch shapes with some rows of padding."""
    return SimpleNamespace(fit=lambda kind, rows: rows + padding, rigid=rigid)


def test_a_row_waits_while_a_running_row_of_its_sample_may_make_it_superfluous():
    queue, _ = supply(shapes=shapes())
    assert started(queue.next(10, [])) == [(0, 0), (0, 1), (0, 3)]
    # The rows of samples 0 and 3 ended.
    assert started(queue.next(10, [1])) == [(1, 0)]
    assert started(queue.next(10, [])) == [(1, 1), (1, 3), (2, 0)]


@pytest.mark.parametrize(
    ("wins", "changes", "minimise"),
    [
        # Rows hardly ever win.
        (0.05, {}, False),
        # Idle lanes would be padding.
        (0.5, {"padding": 1}, False),
        # The network takes one shape only.
        (0.5, {"rigid": True}, False),
        # No row makes another superfluous.
        (0.5, {}, True),
    ],
)
def test_a_row_does_not_wait_where_that_saves_nothing(wins, changes, minimise):
    queue, _ = supply(minimise=minimise, shapes=shapes(**changes))
    queue.wins.value = wins
    assert len(queue.next(10, [])) == 9
