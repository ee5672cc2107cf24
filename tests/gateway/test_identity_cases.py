"""Who calls, seen from the wire: what is learnt from a refusal, and that nobody becomes somebody else.

Keys of the file and of the database, and tokens of a real provider on loopback, before one gateway.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.identity.keys import digest
from tests.engines import ScriptedEngine, scripted
from tests.harness import ADMIN_KEY, CHAT, KEY, MODEL, SECRET, Clock, Harness, administered, bearer, gateway, hello, key
from tests.identity_provider import IdentityProvider, compact, signer
from tests.redis_server import RedisServer
from tests.wire_client import WireClient, WireReply

pytestmark = pytest.mark.anyio

SIGNER, FORGED = signer("ES256", "one"), signer("ES256", "forged")
CLAIMS = {"tenant": "team", "models": "models", "role": "roles"}
OWN = {"x-request-id", "x-pagegate-trace", "date"}
"""Headers that differ from answer to answer."""


@dataclass
class World:
    """A gateway, the engine behind it and the provider that it trusts."""

    harness: Harness
    engine: ScriptedEngine
    provider: IdentityProvider

    def token(self, by: Any = SIGNER, **claims: Any) -> str:
        """A good token but for what is said here; it is good for an hour from now."""
        now_s = int(datetime.now(UTC).timestamp())
        usual = {"iat": now_s, "exp": now_s + 3600, "models": ["*"], "team": "red"}
        made: str = by.token(self.provider.claims(**(usual | claims)))
        return made

    async def record(self, call_id: str | None) -> dict[str, Any]:
        """The record of a call's usage, once it is written."""
        async with asyncio.timeout(10):
            while True:
                found = (await self.harness.administer("GET", "/usage/records")).json["data"]
                for record in found:
                    if record["id"] == call_id:
                        return dict(record)


@asynccontextmanager
async def a_world(folder: Path, clock: Clock | None = None, **sections: Any) -> AsyncIterator[World]:
    async with IdentityProvider(SIGNER) as provider, scripted("a") as engines:
        issuer = provider.settings(claims=CLAIMS, roles={"boss": "admin"}).model_dump(mode="json")
        identity = {
            "tenants": [{"name": "default"}, {"name": "red"}, {"name": "blue"}],
            "keys": [
                key("tester"),
                key("of-red", "pg-red", tenant="red"),
                key("of-blue", "pg-blue", tenant="blue", models=["nothing-*"]),
                key("old", "pg-old", expires_at="2020-01-01T00:00:00Z"),
            ],
            "issuers": [issuer],
        }
        given = {**administered(folder / "db"), "identity": identity, **sections}
        async with gateway({"a": engines["a"].url}, clock=clock, **given) as harness:
            yield World(harness, engines["a"], provider)


def told(reply: WireReply) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
    """All that an answer tells, but for what is different in every answer."""
    return reply.status, tuple((name, value) for name, value in reply.headers if name.lower() not in OWN), reply.body


