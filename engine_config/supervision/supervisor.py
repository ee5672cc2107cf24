"""Runs child processes: starts them, watches them get ready, starts them again when they die, stops them.

Owns the tasks and the states of its children. What follows a death is decided by `restarts`, why it came by
`diagnosis`, what a loading worker is doing by `progress`. What the children are is for whoever makes their
specs: a worker and a gateway differ in their command and their probe only.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from engine_config.supervision.children import ChildSpec, Life, answers, living
from engine_config.supervision.diagnosis import Diagnosis, diagnose
from engine_config.supervision.held_groups import HeldGroups
from engine_config.supervision.progress import Progress, read
from engine_config.supervision.restarts import DEFAULT, Death, GiveUp, Policy, Record, Restart, after_death
from engine_config.supervision.words import Words


class State(Enum):
    """Where a child is. WAITING is before its start and between its lives; FAILED and STOPPED are final."""

    WAITING = "waiting"
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class News:
    """A child's state, or the progress of its loading, has changed; `note` says why, or is empty."""

    name: str
    state: State
    progress: Progress | None = None
    note: str = ""


class ChildFailed(Exception):
    """The supervisor has given a child up.

    Attributes:
        name: Which child.
        why: Why it is not started again.
        diagnosis: What it died of the last time, and what helps.
        last_words: What it wrote last, oldest line first.
        log: The file with everything that it wrote.
    """

    def __init__(self, name: str, why: str, diagnosis: Diagnosis, last_words: Sequence[str], log: Path) -> None:
        super().__init__(f"{name}: {diagnosis} ({why})")
        self.name = name
        self.why = why
        self.diagnosis = diagnosis
        self.last_words = tuple(last_words)
        self.log = log

    @property
    def remedy(self) -> str:
        return self.diagnosis.remedy


class _Child:
    """A child's state, changed by its own task alone (`stopping` and `bell` excepted)."""

    def __init__(self, spec: ChildSpec, log: Path, report: Callable[[News], None]) -> None:
        self.spec = spec
        self.log = log
        self.state = State.WAITING
        self.progress: Progress | None = None
        self.failure: ChildFailed | None = None
        self.life: Life | None = None
        self.stopping = False
        self.bell = asyncio.Event()
        self._report = report

    def __repr__(self) -> str:
        doing = f" ({self.progress})" if self.progress and self.state is State.LOADING else ""
        return f"{self.spec.name} {self.state.value}{doing}"

    def become(self, state: State, note: str = "", progress: Progress | None = None) -> None:
        self.state, self.progress = state, progress
        self._report(News(self.spec.name, state, progress, note))

    def hear(self, line: str) -> None:
        progress = read(line) if self.state is State.LOADING else None
        if progress and progress != self.progress:
            self.become(State.LOADING, progress=progress)

    async def rung(self, within_s: float | None) -> None:
        """Waits until something happened to the child, at most `within_s` seconds."""
        try:
            async with asyncio.timeout(within_s):
                await self.bell.wait()
        except TimeoutError:
            pass
        self.bell.clear()


