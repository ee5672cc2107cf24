"""Whether a reply is what was asked for, as it comes in: its content, its order, its end.

Framing and status are `benchmarks.client`'s. A wrong reply is an error of a kind, and never counts as a reply. Pure:
bytes and moments come in, errors and durations go out. Events that equal the one before them but for place and moment
are not parsed again, which is what makes checking cheaper than relaying.
"""

from array import array
from collections import Counter
from typing import Any

import orjson

from benchmarks.script import TOKEN, TOKEN_SIZE, Asked, plain_content

# What can be wrong with a reply.
NOT_JSON = "not JSON"
NOT_AN_EVENT = "not an event"
ERROR_EVENT = "error event"
CONTENT = "wrong content"
FOREIGN = "another call's chunk"
LOST = "lost chunk"
REORDERED = "reordered chunk"
DUPLICATE = "duplicate chunk"
NO_FINISH = "no finish reason"
FINISH_TWICE = "finish reason twice"
NO_DONE = "no [DONE]"
AFTER_DONE = "event after [DONE]"
NO_USAGE = "no usage"
WRONG_USAGE = "wrong usage"

_PLACES = [b"%05d." % place for place in range(1001)]
_PLACE_SIZE = 6
_VARYING = _PLACE_SIZE + 14
"""Bytes of an event in which it differs from the one before: place and moment."""


def _places(first: int, count: int) -> list[bytes]:
    return [b"%05d." % place for place in range(first, first + count)]


class Durations:
    """What was measured of replies, in microseconds, in the order in which it was measured."""

    __slots__ = ("delay", "gap", "latency", "refusal", "ttft")

    def __init__(self) -> None:
        self.latency = array("q")
        """A whole reply."""
        self.ttft = array("q")
        """To the first chunk with content."""
        self.delay = array("q")
        """From the moment the engine wrote a token to the moment it was read; one for each token."""
        self.gap = array("q")
        """Between two chunks of a stream."""
        self.refusal = array("q")
        """To an answer of 429 or 503."""

    def reached(self) -> dict[str, int]:
        """How many of each there are by now."""
        return {name: len(getattr(self, name)) for name in self.__slots__}


