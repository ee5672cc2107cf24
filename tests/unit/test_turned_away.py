"""What callers who are turned away are told, after others were told so before them."""

import math

import pytest

from gateway.admission.band import Ticket
from gateway.admission.turns import Turns
from gateway.errors import TenantQueueFull, WaitTooLong
from gateway.settings import Priority, QueueSettings


def ticket(tenant: str, deadline_s: float = math.inf, now_s: float = 0.0) -> Ticket[str]:
    return Ticket(tenant, 1.0, Priority.NORMAL, 10.0, deadline_s, now_s, tenant)


def running(turns: Turns[str], now_s: float, turn_s: float) -> float:
    """Learns that a turn takes `turn_s`; the time after that."""
    for _ in range(40):
        turns.join(ticket("learning", now_s=now_s), now_s)
    while turns.waiting:
        now_s += turn_s
        taken = turns.next(now_s)
        assert taken is not None
        turns.ended(taken.charge, 10.0)
    return now_s


def test_a_crowd_that_never_came_back_is_forgotten_when_nobody_waits() -> None:
    """Otherwise a caller waits for engines that are idle."""
    turns = Turns[str]("tiny", QueueSettings(max_waiting=100, max_waiting_per_tenant=40))
    now_s = running(turns, 0.0, 0.02)
    for _ in range(40):
        turns.join(ticket("a", now_s=now_s), now_s)
    for _ in range(1500):
        with pytest.raises(TenantQueueFull):
            turns.join(ticket("a", now_s=now_s), now_s)
    while turns.waiting:
        now_s += 0.02
        turns.next(now_s)
    now_s += 5.0
    for _ in range(40):
        turns.join(ticket("a", now_s=now_s), now_s)
    with pytest.raises(TenantQueueFull) as refused:
        turns.join(ticket("a", now_s=now_s), now_s)
    assert refused.value.retry_after_s is not None and refused.value.retry_after_s < 2.0


def test_what_one_tenant_is_told_says_nothing_of_anothers_crowd() -> None:
    turns = Turns[str]("tiny", QueueSettings(max_waiting=100, max_waiting_per_tenant=40))
    now_s = running(turns, 0.0, 0.02)
    for tenant in ("a", "b"):
        for _ in range(10):
            turns.join(ticket(tenant, now_s=now_s), now_s)

    def told(tenant: str) -> float:
        with pytest.raises(WaitTooLong) as refused:
            turns.join(ticket(tenant, now_s + 0.01, now_s), now_s)
        assert refused.value.retry_after_s is not None
        return refused.value.retry_after_s

    alone_s = told("b")
    for _ in range(1000):
        told("a")
    assert told("b") <= alone_s + 0.1
