"""`pagegate up` as a new user runs it: what it prints works when pasted, and nothing is left when it ends."""

import asyncio
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.real.conftest import MODEL, Worker, free_port
from tests.wire_client import WireClient

pytestmark = pytest.mark.anyio

KEY = "pg-a-key-chosen-by-a-script"


def descendants(pid: int) -> set[int]:
    """The processes below `pid`, as the kernel tells."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | descendants(child)
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def pasted(*command: str) -> str:
    """What a command prints."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(120):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_up_prints_what_works_survives_a_killed_worker_and_leaves_nothing(
    worker: Worker, state: Path, tmp_path: Path
) -> None:
    """The printed lines are run as they stand; a worker that is killed comes back; Ctrl-C ends every process."""
    # The session's worker has made the model; making it again is tested elsewhere.
    shutil.copytree(state / "models", tmp_path / "models")
    port = free_port()
    up = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "up", "--state", str(tmp_path)),
        env={**os.environ, "PAGEGATE_PORT": str(port), "PAGEGATE_BOOTSTRAP_KEY": KEY},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert up.stdout is not None
    printed = ""

    async def until(words: str, within_s: float) -> None:
        """Reads what `up` prints until `words` stand in it, and forgets what came before."""
        nonlocal printed
        printed = ""
        assert up.stdout is not None
        async with asyncio.timeout(within_s):
            while words not in printed:
                line = await up.stdout.readline()
                assert line, f"it ended without saying {words!r}:\n{printed}"
                printed += line.decode()

    family: set[int] = set()
    try:
        await until("Ctrl-C stops everything", within_s=400)
        family = descendants(up.pid)
        curl = re.search(r"^curl .*$", printed, re.MULTILINE)
        sdk = re.search(r"^from openai import.*?^print\(.*?$", printed, re.MULTILINE | re.DOTALL)
        assert curl is not None and sdk is not None, printed
        assert f"http://127.0.0.1:{port}/v1" in printed and KEY in printed
        assert (await pasted("sh", "-c", f"{curl[0]} -sS")).rstrip().endswith("data: [DONE]")
        assert "Paris" in await pasted(sys.executable, "-c", sdk[0])

        await administered(tmp_path)

        worker_pid = next(pid for pid in family if "engine_config.worker" in command_of(pid))
        os.kill(worker_pid, signal.SIGKILL)
        await until("ready", within_s=400)
        assert "Paris" in await pasted(sys.executable, "-c", sdk[0])
        family |= descendants(up.pid)

        up.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            await up.stdout.read()
            assert await up.wait() == 0
        assert not [pid for pid in family if is_alive(pid)]
        with pytest.raises(ConnectionRefusedError):
            async with WireClient(f"http://127.0.0.1:{port}"):
                raise AssertionError("something still listens")
    finally:
        if up.returncode is None:
            os.killpg(up.pid, signal.SIGKILL)
            await up.wait()


async def administered(state: Path) -> None:
    """A key that is made on this machine is listed, and what calls used stands in the books."""
    pagegate, here = (sys.executable, "-m", "gateway"), ("--state", str(state))
    await pasted(*pagegate, "keys", "create", "another", *here)
    listed = await pasted(*pagegate, "keys", "list", *here)
    assert "another" in listed and "bootstrap" in listed
    async with asyncio.timeout(10):
        while MODEL not in await pasted(*pagegate, "usage", "summary", *here):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return ""