async def test_nothing_is_learnt_from_how_a_credential_is_refused(tmp_path: Path) -> None:
    """Never existed, expired, revoked, an administrator's, forged, of nobody's tenant: one answer, to the byte."""
    async with a_world(tmp_path) as world:
        harness = world.harness
        made = {
            name: (await harness.administer("POST", "/keys", {"name": name})).json["key"]
            for name in ("revoked", "rotated")
        }
        soon = (datetime.now(UTC) + timedelta(seconds=0.2)).isoformat()
        expiring = await harness.administer("POST", "/keys", {"name": "expiring", "expires_at": soon})
        await harness.administer("POST", "/keys/revoked/revoke", {})
        await harness.administer("POST", "/keys/rotated/rotate", {"grace_s": 0})
        made["expiring"] = expiring.json["key"]
        async with asyncio.timeout(10):
            while {(await harness.post(headers=bearer(one))).status for one in made.values()} != {401}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        served = len(world.engine.calls)
        good = world.token()
        assert (await harness.get("/v1/models", bearer(good))).status == 200
        head, payload, signature = good.split(".")
        now_s = int(datetime.now(UTC).timestamp())
        wrong = {
            "unknown": "pg-" + "x" * 43,
            "expired": "pg-old",
            "an administrator's": ADMIN_KEY,
            "its digest": digest(KEY, SECRET.encode()),
            "a letter more": KEY + "x",
            "a tenant's name": "red",
            "a key's name": "tester",
            "SQL": "' OR '1'='1",
            "a Redis command": "*1$8FLUSHALL",
            "a pattern": "*",
            "a path": "../../etc/passwd",
            "very long": "k" * 6000,
            "a forged token": world.token(FORGED),
            "under a known id": world.token(FORGED.named("one")),
            "unsigned": compact({"alg": "none"}, {"sub": "x"}, lambda _: b""),
            "of nobody's tenant": world.token(team="green"),
            "without a tenant": world.token(team=["red", "blue"]),
            "expired token": world.token(iat=now_s - 7200, exp=now_s - 3600),
            "of tomorrow": world.token(nbf=now_s + 7200),
            "for another": world.token(aud="elsewhere"),
            "from another": world.token(iss="https://elsewhere.example"),
            "a changed payload": f"{head}.{payload[:-4]}AAAA.{signature}",
            "a cut signature": f"{head}.{payload}.",
            **made,
        }
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", f"/v1/models/{MODEL}")):
            answers: dict[str, Any] = {}
            for name, credential in wrong.items():
                async with WireClient(harness.url) as client:
                    await client.send(
                        method, path, json=hello() if method == "POST" else None, headers=bearer(credential)
                    )
                    answers[name] = told(await client.reply())
            (one,) = set(answers.values())
            assert one[0] == 401
            assert b"invalid_api_key" in one[2]
        for name, credential in wrong.items():
            if credential == ADMIN_KEY:
                continue
            denied = await harness.administer("GET", "/keys", key=credential)
            assert denied.status == 401, name
        assert len(world.engine.calls) == served


async def test_a_model_that_is_forbidden_does_not_exist(tmp_path: Path) -> None:
    """For a key, for a tenant and for a token alike; neither a call nor a list tells a difference."""
    async with a_world(tmp_path) as world:
        harness, name = world.harness, "mini"
        assert len(name) == len(MODEL)
        for credential in (
            "pg-blue",
            world.token(models=["nothing-*"]),
            world.token(models=[]),
            world.token(models=None),
        ):
            forbidden = await harness.post(hello(), bearer(credential))
            missing = await harness.post(hello() | {"model": name}, bearer(credential))
            assert (forbidden.status, missing.status) == (404, 404)
            assert forbidden.body.replace(MODEL.encode(), name.encode()) == missing.body
            assert (await harness.get("/v1/models", bearer(credential))).json["data"] == []
            seen = await harness.get(f"/v1/models/{MODEL}", bearer(credential))
            not_there = await harness.get(f"/v1/models/{name}", bearer(credential))
            assert (seen.status, seen.body.replace(MODEL.encode(), name.encode())) == (404, not_there.body)
        assert world.engine.calls == []


async def test_a_token_calls_as_its_subject_and_tenant(tmp_path: Path) -> None:
    """Through the whole gateway: tenant, models, name, salt and record are those that the issuer vouches for."""
    async with a_world(tmp_path) as world:
        harness = world.harness
        with_token = await harness.post(headers=bearer(world.token(sub="alice", models="nothing-* ti*")))
        with_key = await harness.post(headers=bearer("pg-red"))
        other = await harness.post(headers=bearer(world.token(sub="alice", team="blue")))
        assert [reply.status for reply in (with_token, with_key, other)] == [200, 200, 200]
        salts = [call.body["cache_salt"] for call in world.engine.calls]
        assert salts[0] == salts[1] != salts[2]
        found = [await world.record(reply.header("x-request-id")) for reply in (with_token, with_key, other)]
        assert [(one["tenant"], one["key"]) for one in found] == [
            ("red", "corp#alice"),
            ("red", "of-red"),
            ("blue", "corp#alice"),
        ]


