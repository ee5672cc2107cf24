"""A whole run: every repetition of every gateway in turn, so that what drifts on a machine drifts for all of them.

It owns the order, and what happens when something fails: the others go on. What is shown meanwhile is the
listener's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.descriptors import lacking
from benchmarks.findings import Size
from benchmarks.gateways import Entry
from benchmarks.lab import Lab
from benchmarks.processes import Trouble
from benchmarks.results import Results, Run
from benchmarks.scenarios import Scenario

START_S = 2.0
"""About what starting engines and a gateway takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured, and how much of it."""

    entries: Sequence[Entry]
    scenarios: Sequence[Scenario]
    size: Size
    repetitions: int

    def groups(self) -> list[list[Scenario]]:
        """Scenarios that one start of a gateway serves."""
        groups = ([one for one in self.scenarios if one.bounded is bounded] for bounded in (False, True))
        return [group for group in groups if group]

    @property
    def seconds(self) -> float:
        """About how long it takes."""
        each = 0.0
        for entry in self.entries:
            chosen = [one for one in self.scenarios if one.direct or not entry.is_direct]
            each += sum(one.seconds(self.size) for one in chosen) + START_S * len(self.groups())
        return each * self.repetitions


class Listener(Protocol):
    def began(self, entry: Entry, repetition: int, what: str) -> None:
        """Something is measured now, or started."""

    def ended(self, run: Run, seconds: float) -> None:
        """A scenario is over, that was thought to take so long."""


class Running:
    """A run under way; `results` grow with it."""

    def __init__(self, plan: Plan, lab: Lab, listener: Listener, facts: dict[str, str]) -> None:
        self._plan = plan
        self._lab = lab
        self._listener = listener
        self._dead: set[str] = set()
        """Gateways that did not start: they are not tried again."""
        self.results = Results(
            facts=facts,
            gateways={entry.name: entry.about for entry in plan.entries},
            scenarios=[scenario.name for scenario in plan.scenarios],
            runs=[],
        )

    async def run(self) -> Results:
        for repetition in range(self._plan.repetitions):
            for entry in self._plan.entries:
                for group in self._plan.groups():
                    await self._group(entry, group, repetition)
        return self.results

    async def _group(self, entry: Entry, group: Sequence[Scenario], repetition: int) -> None:
        """A gateway that fails at one scenario is started anew for the next."""
        left = []
        for scenario in group:
            reason = lacking(scenario.name, scenario.descriptors)
            if entry.name in self._dead:
                reason = "it did not start in the first repetition"
            if entry.is_direct and not scenario.direct:
                continue
            if reason is not None:
                self._ended(Run(gateway=entry.name, scenario=scenario.name, repetition=repetition, failure=reason), 0.0)
            else:
                left.append(scenario)
        while left:
            started = False
            try:
                self._listener.began(entry, repetition, "starts")
                slots, most = left[0].slots(self._plan.size), left[0].most(self._plan.size)
                async with self._lab.bench(entry, slots=slots, most=most) as bench:
                    started = True
                    while left:
                        self._listener.began(entry, repetition, left[0].name)
                        found = await left[0].measure(bench, self._plan.size)
                        scenario = left.pop(0)
                        run = Run(
                            gateway=entry.name,
                            scenario=scenario.name,
                            repetition=repetition,
                            figures=found.figures,
                            errors=dict(found.errors),
                            samples=found.samples,
                            notes=found.notes,
                            curves=found.curves,
                        )
                        self._ended(run, scenario.seconds(self._plan.size))
            except Trouble as trouble:
                failed = left[:1] if started else left
                if not started:
                    self._dead.add(entry.name)
                for scenario in failed:
                    run = Run(gateway=entry.name, scenario=scenario.name, repetition=repetition, failure=str(trouble))
                    self._ended(run, scenario.seconds(self._plan.size))
                left = left[len(failed) :]

    def _ended(self, run: Run, seconds: float) -> None:
        self.results.runs.append(run)
        self._listener.ended(run, seconds)
