"""One real vLLM worker with the bundled model for the whole run, and a receiver for its spans and the gateway's."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.harness import Harness, gateway
from tests.otlp_receiver import OtlpReceiver
from tests.wire_client import WireClient

MODEL = "smollm2-135m-instruct"
PROFILE = "smollm2-135m-cpu"
READY = b"Application startup complete"
START_S = 400


@dataclass(frozen=True)
class Worker:
    """A real engine, and what its own metrics say."""

    url: str
    process: asyncio.subprocess.Process

    async def counter(self, name: str) -> float:
        """A metric of the engine, added over its labels."""
        async with WireClient(self.url) as client:
            text = (await client.get("/metrics")).body.decode()
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert values, f"the engine has no metric {name}"
        return sum(map(float, values))

    async def until_idle(self, within_s: float) -> None:
        """Waits until the engine runs nothing, looking every 20 ms: there is nothing of a real engine to wait on."""
        async with asyncio.timeout(within_s):
            while await self.counter("vllm:num_requests_running"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def until_running(self, within_s: float) -> None:
        """Waits until the engine runs a call."""
        async with asyncio.timeout(within_s):
            while not await self.counter("vllm:num_requests_running"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def chat(self, body: dict[str, Any]) -> Any:
        """The engine's own answer, without a gateway."""
        async with WireClient(self.url, within_s=120) as client:
            return (await client.post("/v1/chat/completions", json=body)).json


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def started(*arguments: str, ready: bytes, within_s: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child process in a group of its own that has printed `ready`; SIGTERM ends it, at worst SIGKILL its group."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        limit=2**20,
    )
    assert process.stdout is not None
    words: list[bytes] = []
    drained: asyncio.Task[bytes] | None = None
    try:
        async with asyncio.timeout(within_s):
            while True:
                line = await process.stdout.readline()
                words.append(line)
                if ready in line:
                    break
                assert line, "it ended while starting:\n" + b"".join(words[-40:]).decode()
        drained = asyncio.get_running_loop().create_task(process.stdout.read())
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(60):
                    await process.wait()
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if drained is not None:
            await drained


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder for the whole run: the bundled model is made in it once."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
async def otlp(anyio_backend: str) -> AsyncIterator[OtlpReceiver]:
    async with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
async def worker(state: Path, otlp: OtlpReceiver) -> AsyncIterator[Worker]:
    port = free_port()
    async with started(
        *("-m", "engine_config.worker", PROFILE, "--port", str(port)),
        *("--state", str(state), "--otlp-endpoint", otlp.endpoint),
        ready=READY,
        within_s=START_S,
    ) as process:
        yield Worker(f"http://127.0.0.1:{port}", process)


@pytest.fixture
async def harness(worker: Worker, otlp: OtlpReceiver) -> AsyncIterator[Harness]:
    """A gateway before the worker, every call traced."""
    async with gateway(
        {"real": worker.url},
        models=[{"name": MODEL, "aliases": ["small"], "replicas": [{"name": "real", "url": worker.url}]}],
        telemetry={"otlp_endpoint": otlp.endpoint},
    ) as harness:
        yield harness


def decoded(event: bytes) -> Any:
    """The JSON of a raw event, or its text for `[DONE]`."""
    text = event.strip().removeprefix(b"data: ")
    return text.decode() if text == b"[DONE]" else orjson.loads(text)
