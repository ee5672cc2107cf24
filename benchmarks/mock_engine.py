"""A mock engine that looks like vLLM and costs little: `python -m benchmarks.mock_engine --ports 9101,9102`.

It owns when replies are written and what became of them (`/bench/stats`); their bytes are `benchmarks.vllm_bytes`.
Each port is an engine of its own. How a reply comes is asked for in the prompt (`benchmarks.script`) or, where that
is silent, by `MOCK_ENGINE_TTFT_MS` and so on in the environment. One timer serves all streams, so that thousands of
them cost what their writes cost.
"""

import argparse
import asyncio
import os
import resource
import time
from collections import deque
from functools import partial
from typing import Any

import orjson

from benchmarks.script import CHAT_PATH, LONGEST, Behaviour, now_us, read_prompt
from benchmarks.serving import Connection, reply, serve
from benchmarks.vllm_bytes import CREATED, STREAM_HEAD, Words, plain_body, usage_of

STATS_PATH = "/bench/stats"
RESET_PATH = "/bench/reset"
MODEL = "mock-model"
TICK_S = 0.001


class Wheel:
    """Whose turn it is at which millisecond: one timer for all of them, and none while nobody waits."""

    def __init__(self) -> None:
        self._turns: dict[int, list[Play]] = {}
        self._reached = 0
        self._running = False

    def at(self, tick: int, play: "Play") -> None:
        """Its turn comes at that millisecond of the clock, or at the next if that has passed."""
        if not self._running:
            self._running = True
            self._reached = time.monotonic_ns() // 1_000_000
            asyncio.get_running_loop().call_later(TICK_S, self._turn)
        self._turns.setdefault(max(tick, self._reached + 1), []).append(play)

    def _turn(self) -> None:
        now = time.monotonic_ns() // 1_000_000
        while self._reached < now:
            self._reached += 1
            for play in self._turns.pop(self._reached, ()):
                play.turn()
        if self._turns:
            asyncio.get_running_loop().call_later(TICK_S, self._turn)
        else:
            self._running = False


class Play:
    """One call's reply on its way out."""

    __slots__ = ("_begun", "_due", "_place", "_stream", "behaviour", "body", "caller", "engine", "gone", "words")

    def __init__(
        self, engine: "Engine", caller: "Caller", behaviour: Behaviour, words: Words, body: bytes | None
    ) -> None:
        """`body` is the whole reply of a call that does not stream."""
        self.engine = engine
        self.caller = caller
        self.behaviour = behaviour
        self.words = words
        self.body = body
        self.gone = False
        self._stream = body is None
        self._begun = False
        self._place = 0
        self._due = 0

    def received(self) -> None:
        """A stream's head goes out before the call has its turn, as vLLM's does."""
        if self._stream and not (self.behaviour.burst or self.behaviour.ttft_ms == 0):
            self._begun = True
            self.caller.transport.write(STREAM_HEAD)

    def start(self) -> None:
        """The engine has a place for it."""
        wait_ms = self.behaviour.ttft_ms
        if not self._stream:
            wait_ms += self.behaviour.interval_ms * (self.words.tokens - 1)
        self._due = time.monotonic_ns() // 1_000_000 + wait_ms
        if wait_ms:
            self.engine.wheel.at(self._due, self)
        else:
            self.turn()

    def turn(self) -> None:
        """Writes what is due, and says when the next is."""
        if self.gone:
            return
        if self.body is not None:
            self.caller.transport.write(self.body)
            self.engine.complete(self)
            return
        if self.behaviour.burst or (self.behaviour.interval_ms == 0 and self._place == 0):
            words = self.words
            head = b"" if self._begun else STREAM_HEAD
            self.engine.chunks += words.tokens
            self.caller.transport.write(head + words.role() + words.tokens_at_once() + words.closing())
            self.engine.complete(self)
            return
        if self.caller.clogged:
            self.engine.stalls += 1
        else:
            self._step()
            if self._place == self.words.tokens:
                self.engine.complete(self)
                return
        self._due += self.behaviour.interval_ms
        self.engine.wheel.at(self._due, self)

    def _step(self) -> None:
        self._place += 1
        words = self.words
        data = words.token(self._place)
        if self._place == 1:
            data = (b"" if self._begun else STREAM_HEAD) + words.role() + data
        if self._place == words.tokens:
            data += words.closing()
        self.engine.chunks += 1
        self.caller.transport.write(data)


