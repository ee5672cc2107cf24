"""Replies recorded from a real engine, and what a broken one makes of them: cut, torn, flipped, doubled, without end.

One rule for all: the caller gets the whole reply or an explicit error, and the ledger says which. Nothing that was cut
off looks whole, and nothing of one answer is left on a connection for the next.
"""

import gzip
import random
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

import pytest

from tests import vllm_wire as wire
from tests.engines import ScriptedEngine, scripted
from tests.harness import Harness, gateway, hello
from tests.script import Afterwards
from tests.wire_client import WireReply, payload

pytestmark = pytest.mark.anyio

Ending = Literal["fin", "reset"]
PLAIN: dict[str, dict[str, Any]] = {"chat": {}, "chat_n2": {"n": 2}, "chat_logprobs": {}}
STREAMS: dict[str, dict[str, Any]] = {
    "stream": {},
    "stream_usage": {"stream_options": {"include_usage": True}},
    "stream_n2": {"n": 2},
}
SAMPLES: dict[str, dict[str, Any]] = {**PLAIN, **{name: {"stream": True, **more} for name, more in STREAMS.items()}}
SHAPE = {"message", "type", "param", "code"}
# Every so many bytes a reply is cut or split; prime, so that the places differ from one sample to the next.
EVERY = 11
EITHER = {"whole", "error"}
BOM = b"\xef\xbb\xbf"
BLOCK = b"y" * 4096
HEAD = b"HTTP/1.1 200 OK\r\n"
EVENTS = b"content-type: text/event-stream\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"


class Sent(NamedTuple):
    """What the engine sends instead, and what it does then."""

    pieces: tuple[bytes, ...]
    then: Afterwards = "fin"


class Told(NamedTuple):
    """How a reply looks to its caller.

    `whole`: it is the reply that was recorded; `error`: an explicit one, after nothing or after a part of that reply;
    `odd`: it ends well and says something else; `broken`: it is no valid reply, which must not be.
    """

    how: Literal["whole", "error", "odd", "broken"]
    said: list[Any]
    raw: bytes


class Trial:
    """One engine that is made to send this and that, and one caller before it."""

    def __init__(self, harness: Harness, engine: ScriptedEngine, call: dict[str, Any]) -> None:
        self.ended_well: list[bool] = []
        self._harness = harness
        self._engine = engine
        self._call = hello(**call)
        self._whole: list[Any] = []

    async def learn(self, reply: bytes) -> None:
        """Takes what comes of an unharmed reply for what is right."""
        self._whole = (await self.of(Sent((reply,)))).said
        assert self._whole

    async def of(self, sent: Sent) -> Told:
        """What the caller is told when the engine sends this."""
        self._engine.sends_raw(sent.pieces, then=sent.then)
        reply = await self._harness.post(self._call)
        said = _said(reply)
        failed = [it for it in said if set(it.get("error") or ()) == SHAPE]
        self.ended_well.append(reply.status == 200 and not failed)
        return Told(self._how(reply, said, failed), said, reply.raw)

    def _how(self, reply: WireReply, said: list[Any], failed: list[Any]) -> Literal["whole", "error", "odd", "broken"]:
        streamed = reply.status == 200 and "stream" in self._call
        ends = len(failed) + said.count({"text": "[DONE]"}) if streamed else 1
        if not reply.complete or ends != 1 or (failed and failed != said[-1:]):
            return "broken"
        if failed:
            before = said[:-1]
            return "error" if before == self._whole[: len(before)] else "odd"
        if said == self._whole:
            return "whole"
        finished = b'"finish_reason":"' in reply.body
        return "odd" if reply.status == 200 and finished else "broken"


def _said(reply: WireReply) -> list[dict[str, Any]]:
    """What a reply says: of a stream the payload of each event, of anything else its document."""
    if not (reply.header("content-type") or "").startswith("text/event-stream"):
        return [reply.json]
    text = reply.body.decode("utf-8", "replace").encode().removeprefix(BOM)
    found = [payload(event) for event in re.split(rb"\r\n\r\n|\n\n|\r\r", text)]
    return [it if isinstance(it, dict) else {"text": it} for it in found if it is not None]


