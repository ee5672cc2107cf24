"""What processes took, read from /proc: processor time and memory of a gateway and all its descendants.

Readings are differences between two looks; what a figure means is decided in `benchmarks.scenarios`.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Stat(NamedTuple):
    """One process: seconds of processor time, its reaped children's included, and bytes of resident memory."""

    parent: int
    cpu_s: float
    rss_bytes: int


def read_stat(text: str, ticks: int = _TICKS, page: int = _PAGE) -> Stat:
    """Reads /proc/PID/stat. A command's name may hold spaces and brackets: fields are counted after the last one."""
    fields = text[text.rindex(")") + 2 :].split()
    # From utime on: user and system time of the process, then of the children it waited for.
    return Stat(int(fields[1]), sum(map(int, fields[11:15])) / ticks, int(fields[21]) * page)


def tree(root: int, parents: dict[int, int]) -> set[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid, parent in parents.items():
        children[parent].append(pid)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        if pid in parents and pid not in found:
            found.add(pid)
            waiting += children[pid]
    return found


def stats() -> dict[int, Stat]:
    """Every process of this machine that can be read."""
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            # It may end between the look at the folder and the look inside.
            with suppress(OSError, ValueError):
                found[int(folder.name)] = read_stat((folder / "stat").read_text())
    return found


@dataclass(frozen=True, slots=True)
class Took:
    """A process tree up to now."""

    cpu_s: float
    rss_mib: float


def took(root: int) -> Took:
    """What a process and its descendants took up to now; zero of one that is gone."""
    now = stats()
    pids = tree(root, {pid: stat.parent for pid, stat in now.items()})
    return Took(sum(now[pid].cpu_s for pid in pids), sum(now[pid].rss_bytes for pid in pids) / 2**20)


def descendants(root: int) -> set[int]:
    return tree(root, {pid: stat.parent for pid, stat in stats().items()})


class Core(NamedTuple):
    """Seconds since the machine's start that a core was busy, and that its host kept it from being so."""

    busy_s: float
    stolen_s: float


def read_cores(text: str, ticks: int = _TICKS) -> dict[int, Core]:
    """Reads /proc/stat."""
    cores = {}
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name.startswith("cpu") and name != "cpu":
            # user nice system idle iowait irq softirq steal
            values = [int(value) for value in rest.split()]
            busy = sum(values[:3]) + values[5] + values[6]
            cores[int(name[3:])] = Core(busy / ticks, values[7] / ticks)
    return cores


def busy(cores: Iterable[int]) -> Core:
    """The sum over some cores, up to now."""
    now = read_cores((PROC / "stat").read_text())
    chosen = [now[core] for core in cores if core in now]
    return Core(sum(core.busy_s for core in chosen), sum(core.stolen_s for core in chosen))
