"""gateway/admission/turns.py: fair between tenants, in order inside one, nobody lost, nobody starved.

U is the largest cost of a call by its tenant's weight: what fairness by whole calls may be off by.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from itertools import count, cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.admission.band import Ticket
from gateway.admission.fairness import MAX_RESTING, Charge
from gateway.admission.turns import CLASSES, KEPT, SPARE, Turns
from gateway.errors import LimitReached, QueueFull, TenantQueueFull, Unserved, WaitTooLong
from gateway.settings import Priority, QueueSettings

NOW_S = 1000.0
enough = settings(deadline=None, max_examples=100)
HIGH, NORMAL, LOW = CLASSES


def turns(max_waiting: int = 100_000, max_of_tenant: int = 100_000) -> Turns[str]:
    return Turns("tiny", QueueSettings(max_waiting=max_waiting, max_waiting_per_tenant=max_of_tenant))


def ticket(
    tenant: str = "a",
    cost: float = 100,
    *,
    weight: float = 1,
    priority: Priority = NORMAL,
    deadline_s: float = math.inf,
    name: str = "",
) -> Ticket[str]:
    return Ticket(tenant, weight, priority, cost, deadline_s, NOW_S, name or tenant)


def joined(queue: Turns[str], *tickets: Ticket[str]) -> None:
    for each in tickets:
        assert queue.join(each, NOW_S) is None


def given_out(queue: Turns[str], n: int | None = None, now_s: float = NOW_S) -> list[str]:
    """The holders of the next turns, all of them if no number is given."""
    found = list[str]()
    while (n is None or len(found) < n) and (one := queue.next(now_s)) is not None:
        found.append(one.holder)
    return found


# Whose turn is next.


@pytest.mark.parametrize(
    ("tickets", "order"),
    [
        pytest.param([], "", id="nobody"),
        pytest.param([ticket(name="1"), ticket(name="2"), ticket(name="3")], "123", id="who came first, in a tenant"),
        pytest.param([ticket("a"), ticket("a"), ticket("b"), ticket("b")], "abab", id="by turns, between tenants"),
        pytest.param(
            [ticket("a", 300), ticket("a", 300), *(ticket("b", 100) for _ in range(6))],
            "abbbabbb",
            id="by tokens, not by calls",
        ),
        pytest.param(
            [*(ticket("a", weight=4) for _ in range(8)), *(ticket("b") for _ in range(2))],
            "abaaabaaaa",
            id="by weight",
        ),
        pytest.param(
            [ticket("a", priority=LOW), ticket("b"), ticket("c", priority=HIGH), ticket("d", priority=LOW)],
            "cbad",
            id="a higher class first",
        ),
        pytest.param(
            [ticket(name="late", deadline_s=NOW_S + 9), ticket(name="soon", deadline_s=NOW_S + 1), ticket(name="any")],
            ["soon", "late", "any"],
            id="the earliest deadline first, in a tenant",
        ),
        pytest.param(
            [ticket("a", deadline_s=NOW_S + 9), ticket("a", deadline_s=NOW_S + 9), ticket("b", deadline_s=NOW_S + 1)],
            "aba",
            id="but not between tenants: nobody gains by being in a hurry",
        ),
    ],
)
def test_whose_turn_is_next(tickets: list[Ticket[str]], order: Sequence[str]) -> None:
    """Classes, then fair shares of tokens, then deadlines, then who came first."""
    queue = turns()
    joined(queue, *tickets)
    assert given_out(queue) == list(order)


def test_it_tells_its_story() -> None:
    """Its repr is what a test or a log line wants to know."""
    queue = turns()
    joined(queue, ticket("a"), ticket("a"), ticket("b", priority=LOW))
    assert repr(queue._bands[NORMAL].shares) == "<Shares 1 waiting, 1 known, turns at 0>"
    assert repr(queue) == "<Turns tiny: 3 waiting, 2 tenants>"
    assert (queue.waiting, queue.waiting_of(NORMAL), queue.waiting_of(LOW), queue.waiting_of(HIGH)) == (3, 2, 1, 0)


weights = st.sampled_from([0.5, 1.0, 2.0, 3.0, 10.0])
costs = st.lists(st.integers(1, 5000), min_size=1, max_size=8)


@given(weights, weights, costs, costs, costs, st.integers(1, 60), st.integers(0, 60))
@enough
def test_two_tenants_that_always_wait_are_given_the_same_by_weight(
    weight_a: float,
    weight_b: float,
    costs_a: list[int],
    costs_b: list[int],
    costs_c: list[int],
    turns_before: int,
    turns_between: int,
) -> None:
    """In any interval their tokens by weight differ by at most U of the one and U of the other, whoever else waits."""
    queue = turns()
    endless = {
        tenant: (weight, cycle(costs))
        for tenant, weight, costs in (("a", weight_a, costs_a), ("b", weight_b, costs_b), ("c", 1.0, costs_c))
    }

    def another(tenant: str) -> None:
        weight, costs = endless[tenant]
        joined(queue, ticket(tenant, next(costs), weight=weight))

    for tenant in "aabbc":
        another(tenant)
    service = dict.fromkeys("abc", 0.0)
    for turn in range(turns_before + turns_between + 200):
        if turn == turns_before:
            service = dict.fromkeys("abc", 0.0)
        one = queue.next(NOW_S)
        assert one is not None
        service[one.tenant] += one.tokens
        if one.tenant != "c" or turn % 7:
            another(one.tenant)
        bound = max(costs_a) / weight_a + max(costs_b) / weight_b
        assert abs(service["a"] / weight_a - service["b"] / weight_b) <= bound + 1e-6


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20), st.integers(0, 300), st.integers(0, 300))
@enough
def test_a_tenant_with_a_thousand_calls_delays_anothers_single_call_by_one_turn_at_most(
    costs: list[int], served: int, ended: int
) -> None:
    """However many wait, however much of it was given back meanwhile; with n tenants it is one turn of each."""
    queue = turns()
    joined(queue, *(ticket("flood", costs[n % len(costs)]) for n in range(1000)))
    running = [one for _ in range(served) if (one := queue.next(NOW_S)) is not None]
    for one in running[:ended]:
        queue.ended(one.charge, one.tokens * 0.1)
    joined(queue, ticket("single"))
    for one in running[ended:]:
        queue.ended(one.charge, one.tokens * 0.1)
    assert "single" in given_out(queue, 2)


def test_many_tenants_that_come_at_once_have_one_turn_each() -> None:
    """Before any of them, or of those that were there, has a second one."""
    queue = turns()
    joined(queue, *(ticket("flood") for _ in range(1000)))
    given_out(queue, 10)
    joined(queue, *(ticket(f"t{n % 50}") for n in range(100)))
    first = given_out(queue, 51)
    assert first[:50] == [f"t{n}" for n in range(50)]
    assert first[50] == "flood"


def test_idleness_earns_no_credit() -> None:
    """A tenant that comes back is no better off than one that never was there."""
    queue = turns()
    joined(queue, *(ticket("busy") for _ in range(300)), ticket("idle"))
    given_out(queue, 200)  # In which the others' level rose far above that of the one that was away.
    joined(queue, *(ticket("idle") for _ in range(100)))
    assert abs(Counter(given_out(queue, 60))["idle"] - 30) <= 1


def test_use_without_waiting_is_counted_and_earns_no_credit_either() -> None:
    """Turns begin where the calls that did not wait have brought them."""
    queue = turns()
    for _ in range(1000):
        queue.start("busy", 1, NORMAL, 100)
    joined(queue, *(ticket(tenant) for _ in range(20) for tenant in ("busy", "idle")))
    served = given_out(queue, 20)
    assert served[0] == "idle"
    assert abs(Counter(served)["idle"] - 10) <= 1


def test_a_call_that_did_not_wait_is_paid_before_the_next_turn() -> None:
    """It was just given more than others: they come first until they have had as much."""
    queue = turns()
    queue.start("a", 1, NORMAL, 100)
    for _ in range(100):
        queue.start("busy", 1, NORMAL, 100)
    queue.start("a", 1, NORMAL, 1000)
    joined(queue, *(ticket("a") for _ in range(5)), *(ticket("b") for _ in range(15)))
    assert given_out(queue, 12) == ["b"] * 10 + ["a", "b"]


# What calls cost is known afterwards.


def test_what_a_call_took_more_is_paid_back_in_turns() -> None:
    """A tenant whose call was longer than it seemed gives others their turns first."""
    queue = turns()
    for tenant in "ab":
        queue.ended(queue.start(tenant, 1, NORMAL, 100), 100)
    joined(queue, *(ticket(tenant) for _ in range(20) for tenant in "ab"))
    first = queue.next(NOW_S)
    assert first is not None
    assert first.holder == "a"
    assert given_out(queue, 1) == ["b"]
    queue.ended(first.charge, 1000)
    assert given_out(queue, 10) == ["b"] * 9 + ["a"]


def test_what_a_call_took_less_comes_back_in_turns() -> None:
    """Two tenants of which one reserves ten times what it takes are given the same in the end."""
    queue, took = turns(), Counter[str]()
    joined(queue, *(ticket("a", 1000) for _ in range(300)), *(ticket("b", 100) for _ in range(300)))
    for _ in range(200):
        one = queue.next(NOW_S)
        assert one is not None
        took[one.tenant] += 100
        queue.ended(one.charge, 100)
    assert abs(took["a"] - took["b"]) <= 1000


def test_what_is_corrected_counts_by_weight() -> None:
    """A tenant with four times the weight pays a quarter of it."""
    queue = turns()
    for tenant, weight in (("a", 4), ("b", 1)):
        queue.ended(queue.start(tenant, weight, NORMAL, 100), 100)
    joined(queue, *(ticket("a", weight=4) for _ in range(20)), *(ticket("b") for _ in range(20)))
    first = queue.next(NOW_S)
    assert first is not None
    assert first.tenant == "a"
    queue.ended(first.charge, 100 + 4 * 500)
    assert given_out(queue, 7) == list("bbbbbab")


def test_a_tenant_that_comes_fresh_stays_so_while_its_older_calls_end() -> None:
    """What is given back to others meanwhile puts them no more before it than without that."""
    queue = turns()
    joined(queue, *(ticket("flood") for _ in range(100)), ticket("single"))
    running = [one for _ in range(50) if (one := queue.next(NOW_S)) is not None]
    older = next(one for one in running if one.tenant == "single")
    joined(queue, ticket("single"))
    queue.ended(older.charge, older.charge.cost)
    for one in running[-10:]:
        queue.ended(one.charge, 1)
    assert given_out(queue, 1) == ["single"]


def test_what_an_old_call_left_is_no_credit_after_a_pause() -> None:
    """It was forgotten when its tenant came again, and is not given back from what it takes now."""
    queue = turns()
    for tenant in "ab" * 30:
        queue.ended(queue.start(tenant, 1, NORMAL, 100), 100)
    old = queue.start("a", 1, NORMAL, 400)
    for _ in range(100):
        queue.start("b", 1, NORMAL, 100)
    joined(queue, *(ticket(tenant) for _ in range(50) for tenant in "ab"))
    queue.ended(old, 1)
    charged = {"a": 0.0, "b": 0.0}
    for _ in range(40):
        one = queue.next(NOW_S)
        assert one is not None
        charged[one.tenant] += one.charge.cost
    assert abs(charged["a"] - charged["b"]) <= 200


def test_what_is_given_back_to_one_tenant_is_no_credit_for_who_comes_next() -> None:
    """A newcomer begins where turns were given before that."""
    queue = turns()
    for tenant in "abc" * 30:
        queue.ended(queue.start(tenant, 1, NORMAL, 100), 100)
    joined(queue, *(ticket("a", 3000) for _ in range(2)), *(ticket("b") for _ in range(200)))
    large = [one for _ in range(40) if (one := queue.next(NOW_S)) is not None and one.tenant == "a"]
    assert len(large) == 2
    joined(queue, *(ticket("a") for _ in range(500)))
    for one in large:
        queue.ended(one.charge, 100)
    assert given_out(queue, 1) == ["a"]
    joined(queue, *(ticket("c") for _ in range(60)))
    given = Counter[str]()
    while given["b"] + given["c"] < 40:
        given.update(given_out(queue, 1))
    assert abs(given["b"] - given["c"]) <= 3


class Slots:
    """An engine of `size` slots that are always full; a call ends after as many ticks as it takes tokens."""

    def __init__(self, queue: Turns[str], size: int, rng: random.Random) -> None:
        self.queue, self.size, self.rng = queue, size, rng
        self.tick, self.began = 0, count()
        self.running: list[tuple[int, int, int, Charge]] = []

    def start(self, tenant: str, asks: int) -> None:
        self.run(self.queue.start(tenant, 1, NORMAL, asks))

    def run(self, charge: Charge) -> None:
        took = self.rng.randint(1, 300)
        heappush(self.running, (self.tick + took, next(self.began), took, charge))

    def one_ends(self) -> None:
        self.tick, _, took, charge = heappop(self.running)
        self.queue.ended(charge, took)

    def held_by(self, tenant: str) -> int:
        return sum(charge.tenant == tenant for *_, charge in self.running)


@pytest.mark.parametrize(("asks_a", "asks_b"), [(150, 150), (4096, 4096), (4096, 150), (150, 4096)])
def test_a_tenant_that_has_all_slots_shares_them_as_soon_as_its_calls_end(asks_a: int, asks_b: int) -> None:
    """Whatever callers ask for: what a tenant's calls usually take is what they are charged with."""
    queue = turns()
    engine = Slots(queue, 100, random.Random(7))
    for _ in range(engine.size):
        engine.start("a", asks_a)
    for _ in range(300):  # While a is alone, and nobody waits.
        engine.one_ends()
        engine.start("a", asks_a)
    held = []
    joined(queue, *(ticket(tenant, asks) for _ in range(20) for tenant, asks in (("a", asks_a), ("b", asks_b))))
    for _ in range(2000):
        engine.one_ends()
        one = queue.next(NOW_S)
        assert one is not None
        engine.run(one.charge)
        joined(queue, ticket(one.tenant, one.tokens))
        held.append(engine.held_by("b"))
    assert max(held[:250]) >= 40
    assert sum(held[-1000:]) / 1000 == pytest.approx(50, abs=5)


