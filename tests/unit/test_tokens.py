"""gateway/identity/tokens.py: which tokens are accepted, what a forger is told, and how long a verdict holds."""

import asyncio
import json
import random
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import HMACAlgorithm, get_default_algorithms

from gateway.errors import KeysUnknown, UnknownKey
from gateway.identity.claims import Verified
from gateway.identity.jwks import COOLDOWN_S, NotFetched
from gateway.identity.jws import LONGEST_HEADER, LONGEST_KEY_ID, LONGEST_TOKEN, Fault, looks_like_token
from gateway.identity.tokens import MOST_VERDICTS, Tokens
from gateway.settings import IssuerSettings
from tests.identity_provider import NOW_S, Signer, base64url, claims, compact, key_document, signer
from tests.unit.by_hand import HandLoop
from tests.unit.splitting import thorough

T = TypeVar("T")
ISSUER, OTHER = "https://id.example", "https://other.example"
RSA, PSS, EC, ED = signer("RS256", "rsa"), signer("PS256", "pss"), signer("ES256", "ec"), signer("EdDSA", "ed")
EC_384, ED_448 = signer("ES384", "ec-384"), signer("EdDSA", "ed-448", 448)
# Somebody else's keys: another issuer's, and the forger's own, which he calls as he likes.
THEIRS, FORGED = signer("RS256", "theirs"), signer("RS256", "forged")
GOOD = Verified("corp", "alice", "default", (), None, NOW_S + 3600)


def settings(**changes: Any) -> IssuerSettings:
    told = {
        "name": "corp",
        "issuer": ISSUER,
        "audiences": ["pagegate", "second"],
        "jwks_url": f"{ISSUER}/keys",
        "algorithms": ["RS256", "ES256", "ES384", "EdDSA"],
        "default_tenant": "default",
    }
    return IssuerSettings.model_validate(told | changes)


class Loop(HandLoop):
    """A loop turned by hand in which a TaskGroup may start tasks, which some Pythons name as they do."""

    def create_task(self, coroutine: Coroutine[Any, Any, T], **_: Any) -> "asyncio.Task[T]":
        return super().create_task(coroutine)


class Published:
    """What issuers publish, by URL; `asked` is what was fetched, and when."""

    def __init__(self, loop: HandLoop) -> None:
        self.loop = loop
        self.documents: dict[str, bytes] = {}
        self.asked: list[tuple[str, float]] = []

    async def __call__(self, url: str) -> bytes:
        self.asked.append((url, self.loop.now_s))
        if url not in self.documents:
            raise NotFetched("answered 404")
        return self.documents[url]


class Told:
    """What was told of callers and of fetches."""

    def __init__(self) -> None:
        self.refused: list[tuple[str | None, Fault]] = []
        self.fetched: list[tuple[str, str | None]] = []

    def token_refused(self, issuer: str | None, fault: Fault) -> None:
        self.refused.append((issuer, fault))

    def keys_fetched(self, issuer: str, trouble: str | None) -> None:
        self.fetched.append((issuer, trouble))


class Bench:
    """Tokens before two issuers, in a world whose time is turned by hand."""

    def __init__(self, *issuers: IssuerSettings, most_verdicts: int = MOST_VERDICTS) -> None:
        self.loop, self.told = Loop(), Told()
        self.begun_s = self.loop.now_s
        self.published = Published(self.loop)
        self.published.documents[f"{ISSUER}/keys"] = key_document(RSA, PSS, EC, ED, EC_384, ED_448)
        self.published.documents[f"{OTHER}/keys"] = key_document(THEIRS)
        other = settings(name="other", issuer=OTHER, jwks_url=f"{OTHER}/keys")
        self.tokens = Tokens(
            issuers or (settings(), other),
            self.published,
            self.loop.time,
            self.wall,
            random.Random(1),
            self.told,
            most_verdicts=most_verdicts,
        )

    def wall(self) -> float:
        return NOW_S + self.loop.now_s - self.begun_s

    @contextmanager
    def running(self) -> Iterator["Bench"]:
        leaving = asyncio.Event()

        async def stay() -> None:
            async with self.tokens:
                await leaving.wait()

        staying = self.loop.create_task(stay())
        self.loop.turn()
        try:
            yield self
        finally:
            with self.loop.running():
                leaving.set()
            self.loop.turn()
            assert staying.done()
            assert not self.loop.errors

    def verify(self, token: str) -> Verified:
        return self.loop.do(self.tokens.verify(token))

    def fault(self, token: str) -> Fault:
        """What is wrong with a token that is refused as every other is."""
        with pytest.raises(UnknownKey) as caught:
            self.verify(token)
        assert caught.value.args == UnknownKey().args
        assert caught.value.__cause__ is caught.value.__context__ is None
        assert self.tokens.known(token) is None
        return self.told.refused[-1][1]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench().running() as one:
        yield one


