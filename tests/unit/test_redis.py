"""gateway/redis.py against a real redis-server, and against scripted ones: everybody gets his own reply, or none."""

import asyncio
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hiredis
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from gateway import redis as redis_module
from gateway.redis import MOST_WAITING, REASONS, Away, Place, Redis, Script, command, pause_s, words
from gateway.settings import RedisSettings, SettingsError
from tests.redis_server import RedisServer, Story

pytestmark = pytest.mark.anyio

PATIENT_S = 1.0
PING = command("PING")
OK = b"+OK\r\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


def settings(url: str, timeout_s: float = PATIENT_S, retry_s: float = 0.02) -> RedisSettings:
    return RedisSettings(url=SecretStr(url), timeout_s=timeout_s, retry_s=retry_s)


def connected(url: str, timeout_s: float = PATIENT_S, retry_s: float = 0.02) -> Redis:
    return Redis(settings(url, timeout_s, retry_s), random.Random(1))


def echo(text: object) -> bytes:
    return command("ECHO", text)


def connections_to(server: RedisServer) -> int:
    """How many there are to its port; the tests' own go to its socket file."""
    return server.told("CLIENT", "LIST").count(b" addr=127.0.0.1")


def keep_busy(seconds: float) -> None:
    """So that nothing else runs here."""
    time.sleep(seconds)


# Where it is


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://10.0.0.7", Place("10.0.0.7", 6379, "", False, "", "", 0)),
        ("redis://cache:6380/3", Place("cache", 6380, "", False, "", "", 3)),
        ("redis://:pw@cache", Place("cache", 6379, "", False, "", "pw", 0)),
        ("rediss://us%40er:p%2Fw%3A@cache:1/", Place("cache", 1, "", True, "us@er", "p/w:", 0)),
        ("redis://[::1]:7000", Place("::1", 7000, "", False, "", "", 0)),
        ("unix:///run/redis.sock", Place("", 0, "/run/redis.sock", False, "", "", 0)),
        ("unix://me:pw@/run/a%20b.sock?db=2", Place("", 0, "/run/a b.sock", False, "me", "pw", 2)),
    ],
)
async def test_urls_say_where_redis_is(url: str, place: Place) -> None:
    """And who we are there, as every other client reads them."""
    assert Place.of(url) == place


@pytest.mark.parametrize(
    "url", ["redis://h:secret", "redis://u:secret@h:99999", "redis://u:secret@h/x", "redis://u:secret@h/-1", "unix://a"]
)
async def test_a_wrong_url_is_refused_without_being_repeated(url: str) -> None:
    """There is a password in it."""
    with pytest.raises(SettingsError) as caught:
        connected(url)
    assert "redis.url: must be redis://" in str(caught.value)
    assert "secret" not in str(caught.value)


# Replies


async def test_commands_of_many_callers_are_answered_each_with_its_own(server: RedisServer) -> None:
    """All on one connection."""
    async with connected(server.url) as redis:
        assert repr(redis) == f"<Redis 127.0.0.1:{server.port}, 0 waiting>"
        replies = await asyncio.gather(*(redis.ask(echo(n)) for n in range(2000)))
        assert replies == [b"%d" % n for n in range(2000)]
        assert connections_to(server) == 1


async def test_what_is_asked_in_one_turn_of_the_loop_is_one_write() -> None:
    """A system call for each would be most of what a call costs."""
    reads = list[int]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader(notEnoughData=Ellipsis)
        while data := await reader.read(2**20):
            parser.feed(data)
            asked = 0
            while parser.gets() is not Ellipsis:
                asked += 1
            reads.append(asked)
            writer.write(OK * asked)

    async with scripted(answer) as url, connected(url) as redis:
        reads.clear()
        await asyncio.gather(*(redis.ask(PING) for _ in range(100)))
        assert reads == [100]


