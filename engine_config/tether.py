"""Ties a process to its parent, and keeps its memory out of files.

Linux only; elsewhere both do nothing, and whoever starts a process must end it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None, by: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send a signal to this process when the thread that started it ends.

    Args:
        parent: Process id that the parent had when it started this one; the present parent when None.
        by: The signal. A process that started others should get one that it can act on.

    Raises:
        SystemExit: The parent is already gone.
    """
    expected = os.getppid() if parent is None else parent
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(by), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # The parent may have died before the kernel was told.
    if os.getppid() != expected:
        raise SystemExit(f"the parent process {expected} is gone")


def forbid_core_dumps() -> None:
    """A core dump would hold prompts."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
