"""The bytes of vLLM 0.32: replies, stream events, errors and metrics, laid out as its server lays them out.

Pure and without sockets; `tests/unit/test_scripted_engine.py` holds every layout to samples recorded from a
real engine (`tests/contract/samples`). Which bytes go out, and which go wrong, is decided in
`tests/script.py`.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, NamedTuple, TypeAlias

import orjson

VERSION = "0.32.0"
FINGERPRINT = "vllm-0.32.0-3ee0ce6a"
CREATED = 1795261825
DATE = "Sat, 21 Nov 2026 11:50:25 GMT"

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
LAST_CHUNK = b"0\r\n\r\n"

Headers: TypeAlias = Sequence[tuple[str, str]]
Body: TypeAlias = bytes | str | Mapping[str, Any]


class Recorded(NamedTuple):
    """One exchange with a real engine, byte for byte."""

    call: bytes
    reply: bytes

    @property
    def body(self) -> bytes:
        """What follows the reply's head, chunk framing included."""
        return self.reply.partition(b"\r\n\r\n")[2]


def recorded(name: str) -> Recorded:
    """A recorded exchange, e.g. `recorded("stream_usage")`."""
    folder = pathlib.Path(__file__).parent / "contract" / "samples"
    call, reply = (folder / f"{name}.{side}.http" for side in ("call", "reply"))
    return Recorded(call.read_bytes(), reply.read_bytes())


# Replies: uvicorn's heads around a body or a stream.


def plain_reply(status: int, body: Body = b"", headers: Headers = (), content_type: str = "application/json") -> bytes:
    """A whole reply with a content length; a mapping becomes JSON, and an empty body has no content type."""
    data = _json(body) if isinstance(body, Mapping) else body.encode() if isinstance(body, str) else body
    own = [("content-length", str(len(data))), *([("content-type", content_type)] if data else [])]
    return _head(status, own, headers) + data


def stream_head(headers: Headers = ()) -> bytes:
    """The head of a stream; vLLM sends it before the prompt is even looked at."""
    own = [("content-type", "text/event-stream; charset=utf-8")]
    return _head(200, own, [*headers, ("transfer-encoding", "chunked")])


def chunk(data: bytes) -> bytes:
    """One HTTP chunk: uvicorn makes one of every event."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _head(status: int, own: Headers, more: Headers) -> bytes:
    lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
    pairs = [("date", DATE), ("server", "uvicorn"), *own, ("vary", "Origin"), *more]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in pairs), "\r\n"]).encode("latin-1")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


# Errors.


def error(status: int, message: str, kind: str | None = None, param: str | None = None) -> dict[str, Any]:
    """vLLM's error body: an integer code, and a type that depends on where in the server it was raised."""
    kind = kind or ("BadRequestError" if status < 500 else "InternalServerError")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def error_event(body: Mapping[str, Any]) -> bytes:
    """An error inside a 200: vLLM prints it with Python's own spacing, and sends `[DONE]` after it."""
    return b"data: %b\n\n" % json.dumps(body).encode()