@pytest.mark.parametrize("seed", range(3))
async def test_in_a_storm_of_callers_who_leave_nobody_gets_anothers_reply(server: RedisServer, seed: int) -> None:
    """Whoever leaves, before or after his command was sent, his reply is his alone (CVE-2023-28858)."""
    rng, late, replies = random.Random(seed), list[object](), 0
    async with connected(server.url) as redis, asyncio.timeout(60):

        async def call(n: int) -> None:
            nonlocal replies
            assert await redis.ask(echo(n), late=late.append) == b"%d" % n
            replies += 1

        left = list[int]()
        for wave in range(40):
            tasks = {n: asyncio.create_task(call(n)) for n in range(wave * 100, wave * 100 + 100)}
            for _ in range(rng.randrange(4)):
                await redis.ask(PING) if rng.random() < 0.3 else await asyncio.sleep(0)
            for n, task in tasks.items():
                if rng.random() < 0.5 and not task.done():
                    task.cancel()
                    left.append(n)
            for result in await asyncio.gather(*tasks.values(), return_exceptions=True):
                assert result is None or isinstance(result, asyncio.CancelledError)
        assert await redis.ask(echo("last")) == b"last"
        assert repr(redis).endswith(", 0 waiting>")
        assert replies + len(left) == 4000
        # A reply that nobody waits for is told of, with what it says, or its command was never sent.
        assert len(late) == len(set(late))
        assert set(late) <= {b"%d" % n for n in left}
        assert late


async def test_a_caller_cancelled_as_his_reply_comes_loses_nothing(server: RedisServer) -> None:
    """A reply that is there, in a task that is ended before it runs on, goes where late ones go."""
    late = list[object]()
    async with connected(server.url) as redis:
        task = asyncio.create_task(redis.ask(echo("x"), late=late.append))
        other = asyncio.create_task(redis.ask(echo("y")))
        # It is told of its reply after `task` was, in the same turn: then `task` has it, and has not run yet.
        other.add_done_callback(lambda _: None)
        original = redis.taken

        def taken(connection: Any, asked: Any, reply: object) -> None:
            original(connection, asked, reply)
            if reply == b"x":
                task.cancel()

        redis.taken = taken  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await task
        assert late == [b"x"]
        assert await other == b"y"


async def test_a_command_whose_caller_left_before_it_was_sent_is_not_sent(server: RedisServer) -> None:
    """There is nobody to do it for."""
    async with connected(server.url) as redis:
        task = asyncio.create_task(redis.ask(command("INCR", "counter")))
        await asyncio.sleep(0)
        task.cancel()
        assert await redis.ask(command("GET", "counter")) is None


async def test_a_command_that_is_repeated_has_no_more_time_for_it() -> None:
    """A caller waits for the time limit at most, whatever happens in it."""
    script = Script.of("return 1")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for asked in commands(reader):
            if asked[0] == b"EVALSHA":
                asyncio.get_running_loop().call_later(0.8, writer.write, b"-NOSCRIPT no such script\r\n")
            elif asked[0] != b"EVAL":
                writer.write(OK)

    async with scripted(answer) as url, connected(url, timeout_s=1.0) as redis:
        begun_s = time.monotonic()
        with pytest.raises(Away):
            await redis.ask(b"*3\r\n" + script.by_hash + words(0), script)
        assert time.monotonic() - begun_s < 1.6


async def test_a_script_that_redis_does_not_know_is_sent_once_more_with_its_text(server: RedisServer) -> None:
    """A command that was not executed may be repeated; those that follow go by the hash again."""
    script = Script.of("return redis.call('INCR', KEYS[1])")
    run = b"*4\r\n" + script.by_hash + words(1, "counter")
    async with connected(server.url) as redis:
        assert [await redis.ask(run, script) for _ in range(3)] == [1, 2, 3]
        server.do("SCRIPT", "FLUSH")
        assert sorted(await asyncio.gather(*(redis.ask(run, script) for _ in range(50)))) == list(range(4, 54))
        server.do("SCRIPT", "FLUSH")
        redis.tell(run, script)
        await redis.ask(PING)
        await redis.ask(PING)
        assert server.do("GET", "counter") == b"54"


