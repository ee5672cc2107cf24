"""gateway/admission/limits.py: never above a limit, never a unit lost, in any order and by any clock."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.limits import IDLE_S, SLOT_RETRY_S, SWEEP_EVERY, SWEEP_MOST, Reservation
from gateway.admission.quotas import Kind, Unit
from gateway.admission.windows import window
from gateway.errors import BudgetSpent, LimitReached
from tests.unit.limits_by_hand import DAY_S, Hand, budget, rate, slots
from tests.unit.splitting import thorough

HOUR_S = 3600.0


# Rates


@pytest.mark.parametrize(
    ("size", "taken", "passed_s", "tokens", "wait_s"),
    [
        pytest.param(60, [], 0, 60, 0, id="a full one gives all it has at once"),
        pytest.param(60, [60], 0, 1, 1, id="an empty one gives a unit a second"),
        pytest.param(60, [60], 0.5, 1, 0.5, id="of which some time has passed"),
        pytest.param(60, [60], 1, 1, 0, id="and then it is there"),
        pytest.param(60, [60], 30, 30, 0, id="half a minute, half of it"),
        pytest.param(60, [60], 3600, 60, 0, id="never more than it holds"),
        pytest.param(60, [], 3600, 61, None, id="more than it holds never fits"),
        pytest.param(1, [1], 59, 1, 1, id="one a minute"),
        pytest.param(7, [1] * 7, 0, 1, 60 / 7, id="seven of seven, whatever a seventh is"),
        pytest.param(1_000_000_000, [10**9], 0.06, 10**6, 0, id="a large one"),
    ],
)
def test_when_tokens_can_be_taken(
    size: int, taken: list[int], passed_s: float, tokens: int, wait_s: float | None
) -> None:
    """Seconds to wait, 0 where there is no need, None where there is no hope."""
    hand = Hand((rate(size),))
    for each in taken:
        hand.take(each)
    hand.pass_time(passed_s)
    if wait_s == 0:
        assert hand.admits(tokens)
    else:
        refused = hand.refused(tokens)
        assert refused.retry_after_s == (wait_s if wait_s is None else pytest.approx(wait_s))


def test_a_rate_of_a_day_comes_back_evenly() -> None:
    """There is no hour at which all of it is new."""
    hand = Hand((rate(24, period_s=DAY_S),))
    hand.take(24)
    assert hand.refused().retry_after_s == pytest.approx(HOUR_S)
    hand.pass_time(HOUR_S * 3)
    assert hand.left() == (3,)


def test_what_is_given_back_counts_once() -> None:
    """A refund that comes when time has given all back already adds nothing."""
    hand = Hand((rate(10),))
    held = hand.take(10)
    hand.pass_time(60)
    hand.back(held, 10)
    assert hand.left() == (10,)
    hand.take(10)
    assert not hand.admits()


def test_more_than_was_reserved_is_owed() -> None:
    """A debt is paid off by time before anything is given."""
    hand = Hand((rate(60),))
    hand.back(hand.take(10), -80)
    assert hand.left() == (0,)
    assert hand.refused().retry_after_s == pytest.approx(31)
    assert hand.limits.standings(hand.quotas)[0].full_in_s == pytest.approx(90)


def test_a_debt_counts_from_when_it_is_made() -> None:
    """The time that a call ran pays for nothing that it owes at its end."""
    hand = Hand((rate(60),))
    held = hand.take(10)
    hand.pass_time(600)
    hand.back(held, -60)
    assert hand.left() == (0,)


def test_a_reservation_is_settled_once() -> None:
    """Whoever settles again, changes nothing."""
    hand = Hand((rate(10), slots(3)))
    hand.take(5)
    held = hand.take(5)
    for _ in range(2):
        hand.back(held, 5)
    assert hand.left() == (5, 2)


@pytest.mark.parametrize("back_s", [0.001, 1.0, 3600.0, 10**9])
def test_a_clock_that_is_set_back_gives_nothing_and_stops_nothing(back_s: float) -> None:
    """Nothing for time that did not pass, and nothing withheld for time that does."""
    hand = Hand((rate(60),))
    hand.take(60)
    hand.now_s -= back_s
    assert hand.refused().retry_after_s == pytest.approx(1)
    hand.now_s += 1
    assert hand.refused(2).retry_after_s == pytest.approx(1)
    assert hand.left() == (1,)


# Slots


def test_slots_are_held_until_they_are_settled() -> None:
    """However long that takes; when one will be free nobody knows."""
    hand = Hand((slots(2),))
    held = [hand.take(), hand.take()]
    hand.pass_time(10**6)
    assert hand.refused().retry_after_s == SLOT_RETRY_S
    hand.back(held[0])
    assert hand.left() == (1,)
    assert hand.admits()


# Budgets


@pytest.mark.parametrize(
    ("kind", "turns_in_s"),
    [(Kind.DAY, 12 * HOUR_S), (Kind.MONTH, 36 * HOUR_S)],
)
def test_a_budget_is_there_again_when_the_calendar_turns(kind: Kind, turns_in_s: float) -> None:
    """Not before, and all of it; the refusal says when. It is the 30th of January, noon."""
    hand = Hand((budget(100, kind),))
    hand.take(100)
    refused = hand.refused()
    assert isinstance(refused, BudgetSpent)
    assert refused.retry_after_s == turns_in_s
    hand.pass_time(turns_in_s - 1)
    assert not hand.admits()
    hand.pass_time(1)
    assert hand.left() == (100,)
    hand.take(100)


def test_a_call_counts_in_the_window_in_which_it_ends() -> None:
    """As in the records of usage: all that it used, and nothing of what was only reserved."""
    hand = Hand((budget(100), budget(1000, Kind.MONTH)))
    held = hand.take(80)
    hand.pass_time(DAY_S)
    hand.back(held, 50)
    assert hand.left() == (70, 970)


def test_what_a_window_gave_is_not_given_back_to_the_next() -> None:
    """A call that used nothing leaves the new day as it is."""
    hand = Hand((budget(100),))
    held = hand.take(80)
    hand.pass_time(DAY_S)
    hand.take(90)
    hand.back(held, 80)
    assert hand.left() == (10,)


@pytest.mark.parametrize("back_s", [1.0, HOUR_S, 13 * HOUR_S, 400 * DAY_S])
def test_a_calendar_that_is_set_back_gives_nothing_and_stops_nothing(back_s: float) -> None:
    """What is used stays used, and the next turn of the calendar is one."""
    hand = Hand((budget(100),))
    hand.take(60)
    hand.wall_s -= back_s
    assert not hand.admits(41)
    assert hand.left() == (40,)
    hand.wall_s = window(Kind.DAY, hand.wall_s).ends_s
    assert hand.admits(100)


def test_cost_is_counted_in_millionths_and_told_in_units() -> None:
    """Whoever reads a refusal knows nothing of our millionths."""
    hand = Hand((budget(2_500_000, Kind.MONTH, Unit.COST),))
    hand.take(cost=2_500_000)
    assert str(hand.refused(cost=1)) == "Budget used up for tenant t: 2.5 budget cost per month."
    assert "5 budget cost per day" in str(Hand((budget(5_000_000, unit=Unit.COST),)).refused(cost=6_000_000))


def test_a_call_larger_than_a_budget_is_told_so() -> None:
    """It will not fit tomorrow either."""
    refused = Hand((budget(100),)).refused(101)
    assert type(refused) is BudgetSpent
    assert refused.retry_after_s is None
    assert refused.retry_after_s is None


def test_what_a_database_knows_is_never_lowered() -> None:
    """Of the window that it speaks of, and of no other."""
    hand = Hand((budget(100), budget(1000, Kind.MONTH)))
    day, month = hand.quotas
    hand.limits.seed(day.id, 20260130, 30)
    hand.limits.seed(month.id, 202601, 400)
    assert hand.left() == (70, 600)
    hand.take(20)
    hand.limits.seed(day.id, 20260130, 45)
    hand.limits.seed(day.id, 20260129, 99)
    assert hand.left() == (50, 580)
    hand.limits.seed(day.id, 20260130, 60)
    assert hand.left() == (40, 580)
    hand.pass_time(DAY_S)
    assert hand.left() == (100, 580)


# All or none


def test_a_refused_call_takes_nothing() -> None:
    """Whichever of its quotas has no room, and wherever it stands."""
    generous = (rate(100), rate(100, Unit.REQUESTS), slots(100), budget(100), budget(100, unit=Unit.COST))
    full = (rate(9), rate(9, Unit.REQUESTS), slots(1), budget(9), budget(9, unit=Unit.COST))
    for at, quota in enumerate(full):
        tight = quota._replace(id="tight")
        hand = Hand((*generous[:at], tight, *generous[at:]))
        hand.take(5, requests=5, cost=5, quotas=(tight,))
        hand.refused(5, requests=5, cost=5)
        left = list(hand.left())
        del left[at]
        assert left == [100] * 5


def test_of_several_refusals_the_longest_wait_is_told() -> None:
    """Who comes back for the shortest is refused again."""
    hand = Hand((rate(60), rate(60, owner="tenant t", period_s=DAY_S), slots(1)))
    hand.take(60)
    refused = hand.refused()
    assert refused.limit == "tokens_per_day"
    assert refused.retry_after_s == pytest.approx(DAY_S / 60)
    assert str(refused) == "Rate limit reached for tenant t: 60 tokens per day."
    never = hand.refused(61)
    assert never.retry_after_s is None


def test_owners_that_share_a_quota_share_what_is_used() -> None:
    """Two keys of a tenant: the tenant's quota is one."""
    shared = rate(10, owner="tenant t")
    hand = Hand()
    hand.take(6, quotas=(rate(10, owner="key a"), shared))
    with pytest.raises(LimitReached) as caught:
        hand.take(5, quotas=(rate(10, owner="key b"), shared))
    assert "tenant t" in str(caught.value)
    hand.take(4, quotas=(rate(10, owner="key b"), shared))