def test_what_calls_usually_take_is_known_by_tenant() -> None:
    """And of a tenant without any calls yet, it is what those of others took."""
    queue = turns()
    for n in range(50):
        charge = queue.start("a", 1, NORMAL, 1000)
        queue.ended(charge, 100)
        queue.ended(queue.start("b", 1, NORMAL, 1000), 400)
        assert n > 0 or charge.cost == 1000
    assert queue.start("a", 1, NORMAL, 500).cost == pytest.approx(50, rel=0.01)
    assert queue.start("b", 1, NORMAL, 500).cost == pytest.approx(200, rel=0.01)
    assert 100 < queue.start("new", 1, NORMAL, 500).cost < 150
    assert queue.start("a", 1, LOW, 500).cost == 500


def test_a_call_that_took_nothing_teaches_nothing() -> None:
    """An outage, or a caller that always leaves, makes no call cheap."""
    queue = turns()
    for _ in range(50):
        queue.ended(queue.start("a", 1, NORMAL, 1000), 0)
    assert queue.start("a", 1, NORMAL, 1000).cost == 1000


@pytest.mark.parametrize("between", [0, 1])
def test_what_is_given_back_from_before_puts_nobody_ahead(between: int) -> None:
    """Calls that were charged much while nobody else was there must not buy turns now that others are."""
    queue, served = turns(), list[str]()
    charges = [queue.start("a", 1, NORMAL, 4000) for _ in range(100)]
    joined(queue, *(ticket("a", 4000) for _ in range(200)), *(ticket("b", 4000) for _ in range(200)))
    for charge in charges:
        queue.ended(charge, 100)
        served += given_out(queue, between)
    served += given_out(queue, 40)
    assert abs(Counter(served)["a"] - Counter(served)["b"]) <= 2