# Away


@pytest.mark.parametrize("code", [*REASONS, "ERR"])
async def test_an_error_makes_it_away_with_its_reason_and_a_probe_brings_it_back(code: str) -> None:
    """None of them is worth another call's time."""
    faulty = False

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for asked in commands(reader):
            if asked[0] != b"HOLD":
                writer.write(b"-%b some words\r\n" % code.encode() if faulty else OK)

    async with scripted(answer) as url, connected(url) as redis:
        story = Story()
        redis.watch(story)
        faulty = True
        reason = REASONS.get(code, "it answered with an error")
        # Those who wait for something else are told at once as well.
        told = await asyncio.gather(redis.ask(command("FAIL")), redis.ask(command("HOLD")), return_exceptions=True)
        assert [str(each) for each in told] == [reason] * 2
        assert story.told == [reason]
        assert f"away: {reason}>" in repr(redis)
        with pytest.raises(Away):
            redis.tell(PING)
        faulty = False
        await story.until(away=False)
        assert await redis.ask(PING) == b"OK"


async def test_a_redis_that_stands_still_costs_each_caller_the_time_limit_once(server: RedisServer) -> None:
    """Then nothing, until a probe is answered in time; and what was late is told of."""
    story, late = Story(), list[object]()
    async with connected(server.url, timeout_s=0.05) as redis:
        redis.watch(story)
        server.stop()
        begun_s = time.monotonic()
        replies = await asyncio.gather(
            *(redis.ask(echo(n), late=late.append) for n in range(10)), return_exceptions=True
        )
        assert time.monotonic() - begun_s < 5
        assert [str(reply) for reply in replies] == ["no answer within 50 ms"] * 10
        assert story.told == ["no answer within 50 ms"]
        begun_s = time.monotonic()
        for _ in range(1000):
            with pytest.raises(Away):
                await redis.ask(PING)
        assert time.monotonic() - begun_s < 1
        server.resume()
        await story.until(away=False)
        assert late == [b"%d" % n for n in range(10)]
        assert await redis.ask(echo("again")) == b"again"


async def test_probes_go_one_at_a_time_and_a_slow_answer_brings_nothing_back() -> None:
    """A Redis that answers late is as good as none."""
    held, probes, slow = list[asyncio.StreamWriter](), 0, False

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal probes
        async for asked in commands(reader):
            probes += asked[0] == b"SET"
            if slow:
                held.append(writer)
                news.set()
            else:
                writer.write(OK)

    async with scripted(answer) as url, connected(url, timeout_s=0.03) as redis:
        story, news = Story(), asyncio.Event()
        redis.watch(story)
        probes, slow = 0, True
        with pytest.raises(Away):
            await redis.ask(PING)
        for sent in range(2, 5):
            while len(held) < sent:
                news.clear()
                await news.wait()
            assert probes == sent - 1
            assert story.told == ["no answer within 30 ms"]
        slow = False
        for writer in held:
            writer.write(OK)
        await story.until(away=False)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_that_we_are_late_ourselves_is_not_held_against_redis(
    server: RedisServer, run: Callable[[Awaitable[None]], None]
) -> None:
    """Whatever keeps our event loop busy: the reply is in our socket, or was not asked for yet."""

    async def main() -> None:
        async with connected(server.url, timeout_s=0.02) as redis:
            story = Story()
            redis.watch(story)
            for _ in range(5):
                asked = asyncio.create_task(redis.ask(echo("x")))
                # Before it is sent, as it is sent, and when it is under way.
                for _ in range(4):
                    await asyncio.sleep(0)
                    keep_busy(0.05)
                assert await asked == b"x"
            assert story.told == []

    run(main())


