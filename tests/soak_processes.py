"""The processes of a soak: a gateway as it is served, and engines that fail now and then and can be killed."""

import asyncio
import json
import os
import random
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tests.engines import ScriptedEngine
from tests.harness import KEY, MODEL, SECRET, key
from tests.soak_callers import CANARY, PATIENCE_S, SLOW_READER_S, WORDS
from tests.wire_client import WireClient


class Sample(NamedTuple):
    """The gateway at one moment. `calls` have ended so far; `plateau` counts from 0, `resting`: nobody calls."""

    at_s: float
    plateau: int
    resting: bool
    calls: int
    rss_bytes: int
    files: int
    running: int
    in_flight: int
    connections: int


class Reachable(Protocol):
    """An engine, as far as a gateway has to know of it."""

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...


async def until(fact: Callable[[], Awaitable[bool]], within_s: float = PATIENCE_S) -> bool:
    """Asks until the fact is true or the time is over; whether it came true."""
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + within_s
    while not await fact():
        if loop.time() > ends_s:
            return False
        await asyncio.sleep(0.1)
    return True


async def be_an_engine(name: str, port: int) -> None:
    """Serves until it is killed or its parent is gone, and gets something wrong now and then."""
    rng, parent = random.Random(name), os.getppid()
    troubles: tuple[Callable[[ScriptedEngine], None], ...] = (
        lambda engine: engine.dies_before_headers(calls=1),
        lambda engine: engine.dies_after_headers("fin", calls=1),
        lambda engine: engine.dies_after(3, calls=1),
        lambda engine: engine.dies_after(3, "fin", calls=1),
        lambda engine: engine.fails_with(500, calls=1),
        lambda engine: engine.overflows(calls=1),
        lambda engine: engine.error_event_after(3, calls=1),
        lambda engine: engine.omits_done(calls=1),
        lambda engine: engine.omits_usage(calls=1),
        lambda engine: engine.closes_idle("reset"),
    )
    async with ScriptedEngine(name, MODEL, max_model_len=100_000, port=port, recording=False) as engine:
        engine.says(*WORDS, forever=True)
        engine.paces(gap_s=0.0005, chunks_per_write=2)
        print(engine.port, flush=True)
        while os.getppid() == parent:
            rng.choice(troubles)(engine)
            await asyncio.sleep(rng.uniform(0.02, 0.2))


class EngineProcess:
    """An engine that can be killed, and comes back on its port. Use as `async with`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> "EngineProcess":
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.kill()

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.soak", "--engine", self.name, "--port", str(self.port)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.port = int(await self._process.stdout.readline())

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class Gateway:
    """The gateway's process. `alarming` are log lines that must not be."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.alarming: list[str] = []

    async def listening(self, engines: int) -> None:
        """Waits until it serves, with so many engines."""
        async with asyncio.timeout(PATIENCE_S):
            self.url = f"http://127.0.0.1:{await self._port}"

        async def all_up() -> bool:
            return (await self.metrics())["pagegate_replica_up"] == engines

        assert await until(all_up), "the engines did not come up"

    async def read_log(self) -> None:
        assert self._process.stderr is not None
        while line := (await self._process.stderr.readline()).decode():
            if any(secret in line for secret in (CANARY, KEY, SECRET)) or '"level":"error"' in line:
                self.alarming.append(line)
            elif not self._port.done() and '"event":"listening"' in line:
                self._port.set_result(json.loads(line)["port"])
        if not self._port.done():
            self._port.set_exception(RuntimeError("the gateway did not start"))

    async def metrics(self) -> Counter[str]:
        """The metrics, summed over their labels."""
        async with WireClient(self.url, within_s=PATIENCE_S) as client:
            lines = (await client.get("/metrics")).body.decode().splitlines()
        found: Counter[str] = Counter()
        for line in lines:
            series, _, value = line.rpartition(" ")
            if not line.startswith("#"):
                found[series.partition("{")[0]] += int(float(value))
        return found

    async def sample(self, at_s: float, plateau: int, *, resting: bool) -> Sample:
        metrics = await self.metrics()
        own = Path("/proc", str(self._process.pid))
        pages = int((own / "statm").read_text().split()[1])
        return Sample(
            at_s,
            plateau,
            resting,
            calls=metrics["pagegate_calls_total"],
            rss_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
            files=len(os.listdir(own / "fd")),
            running=metrics["pagegate_running_calls"],
            in_flight=metrics["pagegate_replica_in_flight"],
            connections=metrics["pagegate_connections"],
        )

    async def stop(self) -> int:
        """Its exit status after SIGTERM."""
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()


def written(file: Path, settings: dict[str, Any]) -> str:
    file.write_text(json.dumps(settings))
    return str(file)


@asynccontextmanager
async def gateway(engines: Sequence[Reachable], *, files: int | None = None) -> AsyncIterator[Gateway]:
    """A gateway process that serves; killed if it is still there after the block. `files`: so many may be open."""
    settings = {
        "server": {"port": 0, "slow_reader_s": SLOW_READER_S, "drain_timeout_s": 5},
        "identity": {"secret": SECRET, "keys": [key("soak")]},
        "models": [{"name": MODEL, "replicas": [{"name": it.name, "url": it.url} for it in engines]}],
        "fleet": {"probe_interval_s": 0.2},
        "upstream": {"idle_connection_s": 1, "first_token_timeout_s": 10, "gap_timeout_s": 10},
    }
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PAGEGATE_")}
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "serve", "--config", written(Path(folder, "pagegate.yaml"), settings)),
            stderr=asyncio.subprocess.PIPE,
            env=environ,
        )
        if files is not None:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (files, files))
        found = Gateway(process)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(found.read_log())
                await found.listening(len(engines))
                yield found
                status = await found.stop()
                if status:
                    found.alarming.append(f"it left with status {status}")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
