"""A load process: `python -m benchmarks.load`, told what to do on standard input (`benchmarks.jobs`).

It says `ready` when calls flow, measures for the window when it is told to, says `measured` at the window's end and
`over`, with everything it found, when each reply has ended. Standard input ending ends it.
"""

import asyncio
import gc
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson
import uvloop

from benchmarks.checks import Durations
from benchmarks.client import Call, Connection, Letter
from benchmarks.histogram import Histogram
from benchmarks.jobs import Job, Kind, Outcome
from benchmarks.script import now_us

UNFINISHED = "reply that does not end"
NO_CONNECTION = "no connection"
STRAY = "bytes nobody asked for"
LATE_US = 2000
"""Timers have a grain of a millisecond: a call sent this late is taken to be on time, one sent later is not."""
AGAIN_S = 0.05
SETTLE_S = 0.3
POLL_S = 0.02


class Load:
    """Connections, the calls on them, and what was found."""

    def __init__(self, job: Job, group: asyncio.TaskGroup) -> None:
        self.durations = Durations()
        self.live = Durations()
        self.errors: Counter[str] = Counter()
        self.samples: dict[str, str] = {}
        self.right = self.good = self.refused = self.checked = 0
        self.calling = True
        self.open: set[Connection] = set()
        """Those with a call under way."""
        self._job = job
        self._group = group
        self._letter = Letter(job.target, job.asked())
        self._live_letter = Letter(job.target, job.asked_live())
        self._number = job.first_number
        self._idle: list[Connection] = []
        self._connecting = 0

    @property
    def under_way(self) -> int:
        return len(self.open) + self._connecting

    # What connections say.

    def over(self, connection: Connection, call: Call, errors: Counter[str] | None) -> None:
        self.open.discard(connection)
        self.checked += 1
        job = self._job
        if errors and job.may_refuse and call.refused:
            self.refused += 1
            call.durations.refusal.append(connection.now_us - call.at_us)
        elif errors:
            self.errors += errors
            for kind in errors:
                if kind not in self.samples:
                    self.samples[kind] = b"".join(call.body)[:200].decode("utf-8", "replace")
        else:
            self._right(call, connection.now_us)
        if job.kind is Kind.CLOSED:
            if self.calling:
                self._next(connection)
        elif connection.usable:
            self._idle.append(connection)

    def stray(self) -> None:
        self.errors[STRAY] += 1

    def _right(self, call: Call, at_us: int) -> None:
        durations = call.durations
        durations.latency.append(at_us - call.at_us)
        first_us = call.check.first_us if call.check is not None else at_us
        if call.check is not None:
            durations.ttft.append(first_us - call.at_us)
        if durations is self.durations:
            self.right += 1
            if first_us - call.at_us <= self._job.good_within_s * 1e6:
                self.good += 1

    # Calls.

    def _next(self, connection: Connection) -> None:
        """The next call of a closed loop."""
        if connection.usable:
            self._send(connection, self._letter, now_us(), self.durations)
        else:
            self._group.create_task(self.loop(AGAIN_S))

    def _send(self, connection: Connection, letter: Letter, at_us: int, durations: Durations) -> None:
        self._number += 1
        self.open.add(connection)
        connection.send(letter, Call(letter, self._number, at_us, durations, real=self._job.real))

    async def _connection(self) -> Connection | None:
        """A new connection; None, and an error counted, where there is none to be had."""
        target = self._job.target
        loop = asyncio.get_running_loop()
        self._connecting += 1
        try:
            async with asyncio.timeout(self._job.grace_s + 5):
                _, connection = await loop.create_connection(lambda: Connection(self), target.host, target.port)
        except (OSError, TimeoutError) as error:
            self.errors[NO_CONNECTION] += 1
            self.samples.setdefault(NO_CONNECTION, str(error))
            return None
        finally:
            self._connecting -= 1
        return connection

    async def loop(self, after_s: float) -> None:
        """One connection of a closed loop; another attempt where there is none."""
        await asyncio.sleep(after_s)
        while self.calling:
            connection = await self._connection()
            if connection is not None:
                self._next(connection)
                return
            await asyncio.sleep(AGAIN_S)

    async def single(self, after_s: float) -> None:
        """One call on a new connection."""
        await asyncio.sleep(after_s)
        connection = await self._connection()
        if connection is not None:
            self._send(connection, self._letter, now_us(), self.durations)

    async def at_rate(self, rate: float, *, live: bool) -> None:
        """Calls at moments that were fixed before, for as long as calls are made; connections are used again."""
        letter, durations = (self._live_letter, self.live) if live else (self._letter, self.durations)
        rng = random.Random(self._job.seed)
        due_us = float(now_us())
        while True:
            due_us += rng.expovariate(rate) * 1e6
            while (early_us := due_us - now_us()) > 0:  # noqa: ASYNC110 - a clock, no event
                await asyncio.sleep(early_us / 1e6)
            if not self.calling:
                return
            late_us = now_us() - due_us
            at_us = int(due_us) if late_us > LATE_US else now_us()
            while self._idle and not self._idle[-1].usable:
                self._idle.pop()
            if self._idle:
                self._send(self._idle.pop(), letter, at_us, durations)
            else:
                self._group.create_task(self._on_new(letter, at_us, durations))

    async def _on_new(self, letter: Letter, at_us: int, durations: Durations) -> None:
        connection = await self._connection()
        if connection is not None:
            self._send(connection, letter, at_us, durations)

    # The phases of a job.

    async def begin(self) -> None:
        """Returns when calls flow as they shall while they are measured."""
        job = self._job
        if job.kind is Kind.OPEN:
            self._group.create_task(self.at_rate(job.rate, live=False))
            await asyncio.sleep(job.warm_s)
            return
        one = self.loop if job.kind is Kind.CLOSED else self.single
        for number in range(job.connections):
            self._group.create_task(one(number * job.ramp_s / job.connections))
        if job.kind is Kind.CLOSED:
            await asyncio.sleep(job.ramp_s + job.warm_s)
            return
        await asyncio.sleep(job.ramp_s)
        await self._until(self._all_begun, job.grace_s)
        await asyncio.sleep(SETTLE_S)

    def _all_begun(self) -> bool:
        least = self._job.begun
        made = self._number - self._job.first_number + self.errors[NO_CONNECTION]
        return made >= self._job.connections and all(
            connection.call is None or connection.call.check is None or connection.call.check.chunks >= least
            for connection in self.open
        )

    async def window(self) -> None:
        if self._job.kind is Kind.HOLD and self._job.rate:
            self._group.create_task(self.at_rate(self._job.rate, live=True))
        await asyncio.sleep(self._job.window_s)

    async def end(self) -> None:
        """No new calls; those under way may end, and what does not is an error."""
        self.calling = False
        await self._until(lambda: not self.under_way, self._job.grace_s)
        if self.open:
            self.errors[UNFINISHED] += len(self.open)
        for connection in (*self.open, *self._idle):
            connection.abandon()

    def leave(self) -> int:
        """All callers go at once; the moment, in microseconds."""
        at_us = now_us()
        for connection in self.open:
            connection.abandon()
        self.open.clear()
        return at_us

    async def _until(self, fact: Callable[[], bool], within_s: float) -> None:
        late = time.monotonic() + within_s
        while not fact() and time.monotonic() < late:  # noqa: ASYNC110 - cheaper than an event a chunk
            await asyncio.sleep(POLL_S)


