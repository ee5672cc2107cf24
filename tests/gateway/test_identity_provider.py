"""Tokens before a real provider on loopback: discovery, rotation, outages, and answers of every bad kind."""

import asyncio
import random
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway.errors import KeysUnknown, UnknownKey
from gateway.identity.claims import Verified
from gateway.identity.documents import LIMIT_BYTES, HttpDocuments
from gateway.identity.jwks import COOLDOWN_S, NotFetched
from gateway.identity.jws import Fault
from gateway.identity.tokens import Tokens
from tests.identity_provider import DISCOVERY, KEYS, NOW_S, IdentityProvider, compact, key_document, signer
from tests.loopback import Facts

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW, FORGED = signer("ES256", "old"), signer("EdDSA", "new"), signer("ES256", "forged")
GOOD = Verified("corp", "alice", "default", (), None, NOW_S + 3600)


@dataclass
class Told:
    """What was told, and waits for it."""

    faults: list[Fault] = field(default_factory=list)
    fetched: list[str | None] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)

    def token_refused(self, issuer: str | None, fault: Fault) -> None:
        self.faults.append(fault)

    def keys_fetched(self, issuer: str, trouble: str | None) -> None:
        self.fetched.append(trouble)
        self.facts.changed()

    async def until(self, fact: Callable[[], bool]) -> None:
        await self.facts.until(fact, 10, lambda: repr(self))


@dataclass
class Clock:
    """A monotonic clock that a test may put forward."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@dataclass
class Running:
    """A provider, and tokens before it whose wall time stands still."""

    provider: IdentityProvider
    tokens: Tokens
    documents: HttpDocuments
    told: Told
    clock: Clock

    async def fault(self, token: str) -> Fault:
        with pytest.raises(UnknownKey):
            await self.tokens.verify(token)
        return self.told.faults[-1]

    async def fetches(self, more: int = 1) -> str | None:
        """Waits for so many more fetches to end; how the last one did."""
        enough = len(self.told.fetched) + more
        await self.told.until(lambda: len(self.told.fetched) >= enough)
        return self.told.fetched[-1]


@asynccontextmanager
async def running(
    limit_s: float = 5.0, provider: IdentityProvider | None = None, **changes: Any
) -> AsyncIterator[Running]:
    told, clock = Told(), Clock()
    async with provider or IdentityProvider(OLD) as up, HttpDocuments(limit_s) as documents:
        tokens = Tokens([up.settings(**changes)], documents.fetch, clock, lambda: NOW_S, random.Random(5), told)
        async with tokens:
            yield Running(up, tokens, documents, told, clock)
        assert repr(documents) == "<HttpDocuments over <Connections 0 open, 0 idle>>"


async def test_a_provider_is_discovered_and_its_tokens_are_accepted() -> None:
    """From the issuer's name alone; the first call waits for the first fetch."""
    async with running() as up:
        token = OLD.token(up.provider.claims())
        assert up.tokens.known(token) is None
        assert await up.tokens.verify(token) == GOOD
        assert up.tokens.known(token) == GOOD
        assert up.provider.asked == {DISCOVERY: 1, KEYS: 1}
        assert await up.fault(FORGED.named("old").token(up.provider.claims())) is Fault.SIGNATURE


async def test_a_provider_whose_key_set_is_named_is_not_asked_for_more() -> None:
    """`jwks_url` is for issuers without discovery."""
    provider = IdentityProvider(OLD)
    async with provider, HttpDocuments() as documents:
        told = Told()
        settings = provider.settings(jwks_url=provider.jwks_url, issuer="our own name")
        async with Tokens([settings], documents.fetch, time.monotonic, lambda: NOW_S, random.Random(5), told) as tokens:
            assert await tokens.verify(OLD.token(provider.claims(iss="our own name"))) == GOOD
            assert provider.asked == {KEYS: 1}