@pytest.mark.parametrize(
    "headers",
    [
        {"openai-organization": "blue", "openai-project": "blue"},
        {"x-tenant": "blue", "x-tenant-id": "blue", "x-pagegate-tenant": "blue"},
        {
            "x-forwarded-user": "root",
            "x-forwarded-email": "root@blue",
            "x-remote-user": "root",
            "x-auth-request-user": "x",
        },
        {"x-api-key": "pg-blue"},
        {"api-key": "pg-blue", "proxy-authorization": "Bearer pg-blue", "cookie": "authorization=Bearer pg-blue"},
        {"x-original-authorization": "Bearer pg-blue", "x-goog-api-key": "pg-blue"},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_nobody_says_himself_whom_he_acts_for(tmp_path: Path, headers: dict[str, str]) -> None:
    """One credential decides; what else is in head, body and URL changes neither tenant nor permissions."""
    claimed: dict[str, Any] = {
        "user": "root",
        "metadata": {"tenant": "blue", "role": "admin"},
        "safety_identifier": "blue",
    }
    async with a_world(tmp_path) as world:
        body = hello(**claimed)
        reply = await world.harness.post(body, {**bearer("pg-red"), **headers}, f"{CHAT}?tenant=blue&key=pg-blue")
        plain = await world.harness.post(headers=bearer("pg-red"))
        assert (reply.status, plain.status) == (200, 200)
        first, second = world.engine.calls
        assert first.body == second.body
        assert [name for name, _ in first.headers] == [name for name, _ in second.headers]
        record = await world.record(reply.header("x-request-id"))
        assert (record["tenant"], record["key"]) == ("red", "of-red")
        assert "blue" not in world.harness.log.text.decode()


async def test_a_caller_gives_himself_no_rights(tmp_path: Path) -> None:
    """Callers' credentials do not administer; only a role that the settings name does, from a claim that they name."""
    async with a_world(tmp_path) as world:
        harness = world.harness
        powerless = {
            "a caller's key": KEY,
            "a token": world.token(),
            "roles that mean nothing here": world.token(roles=["admin", "root", "viewer", "*"]),
            "a role in another claim": world.token(role="boss", groups=["boss"], scope="boss admin"),
            "admin by name": world.token(sub="root"),
        }
        wanted = [
            ("GET", "/keys", None),
            ("POST", "/keys", {"name": "mine", "role": "admin"}),
            ("PATCH", "/keys/of-red", {"models": ["*"], "limits": {}}),
            ("PATCH", "/tenants/red", {"budget": {}, "weight": 1000}),
            ("POST", "/keys/of-blue/revoke", {}),
            ("GET", "/usage/records", None),
            ("GET", "/audit", None),
            ("GET", "/status", None),
        ]
        for who, credential in powerless.items():
            for method, path, body in wanted:
                assert (await harness.administer(method, path, body, credential)).status == 401, (who, path)
        for method, path, body in wanted:
            # The same paths where callers are.
            async with WireClient(harness.url) as client:
                await client.send(method, f"/admin/v1{path}", json=body, headers=bearer(ADMIN_KEY))
                assert (await client.reply()).status == 404
        boss = world.token(sub="boss", roles=["boss"])
        assert (await harness.administer("GET", "/keys", key=boss)).status == 200
        made = await harness.administer("POST", "/keys", {"name": "made-by-boss"}, boss)
        assert made.status == 201
        entries = (await harness.administer("GET", "/audit?action=keys.create")).json["data"]
        assert [(entry["actor"], entry["target"], entry["outcome"]) for entry in entries] == [
            ("corp#boss", "made-by-boss", "done")
        ]


SUBJECTS = (
    "alice",
    "alice ",
    "ALICE",
    "alice/requests_per_minute",
    "alice}:x",
    "{alice}",
    "corp#alice",
    "al#ice",
    "alice:*",
    "*",
    "?",
    "[a-z]",
    "'; DROP TABLE usage; --",
    "$(reboot)",
    "%0d%0aDEL%20x",
    "../../etc/passwd",
    "\u00e5lice",
    "a\u030alice",
    "alice" + "e" * 60,
    "=cmd|'/c calc'!A1",
    '"quoted"',
    "<script>alert(1)</script>",
)


async def test_subjects_of_any_spelling_are_apart_and_only_texts(tmp_path: Path) -> None:
    """In Redis, in the database, in headers, logs and metrics: whoever they are, each has a limit of his own."""
    with RedisServer(tmp_path) as redis:
        rule = {"name": "each", "per": ["key"], "requests_per_minute": 2}
        sections: dict[str, Any] = {"redis": {"url": redis.url, "timeout_s": 0.5}, "limits": [rule]}
        async with a_world(tmp_path, **sections) as world:
            series = series_of(world.harness)
            for subject in SUBJECTS:
                token = bearer(world.token(sub=subject))
                replies = [await world.harness.post(headers=token) for _ in range(3)]
                assert [reply.status for reply in replies] == [200, 200, 429], subject
                record = await world.record(replies[0].header("x-request-id"))
                assert (record["key"], record["tenant"]) == (f"corp#{subject}", "red")
            names = [line["key"] for line in world.harness.calls if line["outcome"] == "ok"]
            assert names == [f"corp#{subject}" for subject in SUBJECTS for _ in range(2)]
            stored = redis.keys()
            assert sum(b"each" in name for name in stored) == len(SUBJECTS)
            assert len(series_of(world.harness) - series) < 80
            assert not any("alice" in line for line in series_of(world.harness))


def series_of(harness: Harness) -> set[str]:
    """The names of all series of metrics, with their labels."""
    lines = harness.serving.gateway.metrics.exposition().decode().splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


async def test_a_flood_of_wrong_credentials_leaves_nothing_and_shuts_nobody_out(tmp_path: Path) -> None:
    """Ten thousand keys, tokens, models and paths that nobody knows: no series, no key in Redis, no row, no memory."""
    rng = random.Random(5)
    with RedisServer(tmp_path) as redis:
        rule = {"name": "each", "per": ["key", "model"], "requests_per_minute": 1_000_000}
        sections: dict[str, Any] = {
            "redis": {"url": redis.url, "timeout_s": 0.5},
            "limits": [rule],
            "telemetry": {"log_calls": False},
        }
        async with a_world(tmp_path, **sections) as world:
            harness = world.harness
            good = [bearer(KEY), bearer(world.token())]
            forger = world.token(FORGED).split(".")

            async def flood(count: int) -> None:
                async with WireClient(harness.url) as client:
                    for _ in range(count):
                        word = f"{rng.getrandbits(80):020x}"
                        by_key = await client.get("/v1/models", headers=bearer(f"pg-{word}"))
                        by_token = await client.get("/v1/models", headers=bearer(".".join([*forger[:2], word * 4])))
                        by_model = await client.post(CHAT, json=hello() | {"model": word}, headers=bearer(KEY))
                        by_path = await client.get(f"/v1/{word}", headers=bearer(KEY))
                        found = [reply.status for reply in (by_key, by_token, by_model, by_path)]
                        assert found == [401, 401, 404, 404]

            for headers in good:
                assert (await harness.post(headers=headers)).status == 200
            await flood(1)
            series, stored = series_of(harness), set(redis.keys())
            sizes = shape(harness)
            async with asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(flood(250))
            assert series_of(harness) == series
            assert set(redis.keys()) <= stored
            assert shape(harness) == sizes
            assert len(world.engine.calls) == 2
            for headers in good:
                assert (await harness.post(headers=headers)).status == 200
            assert sum(world.provider.asked.values()) <= 4


def shape(harness: Harness) -> str:
    """What the parts that know callers say of themselves."""
    return repr(harness.serving.gateway.pipeline.identities)
