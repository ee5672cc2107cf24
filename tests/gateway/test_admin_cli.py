"""`pagegate keys|tenants|usage|audit`: through the admin API, in words for people and JSON for machines."""

import asyncio
import csv
import io
import json
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.cli.place import Lost, Options, Place, find
from gateway.identity.principal import Principal
from gateway.store import usage
from tests.gateway.administering import CALLER, KEYS, NOW, Desk, administering, used

pytestmark = pytest.mark.anyio
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with administering(tmp_path) as found:
        yield found


def environment(desk: Desk | None = None, role: str = "admin", **more: str) -> dict[str, str | None]:
    """What a shell would have; nothing of the machine's own."""
    names = ("PAGEGATE_ADMIN_URL", "PAGEGATE_ADMIN_KEY", "PAGEGATE_ADMIN_KEY_FILE")
    cleared: dict[str, str | None] = {**dict.fromkeys(names), "PAGEGATE_STATE": "/nowhere", "COLUMNS": "200"}
    given = {"PAGEGATE_ADMIN_URL": desk.url, "PAGEGATE_ADMIN_KEY": KEYS[role]} if desk is not None else {}
    return {**cleared, **given, **more}


async def run(*words: str, env: dict[str, str | None]) -> Result:
    """A command in a thread: its calls block, and the admin API is in our event loop."""
    return await asyncio.to_thread(CliRunner().invoke, app, list(words), env=env)


async def good(desk: Desk, *words: str, role: str = "admin") -> Result:
    """A command that must succeed."""
    desk.advance(1e-6)
    result = await run(*words, env=environment(desk, role))
    assert result.exit_code == 0, result.output
    return result


async def found(desk: Desk, *words: str) -> Any:
    """What a command tells in JSON."""
    return json.loads((await good(desk, *words, "--json")).stdout)


async def failed(desk: Desk, *words: str, role: str = "admin") -> str:
    """What a command says that must fail: status 1, one message, no traceback."""
    desk.advance(1e-6)
    result = await run(*words, env=environment(desk, role))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    return result.stderr


async def test_a_made_key_is_alone_on_standard_output(desk: Desk) -> None:
    """So that `KEY=$(pagegate keys create NAME)` works; what it may do is told beside it."""
    result = await good(
        desk,
        *("keys", "create", "alice", "--tenant", "of-file", "--models", "llama-*,tiny"),
        *("--limit", "requests_per_minute=60", "--limit", "tokens_per_day=1000", "--expires-in", "90d"),
        *("--priority", "high", "--metadata", "team=search"),
    )
    key = result.stdout.strip()
    who = (await desk.look()).find(key)
    assert isinstance(who, Principal)
    assert (who.name, who.tenant.name, who.models, who.priority) == ("alice", "of-file", ("llama-*", "tiny"), "high")
    assert who.limits.model_dump(mode="json", exclude_defaults=True) == {
        "requests_per_minute": 60,
        "tokens_per_day": 1000,
    }
    assert key not in result.stderr
    assert "expires at  " in result.stderr
    assert "shown this once" in result.stderr


async def test_a_key_is_managed_for_its_whole_life(desk: Desk) -> None:
    """Created, listed, shown, changed, rotated, revoked."""
    made = await found(desk, "keys", "create", "alice", "--limit", "requests_per_minute=5")
    assert made["key"].startswith("pg-")
    listed = (await good(desk, "keys", "list", role="viewer")).stdout.splitlines()
    assert listed[0].split()[:3] == ["name", "kind", "state"]
    assert [line.split()[0] for line in listed[1:]] == ["alice", "from-file", "the-admin", "the-operator", "the-viewer"]
    assert "requests_per_minute=5" in listed[1]
    shown = (await good(desk, "keys", "show", made["id"])).stdout
    assert f"id          {made['id']}\n" in shown
    change = ("--limit", "requests_per_minute=", "--limit", "concurrent_calls=2", "--metadata", "a=1", "--models", "t*")
    changed = await found(desk, "keys", "update", "alice", *change, "--expires-at", "2027-01-31T00:00:00Z")
    assert (changed["limits"], changed["models"]) == ({"concurrent_calls": 2}, ["t*"])
    assert changed["expires_at"] == "2027-01-31T00:00:00.000Z"
    assert (await found(desk, "keys", "update", "alice", "--never-expires"))["expires_at"] is None
    assert (await found(desk, "keys", "update", "alice", "--priority", "low"))["priority"] == "low"
    assert (await found(desk, "keys", "update", "alice", "--priority", "tenant"))["priority"] is None
    new = (await good(desk, "keys", "rotate", "alice", "--grace", "2h", role="operator")).stdout.strip()
    assert (await found(desk, "keys", "show", "alice"))["previous_until"] == "2026-03-14T17:09:26.000Z"
    assert [(await desk.look()).find(key) is not None for key in (new, made["key"])] == [True, True]
    assert "revoked" in (await good(desk, "keys", "revoke", "alice")).stdout
    assert (await desk.look()).find(new) is None
    assert "alice" not in (await good(desk, "keys", "list")).stdout
    assert [key["name"] for key in await found(desk, "keys", "list", "--all", "--prefix", "al")] == ["alice"]


