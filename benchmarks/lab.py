"""Engines, trace sink, gateway and load, started for a measurement and ended after it; and what each of them took.

`Lab.bench` is everything a scenario runs in, and `Bench.measure` one job carried out there. Which jobs make a
scenario, and what its figures mean, is `benchmarks.scenarios`.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from benchmarks.cores import CorePlan
from benchmarks.gateways import UNLIMITED, Entry, Site
from benchmarks.http_get import NoAnswer, fetch
from benchmarks.jobs import Job, Kind, Outcome, Target, total
from benchmarks.measuring import Took, busy, took
from benchmarks.mock_engine import MODEL, RESET_PATH, STATS_PATH
from benchmarks.processes import Started, Trouble, free_ports, require_free, started
from benchmarks.script import Behaviour
from benchmarks.serving import HOST

ENGINES = 2
FULL = 0.9
"""A core this busy is taken to be full."""
NOISE = 0.1
ASIDE_S = 30.0
"""What a load process may take beyond what its job asks for."""


class RealEngine(NamedTuple):
    """An engine that the benchmark did not start."""

    url: str
    model: str


@dataclass(frozen=True, slots=True)
class Engines:
    """Where the engines are; the processes are ours, and none if the engine is real."""

    urls: tuple[str, ...]
    model: str
    processes: tuple[Started, ...] = ()

    @property
    def mock(self) -> bool:
        return bool(self.processes)

    async def stats(self) -> dict[str, Any]:
        """Counts of all engines together, `cancelled_at_us` in order."""
        each = [orjson.loads(await _ask(url, STATS_PATH)) for url in self.urls]
        counts = ("calls", "chunks", "done", "running", "waiting", "cancelled", "stalls", "malformed")
        moments = sorted(moment for one in each for moment in one["cancelled_at_us"])
        return {name: sum(one[name] for one in each) for name in counts} | {"cancelled_at_us": moments}

    async def reset(self) -> None:
        for url in self.urls:
            await _ask(url, RESET_PATH)


async def _ask(url: str, path: str) -> bytes:
    parts = urlsplit(url)
    try:
        status, body = await fetch(parts.hostname or HOST, parts.port or 80, path)
    except NoAnswer as error:
        raise Trouble(f"the mock engine at {url} does not answer: {error}") from None
    if status != 200:
        raise Trouble(f"the mock engine at {url} answers {status}")
    return body


class Look(NamedTuple):
    """All that is read of the machine at one moment."""

    at_s: float
    gateway: Took
    engine_cpu_s: float
    core_busy_s: float
    stolen_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One job: what came of it, and what was used meanwhile."""

    outcome: Outcome
    window_s: float
    gateway_cpu_s: float | None
    """None without a gateway of ours to look at."""
    engine_cpu_s: float
    rss_mib: float | None
    notes: list[str] = field(default_factory=list)
    gateway_full: bool = False
    load_full: bool = False

    def each_us(self, cpu_s: float | None, count: int) -> float | None:
        """Microseconds of processor time for each of so many; None where there were none."""
        return None if cpu_s is None or not count else cpu_s / count * 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A gateway before its engines, ready to be measured."""

    entry: Entry
    target: Target
    engines: Engines
    gateway: Started | None
    start_rss_mib: float | None
    cores: CorePlan
    folder: Path

    @property
    def real(self) -> bool:
        return not self.engines.mock

    async def measure(self, job: Job, before_go: Callable[[], Awaitable[object]] | None = None) -> Reading:
        """Carries a job out. Raises Trouble where a process of ours fails, or the gateway ends meanwhile."""
        job = replace(job, target=self.target, real=self.real)
        shares = job.shares(len(self.cores.load) if self.cores.apart else 1)
        patience_s = job.ramp_s + job.warm_s + job.grace_s + ASIDE_S
        async with AsyncExitStack() as up:
            workers = [await up.enter_async_context(self._worker(number)) for number in range(len(shares))]
            for worker, share in zip(workers, shares, strict=True):
                worker.tell(orjson.dumps(share.to_json()))
            for worker in workers:
                await self._said(worker, "ready", patience_s)
            if before_go is not None:
                await before_go()
            before = self._look()
            for worker in workers:
                worker.tell(b"go")
            for worker in workers:
                await self._said(worker, "measured", job.window_s + ASIDE_S)
            after = self._look()
            said = [await self._said(worker, "over", patience_s) for worker in workers]
        if self.gateway is not None and self.gateway.ended:
            raise self.gateway.trouble(f"ended while it was measured, with status {self.gateway.process.returncode}")
        return self._reading(job, total(Outcome.from_json(one["outcome"]) for one in said), before, after)

    def _worker(self, number: int) -> Any:
        command = [sys.executable, "-m", "benchmarks.load"]
        log = self.folder / f"load-{number}.log"
        return started("the load process", command, cores=self.cores.load, log=log, talks=True)

    async def _said(self, worker: Started, event: str, within_s: float) -> dict[str, Any]:
        said: dict[str, Any] = orjson.loads(await worker.line(within_s))
        if said["event"] != event:
            raise worker.trouble(f"said {said['event']}, not {event}")
        return said

    def _look(self) -> Look:
        gateway = took(self.gateway.pid) if self.gateway is not None else Took(0.0, 0.0)
        engine_cpu_s = sum(took(engine.pid).cpu_s for engine in self.engines.processes)
        core = busy(self.cores.gateway)
        return Look(time.monotonic(), gateway, engine_cpu_s, core.busy_s, core.stolen_s)

    def _reading(self, job: Job, outcome: Outcome, before: Look, after: Look) -> Reading:
        window_s = after.at_s - before.at_s
        gateway_cpu_s = after.gateway.cpu_s - before.gateway.cpu_s
        engine_cpu_s = after.engine_cpu_s - before.engine_cpu_s
        measured = self.gateway is not None
        notes = []
        if measured and self.cores.apart and job.kind is not Kind.LEAVE:
            other = (after.core_busy_s - before.core_busy_s - gateway_cpu_s) / window_s
            if other > NOISE:
                notes.append(f"other work took more than {NOISE:.0%} of the gateway's core")
        stolen = (after.stolen_s - before.stolen_s) / window_s
        if stolen > NOISE:
            notes.append(f"the machine's host took more than {NOISE:.0%} of the gateway's core")
        load_side = (outcome.cpu_s + engine_cpu_s) / window_s / len(self.cores.load_side)
        single = (
            max(outcome.cpu_s / max(1, len(self.cores.load)), engine_cpu_s / max(1, len(self.cores.engines))) / window_s
        )
        return Reading(
            outcome=outcome,
            window_s=window_s,
            gateway_cpu_s=gateway_cpu_s if measured else None,
            engine_cpu_s=engine_cpu_s,
            rss_mib=max(before.gateway.rss_mib, after.gateway.rss_mib) if measured else None,
            notes=notes,
            gateway_full=measured and gateway_cpu_s / window_s > FULL,
            load_full=max(load_side, single) > FULL,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """What is the same for every gateway."""

    cores: CorePlan
    folder: Path
    key: str
    secret: str
    engine_ports: tuple[int, ...] = ()
    real: RealEngine | None = None

    @asynccontextmanager
    async def bench(self, entry: Entry, *, slots: int | None = None, most: int = UNLIMITED) -> AsyncIterator[Bench]:
        """A gateway that answers rightly. Raises Trouble where it does not, with its last words.

        `slots` bounds each engine's concurrency, and `most` what the gateway may have running.
        """
        async with AsyncExitStack() as up:
            engines = await up.enter_async_context(self._engines(slots))
            traces = await up.enter_async_context(self._sink())
            port, spare = free_ports(2)
            site = Site(
                port=port,
                spare_port=spare,
                engines=engines.urls,
                model=engines.model,
                key=self.key,
                secret=self.secret,
                traces=traces,
                folder=self.folder,
                most=most,
            )
            gateway = await up.enter_async_context(self._gateway(entry, site))
            rss = took(gateway.pid).rss_mib if gateway is not None else None
            target = _target(entry, site)
            bench = Bench(
                entry=entry,
                target=target,
                engines=engines,
                gateway=gateway,
                start_rss_mib=rss,
                cores=self.cores,
                folder=self.folder,
            )
            await self._prove(bench)
            yield bench

    @asynccontextmanager
    async def _engines(self, slots: int | None) -> AsyncIterator[Engines]:
        if self.real is not None:
            yield Engines((self.real.url,), self.real.model)
            return
        ports = self.engine_ports or tuple(free_ports(ENGINES))
        require_free(ports)
        count = min(len(self.cores.engines), len(ports)) if self.cores.apart else 1
        async with AsyncExitStack() as up:
            processes = []
            for number in range(count):
                command = [sys.executable, "-m", "benchmarks.mock_engine", "--model", MODEL]
                command += ["--ports", ",".join(map(str, ports[number::count]))]
                command += ["--slots", str(slots)] if slots is not None else []
                processes.append(
                    await up.enter_async_context(self._server("the mock engine", command, self.cores.engines))
                )
            yield Engines(tuple(f"http://{HOST}:{port}" for port in ports), MODEL, tuple(processes))

    @asynccontextmanager
    async def _sink(self) -> AsyncIterator[str]:
        port = free_ports(1)[0]
        async with self._server(
            "the trace sink", [sys.executable, "-m", "benchmarks.sink", str(port)], self.cores.engines
        ):
            yield f"http://{HOST}:{port}"

    @asynccontextmanager
    async def _server(self, name: str, command: list[str], cores: tuple[int, ...]) -> AsyncIterator[Started]:
        """A server of the benchmark's own, once it listens; it ends when this process does, however that ends."""
        log = self.folder / f"{name.rpartition(' ')[2]}.log"
        async with started(name, command, cores=cores, log=log, talks=True) as server:
            await server.line(20.0)
            yield server

    @asynccontextmanager
    async def _gateway(self, entry: Entry, site: Site) -> AsyncIterator[Started | None]:
        """Started, and ready by its own account."""
        if entry.launch is None:
            yield None
            return
        missing = entry.missing()
        if missing is not None:
            raise Trouble(missing)
        launch = entry.launch(site)
        log = self.folder / f"{entry.name}.log"
        command = list(launch.command)
        # The pass-through is of ours: it ends with us, by the pipe.
        talks = "benchmarks.passthrough" in command
        async with started(
            entry.name, command, cores=self.cores.gateway, log=log, environment=launch.environment, talks=talks
        ) as gateway:
            await _ready(entry, site, gateway)
            yield gateway

    async def _prove(self, bench: Bench) -> None:
        """A gateway that answers the first calls wrongly is not measured."""
        for stream in (False, True):
            job = Job(
                kind=Kind.CLOSED,
                target=bench.target,
                behaviour=Behaviour(interval_ms=1),
                stream=stream,
                usage=stream,
                tokens=8,
                connections=2,
                warm_s=0.05,
                window_s=0.1,
                grace_s=60.0,
            )
            outcome = (await bench.measure(job)).outcome
            if outcome.errors or not outcome.checked:
                what = ", ".join(f"{count} x {kind}" for kind, count in outcome.errors.items()) or "no reply"
                said = next((sample for sample in outcome.samples.values() if sample), "")
                words = f"answers wrongly ({what}){f': {said}' if said else ''}"
                raise (
                    bench.gateway.trouble(words)
                    if bench.gateway is not None
                    else Trouble(f"{bench.entry.name} {words}")
                )


def _target(entry: Entry, site: Site) -> Target:
    headers = entry.headers(site)
    if entry.launch is not None:
        return Target(host=HOST, port=site.port, headers=headers, model=site.model)
    parts = urlsplit(entry.url or site.engines[0])
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Target(host=parts.hostname or HOST, port=parts.port or 80, path=path, headers=headers, model=site.model)


async def _ready(entry: Entry, site: Site, gateway: Started) -> None:
    late = time.monotonic() + entry.start_s
    path = entry.ready or "/health"
    said = "nothing"
    while time.monotonic() < late:
        if gateway.ended:
            raise gateway.trouble(f"ended with status {gateway.process.returncode} before it was ready")
        try:
            status, _ = await fetch(HOST, site.port, path, headers=entry.headers(site), within_s=2.0)
        except NoAnswer as error:
            said = str(error)
        else:
            if status == 200 or (entry.ready is None and status < 500):
                return
            said = f"status {status}"
        await asyncio.sleep(0.05)
    raise gateway.trouble(f"was not ready after {entry.start_s:.0f} s ({path}: {said})")
