"""The supervisor over real processes: small Python programs that load, answer, die and leave others."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path

import pytest

from engine_config.supervision import groups, placement, ports, reaper
from engine_config.supervision.children import ChildSpec
from engine_config.supervision.held_groups import HeldGroups
from engine_config.supervision.restarts import Policy
from engine_config.supervision.supervisor import ChildFailed, News, State, Supervisor

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0
BRISK = Policy(first_pause_s=0.01, longest_pause_s=0.05)

# A child that answers /health, as a worker does. What it is told to do beyond that is put in place of BEFORE
# (while it loads) and AFTER (once it listens).
CHILD = """
import http.server, os, signal, subprocess, sys, time

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("hello from", os.getpid(), flush=True)
{before}
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Health)
{after}
server.serve_forever()
"""
# A grandchild that ignores what it is asked, as an engine core does when its API server is killed.
GRANDCHILD = """
code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
grandchild = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
grandchild.stdout.readline()
"""


@pytest.fixture
def port() -> Iterator[int]:
    """A port that stays ours while the test runs."""
    with ports.keep() as kept:
        yield ports.number(kept)


def child(port: int, *, before: str = "", after: str = "", grace_s: float = PATIENCE_S) -> ChildSpec:
    program = CHILD.format(before=before, after=after)
    command = (sys.executable, "-c", program, str(port))
    return ChildSpec("child", command, port, grace_s=grace_s, leftovers_s=0.2)


class Story:
    """What the supervisor reported, and waiting for what it will report."""

    def __init__(self) -> None:
        self.news: list[News] = []
        self._more = asyncio.Event()

    def __call__(self, news: News) -> None:
        self.news.append(news)
        self._more.set()

    @property
    def states(self) -> list[State]:
        """States in order; those that only made progress count once."""
        return [state for state, _ in groupby(news.state for news in self.news)]

    async def tells(self, wanted: Callable[[list[News]], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not wanted(self.news):
                self._more.clear()
                await self._more.wait()


def is_now(state: State) -> Callable[[list[News]], bool]:
    return lambda news: bool(news) and news[-1].state is state


def times_ready(number: int) -> Callable[[list[News]], bool]:
    return lambda news: sum(one.state is State.READY for one in news) == number


@asynccontextmanager
async def supervised(
    tmp_path: Path, *children: ChildSpec, story: Story | None = None, policy: Policy = BRISK
) -> AsyncIterator[Supervisor]:
    async with Supervisor(
        children, logs=tmp_path, report=story or Story(), policy=policy, rng=lambda: 0.0, probe_pause_s=0.01
    ) as supervisor:
        yield supervisor


def group_of(log: Path) -> int:
    """The process group of the child's latest life, which is its first process."""
    return int([line for line in log.read_text().splitlines() if line.startswith("hello from")][-1].split()[-1])


async def emptied(group: int) -> None:
    """Returns when no process of the group runs."""
    async with asyncio.timeout(PATIENCE_S):
        while not groups.is_empty(group):  # noqa: ASYNC110 - processes that are not ours can only be looked at
            await asyncio.sleep(0.01)


async def test_a_child_is_started_and_stopped_cleanly(tmp_path: Path, port: int) -> None:
    """Leaving the block ends the child by SIGTERM; it is never killed, and nothing of it is left."""
    story = Story()
    async with supervised(tmp_path, child(port), story=story) as supervisor:
        assert repr(supervisor) == "<Supervisor child waiting>"
        await supervisor.ready()
        assert repr(supervisor) == "<Supervisor child ready>"
        group = group_of(tmp_path / "child.log")
    assert story.states == [State.LOADING, State.READY, State.STOPPING, State.STOPPED]
    assert [news.note for news in story.news] == ["", "", "", ""]
    assert groups.is_empty(group)


async def test_a_killed_child_is_started_again_and_its_grandchild_is_gone(tmp_path: Path, port: int) -> None:
    """What a killed child leaves behind would hold its GPU: it is ended before the next life begins."""
    story = Story()
    async with supervised(tmp_path, child(port, before=GRANDCHILD), story=story) as supervisor:
        await supervisor.ready()
        first = group_of(tmp_path / "child.log")
        os.kill(first, signal.SIGKILL)
        await story.tells(times_ready(2))
        assert groups.is_empty(first)
        assert group_of(tmp_path / "child.log") != first
    assert story.states[:4] == [State.LOADING, State.READY, State.WAITING, State.LOADING]
    assert "it was killed" in next(news.note for news in story.news if news.state is State.WAITING)


