"""The statistics of randomized smoothing against closed forms and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binomtest, norm

from robench.statistics.smoothing import certified_radius, lower_confidence, vote_is_decided


def counts(most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Numbers of successes and draws."""
    return st.integers(1, most).flatmap(lambda draws: st.tuples(st.integers(0, draws), st.just(draws)))


@given(counts(5000), st.sampled_from((0.001, 0.01, 0.05)))
def test_the_lower_bound_is_that_of_clopper_and_pearson(count, alpha):
    successes, draws = count
    expected = beta.ppf(alpha, successes, draws - successes + 1) if successes else 0.0
    assert lower_confidence(successes, draws, alpha) == pytest.approx(expected, abs=1e-12)


def test_the_bound_holds_as_often_as_it_promises():
    generator, alpha, trials = np.random.default_rng(0), 0.05, 4000
    for probability in (0.55, 0.8, 0.97):
        successes = generator.binomial(200, probability, trials)
        wrong = np.mean([lower_confidence(int(k), 200, alpha) > probability for k in successes])
        # Clopper and Pearson's bound is wrong at most alpha of the time; three standard deviations of the simulation.
        assert wrong <= alpha + 3 * math.sqrt(alpha / trials)


@given(counts(2000), st.floats(0.01, 3))
def test_the_radius_is_the_normal_quantile_of_the_bound_and_grows_with_the_votes(count, sigma):
    successes, draws = count
    radius = certified_radius(successes, draws, sigma, 0.001)
    bound = lower_confidence(successes, draws, 0.001)
    assert radius == (pytest.approx(sigma * norm.ppf(bound)) if bound > 0.5 else 0.0)
    if successes:
        assert certified_radius(successes - 1, draws, sigma, 0.001) <= radius


@pytest.mark.parametrize(("draws", "expected"), [(1000, 2.46), (10_000, 3.20), (100_000, 3.81)])
def test_the_largest_radius_in_units_of_sigma(draws, expected):
    assert certified_radius(draws, draws, 1.0, 0.001) == pytest.approx(expected, abs=0.005)


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from((0.001, 0.05)))
def test_a_vote_is_decided_by_the_exact_binomial_test(one, other, alpha):
    first, second = max(one, other), min(one, other)
    expected = binomtest(first, first + second).pvalue <= alpha if first else False
    assert vote_is_decided(first, second, alpha) == expected


@pytest.mark.parametrize(
    "call",
    [
        lambda: lower_confidence(3, 2, 0.1),
        lambda: lower_confidence(0, 0, 0.1),
        lambda: lower_confidence(1, 2, 1.0),
        lambda: vote_is_decided(1, 2, 0.1),
        lambda: vote_is_decided(2, 1, 0.0),
    ],
)
def test_numbers_out_of_range_are_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()
