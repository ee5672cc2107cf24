"""Callers of a soak: each calls in another way all the time, and looks closely at what he is told."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

from tests.harness import CHAT, bearer, begun, hello
from tests.wire_client import WireClient, WireReply, message, payload

WORDS = tuple(f" w{number}" for number in range(50))
"""What the engines of a soak say, over and over."""
CANARY = "xylophone marzipan"
"""What every caller says, and no log may repeat."""
PATIENCE_S = 20.0
SLOW_READER_S = 1.0
"""What the gateway of a soak allows a caller who does not read."""


@dataclass
class Tally:
    """What callers got, by what they wanted; `wrong` are the first replies that must not have been."""

    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def count(self, kind: str, what: str) -> None:
        self.seen[f"{kind}: {what}"] += 1
        if what not in ("ok", "error", "left", "cut off by us"):
            self.wrong.append(f"{kind}: {what}")


def text(tokens: int) -> str:
    return "".join(islice(cycle(WORDS), tokens))


def is_error(document: Any) -> bool:
    error = document.get("error") if isinstance(document, dict) else None
    return isinstance(error, dict) and set(error) == {"message", "type", "param", "code"}


def judged(reply: WireReply, tokens: int) -> str:
    """`ok` for the whole right reply, `error` for an explicit one; else what is wrong with it."""
    if not reply.complete:
        return f"{reply} broke off"
    if reply.status != 200:
        return "error" if is_error(reply.json) else f"{reply} is no error"
    own = (reply.header("x-request-id") or "none").encode()
    if b"chatcmpl-" in reply.body and own not in reply.body:
        return f"{reply} is somebody else's"
    if (reply.header("content-type") or "").startswith("text/event-stream"):
        said = [payload(event) for event in reply.body.split(b"\n\n")]
        return judged_stream([it for it in said if it is not None], tokens)
    said = reply.json["choices"][0]["message"]["content"]
    return "ok" if said == text(tokens) else f"{reply} says {said[:80]!r}"


def judged_stream(said: list[Any], tokens: int) -> str:
    *chunks, last = said or [None]
    if not all(isinstance(chunk, dict) and "choices" in chunk for chunk in chunks):
        return f"it holds {chunks[-3:]}"
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    words = "".join(choice["delta"].get("content") or "" for choice in choices)
    if is_error(last):
        return "error" if text(tokens).startswith(words) else f"it says {words[-80:]!r} and an error"
    if last != "[DONE]" or not any(choice["finish_reason"] for choice in choices):
        return f"it ends in {last!r}"
    return "ok" if words == text(tokens) else f"it says {words[-80:]!r}"


class Caller:
    """Calls without a pause until told to stop, each time in another way."""

    def __init__(self, url: str, rng: random.Random, tally: Tally) -> None:
        self._url = url
        self._rng = rng
        self._tally = tally
        self._ways: dict[Callable[[], Awaitable[tuple[str, str]]], int] = {
            self._on_one_connection: 8,
            self._streaming: 30,
            self._leaving: 20,
            self._half_closing: 5,
            self._reading_slowly: 2,
            self._bad: 20,
        }

    async def call(self, until: asyncio.Event) -> None:
        while not until.is_set():
            (way,) = self._rng.choices([*self._ways], [*self._ways.values()])
            try:
                kind, what = await way()
            except (OSError, TimeoutError) as error:
                kind, what = way.__name__, repr(error)
            self._tally.count(kind.strip("_"), what)

    def _connected(self, **options: Any) -> WireClient:
        return WireClient(self._url, within_s=PATIENCE_S, **options)

    def _body(self, *, stream: bool, most: int = 40) -> tuple[dict[str, Any], int]:
        tokens = self._rng.randint(1, most)
        return hello(CANARY, stream=stream, max_tokens=tokens), tokens

    async def _on_one_connection(self) -> tuple[str, str]:
        """Several calls, as an SDK keeps its connection."""
        async with self._connected() as client:
            for _ in range(self._rng.randint(2, 12)):
                body, tokens = self._body(stream=False)
                what = judged(await client.post(CHAT, json=body, headers=bearer()), tokens)
                self._tally.count("plain", what)
        return "plain", what

    async def _streaming(self) -> tuple[str, str]:
        body, tokens = self._body(stream=True)
        async with self._connected() as client:
            return "stream", judged(await client.post(CHAT, json=body, headers=bearer()), tokens)

    async def _leaving(self) -> tuple[str, str]:
        """Anywhere: in the call, before the first token, in the middle, after the end."""
        body, _ = self._body(stream=self._rng.random() < 0.7)
        raw = message("POST", CHAT, json=body, headers=bearer())
        async with self._connected() as client:
            if self._rng.random() < 0.2:
                await client.send_raw(raw[: self._rng.randrange(len(raw))])
            else:
                await client.send_raw(raw)
                if self._rng.random() < 0.7:
                    stream = await begun(client)
                    for _ in range(self._rng.randint(0, 20)):
                        if not await stream.event():
                            break
            client.leave(self._rng.choice(("fin", "reset")))
        return "leaver", "left"

    async def _half_closing(self) -> tuple[str, str]:
        body, tokens = self._body(stream=True)
        async with self._connected() as client:
            await client.send("POST", CHAT, json=body, headers=bearer())
            client.half_close()
            return "half-closer", judged(await client.reply(), tokens)

    async def _reading_slowly(self) -> tuple[str, str]:
        """In sips; some stop, and lose their connection for it."""
        body, tokens = self._body(stream=True, most=1500)
        stops = self._rng.random() < 0.5
        async with self._connected(receive_buffer_bytes=16384) as client:
            await client.send("POST", CHAT, json=body, headers=bearer())
            stream = await begun(client)
            for _ in range(5):
                await asyncio.sleep(2 * SLOW_READER_S if stops else SLOW_READER_S / 20)
                if not await stream.read() or stops:
                    break
            while await stream.read():
                pass
            reply = stream.so_far()
            return "slow reader", "cut off by us" if stops and not reply.complete else judged(reply, tokens)

    async def _bad(self) -> tuple[str, str]:
        """No key, no JSON, no model, no route, no HTTP: an error in every case."""
        good = hello(CANARY)
        raw = self._rng.choice(
            (
                message("POST", CHAT, json=good),
                message("POST", CHAT, json=good, headers=bearer("pg-wrong")),
                message("POST", CHAT, json={**good, "model": "other"}, headers=bearer()),
                message("POST", CHAT, json={**good, "n": 1000}, headers=bearer()),
                message("POST", CHAT, body=b'{"model"', headers={**bearer(), "content-type": "application/json"}),
                message("GET", "/v1/nowhere"),
                message("GET", CHAT),
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
                message("POST", CHAT, body=b"x" * 100_000, headers={"expect": "100-continue"}),
            )
        )
        async with self._connected() as client:
            await client.send_raw(raw)
            return "bad call", judged(await client.reply(), 0)