async def test_a_child_that_ends_by_itself_is_started_again_even_with_status_0(tmp_path: Path, port: int) -> None:
    """vLLM's API server leaves with status 0 when its engine core has died."""
    story = Story()
    leaves_once = f"import pathlib; mark = pathlib.Path({str(tmp_path / 'mark')!r})"
    after = """
import threading
if not mark.exists():
    mark.touch()
    threading.Thread(target=lambda: (sys.stdin.read(), time.sleep(0.2), os._exit(0))).start()
"""
    async with supervised(tmp_path, child(port, before=leaves_once, after=after), story=story):
        await story.tells(times_ready(2))


async def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path, port: int) -> None:
    """A worker that hangs cannot hold up the end."""
    story = Story()
    deaf = child(port, before="signal.signal(signal.SIGTERM, signal.SIG_IGN)", grace_s=0.1)
    async with supervised(tmp_path, deaf, story=story) as supervisor:
        await supervisor.ready()
        group = group_of(tmp_path / "child.log")
    assert groups.is_empty(group)
    assert "it did not end within 0.1 s: killed" in [news.note for news in story.news]


async def test_hurrying_shortens_a_long_grace(tmp_path: Path, port: int) -> None:
    """A second Ctrl-C asks again and kills soon: nobody waits for the whole grace of a child that hangs."""
    story = Story()
    deaf = child(port, before="signal.signal(signal.SIGTERM, signal.SIG_IGN)", grace_s=3600)
    async with supervised(tmp_path, deaf, story=story) as supervisor:
        await supervisor.ready()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervisor.stop("child"))
            await story.tells(is_now(State.STOPPING))
            supervisor.hurry()
    assert supervisor.states == {"child": State.STOPPED}


async def test_a_child_that_dies_while_loading_is_given_up_with_its_last_words(tmp_path: Path, port: int) -> None:
    """The same unknown death twice before the child was ever ready: a mistake, not bad luck."""
    story = Story()
    dying = child(port, before="raise RuntimeError('the dog ate the weights')")
    async with supervised(tmp_path, dying, story=story) as supervisor:
        with pytest.raises(ChildFailed) as caught:
            async with asyncio.timeout(PATIENCE_S):
                await supervisor.ready()
    failure = caught.value
    assert failure.name == "child"
    assert failure.why == "it failed to start 2 times for the same reason"
    assert failure.last_words[-1] == "RuntimeError: the dog ate the weights"
    assert failure.diagnosis.words == "RuntimeError: the dog ate the weights"
    assert "the dog ate the weights" in failure.log.read_text()
    assert story.states == [State.LOADING, State.WAITING, State.LOADING, State.FAILED]


async def test_a_lasting_reason_is_given_up_at_once_with_its_remedy(tmp_path: Path, port: int) -> None:
    """A damaged file does not mend itself: the worker is not started a second time."""
    story = Story()
    words = "safetensors.SafetensorError: Error while deserializing header: incomplete metadata"
    dying = child(port, before=f"print({words!r}, flush=True); os._exit(1)")
    async with supervised(tmp_path, dying, story=story) as supervisor:
        with pytest.raises(ChildFailed, match="a file of the model is damaged") as caught:
            async with asyncio.timeout(PATIENCE_S):
                await supervisor.ready()
    assert "remove the model's folder" in caught.value.remedy
    assert story.states == [State.LOADING, State.FAILED]


async def test_a_child_that_is_never_ready_is_killed_when_its_time_is_up(tmp_path: Path, port: int) -> None:
    """Loading for ever counts as dying while loading."""
    slow = ChildSpec(
        "child",
        (sys.executable, "-c", "import time; time.sleep(600)"),
        port,
        startup_timeout_s=0.05,
        grace_s=1,
    )
    async with supervised(tmp_path, slow) as supervisor:
        with pytest.raises(ChildFailed, match=r"it was not ready within 0\.05 s"):
            async with asyncio.timeout(PATIENCE_S):
                await supervisor.ready()


async def test_a_program_that_does_not_exist_is_given_up_at_once(tmp_path: Path, port: int) -> None:
    async with supervised(tmp_path, ChildSpec("child", (str(tmp_path / "nothing"),), port)) as supervisor:
        with pytest.raises(ChildFailed, match="it could not be started"):
            async with asyncio.timeout(PATIENCE_S):
                await supervisor.ready()


async def test_one_child_can_be_stopped_before_the_others(tmp_path: Path, port: int) -> None:
    """The gateway drains while the workers still answer."""
    with ports.keep() as kept:
        other = child(ports.number(kept))
        worker = ChildSpec("worker", other.command, other.port)
        async with supervised(tmp_path, child(port), worker) as supervisor:
            await supervisor.ready()
            await supervisor.stop("child")
            assert supervisor.states == {"child": State.STOPPED, "worker": State.READY}


