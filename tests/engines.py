"""A scripted engine: a real loopback server that looks like vLLM 0.32 and misbehaves exactly as a test says.

`ScriptedEngine` owns the scripts, the routes and the record of what came in. What a script makes of a reply
is `tests/script.py`, how that goes out `tests/playback.py`; vLLM's bytes are `tests/vllm_wire.py`, sockets
`tests/loopback.py`. Nothing takes wall-clock time unless `paces` asks for it: tests wait for facts (`saw`,
`idle`, `call.sent`) or move a stream on by hand (`steps`, `step`).
"""

import zlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from types import TracebackType
from typing import Any, Self

import orjson

from tests import vllm_wire as wire
from tests.loopback import Connection, Death, Loopback, Message
from tests.playback import PATIENCE_S, Play, ReceivedCall
from tests.script import (
    Afterwards,
    Piece,
    Raw,
    Script,
    broken,
    cut,
    grouped,
    one_by_one,
    plain,
    prompts_of,
    spoiled,
    streamed,
    token_id,
    tokens_asked,
)

CALLS = "calls"
"""What a script applies to: the two generating routes together, or any one route by its path."""

_ROUTES = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/tokenize": "POST",
    "/v1/models": "GET",
    "/health": "GET",
    "/metrics": "GET",
    "/version": "GET",
}
_CHAT = "/v1/chat/completions"
_GENERATING = (_CHAT, "/v1/completions")


@dataclass(frozen=True, slots=True)
class Load:
    """What `/metrics` claims; None is the truth."""

    running: int | None = None
    waiting: int = 0
    kv_usage: float = 0.0


