"""Which process runs on which core, so that what is measured shares its core with nothing that measures.

With a single core there is nothing to divide, and the result says so.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CorePlan:
    """Cores by role; the engines' and the load's may be the same, the gateway's is its own where it can be."""

    gateway: tuple[int, ...]
    engines: tuple[int, ...]
    load: tuple[int, ...]

    @property
    def apart(self) -> bool:
        """Whether the gateway has a core of its own."""
        return not set(self.gateway) & {*self.engines, *self.load}

    @property
    def load_side(self) -> frozenset[int]:
        return frozenset((*self.engines, *self.load))

    def __str__(self) -> str:
        roles = {"gateway": self.gateway, "engines": self.engines, "load": self.load}
        return ", ".join(f"{role} on {'+'.join(map(str, cores))}" for role, cores in roles.items())


def plan(cores: Mapping[int, int]) -> CorePlan:
    """Who gets which of these cores, each given with the first of those it shares a physical core with.

    The gateway has one core, and no other process runs on its physical core where there are cores enough. Engines and
    load have one each of a machine with three or four, two each beyond.
    """
    free = sorted(cores)
    own = free.pop(0)
    if not free:
        return CorePlan((own,), (own,), (own,))
    distant = [core for core in free if cores[core] != cores[own]]
    others = distant if len(distant) >= 2 else free
    if len(others) == 1:
        return CorePlan((own,), (others[0],), (others[0],))
    each = 2 if len(others) >= 4 else 1
    return CorePlan((own,), tuple(others[:each]), tuple(others[each : 2 * each]))


def usable_cores() -> dict[int, int]:
    """The cores this process may use, each with the first of its siblings."""
    found = {}
    for core in os.sched_getaffinity(0):
        found[core] = core
        with suppress(OSError, ValueError):
            text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
            found[core] = int(text.replace("-", ",").split(",")[0])
    return found


@contextmanager
def pinned(cores: tuple[int, ...]) -> Iterator[None]:
    """Processes started inside run on these cores alone, as do all of their threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
