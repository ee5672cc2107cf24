"""What a worker process promises before vLLM is imported, shown on real processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from engine_config import catalog
from engine_config.worker import Place, environment, find_model, socket_folder

PATIENCE_S = 20


def worker(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine_config.worker", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, **(env or {})},
    )


def grandchild_ends_when_killed(program: str, *arguments: str) -> bool:
    """Starts a parent that prints its child's process id, kills the parent, and waits for the child to end."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            poll = select.poll()
            poll.register(child, select.POLLIN)
            if poll.poll(PATIENCE_S * 1000):
                return True
            signal.pidfd_send_signal(child, signal.SIGKILL)
            return False
        finally:
            os.close(child)


def test_a_bad_profile_ends_a_worker_with_its_problems() -> None:
    """Status 78: whoever restarts workers need not try again."""
    done = worker("no-such-profile", "--port", "1")
    assert done.returncode == 78
    assert "is not known" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unsafe_model_never_reaches_the_engine(tmp_path: Path) -> None:
    """It is refused before vLLM is imported, with one line."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    done = worker("smollm2-135m-cpu", "--port", "1", "--model-path", str(tmp_path), "--state", str(tmp_path))
    assert done.returncode == 78
    assert "can run code when read: pytorch_model.bin" in done.stderr.splitlines()[-1]


def test_a_worker_whose_parent_is_gone_does_not_start() -> None:
    """The parent may die before the kernel has been told to watch it."""
    done = worker("smollm2-135m-cpu", "--port", "1", "--parent", "1")
    assert done.returncode == 1
    assert "the parent process 1 is gone" in done.stderr


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""

TETHERED = """
import signal
from engine_config.tether import die_with_parent, forbid_core_dumps
die_with_parent()
print("ready", flush=True)
signal.pause()
"""

# As vLLM's own children are started: spawned, with the worker as the main module.
SPAWNED = """
import importlib.util, multiprocessing, sys
sys.modules["__main__"].__spec__ = importlib.util.find_spec("engine_config.worker")
work = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
multiprocessing.get_context("spawn").Process(target=exec, args=(work,)).start()
sys.stdin.read()
"""


def test_a_tethered_process_ends_with_its_parent() -> None:
    """However the parent ended."""
    assert grandchild_ends_when_killed(PARENT, TETHERED)


def test_the_children_of_a_killed_worker_end_with_it() -> None:
    """vLLM's engine core would stay, with the model in memory, when the API server is killed."""
    assert grandchild_ends_when_killed(SPAWNED)


def test_core_dumps_are_forbidden() -> None:
    """A core dump would hold prompts."""
    code = (
        "import resource; from engine_config.tether import forbid_core_dumps; forbid_core_dumps(); "
        "print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(0, 0)"


def test_checking_and_planning_load_no_engine() -> None:
    """Importing every module of the package, the worker included, imports neither torch nor vLLM."""
    code = (
        "import sys, pkgutil, importlib, engine_config\n"
        "skipped = {'engine_config.__main__', 'engine_config.conversion'}\n"
        "for module in pkgutil.iter_modules(engine_config.__path__, 'engine_config.'):\n"
        "    if module.name not in skipped: importlib.import_module(module.name)\n"
        "import engine_config.__main__\n"
        "print([name for name in ('torch', 'vllm', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_is_looked_for_where_the_spec_says(tmp_path: Path) -> None:
    """A folder given for this machine comes before the profile's source."""
    spec = catalog.load("smollm2-135m-cpu")
    given = Place(port=1, state=tmp_path, model_path=tmp_path / "here")
    assert find_model(spec, given) == tmp_path / "here"
    local = spec.model_copy(update={"model": spec.model.model_copy(update={"source": str(tmp_path)})})
    assert find_model(local, Place(port=1, state=tmp_path)) == tmp_path


def test_sockets_lie_in_a_folder_of_the_worker_alone() -> None:
    """Emptied of what a killed worker left; nobody else may enter."""
    # Not pytest's folder: its name grows with the number of runs, and beyond a length sockets lie elsewhere.
    with tempfile.TemporaryDirectory(dir="/tmp") as state:
        place = Place(port=8123, state=Path(state))
        folder = socket_folder(place)
        (folder / "stale").touch()
        assert socket_folder(place) == folder
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o700


def test_the_environment_is_the_spec_s_and_not_the_shell_s(tmp_path: Path) -> None:
    """Folders of the state, assigned GPUs, and nothing that would change the engine behind the profile's back."""
    place = Place(port=1, state=tmp_path, gpus=("3",))
    parent = {"PATH": "/bin", "VLLM_SERVER_DEV_MODE": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
    settled = environment(parent, catalog.load("smollm2-135m-gpu"), place, tmp_path / "sockets")
    assert settled["PATH"] == "/bin"
    assert "VLLM_SERVER_DEV_MODE" not in settled
    assert settled["CUDA_VISIBLE_DEVICES"] == "3"
    assert settled["VLLM_CACHE_ROOT"] == str(tmp_path / "cache" / "vllm")
    assert settled["VLLM_RPC_BASE_PATH"] == str(tmp_path / "sockets")
    chosen = environment({"VLLM_CACHE_ROOT": "/c"}, catalog.load("smollm2-135m-gpu"), place, tmp_path)
    assert chosen["VLLM_CACHE_ROOT"] == "/c"


def test_a_long_state_path_does_not_make_sockets_impossible(tmp_path: Path) -> None:
    """A Unix socket's path has at most 107 bytes."""
    folder = socket_folder(Place(port=8123, state=tmp_path / ("x" * 100)))
    try:
        assert len(os.fsencode(folder)) + 37 <= 107
    finally:
        folder.rmdir()