@given(st.lists(st.tuples(st.integers(0, 59), st.floats(0, 1)), max_size=60, unique_by=lambda one: one[0]))
@enough
def test_what_is_given_back_puts_a_tenant_ahead_by_one_call_at_most(ends: list[tuple[int, float]]) -> None:
    """Whatever calls end in whatever order: what two tenants are given then differs by a few calls, not by so many."""
    queue = turns()
    joined(queue, *(ticket(tenant, 100) for _ in range(2000) for tenant in "ab"))
    running = [one for _ in range(60) if (one := queue.next(NOW_S)) is not None]
    for at, part in ends:
        queue.ended(running[at].charge, 100 * part)
    given = {"a": 0.0, "b": 0.0}
    for _ in range(300):
        one = queue.next(NOW_S)
        assert one is not None
        given[one.tenant] += one.charge.cost
        assert abs(given["a"] - given["b"]) <= 400


def test_what_a_forgotten_tenant_took_is_remembered_from_where_turns_are() -> None:
    """It was forgotten because it had no more than others."""
    queue = turns()
    charge = queue.start("a", 1, NORMAL, 100)
    for n in range(3 * MAX_RESTING):
        queue.start(f"t{n}", 1, NORMAL, 100 + n)
    assert "a" not in queue._bands[NORMAL].shares._shares
    queue.ended(charge, 400)  # 300 more than it was charged; and others' calls are taken for four times as long now.
    joined(queue, ticket("a"), *(ticket("b", 10) for _ in range(9)))
    assert given_out(queue) == ["b"] * 8 + ["a", "b"]


