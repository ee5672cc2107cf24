"""The admin API of a whole gateway: on a listener of its own, and what is done there holds for calls."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.identity.keys import digest
from tests.engines import scripted
from tests.harness import KEY, SECRET, Harness, bearer, gateway
from tests.wire_client import WireClient, WireReply

pytestmark = pytest.mark.anyio
ADMIN = "pga-admin-of-the-tests"


def sections(folder: Path) -> dict[str, Any]:
    """A gateway with a database and an administrator."""
    return {
        "store": {"url": f"sqlite:///{folder / 'pagegate.db'}", "refresh_s": 0.05, "usage_flush_s": 0.05},
        "admin": {"port": 0, "keys": [{"name": "root", "digest": digest(ADMIN, SECRET.encode()), "role": "admin"}]},
    }


async def administer(harness: Harness, method: str, path: str, body: Any = None, key: str = ADMIN) -> WireReply:
    async with WireClient(f"http://127.0.0.1:{harness.serving.admin_port}") as client:
        await client.send(method, f"/admin/v1{path}", json=body, headers=bearer(key))
        return await client.reply()


async def until(harness: Harness, key: str, status: int) -> None:
    """Calls with a key until the answer is this one; changes arrive within seconds."""
    async with asyncio.timeout(10):
        while (await harness.post(headers=bearer(key))).status != status:
            pass


async def test_a_key_from_the_admin_api_calls_until_it_is_revoked(tmp_path: Path) -> None:
    """And what it used is on record, under its name."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, **sections(tmp_path)) as harness:
        made = (await administer(harness, "POST", "/keys", {"name": "alice"})).json
        await until(harness, made["key"], 200)
        new = (await administer(harness, "POST", "/keys/alice/rotate", {"grace_s": 60})).json["key"]
        await until(harness, new, 200)
        assert (await harness.post(headers=bearer(made["key"]))).status == 200
        async with asyncio.timeout(10):
            while not (sums := (await administer(harness, "GET", "/usage?group_by=key")).json["data"]):
                pass
        assert sums[0]["key"] == "alice"
        assert sums[0]["prompt_tokens"] > 0
        assert (await administer(harness, "POST", "/keys/alice/revoke")).status == 200
        for key in (made["key"], new):
            await until(harness, key, 401)
        status = (await administer(harness, "GET", "/status")).json
        assert status["gate"].startswith("<Gate ")
        log = harness.log.text.decode()
        assert not any(key in log for key in (ADMIN, made["key"], new))


async def test_callers_and_administrators_have_nothing_of_each_others(tmp_path: Path) -> None:
    """Neither key opens the other listener, and neither listener has the other's routes."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, **sections(tmp_path)) as harness:
        assert (await administer(harness, "GET", "/keys", key=KEY)).status == 401
        assert (await harness.post(headers=bearer(ADMIN))).status == 401
        assert (await harness.get("/admin/v1/keys", headers=bearer(ADMIN))).status == 404
        for path in ("/v1/models", "/metrics", "/readyz", "/openapi.json"):
            async with WireClient(f"http://127.0.0.1:{harness.serving.admin_port}") as client:
                assert (await client.get(path, headers=bearer(KEY))).status == 401
        entries = (await administer(harness, "GET", "/audit")).json["data"]
        assert entries == [], json.dumps(entries)


async def test_the_audit_log_names_the_caller_behind_a_proxy_that_is_trusted(tmp_path: Path) -> None:
    """And the connection's own address, where nobody is trusted."""
    for trusted, wanted in (((), "127.0.0.1"), (("127.0.0.1",), "203.0.113.7")):
        server = {"trusted_proxies": list(trusted)}
        settings = sections(tmp_path)
        async with scripted("a") as engines, gateway({"a": engines["a"].url}, server=server, **settings) as harness:
            async with WireClient(f"http://127.0.0.1:{harness.serving.admin_port}") as client:
                headers = bearer(ADMIN) | {"x-forwarded-for": "203.0.113.7"}
                await client.send("POST", "/admin/v1/tenants", json={"name": f"t-{len(trusted)}"}, headers=headers)
                assert (await client.reply()).status == 201
            [entry, *_] = (await administer(harness, "GET", "/audit")).json["data"]
            assert entry["address"] == wanted
