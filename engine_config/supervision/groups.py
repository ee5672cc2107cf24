"""Process groups: who is still in one, and signals for all of it.

A worker is several processes (API server, engine core, one worker a GPU) in one group. When its first process
is gone the others may stay: vLLM's engine core outlives an API server that was killed. So what is ended is
always the group. Linux only: members are found in /proc.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path


def send(group: int, number: signal.Signals) -> None:
    """Signals every process of the group; an empty group is no error."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def is_empty(group: int) -> bool:
    """Whether no process of the group runs. Zombies do not run: in a container nobody may ever reap them."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return not any(_runs_in(group, entry) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _runs_in(group: int, process: Path) -> bool:
    try:
        stat = (process / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # it ended while we looked
    # `pid (any name at all) state parent group ...`
    state, _, its_group = stat.rpartition(")")[2].split()[:3]
    return int(its_group) == group and state not in "ZX"