def test_what_is_known_of_tenants_that_are_away_is_bounded() -> None:
    """Those that had most stay known; and of those that wait, all."""
    queue = turns()
    joined(queue, *(ticket("a") for _ in range(3)))
    for n in range(5 * MAX_RESTING):
        queue.start(f"t{n}", 1, NORMAL, 100)
    queue.start("greedy", 1, NORMAL, 10_000)
    for n in range(5 * MAX_RESTING):
        queue.start(f"u{n}", 1, NORMAL, 100)
    shares = queue._bands[NORMAL].shares
    assert len(shares._shares) <= MAX_RESTING + 2
    assert {"a", "greedy"} <= set(shares._shares)


# Classes.


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=8),
    st.integers(1, 3000),
    st.sampled_from([NORMAL, LOW]),
)
@enough
def test_no_class_starves(costs: list[int], cost: int, priority: Priority) -> None:
    """A call of a lower class has its turn after `cost / KEPT` tokens of the others, and two calls of theirs."""
    queue = turns()
    waiting = ticket("low", cost, priority=priority, name="low")
    joined(queue, waiting)
    before = 0.0
    for n in count():
        joined(queue, *(ticket(f"h{n % 3}", costs[n % len(costs)], priority=other) for other in (HIGH, NORMAL)))
        one = queue.next(NOW_S)
        assert one is not None
        if one is waiting:
            break
        before += one.tokens
        assert before <= cost / KEPT + 2 * max(*costs, cost)


def test_a_class_that_waits_is_given_its_kept_share_and_no_more() -> None:
    """One token in twenty while a higher one waits, all when none does."""
    queue = turns()
    joined(
        queue,
        *(ticket("h", priority=HIGH) for _ in range(400)),
        *(ticket("n", priority=NORMAL) for _ in range(100)),
        *(ticket("l", priority=LOW) for _ in range(100)),
    )
    served = Counter(given_out(queue, 400))
    assert served["n"] == pytest.approx(400 * KEPT, rel=0.1)
    assert served["l"] == pytest.approx(400 * KEPT, rel=0.1)


def test_a_class_that_did_not_wait_is_owed_nothing() -> None:
    """What was given to others in an hour without it is no credit for it."""
    queue = turns()
    joined(queue, *(ticket("h", priority=HIGH) for _ in range(1000)), ticket("l", priority=LOW))
    given_out(queue, 15)
    assert queue.leave(queue._bands[LOW].first(), NOW_S)
    joined(queue, ticket("l", priority=LOW))
    assert "l" not in given_out(queue, 15)


# Deadlines, and leaving.


def test_a_deadline_that_has_passed_gets_no_turn() -> None:
    """It is told of once instead, and others have the turn."""
    queue = turns()
    late, soon, other = ticket(deadline_s=NOW_S + 1), ticket(deadline_s=NOW_S + 2), ticket("b")
    joined(queue, late, soon, other)
    assert queue.next_deadline() == NOW_S + 1
    assert queue.next(NOW_S + 1) is soon
    assert queue.next_deadline() == NOW_S + 1
    assert queue.overdue(NOW_S + 1) == [late]
    assert queue.overdue(NOW_S + 3) == []
    assert queue.next(NOW_S + 3) is other
    assert queue.next_deadline() == math.inf