def good(**changes: Any) -> dict[str, Any]:
    return claims(ISSUER, **changes)


def public(one: Signer, encoding: Encoding, form: PublicFormat) -> bytes:
    made: bytes = one.public.public_bytes(encoding, form)
    return made


def keyed(algorithm: str, secret: bytes, key_id: str = "rsa") -> str:
    """A token signed with a secret that everybody knows."""
    mac = HMACAlgorithm({"HS256": HMACAlgorithm.SHA256, "HS512": HMACAlgorithm.SHA512}[algorithm])
    return compact({"alg": algorithm, "typ": "JWT", "kid": key_id}, good(), lambda message: mac.sign(message, secret))


def unsigned(algorithm: Any, signature: bytes = b"") -> str:
    return compact({"alg": algorithm, "typ": "JWT", "kid": "rsa"}, good(), lambda _: signature)


def spliced(header: str | None = None, payload: str | None = None, signature: str | None = None) -> str:
    """A good token, some of whose parts are another's."""
    parts = zip((header, payload, signature), RSA.token(good()).split("."), strict=True)
    return ".".join(own if other is None else other for other, own in parts)


def part(token: str, at: int) -> str:
    return token.split(".")[at]


def by(one: Signer, algorithm: str) -> Callable[[bytes], bytes]:
    """A signature by another algorithm of the same kind of key."""

    def sign(message: bytes) -> bytes:
        signed: bytes = get_default_algorithms()[algorithm].sign(message, one.private)
        return signed

    return sign