@asynccontextmanager
async def trial(sample: str) -> AsyncIterator[Trial]:
    """A trial with a recorded reply; after it the ledger agrees with what callers saw, and a good call is good."""
    upstream = {"attempts": 1, "first_token_timeout_s": 0.3, "gap_timeout_s": 0.3, "call_timeout_s": 0.6}
    upstream["max_reply_bytes"] = 2**18
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, upstream=upstream, fleet={"probe_interval_s": 30}) as harness,
    ):
        engine = engines["a"]
        begun = Trial(harness, engine, SAMPLES[sample])
        await begun.learn(wire.recorded(sample).reply)
        yield begun
        await harness.until_idle()
        assert [line["outcome"] == "ok" for line in harness.calls] == begun.ended_well
        await engine.idle()
        assert harness.replica("a").in_flight == 0
        engine.behaves()
        await harness.until_up()
        reply = await harness.post(hello())
        assert reply.json["choices"][0]["message"]["content"] == "The capital of France is Paris."


async def otherwise(sample: str, sent: Iterable[tuple[object, Sent, set[str]]]) -> list[tuple[object, Told]]:
    """Of all that is sent under a name: what looks otherwise than it may."""
    async with trial(sample) as begun:
        told = [(name, await begun.of(it), allowed) for name, it, allowed in sent]
    return [(name, it) for name, it, allowed in told if it.how not in allowed]


# Cut off.


def end_of_reply(reply: bytes) -> int:
    """Where everything was said: a length's last byte, or a stream's end mark with its line."""
    at = reply.find(b"[DONE]")
    return len(reply) if at < 0 else at + len(b"[DONE]\n\n")


@pytest.mark.parametrize("then", ["fin", "reset"])
@pytest.mark.parametrize("sample", SAMPLES)
async def test_a_reply_that_is_cut_off_never_looks_whole(sample: str, then: Ending) -> None:
    """Wherever it ends, with a FIN or a reset; once everything was said, the rest of the framing is not missed."""
    reply = wire.recorded(sample).reply
    said_by = end_of_reply(reply)
    cuts = sorted({*range(0, len(reply), EVERY), *range(said_by - 12, len(reply))})
    async with trial(sample) as begun:
        for at in cuts:
            told = await begun.of(Sent((reply[:at],) if at else (), then))
            # A reset may overtake what was sent before it.
            assert told.how == "error" or (told.how == "whole" and at >= said_by - 2), (at, told)


@pytest.mark.parametrize("sample", STREAMS)
async def test_a_stream_whose_events_end_too_early_never_looks_whole(sample: str) -> None:
    """With framing that is whole: without a finish for every choice, the end of a message is no end of a reply."""
    reply = wire.recorded(sample).reply
    chunks = list(CHUNK.finditer(reply))
    last_finish = max(i for i, chunk in enumerate(chunks) if b'"finish_reason":"' in chunk.group())
    whole_by = next(i for i, chunk in enumerate(chunks) if b"[DONE]" in chunk.group())
    for ends in (wire.LAST_CHUNK, wire.chunk(wire.DONE) + wire.LAST_CHUNK):
        async with trial(sample) as begun:
            for i, chunk in enumerate(chunks[: whole_by + 1]):
                told = await begun.of(Sent((reply[: chunk.start()] + ends,), "keep"))
                # Behind the last finish is the usage alone: all that was generated is there.
                assert told.how == "error" if i <= last_finish else told.how in ("whole", "odd"), (i, told)


@pytest.mark.parametrize("sample", SAMPLES)
async def test_a_reply_may_come_in_any_two_parts(sample: str) -> None:
    """Split wherever it can be, it is the same reply."""
    reply = wire.recorded(sample).reply
    sent = [(at, Sent((reply[:at], reply[at:]), "keep"), {"whole"}) for at in range(1, len(reply), EVERY)]
    assert not await otherwise(sample, sent)


# Torn, doubled, flipped.

CHUNK = re.compile(rb"([0-9a-f]+)\r\n(?s:(?:data: .*?)?\n\n|)\r\n")