async def test_a_rotation_is_followed_and_the_old_key_ends() -> None:
    """A new key works at once, the old one for as long as it is published, and its verdicts as long as it."""
    async with running(refresh_s=0.05) as up:
        old, new = OLD.token(up.provider.claims()), NEW.token(up.provider.claims())
        await up.tokens.verify(old)
        up.provider.publish(OLD, NEW)
        await up.fetches(2)
        assert await up.tokens.verify(new) == await up.tokens.verify(old) == GOOD
        up.provider.publish(NEW)
        await up.fetches(2)
        assert up.tokens.known(old) is None
        assert await up.fault(old) is Fault.KEY
        assert up.tokens.known(new) == GOOD


async def test_a_new_key_is_fetched_when_a_token_names_it() -> None:
    """Between two fetches, and no more often than every 30 s."""
    async with running(refresh_s=300) as up:
        await up.tokens.verify(OLD.token(up.provider.claims()))
        up.provider.publish(NEW)
        new = NEW.token(up.provider.claims())
        assert await up.fault(new) is Fault.KEY
        up.clock.ahead_s += COOLDOWN_S
        found = await asyncio.gather(*(up.tokens.verify(new) for _ in range(20)))
        assert found == [GOOD] * 20
        assert up.provider.asked == {DISCOVERY: 2, KEYS: 2}


async def test_a_flood_of_forged_tokens_costs_the_provider_one_fetch() -> None:
    """10,000 random key ids, at once and one after the other, and known callers notice nothing."""
    async with running(refresh_s=300) as up:
        claims = up.provider.claims()
        known = OLD.token(claims)
        await up.tokens.verify(known)
        up.clock.ahead_s += COOLDOWN_S
        rng = random.Random(11)
        for _ in range(10):
            kids = [f"{rng.getrandbits(128):x}" for _ in range(1000)]
            tokens = [compact({"alg": "ES256", "kid": kid}, claims, lambda _: bytes(64)) for kid in kids]
            results = await asyncio.gather(*(up.tokens.verify(token) for token in tokens), return_exceptions=True)
            assert all(isinstance(result, UnknownKey) for result in results)
            assert up.tokens.known(known) == GOOD
        assert up.provider.asked == {DISCOVERY: 2, KEYS: 2}
        assert set(up.told.faults) == {Fault.KEY}


