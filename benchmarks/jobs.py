"""What a load process is told to do, and what it answers: the values that cross the pipe, as JSON.

Who carries a job out is `benchmarks.load`; who divides it among processes and adds up what they say is
`benchmarks.bench`.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import reduce
from typing import Any

from benchmarks.histogram import Histogram
from benchmarks.script import Asked, Behaviour, ask

NUMBERS_A_PROCESS = 10_000_000
"""Calls have numbers of eight digits; each load process has a range of its own."""


class Kind(StrEnum):
    CLOSED = "closed"
    """So many connections, each sending its next call when it has the reply to the last."""
    OPEN = "open"
    """So many calls a second, whatever becomes of them."""
    HOLD = "hold"
    """So many streams that are all open at the same time, and live calls meanwhile."""
    LEAVE = "leave"
    """So many calls that are all under way, and then given up at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where calls go. `path` is before `/v1/...`."""

    host: str
    port: int
    path: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    model: str

    def at(self, port: int) -> "Target":
        return replace(self, port=port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One measurement, as the load side sees it; durations in seconds."""

    kind: Kind
    target: Target
    behaviour: Behaviour = field(default_factory=Behaviour)
    stream: bool = False
    tokens: int = 16
    usage: bool = False
    connections: int = 0
    rate: float = 0.0
    """Calls a second: of an open job all of them, of a hold the live ones."""
    ramp_s: float = 0.0
    """Over which connections are opened; closed loops begin so far apart."""
    warm_s: float = 0.5
    window_s: float = 4.0
    grace_s: float = 5.0
    """How long replies may take to end once no new call is made."""
    begun: int = 0
    """A call of a hold or a leave is under way when it has so many tokens."""
    good_within_s: float = 1.0
    """An open job's reply is good when its first token comes within this time."""
    may_refuse: bool = False
    """429 and 503 are refusals, and no errors."""
    real: bool = False
    """The engine is none of ours: what it says is not known."""
    seed: int = 1
    first_number: int = 0

    def asked(self) -> Asked:
        return ask(self.target.model, self.behaviour, stream=self.stream, tokens=self.tokens, usage=self.usage)

    def asked_live(self) -> Asked:
        return ask(self.target.model, Behaviour(), stream=False, tokens=16)

    def shares(self, processes: int) -> list["Job"]:
        """The job divided evenly; processes that would have nothing to do are left out."""
        count = max(1, min(processes, self.connections or processes))
        return [
            replace(
                self,
                connections=self.connections // count + (number < self.connections % count),
                rate=self.rate / count,
                seed=self.seed * 1000 + number,
                first_number=number * NUMBERS_A_PROCESS,
            )
            for number in range(count)
        ]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"behaviour": list(self.behaviour)}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "Job":
        target = given["target"]
        headers = tuple((name, value) for name, value in target["headers"])
        return cls(
            **given
            | {
                "kind": Kind(given["kind"]),
                "target": Target(**target | {"headers": headers}),
                "behaviour": Behaviour(*given["behaviour"]),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a job. Counts and durations are of the window, errors of the whole job."""

    calls: int = 0
    """Replies that were right."""
    good: int = 0
    refused: int = 0
    chunks: int = 0
    cpu_s: float = 0.0
    """Of the load processes."""
    window_s: float = 0.0
    checked: int = 0
    """Replies that ended, right or wrong, from the first to the last call."""
    errors: Counter[str] = field(default_factory=Counter)
    samples: dict[str, str] = field(default_factory=dict)
    """For a kind of error what one of them looked like."""
    durations: dict[str, Histogram] = field(default_factory=dict)
    left_at_us: int = 0

    def __add__(self, other: "Outcome") -> "Outcome":
        names = self.durations.keys() | other.durations.keys()
        empty = Histogram()
        return Outcome(
            calls=self.calls + other.calls,
            good=self.good + other.good,
            refused=self.refused + other.refused,
            chunks=self.chunks + other.chunks,
            cpu_s=self.cpu_s + other.cpu_s,
            window_s=max(self.window_s, other.window_s),
            checked=self.checked + other.checked,
            errors=self.errors + other.errors,
            samples=other.samples | self.samples,
            durations={n: self.durations.get(n, empty) + other.durations.get(n, empty) for n in names},
            left_at_us=max(self.left_at_us, other.left_at_us),
        )

    def of(self, name: str) -> Histogram:
        """The durations of that name; an empty histogram where none were measured."""
        return self.durations.get(name, Histogram())

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "durations"}
        return plain | {"durations": {name: histogram.to_json() for name, histogram in self.durations.items()}}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "Outcome":
        durations = {name: Histogram.from_json(counts) for name, counts in given["durations"].items()}
        return cls(**given | {"errors": Counter(given["errors"]), "durations": durations})


def total(outcomes: Iterable[Outcome]) -> Outcome:
    return reduce(Outcome.__add__, outcomes, Outcome())
