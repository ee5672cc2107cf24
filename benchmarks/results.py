"""What a run of the benchmark found: one `Run` a gateway, scenario and repetition; medians over repetitions; JSON.

How figures are shown is left to the reports; what they mean is said by `benchmarks.scenarios`.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.histogram import Histogram

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One scenario, once. A figure that could not be had is left out; `failure` is why none could."""

    gateway: str
    scenario: str
    repetition: int
    figures: dict[str, float] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    samples: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    curves: dict[str, dict[str, int]] = field(default_factory=dict)
    """Histograms, as JSON has them."""
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure over all repetitions."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that was found, and where."""

    facts: dict[str, str]
    """The machine, the versions and the command, as words."""
    gateways: dict[str, str]
    """What was measured, in order: a name and what it is."""
    scenarios: list[str]
    runs: list[Run]

    def of(self, gateway: str, scenario: str) -> list[Run]:
        return [run for run in self.runs if (run.gateway, run.scenario) == (gateway, scenario)]

    def figure(self, gateway: str, scenario: str, key: str) -> Figure | None:
        """None where no repetition has it."""
        found = [run.figures[key] for run in self.of(gateway, scenario) if key in run.figures]
        return Figure(median(found), min(found), max(found)) if found else None

    def errors(self, gateway: str, scenario: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for run in self.of(gateway, scenario):
            total.update(run.errors)
        return total

    def failure(self, gateway: str, scenario: str) -> str | None:
        return next((run.failure for run in self.of(gateway, scenario) if run.failure is not None), None)

    def curve(self, gateway: str, scenario: str, key: str) -> Histogram:
        histogram = Histogram()
        for run in self.of(gateway, scenario):
            histogram += Histogram.from_json(run.curves.get(key, {}))
        return histogram

    def notes(self) -> list[str]:
        """What has to be known about single figures, each thing once."""
        return unique(f"{run.gateway}, {run.scenario}: {note}" for run in self.runs for note in run.notes)

    @property
    def valid(self) -> bool:
        """Whether every run came to an end without an error."""
        return not any(run.errors or run.failure for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        medians = {
            gateway: {
                scenario: {
                    key: asdict(figure)
                    for key in unique(key for run in self.of(gateway, scenario) for key in run.figures)
                    if (figure := self.figure(gateway, scenario, key))
                }
                for scenario in self.scenarios
            }
            for gateway in self.gateways
        }
        return {"format": FORMAT, **asdict(self), "figures": medians}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "Results":
        """Raises ValueError for what no run of this benchmark wrote."""
        if given.get("format") != FORMAT:
            raise ValueError(f"not a result of this version of the benchmark (format {given.get('format')})")
        runs = [Run(**run) for run in given["runs"]]
        return cls(facts=given["facts"], gateways=given["gateways"], scenarios=given["scenarios"], runs=runs)


def unique(values: Iterable[str]) -> list[str]:
    """In the order in which they came."""
    return list(dict.fromkeys(values))
