"""Wilson intervals: published values and properties for every k and n. Bootstrap intervals: coverage and symmetry."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial

from robench.statistics.accuracy import Accuracy, bootstrap, clopper_pearson, paired_difference, wilson


@st.composite
def counts(draw, most=100_000):
    n = draw(st.integers(1, most))
    return draw(st.integers(0, n)), n


def test_the_interval_of_2984_in_5000_is_as_published():
    low, high = wilson(2984, 5000)
    assert (round(100 * low, 2), round(100 * high, 2)) == (58.31, 61.03)


@given(counts(2000))
def test_the_exact_interval_matches_scipy(kn):
    k, n = kn
    theirs = binomtest(k, n).proportion_ci(0.95, "exact")
    assert clopper_pearson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 4), (5, 4)])
def test_the_exact_interval_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match="0 <= k <= n"):
        clopper_pearson(k, n)


@given(counts())
def test_the_interval_contains_the_fraction_and_stays_within_0_and_1(kn):
    k, n = kn
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high


@given(counts(2000))
def test_the_interval_matches_scipy(kn):
    k, n = kn
    theirs = binomtest(k, n).proportion_ci(0.95, "wilson")
    assert wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(counts())
def test_the_interval_is_symmetric(kn):
    k, n = kn
    low, high = wilson(k, n)
    other_low, other_high = wilson(n - k, n)
    assert (low, high) == pytest.approx((1 - other_high, 1 - other_low), abs=1e-12)


@given(counts(10_000), st.integers(2, 50))
def test_the_interval_narrows_with_more_images(kn, factor):
    k, n = kn
    low, high = wilson(k, n)
    narrow_low, narrow_high = wilson(factor * k, factor * n)
    assert narrow_high - narrow_low < high - low


@given(counts())
def test_more_right_answers_move_both_ends_up(kn):
    k, n = kn
    if k < n:
        assert all(a < b for a, b in zip(wilson(k, n), wilson(k + 1, n), strict=True))


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_counts_out_of_range_are_refused(k, n):
    with pytest.raises(ValueError, match="expected n >= 1"):
        wilson(k, n)


def test_an_accuracy_carries_its_interval():
    assert Accuracy.of(0, 4) == Accuracy(0.0, 0, wilson(0, 4))
    assert wilson(0, 4)[0] == 0
    assert wilson(4, 4)[1] == 1


values = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40)


@settings(max_examples=30)
@given(values, st.floats(-100, 100), st.floats(0.1, 10))
def test_the_bootstrap_shifts_and_scales_with_its_values(row, shift, scale):
    [(low, high), moved] = bootstrap([row, [scale * value + shift for value in row]], resamples=50)
    assert min(row) - 1e-9 <= low <= high <= max(row) + 1e-9
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-6 * (1 + scale * 1e3))


@settings(max_examples=20)
@given(values, st.integers(0, 2**31))
def test_the_bootstrap_is_determined_by_the_seed(row, seed):
    assert bootstrap([row], seed, 20) == bootstrap([row], seed, 20)


def test_the_bootstrap_of_many_values_approaches_the_normal_interval():
    row = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    half = 1.96 * row.std() / math.sqrt(len(row))
    (found,) = bootstrap([row], resamples=4000)
    assert found == pytest.approx((row.mean() - half, row.mean() + half), abs=0.08 * half)
    assert bootstrap([row], 1, 50) != bootstrap([row], 2, 50)


def test_the_bootstrap_has_its_nominal_coverage():
    """About 95 of 100 intervals from 60 images contain the true rate; fewer than 82 would have p < 1e-4."""
    draws = np.random.default_rng(1).random((100, 60)) < 0.3
    intervals = [bootstrap([row], seed, 200)[0] for seed, row in enumerate(draws)]
    assert 82 <= sum(low <= 0.3 <= high for low, high in intervals) <= 99


def test_figures_share_the_resampled_images():
    """Two figures that differ by a constant have intervals that differ by it only if they share resamples."""
    errors = np.random.default_rng(2).random(50)
    one, other = bootstrap([errors, errors + 0.25], resamples=100)
    assert np.subtract(other, one) == pytest.approx((0.25, 0.25), abs=1e-12)


def test_the_resamples_match_existing_records():
    """Intervals from existing records, computed by the release that wrote them."""
    row = np.arange(10) / 10
    assert bootstrap([row], 0, 1000) == [(0.27, 0.6102499999999998)]


@pytest.mark.parametrize("row", [[], 3.0, [math.nan], [math.inf, 1.0]])
def test_invalid_values_are_refused(row):
    with pytest.raises(ValueError, match="expected finite rows"):
        bootstrap([row] if isinstance(row, list) else row)


@pytest.mark.parametrize(("p", "q"), [(0.02, 0.02), (0.05, 0.1), (0.3, 0.3), (0.02, 0.2), (0.0, 0.4)])
def test_the_paired_interval_holds_the_difference_as_often_as_it_says(p, q):
    """The exact probability over all outcomes of 100 images, of which a fraction p and q differ either way."""
    n = 100
    outcomes = [(won, lost) for won in range(n + 1) for lost in range(n + 1 - won)]
    holds = [low <= p - q <= high for low, high in (paired_difference(*outcome, n) for outcome in outcomes)]
    counts = np.array([(won, lost, n - won - lost) for won, lost in outcomes])
    coverage = multinomial.pmf(counts, n, [p, q, 1 - p - q]) @ np.array(holds)
    assert 0.94 <= coverage <= 1


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_the_paired_interval_contains_the_difference_and_changes_sign_with_the_order(won, lost, same):
    n = won + lost + same + 1
    low, high = paired_difference(won, lost, n)
    assert -1 <= low < high <= 1
    assert low <= (won - lost) / (n + 2) <= high
    assert paired_difference(lost, won, n) == pytest.approx((-high, -low))


@pytest.mark.parametrize("numbers", [(-1, 0, 4), (0, -1, 4), (3, 2, 4), (0, 0, 0)])
def test_the_paired_interval_refuses_impossible_counts(numbers):
    with pytest.raises(ValueError, match="numbers of images"):
        paired_difference(*numbers)
