"""One reply of a scripted engine on its way out: which piece may go now, what it waits for, and how it ends.

`ReceivedCall` is the record that tests read; `Play` carries a script out, one write per piece and without
tasks. Which pieces there are is decided in `tests/script.py`.
"""

import asyncio
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Literal

import orjson

from tests.loopback import Connection, Facts, Message
from tests.script import A_TURN, Afterwards, Piece, Script

PATIENCE_S = 5.0
_TURNS = 3
_WRITES_AT_ONCE = 64


class ReceivedCall:
    """One call as it arrived, and what became of it."""

    def __init__(self, message: Message, connection: int, facts: Facts) -> None:
        self.method = message.method
        self.path = message.path
        self.route = message.path.partition("?")[0]
        self.headers = message.headers
        self.raw_body = message.body
        self.header = message.header
        self.connection = connection
        self.outcome: Literal["running", "complete", "aborted", "died"] = "running"
        self.finish: str | None = None
        self.chunks_sent = 0
        self.tokens = 0
        self._facts = facts

    @cached_property
    def body(self) -> Any:
        """The parsed JSON body."""
        return orjson.loads(self.raw_body)

    @property
    def aborted(self) -> bool:
        """The client closed before the end."""
        return self.outcome == "aborted"

    async def ended(self, within_s: float = PATIENCE_S) -> None:
        """Wait until nothing is done for the call any more, for whatever reason (`outcome`)."""
        await self._facts.until(lambda: self.outcome != "running", within_s, lambda: f"{self} ended")

    async def sent(self, chunks: int, within_s: float = PATIENCE_S) -> None:
        """Wait until that many chunks of the answer's body went out."""
        await self._facts.until(lambda: self.chunks_sent >= chunks, within_s, lambda: f"{self} sent {chunks} chunks")

    def __repr__(self) -> str:
        numbers = f"{self.chunks_sent} chunks, {self.tokens} tokens"
        return f"<ReceivedCall {self.method} {self.path} {self.outcome}, {numbers}>"


class Play:
    """A reply under way. Whoever changes what it waits for calls `advance`."""

    def __init__(
        self,
        call: ReceivedCall,
        connection: Connection,
        script: Script,
        pieces: Iterator[Piece],
        then: Afterwards,
        progressed: Callable[["Play", Piece], None],
        over: Callable[["Play"], None],
    ) -> None:
        self.call = call
        self.connection = connection
        self.script = script
        self.steps = 0
        self.begun = False
        self._pieces = pieces
        self._then = then
        self._progressed = progressed
        self._over = over
        self._piece: Piece | None = None
        self._paused = False
        self._timer: asyncio.Handle | None = None

    def advance(self) -> None:
        """Write whatever may go now."""
        for _ in range(_WRITES_AT_ONCE):
            if self._timer is not None or self.connection.clogged or self.call.outcome != "running":
                return
            if self._reached(self.script.dies_after):
                self._after_turns(_TURNS, self._die)
                return
            if self._piece is None:
                self._piece, self._paused = next(self._pieces, None), False
            if self._piece is None:
                self._finish()
                return
            if self._waits(self._piece):
                return
            if self._piece.pause_s and not self._paused:
                self._pause(self._piece.pause_s)
                return
            self._write(self._piece)
            self._piece = None
        self._after_turns(1, self.advance)

    def becomes(self, pieces: Iterator[Piece]) -> None:
        """Forget the rest of the reply and go on with these pieces, whatever it waited for."""
        self.stop()
        self._piece, self._pieces = None, pieces
        self.advance()

    def stop(self) -> None:
        """Nothing goes out any more on its own."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _reached(self, count: int | None) -> bool:
        return count is not None and (self.call.chunks_sent if self.begun else -1) >= count

    def _waits(self, piece: Piece) -> bool:
        script = self.script
        return (
            script.held
            or self._reached(script.stalls_after)
            or (script.stepped and piece.chunks > 0 and self.steps <= 0)
        )

    def _write(self, piece: Piece) -> None:
        self.begun = True
        self.steps -= piece.chunks if self.script.stepped else 0
        self.call.chunks_sent += piece.chunks
        self.call.tokens += piece.tokens
        self.connection.write(piece.data)
        self._progressed(self, piece)

    def _pause(self, pause_s: float) -> None:
        if pause_s == A_TURN:
            self._after_turns(_TURNS, self._paused_enough)
        else:
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._paused_enough)

    def _paused_enough(self) -> None:
        self._timer, self._paused = None, True
        self.advance()

    def _after_turns(self, turns: int, then: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        if turns > 0:
            self._timer = loop.call_soon(self._after_turns, turns - 1, then)
        else:
            self._timer = None
            then()

    def _die(self) -> None:
        self.call.outcome = "died"
        self.connection.close(self.script.death)
        self._over(self)

    def _finish(self) -> None:
        if self._then == "hold":
            return
        self.call.outcome = "complete"
        if self._then != "keep":
            self.connection.close(self._then)
        self._over(self)
