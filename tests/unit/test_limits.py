"""gateway/admission/limits.py: never above a limit, never a unit lost, in any order and by any clock."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.gate import duration
from gateway.admission.limits import ROUNDING, Bucket, Slots
from tests.unit.splitting import thorough

NOW_S = 1000.0


@pytest.mark.parametrize(
    ("size", "taken", "passed_s", "units", "wait_s"),
    [
        pytest.param(60, 0, 0, 60, 0, id="a full bucket gives all it has at once"),
        pytest.param(60, 60, 0, 1, 1, id="an empty one gives a unit a second"),
        pytest.param(60, 60, 0.5, 1, 0.5, id="of which some time has passed"),
        pytest.param(60, 60, 1, 1, 0, id="and then it is there"),
        pytest.param(60, 60, 30, 30, 0, id="half a minute, half of it"),
        pytest.param(60, 60, 3600, 60, 0, id="never more than it holds"),
        pytest.param(60, 0, 3600, 61, None, id="more than it holds never fits"),
        pytest.param(1, 1, 59, 1, 1, id="one a minute"),
        pytest.param(60, 90, 0, 1, 31, id="a debt is paid off first"),
        pytest.param(1_000_000, 1_000_000, 0.06, 1000, 0, id="a large one"),
    ],
)
def test_when_units_can_be_taken(size: int, taken: float, passed_s: float, units: float, wait_s: float | None) -> None:
    """Seconds to wait: 0 for now, None for never."""
    bucket = Bucket.full(size, NOW_S)
    bucket.take(taken)
    assert bucket.wait_s(units, NOW_S + passed_s) == (wait_s if wait_s is None else pytest.approx(wait_s))


def test_what_is_given_back_fills_no_bucket_above_its_size() -> None:
    """A refund that comes late, when time has already refilled the bucket, is not counted twice."""
    bucket = Bucket.full(10, NOW_S)
    bucket.take(10)
    bucket.refill(NOW_S + 60)
    bucket.give_back(10)
    assert bucket.level == 10
    assert bucket.full_in_s() == 0


def test_a_negative_refund_is_a_debt() -> None:
    """What a call took beyond its estimate is owed."""
    bucket = Bucket.full(60, NOW_S)
    bucket.take(10)
    bucket.give_back(-80)
    assert (bucket.level, bucket.left, bucket.full_in_s()) == (-30, 0, 90)


@pytest.mark.parametrize("back_s", [0.001, 1.0, 3600.0, 10**9])
def test_a_clock_that_is_set_back_gives_nothing_and_stops_nothing(back_s: float) -> None:
    """No refill for time that did not pass, and none withheld for time that does."""
    bucket = Bucket.full(60, NOW_S)
    bucket.take(60)
    assert bucket.wait_s(1, NOW_S - back_s) == pytest.approx(1)
    assert bucket.wait_s(2, NOW_S - back_s + 1) == pytest.approx(1)
    assert bucket.left == 1


def test_slots_print_themselves() -> None:
    """For whoever debugs a gate."""
    assert repr(Slots(3, taken=2)) == "<Slots 2 of 3>"


steps = st.lists(
    st.tuples(
        st.floats(-5, 120, allow_nan=False),
        st.sampled_from(("take", "give back", "settle a debt")),
        st.floats(0, 80, allow_nan=False),
    ),
    max_size=30,
)


@thorough
@given(st.integers(1, 1000), steps)
def test_in_no_window_more_is_taken_than_the_bucket_and_its_refill(
    size: int, walk: list[tuple[float, str, float]]
) -> None:
    """At every admission and for every t before it: taken in t <= size + t * size / 60, debts and refunds counted."""
    bucket, now_s, passed_s = Bucket.full(size, NOW_S), NOW_S, 0.0
    exact = Fraction(size)
    taken: list[tuple[float, float]] = []
    for step_s, move, share in walk:
        units = share * size / 40
        now_s += step_s
        passed_s += max(0.0, step_s)
        exact = min(Fraction(size), exact + Fraction(max(0.0, step_s)) * size / 60)
        bucket.refill(now_s)
        if move == "take":
            if bucket.wait_s(units, now_s) != 0:
                assert exact < units + 1e-3
                continue
            bucket.take(units)
            exact -= Fraction(units)
            taken.append((passed_s, units))
            for begun_s, _ in taken:
                since = sum(amount for at_s, amount in taken if at_s >= begun_s)
                assert since <= size + (passed_s - begun_s) * size / 60 + 1e-3
        else:
            refund = units if move == "give back" else -units
            before = bucket.level
            bucket.give_back(refund)
            exact = min(Fraction(size), exact + Fraction(refund))
            taken.append((passed_s, before - bucket.level))
        assert bucket.level <= size
        # Nothing is lost and nothing is made up: the level is what exact arithmetic says.
        assert bucket.level == pytest.approx(float(exact), abs=1e-3)


@thorough
@given(st.integers(1, 10**7), st.floats(0, 1, exclude_min=True), st.floats(0, 10**6), st.floats(0, 2))
def test_after_the_time_it_was_told_a_caller_is_admitted(size: int, share: float, begun_s: float, debt: float) -> None:
    """A retry exactly when the bucket said is no retry in vain."""
    bucket = Bucket.full(size, begun_s)
    bucket.take(size * (1 + debt))
    wait_s = bucket.wait_s(share * size, begun_s)
    assert wait_s is not None
    bucket.refill(begun_s + wait_s / 2)
    # A millisecond is what headers round up to.
    assert bucket.wait_s(share * size, begun_s + wait_s + 0.001) == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-ROUNDING / 1000, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (17.25, "17.25s"),
        (59.999, "59.999s"),
        (59.9995, "1m0s"),
        (60, "1m0s"),
        (60.2, "1m1s"),
        (119.7, "2m0s"),
        (360, "6m0s"),
        (3599.5, "1h0m0s"),
        (3725, "1h2m5s"),
        (90_000, "25h0m0s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    """Rounded up, so that nobody comes too early; no unit ever overflows into the next."""
    assert duration(seconds) == text