def framing(reply: bytes) -> Iterator[int]:
    """The places of all bytes that are no content: the head, and what is between the chunks."""
    body = reply.index(b"\r\n\r\n") + 4
    yield from range(body)
    if CHUNKED in reply[:body].lower():
        for chunk in CHUNK.finditer(reply, body):
            yield from range(*chunk.span(1))
            yield from (chunk.end(1), chunk.end(1) + 1, chunk.end() - 2, chunk.end() - 1)


@pytest.mark.parametrize("sample", SAMPLES)
async def test_a_bit_that_fell_over_in_the_framing_is_noticed_or_does_not_matter(sample: str) -> None:
    """The head, sizes of chunks, ends of lines: the caller gets the reply as it was meant, or an error."""
    reply = wire.recorded(sample).reply
    rng = random.Random(sample)
    places = list(framing(reply))
    sent = []
    for at in rng.sample(places, min(100, len(places))):
        flipped = bytearray(reply)
        flipped[at] ^= 1 << rng.randrange(8)
        sent.append((at, Sent((bytes(flipped),)), EITHER))
    assert not await otherwise(sample, sent)


def mutated(reply: bytes, rng: random.Random) -> bytes:
    """The reply with one to three things wrong with it."""
    for _ in range(rng.randint(1, 3)):
        at, size = rng.randrange(len(reply)), rng.choice((1, 2, 5, 40, 300))
        piece = reply[at : at + size]
        reply = (
            rng.choice(
                (
                    reply[:at] + reply[at + size :],
                    reply[:at] + piece + piece + reply[at + size :],
                    reply[:at] + rng.randbytes(size) + reply[at:],
                    reply[:at] + bytes(size) + reply[at + size :],
                    reply[:at] + b"\r\n" + reply[at:],
                    reply[:at] + piece[::-1] + reply[at + size :],
                    reply[: at + 1],
                )
            )
            or b"x"
        )
    return reply


@pytest.mark.parametrize("sample", SAMPLES)
async def test_whatever_an_engine_sends_the_caller_gets_valid_http_and_one_ending(sample: str) -> None:
    """Content may be garbled and nobody can tell; but a reply has one end, is `[DONE]` or an error, never both."""
    reply = wire.recorded(sample).reply
    rng = random.Random(sample)
    async with trial(sample) as begun:
        for number in range(100):
            harmed = mutated(reply, rng)
            cut = rng.randrange(len(harmed))
            told = await begun.of(Sent((harmed[:cut], harmed[cut:]), rng.choice(("fin", "reset"))))
            assert told.how != "broken", (number, harmed, told)


@pytest.mark.parametrize("sample", STREAMS)
async def test_chunks_that_come_twice_or_in_another_order_still_end_once(sample: str) -> None:
    """What is said twice cannot be known to be wrong; the end is one end, with or without an error."""
    reply = wire.recorded(sample).reply
    head = reply[: reply.index(b"\r\n\r\n") + 4]
    chunks = [chunk.group() for chunk in CHUNK.finditer(reply, len(head))]
    rng = random.Random(sample)
    orders = [[*chunks[:i], chunks[i], *chunks[i:]] for i in range(len(chunks))]
    orders += [rng.sample(chunks, len(chunks)) for _ in range(20)]
    sent = [Sent((head + b"".join(order) + wire.LAST_CHUNK,)) for order in orders]
    assert not await otherwise(sample, [(it, it, EITHER | {"odd"}) for it in sent])


# Wrong from the start.


def stream_of(*events: bytes) -> bytes:
    return b"".join(map(wire.chunk, events))


def body_of(sample: str) -> bytes:
    """A recorded body without its framing."""
    reply = wire.recorded(sample).reply
    head, _, body = reply.partition(b"\r\n\r\n")
    return (
        b"".join(chunk.group().partition(b"\r\n")[2][:-2] for chunk in CHUNK.finditer(body))
        if b"chunked" in head
        else body
    )


DOCUMENT, STREAM = body_of("chat"), body_of("stream")
JSON = b"content-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(DOCUMENT)
GOOD_PLAIN = HEAD + JSON + LENGTH + b"\r\n" + DOCUMENT
GOOD_STREAM = HEAD + EVENTS + CHUNKED + b"\r\n" + wire.chunk(STREAM) + wire.LAST_CHUNK


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda reply: reply.replace(old, new, 1)


