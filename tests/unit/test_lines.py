"""gateway/telemetry/lines.py: a log that is stuck, closed or left costs lines, never a call."""

import fcntl
import io
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pytest

from gateway.settings import TelemetrySettings
from gateway.telemetry import logs
from gateway.telemetry.lines import PIECE_BYTES, Lines


def lines(out: BinaryIO) -> Lines:
    return Lines(out, lambda count: b"lost %d\n" % count)


class Pipe:
    """A pipe that holds two pieces, and whose reader takes what there is when it is told to."""

    def __init__(self) -> None:
        self._reading, writing = os.pipe()
        os.set_blocking(self._reading, False)
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 2 * PIECE_BYTES)
        self.out = os.fdopen(writing, "wb")

    def read(self) -> bytes:
        taken = b""
        with suppress(BlockingIOError):
            while piece := os.read(self._reading, 2**20):
                taken += piece
        return taken

    def leave(self) -> None:
        os.close(self._reading)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    with pipe.out:
        yield pipe
    with suppress(OSError):
        pipe.leave()


def test_lines_arrive_at_once_and_in_order(pipe: Pipe) -> None:
    """Nothing waits in a buffer."""
    subject = lines(pipe.out)
    subject.write(b"one\n")
    subject.write(b"two\n")
    assert pipe.read() == b"one\ntwo\n"


def test_a_reader_that_is_stuck_loses_lines_and_is_told_how_many(pipe: Pipe) -> None:
    """Writing does not wait for him. What he gets is whole, and in its place stands what he did not get."""
    subject, full = lines(pipe.out), b"x" * (PIECE_BYTES - 1) + b"\n"
    subject.write(full)
    subject.write(full)
    for _ in range(3):
        subject.write(b"lost\n")
    assert pipe.read() == full + full
    subject.write(b"again\n")
    assert pipe.read() == b"lost 3\nagain\n"
    subject.write(b"more\n")
    assert pipe.read() == b"more\n"


def test_a_long_line_does_not_wait_either(pipe: Pipe) -> None:
    """It is torn where the room ends; the next line begins a line of its own."""
    subject, full = lines(pipe.out), b"x" * (PIECE_BYTES - 1) + b"\n"
    subject.write(b"x" * 3 * PIECE_BYTES + b"\n")
    subject.write(b"lost\n")
    assert pipe.read() == b"x" * 2 * PIECE_BYTES
    subject.write(b"again\n")
    assert pipe.read() == b"\nlost 2\nagain\n"
    for _ in range(3):
        subject.write(full)
    assert pipe.read() == full + full
    subject.write(b"again\n")
    assert pipe.read() == b"lost 1\nagain\n"


class Sips(io.RawIOBase):
    """A stream that takes three bytes at a time."""

    def __init__(self) -> None:
        self.taken = b""

    def write(self, data: Any) -> int:
        self.taken += data[:3]
        return len(data[:3])


def test_a_stream_may_take_a_line_in_parts() -> None:
    """The rest follows at once."""
    out = Sips()
    lines(out).write(b"a whole line\n")  # type: ignore[arg-type]  # A raw stream is all that it needs.
    assert out.taken == b"a whole line\n"


def test_a_long_line_is_whole_where_there_is_room(tmp_path: Path) -> None:
    """A traceback, in a file."""
    with (tmp_path / "log").open("wb") as out:
        lines(out).write(b"x" * 3 * PIECE_BYTES + b"\n")
    assert (tmp_path / "log").read_bytes() == b"x" * 3 * PIECE_BYTES + b"\n"


def test_a_reader_who_has_gone_costs_nothing_but_lines(pipe: Pipe) -> None:
    """Neither now nor when the stream is closed: nothing is left in it."""
    subject = lines(pipe.out)
    pipe.leave()
    for _ in range(3):
        subject.write(b"lost\n")
    pipe.out.close()


def test_so_does_a_stream_that_was_closed(tmp_path: Path) -> None:
    """Whether it has a descriptor or is in memory."""
    for out in ((tmp_path / "log").open("wb"), io.BytesIO()):
        subject = lines(out)
        subject.write(b"one\n")
        out.close()
        subject.write(b"two\n")
    assert (tmp_path / "log").read_bytes() == b"one\n"


def test_the_gateways_log_says_what_it_lost(pipe: Pipe) -> None:
    """As a line like every other."""
    log = logs.make(TelemetrySettings(), pipe.out)
    for _ in range(3):
        log.info("long", text="x" * (PIECE_BYTES - 200))
    pipe.read()
    log.info("again")
    lost, again = [orjson.loads(line) for line in pipe.read().splitlines()]
    assert (lost["level"], lost["event"], lost["lines"]) == ("warning", "log_lines_lost", 1)
    assert again["event"] == "again"


class Talking(io.RawIOBase):
    """A stream during whose first write something is logged: what is collected then has its last words."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.lines = lines(self)  # type: ignore[arg-type]  # A raw stream is all that it needs.

    def write(self, data: Any) -> int:
        self.taken.append(data)
        if len(self.taken) == 1:
            self.lines.write(b"last words\n")
        return len(data)


def test_a_line_may_come_in_the_middle_of_another() -> None:
    """On the same thread: it does not wait for itself."""
    out = Talking()
    writing = threading.Thread(target=out.lines.write, args=(b"one\n",), daemon=True)
    writing.start()
    writing.join(10)
    assert out.taken == [b"one\n", b"last words\n"]


def test_lines_of_threads_are_not_mixed(tmp_path: Path) -> None:
    """Libraries log from threads of their own."""
    with (tmp_path / "log").open("wb") as out:
        subject = lines(out)

        def tell(letter: bytes) -> None:
            for _ in range(100):
                subject.write(letter * 4 * PIECE_BYTES + b"\n")

        threads = [threading.Thread(target=tell, args=(letter,)) for letter in (b"a", b"b", b"c")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    written = (tmp_path / "log").read_bytes().splitlines()
    assert len(written) == 300
    assert set(written) == {letter * 4 * PIECE_BYTES for letter in (b"a", b"b", b"c")}


def test_a_terminal_that_nobody_reads_holds_nobody() -> None:
    """It says that it has room when it has some, and a write of more would wait."""
    screen, keyboard = os.openpty()
    try:
        with open(keyboard, "wb", buffering=0) as out:
            lines = Lines(out, lambda number: b"lost %d\n" % number)
            for _ in range(1000):
                lines.write(b"x" * 1000 + b"\n")
            assert os.read(screen, 10).startswith(b"xxx")
    finally:
        os.close(screen)