BAD: dict[str, tuple[Callable[[IdentityProvider], None], str]] = {
    "500": (lambda up: up.answers(500, b"{}"), "answered 500"),
    "404": (lambda up: up.answers(404), "answered 404"),
    "204": (lambda up: up.answers(204), "answered 204"),
    "a redirect": (lambda up: up.answers(302, location="http://127.0.0.1:1/keys"), "answered 302"),
    "a redirect to itself": (lambda up: up.answers(307, location=up.jwks_url), "answered 307"),
    "a redirect for ever": (lambda up: up.answers(301, location="file:///etc/passwd"), "answered 301"),
    "a page": (lambda up: up.answers(200, b"<html>Sign in</html>"), "is not JSON"),
    "nothing": (lambda up: up.answers(200), "is not JSON"),
    "10 MB": (lambda up: up.answers(200, b" " * 10_000_000), f"larger than {LIMIT_BYTES} bytes"),
    "10 MB without an end": (
        lambda up: up.sends(b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 10_000_000),
        f"larger than {LIMIT_BYTES} bytes",
    ),
    "10 MB of chunks": (
        lambda up: up.sends(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 150
        ),
        f"larger than {LIMIT_BYTES} bytes",
    ),
    "an endless head": (
        lambda up: up.sends(b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 100_000 + b"\r\n" * 2),
        "malformed answer",
    ),
    "compressed": (lambda up: up.answers(200, b"\x1f\x8b", content_encoding="gzip"), "in an encoding"),
    "cut off": (lambda up: up.sends(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}"), "connection lost"),
    "no HTTP": (lambda up: up.sends(b"SSH-2.0-OpenSSH_9.6\r\n"), "malformed answer"),
    "not a byte": (lambda up: up.sends(b""), "connection lost"),
    "an empty key set": (lambda up: up.publish(), "no key that can be used"),
    "keys for other purposes": (lambda up: up.publish(OLD.jwk(use="enc")), "no key that can be used"),
    "another issuer": (lambda up: up.discovery.update(issuer="https://evil.example"), "another issuer's"),
    "a key set elsewhere": (lambda up: up.discovery.update(jwks_uri="file:///etc/passwd"), "not one of http"),
    "a key set with a line": (
        lambda up: up.discovery.update(jwks_uri=up.jwks_url + "\r\nx: y"),
        "not one of http",
    ),
    "a refusal": (lambda up: up.refuses_connections(), "no connection: Connection refused"),
    "silence": (lambda up: up.holds(), "no document within 0.3 s"),
}


@pytest.mark.parametrize(("breaks", "why"), BAD.values(), ids=BAD)
async def test_known_keys_hold_while_the_provider_does_not(
    breaks: Callable[[IdentityProvider], None], why: str
) -> None:
    """Whatever it sends, and however slowly; no redirect is followed; and it is tried again until it is well."""
    async with running(refresh_s=0.05, limit_s=0.3) as up:
        good_discovery = dict(up.provider.discovery)
        assert await up.tokens.verify(OLD.token(up.provider.claims())) == GOOD
        breaks(up.provider)
        trouble = await up.fetches(2)
        assert why in str(trouble)
        fresh = OLD.token(up.provider.claims(jti="fresh"))
        assert await up.tokens.verify(fresh) == GOOD
        up.provider.recovers()
        up.provider.releases()
        await up.provider.accepts_connections()
        up.provider.discovery.update(good_discovery)
        up.provider.publish(NEW)
        await up.fetches(3)
        assert await up.tokens.verify(NEW.token(up.provider.claims())) == GOOD
        assert await up.fault(fresh) is Fault.KEY
        assert set(up.provider.asked) <= {DISCOVERY, KEYS}


async def test_a_provider_that_is_away_holds_up_no_start() -> None:
    """Tokens are not judged until it is there, which is no word about them; then nobody's help is needed."""
    provider = IdentityProvider(OLD)
    async with provider:
        provider.refuses_connections()
        settings = provider.settings(refresh_s=0.05)
        told = Told()
        async with (
            HttpDocuments() as documents,
            Tokens([settings], documents.fetch, time.monotonic, lambda: NOW_S, random.Random(5), told) as tokens,
        ):
            token = OLD.token(provider.claims())
            with pytest.raises(KeysUnknown):
                await tokens.verify(token)
            await provider.accepts_connections()
            await told.until(lambda: told.fetched[-1:] == [None])
            assert await tokens.verify(token) == GOOD


async def test_leaving_ends_a_fetch_under_way() -> None:
    """Nothing is left behind: no task, no connection."""
    provider, told = IdentityProvider(OLD), Told()
    provider.holds()
    async with provider:
        async with (
            HttpDocuments() as documents,
            Tokens([provider.settings()], documents.fetch, time.monotonic, lambda: NOW_S, random.Random(5), told),
        ):
            await provider.until_asked(DISCOVERY)
            assert provider.connections == 1
        await provider.until_unconnected()
        assert told.fetched == []


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "not one of http or https"),
        ("our own name", "not one of http or https"),
        ("ftp://127.0.0.1/keys", "not one of http or https"),
        ("file:///etc/passwd", "not one of http or https"),
        ("HTTP://127.0.0.1/", "not one of http or https"),
        ("//127.0.0.1/keys", "not one of http or https"),
        ("http://127.0.0.1/keys#fragment", "not one of http or https"),
        ("http://127.0.0.1/ke ys", "not one of http or https"),
        ("http://127.0.0.1/k\r\nx: y", "not one of http or https"),
        ("http://127.0.0.1/k\ty", "not one of http or https"),
        ("http://127.0.0.1/ключ", "not one of http or https"),
        ("http://127.0.0.1/\0", "not one of http or https"),
        ("http://127.0.0.1/" + "k" * 2048, "not one of http or https"),
        ("http:///keys", "no plain host and port"),
        ("http://user:password@127.0.0.1/keys", "no plain host and port"),
        ("http://127.0.0.1:0/keys", "no plain host and port"),
        ("http://127.0.0.1:65536/keys", "no plain host and port"),
        ("http://127.0.0.1:port/keys", "no plain host and port"),
        ("http://[::1/keys", "no plain host and port"),
        ("http://a,b/keys", "no plain host and port"),
        (f"http://{'a' * 64}.example/keys", "no connection: unknown host"),
    ],
)
async def test_what_is_no_plain_url_is_not_asked_for(url: str, why: str) -> None:
    """A provider's document may name any URL: nothing of it ends a line of a head or leaves HTTP."""
    async with HttpDocuments() as documents:
        with pytest.raises(NotFetched, match=why):
            await documents.fetch(url)


