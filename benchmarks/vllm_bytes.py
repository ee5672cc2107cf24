"""The bytes of the mock engine's replies: vLLM's layout of a chat completion, plain and streamed, laid out cheaply.

Pure; `tests/unit/test_bench_engine.py` holds the layout to samples recorded from a real engine.
"""

from functools import lru_cache
from typing import Any

import orjson

from benchmarks.script import now_us, plain_content

CREATED = 1795261825
FINGERPRINT = "vllm-0.32.0-3ee0ce6a"

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 11:50:25 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\ntransfer-encoding: chunked\r\n\r\n"
)
_PLACES = [b"%05d." % place for place in range(1001)]
_DONE = b"e\r\ndata: [DONE]\n\n\r\n"
_LAST = b"0\r\n\r\n"
_TOKEN_END = b'"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n\r\n'
_FINAL_END = b'"},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]}\n\n\r\n'


def chunked(event: bytes) -> bytes:
    """One HTTP chunk: vLLM's server makes one of every event."""
    return b"%x\r\n%b\r\n" % (len(event), event)


class Words:
    """The bytes of one reply, call by call: what is the same in all of its chunks is laid out once."""

    __slots__ = ("_final_start", "_opening", "_token_start", "length", "tokens", "usage")

    def __init__(self, call: int, number: int, model: bytes, tokens: int, *, length: bool, usage: bytes | None) -> None:
        opening = (
            b'data: {"id":"chatcmpl-%016x","object":"chat.completion.chunk","created":%d,"model":"%b","choices":['
            % (
                number,
                CREATED,
                model,
            )
        )
        start = opening + b'{"index":0,"delta":{"content":"@%08d.' % call
        # In a chunk's size the two bytes after it do not count; place and moment have 21.
        self._token_start = b"%x\r\n%b" % (len(start) + 21 + len(_TOKEN_END) - 2, start)
        self._final_start = b"%x\r\n%b" % (len(start) + 21 + len(_FINAL_END) - 2, start)
        self._opening = opening
        self.tokens = tokens
        self.length = length
        self.usage = usage

    def role(self) -> bytes:
        return chunked(
            self._opening
            + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
            b',"prompt_token_ids":null,"prompt_text":null}\n\n'
        )

    def token(self, place: int) -> bytes:
        """The token at a place, from 1; stamped with this moment."""
        words = _PLACES[place] if place <= 1000 else b"%05d." % place
        if place == self.tokens and self.length:
            return self._final_start + words + b"%014d " % now_us() + _FINAL_END
        return self._token_start + words + b"%014d " % now_us() + _TOKEN_END

    def tokens_at_once(self) -> bytes:
        """All tokens, stamped with this moment."""
        last = self.tokens - 1 if self.length else self.tokens
        moment = b"%014d " % now_us()
        end = moment + _TOKEN_END
        places = _PLACES[1 : last + 1] if last <= 1000 else [b"%05d." % place for place in range(1, last + 1)]
        start = self._token_start
        body = b"".join([start + place + end for place in places])
        return body + self.token(self.tokens) if self.length else body

    def closing(self) -> bytes:
        """What comes after the last token: the finish reason where it has a chunk of its own, usage, `[DONE]`."""
        parts = []
        if not self.length:
            parts.append(
                chunked(
                    self._opening + b'{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop"'
                    b',"stop_reason":null,"token_ids":null}]}\n\n'
                )
            )
        if self.usage is not None:
            parts.append(chunked(self._opening + b'],"usage":%b}\n\n' % self.usage))
        return b"".join((*parts, _DONE, _LAST))


def usage_of(prompt_tokens: int, tokens: int) -> bytes:
    figures = (prompt_tokens, prompt_tokens + tokens, tokens)
    return b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % figures


def plain_body(call: int, number: int, model: str, prompt_tokens: int, tokens: int, *, length: bool) -> bytes:
    """The body of a reply that is not streamed."""
    before, between, after = _plain_parts(model, prompt_tokens, tokens, "length" if length else "stop")
    return b"%b%016x%b%08d%b" % (before, number, between, call, after)


@lru_cache(maxsize=64)
def _plain_parts(model: str, prompt_tokens: int, tokens: int, finish: str) -> tuple[bytes, bytes, bytes]:
    """What is the same for every call: before the reply's number, up to the call's, and the rest."""
    message: dict[str, Any] = {"role": "assistant", "content": plain_content(0)}
    message |= dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
    choice: dict[str, Any] = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    choice |= dict.fromkeys(("stop_reason", "token_ids", "routed_experts"))
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + tokens, "completion_tokens": tokens}
    body: dict[str, Any] = {
        "id": "chatcmpl-\0",
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": usage | dict.fromkeys(("prompt_tokens_details", "completion_tokens_details")),
    }
    body |= dict.fromkeys(("prompt_logprobs", "prompt_token_ids", "prompt_text"))
    body |= dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))
    before, _, rest = orjson.dumps(body).partition(b"\\u0000")
    between, _, after = rest.partition(b"@00000000")
    return before, between + b"@", after
