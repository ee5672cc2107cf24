"""The benchmark's histograms: how exact they are, and that those of several processes add up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.histogram import Histogram, bucket, middle

DURATIONS = st.integers(min_value=0, max_value=10**10)


@given(DURATIONS)
def test_a_bucket_is_at_most_1_6_percent_wide(value: int) -> None:
    """Small values have a bucket each."""
    assert abs(middle(bucket(value)) - value) <= value * 0.008 + (value >= 128)


@given(DURATIONS, DURATIONS)
def test_a_longer_duration_is_in_no_lower_bucket(one: int, other: int) -> None:
    """Quantiles are read in the order of buckets."""
    assert (bucket(one) <= bucket(other)) or one > other


@given(st.lists(DURATIONS), st.lists(DURATIONS))
def test_the_sum_of_two_is_what_one_of_all_values_would_be(one: list[int], other: list[int]) -> None:
    """Load processes count apart, and JSON keeps what they counted."""
    total = Histogram(one) + Histogram.from_json(Histogram(other).to_json())
    assert total.to_json() == Histogram(one + other).to_json()


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_a_quantile_is_what_so_many_values_do_not_exceed(share: float, value: int) -> None:
    """Of the values 1 to 100."""
    assert Histogram(range(1, 101)).quantile(share) == value


def test_nothing_has_no_quantile() -> None:
    """None, rather than a zero that looks fast."""
    assert Histogram().quantile(0.5) is None
    assert Histogram().quantile_ms(0.99) is None