async def test_a_lost_connection_fails_who_waits_at_once_and_is_made_anew(server: RedisServer) -> None:
    """Killed under load, and started again."""
    async with connected(server.url) as redis:
        story = Story()
        redis.watch(story)
        server.stop()
        waiting = [asyncio.create_task(redis.ask(PING)) for _ in range(10)]
        await asyncio.sleep(0)
        server.kill()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert {str(result) for result in results} == {"the connection was lost"}
        server.start()
        await story.until(away=False)
        assert story.told == ["the connection was lost", None]
        assert await redis.ask(PING) == b"PONG"


async def test_what_was_lost_with_a_connection_is_not_held_against_the_next() -> None:
    """A command that can have no answer any more is not late."""
    lost = False

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal lost
        async for asked in commands(reader):
            if asked[0] == b"PING" and not lost:
                lost = True
                return
            writer.write(OK)

    async with scripted(answer) as url, connected(url, timeout_s=0.3) as redis:
        story = Story()
        redis.watch(story)
        redis.tell(PING)
        await story.until(away=True)
        await story.until(away=False)
        # What is asked now comes due after what was lost.
        late = asyncio.Event()
        asyncio.get_running_loop().call_later(0.4, late.set)
        await late.wait()
        assert story.told == ["the connection was lost", None]


async def test_a_silent_connection_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that vanished closes nothing; the next look at its name may lead to another."""
    monkeypatch.setattr(redis_module, "SILENT_S", 0.1)
    mute, connections = False, 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        mine = connections
        async for _ in commands(reader):
            if mine > 1 or not mute:
                writer.write(OK)

    async with scripted(answer) as url, connected(url, timeout_s=0.02) as redis:
        story = Story()
        redis.watch(story)
        mute = True
        with pytest.raises(Away):
            await redis.ask(PING)
        await story.until(away=False)
        assert connections == 2


async def test_every_new_connection_looks_the_name_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a failover moves a name, we follow."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with RedisServer(tmp_path / "a") as one, RedisServer(tmp_path / "b") as other:
        leads_to, asked = one, list[str]()

        async def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
            asked.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", leads_to.port))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
        other.do("SET", "who", "other")
        async with connected("redis://redis.example:6379") as redis:
            story = Story()
            redis.watch(story)
            assert await redis.ask(command("GET", "who")) is None
            leads_to = other
            one.kill()
            await story.until(away=True)
            await story.until(away=False)
            assert await redis.ask(command("GET", "who")) == b"other"
            assert asked == ["redis.example"] * 2


async def test_what_waits_is_bounded(server: RedisServer) -> None:
    """More than that, and Redis is as good as away."""
    async with connected(server.url) as redis:
        for _ in range(MOST_WAITING):
            redis.tell(PING)
        with pytest.raises(Away, match="commands are waiting"):
            redis.tell(PING)


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n", OK + OK, b"\x00\xff" * 10])
async def test_what_is_no_reply_ends_the_connection(garbage: bytes) -> None:
    """After it, nobody could tell whose reply is whose."""
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        async for asked in commands(reader):
            writer.write(garbage if asked[0] == b"PING" else OK)

    async with scripted(answer) as url, connected(url) as redis:
        story = Story()
        redis.watch(story)
        with suppress(Away):
            assert await redis.ask(PING) == b"OK"
        await story.until(away=True)
        await story.until(away=False)
        assert connections == 2


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://127.0.0.1:1", "Connection refused"),
        ("unix:///no/such.sock", "No such file or directory"),
        ("redis://no-such-host.example", "unknown host"),
    ],
)
async def test_a_redis_that_is_not_there_holds_up_no_start(
    monkeypatch: pytest.MonkeyPatch, url: str, reason: str
) -> None:
    """The gateway starts without it, and knows why."""

    async def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        if host.endswith(".example"):
            raise socket.gaierror(socket.EAI_NONAME, "no-such-host.example is not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    async with connected(url) as redis:
        assert redis.away == reason
        with pytest.raises(Away, match=reason):
            await redis.ask(PING)


async def test_a_redis_that_comes_later_is_found(tmp_path: Path) -> None:
    """However often it was not there."""
    with RedisServer(tmp_path) as server:
        server.kill()
        async with connected(server.url, retry_s=0.01) as redis:
            story = Story()
            redis.watch(story)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await story.until(away=False)
            server.start()
            await story.until(away=False)
            assert await redis.ask(PING) == b"PONG"


async def test_who_takes_our_connection_and_says_nothing_is_no_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start waits for him no longer than for one that is not there."""
    monkeypatch.setattr(redis_module, "CONNECT_S", 0.05)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with scripted(answer) as url, connected(url) as redis:
        assert redis.away == "no connection in time"


