"""The admin API's keys: made, shown once, listed, changed, rotated, revoked; and what the settings file has."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.identity.keys import digest
from gateway.identity.principal import Administrator, Principal
from tests.gateway.administering import Desk, administering
from tests.harness import SECRET

pytestmark = pytest.mark.anyio
KEYS_PATH = "/admin/v1/keys"
DAY_S = 86_400


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with administering(tmp_path) as found:
        yield found


async def made(desk: Desk, name: str = "alice", **fields: Any) -> dict[str, Any]:
    reply = await desk.call("POST", KEYS_PATH, {"name": name, **fields})
    assert reply.status == 201, reply.body
    found: dict[str, Any] = reply.json
    return found


async def opens(desk: Desk, key: str) -> bool:
    """Whether a gateway that has looked lets this key in."""
    return (await desk.look()).find(key) is not None


async def test_a_key_that_was_made_opens_the_gateway_as_it_was_wished(desk: Desk) -> None:
    """Tenant, models and limits are those of the call; the gateway is told to look at once."""
    wanted: dict[str, Any] = {
        "models": ["llama-*"],
        "limits": {"requests_per_minute": 60},
        "priority": "high",
        "tenant": "of-file",
    }
    key = await made(desk, **wanted, metadata={"team": "search"})
    assert desk.changes == 1
    who = (await desk.look()).find(key["key"])
    assert isinstance(who, Principal)
    assert (who.name, who.tenant.name, who.models) == ("alice", "of-file", ("llama-*",))
    assert (who.limits.requests_per_minute, who.priority) == (60, "high")
    assert key["key"].startswith("pg-")
    assert key["key"].endswith(key["hint"])
    assert (key["state"], key["managed_by"], key["metadata"]) == ("active", "database", {"team": "search"})


async def test_a_key_is_shown_once_and_nowhere_else(desk: Desk) -> None:
    """Neither it nor its digest is in what any route answers later, in the audit log, or in the gateway's log."""
    first = await made(desk)
    second = (await desk.call("POST", f"{KEYS_PATH}/alice/rotate", {})).json
    shown = b""
    for path in ("/keys", "/keys/alice", f"/keys/{first['id']}", "/audit", "/audit/export", "/status"):
        shown += (await desk.call("GET", f"/admin/v1{path}")).body
    shown += repr(await desk.entries()).encode() + desk.log.text
    for key in (first["key"], second["key"]):
        for secret in (key, key.removeprefix("pg-"), digest(key, SECRET.encode())):
            assert secret.encode() not in shown


async def test_an_administrators_key_administers_and_calls_nothing(desk: Desk) -> None:
    """It begins otherwise, has a role, and opens the admin API as soon as the gateway has looked."""
    key = await made(desk, "bob", role="operator")
    assert key["key"].startswith("pga-")
    assert (key["kind"], key["role"], key["tenant"], key["models"]) == ("administrator", "operator", None, [])
    who = (await desk.look()).find(key["key"])
    assert who == Administrator("bob", who.role)  # type: ignore[union-attr]
    reply = await desk.call("GET", "/admin/v1/whoami", key=key["key"])
    assert (reply.json["name"], reply.json["role"]) == ("bob", "operator")


async def test_a_rotated_key_goes_on_for_its_grace_and_no_longer(desk: Desk) -> None:
    """A day unless said otherwise; the new one opens at once."""
    old = await made(desk)
    new = (await desk.call("POST", f"{KEYS_PATH}/alice/rotate")).json
    assert new["id"] == old["id"]
    assert new["key"] != old["key"]
    assert new["previous_until"] == "2026-03-15T15:09:26.000Z"
    assert [await opens(desk, key) for key in (old["key"], new["key"])] == [True, True]
    desk.advance(DAY_S - 1)
    assert await opens(desk, old["key"])
    desk.advance(1)
    assert [await opens(desk, key) for key in (old["key"], new["key"])] == [False, True]
    assert (await desk.get(f"{KEYS_PATH}/alice"))["previous_until"] is None


async def test_a_rotation_without_grace_ends_the_old_key_at_once(desk: Desk) -> None:
    """For a key that is known to strangers."""
    old = await made(desk)
    new = (await desk.call("POST", f"{KEYS_PATH}/alice/rotate", {"grace_s": 0})).json
    assert [await opens(desk, key) for key in (old["key"], new["key"])] == [False, True]


