"""Nothing of one tenant reaches another, and nothing that is secret is written anywhere.

One gateway with everything that it can have beside it: a database, Redis, a collector of traces, an issuer of tokens.
"""

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.identity.keys import cache_salt, digest
from tests.engines import ScriptedEngine, scripted
from tests.harness import ADMIN_KEY, CHAT, MODEL, SECRET, Harness, administered, bearer, gateway, hello, key
from tests.identity_provider import IdentityProvider, signer
from tests.loopback import Connection, Message
from tests.otlp_receiver import OtlpReceiver
from tests.redis_server import RedisServer
from tests.wire_client import WireClient, WireReply

pytestmark = pytest.mark.anyio

TENANTS = ("red", "blue")
KEYS = {tenant: f"pg-canary-of-{tenant}" for tenant in TENANTS}
NONCE = re.compile(rb"nonce-(?:red|blue)-[0-9]+")
REDIS_PASSWORD = "canary-of-redis"
ENGINE_KEY = "canary-of-the-engine"
SIGNER = signer("ES256", "one")


class Parrot(ScriptedEngine):
    """Says what it was told: the prompt of a call, a word a token, and a few more."""

    def received(self, connection: Connection, message: Message) -> None:
        if message.method == "POST" and message.path == CHAT:
            words = orjson.loads(message.body)["messages"][-1]["content"].split(" ")
            self.says(*(f"{word} " for word in words * 3), calls=1)
        super().received(connection, message)


def two_tenants(**limits: Any) -> dict[str, Any]:
    return {
        "tenants": [{"name": tenant, "limits": limits} for tenant in TENANTS],
        "keys": [key(f"of-{tenant}", secret, tenant=tenant) for tenant, secret in KEYS.items()],
    }


@dataclass
class Sent:
    """What came back of calls, by the nonce that each had; `ids` are the calls of a tenant whose head was read."""

    complete: Counter[str] = field(default_factory=Counter)
    left: int = 0
    refused: int = 0
    ids: dict[str, str] = field(default_factory=dict)


async def call(harness: Harness, tenant: str, number: int, rng: random.Random, sent: Sent) -> None:
    """One call with a nonce of its own; one in three leaves at some moment of it."""
    nonce = f"nonce-{tenant}-{number}"
    stream = rng.random() < 0.6
    body = hello(nonce, stream=stream, max_tokens=rng.choice((1, 3, 9)), user=nonce, metadata={"n": nonce})
    if rng.random() < 0.1:
        body = {**body, rng.choice(("temperature", "top_k", "response_format")): nonce}
    async with harness.sent(body, bearer(KEYS[tenant])) as client:
        if rng.random() < 0.33:
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            client.leave(rng.choice(("fin", "reset")))
            sent.left += 1
            return
        reply = await client.reply()
    assert reply.complete
    assert set(NONCE.findall(reply.raw)) <= {nonce.encode()}, reply
    sent.ids[reply.header("x-request-id") or ""] = tenant
    if reply.status == 200:
        assert nonce.encode() in reply.body
        assert (reply.header("x-request-id") or "-").encode() in reply.body
        sent.complete[tenant] += 1
    else:
        assert reply.status in (400, 429), reply.body
        sent.refused += 1


