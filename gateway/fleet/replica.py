"""Replicas, and the snapshot of them: all that routing and upstream may know of the fleet."""

import enum
from dataclasses import dataclass
from typing import NamedTuple

from gateway.http1 import Address


class Health(enum.Enum):
    """What probes and calls have shown of a replica."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


class Blame(enum.Enum):
    """What a failed attempt says about the replica that it was made on."""

    UNREACHABLE = "unreachable"
    FAULT = "fault"
    BUSY = "busy"
    SLOW = "slow"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine's metrics say. `kv_usage` is the used share of its KV cache, 0 to 1.

    `deferred` are those of the waiting that wait for something else than room: an adapter, a transfer.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    deferred: int = 0


@dataclass(slots=True, eq=False)
class Replica:
    """One engine process. The fleet alone changes it; `in_flight` counts this gateway's own open attempts.

    `calls_at_once` is how many calls the settings say it runs, `learnt` how many it was seen to. `of_others` are those
    that it held of others at the last probe; `refused` is set from the time it refuses a call to the next probe.
    """

    name: str
    model: str
    address: Address
    health: Health = Health.UNKNOWN
    load: Load = Load()
    in_flight: int = 0
    calls_at_once: int | None = None
    learnt: float | None = None
    of_others: int = 0
    refused: bool = False
    context_tokens: int | None = None
    why_down: str = "not probed yet"

    def __repr__(self) -> str:
        state = self.health.value if self.health is Health.UP else f"{self.health.value}: {self.why_down}"
        return f"<Replica {self.name} {state}, {self.in_flight} in flight>"


class Snapshot(NamedTuple):
    """The replicas at one moment, by canonical model name. Read it without awaiting in between."""

    pools: dict[str, tuple[Replica, ...]]

    def of(self, model: str) -> tuple[Replica, ...]:
        return self.pools.get(model, ())
