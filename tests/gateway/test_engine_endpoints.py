"""What of an engine can be reached through the gateway: the one route that is forwarded, with a head of our own.

An engine has routes that load weights, run code, stop calls of others or tell of them, most of them without a key.
"""

import re
from collections.abc import AsyncIterator, Callable

import pytest

from tests.engines import ScriptedEngine, ScriptedEngines, scripted
from tests.harness import CHAT, Harness, bearer, gateway, hello, key
from tests.wire_client import WireClient

pytestmark = pytest.mark.anyio

# vLLM 0.32's routes, as it has them with all its options and in development mode, but for those that are ours as well.
ENGINE_PATHS = (
    # Inference past the limits.
    *("/invocations", "/tokenize", "/detokenize", "/tokenizer_info", "/generative_scoring", "/v1/systemone"),
    *("/pooling", "/classify", "/score", "/rerank", "/v1/score", "/v1/rerank", "/v2/rerank", "/v1/embeddings"),
    *("/inference/v1/generate", "/v1/chat/completions/batch", "/v1/completions", "/v1/messages", "/v1/responses"),
    *("/v1/messages/count_tokens", "/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/v1/realtime"),
    *("/v1/audio/transcriptions", "/v1/audio/translations", "/cohere/v2/chat", "/cohere/v2/chat/render"),
    *("/v1/chat/completions/render", "/v1/completions/render", "/v1/messages/render", "/v1/responses/render"),
    *("/v1/chat/completions/derender", "/v1/completions/derender"),
    # Control.
    *("/inference/v1/abort_requests", "/abort_requests", "/scale_elastic_ep", "/is_scaling_elastic_ep"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/adapters/a", "/start_profile"),
    *("/stop_profile", "/fault_tolerance/apply", "/fault_tolerance/status", "/reset_prefix_cache"),
    *("/reset_mm_cache", "/reset_encoder_cache", "/collective_rpc", "/sleep", "/wake_up", "/is_sleeping"),
    *("/release_kv_cache_memory", "/pause", "/resume", "/is_paused", "/init_weight_transfer_engine"),
    *("/shutdown_weight_transfer_engine", "/start_weight_update", "/start_draft_weight_update", "/update_weights"),
    *("/finish_weight_update", "/update_weight_version", "/weight_checker", "/weight_info", "/get_world_size"),
    # What it tells of itself.
    *("/ping", "/load", "/version", "/kv_event_sources", "/health", "/ready", "/server_info", "/metrics/x"),
    *("/docs", "/redoc", "/docs/oauth2-redirect", "/static/swagger-ui.css"),
)
METHODS = ("GET", "POST", "DELETE", "OPTIONS")

SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": lambda path: path,
    "with a slash behind it": lambda path: f"{path}/",
    "with two slashes": lambda path: f"/{path}",
    "with a dot in it": lambda path: f"/.{path}",
    "with an escaped dot in it": lambda path: f"/%2e{path}",
    "behind the route that there is": lambda path: f"{CHAT}/../../..{path}",
    "behind it, escaped": lambda path: f"{CHAT}/%2e%2e/%2e%2e/%2E%2E{path}",
    "behind it, escaped twice": lambda path: f"{CHAT}/%252e%252e/%252e%252e/%252e%252e{path}",
    "behind it, with an escaped slash": lambda path: f"{CHAT}/..%2f..%2f..{path.replace('/', '%2F')}",
    "behind a model": lambda path: f"/v1/models/..%2f..{path}",
    "with a parameter": lambda path: f"{path};x=1",
    "with a query": lambda path: f"{path}?x=1",
    "in capitals": str.upper,
    "with backslashes": lambda path: "/" + path[1:].replace("/", "\\") + "\\",
    "as a URL": lambda path: f"http://127.0.0.1{path}",
    "as a URL of another host": lambda path: f"http://evil.test{path}",
    "with another host before it": lambda path: f"//evil.test{path}",
    "with a user before it": lambda path: f"http://x@127.0.0.1{path}",
    "without a slash": lambda path: path[1:],
    "with a NUL": lambda path: f"{path}%00",
}
# Of a model there is nobody to tell: it is looked up, and not found, or the caller is not known.
ANSWERS = {400, 401, 404, 405}


@pytest.fixture
async def engines() -> AsyncIterator[ScriptedEngines]:
    async with scripted("a") as engines:
        yield engines


@pytest.fixture
def engine(engines: ScriptedEngines) -> ScriptedEngine:
    return engines["a"]


@pytest.fixture
async def harness(engine: ScriptedEngine) -> AsyncIterator[Harness]:
    async with gateway({"a": engine.url}) as harness:
        yield harness


async def statuses(harness: Harness, targets: list[tuple[str, str]], headers: dict[str, str]) -> list[int]:
    """What each method and target is answered with; on a new connection wherever the last one was ended."""
    found: list[int] = []
    waiting = targets
    while waiting:
        async with WireClient(harness.url) as client:
            for method, target in waiting:
                await client.send(method, target, headers={**headers, "x-canary": "1"})
                reply = await client.reply()
                found.append(reply.status)
                assert reply.json["error"]["type"] == "invalid_request_error"
                if reply.header("connection") == "close":
                    break
        waiting = targets[len(found) :]
    return found


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("headers", [bearer(), {}], ids=["with a key", "without a key"])
async def test_no_other_route_of_an_engine_can_be_reached(
    harness: Harness, engine: ScriptedEngine, spelling: str, headers: dict[str, str]
) -> None:
    """Whatever the method and however the path is spelled: the answer is ours, and no engine hears of it."""
    targets = [(method, SPELLINGS[spelling](path)) for path in ENGINE_PATHS for method in METHODS]
    found = await statuses(harness, targets, headers)
    assert len(found) == len(targets)
    assert set(found) <= ANSWERS
    assert engine.calls == []
    assert not any(call.header("x-canary") for call in engine.others)
    assert set(engine.paths) <= {"GET /health", "GET /v1/models", "GET /metrics"}
    assert engine.malformed_messages == 0


