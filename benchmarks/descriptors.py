"""File descriptors: every open stream takes one of the load's, two of the gateway's and one of the engine's."""

import resource
from contextlib import suppress
from pathlib import Path

ASIDE = 200
"""What a process has open beside its streams, with some to spare."""


def allow(wanted: int) -> int:
    """Lets this process, and those it starts, open that many files; how many it may open then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return soft
    if hard >= wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    if most >= wanted:
        # Only a privileged process may raise its own hard limit.
        with suppress(ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def lacking(name: str, wanted: int) -> str | None:
    """Why a scenario cannot run here, and what helps; None where there are descriptors enough."""
    allowed = allow(wanted)
    if allowed >= wanted:
        return None
    return (
        f"{name} needs {wanted:,} file descriptors in one process, and {allowed:,} are allowed: raise `ulimit -Hn`, "
        f"or measure open-{(allowed - ASIDE) // 2}"
    )
