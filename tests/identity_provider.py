"""An OpenID provider on loopback: it publishes keys, rotates them, breaks in every way, and signs whatever it is told.

It owns keys and the documents about them. What is signed is the test's business, down to the bytes of a header: a
good token and a forged one differ in nothing but what is put into them. The server sends raw bytes, so that an
answer can be as wrong as a test wants it.
"""

import json
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from gateway.settings import IssuerSettings
from tests.loopback import Connection, Loopback, Message
from tests.vllm_wire import plain_reply

DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/keys"
# When tokens of the tests are issued: some moment in 2027.
NOW_S = 1_800_000_000.0
CURVES: dict[str, type[ec.EllipticCurve]] = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}
Json = Mapping[str, Any] | bytes


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(header: Json, claims: Json, sign: Callable[[bytes], bytes]) -> str:
    """A token of any header and claims, as they are written where they are bytes, with what `sign` makes of them."""
    parts = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims))
    message = ".".join(map(base64url, parts))
    return f"{message}.{base64url(sign(message.encode()))}"


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key that signs by one algorithm, and the id that it goes by; made when it is first needed."""

    algorithm: str
    key_id: str | None
    key: str
    bits: int

    @property
    def private(self) -> Any:
        return _private_key(self.algorithm, self.key, self.bits)

    @property
    def public(self) -> Any:
        return self.private.public_key()

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """The public key as a JWK; a change to None leaves a member out."""
        made: dict[str, Any] = get_default_algorithms()[self.algorithm].to_jwk(self.public, as_dict=True)
        made |= {"kid": self.key_id, "alg": self.algorithm, "use": "sig"} | changes
        return {name: value for name, value in made.items() if value is not None}

    def signature(self, message: bytes) -> bytes:
        signed: bytes = get_default_algorithms()[self.algorithm].sign(message, self.private)
        return signed

    def token(self, claims: Json, **header: Any) -> str:
        """A signed token; a change of the header to None leaves a member out."""
        named = {"alg": self.algorithm, "typ": "JWT", "kid": self.key_id} | header
        return compact({name: one for name, one in named.items() if one is not None}, claims, self.signature)

    def named(self, key_id: str | None) -> "Signer":
        """The same key under another id."""
        return replace(self, key_id=key_id)


def signer(algorithm: str, key_id: str, bits: int = 2048) -> Signer:
    """A key of that name, the same one each time."""
    return Signer(algorithm, key_id, key_id, bits)


@cache
def _private_key(algorithm: str, name: str, bits: int) -> Any:
    """Kept: to make one takes long. Names are there to tell keys apart."""
    if algorithm == "EdDSA":
        return ed448.Ed448PrivateKey.generate() if bits == 448 else ed25519.Ed25519PrivateKey.generate()
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm]())
    return rsa.generate_private_key(65537, bits)


def key_document(*signers: Signer | Mapping[str, Any]) -> bytes:
    return json.dumps({"keys": [one.jwk() if isinstance(one, Signer) else one for one in signers]}).encode()


class IdentityProvider:
    """Serves discovery and keys: `async with IdentityProvider(signer("RS256", "one")) as provider`.

    `asked` counts what was asked for, by path. `answer` is what is sent instead of a document, or None.
    """

    def __init__(self, *signers: Signer) -> None:
        self.asked: Counter[str] = Counter()
        self.answer: bytes | None = None
        self.discovery: dict[str, Any] = {}
        self._document = key_document(*signers)
        self._held: list[tuple[Connection, Message]] = []
        self._holding = False
        self._loopback = Loopback(self)

    async def __aenter__(self) -> Self:
        await self._loopback.__aenter__()
        self.discovery = {"issuer": self.issuer, "jwks_uri": self.jwks_url, "response_types_supported": ["code"]}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._loopback.__aexit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<IdentityProvider {dict(self.asked)}, {len(self._held)} held>"

    @property
    def issuer(self) -> str:
        return self._loopback.url

    @property
    def jwks_url(self) -> str:
        return f"{self._loopback.url}{KEYS}"

    def settings(self, **changes: Any) -> IssuerSettings:
        """What a gateway is told of this provider."""
        told = {"name": "corp", "issuer": self.issuer, "audiences": ["pagegate"], "default_tenant": "default"}
        return IssuerSettings.model_validate(told | changes)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Good claims, for an hour from `NOW_S`; a change to None leaves one out."""
        return claims(self.issuer, **changes)

    # How it behaves.

    def publish(self, *signers: Signer | Mapping[str, Any]) -> None:
        """From now on these are its keys, and no others."""
        self._document = key_document(*signers)

    def answers(self, status: int, body: bytes = b"", **headers: str) -> None:
        """From now on it answers this, whatever it is asked for; underscores in names become dashes."""
        pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
        self.answer = plain_reply(status, body, pairs)

    def sends(self, raw: bytes) -> None:
        """From now on it sends these bytes, and closes the connection."""
        self.answer = raw

    def recovers(self) -> None:
        self.answer = None

    def holds(self) -> None:
        """From now on it takes everything and answers nothing, until `releases`."""
        self._holding = True

    def releases(self) -> None:
        self._holding = False
        held, self._held = self._held, []
        for connection, message in held:
            self._reply(connection, message)

    def refuses_connections(self) -> None:
        self._loopback.refuse()

    async def accepts_connections(self) -> None:
        await self._loopback.listen()

    async def until_asked(self, path: str, times: int = 1, within_s: float = 10.0) -> None:
        await self._loopback.facts.until(lambda: self.asked[path] >= times, within_s, lambda: repr(self))

    @property
    def connections(self) -> int:
        return len(self._loopback.connections)

    async def until_unconnected(self, within_s: float = 10.0) -> None:
        await self._loopback.facts.until(lambda: not self.connections, within_s, lambda: repr(self))

    # What comes in.

    def received(self, connection: Connection, message: Message) -> None:
        assert (message.method, message.body) == ("GET", b"")
        self.asked[message.path] += 1
        if self._holding:
            self._held.append((connection, message))
        else:
            self._reply(connection, message)
        self._loopback.facts.changed()
        connection.next_message()

    def _reply(self, connection: Connection, message: Message) -> None:
        if self.answer is not None:
            connection.write(self.answer)
        elif message.path == DISCOVERY:
            connection.write(plain_reply(200, self.discovery))
        elif message.path == KEYS:
            connection.write(plain_reply(200, self._document))
        else:
            connection.write(plain_reply(404))
        connection.close()

    def malformed(self, connection: Connection) -> None:
        connection.write(plain_reply(400))
        connection.close()

    def writable(self, connection: Connection) -> None:
        """What it sends is written at once, however much it is."""

    def lost(self, connection: Connection) -> None:
        self._held = [held for held in self._held if held[0] is not connection]


def claims(issuer: str, **changes: Any) -> dict[str, Any]:
    """Good claims of an issuer, for an hour from `NOW_S`; a change to None leaves one out."""
    made = {
        "iss": issuer,
        "aud": "pagegate",
        "sub": "alice",
        "iat": int(NOW_S),
        "exp": int(NOW_S) + 3600,
    } | changes
    return {name: value for name, value in made.items() if value is not None}