class Engine:
    """What is running, what waits for a place, and the counts."""

    def __init__(
        self, wheel: Wheel, model: str = MODEL, slots: int | None = None, default: Behaviour | None = None
    ) -> None:
        """`slots` is how many calls run at the same time; further ones wait, first come first served."""
        self.model = model
        self.wheel = wheel
        self.calls = self.chunks = self.done = self.stalls = self.malformed = 0
        self.cancelled_at_us: list[int] = []
        self._slots = slots
        self._default = default or Behaviour()
        self._running: set[Play] = set()
        self._waiting: deque[Play] = deque()

    def __repr__(self) -> str:
        under_way = f"{len(self._running)} running, {len(self._waiting)} waiting"
        return f"<Engine {under_way}, {self.done} done, {len(self.cancelled_at_us)} cancelled>"

    def play(self, caller: "Caller", body: bytes) -> Play | None:
        """The reply to a call; None where the call could not be read."""
        try:
            asked: dict[str, Any] = orjson.loads(body)
            content = asked["messages"][-1]["content"]
            text = content if isinstance(content, str) else content[0]["text"]
            most = asked.get("max_tokens") or asked.get("max_completion_tokens") or LONGEST
        except (ValueError, KeyError, IndexError, TypeError):
            self.malformed += 1
            return None
        self.calls += 1
        call, behaviour = read_prompt(text, self._default)
        tokens = min(most, behaviour.tokens, LONGEST)
        length = most <= behaviour.tokens
        prompt_tokens = 8 + len(text) // 4
        wants_usage = (asked.get("stream_options") or {}).get("include_usage") is True
        if asked.get("stream") is True:
            usage = usage_of(prompt_tokens, tokens) if wants_usage else None
            words = Words(call, self.calls, self.model.encode(), tokens, length=length, usage=usage)
            return Play(self, caller, behaviour, words, None)
        whole = reply(b"200 OK", plain_body(call, self.calls, self.model, prompt_tokens, tokens, length=length))
        words = Words(call, self.calls, b"", tokens, length=length, usage=None)
        return Play(self, caller, behaviour, words, whole)

    def take(self, play: Play) -> None:
        """Starts it, or lets it wait."""
        if self._slots is not None and len(self._running) >= self._slots:
            self._waiting.append(play)
        else:
            self._running.add(play)
            play.start()

    def complete(self, play: Play) -> None:
        self.done += 1
        play.gone = True
        self._leave(play)
        play.caller.next_message()

    def cancel(self, play: Play) -> None:
        """Its caller has left."""
        play.gone = True
        self.cancelled_at_us.append(now_us())
        self._leave(play)

    def _leave(self, play: Play) -> None:
        if play not in self._running:
            self._waiting.remove(play)
            return
        self._running.discard(play)
        if self._waiting:
            following = self._waiting.popleft()
            self._running.add(following)
            following.start()

    def reset(self) -> None:
        """Ends every call, and forgets who has left."""
        for play in (*self._waiting, *self._running):
            play.caller.transport.abort()
            play.gone = True
        self._waiting.clear()
        self._running.clear()
        self.cancelled_at_us.clear()

    def stats(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "chunks": self.chunks,
            "done": self.done,
            "running": len(self._running),
            "waiting": len(self._waiting),
            "cancelled": len(self.cancelled_at_us),
            "cancelled_at_us": self.cancelled_at_us,
            "stalls": self.stalls,
            "malformed": self.malformed,
            "cpu_s": time.process_time(),
            "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }

    def metrics(self) -> bytes:
        """What gateways steer by, in vLLM's words."""
        labels = f'{{engine="0",model_name="{self.model}"}}'
        gauges = {
            "num_requests_running": len(self._running),
            "num_requests_waiting": len(self._waiting),
            "kv_cache_usage_perc": min(1.0, len(self._running) / 16384),
        }
        lines = [f"# TYPE vllm:{name} gauge\nvllm:{name}{labels} {float(value)}\n" for name, value in gauges.items()]
        return "".join(lines).encode()

    def models(self) -> bytes:
        model = {
            "id": self.model,
            "object": "model",
            "created": CREATED,
            "owned_by": "vllm",
            "root": self.model,
            "parent": None,
            "max_model_len": 131072,
            "permission": [],
        }
        return orjson.dumps({"object": "list", "data": [model]})


class Caller(Connection):
    """One connection to the engine: one call at a time."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._play: Play | None = None
        self._keep = True
        self.clogged = False

    def message(self, body: bytes) -> None:
        self._keep = self.parser.should_keep_alive()
        path = self.url.partition(b"?")[0].decode("latin-1")
        if path == CHAT_PATH and self._play is None:
            play = self._engine.play(self, body)
            if play is not None:
                self._play = play
                play.received()
                self._engine.take(play)
                return
        self.transport.write(self._answer(path))
        self.next_message()

    def next_message(self) -> None:
        self._play = None
        if not self._keep:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        play, self._play = self._play, None
        if play is not None and not play.gone:
            self._engine.cancel(play)

    def pause_writing(self) -> None:
        self.clogged = True

    def resume_writing(self) -> None:
        self.clogged = False

    def _answer(self, path: str) -> bytes:
        engine = self._engine
        match path:
            case "/health" | "/ping":
                return reply(b"200 OK", b"")
            case "/v1/models":
                return reply(b"200 OK", engine.models())
            case "/metrics":
                return reply(b"200 OK", engine.metrics(), b"text/plain; version=1.0.0; charset=utf-8")
            case "/version":
                return reply(b"200 OK", b'{"version":"0.32.0"}')
            case _ if path == STATS_PATH:
                return reply(b"200 OK", orjson.dumps(engine.stats()))
            case _ if path == RESET_PATH:
                engine.reset()
                return reply(b"200 OK", b"{}")
            case _ if path == CHAT_PATH:
                return reply(
                    b"400 Bad Request", b'{"error":{"message":"not a call","type":"BadRequestError","code":400}}'
                )
            case _:
                return reply(b"404 Not Found", b'{"detail":"Not Found"}')


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mock_engine", description=__doc__)
    parser.add_argument("--ports", default="9101", help="where to listen, e.g. 9101,9102: an engine each")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--slots", type=int, help="calls that run at the same time; further ones wait")
    given = parser.parse_args()
    wheel, default = Wheel(), Behaviour.from_environment(os.environ)
    engines = {int(port): Engine(wheel, given.model, given.slots, default) for port in given.ports.split(",")}
    serve({port: partial(Caller, engine) for port, engine in engines.items()})


if __name__ == "__main__":
    main()
