"""Wilson's interval: published values, and what must hold for every k and n. The bootstrap's: coverage and symmetry."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from robench.statistics.accuracy import Accuracy, bootstrap, wilson


@st.composite
def counts(draw, most=100_000):
    n = draw(st.integers(1, most))
    return draw(st.integers(0, n)), n


def test_the_interval_of_2984_in_5000_is_as_published():
    low, high = wilson(2984, 5000)
    assert (round(100 * low, 2), round(100 * high, 2)) == (58.31, 61.03)


@given(counts())
def test_it_contains_the_fraction_and_stays_within_0_and_1(kn):
    k, n = kn
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high


@given(counts(2000))
def test_it_equals_scipys(kn):
    k, n = kn
    theirs = binomtest(k, n).proportion_ci(0.95, "wilson")
    assert wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(counts())
def test_it_is_symmetric(kn):
    k, n = kn
    low, high = wilson(k, n)
    other_low, other_high = wilson(n - k, n)
    assert (low, high) == pytest.approx((1 - other_high, 1 - other_low), abs=1e-12)


@given(counts(10_000), st.integers(2, 50))
def test_it_narrows_with_more_images(kn, factor):
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
def test_the_bootstrap_moves_and_stretches_with_its_values(row, shift, scale):
    [(low, high), moved] = bootstrap([row, [scale * value + shift for value in row]], resamples=50)
    assert min(row) - 1e-9 <= low <= high <= max(row) + 1e-9
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-6 * (1 + scale * 1e3))


@settings(max_examples=20)
@given(values, st.integers(0, 2**31))
def test_the_seed_alone_decides(row, seed):
    assert bootstrap([row], seed, 20) == bootstrap([row], seed, 20)


def test_the_bootstrap_of_many_values_is_the_normal_interval_and_another_seed_is_another():
    row = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    half = 1.96 * row.std() / math.sqrt(len(row))
    (found,) = bootstrap([row], resamples=4000)
    assert found == pytest.approx((row.mean() - half, row.mean() + half), abs=0.08 * half)
    assert bootstrap([row], 1, 50) != bootstrap([row], 2, 50)


def test_it_covers_the_truth_as_often_as_it_says():
    """Of 100 samples of 60 images about 95 intervals hold the true rate; fewer than 82 would have p < 1e-4."""
    draws = np.random.default_rng(1).random((100, 60)) < 0.3
    intervals = [bootstrap([row], seed, 200)[0] for seed, row in enumerate(draws)]
    assert 82 <= sum(low <= 0.3 <= high for low, high in intervals) <= 99


def test_images_are_drawn_whole():
    """Two figures one constant apart: drawn apart, their intervals would be more than that constant apart."""
    errors = np.random.default_rng(2).random(50)
    one, other = bootstrap([errors, errors + 0.25], resamples=100)
    assert np.subtract(other, one) == pytest.approx((0.25, 0.25), abs=1e-12)


def test_the_draws_are_those_of_the_records():
    """Intervals that stand in records, by the release that wrote the first of them."""
    row = np.arange(10) / 10
    assert bootstrap([row], 0, 1000) == [(0.27, 0.6102499999999998)]


@pytest.mark.parametrize("row", [[], 3.0, [math.nan], [math.inf, 1.0]])
def test_values_that_are_none_are_refused(row):
    with pytest.raises(ValueError, match="expected finite rows"):
        bootstrap([row] if isinstance(row, list) else row)