async def test_an_administrators_key_is_made_with_its_role(desk: Desk) -> None:
    """By an admin."""
    key = (await good(desk, "keys", "create", "ops", "--role", "operator")).stdout.strip()
    assert key.startswith("pga-")
    names = [each["name"] for each in await found(desk, "keys", "list", "--administrators")]
    assert names == ["ops", "the-admin", "the-operator", "the-viewer"]


async def test_a_tenant_is_managed_for_its_whole_life(desk: Desk) -> None:
    """Created, listed, shown with what it used, changed, removed with its keys."""
    budget = ("--budget", "tokens_per_day=100", "--budget", "cost_per_month=2.5")
    made = await found(desk, "tenants", "create", "acme", *budget, "--weight", "2", "--priority", "low")
    assert (made["budget"], made["weight"]) == ({"tokens_per_day": 100, "cost_per_month": 2.5}, 2.0)
    await desk.database.run(usage.write, [used("c1", NOW, tenant="acme", cost_micros=1_500_000)])
    shown = (await good(desk, "tenants", "show", "acme")).stdout
    assert "used this month  15 tokens, 1.5 credit" in shown
    changed = await found(desk, "tenants", "update", "acme", "--budget", "tokens_per_day=", "--models", "a,b")
    assert (changed["budget"], changed["models"]) == ({"cost_per_month": 2.5}, ["a", "b"])
    listed = (await good(desk, "tenants", "list")).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["name", "acme", "default", "of-file"]
    await good(desk, "keys", "create", "alice", "--tenant", "acme")
    assert "revoke_keys=true" in await failed(desk, "tenants", "remove", "acme")
    assert "alice" in (await good(desk, "tenants", "remove", "acme", "--revoke-keys")).stdout
    assert [each["name"] for each in await found(desk, "tenants", "list", "--all")] == ["acme", "default", "of-file"]


async def test_what_was_used_is_told(desk: Desk, tmp_path: Path) -> None:
    """Sums, single calls, and files."""
    records = [used(f"c{number:04}", NOW, tenant=f"t{number % 2}", cost_micros=1000) for number in range(1200)]
    await desk.database.run(usage.write, records)
    lines = (await good(desk, "usage", "summary", "--by", "tenant", role="viewer")).stdout.splitlines()
    assert lines[0].split() == [
        "tenant",
        "calls",
        "prompt",
        "tokens",
        "completion",
        "tokens",
        "cached",
        "tokens",
        "cost",
    ]
    assert [line.split() for line in lines[1:]] == [
        [f"t{n}", "600", "6000", "3000", "1200", "0.6", "credit"] for n in (0, 1)
    ]
    assert (await found(desk, "usage", "summary", "--since", "2026-03-14"))["since"] == "2026-03-14"
    assert len(await found(desk, "usage", "records", "--tenant", "t1")) == 50
    assert len(await found(desk, "usage", "records", "--last", "1100")) == 1100
    table = (await good(desk, "usage", "records", "--last", "3")).stdout.splitlines()
    assert len(table) == 4
    exported = (await good(desk, "usage", "export")).stdout
    assert len(list(csv.DictReader(io.StringIO(exported)))) == 1200
    file = tmp_path / "out" / "usage.jsonl"
    file.parent.mkdir()
    await good(desk, "usage", "export", "--format", "jsonl", "--by", "tenant", "--output", str(file))
    assert [json.loads(line)["calls"] for line in file.read_text().splitlines()] == [600, 600]
    assert list(file.parent.iterdir()) == [file]


