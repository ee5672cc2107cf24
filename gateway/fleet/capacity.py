"""How many more calls engines can take now: arithmetic on what probes told and what was sent since.

An engine that is given more than it runs keeps the rest in a queue of its own, first come first served: calls that
wait there are out of reach. So it is given what it runs and a little more, its next work. Who gets that is left to
the queue of the model.
"""

import math
from collections.abc import Iterable

from gateway.fleet.replica import Health, Load, Replica
from gateway.settings import QueueSettings

# How fast what was learnt follows an engine that runs less or more than that, from probe to probe.
DESCENT = 0.8
ASCENT = 1.25


def learnt(before: float | None, load: Load) -> float | None:
    """How many calls an engine runs at once, after one more look at it; None while that was never seen.

    It has been seen when calls waited in it for room, not for an adapter or a transfer. What it runs at that moment is
    approached from above, since a burst of prompts that are only being read looks the same; and it is never less than
    what it runs. An engine that runs as many and lets none wait may be able to run more: it is tried.
    """
    if load.waiting > load.deferred:
        held = load.running + load.waiting - load.deferred
        return max(load.running, 1, DESCENT * (held if before is None else min(before, held)))
    if before is not None and load.running >= before:
        return ASCENT * load.running
    return before


def of_others(load: Load, in_flight: int) -> int:
    """Calls that an engine holds from elsewhere, at a time when this gateway had so many of its own there."""
    return max(0, load.running + load.waiting - in_flight)


def room(replica: Replica, settings: QueueSettings) -> float:
    """How many more calls a replica can take now, infinite while nobody knows.

    One on which this gateway has nothing can always take one: an engine whose last calls were aborted may report them
    until it runs another (vLLM issue 29928), and nobody would ever send it one.
    """
    if replica.health is not Health.UP or replica.refused:
        return 0
    runs = replica.calls_at_once if replica.calls_at_once is not None else replica.learnt
    if replica.load.kv_usage > settings.kv_ceiling:
        free = 0.0
    elif runs is None:
        free = math.inf
    else:
        free = int(runs) + max(1, math.ceil(settings.backlog * runs)) - replica.in_flight - replica.of_others
    return max(free, 0 if replica.in_flight else 1)


def has_room(replicas: Iterable[Replica], granted: int, settings: QueueSettings) -> bool:
    """Whether a pool takes one more call, where `granted` calls have had their turns and are on no replica yet.

    A pool in which no replica is up takes any: nobody should wait for an engine that is not there.
    """
    free, up = -float(granted), False
    for replica in replicas:
        if replica.health is Health.UP:
            up = True
            free += room(replica, settings)
            if free >= 1:
                return True
    return not up