def test_nobody_waits_who_is_too_late_already() -> None:
    """Also while nothing is known of how long waits are."""
    queue = turns()
    with pytest.raises(WaitTooLong):
        queue.join(ticket(deadline_s=NOW_S), NOW_S)
    assert queue.waiting == 0


def test_a_call_that_leaves_is_gone_at_once() -> None:
    """From among those that wait, and from those that are overdue; and it was never there twice."""
    queue = turns()
    first, second, late = ticket(), ticket(), ticket(deadline_s=NOW_S + 1)
    joined(queue, first, second, late)
    assert queue.leave(first, NOW_S)
    assert not queue.leave(first, NOW_S)
    assert queue.next(NOW_S + 1) is second
    assert queue.leave(late, NOW_S + 1)
    assert not queue.leave(late, NOW_S + 1)
    assert queue.overdue(NOW_S + 1) == []


# Places.


def test_one_tenant_cannot_lock_others_out() -> None:
    """In a full queue the tenant with most places gives up its last call, until all have the same."""
    queue = turns(max_waiting=10)
    flood = [ticket("flood", name=str(n)) for n in range(10)]
    joined(queue, *flood)
    displaced = [queue.join(ticket("b"), NOW_S) for _ in range(5)]
    assert [one and one.holder for one in displaced] == ["9", "8", "7", "6", "5"]
    for tenant in ("b", "flood"):
        with pytest.raises(QueueFull):
            queue.join(ticket(tenant), NOW_S)
    assert queue.waiting == 10


def test_places_are_shared_by_weight() -> None:
    """Who has three times the weight has three times the places."""
    queue = turns(max_waiting=12)
    joined(queue, *(ticket("a", weight=1) for _ in range(12)))
    with pytest.raises(QueueFull):
        for _ in range(12):
            queue.join(ticket("b", weight=3), NOW_S)
    assert Counter(given_out(queue)) == {"a": 3, "b": 9}


def test_the_last_call_of_a_tenant_is_the_one_that_goes() -> None:
    """Which is the one whose turn would be last: it has waited least, or has most time."""
    queue = turns(max_waiting=3)
    hurried = ticket("a", deadline_s=NOW_S + 1, name="hurried")
    joined(queue, ticket("a", deadline_s=NOW_S + 9, name="easy"), ticket("a", deadline_s=NOW_S + 5), hurried)
    displaced = queue.join(ticket("b"), NOW_S)
    assert displaced is not None
    assert displaced.holder == "easy"


def test_a_higher_class_takes_places_from_lower_ones_down_to_what_is_kept() -> None:
    """The lowest first; one place in twenty is kept for each class, and given back to it."""
    queue = turns(max_waiting=40)
    joined(queue, *(ticket("l", priority=LOW) for _ in range(20)), *(ticket("n") for _ in range(20)))
    classes = []
    with pytest.raises(QueueFull):
        while True:
            displaced = queue.join(ticket("h", priority=HIGH), NOW_S)
            assert displaced is not None
            classes.append(displaced.priority)
    assert classes == [LOW] * 18 + [NORMAL] * 18
    joined(queue)
    assert [queue.waiting_of(priority) for priority in CLASSES] == [36, 2, 2]
    assert given_out(queue, 1) == ["h"]


def test_places_that_are_kept_for_a_class_are_taken_back_from_higher_ones() -> None:
    """Or its kept share of turns would be worth nothing."""
    queue = turns(max_waiting=40)
    joined(queue, *(ticket("h", priority=HIGH) for _ in range(40)))
    for _ in range(2):
        displaced = queue.join(ticket("l", priority=LOW), NOW_S)
        assert displaced is not None
        assert displaced.priority is HIGH
    with pytest.raises(QueueFull):
        queue.join(ticket("l", priority=LOW), NOW_S)


def test_a_tenant_has_so_many_places_and_its_own_doing_is_called_so() -> None:
    """A 429 for the tenant; a 503 where it is our capacity that is lacking."""
    queue = turns(max_waiting=3, max_of_tenant=2)
    joined(queue, ticket("a"), ticket("a"))
    with pytest.raises(TenantQueueFull, match=r"^Rate limit reached for tenant a: 2 waiting calls\.$") as own:
        queue.join(ticket("a"), NOW_S)
    joined(queue, ticket("b"))
    with pytest.raises(QueueFull, match=r"^Too many calls are waiting for `tiny`\.$") as ours:
        queue.join(ticket("c", weight=0.1), NOW_S)
    assert isinstance(own.value, LimitReached)
    assert isinstance(ours.value, Unserved)
    assert (own.value.retry_after_s, ours.value.retry_after_s) == (1.0, 1.0)


def test_a_tenants_own_lower_calls_make_room_for_its_higher_ones() -> None:
    """Its batches must not lock out its people."""
    queue = turns(max_of_tenant=2)
    joined(queue, ticket("a", priority=LOW), ticket("a", priority=LOW, name="last"))
    displaced = queue.join(ticket("a", priority=HIGH), NOW_S)
    assert displaced is not None
    assert displaced.holder == "last"
    with pytest.raises(TenantQueueFull):
        queue.join(ticket("a", priority=LOW), NOW_S)


