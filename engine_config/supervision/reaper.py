"""Ends the process groups of a supervisor that vanished (`python -m engine_config.supervision.reaper`).

The supervisor tells on standard input which groups it holds (`+42`) and no longer holds (`-42`). When the
input ends, however the supervisor ended, what it still held is ended: politely first, so that engines give
back their shared memory, then by force. Only the standard library is imported, so that it starts at once.
"""

import signal
import sys
import time
from collections.abc import Iterable

from engine_config.supervision import groups

PATIENCE_S = 10.0


def main() -> None:
    # Whoever ends the supervisor with its whole session or control group must not end this first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end(held_at_the_end(sys.stdin.buffer), PATIENCE_S)


def held_at_the_end(lines: Iterable[bytes]) -> set[int]:
    """The groups that are held when the lines end; a torn last line is not obeyed."""
    held: set[int] = set()
    for line in lines:
        if line.endswith(b"\n"):
            group = int(line[1:])
            held = held | {group} if line.startswith(b"+") else held - {group}
    return held


def end(held: set[int], patience_s: float) -> None:
    """Ends the groups: SIGTERM, and SIGKILL for what is left after `patience_s`."""
    for group in held:
        groups.send(group, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and not all(groups.is_empty(group) for group in held):
        time.sleep(0.1)
    for group in held:
        groups.send(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