async def test_an_administrators_key_is_rotated_into_another_of_its_kind(desk: Desk) -> None:
    """With its prefix, by which a leaked key is recognised."""
    await made(desk, "bob", role="viewer")
    new = (await desk.call("POST", f"{KEYS_PATH}/bob/rotate", {"grace_s": 0})).json
    assert new["key"].startswith("pga-")
    assert isinstance((await desk.look()).find(new["key"]), Administrator)


async def test_a_revoked_key_is_over_and_its_name_is_free(desk: Desk) -> None:
    """Also its grace. It stays to be seen; the name is that of whoever gets it next."""
    old = await made(desk)
    new = (await desk.call("POST", f"{KEYS_PATH}/alice/rotate")).json
    reply = await desk.call("POST", f"{KEYS_PATH}/alice/revoke")
    assert (reply.status, reply.json["state"]) == (200, "revoked")
    assert [await opens(desk, key) for key in (old["key"], new["key"])] == [False, False]
    for act, body in (("POST", "/revoke"), ("POST", "/rotate")):
        again = await desk.call(act, f"{KEYS_PATH}/alice{body}")
        assert (again.status, again.json["error"]["code"]) == (409, "conflict")
    other = await made(desk)
    assert other["id"] != old["id"]
    assert (await desk.get(f"{KEYS_PATH}/alice"))["id"] == other["id"]
    assert (await desk.get(f"{KEYS_PATH}/{old['id']}"))["state"] == "revoked"


async def test_a_key_expires_when_it_was_said(desk: Desk) -> None:
    """From then on it is refused, shown as expired, and not rotated until it has a later end."""
    key = await made(desk, expires_in_s=60)
    assert key["expires_at"] == "2026-03-14T15:10:26.000Z"
    desk.advance(60)
    assert not await opens(desk, key["key"])
    assert (await desk.get(f"{KEYS_PATH}/alice"))["state"] == "expired"
    assert (await desk.call("POST", f"{KEYS_PATH}/alice/rotate")).status == 409
    reply = await desk.call("PATCH", f"{KEYS_PATH}/alice", {"expires_at": "2026-03-14T18:00:00+02:00"})
    assert reply.json["expires_at"] == "2026-03-14T16:00:00.000Z"
    assert await opens(desk, key["key"])


async def test_a_change_leaves_alone_what_it_does_not_name(desk: Desk) -> None:
    """A merge patch: objects are merged, null takes away, lists are replaced."""
    await made(desk, limits={"requests_per_minute": 5, "tokens_per_day": 9}, metadata={"a": "1", "b": "2"})
    change = {
        "limits": {"tokens_per_day": None, "concurrent_calls": 3},
        "metadata": {"a": None, "c": "3"},
        "models": ["tiny"],
        "priority": "low",
    }
    key = (await desk.call("PATCH", f"{KEYS_PATH}/alice", change)).json
    assert key["limits"] == {"requests_per_minute": 5, "concurrent_calls": 3}
    assert key["metadata"] == {"b": "2", "c": "3"}
    assert (key["models"], key["priority"], key["expires_at"]) == (["tiny"], "low", None)
    assert (await desk.call("PATCH", f"{KEYS_PATH}/alice", {"priority": None})).json["priority"] is None
    [entry] = [entry for entry in await desk.entries() if "before" in entry.details and "limits" in entry.details]
    assert entry.details["before"]["limits"] == {"requests_per_minute": 5, "tokens_per_day": 9}