def pem() -> bytes:
    return public(RSA, Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def der() -> bytes:
    return public(RSA, Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def in_der(message: bytes) -> bytes:
    signed: bytes = EC.private.sign(message, ECDSA(SHA256()))
    return signed


FORGERIES: dict[str, tuple[Callable[[], str], Fault]] = {
    # Not signed at all (CVE-2015-9235 and its kin).
    "alg none": (lambda: unsigned("none"), Fault.ALGORITHM),
    "alg None": (lambda: unsigned("None"), Fault.ALGORITHM),
    "alg NONE": (lambda: unsigned("NONE"), Fault.ALGORITHM),
    "alg nOnE": (lambda: unsigned("nOnE"), Fault.ALGORITHM),
    "alg none with a signature": (lambda: unsigned("none", b"signature"), Fault.ALGORITHM),
    "alg none with the true signature": (
        lambda: spliced(header=base64url(b'{"alg":"none","kid":"rsa"}')),
        Fault.ALGORITHM,
    ),
    "alg empty": (lambda: unsigned(""), Fault.ALGORITHM),
    "alg null": (lambda: unsigned(None), Fault.ALGORITHM),
    "alg a list": (lambda: unsigned(["RS256"]), Fault.ALGORITHM),
    "alg an object": (lambda: unsigned({"RS256": 1}), Fault.ALGORITHM),
    "alg true": (lambda: unsigned(True), Fault.ALGORITHM),
    "alg missing": (lambda: RSA.token(good(), alg=None), Fault.ALGORITHM),
    "alg in small letters": (lambda: RSA.token(good(), alg="rs256"), Fault.ALGORITHM),
    "alg with a space": (lambda: RSA.token(good(), alg="RS256 "), Fault.ALGORITHM),
    "the signature cut off": (lambda: spliced(signature=""), Fault.SIGNATURE),
    # The public key taken for a secret.
    "HS256 with the PEM": (lambda: keyed("HS256", pem()), Fault.ALGORITHM),
    "HS256 with the PEM and no last line end": (lambda: keyed("HS256", pem().strip()), Fault.ALGORITHM),
    "HS512 with the PEM": (lambda: keyed("HS512", pem()), Fault.ALGORITHM),
    "HS256 with the DER": (lambda: keyed("HS256", der()), Fault.ALGORITHM),
    "HS256 with the JWK": (lambda: keyed("HS256", json.dumps(RSA.jwk()).encode()), Fault.ALGORITHM),
    "HS256 with the key of a curve": (
        lambda: keyed("HS256", public(EC, Encoding.X962, PublicFormat.UncompressedPoint), "ec"),
        Fault.ALGORITHM,
    ),
    "HS256 with the modulus": (lambda: keyed("HS256", RSA.jwk()["n"].encode()), Fault.ALGORITHM),
    "HS256 with nothing": (lambda: keyed("HS256", b""), Fault.ALGORITHM),
    "HS256 with its own id": (lambda: keyed("HS256", b"rsa"), Fault.ALGORITHM),
    "HS256 said to be RS256": (
        lambda: compact(
            {"alg": "RS256", "kid": "rsa"}, good(), lambda m: HMACAlgorithm(HMACAlgorithm.SHA256).sign(m, pem())
        ),
        Fault.SIGNATURE,
    ),
    # Another algorithm than the key's.
    "PS256, which this issuer does not use": (lambda: PSS.token(good()), Fault.ALGORITHM),
    "RS512, likewise": (lambda: compact({"alg": "RS512", "kid": "rsa"}, good(), by(RSA, "RS512")), Fault.ALGORITHM),
    "RS256 by PS256": (lambda: compact({"alg": "RS256", "kid": "rsa"}, good(), by(RSA, "PS256")), Fault.SIGNATURE),
    "RS256 by RS512": (lambda: compact({"alg": "RS256", "kid": "rsa"}, good(), by(RSA, "RS512")), Fault.SIGNATURE),
    "RS256 with a key of a curve": (lambda: EC.token(good(), alg="RS256"), Fault.KEY),
    "ES256 with an RSA key": (lambda: RSA.token(good(), alg="ES256"), Fault.KEY),
    "ES384 with a key of P-256": (lambda: EC.token(good(), alg="ES384"), Fault.KEY),
    "ES256 with a key of P-384": (lambda: EC_384.token(good(), alg="ES256"), Fault.KEY),
    "EdDSA with a key of P-256": (lambda: EC.token(good(), alg="EdDSA"), Fault.KEY),
    "ES256K": (lambda: EC.token(good(), alg="ES256K"), Fault.ALGORITHM),
    # Signatures that are none.
    "ES256 of two zeros": (
        lambda: compact({"alg": "ES256", "kid": "ec"}, good(), lambda _: bytes(64)),
        Fault.SIGNATURE,
    ),
    "ES256 of ones": (lambda: compact({"alg": "ES256", "kid": "ec"}, good(), lambda _: b"\xff" * 64), Fault.SIGNATURE),
    "ES256 in DER": (lambda: compact({"alg": "ES256", "kid": "ec"}, good(), in_der), Fault.SIGNATURE),
    "ES256 of one byte": (lambda: compact({"alg": "ES256", "kid": "ec"}, good(), lambda _: b"1"), Fault.SIGNATURE),
    "ES256 with a byte more": (lambda: EC.token(good())[:-2] + "AAAA", Fault.SIGNATURE),
    "EdDSA of zeros": (lambda: compact({"alg": "EdDSA", "kid": "ed"}, good(), lambda _: bytes(64)), Fault.SIGNATURE),
    "EdDSA by half": (
        lambda: compact({"alg": "EdDSA", "kid": "ed"}, good(), lambda m: ED.signature(m)[:32]),
        Fault.SIGNATURE,
    ),
    "RS256 of zeros": (lambda: compact({"alg": "RS256", "kid": "rsa"}, good(), lambda _: bytes(256)), Fault.SIGNATURE),
    "RS256 of nothing": (lambda: compact({"alg": "RS256", "kid": "rsa"}, good(), lambda _: b""), Fault.SIGNATURE),
    "RS256 and a byte": (
        lambda: compact({"alg": "RS256", "kid": "rsa"}, good(), lambda m: RSA.signature(m) + b"\0"),
        Fault.SIGNATURE,
    ),
    # Somebody else's key.
    "a key of the forger's": (lambda: FORGED.token(good()), Fault.KEY),
    "a key of the forger's under a known id": (lambda: FORGED.named("rsa").token(good()), Fault.SIGNATURE),
    "another issuer's key": (lambda: THEIRS.token(good()), Fault.KEY),
    "another issuer's key under a known id": (lambda: THEIRS.named("rsa").token(good()), Fault.SIGNATURE),
    "this issuer's key for another issuer": (lambda: RSA.token(claims(OTHER)), Fault.KEY),
    "this issuer's key for another issuer, by its id": (
        lambda: RSA.named("theirs").token(claims(OTHER)),
        Fault.SIGNATURE,
    ),
    # A key that the token brings along, or says where to get.
    "jwk": (lambda: FORGED.token(good(), jwk=FORGED.jwk()), Fault.KEY),
    "jwk under a known id": (lambda: FORGED.named("rsa").token(good(), jwk=FORGED.jwk(kid="rsa")), Fault.SIGNATURE),
    "jku": (lambda: FORGED.token(good(), jku="https://evil.example/keys"), Fault.KEY),
    "jku under a known id": (
        lambda: FORGED.named("rsa").token(good(), jku="https://evil.example/keys"),
        Fault.SIGNATURE,
    ),
    "x5u": (lambda: FORGED.named("rsa").token(good(), x5u="https://evil.example/chain"), Fault.SIGNATURE),
    "x5c": (lambda: FORGED.named("rsa").token(good(), x5c=[b64encode(der()).decode()]), Fault.SIGNATURE),
    # An id that is a path, a statement, a URL, or no text at all.
    "kid a path": (lambda: RSA.token(good(), kid="../../../../dev/null"), Fault.KEY),
    "kid a path, signed with an empty file": (lambda: keyed("HS256", b"", "../../../../dev/null"), Fault.ALGORITHM),
    "kid SQL": (lambda: RSA.token(good(), kid="x' UNION SELECT 'key' --"), Fault.KEY),
    "kid a command": (lambda: RSA.token(good(), kid="rsa; cat /etc/passwd |"), Fault.KEY),
    "kid a URL": (lambda: RSA.token(good(), kid="https://evil.example/keys"), Fault.KEY),
    "kid with a line": (lambda: RSA.token(good(), kid="rsa\r\nDEL x"), Fault.KEY),
    "kid with NUL": (lambda: RSA.token(good(), kid="rsa\0"), Fault.MALFORMED),
    "kid in capitals": (lambda: RSA.token(good(), kid="RSA"), Fault.KEY),
    "kid empty": (lambda: RSA.token(good(), kid=""), Fault.KEY),
    "kid a number": (lambda: RSA.token(good(), kid=0), Fault.HEADER),
    "kid a list": (lambda: RSA.token(good(), kid=["rsa"]), Fault.HEADER),
    "kid an object": (lambda: RSA.token(good(), kid={"rsa": 1}), Fault.HEADER),
    "kid null": (lambda: compact({"alg": "RS256", "kid": None}, good(), RSA.signature), Fault.HEADER),
    "kid too long": (lambda: RSA.token(good(), kid="k" * (LONGEST_KEY_ID + 1)), Fault.HEADER),
    "kid missing with two keys for the algorithm": (lambda: ED.token(good(), kid=None), Fault.KEY),
    # Another kind of token, or one that is read in another way.
    "a logout token": (lambda: RSA.token(good(), typ="logout+jwt"), Fault.HEADER),
    "a security event": (lambda: RSA.token(good(), typ="secevent+jwt"), Fault.HEADER),
    "a proof of possession": (lambda: RSA.token(good(), typ="dpop+jwt"), Fault.HEADER),
    "an authorization request": (lambda: RSA.token(good(), typ="application/oauth-authz-req+jwt"), Fault.HEADER),
    "typ JWE": (lambda: RSA.token(good(), typ="JWE"), Fault.HEADER),
    "typ empty": (lambda: RSA.token(good(), typ=""), Fault.HEADER),
    "typ null": (lambda: compact({"alg": "RS256", "kid": "rsa", "typ": None}, good(), RSA.signature), Fault.HEADER),
    "typ a list": (lambda: RSA.token(good(), typ=["JWT"]), Fault.HEADER),
    "crit unknown": (lambda: RSA.token(good(), crit=["exp"], exp=1), Fault.HEADER),
    "crit empty": (lambda: RSA.token(good(), crit=[]), Fault.HEADER),
    "crit b64": (lambda: RSA.token(good(), crit=["b64"], b64=True), Fault.HEADER),
    "b64 false": (lambda: RSA.token(good(), b64=False), Fault.HEADER),
    "compressed": (lambda: RSA.token(good(), zip="DEF"), Fault.HEADER),
    "encrypted in name": (lambda: RSA.token(good(), enc="A128GCM"), Fault.HEADER),
    "encrypted": (lambda: base64url(b'{"alg":"RSA-OAEP","enc":"A128GCM"}') + ".a.b.c.d", Fault.MALFORMED),
    "a token in a token": (lambda: RSA.token(RSA.token(good()).encode(), cty="JWT"), Fault.MALFORMED),
    # Not a token.
    "nothing": (lambda: "", Fault.MALFORMED),
    "dots": (lambda: "..", Fault.MALFORMED),
    "four dots": (lambda: "....", Fault.MALFORMED),
    "one part": (lambda: part(RSA.token(good()), 0), Fault.MALFORMED),
    "two parts": (lambda: RSA.token(good()).rpartition(".")[0], Fault.MALFORMED),
    "four parts": (lambda: RSA.token(good()) + ".", Fault.MALFORMED),
    "no header": (lambda: spliced(header=""), Fault.MALFORMED),
    "no payload": (lambda: spliced(payload=""), Fault.MALFORMED),
    "a line end after it": (lambda: RSA.token(good()) + "\n", Fault.MALFORMED),
    "a space before it": (lambda: " " + RSA.token(good()), Fault.MALFORMED),
    "a space in it": (lambda: RSA.token(good()).replace(".", " .", 1), Fault.MALFORMED),
    "NUL after it": (lambda: RSA.token(good()) + "\0", Fault.MALFORMED),
    "padded": (lambda: spliced(signature=part(RSA.token(good()), 2) + "=="), Fault.MALFORMED),
    "in other letters": (lambda: "é" + RSA.token(good()), Fault.MALFORMED),
    "in half letters": (lambda: "\ud800" + RSA.token(good()), Fault.MALFORMED),
    "plain base64": (lambda: spliced(signature=b64encode(b"\xfb\xff\xfe").decode()), Fault.MALFORMED),
    "too long": (lambda: "e" * (LONGEST_TOKEN + 1), Fault.TOO_LONG),
    "good but too long": (lambda: RSA.token(good(filler="x" * LONGEST_TOKEN)), Fault.TOO_LONG),
    "a header too long": (lambda: RSA.token(good(), x5c=["A" * LONGEST_HEADER]), Fault.MALFORMED),
    "JSON instead of a compact form": (lambda: json.dumps({"payload": "a.b.c"}), Fault.MALFORMED),
    "a header that is a list": (lambda: compact(b'["RS256"]', good(), RSA.signature), Fault.MALFORMED),
    "a header that is no JSON": (lambda: compact(b"{alg:RS256}", good(), RSA.signature), Fault.MALFORMED),
    "a header in UTF-16": (
        lambda: compact('{"alg":"RS256","kid":"rsa"}'.encode("utf-16"), good(), RSA.signature),
        Fault.MALFORMED,
    ),
    "a header that is cut": (lambda: compact(b'{"alg":"RS256","kid":"rsa"', good(), RSA.signature), Fault.MALFORMED),
    "a payload that is a list": (lambda: RSA.token(json.dumps([good()]).encode()), Fault.MALFORMED),
    "a payload that is a text": (lambda: RSA.token(b'"alice"'), Fault.MALFORMED),
    "a payload that is null": (lambda: RSA.token(b"null"), Fault.MALFORMED),
    "a payload that is no UTF-8": (lambda: RSA.token(b'{"sub":"\xff"}'), Fault.MALFORMED),
    "a payload with NaN": (lambda: RSA.token(json.dumps(good(exp=float("nan"))).encode()), Fault.MALFORMED),
    "a payload with infinity": (lambda: RSA.token(json.dumps(good(exp=float("inf"))).encode()), Fault.MALFORMED),
    "a payload with a huge integer": (lambda: RSA.token(good(exp=10**40)), Fault.MALFORMED),
    "a payload with a huge float": (
        lambda: RSA.token(json.dumps(good()).encode().replace(b'"exp": 1', b'"exp": 9e400, "x": 1')),
        Fault.MALFORMED,
    ),
    "a payload of brackets": (lambda: RSA.token(b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}"), Fault.MALFORMED),
    "two algorithms": (
        lambda: compact(b'{"alg":"none","alg":"RS256","kid":"rsa"}', good(), RSA.signature),
        Fault.MALFORMED,
    ),
    "two algorithms, one in disguise": (
        lambda: compact(b'{"alg":"RS256","\\u0061lg":"none","kid":"rsa"}', good(), RSA.signature),
        Fault.MALFORMED,
    ),
    "two audiences": (lambda: RSA.token(json.dumps(good()).encode()[:-1] + b', "aud": "pagegate"}'), Fault.MALFORMED),
    "two subjects": (lambda: RSA.token(json.dumps(good()).encode()[:-1] + b', "s\\u0075b": "root"}'), Fault.MALFORMED),
    # Parts of good tokens.
    "another payload": (lambda: spliced(payload=base64url(json.dumps(good(sub="root")).encode())), Fault.SIGNATURE),
    "the same payload, written otherwise": (
        lambda: spliced(payload=base64url(json.dumps(good(), indent=1).encode())),
        Fault.SIGNATURE,
    ),
    "another header": (lambda: spliced(header=base64url(b'{"alg":"RS256","kid":"rsa"}')), Fault.SIGNATURE),
    "another token's signature": (lambda: spliced(signature=part(RSA.token(good(sub="bob")), 2)), Fault.SIGNATURE),
    # Somebody else's token.
    "no issuer": (lambda: RSA.token(good(iss=None)), Fault.ISSUER),
    "an unknown issuer": (lambda: RSA.token(good(iss="https://evil.example")), Fault.ISSUER),
    "an issuer with a slash more": (lambda: RSA.token(good(iss=ISSUER + "/")), Fault.ISSUER),
    "an issuer in capitals": (lambda: RSA.token(good(iss=ISSUER.upper())), Fault.ISSUER),
    "an issuer that begins alike": (lambda: RSA.token(good(iss=ISSUER + ".evil.example")), Fault.ISSUER),
    "an issuer in a list": (lambda: RSA.token(good(iss=[ISSUER])), Fault.ISSUER),
    "an issuer that is an object": (lambda: RSA.token(good(iss={})), Fault.ISSUER),
    "an issuer that is a number": (lambda: RSA.token(good(iss=0)), Fault.ISSUER),
    "another gateway's audience": (lambda: RSA.token(good(aud="elsewhere")), Fault.AUDIENCE),
    # Good but for what it says.
    "expired": (lambda: RSA.token(good(exp=int(NOW_S) - 31)), Fault.EXPIRED),
    "without end": (lambda: RSA.token(good(exp=None)), Fault.TIMES),
    "of a subject with lines": (lambda: RSA.token(good(sub="alice\r\nroot")), Fault.SUBJECT),
}


@pytest.mark.parametrize(("forged", "fault"), FORGERIES.values(), ids=FORGERIES)
def test_a_forged_token_is_refused(bench: Bench, forged: Callable[[], str], fault: Fault) -> None:
    """For the reason that it was made for, and without a word about it to the caller."""
    assert bench.fault(forged()) is fault


def test_all_who_are_refused_are_told_the_same(bench: Bench) -> None:
    """One type, one text, no trace of the cause: nothing is learnt by comparing refusals."""
    said = set()
    for forged, _ in FORGERIES.values():
        with pytest.raises(UnknownKey) as caught:
            bench.verify(forged())
        error = caught.value
        said.add((type(error), error.args, repr(error.__dict__), error.__cause__, error.__context__))
    assert len(said) == 1
    assert {fault for _, fault in FORGERIES.values()} >= set(Fault) - {
        Fault.NOT_YET,
        Fault.LIFETIME,
        Fault.PARTY,
        Fault.TENANT,
        Fault.MODELS,
        Fault.ROLE,
    }


def test_no_forged_token_has_keys_fetched_from_anywhere(bench: Bench) -> None:
    """Whatever a token names, only what the settings name is asked, and once."""
    for forged, _ in FORGERIES.values():
        bench.fault(forged())
    assert sorted(url for url, _ in bench.published.asked) == [f"{ISSUER}/keys", f"{OTHER}/keys"]


GOOD_TOKENS: dict[str, Callable[[], str]] = {
    "RS256": lambda: RSA.token(good()),
    "ES256": lambda: EC.token(good()),
    "ES384": lambda: EC_384.token(good()),
    "EdDSA": lambda: ED.token(good()),
    "EdDSA of the long curve": lambda: ED_448.token(good()),
    "no typ": lambda: RSA.token(good(), typ=None),
    "an access token": lambda: RSA.token(good(), typ="at+jwt"),
    "an access token, spelled out": lambda: RSA.token(good(), typ="Application/AT+JWT"),
    "no kid, one key": lambda: RSA.token(good(), kid=None),
    "words that are not looked at": lambda: RSA.token(
        good(), x5t="abc", jku="https://evil.example", jwk=FORGED.jwk(), x5c=[]
    ),
    "many audiences": lambda: RSA.token(good(aud=["elsewhere", "second"])),
    "written widely": lambda: RSA.token(json.dumps(good(), indent=4).encode()),
    "other claims": lambda: RSA.token(good(groups=["a"], nested={"a": {"b": [1, 2.5, None]}}, name="Ünïcödé")),
}


@pytest.mark.parametrize("made", GOOD_TOKENS.values(), ids=GOOD_TOKENS)
def test_a_good_token_is_accepted(bench: Bench, made: Callable[[], str]) -> None:
    """And known from then on."""
    token = made()
    assert looks_like_token(token)
    assert bench.tokens.known(token) is None
    assert bench.verify(token) == GOOD
    assert bench.tokens.known(token) == GOOD


@pytest.mark.parametrize("made", GOOD_TOKENS.values(), ids=GOOD_TOKENS)
def test_a_token_that_we_accept_is_good_to_another_reader_too(made: Callable[[], str]) -> None:
    """PyJWT's own decoder is the second opinion: we are stricter than others, and never the only ones who accept."""
    token = made()
    header = jwt.get_unverified_header(token)
    issuers = {one.key_id: one for one in (RSA, EC, ED, EC_384, ED_448)}
    decoded = jwt.decode(
        token,
        issuers[header.get("kid", "rsa")].public,
        algorithms=[header["alg"]],
        audience=["pagegate", "second"],
        issuer=ISSUER,
        options={"verify_exp": False, "verify_iat": False, "verify_nbf": False, "require": ["exp", "sub"]},
    )
    assert decoded["sub"] == GOOD.subject


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@thorough
@given(st.sampled_from([EC, ED]), st.integers(0, 10**6), st.sampled_from(LETTERS + ".=+/ \0é"), st.integers(0, 3))
def test_no_token_survives_a_change(signed_by: Signer, at: int, letter: str, how: int) -> None:
    """A letter replaced, put in, left out, or all from there cut off: even those that base64 would not notice."""
    token = signed_by.token(good())
    at %= len(token)
    changed = (
        token[:at] + letter + token[at + 1 :],
        token[:at] + letter + token[at:],
        token[:at] + token[at + 1 :],
        token[:at],
    )[how]
    with Bench().running() as one:
        one.verify(token)
        if changed != token:
            one.fault(changed)
        assert one.tokens.known(token) == GOOD


def test_no_last_letter_can_be_written_otherwise(bench: Bench) -> None:
    """Bits that no byte takes up must be zero: there is one way to write a token."""
    for made in GOOD_TOKENS.values():
        bench.verify(token := made())
        for at, text in enumerate(token.split(".")):
            for letter in LETTERS.replace(text[-1], ""):
                parts = token.split(".")
                parts[at] = text[:-1] + letter
                assert bench.tokens.known(".".join(parts)) is None
                bench.fault(".".join(parts))


@thorough
@given(st.text(max_size=60) | st.text(LETTERS + ".", max_size=200))
def test_no_text_is_more_than_refused(text: str) -> None:
    """Whatever is sent, the answer is the same refusal."""
    with Bench().running() as one:
        one.fault(text)
        one.fault(f"ey{text}.{text}.{text}")


@thorough
@given(st.binary(max_size=80), st.binary(max_size=200))
def test_no_bytes_that_are_signed_are_more_than_refused(header: bytes, payload: bytes) -> None:
    """A signature is over bytes; what they say may be anything."""
    with Bench().running() as one:
        one.fault(RSA.token(payload))
        one.fault(compact(header, payload, RSA.signature))


def test_sizes_hold_to_the_letter(bench: Bench) -> None:
    """The longest token, header and id are good, and one letter more is not."""
    made = [EC.token(good(filler="x" * size), x5t=pad) for size in range(5900, 6000) for pad in ("", "a", "ab")]
    sizes = {len(token): token for token in made}
    assert bench.verify(sizes[LONGEST_TOKEN]) == GOOD
    assert bench.fault(sizes[LONGEST_TOKEN + 1]) is Fault.TOO_LONG
    made = [EC.token(good(), x5t="x" * size) for size in range(1400, 1500)]
    sizes = {len(part(token, 0)): token for token in made}
    assert bench.verify(sizes[LONGEST_HEADER]) == GOOD
    assert bench.fault(sizes[LONGEST_HEADER + 2]) is Fault.MALFORMED
    assert bench.fault(EC.token(good(), kid="k" * LONGEST_KEY_ID)) is Fault.KEY
    assert (LONGEST_TOKEN, LONGEST_HEADER, LONGEST_KEY_ID) == (8192, 2048, 256)


@pytest.mark.parametrize(
    ("credential", "does"),
    [
        (ED.token(good()), True),
        (compact(b'{\n"alg":"RS256"}', good(), ED.signature), True),
        (compact(b'{\r\n"alg":"RS256"}', good(), ED.signature), True),
        (compact(b'{ "alg":"RS256"}', good(), ED.signature), True),
        ("pg-0123456789abcdefghijklmnopqrstuvwxyzABCDEFG", False),
        ("pg-a.b.c", False),
        ("ey-a.b", False),
        ("eyJ.a.b.c.d", False),
        ("", False),
        ("..", False),
        ("ey..", True),
    ],
)
def test_what_looks_like_a_token(credential: str, does: bool) -> None:
    """Three parts, of which the first can be a JSON object: no key that we make looks like that."""
    assert looks_like_token(credential) is does


# Times, through the whole of it.


def test_a_verdict_holds_as_long_as_the_token() -> None:
    """To the second, leeway included; what is known and what would be verified agree at each moment."""
    with Bench().running() as bench:
        token = RSA.token(good(exp=int(NOW_S) + 60))
        for _ in range(100):
            left_s = NOW_S + 60 + 30 - bench.wall()
            if left_s > 0:
                assert bench.verify(token).expires_at == NOW_S + 60
                assert bench.tokens.known(token) is not None
            else:
                assert bench.tokens.known(token) is None
                assert bench.fault(token) is Fault.EXPIRED
            bench.loop.pass_time(1)


def test_a_key_that_is_withdrawn_ends_its_verdicts_with_the_next_fetch() -> None:
    """At once for tokens that were verified with it, and for no others."""
    with Bench(settings(refresh_s=100)).running() as bench:
        old, new = RSA.token(good()), EC.token(good())
        bench.verify(old)
        bench.verify(new)
        bench.published.documents[f"{ISSUER}/keys"] = key_document(EC)
        assert bench.tokens.known(old) == GOOD
        bench.loop.pass_time(100)
        assert bench.tokens.known(old) is None
        assert bench.tokens.known(new) == GOOD
        assert bench.fault(old) is Fault.KEY


def test_another_key_under_the_same_id_is_another_key() -> None:
    """Verdicts rest on keys, not on their names."""
    with Bench(settings(refresh_s=100)).running() as bench:
        token = RSA.token(good())
        bench.verify(token)
        bench.published.documents[f"{ISSUER}/keys"] = key_document(FORGED.named("rsa"))
        bench.loop.pass_time(100)
        assert bench.tokens.known(token) is None
        assert bench.fault(token) is Fault.SIGNATURE


def test_the_same_key_of_two_issuers_is_withdrawn_by_one_of_them_alone() -> None:
    """Issuers share nothing, not even what is equal."""
    other = settings(name="other", issuer=OTHER, jwks_url=f"{OTHER}/keys", refresh_s=100)
    with Bench(settings(refresh_s=100), other).running() as bench:
        bench.published.documents[f"{OTHER}/keys"] = key_document(RSA)
        bench.loop.pass_time(100)
        mine, theirs = RSA.token(good()), RSA.token(claims(OTHER))
        bench.verify(mine)
        assert bench.verify(theirs).issuer == "other"
        bench.published.documents[f"{OTHER}/keys"] = key_document(EC)
        bench.loop.pass_time(100)
        assert bench.tokens.known(mine) == GOOD
        assert bench.tokens.known(theirs) is None


def test_keys_that_nobody_could_fetch_for_too_long_end_their_verdicts() -> None:
    """An outage does not stop known keys; one longer than `max_stale_s` does, to the second."""
    with Bench(settings(refresh_s=10, max_stale_s=3600)).running() as bench:
        token = RSA.token(good(iat=None, exp=int(NOW_S) + 7200))
        bench.verify(token)
        bench.published.documents.clear()
        bench.loop.pass_time(3599.5)
        assert bench.tokens.known(token) is not None
        bench.verify(EC.token(good(exp=int(NOW_S) + 7200)))
        bench.loop.pass_time(1)
        assert bench.tokens.known(token) is None
        with pytest.raises(KeysUnknown):
            bench.verify(token)
        assert bench.fault(RSA.token(good(aud="elsewhere"))) is Fault.AUDIENCE
        assert bench.told.refused == [("corp", Fault.AUDIENCE)]


def test_verdicts_are_bounded_and_the_oldest_goes_first() -> None:
    """It costs a signature, and nothing else."""
    with Bench(most_verdicts=3).running() as bench:
        made = [EC.token(good(jti=str(number))) for number in range(5)]
        for token in made:
            bench.verify(token)
        assert [bench.tokens.known(token) is not None for token in made] == [False, False, True, True, True]
        bench.verify(made[2])
        bench.verify(made[0])
        assert [bench.tokens.known(token) is not None for token in made] == [True, False, True, False, True]
        assert repr(bench.tokens).startswith(
            "<Tokens 3 verified; <IssuerKeys corp: 5 keys>; <IssuerKeys other: 1 keys>"
        )


def test_an_old_token_of_a_key_that_is_gone_asks_for_no_fetch() -> None:
    """Clients that present expired tokens are many after a rotation; a token that could be good does ask."""
    with Bench(settings()).running() as bench:
        bench.loop.pass_time(COOLDOWN_S)
        for token in (
            FORGED.token(good(exp=int(NOW_S) - 100)),
            FORGED.token(good(aud="elsewhere")),
            FORGED.token(good(iss=OTHER)),
        ):
            bench.fault(token)
        assert len(bench.published.asked) == 1
        bench.published.documents[f"{ISSUER}/keys"] = key_document(FORGED)
        assert bench.verify(FORGED.token(good())) == GOOD
        assert len(bench.published.asked) == 2


def test_who_watches_is_told_of_refusals_and_fetches_by_the_issuers_name() -> None:
    """Never by what a token says, which anybody may have written."""
    with Bench().running() as bench:
        bench.fault("nonsense")
        bench.fault(RSA.token(good(iss="https://evil.example")))
        bench.fault(FORGED.named("rsa").token(good()))
        assert bench.told.refused == [(None, Fault.MALFORMED), (None, Fault.ISSUER), ("corp", Fault.SIGNATURE)]
        assert bench.told.fetched == [("corp", None), ("other", None)]


def test_without_issuers_there_is_nothing_to_fetch_or_to_accept() -> None:
    """And nothing runs."""
    loop, told = Loop(), Told()
    published = Published(loop)

    async def judged() -> None:
        async with Tokens((), published, loop.time, lambda: NOW_S, random.Random(1), told) as tokens:
            assert repr(tokens) == "<Tokens 0 verified>"
            assert tokens.known(RSA.token(good())) is None
            with pytest.raises(UnknownKey):
                await tokens.verify(RSA.token(good()))

    loop.do(judged())
    assert published.asked == []


def test_nothing_prints_a_token_or_a_key(bench: Bench) -> None:
    """What is printed ends in logs."""
    token = RSA.token(good())
    bench.verify(token)
    printed = repr(bench.tokens) + repr(bench.tokens.__dict__)
    for hidden in (token, part(token, 1), part(token, 2), RSA.jwk()["n"], urlsafe_b64encode(der()).decode()):
        assert hidden not in printed