CORE_DEAD = error(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")
OVERFLOW = error(
    503,
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.",
    kind="Service Unavailable",
)


def unknown_model(asked: str, served: str) -> dict[str, Any]:
    message = f"The model `{asked}` does not exist. Valid aliases: {served}."
    return error(404, message, kind="NotFoundError", param="model")


def prompt_too_long(limit: int, tokens: int) -> dict[str, Any]:
    at_least = "at least " if tokens == limit + 1 else ""
    message = (
        f"This model's maximum context length is {limit} tokens. However, your prompt contains {at_least}"
        f"{tokens} input tokens, which exceeds this limit even without any output tokens. "
        f"Please reduce the length of the input prompt. (parameter=input_tokens, value={tokens})"
    )
    return error(400, message, param="input_tokens")


def too_many_tokens_asked(limit: int, asked: int) -> dict[str, Any]:
    message = (
        f"max_tokens={asked} cannot be greater than max_model_len={limit}. "
        f"Please request fewer output tokens. (parameter=max_tokens, value={asked})"
    )
    return error(400, message, param="max_tokens")


# Answers.


class Token(NamedTuple):
    """One token: its text, and the id that `return_token_ids` shows."""

    text: str
    id: int


class Event(NamedTuple):
    """One event of a stream. Only a `token` event carries a token of the answer."""

    kind: Literal["role", "token", "finish", "usage", "done", "error", "comment", "other"]
    data: bytes


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is said in answer to one call, and what is told about it.

    Every choice says the same `tokens`; `prompts` holds the token ids of each prompt (a chat has one).
    """

    id: str
    model: str
    tokens: Sequence[Token]
    prompts: Sequence[Sequence[int]]
    finish: Literal["stop", "length"] = "stop"
    n: int = 1
    usage: bool = True
    continuous_usage: bool = False
    token_ids: bool = False

    @property
    def choices(self) -> int:
        return self.n * len(self.prompts)

    def usage_after(self, completion_tokens: int) -> bytes:
        prompt_tokens = sum(map(len, self.prompts))
        return b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d' % (
            prompt_tokens,
            prompt_tokens + completion_tokens,
            completion_tokens,
        )

    def ids(self, ids: Sequence[int]) -> bytes:
        """The ids if the caller asked for them, else null."""
        return orjson.dumps(list(ids)) if self.token_ids else b"null"


_FINGERPRINT = b'"system_fingerprint":"%b"' % FINGERPRINT.encode()


def chat_answer(said: Utterance) -> bytes:
    """The body of a chat completion."""
    message = (
        b'"message":{"role":"assistant","content":%b,"refusal":null,"annotations":null,"audio":null'
        b',"function_call":null,"reasoning":null}'
    )
    return b"".join(
        (
            _opening(said, b"chat.completion"),
            _choices(said, message, b""),
            _accounts(said),
            b',"prompt_logprobs":null,"prompt_token_ids":%b,"prompt_text":null' % said.ids(said.prompts[0]),
            b',"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}',
        )
    )


def completion_answer(said: Utterance) -> bytes:
    """The body of a text completion."""
    more = b',"prompt_logprobs":null,"prompt_token_ids":%b'
    return b"".join(
        (
            _opening(said, b"text_completion"),
            _choices(said, b'"text":%b', more),
            _accounts(said),
            b',"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}',
        )
    )


def _opening(said: Utterance, kind: bytes) -> bytes:
    head = b'{"id":%b,"object":"%b","created":%d,"model":%b,"choices":['
    return head % (orjson.dumps(said.id), kind, CREATED, orjson.dumps(said.model))


def _choices(said: Utterance, text: bytes, more: bytes) -> bytes:
    content = text % orjson.dumps("".join(token.text for token in said.tokens))
    ids = said.ids([token.id for token in said.tokens])
    ended = b'"logprobs":null,"finish_reason":"%b","stop_reason":null' % said.finish.encode()
    return b",".join(
        b'{"index":%d,%b,%b,"token_ids":%b%b,"routed_experts":null}'
        % (i, content, ended, ids, more % said.ids(said.prompts[i // said.n]) if more else b"")
        for i in range(said.choices)
    )


def _accounts(said: Utterance) -> bytes:
    details = b',"prompt_tokens_details":null,"completion_tokens_details":null}'
    usage = said.usage_after(len(said.tokens) * said.choices) + details if said.usage else b'"usage":null'
    return b'],"service_tier":null,%b,%b' % (_FINGERPRINT, usage)


def chat_events(said: Utterance) -> Iterator[Event]:
    """A chat completion as a stream: the role, the tokens, what ended it, usage if asked for, `[DONE]`."""
    opening = b"data: " + _opening(said, b"chat.completion.chunk")
    prompt_ids = said.ids(said.prompts[0])
    usage = _usage_so_far(said, 0)
    for i in range(said.choices):
        yield Event(
            "role",
            b'%b{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]%b'
            b',"prompt_token_ids":%b,"prompt_text":null}\n\n' % (opening, i, usage, prompt_ids),
        )
    layout = b'%b{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":%b,%b"token_ids":%b}]%b}\n\n'
    for i, text, ids, finish, end in _steps(said):
        stop_reason = b'"stop_reason":null,' if finish else b""
        reason = finish or b"null"
        yield Event("token" if ids else "finish", layout % (opening, i, text, reason, stop_reason, said.ids(ids), end))
    yield from _closing(said, opening)


def completion_events(said: Utterance) -> Iterator[Event]:
    """A text completion as a stream: no role, and a choice's first token brings the prompt's ids."""
    opening = b"data: " + _opening(said, b"text_completion")
    layout = (
        b'%b{"index":%d,"text":%b,"logprobs":null,"finish_reason":%b,"stop_reason":null'
        b',"prompt_token_ids":%b,"token_ids":%b}]%b}\n\n'
    )
    begun: set[int] = set()
    for i, text, ids, finish, end in _steps(said):
        prompt_ids = b"null" if i in begun else said.ids(said.prompts[i // said.n])
        begun.add(i)
        data = layout % (opening, i, text, finish or b"null", prompt_ids, said.ids(ids), end)
        yield Event("token" if ids else "finish", data)
    yield from _closing(said, opening)


def _steps(said: Utterance) -> Iterator[tuple[int, bytes, list[int], bytes, bytes]]:
    """Per event: choice, text as JSON, token ids (none where only the end is told), finish reason, tail."""
    last = len(said.tokens) - 1 if said.finish == "length" else len(said.tokens)
    for step in range(last + 1):
        token = said.tokens[step] if step < len(said.tokens) else None
        text, ids = (orjson.dumps(token.text), [token.id]) if token else (b'""', [])
        finish = b'"%b"' % said.finish.encode() if step == last else b""
        end = _usage_so_far(said, step + len(ids))
        if finish and not said.usage:
            end += b"," + _FINGERPRINT
        for i in range(said.choices):
            yield i, text, ids, finish, end


def _usage_so_far(said: Utterance, completion_tokens: int) -> bytes:
    if not said.continuous_usage:
        return b""
    return b',%b,"completion_tokens_details":null}' % said.usage_after(completion_tokens)


def _closing(said: Utterance, opening: bytes) -> Iterator[Event]:
    if said.usage:
        usage = said.usage_after(len(said.tokens) * said.choices)
        yield Event("usage", b"%b],%b},%b}\n\n" % (opening, usage, _FINGERPRINT))
    yield Event("done", DONE)


# What an engine tells about itself.


def models(model: str, max_model_len: int) -> bytes:
    """The body of `/v1/models`."""
    rights = (
        '"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,'
        '"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false'
    )
    return (
        f'{{"object":"list","data":[{{"id":"{model}","object":"model","created":{CREATED},"owned_by":"vllm",'
        f'"root":"/models/{model}","parent":null,"max_model_len":{max_model_len},"permission":[{{'
        f'"id":"modelperm-9de0cc837032faad","object":"model_permission","created":{CREATED},{rights}}}]}}]}}'
    ).encode()


def tokenized(ids: Sequence[int], max_model_len: int) -> bytes:
    """The body of `/tokenize`."""
    return _json({"count": len(ids), "max_model_len": max_model_len, "tokens": list(ids), "token_strs": None})


class Metrics:
    """The body of `/metrics`: the families of a recorded scrape, with the numbers that a caller gives."""

    def __init__(self) -> None:
        self._lines = recorded("metrics").body.decode().splitlines()

    def render(self, model: str, values: Mapping[str, float]) -> bytes:
        """`values` by series: a name as `vllm:num_requests_running`, with `{reason}` where it has several.

        Whatever is not given is 0, save what describes the engine (its cache, when a series was created).
        """
        return (
            "\n".join(self._filled(line, values) for line in [*self._lines, ""])
            .replace('model_name="tiny"', f'model_name="{model}"')
            .encode()
        )

    @staticmethod
    def _filled(line: str, values: Mapping[str, float]) -> str:
        series, _, _ = line.rpartition(" ")
        name, _, labels = series.partition("{")
        if not labels or line.startswith("#") or name.endswith(("_created", "_info", "_state")):
            return line
        reason = labels.partition('reason="')[2].partition('"')[0]
        return f"{series} {float(values.get(f'{name}{{{reason}}}' if reason else name, 0))}"