def before(some: bytes) -> Callable[[bytes], bytes]:
    return lambda reply: some + reply


def with_lines(*lines: bytes) -> Callable[[bytes], bytes]:
    return replaced(HEAD, HEAD + b"".join(line + b"\r\n" for line in lines))


# What may be done to any reply, and what comes of it.
ANYHOW: dict[str, tuple[Callable[[bytes], bytes], set[str]]] = {
    "an interim answer before": (before(b"HTTP/1.1 100 Continue\r\n\r\n"), {"whole"}),
    "several interim answers": (before(b"HTTP/1.1 102 P\r\n\r\nHTTP/1.1 103 E\r\nlink: </x>\r\n\r\n"), {"whole"}),
    "cookies": (with_lines(b"set-cookie: a=b", b"set-cookie: c=d; path=/"), {"whole"}),
    "headers of every kind": (
        with_lines(b"server: x", b"via: 1.1 y", b"x-accel-redirect: /z", b"alt-svc: h3"),
        {"whole"},
    ),
    "a header that is not ASCII": (with_lines(b"x: \xff\xfe"), {"whole"}),
    "an empty header": (with_lines(b"x:"), {"whole"}),
    "the end of the connection": (with_lines(b"connection: close"), {"whole"}),
    "an answer behind it": (lambda reply: reply + GOOD_PLAIN, {"whole"}),
    "garbage behind it": (lambda reply: reply + b"\x00\x01\x02", {"whole"}),
    "empty lines behind it": (lambda reply: reply + b"\r\n\r\n", {"whole"}),
    "empty lines before it": (before(b"\r\n\r\n"), EITHER),
    "two answers at once in the head": (with_lines(b"HTTP/1.1 200 OK"), {"error"}),
    "a header with a NUL": (with_lines(b"x: a\x00b"), {"error"}),
    "a header without a name": (with_lines(b": x"), {"error"}),
    "a header without a colon": (with_lines(b"x"), {"error"}),
    "a header with space before its colon": (with_lines(b"x : y"), EITHER),
    "a header that is folded": (with_lines(b"x: y", b" z"), EITHER),
    "bare line feeds": (lambda reply: reply.replace(b"\r\n", b"\n"), EITHER),
    "a length and chunks": (with_lines(b"content-length: 5", b"transfer-encoding: chunked"), {"error"}),
    "a length that is a list": (with_lines(b"content-length: 5, 5"), {"error"}),
    "a length below zero": (with_lines(b"content-length: -1"), {"error"}),
    "an encoding that nobody knows": (with_lines(b"transfer-encoding: rot13"), EITHER),
    "a content encoding that it does not have": (with_lines(b"content-encoding: gzip"), {"error"}),
    "no content type": (lambda reply: re.sub(rb"content-type: [^\r]*\r\n", b"", reply, count=1), EITHER),
    "another content type": (lambda reply: re.sub(rb"content-type: [^\r]*", b"content-type: text/html", reply), EITHER),
    "another protocol": (replaced(b"HTTP/1.1", b"ICY"), {"error"}),
    "a version of the future": (replaced(b"HTTP/1.1", b"HTTP/3.0"), {"error"}),
    "no reason": (replaced(b"200 OK", b"200"), {"whole"}),
    "no status": (replaced(b"200 OK", b"OK"), {"error"}),
    **{
        f"status {status}": (replaced(b"200 OK", b"%d X" % status), {"error"})
        for status in (
            101,
            201,
            203,
            204,
            205,
            206,
            226,
            299,
            300,
            301,
            302,
            304,
            307,
            308,
            402,
            407,
            418,
            451,
            501,
            599,
        )
    },
    **{
        f"status {status.decode()}": (replaced(b"200 OK", status), {"error"})
        for status in (b"000", b"20", b"2000", b"-200", b"999", b"2OO", b"+20")
    },
}
PLAINLY: dict[str, tuple[bytes, set[str]]] = {
    "a length that is too long": (GOOD_PLAIN.replace(LENGTH, b"content-length: 9999\r\n"), {"error"}),
    "a length that is too short": (GOOD_PLAIN.replace(LENGTH, b"content-length: 99\r\n"), {"error"}),
    "a length short by one": (GOOD_PLAIN.replace(LENGTH, b"content-length: %d\r\n" % (len(DOCUMENT) - 1)), {"error"}),
    "no length": (GOOD_PLAIN.replace(LENGTH, b""), {"whole"}),
    "no length, of an old server": (GOOD_PLAIN.replace(LENGTH, b"").replace(b"1.1", b"1.0"), {"whole"}),
    "no length and half of it": (GOOD_PLAIN.replace(LENGTH, b"")[:-100], {"error"}),
    "chunks": (HEAD + JSON + CHUNKED + b"\r\n" + stream_of(DOCUMENT[:9], DOCUMENT[9:]) + wire.LAST_CHUNK, {"whole"}),
    "chunks without the last": (HEAD + JSON + CHUNKED + b"\r\n" + stream_of(DOCUMENT), {"error"}),
    "compressed": (GOOD_PLAIN.replace(DOCUMENT, gzip.compress(DOCUMENT)).replace(LENGTH, b""), {"error"}),
    "space around it": (GOOD_PLAIN.replace(LENGTH, b"").replace(DOCUMENT, b"\n " + DOCUMENT + b"\n"), {"whole"}),
    "twice": (GOOD_PLAIN.replace(LENGTH, b"").replace(DOCUMENT, DOCUMENT * 2), {"error"}),
    "NUL behind it": (GOOD_PLAIN.replace(LENGTH, b"") + b"\x00", {"error"}),
    "deep": (HEAD + JSON + b"\r\n" + b'{"choices":' + b"[" * 100_000, {"error"}),
    "a number without measure": (
        HEAD + JSON + b'\r\n{"choices":[],"usage":{"prompt_tokens":1' + b"0" * 5000 + b"}}",
        {"error"},
    ),
    "beyond the limit": (HEAD + JSON + b"\r\n" + b" " * 2**19 + DOCUMENT, {"error"}),
}
STREAMING: dict[str, tuple[bytes, set[str]]] = {
    "a length": (HEAD + EVENTS + b"content-length: %d\r\n\r\n" % len(STREAM) + STREAM, {"whole"}),
    "a length that is too short": (HEAD + EVENTS + b"content-length: 900\r\n\r\n" + STREAM, {"error"}),
    "neither length nor chunks": (HEAD + EVENTS + b"\r\n" + STREAM, {"whole"}),
    "neither, and half of it": (HEAD + EVENTS + b"\r\n" + STREAM[:1200], {"error"}),
    "CR LF for every line": (HEAD + EVENTS + b"\r\n" + STREAM.replace(b"\n", b"\r\n"), {"whole"}),
    "CR for every line": (HEAD + EVENTS + b"\r\n" + STREAM.replace(b"\n", b"\r"), {"whole"}),
    "a mark of the byte order": (HEAD + EVENTS + b"\r\n\xef\xbb\xbf" + STREAM, EITHER),
    "comments": (HEAD + EVENTS + b"\r\n" + STREAM.replace(b"\n\n", b"\n\n: keep-alive\n\n"), {"whole"}),
    "other fields": (HEAD + EVENTS + b"\r\n" + STREAM.replace(b"data: ", b"id: 1\nretry: 9\nx\ndata: "), {"whole"}),
    "trailers": (GOOD_STREAM.removesuffix(b"\r\n") + b"x: y\r\n\r\n", {"whole"}),
    "extensions of chunks": (
        HEAD + EVENTS + CHUNKED + b"\r\n%x;a=b\r\n%b\r\n0;c\r\n\r\n" % (len(STREAM), STREAM),
        {"whole"},
    ),
    "a chunk's size with a sign": (
        HEAD + EVENTS + CHUNKED + b"\r\n+%x\r\n%b\r\n0\r\n\r\n" % (len(STREAM), STREAM),
        {"error"},
    ),
    "a chunk's size beyond all measure": (HEAD + EVENTS + CHUNKED + b"\r\nfffffffffffffffff\r\n" + STREAM, {"error"}),
    "a chunk's size that is too small": (HEAD + EVENTS + CHUNKED + b"\r\n9\r\n%b\r\n0\r\n\r\n" % STREAM, {"error"}),
    "compressed": (HEAD + EVENTS + b"\r\n" + gzip.compress(STREAM), {"error"}),
    "a document behind it": (HEAD + EVENTS + b"\r\n" + STREAM + DOCUMENT, {"whole"}),
    "another stream behind it": (HEAD + EVENTS + b"\r\n" + STREAM + STREAM, {"whole"}),
}