async def test_a_document_is_asked_for_plainly() -> None:
    """By its own host and path, query included, with nothing of ours but a name."""
    provider = IdentityProvider(OLD)
    async with provider, HttpDocuments() as documents:
        provider.answers(200, b"{}")
        assert await documents.fetch(f"{provider.issuer}/a/b?c=d&e=%20") == b"{}"
        assert await documents.fetch(provider.issuer) == b"{}"
        assert await documents.fetch(f"{provider.issuer}?q") == b"{}"
        assert provider.asked == {"/a/b?c=d&e=%20": 1, "/": 1, "/?q": 1}
        provider.answers(200, b" " * LIMIT_BYTES)
        assert len(await documents.fetch(provider.issuer)) == LIMIT_BYTES
        provider.answers(200, b" " * (LIMIT_BYTES + 1))
        with pytest.raises(NotFetched, match="larger"):
            await documents.fetch(provider.issuer)


def certificate(folder: Path, host: str) -> Path:
    """A certificate that `host` signed itself, and its key, in one file."""
    private = signer("ES256", "tls").private
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, SHA256())
    )
    path = folder / f"{host}.pem"
    key = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM) + key)
    return path


@asynccontextmanager
async def https(path: Path) -> AsyncIterator[str]:
    """The URL of a server with that certificate, which answers everything with keys."""
    body = key_document(OLD)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"


@pytest.mark.parametrize(
    ("trusted", "host", "why"),
    [(True, "127.0.0.1", None), (False, "127.0.0.1", "TLS failed"), (True, "127.0.0.2", "TLS failed")],
    ids=["trusted", "not trusted", "another host's"],
)
async def test_certificates_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool, host: str, why: str | None
) -> None:
    """Against what the system trusts, and against the host in the URL."""
    path = certificate(tmp_path, host)
    monkeypatch.setenv("SSL_CERT_FILE", str(path if trusted else certificate(tmp_path, "127.0.0.9")))
    async with https(path) as url, HttpDocuments() as documents:
        if why is None:
            assert await documents.fetch(url) == key_document(OLD)
        else:
            with pytest.raises(NotFetched, match=why):
                await documents.fetch(url)


def test_a_gateway_without_issuers_loads_no_cryptography() -> None:
    """It costs a tenth of a second and ten megabytes."""
    code = """
import asyncio, random, sys, time
from gateway.identity.documents import HttpDocuments
from gateway.identity.tokens import Tokens
async def main():
    async with HttpDocuments() as documents:
        async with Tokens((), documents.fetch, time.monotonic, time.time, random.Random(), None) as tokens:
            tokens.known("ey.a.b")
asyncio.run(main())
print(*sorted({name.partition('.')[0] for name in sys.modules} & {"jwt", "cryptography"}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
