"""`pagegate serve` as a process of its own: signals, exit status, and what is left when it is killed."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests import vllm_wire as wire
from tests.engines import scripted
from tests.harness import CHAT, KEY, MODEL, SECRET, bearer, begun, hello, key
from tests.wire_client import WireClient

pytestmark = pytest.mark.anyio

PATIENCE_S = 20


@dataclass
class Served:
    """A gateway in a process of its own; `lines` are what it has logged."""

    process: asyncio.subprocess.Process
    lines: list[dict[str, Any]]

    async def logged(self, event: str) -> dict[str, Any]:
        """Reads the log until a line of that name."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := await self.process.stderr.readline():
                self.lines.append(orjson.loads(line))
                if self.lines[-1]["event"] == event:
                    return self.lines[-1]
        raise AssertionError(f"it ended without {event}: {self.lines}")

    async def left(self) -> int:
        """Waits for its end; the exit status."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := await self.process.stderr.readline():
                self.lines.append(orjson.loads(line))
            return await self.process.wait()

    def outcomes(self) -> list[str]:
        return sorted(line["outcome"] for line in self.lines if line["event"] == "call")


def settings(engines: Mapping[str, str], **server: Any) -> dict[str, Any]:
    return {
        "server": {"port": 0, **server},
        "identity": {"secret": SECRET, "keys": [key("tester")]},
        "models": [{"name": MODEL, "replicas": [{"name": name, "url": url} for name, url in engines.items()]}],
    }


async def started(folder: Path, content: Mapping[str, Any]) -> asyncio.subprocess.Process:
    (folder / "pagegate.yaml").write_text(json.dumps(content))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PAGEGATE_")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "serve", "--config", str(folder / "pagegate.yaml")),
        stderr=asyncio.subprocess.PIPE,
        env=environ,
    )


@asynccontextmanager
async def served(folder: Path, content: Mapping[str, Any]) -> AsyncIterator[tuple[Served, str]]:
    """A process that serves, and its URL, once its engines are up; it is killed if it is still there after."""
    process = await started(folder, content)
    try:
        gateway = Served(process, [])
        port = (await gateway.logged("listening"))["port"]
        if not any(line["event"] == "replica_up" for line in gateway.lines):
            await gateway.logged("replica_up")
        yield gateway, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_signal_under_load_loses_nothing(tmp_path: Path) -> None:
    """SIGTERM in the middle of streams: each comes to its end, then the process does, with status 0."""
    async with (
        scripted("a") as engines,
        served(tmp_path, settings({"a": engines["a"].url})) as (gateway, url),
        asyncio.TaskGroup() as group,
    ):
        engine = engines["a"]
        engine.says("one", " two")
        engine.steps()

        async def call(number: int) -> bytes:
            async with WireClient(url, within_s=PATIENCE_S) as client:
                reply = await client.post(CHAT, json=hello(stream=bool(number % 2)), headers=bearer())
                assert (reply.status, reply.complete) == (200, True)
                return reply.body

        calls = [group.create_task(call(number)) for number in range(40)]
        await engine.saw(40)
        engine.step()
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.logged("draining")
        engine.step(20)
        replies = await asyncio.gather(*calls)
        assert all(b" two" in reply for reply in replies)
        assert sum(reply.endswith(wire.DONE) for reply in replies) == 20
        assert await gateway.left() == 0
        assert gateway.outcomes() == ["ok"] * 40
        assert [line for line in gateway.lines if line["level"] in ("warning", "error")] == []
        assert KEY not in str(gateway.lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_what_does_not_end_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    """With a held engine: the stream gets its error, the process leaves in time and with status 0."""
    content = settings({"a": ""}, drain_timeout_s=0.2)
    async with scripted("a") as engines:
        content["models"][0]["replicas"][0]["url"] = engines["a"].url
        engines["a"].stalls_after(2)
        async with served(tmp_path, content) as (gateway, url), WireClient(url) as client:
            await client.send("POST", CHAT, json=hello(stream=True), headers=bearer())
            stream = await begun(client)
            gateway.process.send_signal(number)
            events = await stream.events()
            assert (events[-1][:13], stream.terminated) == (b'data: {"error', True)
            assert await gateway.left() == 0
            assert gateway.outcomes() == ["severed"]
            await engines["a"].idle()


async def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """The first one would wait for minutes."""
    async with (
        scripted("a") as engines,
        served(tmp_path, settings({"a": engines["a"].url}, drain_timeout_s=600)) as (gateway, url),
        WireClient(url) as client,
    ):
        engines["a"].holds()
        await client.send("POST", CHAT, json=hello(), headers=bearer())
        await engines["a"].saw()
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.logged("draining")
        gateway.process.send_signal(signal.SIGTERM)
        assert (await client.reply()).status == 503
        assert await gateway.left() == 0


async def test_a_gateway_that_is_killed_leaves_no_work_behind(tmp_path: Path) -> None:
    """SIGKILL: callers see their connections break, and engines theirs."""
    async with (
        scripted("a") as engines,
        served(tmp_path, settings({"a": engines["a"].url})) as (gateway, url),
        WireClient(url) as client,
    ):
        engines["a"].stalls_after(2)
        await client.send("POST", CHAT, json=hello(stream=True), headers=bearer())
        stream = await begun(client)
        await stream.event()
        gateway.process.kill()
        assert await gateway.left() == -signal.SIGKILL
        while await stream.read():
            pass
        assert not stream.terminated
        await engines["a"].idle()
        assert engines["a"].aborted == 1


async def test_a_port_that_is_taken_is_one_clear_message(tmp_path: Path) -> None:
    """With the remedy, and before anything else was done."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = await started(tmp_path, settings({"a": "http://127.0.0.1:9"}, port=port))
        _, told = await process.communicate()
    assert process.returncode == 1
    first, second = told.decode().splitlines()
    assert first == f"pagegate: cannot listen on 127.0.0.1 port {port}: Address already in use."
    assert "PAGEGATE_PORT" in second


async def test_settings_that_cannot_be_used_are_named_all_at_once(tmp_path: Path) -> None:
    """Status 1, a line for each problem, no traceback."""
    process = await started(tmp_path, {"server": {"port": 99999, "prot": 1}, "identity": {"keys": [key("k")]}})
    _, told = await process.communicate()
    assert process.returncode == 1
    lines = told.decode().splitlines()
    assert all(line.startswith("pagegate:") for line in lines)
    for place in ("server.port", "server.prot", "secret_file"):
        assert place in told.decode()
