"""A database that is put back to an earlier state, and goes on from there before a gateway looks at it again."""

import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from tests.engines import ScriptedEngine
from tests.harness import Harness, administered, bearer, gateway

pytestmark = pytest.mark.anyio


async def made(served: Harness, name: str) -> str:
    reply = await served.administer("POST", "/keys", {"name": name, "tenant": "default"})
    assert reply.status == 201
    key: str = reply.json["key"]
    with anyio.fail_after(5):
        while (await served.post(headers=bearer(key))).status != 200:
            pass
    return key


def copied(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


async def test_a_restored_database_that_has_overtaken_the_old_one_is_followed(tmp_path: Path) -> None:
    """A key that was revoked in the new history opens nothing, though its revision is below the one known here."""
    live, restored = tmp_path / "live.db", tmp_path / "restored.db"
    async with ScriptedEngine() as engine:
        engine.says("a")
        async with gateway({"a": engine.url}, **administered(live)) as served:
            key = await made(served, "one")
            copied(live, restored)
            lost = [await made(served, f"lost-{number}") for number in range(5)]

            # Elsewhere the backup is put to work, the key revoked, and more is changed than was lost.
            async with gateway({"a": engine.url}, **administered(restored)) as other:
                assert (await other.administer("POST", "/keys/one/revoke")).status == 200
                for number in range(8):
                    await made(other, f"new-{number}")
            copied(restored, live)
            with anyio.fail_after(5):
                while (await served.administer("GET", "/keys?prefix=new")).json["data"] == []:
                    pass
            # That it opens shows that the gateway has followed to the end.
            await made(served, "last")

            statuses = [(await served.post(headers=bearer(each))).status for each in (key, *lost)]
    assert statuses == [401] * 6
