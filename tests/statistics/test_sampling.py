"""The confidence sequence without replacement against exact probabilities and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom, hypergeom

from robench.statistics.sampling import PRIOR, Sample


def samples(most: int) -> st.SearchStrategy[Sample]:
    """Samples of populations of at most this size."""
    return (
        st.integers(0, most)
        .flatmap(lambda population: st.tuples(st.just(population), st.integers(0, population)))
        .flatmap(lambda pair: st.tuples(*map(st.just, pair), st.integers(0, pair[1])))
        .map(lambda numbers: Sample(*numbers))
    )


@settings(max_examples=50, deadline=None)
@given(samples(60), st.sampled_from((0.01, 0.05, 0.3)))
def test_a_number_is_outside_where_the_posterior_is_at_most_alpha_times_the_prior(sample, alpha):
    n, m, k = sample.population, sample.drawn, sample.ones
    a, b = PRIOR
    # The definition of the prior-posterior ratio, computed with scipy's distributions.
    ones = np.arange(k, n - m + k + 1)
    ratio = betabinom(n, a, b).pmf(ones) * alpha / betabinom(n - m, a + k, b + m - k).pmf(ones - k)
    low, high = sample.interval(alpha)
    assert (ratio[(ones >= low) & (ones <= high)] < 1 + 1e-9).all()
    assert (ratio[(ones < low) | (ones > high)] > 1 - 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(samples(300))
def test_the_interval_holds_what_is_certain_and_the_expected_number(sample):
    low, high = sample.interval()
    rest = sample.population - sample.drawn
    assert sample.ones <= low <= high <= sample.ones + rest
    if sample.drawn == sample.population:
        assert low == high == sample.expected() == sample.ones
    if sample.drawn:
        assert low <= sample.expected() <= high


@pytest.mark.parametrize("ones", [0, 1, 5])
def test_a_larger_sample_with_as_many_ones_gives_a_lower_bound_from_above(ones):
    highs = [Sample(1000, drawn, ones).interval()[1] for drawn in range(50, 1001, 50)]
    assert highs == sorted(highs, reverse=True) and highs[-1] == ones


def test_without_a_one_the_upper_bound_has_a_closed_form():
    # The ratio for f ones is C(N, f) / C(N - m, f) times b / (b + m) for the prior Beta(1, b).
    population, drawn, (_, b) = 400, 80, PRIOR
    _, high = Sample(population, drawn, 0).interval()

    def ratio(ones: int) -> float:
        return math.comb(population, ones) / math.comb(population - drawn, ones) * b / (b + drawn)

    assert ratio(high) < 20 <= ratio(high + 1)


@pytest.mark.parametrize("ones", [0, 2, 10, 40])
def test_the_bounds_of_all_samples_hold_at_once_at_least_as_often_as_promised(ones):
    generator, population, alpha, trials = np.random.default_rng(ones), 200, 0.05, 400
    bounds = {}
    missed = 0
    for _ in range(trials):
        order = generator.permutation(np.arange(population) < ones)
        for drawn, count in zip(range(10, population, 10), order.cumsum()[9::10], strict=False):
            key = drawn, int(count)
            if key not in bounds:
                bounds[key] = Sample(population, *key).interval(alpha)
            low, high = bounds[key]
            if not low <= ones <= high:
                missed += 1
                break
    # Ville's inequality; three standard deviations of the simulation.
    assert missed / trials <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / trials)


@pytest.mark.parametrize("ones", [0, 3, 30])
def test_at_a_fixed_size_the_exact_coverage_is_at_least_95_percent(ones):
    population, drawn = 300, 90
    law = hypergeom(population, ones, drawn)
    counts = range(max(0, ones + drawn - population), min(ones, drawn) + 1)
    covered = sum(
        law.pmf(k) for k in counts if (b := Sample(population, drawn, k).interval())[0] <= ones <= b[1]
    )
    assert covered >= 0.95


def test_impossible_numbers_are_refused():
    for numbers in ((10, 11, 0), (10, 5, 6), (10, 5, -1)):
        with pytest.raises(ValueError, match="expected ones <= drawn <= population"):
            Sample(*numbers)