def test_no_call_makes_room_for_one_that_would_be_too_late() -> None:
    """Whoever is refused has displaced nobody."""
    queue = turns(max_of_tenant=2)
    now_s = paced(queue, 1000, NOW_S)
    for _ in range(2):
        queue.join(ticket("a", priority=LOW), now_s)
    with pytest.raises(WaitTooLong):
        queue.join(ticket("a", priority=HIGH, deadline_s=now_s + 0.01), now_s)
    assert queue.waiting == 2


def test_a_queue_for_nobody_refuses_everybody() -> None:
    """`queue.max_waiting: 0` lets none wait."""
    with pytest.raises(QueueFull):
        turns(max_waiting=0).join(ticket(), NOW_S)


def test_places_of_those_that_are_too_late_are_free() -> None:
    """Nobody is refused or displaced for the sake of one whose time is over."""
    queue = turns(max_waiting=1)
    late = ticket(deadline_s=NOW_S + 1)
    joined(queue, late)
    assert queue.join(ticket("b"), NOW_S + 1) is None
    assert queue.overdue(NOW_S + 1) == [late]


# How long a wait is.


def paced(queue: Turns[str], tokens_a_second: float, now_s: float, *, cost: float = 100, n: int = 64) -> float:
    """Gives turns at an even pace to calls of its own, and returns what time it is then."""
    last = ticket("pacer", cost)
    queue.join(last, now_s)
    for _ in range(n):
        last = ticket("pacer", cost)
        queue.join(last, now_s)
        now_s += cost / tokens_a_second
        assert queue.next(now_s) is not None
    queue.leave(last, now_s)
    assert queue.waiting == 0
    return now_s


def test_while_nothing_is_known_nobody_is_refused_by_a_guess() -> None:
    """A cold start lets calls wait; the first turns tell."""
    queue = turns()
    joined(queue, *(ticket(deadline_s=NOW_S + 0.1) for _ in range(500)))
    assert queue.wait_s(ticket(), NOW_S) is None


@pytest.mark.parametrize(
    ("waiting", "newcomer", "wait_s"),
    [
        pytest.param([], ticket(), 0.1, id="nobody waits: the time between two turns"),
        pytest.param([], ticket(cost=5000), 0.1, id="whatever it costs itself"),
        pytest.param([("a", 100, NORMAL)] * 50, ticket("a"), 5.1, id="behind one's own calls"),
        pytest.param([("a", 100, NORMAL)] * 50, ticket("b"), 0.2, id="and behind a turn of another"),
        pytest.param([("a", 100, HIGH)] * 50, ticket("b"), 2.1, id="behind a higher class, as far as that goes first"),
        pytest.param([("a", 100, HIGH)] * 10, ticket("b"), 1.1, id="which is not long if there is little of it"),
        pytest.param([("a", 100, LOW)] * 50, ticket("b"), 0.1, id="before a lower class"),
        pytest.param(
            [("a", 100, NORMAL)] * 50 + [("b", 100, LOW)], ticket("a"), 5.36, id="but for what is kept for that"
        ),
    ],
)
def test_a_wait_is_told_from_the_pace_of_turns(
    waiting: Iterable[tuple[str, float, Priority]], newcomer: Ticket[str], wait_s: float
) -> None:
    """What is due before it, in tokens, at the pace of the last turns: here 1,000 tokens a second."""
    queue = turns()
    now_s = paced(queue, 1000, NOW_S)
    for tenant, cost, priority in waiting:
        queue.join(ticket(tenant, cost, priority=priority), now_s)
    assert queue.wait_s(newcomer, now_s) == pytest.approx(wait_s, abs=0.055)


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 400)), max_size=120),
    st.sampled_from("abcdef"),
    st.integers(1, 400),
    st.integers(0, 40),
)
@enough
def test_the_wait_that_is_told_is_the_wait_that_comes(
    others: list[tuple[str, int]], tenant: str, cost: int, served: int
) -> None:
    """If nobody else comes it is off by a call of each tenant at most."""
    queue = turns()
    now_s = paced(queue, 1000, NOW_S)
    for name, tokens in others:
        queue.join(ticket(name, tokens), now_s)
    given_out(queue, served, now_s)
    mine = ticket(tenant, cost)
    queue.join(mine, now_s)
    told_s = queue.wait_s(mine, now_s)
    before = 0.0
    while (one := queue.next(now_s)) is not mine:
        assert one is not None
        before += one.tokens
    pace = queue._pace
    assert told_s is not None
    if not served:
        assert abs(told_s - 0.1 - before / 1000) <= 6 * 0.4 + 1e-6
    assert pace.wait_s(0, now_s) is not None


def test_a_wait_is_told_from_what_calls_usually_take() -> None:
    """Not from what they ask for, their own as those of others."""
    queue = turns()
    for _ in range(50):
        queue.ended(queue.start("a", 1, NORMAL, 1000), 100)
        queue.ended(queue.start("b", 1, NORMAL, 100), 100)
        queue.ended(queue.start("pacer", 1, NORMAL, 100), 100)
    now_s = paced(queue, 1000, NOW_S)
    for _ in range(20):
        queue.join(ticket("a", 1000), now_s)
    assert queue.wait_s(ticket("a", 1000), now_s) == pytest.approx(2.1, abs=0.1)
    for _ in range(50):
        queue.join(ticket("b", 100), now_s)
    assert queue.wait_s(ticket("b", 100), now_s) == pytest.approx(7.1, abs=0.2)