class Window:
    """What was counted between its two ends."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._from = self._now()
        self._to = self._from

    def _now(self) -> tuple[float, float, int, int, int, dict[str, int]]:
        load = self._load
        return (time.process_time(), time.monotonic(), load.right, load.good, load.refused, load.durations.reached())

    def close(self) -> None:
        self._to = self._now()

    def outcome(self, left_at_us: int = 0) -> Outcome:
        """Rates are of the window; latencies of all calls that ended after it began, however late."""
        load = self._load
        cpu_s, at_s, right, good, refused, reached = self._from
        cpu_end_s, end_s, right_end, good_end, refused_end, reached_end = self._to
        durations = {}
        for name, begin in reached.items():
            of_window = name in ("delay", "gap")
            values = getattr(load.durations, name)
            durations[name] = Histogram(values[begin : reached_end[name] if of_window else None])
        durations["live"] = Histogram(load.live.latency)
        chunks = "delay" if reached_end["delay"] else "gap"
        return Outcome(
            calls=right_end - right,
            good=good_end - good,
            refused=refused_end - refused,
            chunks=reached_end[chunks] - reached[chunks],
            cpu_s=cpu_end_s - cpu_s,
            window_s=end_s - at_s,
            checked=load.checked,
            errors=load.errors,
            samples=load.samples,
            durations=durations,
            left_at_us=left_at_us,
        )


class ParentGone(Exception):
    """Nobody listens any more."""


async def work(job: Job, told: Callable[[], Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Carries a job out; `told` waits for the word to go on."""
    async with asyncio.TaskGroup() as group:
        load = Load(job, group)
        await load.begin()
        say({"event": "ready"})
        await told()
        window = Window(load)
        if job.kind is Kind.LEAVE:
            left_at_us = load.leave()
            window.close()
            say({"event": "measured"})
            await load.end()
            say({"event": "over", "outcome": window.outcome(left_at_us).to_json()})
            return
        await load.window()
        window.close()
        say({"event": "measured"})
        await load.end()
        say({"event": "over", "outcome": window.outcome().to_json()})


def say(line: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(line) + b"\n")
    sys.stdout.buffer.flush()


async def main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    job = Job.from_json(orjson.loads(await reader.readline()))
    gc.disable()
    go = asyncio.Event()

    async def listen() -> None:
        while await reader.readline():
            go.set()
        raise ParentGone

    async with asyncio.TaskGroup() as group:
        listening = group.create_task(listen())
        await work(job, go.wait, say)
        listening.cancel()


if __name__ == "__main__":
    try:
        uvloop.run(main())
    except* ParentGone:
        sys.exit(1)