@pytest.mark.parametrize("retry_s", [0.5, 30.0])
def test_pauses_between_connections_are_short_and_never_in_step(retry_s: float) -> None:
    """A moment after a loss, then about as often as is set, however long it takes."""
    rng = random.Random(1)
    assert all(0 <= pause_s(0, retry_s, rng) <= 0.05 for _ in range(100))
    later = [pause_s(failures, retry_s, rng) for failures in range(1, 100)]
    assert all(retry_s / 2 <= each <= retry_s for each in later)
    assert len(set(later)) > 90


async def test_nothing_is_left_when_it_is_left(server: RedisServer) -> None:
    """No task, and no connection; away or not."""
    before = asyncio.all_tasks()
    for stopped in (False, True):
        async with connected(server.url, timeout_s=0.02) as redis:
            if stopped:
                server.stop()
                with pytest.raises(Away):
                    await redis.ask(PING)
        assert asyncio.all_tasks() == before
    with pytest.raises(RuntimeError, match="of the block"):
        async with connected(server.url):
            raise RuntimeError("of the block")
    server.resume()
    while connections_to(server):
        pass


# Who we are


async def test_a_password_and_a_database_are_given(tmp_path: Path) -> None:
    """By the default user's password, and by a user's own."""
    with RedisServer(tmp_path, requirepass="open sesame") as server:
        server.do("ACL", "SETUSER", "me", "on", ">p/w", "~*", "+@all")
        for who in (":open%20sesame", "me:p%2Fw"):
            async with connected(f"redis://{who}@127.0.0.1:{server.port}/5") as redis:
                assert redis.away is None
                await redis.ask(command("SET", "who", who))
        assert b"db5:keys=" in server.told("INFO", "keyspace")


@pytest.mark.parametrize(
    ("who", "reason"), [(":wrong-secret@", REASONS["WRONGPASS"]), ("", REASONS["NOAUTH"]), ("me:wrong-secret@", None)]
)
async def test_a_wrong_password_is_told_and_not_repeated(tmp_path: Path, who: str, reason: str | None) -> None:
    """Neither in what it prints nor in what it raises."""
    with RedisServer(tmp_path, requirepass="right-secret") as server:
        async with connected(f"redis://{who}127.0.0.1:{server.port}") as redis:
            assert redis.away == (reason or REASONS["WRONGPASS"])
            with pytest.raises(Away) as caught:
                await redis.ask(PING)
            told = f"{redis!r} {caught.value!r} {vars(redis)}"
            assert "wrong-secret" not in told
            assert "right-secret" not in told


async def test_tls_is_spoken_and_certificates_are_checked(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate that nobody we trust has signed is no Redis of ours."""
    certificate = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(server.path)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, back), pump(there, writer))

    async with scripted(forward, context) as url:
        tls = url.replace("redis://127.0.0.1", "rediss://localhost")
        async with connected(tls) as redis:
            assert redis.away == "TLS failed"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with connected(tls) as redis:
            assert await redis.ask(echo("x")) == b"x"


# Scripted servers


async def commands(reader: asyncio.StreamReader) -> AsyncIterator[list[bytes]]:
    parser = hiredis.Reader(notEnoughData=Ellipsis)
    while data := await reader.read(65536):
        parser.feed(data)
        while (asked := parser.gets()) is not Ellipsis:
            yield asked


@asynccontextmanager
async def scripted(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A server on loopback whose connections are each answered as told; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()


def self_signed(folder: Path) -> Path:
    """A certificate for localhost, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path