async def test_who_administered_what_is_told(desk: Desk, tmp_path: Path) -> None:
    """As a table, as JSON, and as a file."""
    await good(desk, "keys", "create", "alice", role="operator")
    await failed(desk, "tenants", "create", "acme", role="operator")
    table = (await good(desk, "audit", "list")).stdout.splitlines()
    assert [line.split()[1:4] for line in table[1:]] == [
        ["the-operator", "operator", "tenants.create"],
        ["the-operator", "operator", "keys.create"],
    ]
    [entry] = await found(desk, "audit", "list", "--action", "keys.create", "--actor", "the-operator")
    assert (entry["target"], entry["outcome"]) == ("alice", "done")
    await good(desk, "audit", "export", "-o", str(tmp_path / "audit.jsonl"))
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["done", "denied", "done"]


async def test_nothing_found_is_said_so(desk: Desk) -> None:
    """On standard error, with status 0: an empty answer is no mistake."""
    result = await good(desk, "keys", "list", "--prefix", "zzz")
    assert (result.stdout, result.stderr) == ("", "there are no such keys\n")
    assert await found(desk, "keys", "list", "--prefix", "zzz") == []


async def test_what_is_shown_steers_no_terminal(desk: Desk) -> None:
    """An engine's version or a token's subject is somebody else's text."""
    evil = "\x1b]0;owned\x07\x1b[2J"
    await desk.database.run(usage.write, [used("c1", NOW, key=evil, outcome=evil)])
    for words in (("usage", "records"), ("usage", "summary", "--by", "key"), ("usage", "records", "--json")):
        out = (await good(desk, *words)).stdout
        assert "\x1b" not in out
        assert "owned" in out


# What goes wrong, and what is said of it.


@pytest.mark.parametrize(
    ("role", "words", "told"),
    [
        ("viewer", ("keys", "create", "bob"), ["needs the role `operator`", "has the role `viewer`", "  Ask an admin"]),
        ("operator", ("keys", "create", "bob", "--role", "admin"), ["needs the role `admin`"]),
        ("admin", ("keys", "create", "from-file"), ["`from-file` is taken by a key in the gateway's settings file"]),
        ("admin", ("keys", "create", "alice"), ["`alice` is taken"]),
        ("admin", ("keys", "create", "bob", "--tenant", "nobody"), ["there is no tenant `nobody`"]),
        ("admin", ("keys", "create", "a b"), ["name:"]),
        ("admin", ("keys", "create", "bob", "--limit", "per_minute=1"), ["limits.per_minute"]),
        ("admin", ("keys", "show", "nobody"), ["There is no key `nobody`"]),
        ("admin", ("keys", "revoke", "from-file"), ["managed by the gateway's settings file", "edit the file"]),
        ("admin", ("keys", "update", "alice"), ["something to change"]),
        ("admin", ("tenants", "show", "nobody"), ["There is no tenant `nobody`"]),
        ("viewer", ("audit", "list"), ["needs the role `operator`"]),
        ("admin", ("usage", "summary", "--by", "colour"), ["group_by"]),
        ("admin", ("usage", "export", "--since", "yesterday"), ["since: must be a day"]),
    ],
)
async def test_what_is_refused_is_told_with_why(desk: Desk, role: str, words: tuple[str, ...], told: list[str]) -> None:
    """Status 1, in the words of the admin API."""
    await good(desk, "keys", "create", "alice")
    said = await failed(desk, *words, role=role)
    assert all(text in said for text in told), said


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "create", "bob", "--limit", "requests_per_minute"),
        ("keys", "create", "bob", "--limit", "requests_per_minute=many"),
        ("keys", "create", "bob", "--limit", "requests_per_minute="),
        ("keys", "create", "bob", "--expires-in", "soon"),
        ("keys", "rotate", "bob", "--grace", "-1"),
        ("keys", "create", "bob", "--role", "root"),
        ("keys", "create"),
    ],
)
async def test_words_that_mean_nothing_are_refused_before_anything_is_sent(desk: Desk, words: tuple[str, ...]) -> None:
    """Status 2, as for any wrong use of a command."""
    assert (await run(*words, env=environment(desk))).exit_code == 2
    assert not await desk.entries()


@pytest.mark.parametrize("key", [CALLER, "pga-wrong"])
async def test_a_wrong_key_is_told_with_where_it_is_from(desk: Desk, key: str) -> None:
    """And with what kind of key is needed; never the key itself."""
    result = await run("keys", "list", env=environment(desk, PAGEGATE_ADMIN_KEY=key))
    assert result.exit_code == 1
    assert "does not know the key from PAGEGATE_ADMIN_KEY" in result.stderr
    assert "pga-..." in result.stderr
    assert key not in result.output