@pytest.mark.parametrize("path", ["/metrics", "/v1/models"])
async def test_what_is_named_as_at_an_engine_is_answered_by_the_gateway(
    harness: Harness, engine: ScriptedEngine, path: str
) -> None:
    """The same path at an engine is another thing, and asked for by nobody but our own probes."""
    reply = await harness.get(path, {**bearer(), "x-canary": "1"})
    assert reply.status == 200
    assert b"vllm:" not in reply.body
    assert b"max_model_len" not in reply.body
    assert not any(call.header("x-canary") for call in engine.others)


# Headers that steer an engine, name the caller, or belong to one connection.
DROPPED_HEADERS = {
    "cookie": "session=x",
    "x-request-id": "mine",
    "x-data-parallel-rank": "1",
    "x-session-id": "s",
    "x-vllm-priority": "-5",
    "endpoint-load-metrics-format": "JSON",
    "x-amzn-sagemaker-adapter-identifier": "x",
    "x-amzn-sagemaker-session-id": "NEW_SESSION",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
    "tracestate": "k=v",
    "baggage": "k=v",
    "forwarded": "for=10.0.0.1",
    "x-forwarded-for": "10.0.0.1",
    "x-forwarded-host": "evil.test",
    "x-real-ip": "10.0.0.1",
    "connection": "keep-alive, authorization, x-request-id",
    "keep-alive": "timeout=1000",
    "te": "trailers",
    "trailer": "x-a",
    "proxy-authorization": "Basic eA==",
    "accept-encoding": "gzip, br, zstd",
    "accept": "text/event-stream",
    "user-agent": "OpenAI/Python",
    "x-stainless-lang": "python",
    "openai-organization": "org",
    "x-api-key": "pg-other",
    "origin": "http://evil.test",
    "referer": "http://evil.test/",
    "range": "bytes=0-1",
    "if-none-match": "*",
    "x-http-method-override": "DELETE",
    "content-language": "en",
}
OURS = {"host", "content-type", "accept-encoding", "content-length", "x-request-id", "traceparent"}


@pytest.mark.parametrize("name", DROPPED_HEADERS)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_no_header_of_a_caller_reaches_an_engine(
    harness: Harness, engine: ScriptedEngine, name: str, stream: bool
) -> None:
    """The head is written anew from constants, the engine's address and our own identifiers."""
    value = DROPPED_HEADERS[name]
    reply = await harness.post(hello(stream=stream), headers={**bearer(), name: value})
    assert reply.status == 200
    (call,) = engine.calls
    names = [header.decode() for header, _ in call.headers]
    assert sorted(names) == sorted(OURS)
    assert {call.header("content-type"), call.header("accept-encoding")} == {"application/json", "identity"}
    assert call.header("host") == f"127.0.0.1:{engine.port}"
    assert call.header("content-length") == str(len(call.raw_body))
    assert call.header("x-request-id") == reply.header("x-request-id")
    assert re.fullmatch("req_[0-9a-f]{32}", call.header("x-request-id") or "")
    assert value not in [content.decode() for _, content in call.headers]


async def test_a_tenants_salt_is_its_own_and_always_there(engine: ScriptedEngine) -> None:
    """T01: the same for every call of a tenant, in every form of call, and for nobody else; never the caller's."""
    identity = {
        "tenants": [{"name": "red"}, {"name": "blue"}],
        "keys": [
            key("r", "pg-red", tenant="red"),
            key("r2", "pg-red-2", tenant="red"),
            key("b", "pg-blue", tenant="blue"),
        ],
    }
    async with gateway({"a": engine.url}, identity=identity) as harness:
        for secret in ("pg-red", "pg-red-2", "pg-blue"):
            for fields in ({}, {"stream": True}, {"cache_salt": "mine"}, {"cache_salt": ""}, {"cache_salt": None}):
                assert (await harness.post(hello(**fields), headers=bearer(secret))).status == 200
    salts = [call.body["cache_salt"] for call in engine.calls]
    red, blue = set(salts[:10]), set(salts[10:])
    assert (len(red), len(blue)) == (1, 1)
    assert red != blue
    assert all(re.fullmatch("[0-9a-f]{32,128}", salt) for salt in salts)


OWN_FIELDS = {
    "priority": -100,
    "request_id": "mine",
    "user": "somebody",
    "metadata": {"k": "v"},
    "store": True,
    "service_tier": "priority",
    "prompt_cache_key": "k",
    "safety_identifier": "s",
}


async def test_an_engine_is_told_nothing_that_is_the_gateways_to_say(harness: Harness, engine: ScriptedEngine) -> None:
    """Q12: a priority, an identifier or a name that a caller gives changes nothing of what is sent."""
    for fields in ({}, OWN_FIELDS, dict.fromkeys(OWN_FIELDS)):
        assert (await harness.post(hello(**fields))).status == 200
    plain, given, nulls = (call.raw_body for call in engine.calls)
    assert plain == given == nulls