def test_a_limit_that_changes_keeps_what_is_used() -> None:
    """Of a larger one more is left, of a smaller one less; reservations from before are settled."""
    hand = Hand((rate(10),))
    held = hand.take(8)
    hand.quotas = (rate(100),)
    assert hand.left() == (92,)
    hand.take(92)
    hand.back(held, 8)
    assert hand.left() == (8,)
    hand.quotas = (rate(5),)
    assert hand.left() == (0,)


def test_standings_are_as_a_call_left_them() -> None:
    """Its own reservation counted, in whole units."""
    hand = Hand((rate(60), rate(6, Unit.REQUESTS), slots(3), budget(100)))
    standings = {standing.quota: standing[1:] for standing in hand.take(30).standings}
    assert standings == {
        hand.quotas[0]: (30, 30.0),
        hand.quotas[1]: (5, 10.0),
        hand.quotas[2]: (2, 0.0),
        hand.quotas[3]: (70, 12 * HOUR_S),
    }


def test_reservations_print_themselves() -> None:
    """For whoever debugs a gate."""
    hand = Hand((rate(60), slots(3)))
    held = hand.take(30)
    assert repr(held) == "<Reservation lease-1 local: 2 quotas>"
    assert repr(hand.limits) == "<LocalLimits 2 quotas, 1 open>"
    hand.back(held)
    assert repr(held) == "<Reservation lease-1 local: 2 quotas, settled>"
    assert repr(hand.limits) == "<LocalLimits 2 quotas, 0 open>"


