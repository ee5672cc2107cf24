"""The values that travel along a call's path. They hold facts and decide nothing."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import orjson


class Usage(NamedTuple):
    """Tokens that a call took. `measured` is False where the engine never said and we estimated."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    measured: bool = True

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Call(NamedTuple):
    """One call, read and checked. `body` holds exactly the fields that go upstream.

    `model` is the canonical name: aliases are resolved. `max_tokens` is per choice, None when the caller
    left it open. `prompt_bytes` is what the caller sent. `received_at_s` is monotonic, and so is `deadline_s`: when
    the caller gives up unless his reply has begun. `yielding`: it may wait behind all others.
    """

    id: str
    path: str
    model: str
    body: Mapping[str, Any]
    stream: bool
    wants_usage: bool
    choices: int
    max_tokens: int | None
    prompt_bytes: int
    received_at_s: float
    deadline_s: float = math.inf
    yielding: bool = False

    @property
    def payload(self) -> bytes:
        """`body` as JSON; written anew each time, for a call is there as long as its stream and needs it once."""
        return orjson.dumps(self.body)

    def capped(self, completion_tokens: int) -> "Call":
        """The same call, of which a choice may have so many tokens and no more."""
        body = {name: value for name, value in self.body.items() if name != "max_tokens"}
        return self._replace(max_tokens=completion_tokens, body=body | {"max_completion_tokens": completion_tokens})

    def __repr__(self) -> str:
        return f"<Call {self.id} of {self.model}>"


class Counted(NamedTuple):
    """The tokens of a prompt, exactly, and how many more fit its context, where that is known."""

    prompt_tokens: int
    room: int | None


@dataclass(slots=True)
class Delivery:
    """What has reached the caller so far; the relay writes it, the lease and the record read it.

    Times are monotonic seconds. `events` counts relayed data events: about one a token, and the guess where the
    engine never said its `usage`. `complete` is set once the caller has been given the whole reply, whatever
    happens to the connection after that. `replica_s` is the call's share of the time of the replicas that ran it:
    calls on one replica share its time.
    """

    usage: Usage | None = None
    events: int = 0
    complete: bool = False
    replica_s: float = 0.0
    first_at_s: float | None = None
    last_at_s: float | None = None
    finish_reasons: list[str] = field(default_factory=list)


class Whole(NamedTuple):
    """A reply that is one JSON document."""

    body: bytes


class Taker(Protocol):
    """Whoever takes a stream: the caller's side of an exchange. While `full`, no more should be written."""

    full: bool

    def write(self, data: bytes) -> None: ...
    def when_room(self, told: Callable[[], None]) -> None: ...
    async def room(self) -> None: ...


class Streamed(Protocol):
    """A reply that is a stream of server-sent events."""

    async def pour(self, taker: Taker) -> None:
        """Writes the whole stream, in bytes that end at event boundaries. Raises Severed where it breaks off."""
        ...


class Reply(NamedTuple):
    """What goes back to the caller. `lines` are header lines with their CR LF, and ours alone: none is the engine's."""

    content: Whole | Streamed
    lines: bytes
