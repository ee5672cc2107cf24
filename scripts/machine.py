"""What this machine is, and whether an engine can run on it: looked at once, then judged by plain functions.

Standard library only.
"""

import importlib.util
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from scripts.trouble import Trouble

GIB = 1 << 30
# What an installation writes, environment and download cache together, and some room to work in. Measured:
# 2.3 GiB for `dev` and 0.1 for `gateway`. `gpu` is the sum of its packages' sizes, not an installation.
NEEDED_BYTES = {"gateway": GIB // 2, "cpu": 3 * GIB, "dev": 3 * GIB, "gpu": 20 * GIB}
OLDEST, NEWEST = (3, 11), (3, 14)
GLIBC = (2, 28)
OTHER_PYTHON = "install one of those, or name one that is there: make PYTHON=python3.12 ..."


@dataclass(frozen=True)
class Machine:
    """The facts that decide what can be installed and run here. `glibc` is None for another C library."""

    system: str
    processor: str
    flags: frozenset[str]
    glibc: tuple[int, int] | None
    python: tuple[int, int]
    has_venv: bool
    has_lscpu: bool
    has_compiler: bool
    has_gpu: bool
    free_bytes: int


def here(folder: Path) -> Machine:
    """This machine, this interpreter, and the disk that `folder` is on."""
    return Machine(
        system=platform.system(),
        processor=platform.machine(),
        flags=processor_flags(Path("/proc/cpuinfo")),
        glibc=glibc_version(*platform.libc_ver()),
        python=(sys.version_info[0], sys.version_info[1]),
        has_venv=bool(importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")),
        has_lscpu=shutil.which("lscpu") is not None,
        has_compiler=any(shutil.which(name) for name in ("gcc", "clang", "cc")),
        has_gpu=sees_gpu(),
        free_bytes=shutil.disk_usage(folder).free,
    )


def glibc_version(library: str, version: str) -> tuple[int, int] | None:
    """What `platform.libc_ver` says, as numbers; None where the C library is not glibc."""
    numbers = [int(part) for part in version.split(".") if part.isdigit()]
    return (numbers[0], numbers[1]) if library == "glibc" and len(numbers) > 1 else None


def processor_flags(cpuinfo: Path) -> frozenset[str]:
    """The instruction sets that the kernel lists; empty where it lists none, as on ARM."""
    if not cpuinfo.exists():
        return frozenset()
    lines = cpuinfo.read_text(errors="replace").splitlines()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def sees_gpu() -> bool:
    """Whether this process can use an NVIDIA GPU: its device is there, or the driver's own tool lists one."""
    if Path("/dev/nvidia0").exists():
        return True
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU 0" in listed.stdout


def engine_for(machine: Machine) -> str:
    """The lock with the engine that suits the machine."""
    return "gpu" if machine.has_gpu else "cpu"


def check(machine: Machine, lock: str) -> None:
    """Raises `Trouble` when what `lock` names could not be installed or could not run here."""
    if machine.system != "Linux":
        raise Trouble(
            f"{machine.system} is not supported", "use Linux; a virtual machine, WSL 2 or a container will do"
        )
    if machine.processor not in {"x86_64", "aarch64"}:
        raise Trouble(f"no engine is built for {machine.processor}", "use an x86-64 or 64-bit ARM machine")
    if not OLDEST <= machine.python <= NEWEST:
        found = "{}.{}".format(*machine.python)
        raise Trouble(f"Python {found} is not supported; 3.11 to 3.14 is needed", OTHER_PYTHON)
    if not machine.has_venv:
        raise Trouble(
            "this Python cannot make virtual environments: its venv or ensurepip module is missing",
            "install it (Debian, Ubuntu: apt install python3-venv), or name another: make PYTHON=...",
        )
    if lock == "gpu":
        _check_c_library(machine)
        _check_gpu(machine)
    elif lock != "gateway":
        _check_c_library(machine)
        _check_cpu(machine)


def _check_c_library(machine: Machine) -> None:
    if machine.glibc is None or machine.glibc < GLIBC:
        found = "another C library" if machine.glibc is None else "glibc {}.{}".format(*machine.glibc)
        raise Trouble(
            f"the engine needs glibc 2.28 or newer, and this system has {found}",
            "use Debian 10, Ubuntu 20.04, RHEL 8 or what came after them; Alpine will not do",
        )


def _check_gpu(machine: Machine) -> None:
    if not machine.has_compiler:
        raise Trouble(
            "there is no C compiler, with which the GPU engine builds its kernels' launchers as it starts",
            "install gcc (Debian, Ubuntu: apt install gcc libc6-dev)",
        )


def _check_cpu(machine: Machine) -> None:
    # Seen: with `eager: true`, as the shipped profile has it, vLLM's CPU engine needs no compiler; but it
    # does not start without lscpu.
    if machine.processor == "x86_64" and "avx2" not in machine.flags:
        raise Trouble(
            "this processor has no AVX2, which vLLM's CPU engine needs",
            "use a machine with AVX2 (a virtual machine must pass its host's processor through) or a GPU;"
            " the gateway alone runs here too: make install LOCK=gateway, then pagegate serve",
        )
    if not machine.has_lscpu:
        raise Trouble(
            "the command lscpu is missing, by which vLLM's CPU engine learns of the processor's cores",
            "install it (Debian, Ubuntu: apt install util-linux)",
        )


def check_room(machine: Machine, lock: str) -> None:
    """Raises `Trouble` when the disk is too full for what is about to be installed."""
    needed = NEEDED_BYTES[lock]
    if machine.free_bytes < needed:
        raise Trouble(
            f"the disk is full: {machine.free_bytes / GIB:.1f} GiB free, {needed / GIB:.1f} GiB needed",
            "free some space (du -sh .venv ~/.cache/uv), or check the project out on a larger disk",
        )