# What is kept


def gauges(hand: Hand) -> int:
    return int(repr(hand.limits).split()[1])


def test_owners_that_are_at_rest_are_forgotten() -> None:
    """Piece by piece, while others call; those who are not at rest are kept, however long they are silent."""
    hand = Hand()
    for owner in range(10_000):
        quotas = (rate(60, owner=f"key {owner}"), slots(5, owner=f"key {owner}"))
        hand.back(hand.take(quotas=quotas), 0)
    debtor, holder = (rate(60, owner="debtor"),), (slots(1, owner="holder"),)
    hand.back(hand.take(quotas=debtor), -100_000)
    hand.take(quotas=holder)
    assert gauges(hand) == 20_002
    hand.pass_time(IDLE_S + 1)
    other = (rate(10**6, owner="other"),)
    before = gauges(hand)
    for _ in range(SWEEP_EVERY):
        hand.back(hand.take(quotas=other))
    assert before - gauges(hand) <= 2 * SWEEP_MOST, "one look takes a bounded part"
    for _ in range(SWEEP_EVERY * 100):
        hand.back(hand.take(quotas=other))
    assert gauges(hand) == 3
    for unrested in (debtor, holder):
        with pytest.raises(LimitReached):
            hand.take(quotas=unrested)
    hand.pass_time(10**6)
    for _ in range(SWEEP_EVERY * 2):
        hand.back(hand.take(quotas=other))
    assert gauges(hand) == 2, "the debt is paid, the slot is held"


def test_what_is_looked_at_while_it_is_in_use_is_kept() -> None:
    """A reservation from long ago is still settled where later ones are made."""
    hand = Hand((rate(10),))
    held = hand.take(10)
    hand.pass_time(10 * IDLE_S)
    for _ in range(5):
        hand.limits.sweep()
    hand.quotas = (rate(10),)
    hand.take(4)
    hand.back(held, -6)
    assert hand.left() == (0,)