class ScriptedEngine:
    """One engine on a loopback port of its own.

    Every scripting method holds from now on for calls that arrive later; with `calls=k` it holds for the next
    k calls only, after which the lasting script is back. Methods that concern different things add up (`says`
    and `dies_after`); of those that concern the same thing the newest lasting one counts, and those with
    `calls=k` are used up in order.
    """

    def __init__(
        self,
        name: str = "a",
        model: str = "tiny",
        *,
        max_model_len: int = 2048,
        port: int = 0,
        recording: bool = True,
    ) -> None:
        """`recording=False` keeps counts but no calls: for benchmarks."""
        self.name = name
        self.model = model
        self.max_model_len = max_model_len
        self.calls: list[ReceivedCall] = []
        self.others: list[ReceivedCall] = []
        self.paths: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.calls_seen = self.served = self.aborted = self.died = 0
        self.generated_tokens = self.prompt_tokens = self.malformed_messages = 0
        self._recording = recording
        self._loopback = Loopback(self, port)
        self._facts = self._loopback.facts
        self._plays: dict[Connection, Play] = {}
        self._metrics = wire.Metrics()
        self._behave()

    def _behave(self) -> None:
        self._scripts: dict[str, Script] = {}
        self._once: dict[tuple[str, str], deque[Any]] = {}
        self._health = 200
        self._load = Load()
        self._poison: bytes | None = None

    async def __aenter__(self) -> Self:
        await self._loopback.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._loopback.__aexit__(kind, error, trace)

    def __repr__(self) -> str:
        counts = f"{self.running} running, {self.served} served, {self.aborted} aborted"
        return f"<ScriptedEngine {self.name} {counts}>"

    # What is true of it.

    @property
    def url(self) -> str:
        return self._loopback.url

    @property
    def port(self) -> int:
        return self._loopback.port

    @property
    def running(self) -> int:
        """Calls that were received and have not ended."""
        return sum(play.call.route in _GENERATING for play in self._plays.values())

    @property
    def connections_open(self) -> int:
        return len(self._loopback.connections)

    @property
    def connections_made(self) -> int:
        return self._loopback.connections_made

    async def until(self, fact: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
        """Wait until the fact, read from this engine, held at any moment; AssertionError if it never did."""
        await self._facts.until(fact, within_s, self.__repr__)

    async def saw(self, n_calls: int = 1, within_s: float = PATIENCE_S) -> None:
        """Wait until that many calls arrived, counted from the start."""
        await self.until(lambda: self.calls_seen >= n_calls, within_s)

    async def idle(self, within_s: float = PATIENCE_S) -> None:
        """Wait until nothing is running."""
        await self.until(lambda: self.running == 0, within_s)

    async def unconnected(self, within_s: float = PATIENCE_S) -> None:
        """Wait until no connection is open."""
        await self.until(lambda: self.connections_open == 0, within_s)

    # What it says.

    def says(self, *tokens: str, forever: bool = False, calls: int | None = None) -> None:
        """The tokens of an answer; `forever` repeats them to the call's max_tokens or the context's end."""
        self._set(calls, tokens=tokens, forever=forever)

    def paces(
        self, ttft_s: float = 0.0, gap_s: float = 0.0, *, chunks_per_write: int = 1, calls: int | None = None
    ) -> None:
        """Time to the first event and between tokens (or raw pieces); a plain answer takes the sum."""
        self._set(calls, ttft_s=ttft_s, gap_s=gap_s, chunks_per_write=chunks_per_write)

    def serves(self, model: str, max_model_len: int | None = None) -> None:
        """Serve another model, as after a restart."""
        self.model = model
        self.max_model_len = max_model_len or self.max_model_len

    def busy(self, running: int | None = None, waiting: int = 0, kv_usage: float = 0.0) -> None:
        """What `/metrics` claims from now on; running=None tells the truth."""
        self._load = Load(running, waiting, kv_usage)

    def health_is(self, status: int) -> None:
        self._health = status

    def adds_headers(self, *pairs: tuple[str, str], calls: int | None = None) -> None:
        """Headers on top of vLLM's own."""
        self._set(calls, headers=pairs)

    def behaves(self) -> None:
        """Forget every script, and let go on whatever was held, stalled or stepped."""
        self._behave()
        self._let_go(None, held=False, stalls_after=None, stepped=False)

    # What it waits for.

    def holds(self, *, calls: int | None = None, on: str = CALLS) -> None:
        """Accept, read, and answer nothing, not even a head, until `release`."""
        self._set(calls, on, held=True)

    def release(self, on: str = CALLS) -> None:
        """Answer what is held, and hold nothing any more."""
        self._set(None, on, held=False)
        self._let_go(on, held=False)

    def steps(self, *, calls: int | None = None) -> None:
        """Send the head, and then chunks only as `step` says; the framing's end follows the last chunk."""
        self._set(calls, stepped=True)

    def step(self, n_chunks: int = 1) -> None:
        """Let that many more chunks of every running call go out."""
        for play in tuple(self._plays.values()):
            play.steps += n_chunks
            play.advance()

    def stalls_after(self, chunks: int, *, calls: int | None = None) -> None:
        """Fall silent with the connection open; `stalls_after(0)` is a head and no event."""
        self._set(calls, stalls_after=chunks)

    def resumes(self) -> None:
        """Go on where it stalled, and stall no more."""
        self._set(None, stalls_after=None)
        self._let_go(CALLS, stalls_after=None)

    def only_comments(self, every_s: float = 0.01, *, calls: int | None = None) -> None:
        """A head, then keep-alive comments and never an event, as from a wedged engine core."""
        self._set(calls, comments_every_s=every_s)

    # How it dies.

    def dies_before_headers(self, how: Death = "reset", *, calls: int | None = None, on: str = CALLS) -> None:
        """Read the whole call and close: also how a pooled connection looks that died under its owner."""
        self._set(calls, on, dies_after=-1, death=how)

    def dies_after_headers(self, how: Death = "reset", *, calls: int | None = None) -> None:
        self.dies_after(0, how, calls=calls)

    def dies_after(self, chunks: int, how: Death = "reset", *, calls: int | None = None) -> None:
        """Close after that many chunks; of a plain answer each half of the body is one."""
        self._set(calls, dies_after=chunks, death=how)

    def crashes(self) -> None:
        """The process is gone: connections are reset and new ones refused, until `accepts_connections`."""
        for play in tuple(self._plays.values()):
            play.call.outcome = "died"
            self._over(play)
        self._loopback.refuse()
        self._loopback.reset()

    def crashes_on(self, text: str) -> None:
        """A query of death: crash when a body contains the text."""
        self._poison = text.encode()

    def loses_core(self) -> None:
        """The engine core dies under its API server: error events in open streams, then 500 and unhealthy."""
        self.fails_with(500, wire.CORE_DEAD)
        self._health = 503
        for play in tuple(self._plays.values()):
            if play.call.route in _GENERATING and not play.begun:
                play.script = Script()
                play.becomes(iter([Piece(wire.plain_reply(500, wire.CORE_DEAD), 1)]))
            elif play.call.route in _GENERATING:
                play.script = Script()
                last = [Piece(wire.chunk(event.data), 1) for event in broken(wire.CORE_DEAD)]
                play.becomes(iter([*last, Piece(wire.LAST_CHUNK)]))

    def refuses_connections(self) -> None:
        """Close the listener, keep the port and the open connections."""
        self._loopback.refuse()

    async def accepts_connections(self) -> None:
        """Listen again on the same port."""
        await self._loopback.listen()

    def closes_idle(self, how: Death = "fin") -> None:
        """Close the connections that carry no call, as vLLM does after 5 s of idleness."""
        for connection in tuple(self._loopback.connections - self._plays.keys()):
            connection.close(how)

    # What it gets wrong.

    def fails_with(
        self,
        status: int,
        body: wire.Body | None = None,
        headers: wire.Headers = (),
        *,
        content_type: str = "application/json",
        calls: int | None = None,
        on: str = CALLS,
    ) -> None:
        """Answer with this status, by default with vLLM's error body for it; the connection stays usable."""
        body = wire.error(status, "scripted failure") if body is None else body
        self.sends_raw(wire.plain_reply(status, body, headers, content_type), then="keep", calls=calls, on=on)

    def overflows(self, *, calls: int | None = None) -> None:
        """Answer as vLLM does when more calls wait than it was told to queue."""
        self.fails_with(503, wire.OVERFLOW, calls=calls)

    def error_event_after(
        self, chunks: int, body: Mapping[str, Any] | None = None, *, calls: int | None = None
    ) -> None:
        """After that many chunks an error inside the 200 and `[DONE]`, as when the engine core dies."""
        self._set(calls, error_after=chunks, error=wire.CORE_DEAD if body is None else body)

    def omits_done(self, *, calls: int | None = None) -> None:
        """A stream without `[DONE]` that otherwise ends cleanly."""
        self._set(calls, dones=0)

    def omits_usage(self, *, calls: int | None = None) -> None:
        """No usage, though asked for; null in a plain answer."""
        self._set(calls, usages=0)

    def doubles_usage(self, *, calls: int | None = None) -> None:
        """The stream's usage event comes twice."""
        self._set(calls, usages=2)

    def ends_without_finish(self, *, calls: int | None = None) -> None:
        """A stream whose choices never get a finish reason."""
        self._set(calls, finishes=0)

    def sends_events(self, *events: bytes, calls: int | None = None) -> None:
        """A stream of exactly these bytes, each one well-framed HTTP chunk: any SSE, valid or not."""
        self._set(calls, events=events)

    def sends_raw(
        self,
        pieces: bytes | Sequence[bytes],
        then: Afterwards = "fin",
        *,
        calls: int | None = None,
        on: str = CALLS,
    ) -> None:
        """Exactly these bytes instead of a reply, one write a piece; then keep the connection for the next
        call (`keep`), end it, or leave the call open (`hold`).
        """
        parts = (pieces,) if isinstance(pieces, bytes) else tuple(pieces)
        self._set(calls, on, raw=Raw(parts, then))

    def replays(self, sample: str, *, calls: int | None = None) -> None:
        """Answer with a reply recorded from a real engine, e.g. `stream_logprobs`."""
        self.sends_raw(wire.recorded(sample).reply, then="keep", calls=calls)

    def cuts(self, *at: int, every: int = 0, calls: int | None = None) -> None:
        """End a write at these offsets of the whole reply, head included, or after `every` bytes."""
        self._set(calls, cuts_at=at, cuts_every=every)

    def _set(self, calls: int | None, on: str = CALLS, /, **fields: Any) -> None:
        if calls is None:
            self._scripts[on] = replace(self._scripts.get(on, Script()), **fields)
            return
        for name, value in fields.items():
            self._once.setdefault((on, name), deque()).extend([value] * calls)

    def _script_for(self, on: str) -> Script:
        once = {name: queue.popleft() for (whom, name), queue in self._once.items() if whom == on and queue}
        lasting = self._scripts.get(on) or Script()
        return replace(lasting, **once) if once else lasting

    def _let_go(self, whom: str | None, /, **gates: Any) -> None:
        for play in tuple(self._plays.values()):
            if whom in (None, CALLS if play.call.route in _GENERATING else play.call.route):
                play.script = replace(play.script, **gates)
                play.advance()

    # What comes in.

    def received(self, connection: Connection, message: Message) -> None:
        call = ReceivedCall(message, connection.number, self._facts)
        generates = call.route in _GENERATING
        self.paths[f"{call.method} {call.route}"] += 1
        self.calls_seen += generates
        if self._recording:
            (self.calls if generates else self.others).append(call)
        script = self._script_for(CALLS if generates else call.route)
        then = script.raw.then if script.raw else "keep"
        if not message.keep_alive:
            script = replace(script, headers=(*script.headers, ("connection", "close")))
            then = "fin" if then == "keep" else then
        play = Play(call, connection, script, self._pieces(call, script), then, self._progressed, self._over)
        self._plays[connection] = play
        self._facts.changed()
        if self._poison is not None and self._poison in message.body:
            self.crashes()
        play.advance()

    def malformed(self, connection: Connection) -> None:
        self.malformed_messages += 1
        connection.write(wire.plain_reply(400, "Invalid HTTP request received.", content_type="text/plain"))
        connection.close()

    def writable(self, connection: Connection) -> None:
        if play := self._plays.get(connection):
            play.advance()

    def lost(self, connection: Connection) -> None:
        if play := self._plays.get(connection):
            play.call.outcome = "aborted"
            self._over(play)

    def _progressed(self, play: Play, piece: Piece) -> None:
        self.generated_tokens += piece.tokens
        self._facts.changed()

    def _over(self, play: Play) -> None:
        play.stop()
        del self._plays[play.connection]
        call = play.call
        if call.route in _GENERATING:
            self.served += call.outcome == "complete"
            self.aborted += call.outcome == "aborted"
            self.died += call.outcome == "died"
            self.finished[{"aborted": "abort", "complete": call.finish or "error"}.get(call.outcome, "error")] += 1
        self._facts.changed()
        if call.outcome == "complete":
            play.connection.next_message()

    # What goes out.

    def _pieces(self, call: ReceivedCall, script: Script) -> Iterator[Piece]:
        if script.raw is not None:
            return one_by_one(script.raw.pieces, 0, script)
        pieces = self._reply(call, script)
        if not (script.cuts_at or script.cuts_every):
            return pieces
        written = list(pieces)
        whole = b"".join(piece.data for piece in written)
        return one_by_one(cut(whole, script), sum(piece.tokens for piece in written), script)

    def _reply(self, call: ReceivedCall, script: Script) -> Iterator[Piece]:
        if call.method != "POST" or call.route not in _GENERATING:
            return iter([Piece(self._told(call, script.headers), 1)])
        if refusal := self._refusal(call):
            return iter([Piece(wire.plain_reply(refusal["error"]["code"], refusal, script.headers), 1)])
        said = self._utterance(call, script)
        self.prompt_tokens += sum(map(len, said.prompts))
        call.finish = said.finish
        if not call.body.get("stream"):
            body = wire.chat_answer(said) if call.route == _CHAT else wire.completion_answer(said)
            return plain(wire.plain_reply(200, body, script.headers), len(said.tokens) * said.choices, script)
        events = wire.chat_events(said) if call.route == _CHAT else wire.completion_events(said)
        return grouped(streamed(spoiled(events, script), said.choices, script), script.chunks_per_write)

    def _refusal(self, call: ReceivedCall) -> dict[str, Any] | None:
        try:
            body = call.body
        except orjson.JSONDecodeError as error:
            return wire.error(400, f"1 validation error:\n  JSON decode error: {error}", kind="Bad Request")
        if body.get("model", self.model) != self.model:
            return wire.unknown_model(body["model"], self.model)
        longest = max(map(len, prompts_of(body)), default=0)
        if longest > self.max_model_len:
            return wire.prompt_too_long(self.max_model_len, longest)
        asked = tokens_asked(body)
        if asked is not None and asked > self.max_model_len:
            return wire.too_many_tokens_asked(self.max_model_len, asked)
        return None

    def _utterance(self, call: ReceivedCall, script: Script) -> wire.Utterance:
        body = call.body
        prompts = prompts_of(body)
        room = max(1, self.max_model_len - max(map(len, prompts)))
        limit = min(tokens_asked(body) or room, room)
        texts = tuple(islice(cycle(script.tokens) if script.forever else script.tokens, limit))
        cut_short = len(texts) == limit and script.finishes > 0
        options = body.get("stream_options") or {}
        prefix = "chatcmpl" if call.route == _CHAT else "cmpl"
        return wire.Utterance(
            id=f"{prefix}-{call.header('x-request-id') or self._next_id()}",
            model=self.model,
            tokens=[wire.Token(text, token_id(text)) for text in texts],
            prompts=prompts,
            finish="length" if cut_short else "stop",
            n=body.get("n") or 1,
            usage=script.usages > 0 and bool(options.get("include_usage") or not body.get("stream")),
            continuous_usage=bool(options.get("continuous_usage_stats")),
            token_ids=bool(body.get("return_token_ids")),
        )

    def _next_id(self) -> str:
        return f"{zlib.crc32(self.name.encode()):08x}{self.calls_seen:08x}"

    def _told(self, call: ReceivedCall, headers: wire.Headers) -> bytes:
        match (_ROUTES.get(call.route), call.route):
            case (None, _):
                return wire.plain_reply(404, {"detail": "Not Found"}, headers)
            case (method, _) if method != call.method:
                return wire.plain_reply(405, {"detail": "Method Not Allowed"}, [*headers, ("allow", method)])
            case (_, "/health"):
                return wire.plain_reply(self._health, b"", headers)
            case (_, "/metrics"):
                body = self._metrics.render(self.model, self._measured())
                return wire.plain_reply(200, body, headers, "text/plain; version=1.0.0; charset=utf-8")
            case (_, "/v1/models"):
                return wire.plain_reply(200, wire.models(self.model, self.max_model_len), headers)
            case (_, "/tokenize"):
                return wire.plain_reply(200, wire.tokenized(prompts_of(call.body)[0], self.max_model_len), headers)
            case _:
                return wire.plain_reply(200, {"version": wire.VERSION}, headers)

    def _measured(self) -> dict[str, float]:
        running = self.running if self._load.running is None else self._load.running
        return {
            "vllm:num_requests_running": running,
            "vllm:num_requests_waiting": self._load.waiting,
            "vllm:num_requests_waiting_by_reason{capacity}": self._load.waiting,
            "vllm:kv_cache_usage_perc": self._load.kv_usage,
            "vllm:prompt_tokens_total": self.prompt_tokens,
            "vllm:generation_tokens_total": self.generated_tokens,
            **{f"vllm:request_success_total{{{reason}}}": n for reason, n in self.finished.items()},
        }


ScriptedEngines = Mapping[str, ScriptedEngine]


@asynccontextmanager
async def scripted(*names: str, model: str = "tiny", max_model_len: int = 2048) -> AsyncIterator[ScriptedEngines]:
    """Several engines by name, each on its own port."""
    async with AsyncExitStack() as up:
        yield {
            name: await up.enter_async_context(ScriptedEngine(name, model, max_model_len=max_model_len))
            for name in names
        }
