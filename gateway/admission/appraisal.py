"""What a call may take, worked out before it runs, and what it is charged after: tokens, and what they cost.

A completion whose length the caller leaves open is guessed for rates, which are repaid when the guess was low. A budget
is not repaid by its next window, so there the length is bounded, by what is left of it, and the engine is told.
"""

import math
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from gateway.admission.cost import Cost, Estimator, charge
from gateway.admission.pricing import Pricing
from gateway.admission.quotas import Demand, Kind, Quota, Standing, Unit
from gateway.call import Call, Counted, Delivery, Usage
from gateway.settings import AdmissionSettings

Count = Callable[[Call], Awaitable[Counted | None]]
"""Counts the tokens of a call's prompt; None where they cannot be counted."""
Standings = Callable[[tuple[Quota, ...]], tuple[Standing, ...]]
"""How quotas stand now, as far as is known here."""
CALENDAR = (Kind.DAY, Kind.MONTH)
COUNTED = (Unit.TOKENS, Unit.COST)


class Appraisal(NamedTuple):
    """`call` is the call as it goes on: its completion may be bounded now where the caller left it open."""

    call: Call
    cost: Cost
    demand: Demand


class Charged(NamedTuple):
    """What a call is charged; `micros` in millionths of the cost unit."""

    usage: Usage
    micros: int


class Appraiser:
    """Knows what tokens calls take and cost, and learns it from what they took."""

    def __init__(self, settings: AdmissionSettings, pricing: Pricing, count: Count) -> None:
        self._estimator = Estimator(settings.completion_tokens)
        self._longest = settings.longest_completion
        self._exact = settings.count_tokens == "exact"
        self._pricing = pricing
        self._count = count

    async def appraise(self, call: Call, quotas: tuple[Quota, ...], standings: Standings) -> Appraisal:
        """What the call may take. Waits for an engine only where the tokens of its prompt have to be known exactly."""
        cost = self._estimator.estimate(call)
        bounded = cost.open_ended and any(quota.kind in CALENDAR for quota in quotas)
        if bounded or (self._exact and any(quota.unit in COUNTED for quota in quotas)):
            now = standings(quotas)
            # Nobody is asked about a call that is refused anyway.
            counted = await self._count(call) if all(standing.left > 0 for standing in now) else None
            if counted is not None:
                cost = cost._replace(prompt_tokens=counted.prompt_tokens)
            if bounded:
                each = self._affordable(call, cost, now, counted)
                cost = cost._replace(completion_tokens=each * call.choices)
                # An engine refuses a length that its context does not hold: without the count it is not told any.
                call = call if counted is None else call.capped(each)
        if cost.open_ended and not bounded:
            cost = _fitted(cost, quotas)
        micros = self._pricing.expected(call.model, cost.prompt_tokens, cost.completion_tokens)
        return Appraisal(call, cost, Demand(1, cost.total_tokens, micros))

    def charged(self, appraisal: Appraisal, delivery: Delivery, error: BaseException | None) -> Charged:
        """What the call has taken, now that it has ended."""
        call = appraisal.call
        usage = charge(call, appraisal.cost, delivery, error)
        self._estimator.learn(call, usage)
        return Charged(usage, self._pricing.charged(call.model, usage, delivery.replica_s))

    def _affordable(self, call: Call, cost: Cost, now: tuple[Standing, ...], counted: Counted | None) -> int:
        """The longest completion of a choice that all budgets and limits have room for: a token at least."""
        most = float(self._longest * call.choices)
        if counted is not None and counted.room is not None:
            most = min(most, counted.room * call.choices)
        for standing in now:
            quota = standing.quota
            left = standing.left if quota.kind in CALENDAR else quota.size
            if quota.unit is Unit.TOKENS:
                most = min(most, left - cost.prompt_tokens)
            elif quota.unit is Unit.COST:
                most = min(most, self._pricing.affordable(call.model, cost.prompt_tokens, left))
        return max(1, int(most) // call.choices)


def _fitted(cost: Cost, quotas: tuple[Quota, ...]) -> Cost:
    """A guessed completion must not make a call impossible that a small limit has room for."""
    room = math.inf
    for quota in quotas:
        if quota.unit is Unit.TOKENS and quota.size < room:
            room = quota.size
    if cost.total_tokens <= room:
        return cost
    return cost._replace(completion_tokens=max(1, int(room) - cost.prompt_tokens))
