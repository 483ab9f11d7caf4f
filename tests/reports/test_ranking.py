"""Ranks are by the exact test on each pair of rows, whatever the order of the computation."""

from robench.reports.ranking import SAME, _most_losses
from robench.statistics.accuracy import mcnemar


def test_the_threshold_of_losses_is_that_of_the_exact_test():
    for wins in range(60):
        significant = [losses for losses in range(wins) if mcnemar(wins, losses) < SAME]
        assert _most_losses(wins) == max(significant, default=-1)
    # Six wins without a loss: 2 / 2**6 = 0.03; five: 0.06.
    assert (_most_losses(5), _most_losses(6)) == (-1, 0)
