"""Signals to a real gateway process before a real engine."""

import asyncio
import signal
from pathlib import Path

import pytest
import yaml

from gateway.identity.keys import digest
from tests.harness import KEY, SECRET
from tests.real.conftest import MODEL, Worker, free_port, started
from tests.wire_client import WireClient

pytestmark = pytest.mark.anyio

STREAMS = 8


def settings_file(folder: Path, worker: Worker, port: int) -> Path:
    path = folder / "gateway.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "server": {"port": port, "drain_timeout_s": 60},
                "identity": {
                    "secret": SECRET,
                    "keys": [{"name": "tester", "digest": digest(KEY, SECRET.encode())}],
                },
                "models": [{"name": MODEL, "replicas": [{"name": "real", "url": worker.url}]}],
            }
        )
    )
    return path


async def test_a_drain_under_load_loses_nothing(worker: Worker, tmp_path: Path) -> None:
    """SIGTERM with streams open: each comes to its end, new connections are refused, the exit status is 0."""
    port = free_port()
    config = settings_file(tmp_path, worker, port)
    url = f"http://127.0.0.1:{port}"
    headers = {"authorization": f"Bearer {KEY}"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Tell a story."}], "stream": True,
            "max_tokens": 60, "temperature": 0, "stream_options": {"include_usage": True}}  # fmt: skip
    async with started("-m", "gateway", "serve", "--config", str(config), ready=b"replica_up", within_s=30) as process:
        first_events = asyncio.Barrier(STREAMS + 1)

        async def read_a_stream() -> list[bytes]:
            async with (
                WireClient(url, within_s=120) as client,
                client.stream("/v1/chat/completions", json=body, headers=headers) as stream,
            ):
                events = [await stream.event()]
                await first_events.wait()
                events += await stream.events()
                assert stream.terminated, "the framing was cut off"
                return events

        async with asyncio.TaskGroup() as group:
            streams = [group.create_task(read_a_stream()) for _ in range(STREAMS)]
            await first_events.wait()
            process.send_signal(signal.SIGTERM)
        for stream in streams:
            events = stream.result()
            assert events[-1].strip() == b"data: [DONE]"
            assert b'"completion_tokens":60' in events[-2]
        assert await process.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        async with WireClient(url):
            raise AssertionError("a drained gateway accepted a connection")


async def test_a_killed_gateway_leaves_no_work_at_the_engine(worker: Worker, tmp_path: Path) -> None:
    """SIGKILL with a stream open: the engine sees the connection close and stops within two seconds."""
    port = free_port()
    config = settings_file(tmp_path, worker, port)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Count to a thousand."}], "stream": True,
            "max_tokens": 1900}  # fmt: skip
    headers = {"authorization": f"Bearer {KEY}"}
    async with (
        started("-m", "gateway", "serve", "--config", str(config), ready=b"replica_up", within_s=30) as process,
        WireClient(f"http://127.0.0.1:{port}", within_s=60) as client,
        client.stream("/v1/chat/completions", json=body, headers=headers) as stream,
    ):
        await stream.event()
        process.kill()
        await process.wait()
        await worker.until_idle(within_s=2)