def test_a_wait_that_would_be_too_long_is_refused_at_once() -> None:
    """With the time after which it would not be; one that has as much time may wait."""
    queue = turns()
    now_s = paced(queue, 1000, NOW_S)
    for _ in range(50):
        queue.join(ticket("h", priority=HIGH), now_s)
    with pytest.raises(
        WaitTooLong, match=r"^Calls to `tiny` wait longer for their turn now than this one would\.$"
    ) as no:
        queue.join(ticket("a", deadline_s=now_s + 1.5), now_s)
    assert no.value.retry_after_s == pytest.approx(2.1 * SPARE - 1.5, abs=0.05)
    assert queue.join(ticket("a", deadline_s=now_s + 3), now_s) is None
    assert queue.join(ticket("a", deadline_s=now_s + 1, priority=HIGH), now_s) is None


def test_as_many_wait_as_will_have_their_turn_in_time() -> None:
    """With four seconds each, a tenth of a second a turn, and something to spare."""
    queue = turns()
    now_s = paced(queue, 1000, NOW_S)
    with pytest.raises(WaitTooLong) as refused:
        for _ in range(100):
            queue.join(ticket("a", deadline_s=now_s + 4), now_s)
    assert 32 <= queue.waiting <= 40 / SPARE
    assert refused.value.retry_after_s == pytest.approx(0.1, abs=0.01)


def test_the_time_to_come_back_is_bounded() -> None:
    """SDKs take a longer wait for a refusal."""
    queue = turns()
    now_s = paced(queue, 10, NOW_S)
    for _ in range(100):
        queue.join(ticket("h", priority=HIGH), now_s)
    with pytest.raises(WaitTooLong) as refused:
        queue.join(ticket("a", deadline_s=now_s + 1), now_s)
    assert refused.value.retry_after_s == 60


def test_a_full_queue_says_when_it_will_have_moved() -> None:
    """By when what is due before the call now has had its turn."""
    queue = turns(max_of_tenant=50)
    now_s = paced(queue, 1000, NOW_S)
    for _ in range(50):
        queue.join(ticket("a"), now_s)
    with pytest.raises(TenantQueueFull) as refused:
        queue.join(ticket("a"), now_s)
    assert refused.value.retry_after_s == pytest.approx(5.1, abs=0.1)


def test_a_crowd_that_is_turned_away_does_not_come_back_all_at_once() -> None:
    """Each is told to come when those who were told before it have had their turns; another tenant is not concerned."""
    queue = turns(max_of_tenant=50)
    now_s = paced(queue, 1000, NOW_S)
    for _ in range(50):
        queue.join(ticket("a"), now_s)

    def told_s() -> float:
        with pytest.raises(TenantQueueFull) as refused:
            queue.join(ticket("a"), now_s)
        return refused.value.retry_after_s or 0.0

    times_s = [told_s() for _ in range(100)]
    assert times_s == [pytest.approx(5.1 + 0.1 * number, abs=0.15) for number in range(100)]
    assert queue.join(ticket("b"), now_s) is None
    now_s += 60
    queue.overdue(now_s)
    assert max(told_s() for _ in range(1000)) == 60


def test_a_stalled_engine_is_noticed_while_it_stalls() -> None:
    """A long time without a turn counts as soon as it passes."""
    queue = turns()
    now_s = paced(queue, 1000, NOW_S)
    queue.join(ticket("a"), now_s)
    usual_s, *stalled_s = (queue.wait_s(ticket("a"), now_s + passed_s) or 0.0 for passed_s in (0, 6.4, 64))
    assert usual_s == pytest.approx(0.2)
    assert stalled_s == [pytest.approx(0.47, rel=0.1), pytest.approx(2.9, rel=0.1)]


def test_an_engine_that_stalled_until_everybody_had_left_is_known_for_it() -> None:
    """Time in which somebody waited for nothing counts, also when he gave up."""
    queue = turns()
    now_s = paced(queue, 1000, NOW_S)
    waiting = ticket("a")
    queue.join(waiting, now_s)
    queue.leave(waiting, now_s + 64)
    assert (queue.wait_s(ticket("a"), now_s + 64) or 0) > 1


def test_engines_that_end_their_calls_together_are_no_stalled_ones() -> None:
    """Ten turns a minute, all at once: the pace is told within half of what it is, at any moment between."""
    queue, now_s = turns(), NOW_S
    for _ in range(2000):
        queue.join(ticket("a"), now_s)
    for _ in range(20):
        now_s += 60
        given_out(queue, 10, now_s)
    for later_s in (0, 30, 59):
        wait_s = queue.wait_s(ticket("b", cost=1), now_s + later_s)
        assert wait_s == pytest.approx(6, rel=0.5)


def test_the_pace_follows_engines_that_come_or_go() -> None:
    """Within a minute or so."""
    queue = turns()
    now_s = paced(queue, 1000, NOW_S, n=600)
    now_s = paced(queue, 4000, now_s, n=2400)
    assert queue.wait_s(ticket(), now_s) == pytest.approx(0.025, rel=0.25)
    now_s = paced(queue, 500, now_s, n=300)
    assert queue.wait_s(ticket(), now_s) == pytest.approx(0.2, rel=0.25)