def test_a_quota_that_is_needed_again_is_not_forgotten_meanwhile() -> None:
    """While it waited to be forgotten calls came again: there is one count for all of them."""
    first, second, third = ((rate(10),) for _ in range(3))
    hand = Hand()
    hand.back(hand.take(10, quotas=first), -20)
    hand.pass_time(IDLE_S + 1)
    hand.limits.sweep()
    hand.pass_time(600)
    hand.take(0, quotas=second)
    hand.limits.sweep()
    hand.take(10, quotas=third)
    with pytest.raises(LimitReached):
        hand.take(10, quotas=second)


def test_budgets_are_kept_until_their_window_has_turned() -> None:
    """Also those of which only the database told, and nobody made use."""
    hand = Hand(())
    hand.limits.seed("tenant t/budget/tokens/day", 20260130, 7)
    hand.limits.seed("tenant t/budget/tokens/month", 202601, 7)
    hand.back(hand.take(quotas=(budget(100, owner="tenant u"),)), 0)
    hand.pass_time(IDLE_S + 1)
    hand.limits.sweep()
    assert gauges(hand) == 3
    hand.pass_time(DAY_S)
    hand.limits.sweep()
    assert gauges(hand) == 1
    hand.pass_time(31 * DAY_S)
    hand.limits.sweep()
    assert gauges(hand) == 0


def test_quotas_that_come_again_are_found_again() -> None:
    """Forgotten and made anew any number of times, they count as before."""
    hand = Hand((rate(10), slots(2)))
    for _ in range(3):
        held = hand.take(10)
        assert not hand.admits()
        hand.back(held)
        hand.pass_time(IDLE_S + 1)
        hand.limits.sweep()
        assert gauges(hand) == 0


# Whatever happens

steps = st.lists(
    st.tuples(st.floats(-5, 120, allow_nan=False), st.booleans(), st.integers(0, 80), st.integers(-40, 80)),
    max_size=40,
)


@thorough
@given(st.integers(1, 1000), steps)
def test_in_no_window_more_is_reserved_than_the_size_and_what_drains(
    size: int, walk: list[tuple[float, bool, int, int]]
) -> None:
    """At every admission and for every t before it: reserved in t, settlements counted, <= size + t * size / 60.

    And nothing is lost and nothing made up: what is used is what exact arithmetic says.
    """
    hand = Hand((rate(size),))
    exact, passed_s = Fraction(0), 0.0
    held, net = list[Reservation](), list[tuple[float, int]]()
    for step_s, settles, share, refund in walk:
        hand.now_s += step_s
        passed_s += max(0.0, step_s)
        exact = max(Fraction(0), exact - Fraction(max(0.0, step_s)) * size / 60)
        if settles and held:
            settled = held.pop()
            back = min(settled.demand.tokens, refund * size // 40)
            hand.back(settled, back)
            exact = max(Fraction(0), exact - back)
            net.append((passed_s, -back))
        elif not settles:
            units = share * size // 40
            try:
                held.append(hand.take(units))
            except LimitReached:
                assert exact + units > size
                continue
            exact += units
            net.append((passed_s, units))
            for begun_s, _ in net:
                since = sum(amount for at_s, amount in net if at_s >= begun_s)
                assert since <= size + (passed_s - begun_s) * size / 60 + 0.02
        assert hand.left()[0] == pytest.approx(max(0, math.floor(size - exact + Fraction(1, 100))), abs=1)


@thorough
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(-20, 40)), max_size=30), st.integers(1, 100))
def test_without_time_nothing_comes_and_nothing_goes(walk: list[tuple[int, int]], size: int) -> None:
    """Every kind of quota: used is what was reserved and not given back, exactly."""
    for quota in (rate(size), budget(size), budget(size, Kind.MONTH)):
        hand, used = Hand((quota,)), 0
        for units, back in walk:
            try:
                held = hand.take(units)
            except LimitReached:
                assert used + units > size
                continue
            used += units
            assert used <= size
            hand.back(held, min(back, units))
            used -= min(back, units)
        assert hand.left() == (max(0, size - used),)


@thorough
@given(st.integers(1, 10**7), st.floats(0, 1, exclude_min=True), st.floats(0, 10**6), st.floats(0, 2))
def test_after_the_time_it_was_told_a_caller_is_admitted(size: int, share: float, begun_s: float, debt: float) -> None:
    """A retry exactly when the refusal said is no retry in vain."""
    hand = Hand((rate(size),), now_s=begun_s)
    hand.back(hand.take(size), -math.floor(size * debt))
    units = math.ceil(share * size)
    wait_s = hand.refused(units).retry_after_s
    assert wait_s is not None
    hand.pass_time(wait_s / 2)
    if wait_s > 0.01:
        assert not hand.admits(units)
    # A millisecond is what headers round up to.
    hand.pass_time(wait_s / 2 + 0.001)
    assert hand.admits(units)