async def test_a_gateway_that_is_not_there_is_said_so() -> None:
    """With how to start it, or to name another."""
    env = environment(PAGEGATE_ADMIN_URL=NOBODY, PAGEGATE_ADMIN_KEY="pga-x")
    result = await run("keys", "list", env=env)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"nothing listens at {NOBODY}" in result.stderr
    assert "admin.port" in result.stderr


async def speaking(answer: bytes, talk: Callable[[str], Any]) -> Any:
    """Talks to a listener that answers every call with the same bytes and closes."""

    async def told(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(told, "127.0.0.1", 0) as server:
        return await talk(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n<p>hi", "is not Pagegate's admin API"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}", "is not Pagegate's admin API"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://evil/\r\ncontent-length: 0\r\n\r\n", "is not Pagegate's admin API"),
        (b"SSH-2.0-OpenSSH\r\n", "is not Pagegate's admin API"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{", "broke off in the middle"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "broke off in the middle"),
        (b"", "broke off in the middle"),
        (
            b'HTTP/1.1 503 X\r\ncontent-length: 66\r\n\r\n{"error":{"message":"The store is away \x1b[2J.".",'.ljust(
                200
            ),
            "is not Pagegate's admin API",
        ),
        (
            b'HTTP/1.1 503 X\r\nconnection: close\r\n\r\n{"error":{"message":"The store is away.","code":null}}',
            "The store is away.",
        ),
        (
            b'HTTP/1.1 500 X\r\nconnection: close\r\n\r\n{"error":{"message":"Failed.","code":null}}',
            "failed (500): Failed.",
        ),
    ],
)
async def test_whatever_answers_is_told_in_one_message(tmp_path: Path, answer: bytes, told: str) -> None:
    """No traceback, whatever listens there; and half a file is none."""
    file, part = tmp_path / "file", tmp_path / "file.part"

    async def talk(url: str) -> tuple[Result, Result]:
        env = environment(PAGEGATE_ADMIN_URL=url, PAGEGATE_ADMIN_KEY="pga-x")
        return await run("keys", "list", env=env), await run("usage", "export", "-o", str(file), env=env)

    listed, exported = await speaking(answer, talk)
    assert listed.exit_code == 1
    assert told in listed.stderr
    assert "Traceback" not in listed.output
    if "broke off" in told:
        assert exported.exit_code == 1
        assert (file.exists(), part.exists()) == (False, False)


async def test_a_pipe_that_is_closed_early_is_no_fault_of_the_gateway(desk: Desk) -> None:
    """`pagegate usage export | head`: the command ends without a word."""
    await desk.database.run(usage.write, [used(f"c{number:05}", NOW, version="x" * 500) for number in range(1000)])
    env = {name: value for name, value in environment(desk).items() if value is not None}
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = (sys.executable, "-m", "gateway", "usage", "export")
        child = await asyncio.create_subprocess_exec(*command, env=env, stdout=writing, stderr=asyncio.subprocess.PIPE)
    finally:
        os.close(writing)
    _, said = await child.communicate()
    assert (child.returncode, said) == (1, b"")


async def test_a_full_disk_is_told_as_one(desk: Desk) -> None:
    """And not as a fault of the gateway."""
    await desk.database.run(usage.write, [used("c1", NOW)])
    said = await failed(desk, "usage", "export", "-o", "/proc/nothing")
    assert "/proc/nothing: cannot be written" in said


# Where the admin API is.


def folder(path: Path, url: str = "http://127.0.0.1:9", key: str = "pga-of-folder") -> Path:
    """A state folder as `pagegate up` leaves it."""
    path.mkdir(exist_ok=True)
    (path / "admin.json").write_text(json.dumps({"url": url, "key": key}))
    return path


def test_what_pagegate_up_runs_is_found_by_itself(tmp_path: Path) -> None:
    """From the folder that it keeps: named, in the environment, or where the command is run."""
    state = folder(tmp_path / "state")
    wanted = Place("http://127.0.0.1:9", "pga-of-folder", str(state / "admin.json"))
    assert find(Options(state=state), {}) == wanted
    assert find(Options(), {"PAGEGATE_STATE": str(state)}) == wanted
    assert find(Options(url="http://127.0.0.1:9", state=state), {}) == wanted


async def test_commands_work_beside_pagegate_up_without_any_option(desk: Desk, tmp_path: Path) -> None:
    """Nothing to set on the machine where it runs."""
    state = folder(tmp_path / "state", desk.url, KEYS["viewer"])
    result = await run("keys", "list", "--json", "--state", str(state), env=environment())
    assert result.exit_code == 0, result.output


def test_options_come_before_the_environment_and_that_before_the_folder(tmp_path: Path) -> None:
    """The nearer word wins."""
    state = folder(tmp_path / "state")
    file = tmp_path / "key"
    file.write_text("pga-of-file\n")
    environ = {"PAGEGATE_ADMIN_URL": "https://env", "PAGEGATE_ADMIN_KEY": "pga-of-env", "PAGEGATE_STATE": str(state)}
    assert find(Options(), environ) == Place("https://env", "pga-of-env", "PAGEGATE_ADMIN_KEY")
    assert find(Options("https://option/", file), environ) == Place("https://option", "pga-of-file", str(file))
    environ = {"PAGEGATE_ADMIN_KEY_FILE": str(file)}
    assert find(Options(state=state), environ) == Place("http://127.0.0.1:9", "pga-of-file", str(file))


def test_the_folders_key_goes_nowhere_else(tmp_path: Path) -> None:
    """Another address gets no key that was not meant for it."""
    state = folder(tmp_path / "state")
    with pytest.raises(Lost, match=r"there is no key for https://elsewhere"):
        find(Options(url="https://elsewhere", state=state), {})


@pytest.mark.parametrize(
    ("url", "insecure", "told"),
    [
        ("http://10.0.0.1:9", False, "unencrypted to 10.0.0.1"),
        ("http://gateway.internal", False, "unencrypted to gateway.internal"),
        ("http://127.0.0.1.evil.example", False, "unencrypted"),
        ("http://localhost.evil.example", False, "unencrypted"),
        ("http://10.0.0.1:9", True, None),
        ("https://10.0.0.1:9", False, None),
        ("http://127.0.0.2:9", False, None),
        ("http://[::1]:9", False, None),
        ("http://localhost:9", False, None),
        ("ftp://localhost", True, "no address"),
        ("localhost:9", True, "no address"),
        ("http://user:secret@localhost", True, "no address"),
        ("http://localhost/admin", True, "no address"),
        ("http://localhost:99999", True, "no address"),
        ("http://localhost?x", True, "no address"),
    ],
)
def test_a_key_travels_unencrypted_within_this_machine_only(url: str, insecure: bool, told: str | None) -> None:
    """Unless it is said that the network is trusted."""
    options = Options(url=url, insecure=insecure)
    if told is None:
        assert find(options, {"PAGEGATE_ADMIN_KEY": "pga-x"}).url == url
    else:
        with pytest.raises(Lost, match=told):
            find(options, {"PAGEGATE_ADMIN_KEY": "pga-x"})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"url": 5, "key": "x"}', '{"url": "http://127.0.0.1:9"}'])