class Supervisor:
    """Keeps children running inside its block; when the block is left, no process of theirs is.

    Args:
        children: What is to run; all are started at once, and those that are left are stopped at once.
        logs: Folder for one log file a child; it must exist.
        report: Called with what changes, in the event loop; it must return at once.
        policy: When to start again and when to give up.
        clock: Monotonic seconds.
        rng: The next number in [0, 1), for jitter.
        probe_pause_s: Between two questions whether a loading child is ready.
        environment: What the supervisor's own helper process inherits; None for all that we have.
    """

    def __init__(
        self,
        children: Sequence[ChildSpec],
        *,
        logs: Path,
        report: Callable[[News], None] = lambda _: None,
        policy: Policy = DEFAULT,
        clock: Callable[[], float] = time.monotonic,
        rng: Callable[[], float] = random.random,
        probe_pause_s: float = 0.25,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._told = report
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._probe_pause_s = probe_pause_s
        self._held = HeldGroups(environment)
        self._hurried = False
        self._children = {spec.name: _Child(spec, logs / f"{spec.name}.log", self._report) for spec in children}
        self._changed = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    def __repr__(self) -> str:
        return f"<Supervisor {', '.join(map(repr, self._children.values()))}>"

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._kept = self._tasks.create_task(self._held.kept())
        for child in self._children.values():
            self._tasks.create_task(self._keep(child))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            await self.stop(*self._children)
        except asyncio.CancelledError as cancelled:
            await self._tasks.__aexit__(type(cancelled), cancelled, None)  # ends what still runs, rudely
            raise
        self._kept.cancel()
        await self._tasks.__aexit__(None, None, None)

    @property
    def states(self) -> Mapping[str, State]:
        return {name: child.state for name, child in self._children.items()}

    @property
    def failures(self) -> tuple[ChildFailed, ...]:
        """The children that were given up, each with its last words."""
        return tuple(child.failure for child in self._children.values() if child.failure)

    async def changed(self) -> None:
        """Returns when a state or a progress has changed; then look at `states` and `failures`."""
        await self._changed.wait()

    async def ready(self) -> None:
        """Returns when all children are ready at the same time. Raises ChildFailed when one was given up."""
        while not all(child.state is State.READY for child in self._children.values()):
            for failure in self.failures:
                raise failure
            await self.changed()

    async def stop(self, *names: str) -> None:
        """Stops these children and returns when they have ended; those that were given up have."""
        for name in names:
            self._children[name].stopping = True
            self._children[name].bell.set()
        while any(self._children[name].state not in (State.STOPPED, State.FAILED) for name in names):
            await self.changed()

    def hurry(self) -> None:
        """Children that are being stopped, or will be, get little time for it; called again, none."""
        self._hurried = True
        for child in self._children.values():
            if child.life:
                child.life.hurry()

    def _report(self, news: News) -> None:
        # Those who wait are woken by the old event; who waits from now on waits for the next change.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._told(news)

    async def _keep(self, child: _Child) -> None:
        record = Record()
        try:
            with Words(child.log, child.hear) as words:
                while not child.stopping:
                    ready_for_s, diagnosis = await self._live(child, words)
                    if child.stopping:
                        return
                    death = Death(self._clock(), diagnosis.cause, diagnosis.lasting, ready_for_s)
                    record, verdict = after_death(record, death, self._policy, self._rng())
                    match verdict:
                        case Restart(pause_s=pause_s):
                            child.become(State.WAITING, f"{diagnosis}; it starts again in {pause_s:.1f} s")
                            await self._pause(child, pause_s)
                        case GiveUp(why=why):
                            child.failure = ChildFailed(child.spec.name, why, diagnosis, words.last, child.log)
                            return
        finally:
            # Also when a bug ends this task: whoever waits for the child must not wait for ever.
            if child.failure:
                child.become(State.FAILED, f"given up: {child.failure.diagnosis.cause}")
            else:
                child.become(State.STOPPED)

    async def _pause(self, child: _Child, pause_s: float) -> None:
        until_s = self._clock() + pause_s
        while not child.stopping and (left_s := until_s - self._clock()) > 0:
            await child.rung(left_s)

    async def _live(self, child: _Child, words: Words) -> tuple[float | None, Diagnosis]:
        """One life: for how long the child was ready (None: never), and of what it died."""
        started_s, ready_s = self._clock(), None
        too_slow = None
        child.become(State.LOADING)
        try:
            async with living(child.spec, words, self._held, child.bell.set) as child.life:
                if self._hurried:
                    child.life.hurry()
                while not child.life.is_over:
                    if child.stopping:
                        child.become(State.STOPPING)
                        if not await child.life.end(child.spec.grace_s):
                            child.become(State.STOPPING, f"it did not end within {child.spec.grace_s:g} s: killed")
                    elif child.state is State.READY:
                        await child.rung(None)
                    elif (
                        await answers(child.spec.host, child.spec.port, child.spec.probe_path)
                        and not child.life.is_over
                    ):
                        ready_s = self._clock()
                        child.become(State.READY)
                    elif self._clock() - started_s > child.spec.startup_timeout_s:
                        too_slow = f"it was not ready within {child.spec.startup_timeout_s:g} s"
                        await child.life.kill()
                    else:
                        await child.rung(self._probe_pause_s)
                died_s, status = self._clock(), child.life.status
        except OSError as error:
            return None, Diagnosis("it could not be started", "see whether it is installed", True, str(error))
        finally:
            child.life = None
        if too_slow:
            return None, Diagnosis(too_slow, "raise startup_timeout_s in the profile if it only needs longer", False)
        return None if ready_s is None else died_s - ready_s, diagnose(words.last, status)
