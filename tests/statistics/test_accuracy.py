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


rows = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40)


@settings(max_examples=30)
@given(rows, st.floats(-100, 100), st.floats(0.1, 10))
def test_the_bootstrap_moves_and_stretches_with_its_values(values, shift, scale):
    low, high = bootstrap(values, resamples=50)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    moved = bootstrap([scale * value + shift for value in values], resamples=50)
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-6 * (1 + scale * 1e3))


@settings(max_examples=20)
@given(rows, st.integers(0, 2**31))
def test_the_seed_alone_decides(values, seed):
    assert bootstrap(values, resamples=20, seed=seed) == bootstrap(values, resamples=20, seed=seed)


def test_the_bootstrap_of_many_values_is_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    expected = (values.mean() - half, values.mean() + half)
    assert bootstrap(values, resamples=4000) == pytest.approx(expected, abs=0.08 * half)


def test_it_covers_the_truth_as_often_as_it_says():
    """Of 100 samples of 60 images about 95 intervals hold the true rate; fewer than 82 would have p < 1e-4."""
    draws = np.random.default_rng(1).random((100, 60)) < 0.3
    inside = sum(
        low <= 0.3 <= high for low, high in (bootstrap(d, resamples=200, seed=i) for i, d in enumerate(draws))
    )
    assert 82 <= inside <= 99


def test_images_are_drawn_whole_so_a_difference_that_never_varies_is_certain():
    """Two corruptions that are wrong on the same images but one constant apart; drawn apart they would vary."""
    errors = np.random.default_rng(2).random(50)
    both = np.stack([errors, errors + 0.25], 1)
    low, high = bootstrap(both, lambda means: means[:, 1] - means[:, 0], resamples=100)
    assert (low, high) == pytest.approx((0.25, 0.25), abs=1e-12)


def test_the_mean_corruption_error_has_an_interval_around_it():
    wrong = np.random.default_rng(3).random((300, 4, 5)) < np.linspace(0.1, 0.6, 5)
    theirs = np.array([2.0, 2.5, 3.0, 3.5])

    def mce(means):
        return (means.sum(2) / theirs).mean(1)

    low, high = bootstrap(wrong, mce)
    assert low < float(mce(wrong.mean(0)[None])[0]) < high


@pytest.mark.parametrize("values", [[], 3.0, [math.nan], [math.inf, 1.0]])
def test_values_that_are_none_are_refused(values):
    with pytest.raises(ValueError, match="expected finite rows"):
        bootstrap(values)


def test_a_statistic_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="the statistic gave shape"):
        bootstrap([1.0, 2.0], lambda means: means.mean())