async def test_keys_are_listed_in_pages_that_miss_none_and_repeat_none(desk: Desk) -> None:
    """The file's and the database's together, by name; one that was revoked beside its successor."""
    for number in range(7):
        await made(desk, f"key-{number}")
    await desk.call("POST", f"{KEYS_PATH}/key-3/revoke")
    await made(desk, "key-3")
    whole = (await desk.get(KEYS_PATH))["data"]
    names = [key["name"] for key in whole]
    assert names == sorted(names)
    assert len(names) == 7 + 1 + 4
    found, after = [], ""
    while True:
        page = await desk.get(f"{KEYS_PATH}?limit=2{after}")
        assert len(page["data"]) <= 2
        found += page["data"]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert found == whole


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("tenant=of-file", ["amy", "from-file"]),
        ("kind=administrator", ["root", "the-admin", "the-operator", "the-viewer"]),
        ("kind=caller", ["amy", "bea", "from-file"]),
        ("prefix=a", ["amy"]),
        ("prefix=from", ["from-file"]),
        ("revoked=true", ["bea"]),
        ("revoked=false&kind=caller", ["amy", "from-file"]),
    ],
)
async def test_keys_are_found_by_what_is_asked(desk: Desk, query: str, names: list[str]) -> None:
    """Tenant, kind, beginning of the name, revoked or not."""
    await made(desk, "amy", tenant="of-file")
    await made(desk, "bea")
    await made(desk, "root", role="admin")
    await desk.call("POST", f"{KEYS_PATH}/bea/revoke")
    assert [key["name"] for key in (await desk.get(f"{KEYS_PATH}?{query}"))["data"]] == names


@pytest.mark.parametrize("name", ["from-file", "the-admin"])
async def test_what_the_file_names_is_shown_and_cannot_be_changed(desk: Desk, name: str) -> None:
    """409, with where to change it; and its name cannot be taken."""
    assert (await desk.get(f"{KEYS_PATH}/{name}"))["managed_by"] == "file"
    for method, path, body in (
        ("PATCH", "", {"expires_in_s": 5}),
        ("POST", "/rotate", {}),
        ("POST", "/revoke", {}),
    ):
        reply = await desk.call(method, f"{KEYS_PATH}/{name}{path}", body)
        assert (reply.status, reply.json["error"]["code"]) == (409, "managed_by_file")
        assert "edit the file" in reply.json["error"]["message"]
    assert (await desk.call("POST", KEYS_PATH, {"name": name})).status == 409
    assert desk.changes == 0


async def test_a_name_has_one_key_at_a_time(desk: Desk) -> None:
    """The second one is refused, and nothing of it stays."""
    first = await made(desk)
    reply = await desk.call("POST", KEYS_PATH, {"name": "alice"})
    assert (reply.status, reply.json["error"]["code"]) == (409, "conflict")
    assert "`alice` is taken" in reply.json["error"]["message"]
    assert await opens(desk, first["key"])


async def test_a_key_may_be_named_with_everything_that_names_may_hold(desk: Desk) -> None:
    """Slashes and words of our own paths among it."""
    for name in ("a/b:c@d+e", "x/rotate", "x/revoke", "rotate", "key_0123"):
        key = await made(desk, name)
        found = await desk.get(f"{KEYS_PATH}/{name.replace('+', '%2B')}")
        assert found["id"] == key["id"]
        assert (await desk.call("POST", f"{KEYS_PATH}/{name.replace('/', '%2F')}/revoke")).json["id"] == key["id"]


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({}, "name", "name: is missing"),
        ({"name": "a\r\nb"}, "name", "name:"),
        ({"name": "a\x1b[2J"}, "name", "name:"),
        ({"name": "a b"}, "name", "name:"),
        ({"name": "x" * 129}, "name", "name:"),
        ({"name": "a", "models": ["ok", "e\x1b[31m"]}, "models.1", "printable"),
        ({"name": "a", "metadata": {"k": "a\nb"}}, "metadata.k", "printable"),
        ({"name": "a", "metadata": {"k\x07": "a"}}, None, "printable"),
        ({"name": "a", "tenant": "nobody"}, "tenant", "there is no tenant `nobody`"),
        ({"name": "a", "limits": {"requests_per_minute": 0}}, "limits.requests_per_minute", "at least 1"),
        ({"name": "a", "limits": {"requests_per_minute": "5"}}, "limits.requests_per_minute", "limits"),
        ({"name": "a", "limits": {"per_minute": 5}}, "limits.per_minute", "limits.per_minute: is not known"),
        ({"name": "a", "expires_at": "2026-03-14T15:09:26Z"}, "expires_at", "in the future"),
        ({"name": "a", "expires_at": "2027-01-01T00:00:00"}, "expires_at", "timezone"),
        ({"name": "a", "expires_at": "2027-01-01T00:00:00Z", "expires_in_s": 5}, None, "beside expires_at"),
        ({"name": "a", "expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at", "in a year from 2000"),
        ({"name": "a", "expires_in_s": 0}, "expires_in_s", "more than 0"),
        ({"name": "a", "expires_in_s": 10**18}, "expires_in_s", "at most"),
        ({"name": "a", "role": "root"}, "role", "role"),
        ({"name": "a", "role": "admin", "tenant": "default", "models": ["*"]}, None, "tenant: is not for"),
        ({"name": "a", "digest": "0" * 64}, "digest", "digest"),
        ({"name": "key_0123456789abcdef01234567"}, "name", "identifier"),
    ],
)
async def test_a_key_that_cannot_be_is_refused_with_what_is_wrong(
    desk: Desk, body: Any, param: str | None, told: str
) -> None:
    """400, and no key is made. Line ends and control characters are in no name."""
    reply = await desk.call("POST", KEYS_PATH, body)
    error = reply.json["error"]
    assert reply.status == 400
    assert told in error["message"]
    if param:
        assert error["param"] == param
    assert (await desk.get(f"{KEYS_PATH}?kind=caller"))["data"][-1]["name"] == "from-file"