@pytest.mark.parametrize("sample", ["chat", "stream"])
async def test_what_is_odd_about_an_answer_is_harmless_or_an_error(sample: str) -> None:
    """Heads of every kind: each is read in the one way that is right, or not at all, and never follows anybody."""
    good = GOOD_STREAM if sample == "stream" else GOOD_PLAIN
    thens: tuple[Afterwards, ...] = ("fin", "keep")
    assert not await otherwise(
        sample,
        [((name, then), Sent((spoil(good),), then), may) for name, (spoil, may) in ANYHOW.items() for then in thens],
    )


@pytest.mark.parametrize("sample", ["chat", "stream"])
async def test_what_is_odd_about_a_body_is_harmless_or_an_error(sample: str) -> None:
    """Lengths that lie, other framings, other lines, what comes behind."""
    cases = STREAMING if sample == "stream" else PLAINLY
    assert not await otherwise(sample, [(name, Sent((reply,)), allowed) for name, (reply, allowed) in cases.items()])


# Without end.

ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "a status line": (b"HTTP/1.1 200 ", BLOCK),
    "a header": (HEAD + b"x: ", BLOCK),
    "a header's name": (HEAD, BLOCK),
    "headers": (HEAD, b"x: y\r\n" * 500),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "empty lines": (b"", b"\r\n" * 2000),
    "a chunk's size": (HEAD + EVENTS + CHUNKED + b"\r\n", b"0" * 4096),
    "a chunk's extension": (HEAD + EVENTS + CHUNKED + b"\r\n5;", BLOCK),
    "a document": (HEAD + JSON + b"\r\n{", BLOCK),
    "an event": (HEAD + EVENTS + b"\r\ndata: ", BLOCK),
    "comments": (HEAD + EVENTS + b"\r\n", b": keep-alive\n\n" * 300),
    "empty events": (HEAD + EVENTS + b"\r\n", b"\n" * 4096),
}
# After a first event, where an error is still an event.
ENDLESS_LATER: dict[str, tuple[bytes, bytes]] = {
    "a later event": (b"data: ", BLOCK),
    "a line of another field": (b"x", BLOCK),
    "lines without an end": (b"", b"data: x\n" * 500),
}


@pytest.mark.parametrize("sample", ["chat", "stream"])
async def test_what_has_no_end_is_given_up(sample: str) -> None:
    """Long before the engine comes to the end of its breath; it learns so from the end of its connection."""
    endless = {name: (start, block) for name, (start, block) in ENDLESS.items()}
    if sample == "stream":
        head = HEAD + EVENTS + b"\r\n" + STREAM[: STREAM.index(b"\n\n") + 2]
        endless |= {name: (head + start, block) for name, (start, block) in ENDLESS_LATER.items()}
    sent = [(name, Sent((start, *[block] * 400), "hold"), {"error"}) for name, (start, block) in endless.items()]
    assert not await otherwise(sample, sent)


@pytest.mark.parametrize("sample", ["chat", "stream"])
async def test_a_trailer_without_end_is_not_waited_for(sample: str) -> None:
    """Behind a reply that is whole there is nothing to wait for, and the connection is not used again."""
    whole, may = (GOOD_STREAM, {"whole"}) if sample == "stream" else (PLAINLY["chunks"][0], EITHER)
    begun = whole.removesuffix(b"\r\n") + b"x: "
    assert not await otherwise(sample, [("trailer", Sent((begun, *[BLOCK] * 100), "hold"), may)])
