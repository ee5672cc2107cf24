"""What a scripted engine does with a call, as a value, and the pieces that its reply comes to.

Pure: no sockets, no clock. `Script` and the functions decide what is sent in which writes and with which
pauses; the layout of vLLM's bytes is `tests/vllm_wire.py`, and sending them is `tests/playback.py`.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice, pairwise, repeat
from typing import Any, Literal, NamedTuple

from tests import vllm_wire as wire
from tests.loopback import Death

Afterwards = Literal["keep", "fin", "reset", "hold"]

A_TURN = -1.0
"""Instead of a pause: let the event loop turn, so that a reader in this process reads what was written."""


class Piece(NamedTuple):
    """One write: how many chunks of the body and tokens it holds, and the pause before it in seconds."""

    data: bytes
    chunks: int = 0
    tokens: int = 0
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Raw:
    """A reply given byte by byte: the pieces as they are written, and what becomes of the connection."""

    pieces: tuple[bytes, ...]
    then: Afterwards


@dataclass(frozen=True, slots=True)
class Script:
    """What is done with a call. `*_after` counts chunks: 0 is after the head, -1 before it."""

    # What is said, and how fast.
    tokens: tuple[str, ...] = ("The", " capital", " of", " France", " is", " Paris", ".")
    forever: bool = False
    ttft_s: float = 0.0
    gap_s: float = 0.0
    chunks_per_write: int = 1
    # What it waits for.
    held: bool = False
    stepped: bool = False
    stalls_after: int | None = None
    # What goes wrong.
    dies_after: int | None = None
    death: Death = "reset"
    error_after: int | None = None
    error: Mapping[str, Any] | None = None
    comments_every_s: float | None = None
    finishes: int = 1
    usages: int = 1
    dones: int = 1
    # What is sent instead, or besides.
    events: tuple[bytes, ...] | None = None
    raw: Raw | None = None
    headers: tuple[tuple[str, str], ...] = ()
    cuts_every: int = 0
    cuts_at: tuple[int, ...] = ()


def token_id(text: str) -> int:
    """The id of a token, the same in every engine."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) % 49152


def prompts_of(body: Mapping[str, Any]) -> list[list[int]]:
    """The token ids of every prompt: a word is a token, and token ids count as they are."""
    if "messages" in body:
        return [[token_id(word) for message in body["messages"] for word in _words(message.get("content"))]]
    prompt = body.get("prompt", "")
    several = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    return [one if isinstance(one, list) else [token_id(word) for word in one.split()] for one in several]


def _words(content: str | list[dict[str, Any]] | None) -> list[str]:
    if isinstance(content, list):
        return [word for part in content for word in part.get("text", "").split()]
    return (content or "").split()


def tokens_asked(body: Mapping[str, Any]) -> int | None:
    asked: int | None = body.get("max_completion_tokens") or body.get("max_tokens")
    return asked


def spoiled(events: Iterator[wire.Event], script: Script) -> Iterator[wire.Event]:
    """The events that the script makes of those that vLLM would send."""
    if script.events is not None:
        return (wire.Event("other", data) for data in script.events)
    if script.comments_every_s is not None:
        return repeat(wire.Event("comment", wire.KEEP_ALIVE))
    times = {"finish": script.finishes, "usage": script.usages, "done": script.dones}
    repeated = (event for event in events for _ in range(times.get(event.kind, 1)))
    if script.error_after is None or script.error is None:
        return repeated
    return chain(islice(repeated, script.error_after), broken(script.error))


def broken(error: Mapping[str, Any]) -> Iterator[wire.Event]:
    yield wire.Event("error", wire.error_event(error))
    yield wire.Event("done", wire.DONE)


def streamed(events: Iterator[wire.Event], choices: int, script: Script) -> Iterator[Piece]:
    """A stream's pieces: head, a chunk per event with the pauses that tokens take, the end of the framing."""
    yield Piece(wire.stream_head(script.headers))
    pause_s, spoken = script.ttft_s, 0
    for event in events:
        if event.kind == "token":
            pause_s = script.gap_s if spoken and spoken % choices == 0 else pause_s
            spoken += 1
        elif event.kind == "comment":
            pause_s = script.comments_every_s or 0.0
        yield Piece(wire.chunk(event.data), 1, int(event.kind == "token"), pause_s)
        pause_s = 0.0
    yield Piece(wire.LAST_CHUNK)


def grouped(pieces: Iterator[Piece], chunks_per_write: int) -> Iterator[Piece]:
    """Several chunks to a write, as from an engine that was busy elsewhere; head and end stay alone."""
    if chunks_per_write == 1:
        yield from pieces
        return
    for in_body, run in groupby(pieces, lambda piece: piece.chunks > 0):
        while group := list(islice(run, chunks_per_write if in_body else 1)):
            data, chunks, tokens, pauses = zip(*group, strict=True)
            yield Piece(b"".join(data), sum(chunks), sum(tokens), sum(pauses))


def plain(reply: bytes, tokens: int, script: Script) -> Iterator[Piece]:
    """A plain answer: one write, or head and two halves where the script stops somewhere within."""
    pause_s = script.ttft_s + script.gap_s * max(0, tokens - 1)
    if script.dies_after is None and script.stalls_after is None:
        yield Piece(reply, 1, tokens, pause_s)
        return
    head = reply.index(b"\r\n\r\n") + 4
    half = (head + len(reply)) // 2
    yield Piece(reply[:head], pause_s=pause_s)
    yield Piece(reply[head:half], 1)
    yield Piece(reply[half:], 1, tokens)


def one_by_one(parts: Sequence[bytes], tokens: int, script: Script) -> Iterator[Piece]:
    """Pieces that a reader gets in separate reads, if it reads as soon as it can."""
    for i, part in enumerate(parts):
        pause_s = (script.gap_s or A_TURN) if i else script.ttft_s
        yield Piece(part, 1, tokens if i == len(parts) - 1 else 0, pause_s)


def cut(whole: bytes, script: Script) -> list[bytes]:
    offsets = {*script.cuts_at, *(range(0, len(whole), script.cuts_every) if script.cuts_every else ())}
    edges = [0, *sorted(offset for offset in offsets if 0 < offset < len(whole)), len(whole)]
    return [whole[start:end] for start, end in pairwise(edges)]
