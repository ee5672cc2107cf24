"""Rules that a replica must pass to be ranked at all: one function each, True to keep it."""

from collections.abc import Callable

from gateway.call import Call
from gateway.fleet.replica import Health, Replica

Filter = Callable[[Call, Replica], bool]


def is_up(call: Call, replica: Replica) -> bool:
    """It answered its last probe, and no call has shown otherwise since."""
    return replica.health is Health.UP


FILTERS: tuple[Filter, ...] = (is_up,)