async def records_of(harness: Harness) -> list[dict[str, Any]]:
    """All records of usage, once none waits any more."""
    async with asyncio.timeout(20):
        while harness.metric("pagegate_usage_records_waiting"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    export = await harness.administer("GET", "/usage/records/export?format=jsonl")
    return [orjson.loads(line) for line in export.body.splitlines()]


@pytest.mark.parametrize("seed", [1, 2])
async def test_two_tenants_in_a_storm_of_calls_and_departures_have_nothing_of_each_others(
    tmp_path: Path, seed: int
) -> None:
    """Every reply, error, record, line of the log, salt and identifier is of the tenant whose call it was."""
    calls_each, together = 800, 40
    rng = random.Random(seed)
    sent = Sent()
    with RedisServer(tmp_path) as redis:
        async with Parrot("a") as one, Parrot("b") as other:
            sections: dict[str, Any] = {
                **administered(tmp_path / "db"),
                "redis": {"url": redis.url, "timeout_s": 0.5},
                "identity": two_tenants(tokens_per_minute=10_000_000, concurrent_calls=30),
            }
            async with gateway({"a": one.url, "b": other.url}, **sections) as harness:
                wanted = [(tenant, number) for number in range(calls_each) for tenant in TENANTS]
                turn = iter(wanted)

                async def worker() -> None:
                    for tenant, number in turn:
                        await call(harness, tenant, number, rng, sent)

                async with asyncio.TaskGroup() as group:
                    for _ in range(together):
                        group.create_task(worker())
                await harness.until_idle()
                found = await records_of(harness)
                log, metrics = harness.log.text, harness.serving.gateway.metrics.exposition()
                tenant_of = {line["call"]: line.get("tenant") for line in harness.calls}
                traces = [line["trace_id"] for line in harness.calls]
            received = [call for engine in (one, other) for call in engine.calls]
        dumped = everything_in(redis)
    assert min(sent.complete.values()) > calls_each // 3
    assert sent.left > 300 and sent.refused > 30
    # What engines were sent: a nonce always under its tenant's salt, and nothing else of who it was.
    salts = {tenant: cache_salt(tenant, SECRET.encode()) for tenant in TENANTS}
    assert len(set(salts.values())) == len(TENANTS)
    for each in received:
        (nonce,) = set(NONCE.findall(each.raw_body))
        assert each.body["cache_salt"] == salts[nonce.decode().split("-")[1]]
        assert not any(word in each.raw_body for word in (b"of-red", b"of-blue", b"metadata", b'"user":'))
    # What was written down of it.
    assert {one: tenant_of[one] for one in sent.ids} == sent.ids
    assert len(set(traces)) == len(traces)
    assert len({record["id"] for record in found}) == len(found)
    for record in found:
        assert record["key"] == f"of-{record['tenant']}"
        assert sent.ids.get(record["id"], record["tenant"]) == record["tenant"] == tenant_of[record["id"]]
    for tenant in TENANTS:
        whole = [record for record in found if record["tenant"] == tenant and record["outcome"] == "ok"]
        assert len(whole) >= sent.complete[tenant]
        assert all(record["prompt_tokens"] == 1 for record in whole)
    # And nowhere a word of what was said.
    assert NONCE.search(log) is None
    assert NONCE.search(metrics) is None
    assert NONCE.search(dumped) is None
    assert NONCE.search(database(tmp_path)) is None


def database(folder: Path) -> bytes:
    """The file of the database, and what lies beside it."""
    return b"".join(file.read_bytes() for file in folder.glob("db*"))


def everything_in(redis: RedisServer) -> bytes:
    """All names and values."""
    found = list[object]()
    for name in redis.keys():  # noqa: SIM118  # A server, not a mapping.
        kind = redis.do("TYPE", name)
        read = {
            "string": ("GET", name),
            "hash": ("HGETALL", name),
            "zset": ("ZRANGE", name, 0, -1, "WITHSCORES"),
            "set": ("SMEMBERS", name),
            "list": ("LRANGE", name, 0, -1),
        }[kind.decode() if isinstance(kind, bytes) else str(kind)]
        found += [name, redis.do(*read)]
    return repr(found).encode()


async def test_who_knows_anothers_identifiers_knows_nothing(tmp_path: Path) -> None:
    """Identifiers of calls, replies, traces and keys open nothing, and name nothing that there is."""
    async with Parrot("a") as engine:
        sections: dict[str, Any] = {**administered(tmp_path / "db"), "identity": two_tenants()}
        async with gateway({"a": engine.url}, **sections) as harness:
            theirs = await harness.post(hello("nonce-red-1"), bearer(KEYS["red"]))
            (record,) = await records_of(harness)
            real = (theirs.header("x-request-id") or "", theirs.json["id"], record["trace_id"], "of-red")
            for name in real:
                other = "".join(reversed(name))
                for template in (
                    "/v1/responses/{}",
                    "/v1/responses/{}/cancel",
                    "/v1/responses/{}/input_items",
                    "/v1/chat/completions/{}",
                    "/v1/chat/completions/{}/messages",
                    "/v1/conversations/{}",
                    "/v1/files/{}/content",
                    "/v1/batches/{}",
                    "/v1/usage/records/{}",
                    "/admin/v1/usage/records?key={}",
                ):
                    for method in ("GET", "POST", "DELETE"):
                        found = [await asked(harness, method, template.format(one)) for one in (name, other)]
                        assert {reply.status for reply in found} == {404}
                        assert found[0].body.replace(name.encode(), b"") == found[1].body.replace(other.encode(), b"")
                for fields in ({"previous_response_id": name}, {"conversation": name}):
                    assert (await harness.post(hello(**fields), bearer(KEYS["blue"]))).status == 400
                mine = await harness.post(
                    hello("nonce-blue-1", request_id=name, prompt_cache_key=name, cache_salt=record["trace_id"]),
                    {**bearer(KEYS["blue"]), "x-request-id": name, "x-session-id": name, "last-event-id": name},
                )
                assert mine.status == 200
                assert set(NONCE.findall(mine.raw)) == {b"nonce-blue-1"}
                assert (mine.header("x-request-id"), mine.json["id"]) not in [(real[0], real[1])]
                assert name.encode() not in engine.calls[-1].raw_body
            blue = [one for one in await records_of(harness) if one["tenant"] == "blue"]
            assert len(blue) == len(real)


async def asked(harness: Harness, method: str, path: str) -> WireReply:
    async with WireClient(harness.url) as client:
        await client.send(method, path, headers=bearer(KEYS["blue"]))
        return await client.reply()


async def test_a_limit_of_one_tenant_says_nothing_of_another() -> None:
    """Refusals and headers speak of who is refused: his name, his limit, his use."""
    async with scripted("a") as engines:
        identity = two_tenants(requests_per_minute=3, tokens_per_minute=5000)
        async with gateway({"a": engines["a"].url}, identity=identity) as harness:
            red = [await harness.post(headers=bearer(KEYS["red"])) for _ in range(5)]
            blue = await harness.post(headers=bearer(KEYS["blue"]))
        assert [reply.status for reply in red] == [200, 200, 200, 429, 429]
        assert b"blue" not in b"".join(reply.raw for reply in red)
        assert blue.status == 200
        assert blue.header("x-ratelimit-remaining-requests") == "2"
        assert b"red" not in blue.raw.replace(b"x-request-id", b"").replace(b"cached", b"")


# What is written anywhere.


@asynccontextmanager
async def everything(
    folder: Path,
) -> AsyncIterator[tuple[Harness, ScriptedEngine, RedisServer, OtlpReceiver, IdentityProvider]]:
    """A gateway with all that it can have beside it."""
    with RedisServer(folder, requirepass=REDIS_PASSWORD) as redis:
        async with Parrot("a") as engine, OtlpReceiver() as otlp, IdentityProvider(SIGNER) as provider:
            issuer = provider.settings(default_tenant="red", default_models=["*"]).model_dump(mode="json")
            model = {
                "name": MODEL,
                "price": {"prompt": 10, "completion": 10},
                "replicas": [{"name": "a", "url": engine.url, "api_key": ENGINE_KEY}],
            }
            sections: dict[str, Any] = {
                **administered(folder / "db"),
                "redis": {"url": redis.url.replace("//", f"//:{REDIS_PASSWORD}@"), "timeout_s": 0.5},
                "identity": {**two_tenants(requests_per_minute=60), "issuers": [issuer]},
                "models": [model],
                "telemetry": {"otlp_endpoint": otlp.endpoint, "log_level": "debug"},
            }
            async with gateway({}, **sections) as harness:
                yield harness, engine, redis, otlp, provider


async def test_no_secret_and_no_word_of_a_caller_is_written_anywhere(tmp_path: Path) -> None:
    """Keys, tokens, prompts, replies, secrets: not in logs, metrics, traces, Redis, files, exports, errors, reprs."""
    async with everything(tmp_path) as (harness, engine, redis, otlp, provider):
        made = (await harness.administer("POST", "/keys", {"name": "made", "tenant": "blue"})).json["key"]
        now_s = int(datetime.now(UTC).timestamp())
        token = SIGNER.token(provider.claims(iat=now_s, exp=now_s + 600))
        async with asyncio.timeout(10):
            while (await harness.post(hello("canaryprompt"), bearer(made))).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        canaries = {
            "keys": KEYS["red"],
            "made keys": made,
            "administrators' keys": ADMIN_KEY,
            "tokens": token,
            "signatures": token.split(".")[2],
            "the secret": SECRET,
            "the secret of Redis": REDIS_PASSWORD,
            "the engine's key": ENGINE_KEY,
            "salts": cache_salt("red", SECRET.encode()),
            "prompts": "canaryprompt",
            "engines' words": "canaryreason",
            "fields": "canaryfield",
            "wrong keys": "pg-canarywrong",
            "wrong passwords": "Y2FuYXJ5",
            "names of models": "canarymodel",
            "addresses of engines": engine.url.removeprefix("http://"),
            "folders": str(tmp_path),
            "digests": digest(KEYS["red"], SECRET.encode()),
        }
        secrets = [KEYS["red"], made, token]
        words = hello(
            "canaryprompt", user="canaryfield", metadata={"k": "canaryfield"}, safety_identifier="canaryfield"
        )
        errors = list[WireReply]()
        for secret in secrets:
            for stream in (False, True):
                assert (await harness.post({**words, "stream": stream}, bearer(secret))).status == 200
            for changes in (
                {"temperature": "canaryfield"},
                {"canaryfield": "canaryprompt"},
                {"messages": "canaryprompt"},
                {"messages": [{"role": "canaryfield", "content": "canaryprompt"}]},
                {"response_format": {"type": "canaryfield"}},
                {"max_tokens": 10**9},
            ):
                errors.append(await harness.post({**words, **changes}, bearer(secret)))
            errors.append(await harness.post(words | {"model": "canarymodel"}, bearer(secret)))
        for status in (400, 401, 404, 422, 500):
            engine.fails_with(status, {"error": {"message": f"canaryreason at {engine.url}", "code": status}}, calls=3)
            errors.append(await harness.post(words, bearer(token)))
            engine.behaves()
        engine.error_event_after(1, {"error": {"message": "canaryreason", "code": 500}}, calls=1)
        errors.append(await harness.post({**words, "stream": True}, bearer(token)))
        for authorization in ("Bearer pg-canarywrong", "Basic Y2FuYXJ5OmNhbmFyeQ==", "pg-canarywrong"):
            errors.append(await harness.post(words, {"authorization": authorization}))
            errors.append(await harness.get("/v1/models?api_key=pg-canarywrong", {"authorization": authorization}))
        async with harness.sent({**words, "stream": True}, bearer(token)) as client:
            client.leave("reset")
        for _ in range(65):
            errors.append(await harness.post(words, bearer(KEYS["blue"])))
        assert errors[-1].status == 429
        await harness.administer("POST", "/keys/made/rotate", {"grace_s": 60})
        await harness.administer("PATCH", "/keys/made", {"metadata": {"note": "x"}})
        denied = [await harness.administer("GET", "/keys", key=secret) for secret in (*secrets, "pg-canarywrong")]
        await harness.administer("POST", "/keys/made/revoke", {})
        await harness.until_idle()
        records = await records_of(harness)
        assert len(records) > 60
        exports = [
            (await harness.administer("GET", path)).raw
            for path in (
                "/usage/records/export?format=csv",
                "/usage/records/export?format=jsonl",
                "/usage/export?format=csv&group_by=key",
                "/audit/export",
                "/audit",
                "/keys",
                "/tenants",
                "/status",
            )
        ]
        assert all(export.startswith(b"HTTP/1.1 200 ") for export in exports)
        assert b"keys.rotate" in exports[3]
        spans = await otlp.spans(names=("admission", "identity"))
        serving = harness.serving
        pipeline = serving.gateway.pipeline
        places: dict[str, bytes] = {
            "log": harness.log.text,
            "metrics": serving.gateway.metrics.exposition(),
            "traces": repr(spans).encode(),
            "Redis": everything_in(redis),
            "exports": b"".join(exports),
            "errors": b"".join(reply.raw for reply in (*errors, *denied) if reply.status != 200),
            "reprs": repr(
                [pipeline.gate, pipeline.fleet, pipeline.identities, pipeline.open_calls, pipeline.fleet.snapshot()]
            ).encode(),
        }
    places["database"] = database(tmp_path)
    # What may stand there all the same, and why.
    allowed = {
        # A caller's own words about what he named wrongly, to himself alone.
        ("errors", "fields"),
        # Why an engine refuses a call, to whose call it is.
        ("errors", "engines' words"),
        ("errors", "names of models"),
        # An operator is told which engine is which.
        ("reprs", "addresses of engines"),
    }
    written = {
        (place, what)
        for place, text in places.items()
        for what, canary in canaries.items()
        if canary.encode() in text and (place, what) not in allowed
    }
    assert not written


async def test_an_error_says_nothing_of_the_inside(tmp_path: Path) -> None:
    """No address, no path of a file, no module, no trace of a stack, in whatever is answered."""
    inside = re.compile(
        rb"127\.0\.0\.1|localhost|https?://|Traceback|\.py\b|gateway\.|/usr/|/home/|site-packages|sqlite|redis|"
        rb"vllm|0x[0-9a-f]{6}|<[A-Z]\w+ |object at",
        re.IGNORECASE,
    )
    async with everything(tmp_path) as (harness, engine, redis, _, _):
        red = bearer(KEYS["red"])
        answers = list[WireReply]()
        hostile = {"message": f"it failed in /usr/lib/x.py at {engine.url}", "code": 400}
        for status in (400, 401, 403, 404, 413, 418, 422, 429, 500, 502, 503):
            engine.fails_with(status, {"error": hostile})
            answers.append(await harness.post(headers=red))
            engine.behaves()
        for how in ("dies_before_headers", "dies_after_headers"):
            getattr(engine, how)()
            answers.append(await harness.post(headers=red))
            engine.behaves()
        for at in (1, 2):
            engine.dies_after(at, calls=1)
            answers.append(await harness.post(hello(stream=True), red))
            engine.error_event_after(at, {"error": hostile}, calls=1)
            answers.append(await harness.post(hello(stream=True), red))
        redis.kill()
        answers.append(await harness.post(hello(nonsense=1), red))
        for path in ("/nowhere", "/v1/models/none"):
            answers.append(await harness.get(path, red))
        engine.crashes()
        await harness.until_down("a")
        answers.append(await harness.post(headers=red))
    assert len(answers) > 18
    for reply in answers:
        assert reply.status != 200 or b'"error"' in reply.body
        assert (found := inside.search(reply.raw)) is None, (found, reply.raw)