def test_a_pace_of_long_ago_is_none() -> None:
    """Engines may have come and gone: after an hour nothing is known again."""
    queue = turns()
    now_s = paced(queue, 1000, NOW_S)
    queue.join(ticket(), now_s + 3600)
    assert queue.wait_s(ticket(), now_s + 3600) is None


def test_the_pace_is_what_engines_take_not_what_callers_send() -> None:
    """Time in which nobody waited does not count."""
    queue = turns()
    now_s = paced(queue, 1000, NOW_S)
    for _ in range(20):
        now_s = paced(queue, 1000, now_s + 5, n=10)
    assert queue.wait_s(ticket(), now_s) == pytest.approx(0.1, rel=0.1)
    assert repr(queue._pace) == "<Pace 1000 tokens a second>"
    assert repr(turns()._pace) == "<Pace unknown>"


# Whatever happens in whatever order.


class Anything(RuleBasedStateMachine):
    """Calls come, leave, are served, are late, in any order: each comes out exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = NOW_S
        self.inside = dict[Ticket[str], None]()
        self.running = list[Charge]()

    @initialize(max_waiting=st.integers(0, 12), max_of_tenant=st.integers(1, 8))
    def begin(self, max_waiting: int, max_of_tenant: int) -> None:
        self.max_waiting, self.max_of_tenant = max_waiting, max_of_tenant
        self.queue = turns(max_waiting, max_of_tenant)

    @rule(
        tenant=st.sampled_from("abcd"),
        priority=st.sampled_from(CLASSES),
        cost=st.integers(1, 1000),
        patience_s=st.sampled_from([0.5, 3.0, 60.0, math.inf]),
    )
    def joins(self, tenant: str, priority: Priority, cost: int, patience_s: float) -> None:
        one = ticket(tenant, cost, priority=priority, deadline_s=self.now_s + patience_s, weight=ord(tenant) - 96)
        try:
            displaced = self.queue.join(one, self.now_s)
        except (QueueFull, TenantQueueFull, WaitTooLong) as refused:
            assert refused.retry_after_s is not None
            assert 0 < refused.retry_after_s <= 60
            return
        self.inside[one] = None
        if displaced is not None:
            del self.inside[displaced]
            assert displaced is not one

    @rule()
    def is_served(self) -> None:
        one = self.queue.next(self.now_s)
        if one is not None:
            del self.inside[one]
            assert one.deadline_s > self.now_s
            self.running.append(one.charge)

    @rule(pick=st.integers(0, 100))
    def leaves(self, pick: int) -> None:
        if self.inside:
            one = list(self.inside)[pick % len(self.inside)]
            assert self.queue.leave(one, self.now_s)
            del self.inside[one]
            assert not self.queue.leave(one, self.now_s)

    @rule()
    def are_late(self) -> None:
        for one in self.queue.overdue(self.now_s):
            del self.inside[one]
            assert one.deadline_s <= self.now_s

    @rule(pick=st.integers(0, 100), took=st.integers(0, 2000))
    def ends(self, pick: int, took: int) -> None:
        if self.running:
            self.queue.ended(self.running.pop(pick % len(self.running)), took)

    @rule(tenant=st.sampled_from("abcd"), priority=st.sampled_from(CLASSES))
    def starts_at_once(self, tenant: str, priority: Priority) -> None:
        self.running.append(self.queue.start(tenant, ord(tenant) - 96, priority, 100))

    @rule(passed_s=st.sampled_from([0.0, 0.1, 1.0, 10.0]))
    def time_passes(self, passed_s: float) -> None:
        self.now_s += passed_s

    @invariant()
    def it_holds_whom_it_should(self) -> None:
        waiting = set(self.queue._entries)
        assert waiting | set(self.queue._overdue) == set(self.inside)
        assert self.queue.waiting == len(waiting) <= self.max_waiting
        assert all(n <= self.max_of_tenant for n in Counter(one.tenant for one in waiting).values())
        assert self.queue.next_deadline() == min((one.deadline_s for one in self.inside), default=math.inf)
        for priority in CLASSES:
            band = self.queue._bands[priority]
            mine = [one for one in waiting if one.priority is priority]
            assert band.calls == len(mine)
            assert band.tokens == pytest.approx(sum(band.cost(one) for one in mine))
            assert {share.tenant for share in band.shares.waiting()} == {one.tenant for one in mine}

    def teardown(self) -> None:
        while (one := self.queue.next(self.now_s)) is not None:
            del self.inside[one]
        for one in self.queue.overdue(self.now_s):
            del self.inside[one]
        assert not self.inside


TestAnything = Anything.TestCase
TestAnything.settings = settings(enough, stateful_step_count=60)


@pytest.mark.parametrize(
    "order", [list, lambda some: some[::-1], lambda some: random.Random(3).sample(some, len(some))]
)
def test_ten_thousand_calls_come_and_leave(order: Callable[[list[Ticket[str]]], list[Ticket[str]]]) -> None:
    """In the order in which they came, in the other, and in none."""
    queue = turns()
    tickets = [ticket(f"t{n % 1000}", n % 37 + 1, deadline_s=NOW_S + n * 7919 % 10_007 + 1) for n in range(10_000)]
    joined(queue, *tickets)
    for one in order(tickets):
        assert queue.leave(one, NOW_S)
    assert repr(queue) == "<Turns tiny: 0 waiting, 0 tenants>"
