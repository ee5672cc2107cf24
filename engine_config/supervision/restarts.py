"""Decides what follows a child's death: another start after a pause, or giving up.

Arithmetic on (record, death, jitter) and nothing else: no clock, no randomness, no process. Who died of what
is found out by the supervisor; how the pause is spent and how giving up is told is its business too.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient the supervisor is. Times in seconds."""

    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    healthy_s: float = 300.0
    """A child that was ready for so long has a clean record again."""
    window_s: float = 900.0
    most_deaths: int = 5
    """Deaths within the window that are one too many."""
    most_alike: int = 3
    """Deaths in a row while loading, for the same cause, that are one too many."""
    most_alike_unproven: int = 2
    """The same for a child that was never ready: a mistake is likelier there than bad luck."""


DEFAULT = Policy()


@dataclass(frozen=True, slots=True)
class Death:
    """One end of a child that nobody asked for. `at_s` is on the supervisor's monotonic clock."""

    at_s: float
    cause: str
    lasting: bool
    """The cause does not go away by itself: a damaged file, a missing instruction set."""
    ready_for_s: float | None
    """How long the child had been ready; None when it died while loading."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of a child between its lives."""

    deaths_s: tuple[float, ...] = ()
    alike: int = 0
    cause: str = ""
    proven: bool = False


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the child again after `pause_s` seconds."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start the child again; `why` is a clause for the one who reads it."""

    why: str


def after_death(record: Record, death: Death, policy: Policy, jitter: float) -> tuple[Record, Restart | GiveUp]:
    """The record with this death in it, and what to do now.

    `jitter` is in [0, 1): the pause lies between half of its back-off and all of it, so that children that
    died together do not load together.
    """
    record = _remembered(record, death, policy)
    if death.lasting and not record.proven:
        return record, GiveUp("it cannot start like this")
    most_alike = policy.most_alike if record.proven else policy.most_alike_unproven
    if record.alike >= most_alike:
        return record, GiveUp(f"it failed to start {record.alike} times for the same reason")
    if len(record.deaths_s) >= policy.most_deaths:
        return record, GiveUp(f"it died {len(record.deaths_s)} times within {policy.window_s / 60:g} minutes")
    pause_s = min(policy.longest_pause_s, policy.first_pause_s * 2.0 ** (len(record.deaths_s) - 1))
    return record, Restart(pause_s * (0.5 + jitter / 2))


def _remembered(record: Record, death: Death, policy: Policy) -> Record:
    was_ready = death.ready_for_s is not None
    if death.ready_for_s is not None and death.ready_for_s >= policy.healthy_s:
        record = Record()
    recent = tuple(at_s for at_s in record.deaths_s if death.at_s - at_s < policy.window_s)
    alike = 0 if was_ready else record.alike + 1 if death.cause == record.cause else 1
    return replace(
        record,
        deaths_s=(*recent, death.at_s),
        alike=alike,
        cause="" if was_ready else death.cause,
        proven=record.proven or was_ready,
    )
