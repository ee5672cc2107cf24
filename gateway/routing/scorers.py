"""Preferences between replicas that may serve a call: one function each, from 0 (worst) to 1 (best)."""

from collections.abc import Callable

from gateway.call import Call
from gateway.fleet.replica import Replica

Scorer = Callable[[Call, Replica], float]


def idleness(call: Call, replica: Replica) -> float:
    """Few calls: ours in flight, or those the engine reports, whichever is more (its report is older)."""
    return 1.0 / (1.0 + max(replica.in_flight, replica.load.running + replica.load.waiting))


def free_kv(call: Call, replica: Replica) -> float:
    """Room in the KV cache: a full one preempts calls."""
    return 1.0 - replica.load.kv_usage
