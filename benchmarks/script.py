"""What a call asks of the mock engine, and what the engine's tokens look like: the words that both sides share.

A call says in its prompt how its reply shall come, so that it reaches the engine through any gateway. A token
names its call, its place and the moment it was written: whoever receives it can tell what is missing, late,
doubled or another caller's. Moments are microseconds of the machine's monotonic clock.
"""

import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import orjson

CHAT_PATH = "/v1/chat/completions"
LONGEST = 99_999
"""Tokens of a reply, at most: a place has five digits."""

TOKEN = re.compile(r"@(\d{8})\.(\d{5})\.(\d{14}) ")
TOKEN_SIZE = 31

PLAIN_TEXT = 'The quick "brown" fox jumps over the lazy dog; then it sits down to think: naïve café, 速い狐, \\o/.'
"""What a plain reply says after its call's number; quotes, backslashes and two alphabets show any re-encoding."""

_OPENS, _CLOSES, _DIGITS = "[[bench ", "]]", 8


class Behaviour(NamedTuple):
    """How a reply comes. `tokens` is how many there are if a call's max_tokens does not end it sooner."""

    ttft_ms: int = 0
    interval_ms: int = 0
    tokens: int = LONGEST
    burst: int = 0
    """1: everything, the head included, in one write."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Behaviour":
        """`MOCK_ENGINE_TTFT_MS` and so on. Raises ValueError for what is no number."""
        given = {name: environment.get(f"MOCK_ENGINE_{name.upper()}") for name in cls._fields}
        return cls(**{name: int(text) for name, text in given.items() if text is not None})


def now_us() -> int:
    return time.monotonic_ns() // 1000


def prompt(behaviour: Behaviour) -> tuple[str, str]:
    """A prompt that asks for the behaviour, in two parts: the eight digits of the call's number go in between."""
    default = Behaviour()
    asked = "".join(
        f" {name}={value}" for name, value in behaviour._asdict().items() if value != getattr(default, name)
    )
    return _OPENS, f"{asked}{_CLOSES} Tell me about the quick brown fox, please, in some detail."


def read_prompt(content: str, default: Behaviour) -> tuple[int, Behaviour]:
    """A call's number and the behaviour it asks for; 0 and the default where a prompt asks for nothing."""
    start = content.find(_OPENS)
    if start < 0:
        return 0, default
    number = start + len(_OPENS)
    end = content.index(_CLOSES, number)
    return int(content[number : number + _DIGITS]), _behaviour(content[number + _DIGITS : end], default)


@lru_cache(maxsize=256)
def _behaviour(asked: str, default: Behaviour) -> Behaviour:
    pairs = (pair.split("=") for pair in asked.split())
    return default._replace(**{name: int(value) for name, value in pairs if name in Behaviour._fields})


def plain_content(call: int) -> str:
    """What a plain reply to that call says."""
    return f"@{call:08d} {PLAIN_TEXT}"


class Asked(NamedTuple):
    """The body of a call, cut where its number goes, and what its reply must then be."""

    before: bytes
    after: bytes
    stream: bool
    tokens: int
    usage: bool


def ask(model: str, behaviour: Behaviour, *, stream: bool, tokens: int, usage: bool = False) -> Asked:
    """A call for that many tokens."""
    before, after = prompt(behaviour)
    system = {"role": "system", "content": "You are a helpful assistant."}
    body = {
        "model": model,
        "messages": [system, {"role": "user", "content": f"{before}\0{after}"}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": stream,
    }
    if usage and stream:
        body["stream_options"] = {"include_usage": True}
    first, _, rest = orjson.dumps(body).partition(b"\\u0000")
    return Asked(first, rest, stream, tokens, usage)