async def test_every_problem_is_named_at_once(desk: Desk) -> None:
    """Who mends one should not have to find the next by trying."""
    body = {"name": "", "weight": 1, "limits": {"tokens_per_day": -1}}
    message = (await desk.call("POST", KEYS_PATH, body)).json["error"]["message"]
    assert all(f"{name}:" in message for name in ("name", "weight", "limits.tokens_per_day"))


@pytest.mark.parametrize(
    "raw",
    [b'{"name":"a","name":"b"}', b"[]", b'{"name":NaN}', b"{", b'{"name":"\xff"}', b'{"name":"a\\u0000"}'],
)
async def test_a_body_that_can_be_read_in_two_ways_is_refused(desk: Desk, raw: bytes) -> None:
    """As those of calls are."""
    reply = await desk.call("POST", KEYS_PATH, raw=raw, headers={"content-type": "application/json"})
    assert reply.status == 400
    assert desk.changes == 0


async def test_a_form_that_a_browser_was_made_to_send_is_not_read(desk: Desk) -> None:
    """Only JSON is; the credential is in a header that no page of another site can set."""
    raw, headers = b'{"name":"a"}', {"content-type": "text/plain"}
    assert (await desk.call("POST", KEYS_PATH, raw=raw, headers=headers)).status == 415


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "something to change"),
        ({"models": None}, "models: cannot be null"),
        ({"name": "b"}, "name"),
        ({"role": "admin"}, "role"),
        ({"tenant": "default"}, "tenant"),
        ({"metadata": {f"k{number}": "v" for number in range(17)}}, "at most 16"),
    ],
)
async def test_a_change_that_cannot_be_is_refused(desk: Desk, change: Any, told: str) -> None:
    """Neither name nor tenant nor role of a key ever changes."""
    await made(desk)
    reply = await desk.call("PATCH", f"{KEYS_PATH}/alice", change)
    assert reply.status == 400
    assert told in reply.json["error"]["message"]


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("PATCH", ""), ("POST", "/rotate"), ("POST", "/revoke")])
@pytest.mark.parametrize("name", ["nobody", "key_0123456789abcdef01234567"])
async def test_a_key_that_is_not_there_is_not_found(desk: Desk, method: str, path: str, name: str) -> None:
    """By its name or its identifier."""
    body = {"priority": "low"} if method == "PATCH" else None
    reply = await desk.call(method, f"{KEYS_PATH}/{name}{path}", body)
    assert (reply.status, reply.json["error"]["code"]) == (404, "not_found")
    assert f"There is no key `{name}`" in reply.json["error"]["message"]


async def test_a_row_that_the_file_shadows_is_shown_as_such(tmp_path: Path) -> None:
    """The file got a key of the same name later: it wins, and the row says that it does not open."""
    async with administering(tmp_path) as desk:
        key = await made(desk, "carol")
    identity = {
        "secret": SECRET,
        "keys": [{"name": "carol", "digest": digest("pg-another", SECRET.encode())}],
    }
    async with administering(tmp_path, {"identity": identity}) as desk:
        found = [(each["managed_by"], each["state"]) for each in (await desk.get(f"{KEYS_PATH}?prefix=carol"))["data"]]
        assert found == [("file", "active"), ("database", "shadowed")]
        assert not await opens(desk, key["key"])