def test_a_folder_that_makes_no_sense_is_said_so(tmp_path: Path, text: str) -> None:
    """One message that names the file."""
    (tmp_path / "admin.json").write_text(text)
    with pytest.raises(Lost, match=r"admin\.json"):
        find(Options(state=tmp_path), {})


@pytest.mark.parametrize("text", ["", "two words", "pg-\x00", "pg-é"])
def test_a_file_without_a_key_is_said_so(tmp_path: Path, text: str) -> None:
    """Before anything is sent; the file is named, and not what is in it."""
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(Lost, match="holds no key"):
        find(Options(NOBODY, file), {})
    with pytest.raises(Lost, match="cannot be read"):
        find(Options(NOBODY, tmp_path / "none"), {})


async def test_without_any_word_of_where_it_is_said_what_to_say() -> None:
    """Status 1, with the three ways."""
    result = await run("keys", "list", env=environment())
    assert result.exit_code == 1
    assert all(text in result.stderr for text in ("--admin-url", "PAGEGATE_ADMIN_URL", "pagegate up"))


# Without a gateway.


async def test_an_administrators_stanza_is_one_for_the_settings_file(tmp_path: Path) -> None:
    """The key begins as administrators' keys do, and the lines go to `admin.keys`."""
    secret = tmp_path / "secret"
    words = ("keys", "stanza", "ops", "--role", "operator", "--secret-file", str(secret))
    result = await run(*words, env=environment())
    assert result.exit_code == 0
    assert "role: operator" in result.stdout
    assert "tenant" not in result.stdout
    assert result.stderr.strip().rsplit(" ", 1)[1].startswith("pga-")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