async def test_a_child_can_be_stopped_between_two_lives(tmp_path: Path, port: int) -> None:
    """A long back-off does not hold up the end."""
    story = Story()
    dying = child(port, before="os._exit(3)")
    patient = Policy(first_pause_s=3600, longest_pause_s=3600)
    async with supervised(tmp_path, dying, story=story, policy=patient):
        await story.tells(is_now(State.WAITING))
    assert story.states == [State.LOADING, State.WAITING, State.STOPPED]


async def test_loading_progress_is_reported_from_the_log(tmp_path: Path, port: int) -> None:
    story = Story()
    line = "(Worker pid=1) INFO 11-21 11:48:28 [cpu_model_runner.py:68] Starting to load model /m..."
    async with supervised(tmp_path, child(port, before=f"print({line!r}, flush=True)"), story=story) as supervisor:
        await supervisor.ready()
    assert [str(news.progress) for news in story.news if news.progress] == ["loading weights"]


async def test_an_error_in_the_block_stops_the_children_too(tmp_path: Path, port: int) -> None:
    with pytest.raises(ZeroDivisionError):
        async with supervised(tmp_path, child(port)) as supervisor:
            await supervisor.ready()
            group = group_of(tmp_path / "child.log")
            raise ZeroDivisionError
    assert groups.is_empty(group)


SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from engine_config.supervision.children import ChildSpec
from engine_config.supervision.supervisor import Supervisor

async def main():
    spec = ChildSpec("child", tuple(sys.argv[3:]), int(sys.argv[2]))
    async with Supervisor([spec], logs=Path(sys.argv[1])) as supervisor:
        await supervisor.ready()
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_supervisor_leaves_no_process(tmp_path: Path, port: int) -> None:
    """The reaper ends the group, grandchild and all, although nobody was left to ask for it."""
    spec = child(port, before=GRANDCHILD.replace("signal.SIG_IGN", "signal.SIG_DFL"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SUPERVISOR, str(tmp_path), str(port), *spec.command,
        stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout
    async with asyncio.timeout(PATIENCE_S):
        assert await process.stdout.readline() == b"ready\n"
    group = group_of(tmp_path / "child.log")
    assert not groups.is_empty(group)
    process.kill()
    await process.wait()
    await emptied(group)


async def test_the_reaper_kills_what_ignores_it(tmp_path: Path, port: int) -> None:
    """Asking comes first, so that engines give back shared memory; but it does not stop at asking."""
    async with supervised(tmp_path, child(port, before=GRANDCHILD)) as supervisor:
        await supervisor.ready()
        group = group_of(tmp_path / "child.log")
        await asyncio.to_thread(reaper.end, {group}, 0.1)
        await emptied(group)


async def test_a_reaper_that_dies_is_replaced_and_told_everything(tmp_path: Path) -> None:
    """Killing the reaper alone does not cut the tie: the next one learns which groups are held."""
    told = tmp_path / "told"
    code = f"import sys; open({str(told)!r}, 'a').write(sys.stdin.readline()); sys.exit(1)"
    held = HeldGroups(reaper=(sys.executable, "-c", code))
    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(held.kept())
        held.hold(4_000_000)
        async with asyncio.timeout(PATIENCE_S):
            while not told.exists() or told.read_text().count("+4000000\n") < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        keeping.cancel()


def test_a_taken_port_says_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(ports.PortTaken, match=rf"port {number} is taken by \S+ \(pid {os.getpid()}\)"):
            ports.keep(number)


def test_a_kept_port_is_the_childs_to_listen_on_and_nobody_elses_to_be_given() -> None:
    with (
        ports.keep() as kept,
        socket.create_server(("127.0.0.1", ports.number(kept)), reuse_port=False) as mine,
    ):
        assert mine.getsockname() == kept.getsockname()
        with pytest.raises(ports.PortTaken):
            ports.keep(ports.number(kept))


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program of that text in the place of nvidia-smi."""

    def put(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return put


async def test_gpus_are_those_that_nvidia_smi_shows(nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi('test "$2" = --format=csv,noheader,nounits && echo "3, GPU-x, NVIDIA L4, 23034, 5"')
    assert await placement.gpus(None) == (placement.Gpu(3, "GPU-x", "NVIDIA L4", 23034, 5),)
    assert await placement.gpus("0") == ()


async def test_a_driver_that_does_not_work_means_no_gpus(nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi("echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9")
    assert await placement.gpus(None) == ()
