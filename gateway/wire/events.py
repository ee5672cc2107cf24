"""Server-sent events on the level of bytes: where one ends, and what it says (WHATWG HTML, 9.2).

No I/O and no text decoding of what is not a whole event: a character that is split between two reads never
meets a decoder. Line ends are LF, CR LF and CR, and nothing else that Python takes for one.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import orjson

LINE_END = re.compile(rb"\r\n|\n|\r")
# The end of a line and an empty line. Atomic, so that the CR and the LF of one CR LF are never taken for two;
# a CR at the end of what is there counts only with the byte after it, which may be its LF.
EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?:\r\n|\n|\r(?=[^\n]))")
LONGEST_END = 4
BOM = b"\xef\xbb\xbf"
DONE = b"data: [DONE]\n\n"


class Event(NamedTuple):
    """One event: its type (`message` unless named) and its data, lines joined by LF."""

    type: str
    data: bytes


class Cutter:
    """Cuts a stream where its events end: what it gives, joined, is the stream, and the same for every split of it.

    Each byte is looked at once, however small the reads are.
    """

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> bytes:
        """The events that are whole now, and empty lines between them; nothing while there are none."""
        ends_whole = data.endswith(b"\n\n")
        if ends_whole and not self._held:
            return data
        end = len(data) if ends_whole else self._end(data)
        if end is None:
            self._held += data
            return b""
        whole = bytes(self._held) + data[:end]
        self._held = bytearray(data[end:])
        return whole

    def finish(self) -> bytes:
        """The same for a stream that is over. What is still held then is an event that broke off."""
        whole = self.feed(b":")  # Any byte but LF will do to see what a CR at the end meant.
        self._held.pop()
        return whole

    @property
    def held(self) -> bytes:
        """The beginning of an event whose end has not come."""
        return bytes(self._held)

    @property
    def held_bytes(self) -> int:
        return len(self._held)

    def _end(self, data: bytes) -> int | None:
        """Where in `data` the last whole event ends; None if all of it belongs to an event without end."""
        seam = bytes(self._held[1 - LONGEST_END :])
        text = seam + data
        end = None if seam else 0
        for match in EVENT_END.finditer(text):
            end = match.end()
        if end is None:
            return None
        while end < len(text) and text[end] in b"\r\n":
            end += 1
        return end - len(seam)


def split(block: bytes) -> Iterator[bytes]:
    """The raw events of a block of whole events, and its empty lines: joined they are the block."""
    start, usual = 0, b"\r" not in block
    while start < len(block):
        if block[start] in b"\r\n":
            end = start + 1
        elif usual:
            end = block.find(b"\n\n", start) + 2
            end = end if end > 1 else len(block)
        else:
            match = EVENT_END.search(block, start)
            end = match.end() if match else len(block)
        yield block[start:end]
        start = end


def decode(raw: bytes) -> Event | None:
    """What one raw event says; None for a comment or an event without data."""
    # One line of data, as nearly all events are.
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw:
        return Event("message", raw[6:-2])
    kind, data = "", []
    for line in LINE_END.split(raw.removeprefix(BOM)):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value.decode("utf-8", "replace")
    return Event(kind or "message", b"\n".join(data)) if data else None


def encode(data: bytes) -> bytes:
    """One event with a single line of data."""
    return b"data: " + data + b"\n\n"


def encode_json(value: object) -> bytes:
    return encode(orjson.dumps(value))
