"""Wilson's interval: published values, and what must hold for every k and n."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from robench.results.statistics import Accuracy, wilson


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