class StreamCheck:
    """The body of one stream."""

    __slots__ = (
        "_after",
        "_asked",
        "_before",
        "_between",
        "_call",
        "_done",
        "_durations",
        "_finish",
        "_last_us",
        "_missing",
        "_next",
        "_real",
        "_rest",
        "_size",
        "_usage",
        "errors",
        "first_us",
    )

    def __init__(self, asked: Asked, call: int, durations: Durations, *, real: bool) -> None:
        """Of a `real` engine the words are not known: whether there are any, and how the stream ends, is checked."""
        self.errors: Counter[str] | None = None
        self.first_us = 0
        self._asked = asked
        self._call = call
        self._durations = durations
        self._real = real
        self._rest = b""
        self._next = 1
        self._last_us = 0
        self._missing: set[int] | None = None
        self._finish: str | None = None
        self._usage: Any = None
        self._done = False
        # Events of the shape that was seen: what is before place and moment, after them, and between two such.
        self._before = self._after = self._between = b""
        self._size = 0

    @property
    def chunks(self) -> int:
        """How many tokens came, in order."""
        return self._next - 1

    def feed(self, data: bytes, now_us: int) -> None:
        """Some bytes of the body, all that one read brought."""
        if self._rest:
            data = self._rest + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        while data:
            if self._between and data.startswith(self._before):
                data, found = self._alike(data, now_us)
                if found:
                    continue
            event, end, rest = data.partition(b"\n\n")
            if not end:
                break
            data = rest
            self._event(event, now_us)
        self._rest = data

    def _alike(self, data: bytes, now_us: int) -> tuple[bytes, bool]:
        """Takes the events that data begins with, of the shape that was seen and each the next in order.

        What is left, and whether there were any; events of which something is amiss are left to be parsed.
        """
        before, after, size = len(self._before), self._after, self._size
        place = self._next
        # The last token's event also says why the stream ends.
        count = min(len(data) // size, self._asked.tokens - place)
        if count < 1:
            return data, False
        whole = count * size
        varying = [data[start : start + _VARYING] for start in range(before, whole, size)]
        if self._before + self._between.join(varying) + after != data[:whole]:
            return data, False
        places = _PLACES[place : place + count] if place + count <= 1000 else _places(place, count)
        moments = [part[_PLACE_SIZE:] for part in varying]
        if [part[:_PLACE_SIZE] for part in varying] != places or not b"".join(moments).isdigit():
            return data, False
        self._durations.delay.extend([now_us - int(moment) for moment in moments])
        self._next = place + count
        self._arrived(now_us)
        if count > 1:
            self._durations.gap.extend([0] * (count - 1))
        return data[whole:], True

    def end(self) -> None:
        """The body is over."""
        if self._rest.strip():
            self._wrong(NOT_AN_EVENT)
        if self._missing is not None or (not self._real and self._next <= self._asked.tokens):
            lost = len(self._missing or ()) + max(0, self._asked.tokens + 1 - self._next)
            self._wrong(LOST, lost)
        if self._real and self._next == 1:
            self._wrong(CONTENT)
        if self._finish not in ("stop", "length"):
            self._wrong(NO_FINISH)
        if not self._done:
            self._wrong(NO_DONE)
        if self._asked.usage and self._usage is None:
            self._wrong(NO_USAGE)
        elif self._asked.usage and not _counts(self._usage, None if self._real else self._asked.tokens):
            self._wrong(WRONG_USAGE)

    def _wrong(self, kind: str, count: int = 1) -> None:
        if count:
            if self.errors is None:
                self.errors = Counter()
            self.errors[kind] += count

    def _arrived(self, now_us: int) -> None:
        if self._last_us:
            self._durations.gap.append(now_us - self._last_us)
        else:
            self.first_us = now_us
        self._last_us = now_us

    def _event(self, event: bytes, now_us: int) -> None:
        if not event.strip() or event.startswith(b":"):
            return
        if self._done:
            self._wrong(AFTER_DONE)
            return
        data = event[6:] if event.startswith(b"data: ") and b"\n" not in event else _data(event)
        if data is None:
            self._wrong(NOT_AN_EVENT)
            return
        if data == b"[DONE]":
            self._done = True
            return
        try:
            chunk = orjson.loads(data)
        except ValueError:
            self._wrong(NOT_JSON)
            return
        if not isinstance(chunk, dict) or "error" in chunk:
            self._wrong(ERROR_EVENT)
            return
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        for choice in chunk.get("choices") or ():
            content = (choice.get("delta") or {}).get("content")
            if content:
                self._content(content, event, now_us)
            if choice.get("finish_reason") is not None:
                if self._finish is not None:
                    self._wrong(FINISH_TWICE)
                self._finish = choice["finish_reason"]
                self._between = b""

    def _content(self, content: str, event: bytes, now_us: int) -> None:
        self._arrived(now_us)
        if self._real:
            self._next += 1
            return
        tokens = TOKEN.findall(content)
        if len(content) != len(tokens) * TOKEN_SIZE:
            self._wrong(CONTENT)
        for call, place, moment in tokens:
            if int(call) != self._call:
                self._wrong(FOREIGN)
                continue
            self._durations.delay.append(now_us - int(moment))
            self._place(int(place))
        if len(tokens) == 1 and len(content) == TOKEN_SIZE:
            self._learn(content.encode(), event)

    def _place(self, place: int) -> None:
        if place == self._next:
            self._next += 1
        elif place > self._next:
            self._missing = (self._missing or set()) | set(range(self._next, place))
            self._next = place + 1
        elif self._missing and place in self._missing:
            self._missing.discard(place)
            self._wrong(REORDERED)
        else:
            self._wrong(DUPLICATE)

    def _learn(self, token: bytes, event: bytes) -> None:
        before, found, after = event.partition(token)
        if found and b'"finish_reason":null' in event.replace(b" ", b"") and b'"usage":{' not in event:
            self._before = before + token[: TOKEN_SIZE - 1 - _VARYING]
            self._after = b" " + after + b"\n\n"
            self._between = self._after + self._before
            self._size = len(event) + 2


def _data(event: bytes) -> bytes | None:
    """The data of an event that has more fields, or other spaces; None of one without data."""
    lines = [line for line in event.split(b"\n") if not line.startswith((b":", b"event:", b"id:", b"retry:"))]
    return lines[0][5:].strip() if len(lines) == 1 and lines[0].startswith(b"data:") else None


def plain_errors(asked: Asked, call: int, body: bytes, *, real: bool) -> Counter[str]:
    """What is wrong with the body of a plain reply."""
    try:
        reply = orjson.loads(body)
        choice = reply["choices"][0]
        content, finish, usage = choice["message"]["content"], choice["finish_reason"], reply["usage"]
    except ValueError:
        return Counter([NOT_JSON])
    except (KeyError, IndexError, TypeError):
        return Counter([CONTENT])
    errors: Counter[str] = Counter()
    if (real and not content) or (not real and content != plain_content(call)):
        errors[CONTENT if real or not _of_another(content, call) else FOREIGN] += 1
    if finish not in ("stop", "length"):
        errors[NO_FINISH] += 1
    if not _counts(usage, None if real else asked.tokens):
        errors[WRONG_USAGE] += 1
    return errors


def _of_another(content: Any, call: int) -> bool:
    return isinstance(content, str) and content[1:9].isdigit() and content == plain_content(int(content[1:9]))


def _counts(usage: Any, tokens: int | None) -> bool:
    """Whether usage adds up; with the tokens that must have been counted, where they are known."""
    try:
        completion, prompt, total = (usage[f"{name}_tokens"] for name in ("completion", "prompt", "total"))
    except (KeyError, TypeError):
        return False
    return bool(completion + prompt == total and completion >= 1 and tokens in (None, completion))
