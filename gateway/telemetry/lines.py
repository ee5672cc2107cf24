"""A stream that takes lines and is never waited for: one that is stuck, closed or left costs lines, never a call."""

import io
import os
import select
import stat
import threading
import weakref
from collections.abc import Callable
from typing import BinaryIO

# A pipe that says it has room has room for so much: writing it does not wait.
PIECE_BYTES = select.PIPE_BUF


class Lines:
    """Writes lines, each with its end, in the order in which they come. From any thread.

    Of lines that the stream does not take only the number is kept: `lost` makes it a line, which is written before
    the first one that is taken again.
    """

    def __init__(self, out: BinaryIO, lost: Callable[[int], bytes]) -> None:
        # Nothing may stay in a buffer: it would be tried again later, at the latest when the process ends.
        self._out = out.raw if isinstance(out, io.BufferedWriter) else out
        self._told_lost = lost
        self._lost = 0
        self._torn = False
        self._room = _room(out)
        self._own = _reopened(out)
        if self._own is not None:
            weakref.finalize(self, os.close, self._own)
        # Of one thread again and again: what the garbage collector finds may be logged in the middle of a line.
        self._lock = threading.RLock()

    def write(self, line: bytes) -> None:
        """Writes a line now, or never."""
        with self._lock:
            if self._lost and not self._catch_up():
                self._lost += 1
            elif not self._take(line):
                self._lost = 1

    # What structlog calls its loggers' methods.
    debug = info = warning = error = critical = write

    def _catch_up(self) -> bool:
        """Whether the stream takes lines again."""
        if not self._take((b"\n" if self._torn else b"") + self._told_lost(self._lost)):
            return False
        self._lost, self._torn = 0, False
        return True

    def _take(self, line: bytes) -> bool:
        """Whether the stream took the whole line."""
        at = 0
        while at < len(line):
            taken = self._take_some(line[at : at + PIECE_BYTES])
            if not taken:
                self._torn = self._torn or at > 0
                return False
            at += taken
        return True

    def _take_some(self, piece: bytes) -> int:
        """How many bytes the stream took."""
        try:
            if self._own is not None:
                return os.write(self._own, piece)
            if self._room is not None and not self._room.poll(0):
                return 0
            return self._out.write(piece) or 0
        except (OSError, ValueError):  # Nobody reads it, its disk is full; or it was closed.
            return 0


def _reopened(out: BinaryIO) -> int | None:
    """A terminal's or a pipe's descriptor of our own, on which writing never waits; None for anything else.

    A terminal says that it has room when it has some; and a pipe's room may be filled by another process in between.
    To make the shared descriptor one that does not wait would be felt by everybody who shares it.
    """
    try:
        descriptor = out.fileno()
        kind = os.fstat(descriptor).st_mode
        if not (stat.S_ISFIFO(kind) or os.isatty(descriptor)):
            return None
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None


def _room(out: BinaryIO) -> "select.poll | None":
    """What tells whether a stream has room; None for one in memory, which has."""
    try:
        descriptor = out.fileno()
    except OSError:
        return None
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    return room
